"""What every task of the catalogue keeps: sound runs, exact resume, the same on any number of workers, round trips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workers import on_workers

from xlt_ray import tasks
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate, metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.paired import comparison, gate
from xlt_ray.evaluation.predictions import Predictions, load_predictions, save_predictions
from xlt_ray.evaluation.scores import Scores
from xlt_ray.export import export
from xlt_ray.inference import artefact, bundle, engine, pyfunc
from xlt_ray.training import checks, loop, setup
from xlt_ray.training.setup import Setup

Settings = dict[str, Any]
WORDS = 60
TAGS = ("O", "B-food", "B-place")


class Killed(Exception):
    """Raised in a report, to stop a run there."""


@pytest.fixture(params=sorted(tasks.TASKS))
def settings(request: pytest.FixtureRequest, tiny_settings: Settings, tagged_corpus: Path) -> Settings:
    """Plain data of an experiment of each task, on a corpus of its kind."""
    if not tasks.load(request.param).tagged:
        return {**tiny_settings, "task": request.param}
    corpus = {"path": str(tagged_corpus), "words": "words", "label": "tags"}
    return {**tiny_settings, "task": request.param, "corpus": {**tiny_settings["corpus"], **corpus}}


def make(settings: Settings) -> setup.Run:
    made = Setup.of(build(settings), loaders.load(build(settings).corpus))
    net, tokenize, _ = made.build()
    return setup.Run(made, net, tokenize)


def fitted(settings: Settings, kept: Path | None = None, restored: Path | None = None) -> tuple[setup.Run, list[float]]:
    """Fit; with `kept` write a checkpoint there and stop at the first."""
    run, losses = make(settings), []

    def report(figures: dict[str, float], save: setup.Save | None) -> None:
        if kept is not None and save is not None:
            kept.mkdir()
            save(kept)
            raise Killed

    def emit(event: dict[str, Any]) -> None:
        losses.extend([event["train/loss"]] if "train/loss" in event else [])

    run.report, run.emit = report, emit
    loop.fit(run, restored)
    return run, losses


def predicted(run: setup.Run) -> dict[str, Predictions]:
    return evaluate.predict(run.network, run.setup.task, run.setup.tables("test"), run.inputs("float32"))


def weights_and_answers(settings: Settings) -> tuple[dict[str, np.ndarray], list[float], dict[str, Predictions]]:
    run, losses = fitted(settings)
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in run.network.state_dict().items()}
    return arrays, losses, predicted(run)


def test_it_learns_and_its_scores_are_those_of_its_predictions(settings: Settings) -> None:
    settings = {**settings, "training": {**settings["training"], "epochs": 5}}
    checks.prepare(build(settings))
    run, losses = fitted(settings)
    assert np.isfinite(losses).all() and losses[-1] < losses[0] / 2
    found, task = predicted(run), run.setup.task
    scores = metrics.score(found, run.setup.corpus.labels, Roles(("eng_Latn", "deu_Latn")), 200, 0, task.name)
    for code, one in scores.languages.items():
        assert one.support == run.setup.corpus.table("test", code).num_rows == found[code].rows
        assert tuple(one.metrics) == task.metrics
        assert one.main.value == pytest.approx(found[code].score) == pytest.approx(found[code].values().mean())
        for low, value, high in ((one.low, one.value, one.high) for one in one.metrics.values()):
            assert 0 <= low <= value + 1e-9 and value - 1e-9 <= high <= 1
    assert scores.languages["eng_Latn"].main.value > 0.6
    assert Scores.from_json(scores.to_json()) == scores
    assert f"{task.metrics[0]}/mean_zero_shot_low" in scores.summary


def test_a_run_that_was_killed_ends_with_the_same_bits(settings: Settings, tmp_path: Path) -> None:
    settings = {**settings, "training": {**settings["training"], "checkpoint_every": 3}}
    whole, _ = fitted(settings)
    with pytest.raises(Killed):
        fitted(settings, kept=tmp_path / "kept")
    again, _ = fitted(settings, restored=tmp_path / "kept")
    for (name, one), other in zip(whole.network.state_dict().items(), again.network.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_two_workers_learn_and_answer_what_one_does(settings: Settings) -> None:
    settings = {**settings, "network": {**settings["network"], "dropout": 0.0}}
    settings["training"] = {**settings["training"], "learning_rate": 1e-3, "tokens_per_step": 64}
    alone, losses, answers = weights_and_answers(settings)
    for weights, curve, found in on_workers(2, weights_and_answers, settings):
        assert curve == pytest.approx(losses, rel=1e-4)
        assert max(float(np.abs(weights[name] - alone[name]).max()) for name in alone) < 1e-3
        for code, one in found.items():
            assert len(one.predicted) == len(answers[code].predicted)
            assert np.mean(one.predicted == answers[code].predicted) > 0.98  # the sums differ in their last bits
            assert np.array_equal(one.gold, answers[code].gold)
            assert one.confidence == pytest.approx(answers[code].confidence, abs=0.01)


def test_any_budget_of_tokens_gives_the_same_answers(settings: Settings) -> None:
    run = make(settings)
    tables, task = run.setup.tables("test"), run.setup.task
    for code, one in evaluate.score(run.network, task, tables, run.inputs("float32")).items():
        small = evaluate.Inputs(run.tokenize, "float32", 32)
        other = evaluate.score(run.network, task, {code: tables[code]}, small)[code]
        assert one.shape == other.shape
        assert one == pytest.approx(other, abs=1e-4)


def test_predictions_survive_their_file_and_two_models_compare(settings: Settings, tmp_path: Path) -> None:
    run, other = make(settings), fitted(settings)[0]
    first, second = predicted(run), predicted(other)
    for name, one in (("first", first), ("second", second)):
        save_predictions(tmp_path / f"{name}.npz", one)
    kept = [load_predictions(tmp_path / f"{name}.npz") for name in ("first", "second")]
    for code in first:
        assert np.array_equal(first[code].values(), kept[0][code].values())
        assert first[code].score == kept[0][code].score
    found = comparison.compare_seeds([kept[1]], [kept[0]])
    each = [second[code].score - first[code].score for code in first]
    assert found.difference == pytest.approx(np.mean(each))
    assert found.low < found.difference < found.high and found.low > 0
    labels = run.setup.corpus.labels
    judged = gate.judge(kept[0], kept[1], (labels, labels))
    assert not judged.passed and judged.difference == pytest.approx(-found.difference)
    assert [row.candidate for row in judged.rows] == pytest.approx([first[row.code].score for row in judged.rows])
    plain = Predictions(first["eng_Latn"].gold, first["eng_Latn"].predicted, first["eng_Latn"].ids)
    if first["eng_Latn"].ratios is not None:
        with pytest.raises(InputError, match="different metrics"):
            comparison.compare_seeds([{"eng_Latn": plain}], [{"eng_Latn": first["eng_Latn"]}])
    swapped = first["eng_Latn"]
    wrong = Predictions(1 - swapped.gold % 2, swapped.predicted, swapped.ids, None, swapped.sizes, swapped.ratios)
    with pytest.raises(InputError, match="has different gold labels"):
        comparison.compare_seeds([{"eng_Latn": wrong}], [{"eng_Latn": swapped}])


def test_its_bundle_comes_back_is_served_and_is_exported_or_refused_by_name(settings: Settings, tmp_path: Path) -> None:
    run, _ = fitted(settings)
    experiment, labels = run.setup.experiment, run.setup.corpus.labels
    bundle.save(tmp_path / "bundle", bundle.Bundle(run.network, run.tokenize, labels, experiment, None), "tiny")
    kept = bundle.load(tmp_path / "bundle")
    assert kept.task == run.setup.task and kept.labels == labels
    inputs = evaluate.Inputs(kept.tokenize, "float32")
    found = evaluate.predict(kept.network, kept.task, run.setup.tables("test"), inputs)
    for code, one in predicted(run).items():
        assert np.array_equal(found[code].predicted, one.predicted)
    assert artefact.of_words(tmp_path / "bundle") is kept.task.tagged
    running = engine.load(tmp_path / "bundle")
    assert running.labels == labels and running.artefact.labels == labels
    table = run.setup.tables("test")["eng_Latn"]
    texts = table["text"].to_pylist()
    rows = (
        running.encode(texts) if running.words is None else [one for each in running.words.rows(texts) for one in each]
    )
    assert np.array_equal(running.probabilities(rows).argmax(1), found["eng_Latn"].predicted)
    told = pyfunc.load_pyfunc(str(tmp_path / "bundle")).predict(texts)  # as MLflow asks whatever was registered
    if not kept.task.tagged:
        assert told == [labels[i] for i in found["eng_Latn"].predicted]
    else:
        tags = [word["tag"] for line in told for word in json.loads(line)["words"]]
        assert len(told) == len(texts) and tags == [labels[i] for i in found["eng_Latn"].predicted]
        with pytest.raises(InputError, match="serve the bundle itself: `xlt serve"):
            export.export(tmp_path / "bundle", tmp_path / "artefact")


def test_a_corpus_of_the_other_kind_is_refused_with_a_task_that_suits_it(settings: Settings) -> None:
    mine = tasks.load(settings["task"]).tagged
    for name in (name for name in tasks.TASKS if tasks.load(name).tagged is not mine):
        with pytest.raises(InputError, match=f"set task: .*{settings['task']}"):
            checks.prepare(build({**settings, "task": name}))


def test_techniques_that_do_not_suit_it_are_refused_by_name(settings: Settings) -> None:
    found = build({**settings, "techniques": ["centre"]})
    if tasks.of_words(settings["task"]):
        with pytest.raises(InputError, match=r"techniques.centre: .* lora"):
            checks.prepare(found)
    else:
        checks.prepare(found)


def test_a_head_of_another_task_or_of_other_labels_is_refused(
    settings: Settings, tiny_settings: Settings, tmp_path: Path
) -> None:
    run = make(settings)
    labels = run.setup.corpus.labels
    made = bundle.Bundle(run.network, run.tokenize, labels, run.setup.experiment, None)
    bundle.save(tmp_path / "bundle", made, "tiny")
    begun = {**settings, "network": {**settings["network"], "init": str(tmp_path / "bundle"), "head": "bundle"}}
    checks.prepare(build(begun))
    content = json.loads((tmp_path / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    other = next(name for name in tasks.TASKS if name != settings["task"])
    for changed in ({"labels": [*labels[::-1]]}, {"experiment": {**content["experiment"], "task": other}}):
        (tmp_path / "bundle" / "bundle.json").write_text(json.dumps({**content, **changed}), encoding="utf-8")
        with pytest.raises(InputError, match="network.head: bundle, but the bundle .* has task: "):
            checks.prepare(build(begun))


def clustered(sure: float) -> dict[str, Predictions]:
    """Rows of twenty words, all right or all wrong, in one language, and one without any span in another."""
    rng, rows, words = np.random.default_rng(0), 50, 20
    gold = np.tile([0, 1, 2, 0], rows * words // 4)
    right = np.repeat(rng.random(rows) < 0.7, words)
    predicted = np.where(right, gold, 0)
    sizes, ids = np.full(rows, words), [f"a{row}" for row in range(rows)]
    task, nothing, few = tasks.build("tag", TAGS), np.zeros(30, dtype=np.int64), np.full(10, 3)
    both = task.ratios(gold, predicted, sizes), task.ratios(nothing, nothing, few)
    return {
        "eng_Latn": Predictions(gold, predicted, ids, np.full(len(gold), sure), sizes, both[0]),
        "deu_Latn": Predictions(nothing, nothing, [f"b{row}" for row in range(10)], np.full(30, sure), few, both[1]),
    }


def test_words_of_a_row_are_drawn_together() -> None:
    one = metrics.score(clustered(0.9), TAGS, Roles(("eng_Latn",)), 500, 0, "tag").languages["eng_Latn"]
    wide = one.accuracy_high - one.accuracy_low
    assert wide > 0.06  # 50 rows; were they 1,000 words it were 0.05
    error = one.flat()
    assert error["calibration_error_high"] - error["calibration_error_low"] > 0.8 * wide


def test_a_language_without_spans_has_f1_of_nought_and_means_lie_in_their_intervals() -> None:
    scores = metrics.score(clustered(0.9), TAGS, Roles(("eng_Latn",)), 500, 0, "tag")
    assert scores.languages["deu_Latn"].metrics["f1"][:2] == (0, 0)
    for key in ("f1/mean", "f1/mean_zero_shot", "accuracy/mean"):
        low, high = scores.summary[f"{key}_low"], scores.summary[f"{key}_high"]
        assert low <= scores.summary[key] <= high


def test_an_unknown_task_is_refused_with_those_there_are(tiny_settings: Settings) -> None:
    with pytest.raises(InputError, match="task: 'tags': there is no such task; did you mean 'tag'"):
        checks.prepare(build({**tiny_settings, "task": "tags"}))
