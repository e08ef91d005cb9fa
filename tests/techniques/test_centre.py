"""Centring: where the means of languages go, what a probe gains by it, and languages added to a finished bundle."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import WORDS
from test_catalogue import run_of

from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.config.sections import MixtureConfig
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.inference import adapt, bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model import network
from xlt_ray.techniques.centre import Centre, Shift
from xlt_ray.techniques.technique import Available, Material
from xlt_ray.training import checks, loop, probe

Settings = dict[str, Any]
CODES = ("eng_Latn", "hin_Deva", "swh_Latn")
WIDTH = 32  # of the tiny encoder


def centred(settings: Settings, method: str = "probe", **parameters: Any) -> Settings:
    changed = copy.deepcopy(settings)
    changed["training"] |= {"method": method, "epochs": 1}
    return {**changed, "sources": ["eng_Latn"], "techniques": [{"centre": parameters}]}


def features(seed: int = 0, rows: int = 90) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Make features whose label shows alike in all languages, each of which lies elsewhere; and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    places = 2 * np.random.default_rng(99).normal(size=(3, WIDTH))
    # a language differs along what separates labels, so that a head learned elsewhere is misled
    offsets = {"eng_Latn": 0.0, "hin_Deva": 3.0, "swh_Latn": -2.0}
    direction = places[0] - places[1]
    return {
        code: (places[labels] + offset * direction + rng.normal(0, 1, (rows, WIDTH))).astype(np.float32)
        for code, offset in offsets.items()
    }, labels


def calibrated(
    settings: Settings, found: dict[str, np.ndarray], method: str = "probe", **parameters: Any
) -> tuple[network.Network, dict[str, float], Material]:
    """Calibrate on made-up features of texts; the encoder is not used."""
    experiment = build(centred(settings, method, **parameters))
    (made,) = techniques.build(experiment)
    texts = {code: pa.table({"text": ["x"] * len(rows)}) for code, rows in found.items()}
    material = Material(experiment, texts, {}, trained=experiment.sources)
    net, _, _ = techniques.network((made,), experiment, 3, tuple(sorted(found)))
    return net, made.calibrate(net, lambda tables: {code: found[code] for code in tables}, material), material


def transformed(net: network.Network, code: str | None, rows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net.transform(torch.from_numpy(rows), torch.full((len(rows),), net.index(code))).numpy()


# where the means go


@pytest.mark.parametrize("method", ["probe", "fine_tune"])
def test_every_language_has_the_mean_of_the_sources(tiny_settings: Settings, method: str) -> None:
    found, _ = features()
    net, _, _ = calibrated(tiny_settings, found, method)
    origin = found["eng_Latn"].mean(0)
    for code in CODES:
        np.testing.assert_allclose(transformed(net, code, found[code]).mean(0), origin, atol=1e-4)


def test_a_mean_of_two_sources_counts_them_by_the_mixture(tiny_settings: Settings) -> None:
    found, _ = features()
    found["swh_Latn"] = found["swh_Latn"][:30]
    settings = tiny_settings | {"mixture": {"alpha": 0.5, "weights": {"eng_Latn": 2}}}
    experiment = build({**centred(settings), "sources": ["eng_Latn", "swh_Latn"]})
    (made,) = techniques.build(experiment)
    texts = {code: pa.table({"text": ["x"] * len(rows)}) for code, rows in found.items()}
    trained = experiment.sources
    raw = {"eng_Latn": 2 * 90**0.5, "swh_Latn": 30**0.5}
    origin = sum(raw[code] * found[code].mean(0) for code in raw) / sum(raw.values())
    for method in ("probe", "fine_tune"):
        one = experiment.model_copy(update={"training": experiment.training.model_copy(update={"method": method})})
        net, _, _ = techniques.network((made,), one, 3, CODES)
        made.calibrate(net, lambda tables: {code: found[code] for code in tables}, Material(one, texts, {}, trained))
        np.testing.assert_allclose(transformed(net, "hin_Deva", found["hin_Deva"]).mean(0), origin, atol=1e-4)
        for code in trained:
            moved = transformed(net, code, found[code])
            if method == "fine_tune":  # its head has learned them where they lie
                assert np.array_equal(moved, found[code])
            else:
                np.testing.assert_allclose(moved.mean(0), origin, atol=1e-4)


def test_an_unknown_language_is_moved_by_the_mean_of_the_shifts(tiny_settings: Settings) -> None:
    found, _ = features()
    net, _, _ = calibrated(tiny_settings, found)
    shift = np.mean([found[code].mean(0) - found["eng_Latn"].mean(0) for code in CODES], axis=0)
    rows = found["hin_Deva"]
    for code in (None, "xxx_Latn"):
        np.testing.assert_allclose(transformed(net, code, rows), rows - shift, atol=1e-4)
    with torch.inference_mode():  # nor need a language be given at all
        np.testing.assert_allclose(net.transform(torch.from_numpy(rows)).numpy(), rows - shift, atol=1e-4)


def test_a_language_without_text_is_moved_likewise(tiny_settings: Settings) -> None:
    found, _ = features()
    step = Shift(3, WIDTH, 0)
    means = {code: found[code].mean(0, dtype=np.float64) for code in ("eng_Latn", "hin_Deva")}
    step.estimate(CODES, means, means["eng_Latn"], ())
    assert torch.equal(step.shift[2], step.shift[3])  # Swahili, and whatever is unknown


def test_remove_projects_out_what_languages_differ_by(tiny_settings: Settings) -> None:
    found, _ = features()
    net, _, _ = calibrated(tiny_settings, found, remove=2)
    step = net.steps["centre"]
    assert isinstance(step, Shift)
    np.testing.assert_allclose(step.directions @ step.directions.T, np.eye(2), atol=1e-5)
    origin = found["eng_Latn"].mean(0)
    for code in CODES:
        moved = transformed(net, code, found[code])
        np.testing.assert_allclose((moved - origin) @ step.directions.numpy().T, 0, atol=1e-3)
        np.testing.assert_allclose(transformed(net, code, moved - origin + found[code].mean(0)), moved, atol=1e-3)
    # the first is where the languages lie apart
    apart = found["hin_Deva"].mean(0) - found["swh_Latn"].mean(0)
    assert abs(float(step.directions[0].numpy() @ apart)) > 0.99 * np.linalg.norm(apart)


def test_the_figures_are_the_languages_and_how_far_they_moved(tiny_settings: Settings) -> None:
    found, _ = features()
    _, far, _ = calibrated(tiny_settings, found)
    near = {code: rows - rows.mean(0) for code, rows in found.items()}
    _, none, _ = calibrated(tiny_settings, near)
    assert far["languages"] == 3 and far["shift_in_deviations"] > 1
    assert none["shift_in_deviations"] == pytest.approx(0, abs=1e-5)


def test_a_sample_of_texts_is_fixed_and_as_large_as_asked(tiny_settings: Settings) -> None:
    prepared = checks.prepare(build(centred(tiny_settings, rows=20)))
    (made,) = prepared.techniques
    one, other = made.texts(prepared.material), made.texts(prepared.material)
    assert {code: table.num_rows for code, table in one.items()} == {
        "eng_Latn": 20,
        "swh_Latn": 12,
        "hin_Deva": 12,
        "deu_Latn": 20,
    }
    assert all(one[code].equals(other[code]) for code in one)
    assert all("label" not in table.column_names for table in one.values())


# what it is good for


def test_a_probe_of_the_source_reads_other_languages_once_they_are_centred(tiny_settings: Settings) -> None:
    found, labels = features()
    unseen, gold = features(seed=1)
    net, _, _ = calibrated(tiny_settings, found)

    def accuracies(moved: bool) -> dict[str, float]:
        def of(code: str, rows: np.ndarray) -> np.ndarray:
            return transformed(net, code, rows) if moved else rows

        source = {"eng_Latn": of("eng_Latn", found["eng_Latn"])}
        fitted = probe.fit(
            probe.Labelled(source, {"eng_Latn": labels}), probe.Labelled({}, {}), 3, MixtureConfig(), (1.0,)
        )
        scores = {code: of(code, rows) @ fitted.weight.T + fitted.bias for code, rows in unseen.items()}
        return {code: float((one.argmax(1) == gold).mean()) for code, one in scores.items()}

    before, after = accuracies(moved=False), accuracies(moved=True)
    assert before["eng_Latn"] == after["eng_Latn"] > 0.95
    for code in ("hin_Deva", "swh_Latn"):
        assert before[code] < 0.7
        assert after[code] > 0.95


# what is refused


def test_a_corpus_without_texts_of_targets_is_refused(tiny_settings: Settings) -> None:
    experiment = build(centred(tiny_settings))
    corpus = checks.prepare(experiment).corpus
    only = {split: {"eng_Latn": corpus.table(split, "eng_Latn")} for split in ("train", "dev")}
    without = replace(corpus, splits={**only, "test": corpus.splits["test"]})
    with pytest.raises(InputError, match=r"none of the targets .* has train or dev rows to estimate its mean from"):
        Centre().check(Available.of(experiment, without))
    with pytest.raises(InputError, match=r"centre\.remove: 4 directions of 4 languages; give less"):
        Centre(remove=4).check(Available.of(experiment, corpus))


# a language added to a finished bundle


@pytest.fixture
def made(tiny_settings: Settings, tmp_path: Path) -> Path:
    """A bundle that knows the means of its four languages."""
    return save(build(centred(tiny_settings, "fine_tune")), tmp_path / "run" / "bundle")


def save(experiment: Any, folder: Path) -> Path:
    run = run_of(experiment)
    loop.fit(run)
    model = Bundle(run.network.eval(), run.tokenize, run.setup.corpus.labels, experiment, None)
    bundle.save(folder, model, network.build(experiment.network, 3, 0).identity)
    return folder


def texts(file: Path, language: str = "swh", rows: int = 60, seed: int = 5) -> Path:
    rng = np.random.default_rng(seed)
    lines = [" ".join(f"{language}{i}" for i in rng.integers(WORDS, size=6)) for _ in range(rows)]
    file.write_text("\n".join([*lines, "", lines[0], "  "]) + "\n", encoding="utf-8")
    return file


def mean_of(folder: Path, file: Path, code: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of transformed features of a file's texts in a language, and the mean that it should have."""
    model = bundle.load(folder)
    lines = list(dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()))
    run_features = evaluate.embed(
        model.network, {code: pa.table({"text": lines})}, evaluate.Inputs(model.tokenize, "float32")
    )
    step = model.network.steps["centre"]
    assert isinstance(step, Shift)
    return transformed(model.network, code, run_features[code]).mean(0), step.origin.numpy()


def test_a_language_is_added_from_text_alone(made: Path, tmp_path: Path) -> None:
    file = texts(tmp_path / "wolof.txt")
    before = bundle.load(made)
    old = (made / json.loads((made / "bundle.json").read_text())["steps"]).name
    adapted = adapt.adapt(made, "wo", file)
    assert adapted == adapt.Adapted("wol_Latn", new=True, texts=60, languages=5)
    after = bundle.load(made)  # which verifies every file
    assert after.network.languages == (*before.network.languages, "wol_Latn")
    mean, origin = mean_of(made, file, "wol_Latn")
    np.testing.assert_allclose(mean, origin, atol=1e-4)
    known = before.network.languages
    for code in (*known, None):  # nothing else changes
        one, other = (model.probabilities(["eng1 eng2", "swh4"], languages=[code] * 2) for model in (before, after))
        assert np.array_equal(one, other)
    new = after.probabilities(["swh4 swh5"], languages=["wol_Latn"])
    assert not np.array_equal(new, before.probabilities(["swh4 swh5"], languages=["wol_Latn"]))
    assert not (made / old).exists() and len(list(made.glob("steps-*"))) == 1


def test_a_language_that_is_known_is_replaced(made: Path, tmp_path: Path) -> None:
    file = texts(tmp_path / "swahili.txt", rows=40)
    assert adapt.adapt(made, "sw", file) == adapt.Adapted("swh_Latn", new=False, texts=40, languages=4)
    mean, origin = mean_of(made, file, "swh_Latn")
    np.testing.assert_allclose(mean, origin, atol=1e-4)
    again = adapt.adapt(made, "sw", file)  # the same steps: their file is not taken away
    assert not again.new and bundle.load(made).network.languages == bundle.load(made).network.languages
    assert adapt.adapt(made, "wo", file).new and not adapt.adapt(made, "wo", file).new


def test_a_bundle_without_centre_and_texts_too_few_are_refused(
    tiny_settings: Settings, made: Path, tmp_path: Path
) -> None:
    plain = {**centred(tiny_settings, "fine_tune"), "techniques": []}
    other = save(build(plain), tmp_path / "plain")
    with pytest.raises(
        InputError, match=r"has no technique that adds a language from text: train with `techniques: \[centre\]`"
    ):
        adapt.adapt(other, "wo", texts(tmp_path / "enough.txt"))
    with pytest.raises(InputError, match=r"few\.txt: 19 different texts; give 20 or more"):
        adapt.adapt(made, "wo", texts(tmp_path / "few.txt", rows=19))
    with pytest.raises(InputError, match=r"none\.txt: cannot be read .* give a file of text in UTF-8"):
        adapt.adapt(made, "wo", tmp_path / "none.txt")
    (tmp_path / "latin1.txt").write_bytes("é\n".encode("latin-1") * 30)
    with pytest.raises(InputError, match=r"latin1\.txt, line 1: byte 0 of the file \(0xe9\) is not UTF-8"):
        adapt.adapt(made, "wo", tmp_path / "latin1.txt")


@pytest.mark.parametrize(
    ("call", "number", "done"),
    [("replace", 1, False), ("replace", 2, False), ("unlink", 3, True)],
    ids=["before the steps", "between steps and bundle.json", "before the old steps are taken away"],
)
def test_an_update_that_is_stopped_leaves_a_whole_bundle(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, done: bool
) -> None:
    before, file, usual, calls = bundle.load(made), texts(tmp_path / "wolof.txt"), getattr(os, call), []

    def stopped(path: Any, *arguments: Any) -> Any:
        calls.append(path)
        if len(calls) == number:
            raise KeyboardInterrupt
        return usual(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, stopped)
        with pytest.raises(KeyboardInterrupt):
            adapt.adapt(made, "wo", file)
    after = bundle.load(made)
    assert ("wol_Latn" in after.network.languages) is done
    one, other = (m.probabilities(["eng1 eng2"], languages=["swh_Latn"]) for m in (before, after))
    assert np.array_equal(one, other)
    assert adapt.adapt(made, "wo", file).new is not done
    assert bundle.load(made).network.languages[-1] == "wol_Latn"
