"""Distillation of a finished model: what of it is learned, what cannot teach, and that what it has read is told."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import test_catalogue as contract
import torch
import transformers
from conftest import saved
from test_adversarial import outputs_of, train
from test_catalogue import mislabelled, parallel_corpus, run_of
from test_distil import CODES, distilled, settings, without_counterparts
from workers import on_workers

from xlt_ray import durable, techniques
from xlt_ray.cli import listings
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.corpora.arrow import Chunked
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.inference import artefact, bundle
from xlt_ray.model import network
from xlt_ray.runs import run, storage
from xlt_ray.supervision import FEW_SHOT, PARALLEL
from xlt_ray.techniques.losses.distil import Answering
from xlt_ray.techniques.losses.teacher import logits
from xlt_ray.techniques.term import Outputs
from xlt_ray.training import checks, loop, setup

Settings = dict[str, Any]
__all__ = ["parallel_corpus", "settings"]


def finished(settings: Settings, folder: Path, **changes: Any) -> Path:
    """Write the bundle of a model that was not trained, as a finished run would."""
    content = copy.deepcopy(settings)
    for name, change in changes.items():
        content[name] = {**content[name], **change} if isinstance(change, dict) else change
    made = run_of(build(content))
    found = made.setup
    labels, supervision = found.corpus.labels, found.supervision
    with torch.no_grad():  # a head whose answers differ from text to text
        made.network.head.weight.mul_(50)
    one = bundle.Bundle(
        made.network.eval(), made.tokenize, labels, found.experiment, None, supervision=supervision,
        run="before", seen=found.read_texts(),
    )  # fmt: skip
    bundle.save(folder, one, network.fingerprint(found.experiment.network))
    return folder


@pytest.fixture
def narrow(tmp_path: Path, tiny_encoder: Path) -> Path:
    """An encoder of another family, width and depth."""
    config = transformers.MT5Config(
        vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    )
    return saved(tmp_path / "narrow", tiny_encoder, transformers.MT5EncoderModel(config))


@pytest.fixture
def teacher(settings: Settings, tmp_path: Path, narrow: Path) -> Path:
    """The bundle of a model of other width, whose features are centred and whose texts are cut elsewhere."""
    own = {"init": str(narrow), "max_length": 16, "prefix": "eng1 "}
    return finished({**settings, "techniques": ["centre"]}, tmp_path / "teacher", network=own)


@pytest.fixture
def alike(settings: Settings, tmp_path: Path) -> Path:
    """The bundle of a model of the student's width and another pooling."""
    return finished(settings, tmp_path / "alike", network={"pooling": "first"})


def answered(folder: Path, run: setup.Run, features: bool = False) -> dict[str, np.ndarray]:
    """Return what a bundle computes of all texts, loaded and asked as where it is measured."""
    made, texts = bundle.load(folder), run.setup.material.texts
    inputs = evaluate.Inputs(made.tokenize, "float32")
    if features:
        return evaluate.embed(made.network, texts, inputs)
    return {
        code: evaluate.outputs(
            made.network, torch.device("cpu"), table, np.arange(table.num_rows), inputs,
            evaluate.Asked(made.network.index(code)),
        )
        for code, table in texts.items()
    }  # fmt: skip


def learned(run: setup.Run, code: str) -> np.ndarray:
    term: Any = run.network.terms["distil"]
    start = int(term.starts[run.network.index(code)])
    return np.asarray(term.targets[start : start + run.setup.unlabelled[code].num_rows])


# what is learned


def test_the_loss_is_the_divergence_at_a_temperature_times_its_square() -> None:
    targets = {0: np.array([[0.0, 2 * np.log(3.0)], [5.0, 5.0]]), 1: np.array([[0.0, 0.0]])}
    term = Answering(targets, languages=2, scale=2.0, weight=0.5)
    # the first row learns (1/4, 3/4) and has (1/2, 1/2); the second what it has; the third is labelled
    found = torch.tensor([[1.0, 1.0], [-3.0, -3.0], [7.0, 0.0]])
    batch = {"language": torch.tensor([0, 1, 1]), "row": torch.tensor([0, 0, -1])}
    hidden = outputs_of(torch.zeros(3, 4))
    net: Any = None  # not looked at
    losses = term(net, batch, Outputs(hidden.hidden, hidden.pooled, hidden.features, found), batch["row"] >= 0)
    divergence = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    assert divergence == pytest.approx(0.130812, abs=1e-6)
    np.testing.assert_allclose(losses.numpy(), [0.5 * 4 * divergence, 0, 0], atol=1e-6)


def test_a_text_learns_what_another_model_answers_to_its_translation_or_to_itself(
    settings: Settings, teacher: Path, parallel_corpus: Path, tmp_path: Path
) -> None:
    settings["corpus"]["path"] = str(without_counterparts(parallel_corpus, tmp_path / "corpus"))
    run = run_of(build(distilled(settings, of=str(teacher), what="logits")))
    loop.begin(run)
    found, texts = answered(teacher, run), run.setup.material.texts
    assert np.ptp(found["eng_Latn"], axis=0).min() > 0.1
    english = dict(zip(texts["eng_Latn"]["id"].to_pylist(), found["eng_Latn"], strict=True))
    for code in CODES:
        ids = texts[code]["id"].to_pylist()
        wanted = [english.get(one, own) for one, own in zip(ids, found[code], strict=True)]
        np.testing.assert_allclose(learned(run, code), np.stack(wanted), atol=1e-5)
    assert sum(one not in english for one in texts["swh_Latn"]["id"].to_pylist()) > 5
    term: Any = run.network.terms["distil"]
    assert term.scale == 2.0 and term.before > 0
    features = run.embed({"hin_Deva": texts["hin_Deva"]}, "float32")["hin_Deva"]
    rows = learned(run, "hin_Deva")
    own, taught = (
        torch.from_numpy(one / 2.0).log_softmax(1).numpy() for one in (logits(run.network, features, 1), rows)
    )
    wanted_loss = 4 * (np.exp(taught) * (taught - own)).sum(1)[:20].mean()
    assert term.distance(run.network, run.network.index("hin_Deva"), features[:20]) == pytest.approx(
        wanted_loss, rel=1e-3
    )


def test_several_readings_of_a_text_are_averaged(settings: Settings, teacher: Path) -> None:
    parameters = {"of": str(teacher), "what": "logits", "teacher": "readings", "scores": [0.5]}
    run = run_of(build(distilled(settings, **parameters)))
    loop.begin(run)
    test_time = run_of(build({**settings, "techniques": [{"translate_test": {"scores": [0.5]}}]})).setup.readings
    assert test_time is not None
    made = bundle.load(teacher)
    tables = test_time.tables({"swh_Latn": run.setup.material.texts["swh_Latn"]})
    found = evaluate.embed(made.network, tables, evaluate.Inputs(made.tokenize, "float32"))
    parts = [logits(made.network, rows, made.network.index(key)) for key, rows in found.items()]
    assert len(parts) == 2
    np.testing.assert_allclose(learned(run, "swh_Latn"), np.mean(parts, 0), atol=1e-5)


def test_a_text_learns_the_features_that_another_model_has_of_its_translation(settings: Settings, alike: Path) -> None:
    run = run_of(build(distilled(settings, of=str(alike))))
    loop.begin(run)
    found, own = answered(alike, run, features=True), run.embed(run.setup.material.texts, "float32")
    assert np.abs(found["eng_Latn"] - own["eng_Latn"]).max() > 0.1
    for code in CODES:  # rows of equal ids stand in the same order
        np.testing.assert_allclose(learned(run, code), found["eng_Latn"], atol=1e-5)


def test_a_bundle_of_changes_to_an_encoder_teaches(settings: Settings, tmp_path: Path) -> None:
    changed = finished({**settings, "techniques": ["lora"]}, tmp_path / "changed")
    assert not (changed / "encoder").exists()
    run = run_of(build(distilled(settings, of=str(changed), what="logits")))
    loop.begin(run)
    np.testing.assert_allclose(learned(run, "swh_Latn"), answered(changed, run)["eng_Latn"], atol=1e-5)


def test_the_task_trains_the_encoder_too_where_the_teacher_asks_for_the_same(
    settings: Settings, alike: Path, teacher: Path
) -> None:
    for parameters, alone in (({"of": str(alike)}, True), ({"of": str(teacher), "what": "logits"}, False)):
        forward: Any = loop.begin(run_of(build(distilled(settings, **parameters)))).forward
        assert forward.head_alone is alone


def test_a_student_comes_to_answer_as_its_teacher(settings: Settings, teacher: Path) -> None:
    settings["training"] |= {"epochs": 12, "learning_rate": 2e-3, "head_learning_rate": 1e-2}
    run = run_of(build(distilled(settings, of=str(teacher), what="logits", weight=10.0)))
    state = loop.begin(run)
    # labels of no meaning: what it comes to know is the teacher's
    train = run.setup.tables("train")
    state.feed.train = {
        code: Chunked(rows.set_column(rows.schema.get_field_index("label"), "label", pa.array([0] * 120, pa.int32())))
        for code, rows in train.items()
    }
    state.advance(12)
    state.finish()
    facts = run.setup.techniques[0].calibrate(run.network, lambda of: run.embed(of, "float32"), run.setup.material)
    assert facts["distance_after"] < 0.5 * facts["distance_before"]


# the contract of every technique

VARIANTS = {"features of": "alike", "logits of": "teacher"}
CONTRACT: list[Callable[..., None]] = [
    contract.test_its_hooks_give_what_they_should,
    contract.test_no_label_of_a_target_reaches_it_unless_it_reads_labels,
    contract.test_the_loss_is_finite_and_a_step_changes_what_is_trained,
    contract.test_a_run_killed_within_an_epoch_goes_on_bit_by_bit,
    contract.test_a_bundle_comes_back_as_it_was,
    contract.test_merged_into_the_encoder_it_answers_the_same_and_leaves_plain_layers,
    contract.test_a_trial_of_a_search_trains_it_and_measures_what_the_mix_leaves_out,
    contract.test_a_plain_network_answers_as_the_one_with_techniques,
]


@pytest.mark.parametrize("test", CONTRACT, ids=lambda test: test.__name__.removeprefix("test_"))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_the_contract(
    settings: Settings, tmp_path: Path, request: pytest.FixtureRequest, variant: str, test: Callable[..., None]
) -> None:
    of = {"of": str(request.getfixturevalue(VARIANTS[variant])), "what": variant.split()[0]}
    arguments = {"name": "distil", "settings": distilled(settings, **of), "tmp_path": tmp_path}
    wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
    test(**{name: arguments[name] for name in wanted})


@pytest.mark.long
def test_one_loss_curve_on_one_and_two_workers(settings: Settings, teacher: Path) -> None:
    settings = distilled(settings, of=str(teacher), what="logits")
    settings["network"] |= {"dropout": 0.0}
    settings["mixture"] = {"draws_per_epoch": 65}
    losses, weights, facts = train(settings)
    shutil.rmtree(settings["corpus"]["cache_dir"])
    workers = on_workers(2, train, settings)
    assert workers[0][0] == workers[1][0] == pytest.approx(losses, rel=1e-4)
    assert max(float(np.abs(array - weights[name]).max()) for name, array in workers[0][1].items()) < 1e-3
    assert workers[0][2] == workers[1][2] == pytest.approx(facts, abs=1e-3)


# what is refused before any work


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"what": "logits"}, r"techniques\.distil\.what: logits, but the encoder as it begins answers nothing; name a"),
        ({"temperature": 2}, r"techniques\.distil\.temperature: 2, but features have none; leave it out"),
        ({"of": "elsewhere", "temperature": 2}, "2, but features have none"),
        ({"of": "elsewhere", "what": "logits", "temperature": float("inf")}, "temperature: .*finite"),
        ({"of": "elsewhere", "what": "logits", "temperature": 1e-300}, "temperature: .*greater than or equal to 0.01"),
        ({"of": "elsewhere", "what": "logits", "temperature": 1e300}, "temperature: .*less than or equal to 1000"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(settings: Settings, parameters: Settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        techniques.build(build(distilled(settings, **parameters)))


def test_a_bundle_that_cannot_teach_is_refused(settings: Settings, teacher: Path, tmp_path: Path) -> None:
    def refused(**parameters: Any) -> str:
        with pytest.raises(InputError) as raised:
            checks.prepare(build(distilled(settings, **parameters)))
        return str(raised.value)

    missing = refused(of=str(tmp_path / "nowhere"))
    assert f"techniques.distil.of: {tmp_path / 'nowhere'} is no bundle (no bundle.json); give the folder" in missing
    assert "of: the features of" in refused(of=str(teacher)) and "have 16 numbers" in refused(of=str(teacher))
    content = json.loads((teacher / "bundle.json").read_text())

    def changed(**changes: Any) -> str:
        (teacher / "bundle.json").write_text(json.dumps(content | changes))
        return refused(of=str(teacher), what="logits")

    turned = changed(labels=["label0", "label2", "label1"])
    assert "(the same in another order); set corpus.labels to [label0, label2, label1], or learn features" in turned
    assert "has other labels (label2 only in one of the two); give one" in changed(labels=["label0", "label1"])
    of_pairs = content["experiment"]["corpus"] | {"text_pair": "second"}
    assert "from pairs of texts, and the run's" in changed(experiment=content["experiment"] | {"corpus": of_pairs})
    assert "learned task: tag, not classification" in changed(experiment=content["experiment"] | {"task": "tag"})
    assert "is damaged ('list' object has no attribute 'keys')" in changed(experiment=[])
    assert "reads a text in several ways" in changed(readings="readings-1.json")
    files = {name: digest for name, digest in content["sha256"].items() if name != "head.safetensors"}
    assert "learned no task (training.method: adapt); give one that did" in changed(sha256=files)
    for damaged in ("{", "{}"):
        (teacher / "bundle.json").write_text(damaged)
        assert "is damaged" in refused(of=str(teacher), what="logits")
    (teacher / "bundle.json").write_text(json.dumps(content))
    settings["training"]["method"] = "adapt"
    assert "training.method: adapt learns no task; take features" in refused(of=str(teacher), what="logits")
    settings["training"]["method"] = "fine_tune"
    assert checks.prepare(build(distilled(settings, of=str(teacher), what="logits"))).techniques[0].bundles


@pytest.mark.parametrize("what", ["features", "logits"])
def test_a_teacher_that_is_not_as_it_was_written_is_refused(settings: Settings, alike: Path, what: str) -> None:
    def refused() -> str:
        with pytest.raises(InputError) as raised:
            checks.prepare(build(distilled(settings, of=str(alike), what=what)))
        return str(raised.value)

    for name in ("head.safetensors", "encoder/model.safetensors", "seen.npy"):
        content = (alike / name).read_bytes()
        (alike / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"techniques.distil.of: of the bundle {alike}, {name} is missing or not what was written" in refused()
        (alike / name).write_bytes(content[:20])
        assert f"{name} is missing or not" in refused()
        (alike / name).unlink()
        assert f"{name} is missing or not" in refused()
        (alike / name).write_bytes(content)
    # without its encoder it is not one that holds changes to another
    (alike / "encoder").rename(alike.parent / "moved")
    assert "encoder/config.json" in refused() and "copy the bundle again" in refused()


def test_a_teacher_whose_encoder_is_elsewhere_now_is_refused(
    settings: Settings, tmp_path: Path, tiny_encoder: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_encoder, base)
    changed = finished({**settings, "techniques": ["lora"]}, tmp_path / "changed", network={"init": str(base)})
    experiment = build(distilled(settings, of=str(changed), what="logits"))
    checks.prepare(experiment)
    base.rename(tmp_path / "moved")
    with pytest.raises(
        InputError, match=r"distil\.of: the bundle .*holds changes to an encoder, and .*lora.merge=true"
    ):
        checks.prepare(experiment)
    (tmp_path / "moved").rename(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.123}))
    with pytest.raises(InputError, match=r"distil\.of: .*holds changes to the encoder .*, but .* is now .*lora.merge"):
        checks.prepare(experiment)


# what the teacher has read


def test_lineage_tells_what_a_run_began_from_and_what_taught_it(settings: Settings, tmp_path: Path) -> None:
    def made(name: str, **bundles: Path) -> Path:
        content = run_of(build(settings))
        before = {place.replace("_", "."): folder for place, folder in bundles.items()}
        labels, experiment = content.setup.corpus.labels, content.setup.experiment
        one = bundle.Bundle(
            content.network, content.tokenize, labels, experiment, None, run=name, lineage=bundle.lineage(before)
        )
        bundle.save(tmp_path / name, one, "")
        return tmp_path / name

    def told(folder: Path) -> list[tuple[str, bool]]:
        return [(one["run"], "role" in one) for one in bundle.load(folder).lineage]

    first = made("first")
    second = made("second", network_init=first)
    # by one that began where the student begins: that is the last, and no teacher
    student = made("student", techniques_distil_of=second, network_init=first)
    assert told(student) == [("second", True), ("first", False)]
    taught = made("taught", techniques_distil_of=second)
    assert told(taught) == [("first", True), ("second", True)]
    after = made("after", network_init=taught)
    assert told(after) == [("first", True), ("second", True), ("taught", False)]
    assert artefact.begun_from([first, second, student, taught, after]) == [None, 0, 0, None, 3]


def test_a_teacher_that_is_gone_is_not_forgotten(settings: Settings, tmp_path: Path) -> None:
    shown = finished(settings | {"sources": ["eng_Latn", "swh_Latn"]}, tmp_path / "shown")
    made = checks.prepare(build(distilled(settings, of=str(shown))))
    shutil.rmtree(shown)
    with pytest.raises(InputError, match=r"shown.*(damaged|no bundle)"):
        techniques.supervised(made.experiment, ["swh_Latn"])
    with pytest.raises(InputError, match=r"shown.*no bundle"):
        bundle.lineage(techniques.bundles(made.techniques, made.experiment))


def test_what_a_teacher_read_of_a_target_is_told_of_the_student(
    settings: Settings, tmp_path: Path, parallel_corpus: Path
) -> None:
    shown = finished(settings | {"sources": ["eng_Latn", "swh_Latn"]}, tmp_path / "shown")
    made = checks.prepare(build(distilled(settings, of=str(shown), what="logits")))
    assert made.supervision == {"swh_Latn": FEW_SHOT, "hin_Deva": PARALLEL}
    assert made.rungs["xlt.supervision.zero_shot"] == FEW_SHOT, "no figure of it is called zero-shot"
    assert listings.zero_shot(made) == 1, "nor is it counted among those"
    # and by the teacher of a teacher, although this one's own sources are English alone
    between = finished(distilled(settings, of=str(shown)), tmp_path / "between")
    made = checks.prepare(build(distilled(settings, of=str(between))))
    assert made.supervision["swh_Latn"] == FEW_SHOT
    only = finished(settings, tmp_path / "only")
    assert checks.prepare(build(distilled(settings, of=str(only)))).supervision["swh_Latn"] == PARALLEL


def with_a_train_row_in_test(corpus: Path, folder: Path) -> Path:
    """Copy a corpus, and move a row of English train into the test of Swahili."""
    shutil.copytree(corpus, folder)
    train, test = folder / "eng_Latn" / "train.tsv", folder / "swh_Latn" / "test.tsv"
    head, first, *lines = train.read_text().splitlines()
    train.write_text("\n".join([head, *lines]) + "\n")
    text = first.split("\t")[1]
    test.write_text(test.read_text() + f"strange\t {text} \tlabel1\n")
    return folder


def test_a_test_row_that_the_teacher_was_trained_on_is_refused(
    settings: Settings, tmp_path: Path, alike: Path, parallel_corpus: Path
) -> None:
    settings["corpus"]["path"] = str(with_a_train_row_in_test(parallel_corpus, tmp_path / "corpus"))
    checks.prepare(build(distilled(settings)))
    message = r"swh_Latn.*test\.tsv.*the model that techniques\.distil\.of names \(.*alike\) is trained on this text"
    with pytest.raises(InputError, match=message):
        checks.prepare(build(distilled(settings, of=str(alike))))
    settings["network"]["init"] = str(alike)  # both are looked at
    with pytest.raises(InputError, match=r"(?s)techniques\.distil\.of names .*network\.init names"):
        checks.prepare(build(distilled(settings, of=str(alike))))


def test_a_run_is_named_by_what_its_teacher_holds_and_as_before_without_one(settings: Settings, alike: Path) -> None:
    assert techniques.digest({"distil": {}}) == ""
    experiment = build(distilled(settings, of=str(alike)))
    before = storage.key(experiment, "")
    assert storage.key(experiment, "") == before
    content = json.loads((alike / "bundle.json").read_text())
    (alike / "bundle.json").write_text(json.dumps(content | {"temperature": 2.0}))
    assert storage.key(experiment, "") != before
    relative = checks.absolute(build(distilled(settings, of="~/somewhere")))
    assert relative.techniques["distil"]["of"] == str(Path("~/somewhere").expanduser())


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_student_keeps_what_its_teacher_was_made_from(settings: Settings, tmp_path: Path, alike: Path) -> None:
    kept = bundle.load(alike)
    other = np.array([7], np.uint64)
    assert kept.seen is not None
    with_more = np.union1d(kept.seen, other)
    np.save(alike / "seen.npy", with_more)
    content = json.loads((alike / "bundle.json").read_text())
    content["sha256"]["seen.npy"] = durable.digest(alike / "seen.npy")
    (alike / "bundle.json").write_text(json.dumps(content))
    settings["techniques"] = [{"distil": {"of": str(alike)}}]
    outcome = run.run(build(settings))
    made = bundle.load(outcome.folder.local / "bundle")
    assert [one["run"] for one in made.lineage] == ["before"]
    assert made.seen is not None and np.isin(with_more, made.seen).all()
    assert made.supervision == {"swh_Latn": PARALLEL, "hin_Deva": PARALLEL}
    shutil.rmtree(alike)
    assert bundle.load(outcome.folder.local / "bundle").labels == made.labels, "it is served without its teacher"


def test_labels_of_targets_change_nothing(settings: Settings, teacher: Path) -> None:
    experiment = build(distilled(settings, of=str(teacher), what="logits"))
    corpus = loaders.load(experiment.corpus)
    runs = []
    for rows in (corpus, mislabelled(corpus, ("swh_Latn", "hin_Deva"))):
        made = setup.Setup.of(experiment, rows).read()
        net, tokenize, _ = made.build()
        runs.append(setup.Run(made, net, tokenize))
        loop.fit(runs[-1])
    one, other = (one.network.state_dict() for one in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
