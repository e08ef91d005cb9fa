"""Distillation: what is learned of which row and that it is, what it reads, and that nothing is computed twice."""

from __future__ import annotations

import copy
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_adversarial import outputs_of, train
from test_catalogue import parallel_corpus, run_of
from torch import distributed
from workers import on_workers

from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.corpora.arrow import Chunked
from xlt_ray.corpora.corpus import end_to_end
from xlt_ray.corpora.streams import UNLABELLED as UNLABELLED_ROWS
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.inference import bundle
from xlt_ray.model import encoders, network
from xlt_ray.model.network import trained
from xlt_ray.search import prepare, space
from xlt_ray.supervision import PARALLEL, UNLABELLED, ZERO_SHOT
from xlt_ray.techniques.losses.distil import MEASURED, Student
from xlt_ray.techniques.technique import Available, Material
from xlt_ray.training import loop, setup
from xlt_ray.training.checkpoint import Progress
from xlt_ray.training.setup import Setup

Settings = dict[str, Any]
__all__ = ["parallel_corpus"]
CODES = ("eng_Latn", "hin_Deva", "swh_Latn")


@pytest.fixture
def settings(tiny_settings: Settings, parallel_corpus: Path, tmp_path: Path) -> Settings:
    changed = copy.deepcopy(tiny_settings) | {"sources": ["eng_Latn"]}
    changed["corpus"] |= {"path": str(parallel_corpus), "cache_dir": str(tmp_path / "cache")}
    changed["training"] |= {"method": "fine_tune", "epochs": 1}
    return changed


def distilled(settings: Settings, **parameters: Any) -> Settings:
    return {**settings, "techniques": [{"distil": parameters}]}


class MadeUp:
    """Computes a feature for every text that depends on nothing but its bytes; with `all_ones` they are all the same.

    Of the whole encoder they are those of a student plus one.
    """

    def __init__(self, all_ones: bool = False, more: float = 0.0) -> None:
        self.all_ones, self.more = all_ones, more

    def whole(self) -> MadeUp:
        return MadeUp(self.all_ones, 1.0)

    def __call__(self, tables: Mapping[str, pa.Table]) -> dict[str, np.ndarray]:
        if self.all_ones:
            return {key: np.ones((table.num_rows, 32)) for key, table in tables.items()}
        rows = {key: table["text"].to_pylist() for key, table in tables.items()}
        seeds = {key: [zlib.crc32(text.encode()) for text in of] for key, of in rows.items()}
        drawn = {key: [np.random.default_rng(s).normal(size=32) for s in of] for key, of in seeds.items()}
        return {key: np.stack(of) + self.more for key, of in drawn.items()}


made_up = MadeUp()


def student(settings: Settings, material: Material | None = None, embed: Any = made_up) -> tuple[Student, setup.Run]:
    run = run_of(build(settings))
    term = run.setup.techniques[0].loss_term(run.network, material or run.setup.material, embed)
    assert isinstance(term, Student)
    return term, run


def learned(term: Student, run: setup.Run, code: str) -> np.ndarray:
    start = int(term.starts[run.network.index(code)])
    return term.targets[start : start + run.setup.unlabelled[code].num_rows].numpy()


# what is learned


def test_a_text_learns_the_features_of_its_translation(settings: Settings) -> None:
    term, run = student(distilled(settings))
    texts = run.setup.material.texts
    features = made_up.whole()(texts)
    english = dict(zip(texts["eng_Latn"]["id"].to_pylist(), features["eng_Latn"], strict=True))
    for code in CODES:
        wanted = np.stack([english[one] for one in texts[code]["id"].to_pylist()])
        np.testing.assert_allclose(learned(term, run, code), wanted, rtol=1e-6)


def test_a_row_without_translation_learns_to_stay_where_it_is_about_the_mean_of_the_pivot(settings: Settings) -> None:
    _, run = student(distilled(settings))
    texts = dict(run.setup.material.texts)
    ids = texts["swh_Latn"]["id"].to_pylist()
    alone = pa.array([one if place % 6 else f"alone{place}" for place, one in enumerate(ids)])
    texts["swh_Latn"] = texts["swh_Latn"].set_column(texts["swh_Latn"].schema.get_field_index("id"), "id", alone)
    term, _ = student(distilled(settings), Material(run.experiment, texts, {}, languages=CODES))
    features = made_up.whole()(texts)
    found, own, english = learned(term, run, "swh_Latn"), features["swh_Latn"], features["eng_Latn"]
    np.testing.assert_allclose(found[::6], (own - own.mean(0) + english.mean(0))[::6], rtol=1e-4, atol=1e-5)
    assert np.abs(found[1::6] - own[1::6]).max() > 0.1


def test_of_readings_the_mean_of_what_each_has_about_its_own_mean_is_learned(settings: Settings) -> None:
    read = {"scores": [0.5, 0.1]}
    term, run = student(distilled(settings, teacher="readings", **read))
    test_time = run_of(build({**settings, "techniques": [{"translate_test": read}]})).setup
    assert test_time.readings is not None
    tables = test_time.readings.tables(run.setup.material.texts)
    features, origin = made_up.whole()(tables), made_up.whole()(run.setup.material.texts)["eng_Latn"].mean(0)
    for code in CODES[1:]:
        parts = [features[key] - features[key].mean(0) for key in test_time.readings.keys(code)]
        assert len(parts) == 3
        np.testing.assert_allclose(learned(term, run, code), np.mean(parts, 0) + origin, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(learned(term, run, "eng_Latn"), features["eng_Latn"], rtol=1e-6)


def test_a_source_is_read_as_the_pivot_too(settings: Settings) -> None:
    term, run = student(distilled(settings) | {"sources": ["eng_Latn", "swh_Latn"]})
    np.testing.assert_allclose(learned(term, run, "swh_Latn"), learned(term, run, "eng_Latn"), rtol=1e-6)


@pytest.mark.parametrize("teacher", ["translations", "readings"])
def test_parallel_text_beside_the_corpus_is_learned_too(settings: Settings, tmp_path: Path, teacher: str) -> None:
    rows = [f"eng{i % 60} eng{i * 7 % 60} engp{i}\tswh{i % 60} swh{i * 7 % 60} swhp{i}" for i in range(110)]
    (tmp_path / "beside.tsv").write_text("\n".join(["eng_Latn\tswh_Latn", *rows]) + "\n")
    settings["corpus"] |= {"id": None, "parallel": str(tmp_path / "beside.tsv")}
    with pytest.warns(UserWarning, match="hin_Deva"):
        term, run = student(distilled(settings, teacher=teacher, scores=[0.5]))
    assert [run.setup.unlabelled[code].num_rows for code in CODES] == [230, 120, 230]
    features = made_up.whole()(run.setup.unlabelled)
    found, origin = learned(term, run, "swh_Latn"), features["eng_Latn"].mean(0)
    if teacher == "translations":
        np.testing.assert_allclose(found[120:], features["eng_Latn"][120:], rtol=1e-6)
        own = features["swh_Latn"] - features["swh_Latn"].mean(0) + origin
        np.testing.assert_allclose(found[:120], own[:120], rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(found.mean(0), origin, rtol=1e-3, atol=1e-4)
    assert techniques.supervised(run.experiment, CODES, run.setup.material.texts, {}, run.setup.material.bitext) == {
        "swh_Latn": PARALLEL,
        "hin_Deva": UNLABELLED,
    }
    state = loop.begin(run)
    batches = state.feed.batches(state.feed.epoch(0).draws(0, 16), Progress(step=2), total=10)
    assert max(int(batch["row"].max()) for batch in batches) >= 120


# the loss


def test_the_loss_is_the_squared_distance_in_variances_of_unlabelled_rows_alone() -> None:
    rng = np.random.default_rng(0)
    targets = {0: rng.normal(size=(3, 8)), 2: rng.normal(size=(4, 8))}
    term = Student(targets, languages=4, scale=5.0, weight=2.0)
    features = torch.from_numpy(rng.normal(size=(4, 8)).astype(np.float32))
    # the third row is labelled, in a language without texts
    batch = {
        "language": torch.tensor([2, 0, 3, 2]),
        "row": torch.tensor([3, 2, -1, 0]),
    }
    net: Any = None  # not looked at
    wanted = [targets[2][3], targets[0][2], features[2].numpy(), targets[2][0]]
    distances = np.square(features.numpy() - np.stack(wanted)).sum(1) / 5.0
    losses = term(net, batch, outputs_of(features), batch["row"] >= 0)
    assert float(losses[2]) == 0 and term.streams == (UNLABELLED_ROWS,)
    np.testing.assert_allclose(losses.numpy()[[0, 1, 3]], 2.0 * distances[[0, 1, 3]], rtol=1e-5)


def test_every_row_of_a_batch_finds_its_own_target(settings: Settings) -> None:
    """A network that is not trained yet has distance 0 from what it is to learn, where this is what it has itself."""
    settings["network"] |= {"dropout": 0.0}
    run = run_of(build(distilled(settings)))
    state = loop.begin(run)
    term, texts = run.network.terms["distil"], run.setup.material.texts
    own = run.embed(texts, "float32")
    run.network.terms["distil"] = Student({run.network.index(c): rows for c, rows in own.items()}, 3, 1.0, 1.0)
    seen = 0
    for batch in state.feed.batches(state.feed.epoch(0).draws(0, 16), Progress(step=2), total=10):
        with torch.no_grad():
            outputs = outputs_of(run.network.eval().features(batch))
            mine, others = (
                one(run.network, batch, outputs, batch["row"] >= 0) for one in (run.network.terms["distil"], term)
            )
        assert float(mine.max()) < 1e-6 < 0.01 < float(others.max())
        assert not others[batch["row"] < 0].any()
        seen += int((batch["row"] >= 0).sum())
    assert seen == 16


@pytest.mark.parametrize("twice", ["eng_Latn", "swh_Latn"])
def test_an_id_that_stands_twice_tells_no_translation(settings: Settings, twice: str) -> None:
    _, run = student(distilled(settings))
    texts = dict(run.setup.material.texts)
    ids = texts[twice]["id"].to_pylist()
    place = texts[twice].schema.get_field_index("id")
    texts[twice] = texts[twice].set_column(place, "id", pa.array([ids[1], *ids[1:]]))
    term, _ = student(distilled(settings), Material(run.experiment, texts, {}, languages=CODES))
    own, english = (made_up.whole()(texts)[code] for code in ("swh_Latn", "eng_Latn"))
    found = learned(term, run, "swh_Latn")
    np.testing.assert_allclose(found[:2], (own - own.mean(0) + english.mean(0))[:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2:], english[2:], rtol=1e-6)


def test_an_encoder_that_tells_no_texts_apart_is_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match="the features of all 120 texts of eng_Latn are the same"):
        student(distilled(settings), embed=MadeUp(all_ones=True))


def test_the_task_trains_the_head_alone(settings: Settings) -> None:
    settings["network"] |= {"dropout": 0.0}
    settings["training"]["clip"] = 1e9  # by the norm of all gradients, those of the head among them
    runs = [run_of(build(distilled(settings))) for _ in range(2)]
    for run, table in zip(runs, ([0, 1, 2], [2, 1, 0]), strict=True):  # other labels, and nothing else
        state = loop.begin(run)
        train = run.setup.tables("train")
        state.feed.train = {code: Chunked(relabelled(rows, table)) for code, rows in train.items()}
        state.advance(1)
    one, other = (run.network.state_dict() for run in runs)
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved == {"head.weight", "head.bias"}


def relabelled(rows: pa.Table, table: list[int]) -> pa.Table:
    labels = pa.array([table[label] for label in rows["label"].to_pylist()], rows["label"].type)
    return rows.set_column(rows.schema.get_field_index("label"), "label", labels)


# in training


def test_features_come_nearer_to_what_they_are_to_be(settings: Settings) -> None:
    settings["training"] |= {"epochs": 6, "learning_rate": 2e-3, "head_learning_rate": None}
    run = run_of(build(distilled(settings, weight=30.0)))
    facts = loop.fit(run).facts
    before, after = facts["distil/distance_before"], facts["distil/distance_after"]
    assert after < 0.8 * before
    sample = {code: run.setup.material.texts[code].slice(0, MEASURED) for code in CODES}
    features = run.embed(sample, "float32")
    fresh = run_of(run.experiment)
    english = fresh.embed({"eng_Latn": sample["eng_Latn"]}, "float32")["eng_Latn"]
    whole = fresh.embed({"eng_Latn": run.setup.material.texts["eng_Latn"]}, "float32")["eng_Latn"]
    scale = np.square(whole - whole.mean(0)).sum(1).mean()
    distances = [np.square(features[code] - english).sum(1).mean() / scale for code in CODES[1:]]
    assert after == pytest.approx(np.mean(distances), rel=1e-3)


def test_a_student_of_fewer_layers_learns_the_features_of_the_whole_encoder(settings: Settings, tmp_path: Path) -> None:
    settings["training"] |= {"epochs": 3, "learning_rate": 2e-3, "head_learning_rate": None}
    whole = run_of(build(distilled(settings)))
    teacher = whole.embed({"eng_Latn": whole.setup.material.texts["eng_Latn"]}, "float32")["eng_Latn"]
    settings["network"] |= {"layers": 1}
    run = run_of(build(distilled(settings, weight=30.0)))

    def keep_first(metrics: dict[str, float], save: setup.Save | None) -> None:
        if save is not None and not (tmp_path / "kept").is_dir():
            (tmp_path / "kept").mkdir()
            save(tmp_path / "kept")

    run.report = keep_first
    facts = loop.fit(run).facts
    term = run.network.terms["distil"]
    assert isinstance(term, Student)
    np.testing.assert_allclose(learned(term, run, "eng_Latn"), teacher, atol=1e-5)
    assert facts["distil/distance_after"] < 0.8 * facts["distil/distance_before"]
    assert len(encoders.layers(run.network.encoder)) == run.network.encoder.config.num_hidden_layers == 1
    again = run_of(run.experiment)
    assert loop.fit(again, tmp_path / "kept").step == run.setup.updates
    for name, tensor in trained(run.network).items():
        assert torch.equal(trained(again.network)[name], tensor), name


def test_a_model_of_fewer_layers_goes_on_from_its_own_bundle_and_head(settings: Settings, tmp_path: Path) -> None:
    first = run_of(build(distilled(settings)))
    made = bundle.Bundle(first.network.eval(), first.tokenize, first.setup.corpus.labels, first.experiment, None)
    bundle.save(tmp_path / "bundle", made, network.fingerprint(first.experiment.network))
    settings["network"] |= {"init": str(tmp_path / "bundle"), "head": "bundle", "layers": 1}
    run = run_of(build(distilled(settings)))
    teacher = run.computing("float32").whole()({"eng_Latn": run.setup.material.texts["eng_Latn"]})["eng_Latn"]
    wanted = first.embed({"eng_Latn": run.setup.material.texts["eng_Latn"]}, "float32")["eng_Latn"]
    np.testing.assert_allclose(teacher, wanted, atol=1e-6)
    assert torch.equal(run.network.head.weight, first.network.head.weight)
    loop.begin(run)


def without_counterparts(corpus: Path, folder: Path) -> Path:
    """Copy a corpus in which some rows of Swahili and Hindi are no translations, and learn from their own features."""
    shutil.copytree(corpus, folder)
    for code in CODES[1:]:
        file = folder / code / "train.tsv"
        head, *lines = file.read_text().splitlines()
        file.write_text("\n".join([head, *(f"alone{line}" if at % 9 == 0 else line for at, line in enumerate(lines))]))
    return folder


def train_apart(settings: Settings) -> Any:
    """Train with a cache of this worker's own, as on machines without a common disk."""
    apart = copy.deepcopy(settings)
    apart["corpus"]["cache_dir"] += f"-{distributed.get_rank()}"
    return train(apart)


@pytest.mark.parametrize("teacher", ["translations", "readings"])
def test_one_loss_curve_on_one_and_two_workers_whose_caches_differ(
    settings: Settings, teacher: str, parallel_corpus: Path, tmp_path: Path
) -> None:
    settings["corpus"]["path"] = str(without_counterparts(parallel_corpus, tmp_path / "corpus"))
    settings = distilled(settings, teacher=teacher, scores=[0.5])
    settings["network"] |= {"dropout": 0.0}
    settings["mixture"] = {"draws_per_epoch": 65}
    losses, weights, facts = train(settings)
    cache = Path(settings["corpus"]["cache_dir"])
    kept = sorted((cache / "features").iterdir())
    for file in kept[::2]:  # the second worker has computed some before, and the first one none
        (tmp_path / "cache-1" / "features").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "cache-1" / "features")
    os.truncate(tmp_path / "cache-1" / "features" / kept[0].name, kept[0].stat().st_size // 2)  # and of one a part
    workers = on_workers(2, train_apart, settings)
    assert workers[0][0] == workers[1][0] == pytest.approx(losses, rel=1e-4)
    assert max(float(np.abs(array - weights[name]).max()) for name, array in workers[0][1].items()) < 1e-3
    assert workers[0][2] == workers[1][2] == pytest.approx(facts, abs=1e-3)
    for rank in range(2):
        assert [file.name for file in sorted((tmp_path / f"cache-{rank}" / "features").iterdir())] == [
            file.name for file in kept
        ]


def test_no_text_is_encoded_twice_by_the_same_weights(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    embed = evaluate.embed

    def watched(network: Any, tables: Mapping[str, pa.Table], *rest: Any) -> dict[str, np.ndarray]:
        encoded.append(sum(table.num_rows for table in tables.values()))
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return embed(network, tables, *rest)

    monkeypatch.setattr(evaluate, "embed", watched)
    run = run_of(build(distilled(settings, teacher="readings", scores=[0.5])))
    events: list[dict[str, Any]] = []
    run.emit = events.append
    tables = run.setup.material.texts
    with pytest.raises(KeyboardInterrupt):
        run.embed_once(tables, "float32")
    encoded[:] = [0] * 3
    found = run.embed_once(tables, "float32")
    assert encoded[3:] == [120], "two were done before the kill"
    assert [(event["done"], event["total"]) for event in events] == [(120, 360), (240, 360), (360, 360)]
    plain = embed(run.network, tables, run.inputs("float32"))
    assert all(np.array_equal(found[code], plain[code]) for code in CODES)
    run.embed_once(tables, "float32")
    assert len(encoded) == 4
    with torch.no_grad():
        next(p for p in run.network.encoder.parameters()).add_(0.1)
    assert not np.array_equal(run.embed_once(tables, "float32")["eng_Latn"], found["eng_Latn"])
    assert encoded[4:] == [120] * 3, "other weights have other features"
    with torch.no_grad():
        next(p for p in run.network.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"features computed in float32 by .* are no numbers"):
        run.embed_once(tables, "float32")


def test_a_run_that_goes_on_does_so_in_its_precision(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = run_of(build(distilled(settings))), []

    def keep(metrics: dict[str, float], save: setup.Save | None) -> None:
        assert save is not None
        save(tmp_path)

    run.report = keep
    loop.fit(run)
    # measured anew, as on another machine, it would be another precision
    monkeypatch.setattr(loop, "choose_precision", lambda *rest: "bfloat16")
    again = run_of(run.experiment)
    embed = evaluate.embed

    def watched(network: Any, tables: Any, inputs: Any, *rest: Any) -> Any:
        asked.append(inputs.precision)
        return embed(network, tables, inputs, *rest)

    monkeypatch.setattr(evaluate, "embed", watched)
    shutil.rmtree(tmp_path / "cache" / "features")
    assert loop.begin(again, tmp_path).progress.precision == "float32"
    assert set(asked) == {"float32"}


# what it reads, and what is refused


def with_ids(settings: Settings, change: Any) -> tuple[Setup, Material]:
    """Return a setup, and its material with the ids of Swahili changed."""
    found = Setup.of(build(settings), loaders.load(build(settings).corpus))
    texts = dict(found.material.texts)
    place = texts["swh_Latn"].schema.get_field_index("id")
    texts["swh_Latn"] = texts["swh_Latn"].set_column(place, "id", change(texts["swh_Latn"]["id"]))
    return found, Material(found.experiment, texts, {}, languages=CODES)


def unrelated(ids: pa.ChunkedArray) -> pa.Array:
    return pa.array([f"other{one}" for one in ids.to_pylist()])


@pytest.mark.parametrize("teacher", ["translations", "readings"])
def test_a_language_without_translations_has_read_texts_alone(settings: Settings, teacher: str) -> None:
    found, material = with_ids(distilled(settings, teacher=teacher), unrelated)
    rungs = techniques.supervised(found.experiment, CODES, material.texts, {}, material.bitext)
    assert rungs == {"swh_Latn": UNLABELLED, "hin_Deva": PARALLEL}
    english = {"eng_Latn": material.texts["eng_Latn"]}
    alone = end_to_end(english, {"hin_Deva": material.texts["hin_Deva"]})
    rungs = techniques.supervised(found.experiment, CODES, english, {}, alone)
    assert rungs == {"swh_Latn": ZERO_SHOT, "hin_Deva": PARALLEL}, "of Swahili there is no text"
    with pytest.warns(UserWarning, match=r"1 of 2 languages have no translations.*\n  swh_Latn: "):
        student(distilled(settings, teacher=teacher), material)


def test_rows_of_equal_ids_that_are_no_translations_teach_nothing(settings: Settings) -> None:
    order = np.random.default_rng(0).permutation(120)
    _, material = with_ids(distilled(settings), lambda ids: ids.combine_chunks().take(order))
    with pytest.warns(UserWarning, match="do not look like translations"):
        term, run = student(distilled(settings), material)
    own, english = (made_up.whole()(material.texts)[code] for code in ("swh_Latn", "eng_Latn"))
    np.testing.assert_allclose(
        learned(term, run, "swh_Latn"), own - own.mean(0) + english.mean(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"unlabelled_rows": 0}}, "learns from unlabelled rows"),
        (
            {"corpus": {"id": None}},
            "no language has rows that can be learned from as translations of 100 or more rows of",
        ),
    ],
)
def test_what_cannot_teach_is_refused(settings: Settings, changes: Settings, message: str) -> None:
    for section, change in changes.items():
        settings[section] |= change
    experiment = build(distilled(settings))
    (made,) = techniques.build(experiment)
    with pytest.raises(InputError, match=message):
        made.check(Available.of(experiment, loaders.load(experiment.corpus)))


def test_a_language_that_is_first_in_a_mix_must_have_translations(
    settings: Settings, parallel_corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(parallel_corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "swh_Latn").rename(tmp_path / "corpus" / "deu_Latn")
    for file in (tmp_path / "corpus" / "deu_Latn").iterdir():  # it shares no ids with the others
        file.write_text("\n".join(f"{'' if at == 0 else 'x'}{line}" for at, line in enumerate(file.open())))
    shutil.copytree(parallel_corpus / "swh_Latn", tmp_path / "corpus" / "swh_Latn")
    settings = distilled(settings) | {"sources": ["eng_Latn", "deu_Latn", "hin_Deva"], "targets": ["swh_Latn"]}
    settings["corpus"]["path"] = str(tmp_path / "corpus")
    mixes = {"sources": {"at_least": 2, "at_most": 2}}
    settings["search"] = {"space": mixes, "retraining": {"seeds": 0}, "selection": {"languages": "sources"}}
    with pytest.raises(InputError, match=r"in the mix of deu_Latn \+ eng_Latn; take deu_Latn out of `sources`\)"):
        prepare.prepared(space.build(settings))
    settings["sources"] = ["eng_Latn", "hin_Deva"]
    prepare.prepared(space.build(settings))
