"""A configuration: every invalid value is refused at once, and what decides a result names the run."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.keys import describe
from xlt_ray.config.read import build, dump, load
from xlt_ray.errors import InputError

MINIMAL: dict[str, Any] = {"sources": ["eng_Latn", "deu_Latn"]}


def faults(*overrides: str, **data: Any) -> str:
    """Return the message that refuses these overrides or this data."""
    with pytest.raises(InputError) as refused:
        build(MINIMAL | data, overrides)
    return str(refused.value)


# what is refused, and how


def test_an_unknown_key_is_refused_with_the_one_that_was_meant() -> None:
    assert faults("mixture.alfa=0.5") == "configuration:\n  mixture.alfa: unknown key, did you mean mixture.alpha?"
    assert "trainig: unknown key, did you mean training?" in faults("trainig.epochs=3")
    assert "learning_rate: unknown key, did you mean training.learning_rate?" in faults("learning_rate=1")
    assert "alpha: unknown key, did you mean mixture.alpha?" in faults("alpha=1")
    assert "did you mean training.tokens_per_step or evaluation.tokens_per_step?" in faults("tokens_per_step=64")
    assert "zzz: unknown key; `xlt catalogue` lists the keys" in faults("zzz=1")


def test_all_faults_are_listed_at_once() -> None:
    data = {"name": "a b", "mixture": {"alpha": -1, "alfa": 2}, "training": {"epochs": 0, "method": "magic"}}
    with pytest.raises(InputError) as refused:
        build(data, place="mine.yaml")
    lines = str(refused.value).splitlines()
    assert lines[0] == "mine.yaml:"
    places = {line.split(":")[0].strip() for line in lines[1:]}
    assert places == {"name", "sources", "mixture.alpha", "mixture.alfa", "training.epochs", "training.method"}
    assert "  sources: missing; give it a value" in lines
    assert any(line.endswith("(got -1)") for line in lines)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": []}, "sources"),
        ({"sources": ["en", "eng_Latn"]}, "sources: eng_Latn given twice"),
        ({"targets": ["sw", "swa"]}, "targets: swh_Latn given twice"),
        ({"targets": "every"}, "targets"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"name": "../escape"}, "name"),
        ({"name": ""}, "name"),
        ({"mixture": {"alpha": 5.1}}, "mixture.alpha"),
        ({"mixture": {"alpha": float("nan")}}, "mixture.alpha"),
        ({"mixture": {"draws_per_epoch": 0}}, "mixture.draws_per_epoch"),
        ({"mixture": {"weights": {"en": -1}}}, "mixture.weights: en: a weight is 0 or more, got -1"),
        ({"mixture": {"weights": {"en": float("inf")}}}, "mixture.weights.en: Input should be a finite number"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate: Input should be a finite number"),
        ({"mixture": {"weights": {"en": float("nan")}}}, "mixture.weights.en: Input should be a finite number"),
        ({"mixture": {"weights": {"en": 1, "eng_Latn": 2}}}, "mixture.weights: en, eng_Latn: two of these are one"),
        ({"mixture": {"weights": {"fra_Latn": 1}}}, "mixture.weights: fra_Latn not among sources; add or remove"),
        ({"mixture": {"weights": {"en": 0, "de": 0}}}, "mixture.weights: every source has weight 0"),
        ({"training": {"epochs": 2, "average_last": 3}}, "training.average_last: 3 epochs to average but training"),
        ({"training": {"average_last": 2, "select": "source_dev"}}, "averaging needs training.select: last"),
        ({"training": {"probe_strengths": []}}, "training.probe_strengths"),
        ({"training": {"probe_strengths": [1, 0]}}, "training.probe_strengths.1"),
        ({"training": {"refit": "dev", "method": "probe"}}, "training.refit"),
        ({"training": {"refit": "source_dev"}}, "training.method is fine_tune; set training.method to probe, or"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate"),
        ({"training": {"select": "test"}}, "training.select"),
        ({"network": {"max_length": 4}}, "network.max_length"),
        ({"network": {"freeze": ["head"]}}, "network.freeze"),
        ({"network": {"dropout": 1}}, "network.dropout"),
        ({"corpus": {"loader": "sql"}}, "corpus.loader"),
        ({"corpus": {"splits": {"valid": "x"}}}, "corpus.splits"),
        ({"resources": {"workers": 0}}, "resources.workers"),
    ],
    ids=str,
)
def test_an_invalid_value_is_refused(data: dict[str, Any], message: str) -> None:
    assert message in faults(**data)


@pytest.mark.parametrize("data", [[1], 3, None, "text", {(1, 2): 3}, {b"a": 1}], ids=str)
def test_what_is_no_mapping_of_names_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="^here: "):
        build(data, place="here")
    with pytest.raises(InputError):
        build(data, ["name=a"])


def test_data_that_holds_itself_or_never_ends_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["sources"] = loop
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"sources": deep}
    for data in (loop, deep):
        with pytest.raises(InputError, match="not plain data"):
            build(data)


# overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=5e-5", 5e-5),
        ("training.learning_rate=5.0e-5", 5e-5),
        ("training.learning_rate=1.5e-5", 1.5e-5),
        ("training.learning_rate=1E-3", 1e-3),
        ("training.batch_size=1e3", 1000),
        ("training.checkpoint_every=null", None),
        ("training.checkpoint_every=", None),
        ("training.probe_strengths=[1e-3, 1, 10]", (1e-3, 1.0, 10.0)),
        ("network.freeze=[embeddings, 6]", ("embeddings", 6)),
        ("network.freeze=[]", ()),
        ("network.prefix='query: '", "query: "),
        ("network.prefix=a=b", "a=b"),
        ("corpus.splits.dev=validation", {"train": "train", "dev": "validation", "test": "test"}),
        ("mixture.weights={en: 2}", {"eng_Latn": 2.0}),
        ("mixture.weights.deu_Latn=0.5", {"deu_Latn": 0.5}),
        ("sources=[en, sw]", ("eng_Latn", "swh_Latn")),
        ("targets=[ha, pt-BR]", ("hau_Latn", "por_Latn")),
        ("name='1e5'", "1e5"),
        ("tracking.experiment='2024'", "2024"),
    ],
)
def test_an_override_is_yaml_at_a_dotted_place(override: str, value: Any) -> None:
    found: Any = build(MINIMAL, [override])
    for name in override.partition("=")[0].split(".")[:2]:
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_later_overrides_win_and_the_data_itself_stays_as_it_was() -> None:
    data = {**MINIMAL, "mixture": {"alpha": 0.1}}
    before = copy.deepcopy(data)
    made = build(data, ["mixture.alpha=0.5", "mixture.alpha=0.7", "mixture.draws_per_epoch=10"])
    assert (made.mixture.alpha, made.mixture.draws_per_epoch) == (0.7, 10)
    assert data == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixture.alpha", "'mixture.alpha': an override is written key=value, such as mixture.alpha=0.5"),
        ("=3", "'=3': an override is written key=value"),
        ("name.first=a", "name.first: name holds 'tiny', so nothing can stand below it"),
        ("training.epochs=[1", "'training.epochs=[1': the value is not valid YAML"),
        ("training.epochs=2020-13-45", "training.epochs: Input should be a valid integer"),
        ("training.epochs=" + "9" * 5000, "the value is not valid YAML"),
        ("mixture.weights={en: 1, en: 2}", "key 'en' stands twice in line 1 and above"),
        ("training.epochs=three", "training.epochs: Input should be a valid integer"),
    ],
)
def test_an_override_that_says_nothing_is_refused(override: str, message: str) -> None:
    assert message in faults(override, name="tiny")


# files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sources: [eng_Latn", "not valid YAML: "),
        (b"seed: 1\nsources: [en]\nseed: 2", "not valid YAML: key 'seed' stands twice in line 3 and above"),
        (b"a: !!bool x", "not valid YAML: "),
        (b"? [a]\n: b", "not valid YAML: "),
        (b"sources: !!python/object:os.system x", "not valid YAML: "),
        (b"[" * 5000, "not valid YAML: "),
        (b"- a\n- b", "holds list, not keys with values; start from jobs/configs/quickstart.yaml"),
        (b"", "holds NoneType, not keys with values"),
        (b"2020-01-01: 3", "2020-01-01: unknown key"),
        (b"sources: &x [*x]", "not plain data "),
        ("sources: [grüß]".encode("latin-1"), "cannot be read as UTF-8 text"),
        ("sources: [en]".encode("utf-16"), "cannot be read as UTF-8 text"),
        (b"sources: [en]\nalpha: 1", "alpha: unknown key, did you mean mixture.alpha?"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_file_is_refused_by_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as refused:
        load(file)
    assert str(refused.value).startswith(f"{file}:") and message in str(refused.value)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.yaml: no such file; ready ones are under jobs/configs/"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        load("nul\0.yaml")


def test_a_file_is_read_with_its_overrides(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("\ufeffname: größe-1\nsources: [en]\ntraining: {learning_rate: 5e-5}\n", encoding="utf-8")
    with pytest.raises(InputError, match="name"):
        load(file)
    made = load(file, ["name=plain"])
    assert (made.name, made.sources, made.training.learning_rate) == ("plain", ("eng_Latn",), 5e-5)


LABELS = "yes, no, on, off, true, True, null, ~, 1, 007, 1.10, 1e3, 0x1f, 12:30, 2020-01-01, y"
AS_WRITTEN = f"""
name: 2024
sources: [no, en]
targets: [on, yo, nan]
corpus:
  path: off
  revision: 12e4567
  text: 0
  subset: null
  labels: [{LABELS}]
  languages: {{no: no, en: 0, yo: null}}
mixture: {{weights: {{no: 2, en: 1e-1}}}}
techniques: [centre, {{lora: off}}, {{code_switch: {{languages: [no]}}}}]
tracking: {{uri: off, alias: ~}}
storage: 2020-01-01
"""


@pytest.mark.filterwarnings("ignore:language '")
def test_where_text_is_wanted_it_is_taken_as_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(AS_WRITTEN, encoding="utf-8")
    made = load(file)
    assert (made.name, made.sources, made.targets) == ("2024", ("nob_Latn", "eng_Latn"), ("on", "yor_Latn", "nan"))
    corpus = made.corpus
    assert (corpus.path, corpus.revision, corpus.text, corpus.subset) == ("off", "12e4567", "0", None)
    assert list(corpus.labels) == LABELS.split(", ")
    assert corpus.languages == {"no": "no", "en": "0", "yo": "null"}
    assert made.mixture.weights == {"nob_Latn": 2.0, "eng_Latn": 0.1}
    assert made.techniques == {"centre": {}, "code_switch": {"languages": ["no"]}}
    assert (made.tracking.uri, made.tracking.alias, made.storage) == ("off", None, "2020-01-01")
    file.write_text(dump(made), encoding="utf-8")
    assert load(file) == made


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("sources=[en, no]", ("eng_Latn", "nob_Latn")),
        ("targets=[no]", ("nob_Latn",)),
        ("corpus.languages.no=nb", {"no": "nb"}),
        ("corpus.labels=[no, yes]", ("no", "yes")),
        ("corpus.labels=['no', \"1e3\", 1e2 ]", ("no", "1e3", "1e2")),
        ("corpus.labels=null", None),
        ("network.prefix=query: ", "query:"),
        ("corpus.path=#1 {language}", "#1 {language}"),
        ("tracking.uri=off", "off"),
        ("techniques.lora=off", {}),
        ("techniques.lora=on", {"lora": {}}),
        ("training.batch_size=064", 64),
    ],
)
def test_an_override_of_a_text_is_taken_as_written(override: str, value: Any) -> None:
    found: Any = build(MINIMAL, [override])
    for name in override.partition("=")[0].split(".")[:2]:
        found = found if isinstance(found, dict) else getattr(found, name)
    assert found == value and type(found) is type(value)


def test_plain_data_that_is_no_text_is_to_be_quoted() -> None:
    assert "sources.1: Input should be a valid string (got False); write it in quotes" in faults(sources=["en", False])


# meaning


def test_language_codes_are_resolved_everywhere() -> None:
    made = build({"sources": ["en", "sr-Latn"], "targets": ["zh_TW"], "mixture": {"weights": {"EN": 2, "sr-Latn": 1}}})
    assert made.sources == ("eng_Latn", "srp_Latn")
    assert made.targets == ("zho_Hant",)
    assert made.mixture.weights == {"eng_Latn": 2, "srp_Latn": 1}


def test_an_unknown_language_is_kept_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="'xqq' is not in"):
        assert build({"sources": ["xqq"]}).sources == ("xqq",)


def test_only_a_choice_on_target_dev_is_an_oracle() -> None:
    oracle = {s: build(MINIMAL | {"training": {"select": s}}).oracle for s in ("last", "source_dev", "target_dev")}
    assert oracle == {"last": False, "source_dev": False, "target_dev": True}


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        build(MINIMAL).seed = 3  # type: ignore[misc]


# the name of a run


@pytest.mark.parametrize(
    "override",
    ["tracking.uri=off", "tracking.alias=best", "storage=elsewhere", "corpus.cache_dir=/c", "resources.max_failures=9"],
)
def test_what_decides_no_result_does_not_change_the_key(override: str) -> None:
    assert build(MINIMAL, [override]).key() == build(MINIMAL).key()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "mixture.alpha=0.5", "resources.workers=2", "sources=[en]", "targets=[en]", "training.epochs=6"],
)
def test_what_decides_the_result_changes_the_key(override: str) -> None:
    assert build(MINIMAL, [override]).key() != build(MINIMAL).key()


def test_a_key_stays_that_of_runs_made_before_there_was_a_field() -> None:
    # computed before there was training.refit
    assert build(MINIMAL, ["name=trial"]).key("rows") == "trial-c7aa069538"
    centred = {
        "sources": ["fr"],
        "name": "probe",
        "training": {"method": "probe"},
        "techniques": {"centre": {"rows": 200}},
    }
    assert build(centred).key() == build(centred, ["training.refit=none"]).key() == "probe-4741d44553"
    assert build(centred, ["training.refit=source_dev"]).key() != "probe-4741d44553"


def test_a_key_is_the_name_and_the_same_however_the_configuration_is_written() -> None:
    key = build(MINIMAL, ["name=trial"]).key()
    assert key.startswith("trial-") and len(key) == len("trial-") + 10
    assert key == build({"sources": ["en", "de"], "name": "trial", "seed": 0, "mixture": {"alpha": 0.3}}).key()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.clip=.inf", "network.prefix='query: '", "mixture.weights.eng_Latn=0.1", "network.freeze=[3]"],
        ["name='5e-5'", "corpus.languages={en: english}", "corpus.labels=['yes', 'no', '1']", "targets=[]"],
    ],
)
def test_dumped_and_loaded_is_equal(tmp_path: Path, overrides: list[str]) -> None:
    made = build(MINIMAL, overrides)
    file = tmp_path / "experiment.yaml"
    file.write_text(dump(made), encoding="utf-8")
    assert load(file) == made
    assert load(file).key() == made.key()
    assert build(made.model_dump(mode="json")) == made


def test_the_cache_is_the_users_own_on_whatever_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    usual = build(MINIMAL)
    assert usual.corpus.cache_dir.startswith("~/"), "a bundle is loaded, and a worker runs, in another home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    moved = build(MINIMAL)
    assert moved.corpus.cache_dir == str(tmp_path / "xlt_ray")
    assert moved.key() == usual.key()


def test_every_key_is_described() -> None:
    rows = {key: (default, meaning) for key, default, meaning in describe(Experiment)}
    assert rows["mixture.alpha"][0] == 0.3 and "corpus sizes" in rows["mixture.alpha"][1]
    assert rows["sources"][0] == "(required)"
    assert rows["training"] == ("", "How the network is fitted.")
    leaves = {key for key, value in _leaves(yaml.safe_load(dump(build(MINIMAL))))}
    assert leaves <= set(rows)


def _leaves(data: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        inner = isinstance(value, dict) and f"{above}{key}" not in ("mixture.weights", "corpus.splits")
        found += _leaves(value, f"{above}{key}.") if inner else [(above + key, value)]
    return found


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, xlt_ray.config; print(sorted({'torch', 'ray', 'numpy', 'mlflow'} & {*sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# anything at all

SECTIONS = {
    name: list(field.annotation.model_fields)
    for name, field in Experiment.model_fields.items()
    if hasattr(field.annotation, "model_fields")
}
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4)
)
CODES = st.sampled_from(["en", "de", "eng_Latn", "zz", ""])
VALUES = st.recursive(
    SCALARS | CODES | st.sampled_from([0, 1, 0.5, "all", "last", "probe", "off", "files", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS | CODES, inner, max_size=3),
    max_leaves=6,
)


def section(keys: list[str]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(keys) | st.text(max_size=6), VALUES, max_size=4)


NEARLY = st.fixed_dictionaries(
    {"sources": st.lists(CODES, min_size=1, max_size=3) | VALUES},
    optional={name: section(keys) | VALUES for name, keys in SECTIONS.items()}
    | {"name": VALUES, "seed": VALUES, "targets": VALUES, "storage": VALUES},
)
OVERRIDE = st.builds(
    "{}={}".format,
    st.sampled_from(["seed", "mixture.alpha", "a.b", "name", "sources"]) | st.text(max_size=9),
    st.text(),
)


@pytest.mark.filterwarnings("ignore:language ")
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=NEARLY | VALUES, overrides=st.lists(OVERRIDE, max_size=2))
def test_anything_gives_an_experiment_or_an_input_error(data: Any, overrides: list[str]) -> None:
    try:
        made = build(data, overrides)
    except InputError as refused:
        assert str(refused)
    else:
        assert isinstance(made, Experiment)
        assert build(yaml.safe_load(dump(made))).key() == made.key()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@pytest.mark.filterwarnings("ignore:language ")
def test_any_file_gives_an_experiment_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    try:
        assert isinstance(load(file), Experiment)
    except InputError as refused:
        assert str(refused).startswith(str(file))


@pytest.mark.parametrize(
    ("weight", "expected"), [(0.0, {"lora": {}}), (0.2, {"lora": {}, "language_id": {"weight": 0.2}})]
)
def test_an_option_that_became_a_technique_is_read_as_one(weight: float, expected: dict[str, Any]) -> None:
    before = {**MINIMAL, "training": {"language_id": weight, "epochs": 2}, "techniques": ["lora"]}
    found = build(before)
    assert found.techniques == expected and found.training.epochs == 2
    assert build(yaml.safe_load(dump(found))) == found
    with pytest.raises(InputError, match="techniques: lora given twice"):
        build({**before, "techniques": ["lora", "lora"]})
    with pytest.raises(InputError, match="training.language_ids: unknown key"):
        build({**MINIMAL, "training": {"language_ids": weight}})


@pytest.mark.parametrize(("given", "kept"), [(2, 2), ("2", 2), (2.0, 2), ([1, 4], (1, 4)), ([2, 2], 2)])
def test_workers_are_a_number_or_a_range(given: object, kept: object) -> None:
    found = build({"sources": ["eng_Latn"], "resources": {"workers": given}})
    assert found.resources.workers == kept
    assert build({"sources": ["eng_Latn"]}, [f"resources.workers={given}"]).resources.workers == kept
    assert (found.resources.fewest, found.resources.most) == (kept if isinstance(kept, tuple) else (kept, kept))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "resources.workers: 0; give a number of 1 or more, or two, as in [1, 4]"),
        ({"workers": float("inf")}, "resources.workers: inf; give a number"),
        ({"workers": True}, "resources.workers: True; give a number"),
        ({"workers": [1, 2, 3]}, "resources.workers: [1, 2, 3]; give a number"),
        ({"workers": [4, 1]}, "resources.workers: [4, 1]; give the fewest first, as in [1, 4]"),
        ({"workers": [1, 4], "cpus_per_worker": 0.5}, "[1, 4] needs whole cpus_per_worker"),
        ({"workers": 2, "wait_minutes": 0}, "resources.wait_minutes"),
    ],
)
def test_workers_that_cannot_be_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refused:
        build({"sources": ["eng_Latn"], "resources": given})
    assert message in str(refused.value)


def test_how_long_a_run_waits_does_not_make_it_another() -> None:
    plain = build({"sources": ["eng_Latn"]})
    assert build({"sources": ["eng_Latn"], "resources": {"wait_minutes": 5}}).key() == plain.key()
    assert build({"sources": ["eng_Latn"], "resources": {"workers": [1, 4]}}).key() != plain.key()
