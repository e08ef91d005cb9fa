"""The contract of every technique in the catalogue: whatever is enrolled there is run through all of this."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.inference import bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model import network as networks
from xlt_ray.model.network import Network
from xlt_ray.search import trial
from xlt_ray.supervision import BY_READING
from xlt_ray.techniques import CATALOGUE
from xlt_ray.techniques.technique import Example, Technique
from xlt_ray.training import checks, frozen, loop, setup
from xlt_ray.training.setup import Setup

Settings = dict[str, Any]
TEXTS = ["eng1 eng2 eng3", "swh4 swh50 swh7", "hin30"]
# what a technique needs besides its defaults to work on a corpus of some hundred made-up rows
PARAMETERS: dict[str, Settings] = {"code_switch": {"score": 0.01, "rate": 0.9}, "few_shot": {"shots": 2}}
HOLDS_OUT_BY_ID = ("mlm",)
PARAMETERS["translate_test"] = {"scores": [0.5, 0.1]}


@pytest.fixture(params=sorted(CATALOGUE))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def settings(tiny_settings: Settings, parallel_corpus: Path, name: str) -> Settings:
    """An experiment with one technique, on rows that are translations of each other."""
    method = techniques.load(name).methods[0]
    changed = copy.deepcopy(tiny_settings)
    changed["corpus"]["path"] = str(parallel_corpus)
    changed["sources"] = ["eng_Latn"]
    changed["training"]["method"] = method
    changed["techniques"] = [{name: PARAMETERS.get(name, {})}]
    return changed


@pytest.fixture(scope="session")
def parallel_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three languages whose rows of one id are the same words, in another language."""
    folder = tmp_path_factory.mktemp("parallel")
    rng = np.random.default_rng(0)
    for split, rows, start in (("train", 120, 0), ("dev", 21, 1000), ("test", 30, 2000)):
        drawn = []
        for number in range(rows):
            label = number % 3
            drawn.append((start + number, [20 * label + int(i) for i in rng.integers(20, size=6)], label))
        for language in ("eng_Latn", "swh_Latn", "hin_Deva"):
            lines = ["id\ttext\tlabel"] + [
                f"{row}\t{' '.join(f'{language[:3]}{i}' for i in words)} {language[:3]}row{row}\tlabel{label}"
                for row, words, label in drawn
            ]
            (folder / language).mkdir(exist_ok=True)
            (folder / language / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run_of(experiment: Experiment) -> setup.Run:
    corpus = loaders.load(experiment.corpus)
    made = Setup.of(experiment, corpus).read()
    net, tokenize, _ = made.build()
    return setup.Run(made, net, tokenize)


def test_it_says_what_it_is_and_every_parameter_has_a_meaning(name: str) -> None:
    kind = techniques.load(name)
    assert kind.name == name
    assert issubclass(kind, Technique)
    assert kind.__doc__ and kind.__doc__.strip()
    assert kind.paper and kind.needs and kind.cost
    assert set(kind.methods) <= {"fine_tune", "probe", "adapt"} and kind.methods
    assert all(field.description for field in kind.model_fields.values())


def test_it_is_made_with_defaults_and_refuses_what_it_does_not_know(name: str, settings: Settings) -> None:
    kind = techniques.load(name)
    assert kind() == kind()
    (made,) = techniques.build(build({**settings, "techniques": [name]}))
    assert made == kind()
    with pytest.raises(InputError, match=rf"techniques\.{name}\.no_such_key: unknown key"):
        techniques.build(build({**settings, "techniques": [{name: {"no_such_key": 1}}]}))


def test_its_hooks_give_what_they_should(name: str, settings: Settings) -> None:
    experiment = build(settings)
    (made,) = techniques.build(experiment)
    corpus = loaders.load(experiment.corpus)
    material = Setup.of(experiment, corpus).material
    visible = corpus.for_training(experiment.sources)
    changed = made.corpus(visible, material)
    assert isinstance(changed, Corpus)
    assert changed.labels == visible.labels and not changed.splits["test"]
    ready = made.prepare(material)
    example = Example("eng1 eng2 eng3", None, "eng_Latn")
    once, again = (ready.example(example, np.random.default_rng(5)) for _ in range(2))
    assert isinstance(once, Example) and once == again
    run = run_of(experiment)
    assert isinstance(run.network, Network)
    term = made.loss_term(run.network, material, run.computing("float32"))
    assert term is None or isinstance(term, torch.nn.Module)
    assert all(isinstance(table.num_rows, int) for table in made.texts(material).values())


def test_no_label_of_a_target_reaches_it_unless_it_reads_labels(name: str, settings: Settings) -> None:
    experiment = build(settings)
    (made,) = techniques.build(experiment)
    found = Setup.of(experiment, loaders.load(experiment.corpus))
    visible, material = found.visible, found.material
    assert all("label" not in table.column_names for table in material.texts.values())
    assert bool(material.shots) is (made.reads == "labels")
    assert not visible.splits["test"]
    if made.reads == "labels":
        return
    assert visible.languages("dev") == ("eng_Latn",) and not found.few_shot
    blind = Setup.of(experiment, mislabelled(found.corpus, ("swh_Latn", "hin_Deva"))).visible
    assert blind.splits["train"].keys() == visible.splits["train"].keys()
    for code, table in visible.splits["train"].items():
        assert table.equals(blind.table("train", code)), "other labels of the targets change nothing"


def mislabelled(corpus: Corpus, languages: tuple[str, ...]) -> Corpus:
    """Give every row of train and dev of these languages another label."""
    splits = {split: dict(tables) for split, tables in corpus.splits.items()}
    for split in ("train", "dev"):
        for code in languages:
            table = splits[split][code]
            turned = pa.array((table["label"].to_numpy() + 1) % len(corpus.labels), pa.int32())
            splits[split][code] = table.set_column(table.schema.get_field_index("label"), "label", turned)
    return replace(corpus, splits=splits)


def test_every_row_that_it_adds_is_counted_and_makes_a_language_few_shot_where_labels_are_read(
    name: str, settings: Settings
) -> None:
    experiment = build(settings)
    found = Setup.of(experiment, loaders.load(experiment.corpus))
    before = found.corpus.for_training(experiment.sources).sizes("train")
    now = found.visible.sizes("train")
    more = {code: rows - before.get(code, 0) for code, rows in now.items()}
    assert found.added == {name: {code: rows for code, rows in more.items() if rows}}
    others = tuple(code for code in now if code != "eng_Latn")
    assert found.few_shot == (others if found.techniques[0].reads == "labels" else ())
    assert set(found.zero_shot) == {"swh_Latn", "hin_Deva"} - {*found.few_shot}


def test_it_says_the_most_that_it_reads_of_targets(name: str, settings: Settings) -> None:
    experiment = build(settings | {"training": {**settings["training"], "epochs": 1, "batch_size": 40}})
    (made,) = techniques.build(experiment)
    assert made.reads in BY_READING
    if made.reads in ("parallel", "labels") or experiment.training.method != "fine_tune":
        return
    if name in HOLDS_OUT_BY_ID:
        pytest.skip("rows of one id are held out together, so that other ids are other rows to learn from")
    whole, blind = run_of(experiment), run_of(experiment)
    texts = blind.setup.material.texts
    if made.reads == "nothing":
        hidden: dict[str, Any] = {}
    else:  # no row is known to be the translation of another
        hidden = {code: table.drop_columns(["id"]) for code, table in texts.items()}
        hidden = {
            code: table.append_column("id", pa.array([f"{code}{row}" for row in range(table.num_rows)]))
            for code, table in hidden.items()
        }
    blind.setup = replace(blind.setup, material=replace(blind.setup.material, texts=hidden))
    for run in (whole, blind):
        loop.fit(run)
    one, other = whole.network.state_dict(), blind.network.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_loss_is_finite_and_a_step_changes_what_is_trained(name: str, settings: Settings) -> None:
    if "fine_tune" not in techniques.load(name).methods:
        pytest.skip("has no training of its own")
    settings["training"] |= {"epochs": 1, "batch_size": 120}
    run = run_of(build(settings))
    state = loop.begin(run)
    before = {n: p.detach().clone() for n, p in run.network.named_parameters() if p.requires_grad}
    state.advance(1)
    assert np.isfinite(state.progress.history[0]["train/epoch_loss"])
    now = dict(run.network.named_parameters())
    moved = [n for n, p in before.items() if not torch.equal(p, now[n])]
    assert any(not n.startswith(("head", "terms")) for n in moved)
    assert all(n in moved for n in before if n.startswith("terms") and n.endswith("bias"))


def test_a_run_killed_within_an_epoch_goes_on_bit_by_bit(name: str, settings: Settings, tmp_path: Path) -> None:
    if "fine_tune" not in techniques.load(name).methods:
        pytest.skip("has no training of its own")
    settings["training"] |= {"epochs": 2, "batch_size": 16, "checkpoint_every": 3}
    resumed_bit_by_bit(build(settings), tmp_path)


def resumed_bit_by_bit(experiment: Experiment, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Train whole and from the second checkpoint of the first epoch, compare, and return the weights."""
    whole, again = run_of(experiment), run_of(experiment)
    kept: list[Path] = []

    def keep(metrics: dict[str, float], save: setup.Save | None) -> None:
        assert save is not None
        kept.append(tmp_path / str(len(kept)))
        kept[-1].mkdir()
        save(kept[-1])

    whole.report = keep
    loop.fit(whole)
    loop.fit(again, kept[1])
    one, other = whole.network.state_dict(), again.network.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    return one


def trained(settings: Settings) -> tuple[Bundle, str]:
    settings["training"] |= {"epochs": 1}
    experiment = build(settings)
    run = run_of(experiment)
    if experiment.training.method == "fine_tune":
        loop.fit(run)
    run.network.terms.clear()
    identity = networks.build(experiment.network, 3, 0).identity
    labels, readings = run.setup.visible.labels, run.setup.readings
    return Bundle(run.network.eval(), run.tokenize, labels, experiment, None, readings=readings), identity


def test_a_bundle_comes_back_as_it_was(name: str, settings: Settings, tmp_path: Path) -> None:
    original, identity = trained(settings)
    bundle.save(tmp_path / "bundle", original, identity)
    loaded = bundle.load(tmp_path / "bundle")
    assert loaded.experiment == original.experiment
    for codes in (["eng_Latn", "swh_Latn", "hin_Deva"], [None] * 3, ["xxx_Latn"] * 3):
        one, other = (model.probabilities(TEXTS, languages=codes) for model in (original, loaded))
        assert np.array_equal(one, other)


def test_its_state_goes_into_a_network_that_was_built_anew(name: str, settings: Settings) -> None:
    model, _ = trained(settings)
    (made,) = techniques.build(model.experiment)
    state = {key: tensor.detach().clone() for key, tensor in made.state(model.network).items()}
    built = techniques.network((made,), model.experiment, 3, model.network.languages).network
    made.load(built, state)
    again = made.state(built)
    assert again.keys() == state.keys() and all(torch.equal(again[key], tensor) for key, tensor in state.items())
    assert not made.replaces_encoder or state, "a bundle that holds no encoder holds what was added to it"


def test_merged_into_the_encoder_it_answers_the_same_and_leaves_plain_layers(name: str, settings: Settings) -> None:
    model, _ = trained(settings)
    (made,) = techniques.build(model.experiment)
    before = model.probabilities(TEXTS, languages=["eng_Latn", "swh_Latn", "hin_Deva"])
    made.merge_into_encoder(model.network)
    after = model.probabilities(TEXTS, languages=["eng_Latn", "swh_Latn", "hin_Deva"])
    np.testing.assert_allclose(after, before, atol=1e-5)
    plain = networks.build(model.experiment.network, 3, 0).network.encoder
    assert [n for n, _ in model.network.encoder.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_it_takes_up_a_language_or_says_that_it_cannot(name: str, settings: Settings) -> None:
    model, _ = trained(settings)
    (made,) = techniques.build(model.experiment)
    net, known = model.network, model.network.languages
    features = np.random.default_rng(0).normal(size=(30, net.head.in_features)).astype(np.float32)
    before = model.probabilities(TEXTS, languages=["eng_Latn"] * 3)
    net.languages = (*known, "xxx_Latn")
    if not made.adds_languages:
        with pytest.raises(NotImplementedError, match=name):
            made.add_language(net, "xxx_Latn", features)
        return
    unknown = model.probabilities(TEXTS, languages=[None] * 3)
    made.add_language(net, "xxx_Latn", features)
    added = model.probabilities(TEXTS, languages=["xxx_Latn"] * 3)
    assert np.abs(added - unknown).max() > 1e-4, "it is more than an unknown language now"
    assert np.array_equal(model.probabilities(TEXTS, languages=["eng_Latn"] * 3), before), "others stay as they were"
    assert np.array_equal(model.probabilities(TEXTS, languages=[None] * 3), unknown)


def test_a_trial_of_a_search_trains_it_and_measures_what_the_mix_leaves_out(name: str, settings: Settings) -> None:
    made = techniques.load(name)
    if "fine_tune" not in made.methods or made().reads == "labels" or made().changes_readings:
        pytest.skip("is in no fine-tuned mix")
    settings |= {"sources": ["eng_Latn", "swh_Latn"], "targets": ["hin_Deva"]}
    settings["training"] |= {"epochs": 2}
    whole = loaders.load(build(settings).corpus)
    visible, texts = whole.for_training(("eng_Latn", "swh_Latn")), whole.unlabelled(["hin_Deva"], ids=True)
    worker = trial.Worker(trial.TrialData(visible, texts), 0, trial.WorkerGroup("", 1, 1, 0))
    for sources in (["eng_Latn"], ["swh_Latn"]):  # one after the other on the same worker
        worker.begin(build({**settings, "sources": sources}))
        for epochs in (1, 2):
            assert set(worker.advance(epochs)) == {"eng_Latn", "swh_Latn"}
        alone = trial.Worker(trial.TrialData(visible, texts), 0, trial.WorkerGroup("", 1, 1, 0))
        alone.begin(build({**settings, "sources": sources}))
        alone.advance(2)
        one, other = networks.trained(worker.net), networks.trained(alone.net)
        assert all(torch.equal(one[key], other[key]) for key in other), "nothing is left of the trial before"


def test_a_plain_network_answers_as_the_one_with_techniques(name: str, settings: Settings, tmp_path: Path) -> None:
    model, _ = trained(settings)
    rows = model.tokenize(TEXTS)  # as they stand: a network knows nothing of other readings
    wanted = {code: model.answer(rows, [code] * 3) for code in (None, "eng_Latn", "swh_Latn")}
    bare, added, heads = networks.plain(model.network)
    assert not len(bare.steps) and not heads
    plain = Bundle(bare, model.tokenize, model.labels, model.experiment, None).probabilities(TEXTS)
    for code, expected in wanted.items():
        moved = plain * np.exp(np.array(added.get(code or "", [0.0] * 3)))
        np.testing.assert_allclose(moved / moved.sum(1, keepdims=True), expected, atol=1e-5)


def test_a_method_that_it_has_no_effect_on_is_refused(name: str, settings: Settings) -> None:
    for method in {"fine_tune", "probe", "adapt"} - set(techniques.load(name).methods):
        settings["training"]["method"] = method
        with pytest.raises(InputError, match=rf"techniques\.{name}: has no effect"):
            checks.prepare(build(settings))


def test_what_a_probe_is_fitted_on_is_what_training_draws(name: str, settings: Settings) -> None:
    if "probe" not in techniques.load(name).methods:
        pytest.skip("has no effect on a probe")
    settings["training"]["method"] = "probe"
    prepared = checks.prepare(build(settings))
    tables = frozen.training_tables(prepared)
    assert {key for key in tables if key.startswith("train/")} == {
        f"train/{code}" for code in prepared.visible.languages("train")
    }
    times = prepared.experiment.training.epochs if prepared.techniques[0].changes_examples else 1
    assert tables["train/eng_Latn"].num_rows == 120 * times
