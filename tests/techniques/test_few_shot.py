"""Few-shot: which rows are taken, that all results are labelled so, and the second stage on the targets' rows alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console
from test_catalogue import run_of

from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate, metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.inference import bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model import network
from xlt_ray.reports import plots, report
from xlt_ray.techniques.few_shot import FewShot
from xlt_ray.training import checks, loop

Settings = dict[str, Any]
TARGETS = ("hin_Deva", "swh_Latn")


def few_shot(settings: Settings, **parameters: Any) -> Settings:
    return {**copy.deepcopy(settings), "techniques": [{"few_shot": parameters}]}


def table(rows: int = 300, classes: int = 3) -> pa.Table:
    labels = np.random.default_rng(0).integers(classes, size=rows).astype(np.int32)
    ids = [str(i) for i in range(rows)]
    return pa.table({"text": [f"text {i}" for i in ids], "label": labels, "id": ids})


def ids(taken: pa.Table) -> set[str]:
    return set(taken["id"].to_pylist())


# which rows


def test_there_are_so_many_shots_of_each_class() -> None:
    for shots in (1, 2, 10, 50):
        labels = FewShot(shots=shots).of(table(), "swh_Latn")["label"].to_numpy()
        assert np.bincount(labels).tolist() == [shots] * 3


def test_where_a_class_has_fewer_rows_all_are_taken() -> None:
    whole = table()
    assert FewShot(shots=10**6).of(whole, "swh_Latn").equals(whole)


def test_more_shots_keep_those_of_fewer() -> None:
    taken = [ids(FewShot(shots=shots, draw=3).of(table(), "swh_Latn")) for shots in (1, 2, 5, 20, 80)]
    assert all(fewer < more for fewer, more in zip(taken, taken[1:], strict=False))


def test_draws_and_languages_differ_and_the_same_draw_does_not() -> None:
    draws = [ids(FewShot(shots=10, draw=draw).of(table(), "swh_Latn")) for draw in range(5)]
    assert all(one != other for number, one in enumerate(draws) for other in draws[:number])
    assert ids(FewShot(shots=10).of(table(), "hin_Deva")) != draws[0]
    assert ids(FewShot(shots=10).of(table(), "swh_Latn")) == draws[0]


def test_shots_join_train_and_no_row_of_test_or_dev_does(tiny_settings: Settings) -> None:
    prepared = checks.prepare(build(few_shot(tiny_settings, shots=2)))
    corpus, visible = prepared.corpus, prepared.visible
    assert visible.sizes("train") == {"deu_Latn": 40, "eng_Latn": 160, "hin_Deva": 6, "swh_Latn": 6}
    assert visible.languages("dev") == ("deu_Latn", "eng_Latn") and visible.languages("test") == ()
    for code in TARGETS:
        taken = visible.table("train", code)
        assert ids(taken) <= ids(corpus.table("train", code))
        assert not ids(taken) & (ids(corpus.table("test", code)) | ids(corpus.table("dev", code)))
    assert prepared.few_shot == TARGETS and prepared.zero_shot == ()


def test_languages_without_shots_stay_zero_shot(tiny_settings: Settings) -> None:
    prepared = checks.prepare(build(few_shot(tiny_settings, shots=2, languages=["sw"])))
    assert prepared.few_shot == ("swh_Latn",) and prepared.zero_shot == ("hin_Deva",)
    assert "hin_Deva" not in prepared.visible.languages("train")


# that results are labelled few-shot


def test_scores_and_the_table_call_them_few_shot(tiny_settings: Settings) -> None:
    settings = few_shot(tiny_settings, shots=2, languages=["swh_Latn"])
    settings["training"] = {**settings["training"], "epochs": 1}
    experiment = build(settings)
    prepared, run = checks.prepare(experiment), run_of(experiment)
    loop.fit(run)
    tables = {code: prepared.corpus.table("test", code) for code in prepared.measured}
    predictions = evaluate.predict(run.network, run.setup.task, tables, evaluate.Inputs(run.tokenize, "float32"))
    roles = Roles(experiment.sources, prepared.few_shot)
    scores = metrics.score(predictions, prepared.corpus.labels, roles, 100, 0)
    assert {code: one.role for code, one in scores.languages.items()} == {
        "eng_Latn": "source",
        "deu_Latn": "source",
        "swh_Latn": "few-shot",
        "hin_Deva": "zero-shot",
    }
    assert scores.summary["accuracy/mean_zero_shot"] == scores.languages["hin_Deva"].accuracy
    assert scores.summary["accuracy/mean_few_shot"] == scores.languages["swh_Latn"].accuracy
    console = Console(width=120, record=True)
    console.print(report.table(scores, experiment))
    text = console.export_text()
    assert "tiny: test scores in % (zero-shot, few-shot)" in text and report.FEW_SHOT.split(",")[0] in text
    assert any("swh_Latn" in line and "few-shot" in line for line in text.splitlines())
    shown = {title: [one.code for one in members] for title, members in plots.groups(scores).items()}
    assert shown["Few-shot languages"] == ["swh_Latn"] and shown["Zero-shot languages"] == ["hin_Deva"]


# the second stage


def zero_shot_bundle(settings: Settings, folder: Path) -> Bundle:
    experiment = build(settings)
    run = run_of(experiment)
    loop.fit(run)
    made = Bundle(run.network.eval(), run.tokenize, run.setup.corpus.labels, experiment, None)
    bundle.save(folder, made, network.build(experiment.network, 3, 0).identity)
    return made


def test_alone_goes_on_from_a_bundle_with_its_head(tiny_settings: Settings, tmp_path: Path) -> None:
    first = zero_shot_bundle(tiny_settings, tmp_path / "first")
    settings = few_shot(tiny_settings, shots=4, alone=True)
    settings["network"] |= {"init": str(tmp_path / "first"), "head": "bundle"}
    prepared = checks.prepare(build(settings))
    assert prepared.visible.sizes("train") == {"hin_Deva": 12, "swh_Latn": 12}
    run = run_of(build(settings))
    begun, before = run.network.state_dict(), first.network.state_dict()
    assert begun.keys() == before.keys() and all(torch.equal(begun[name], before[name]) for name in begun)
    tables = {code: prepared.corpus.table("train", code) for code in TARGETS}
    zero_shot = evaluate.predict(run.network, run.setup.task, tables, evaluate.Inputs(run.tokenize, "float32"))
    progress = loop.fit(run)
    after = evaluate.predict(run.network, run.setup.task, tables, evaluate.Inputs(run.tokenize, "float32"))
    assert sum(one.score for one in after.values()) > sum(one.score for one in zero_shot.values())
    assert progress.step == 4  # 2 epochs of 24 rows, 16 an update


# what is refused


@pytest.mark.parametrize(
    ("parameters", "changes", "message"),
    [
        ({"languages": ["en"]}, {}, "few_shot.languages: eng_Latn is a source, whose rows are all used; leave it out"),
        ({"languages": ["fr"]}, {}, "few_shot.languages: fra_Latn is no target; add it to targets"),
        ({"languages": ["hi"]}, {"targets": ["sw"]}, "few_shot.languages: hin_Deva is no target"),
        ({"alone": True}, {}, "few_shot.alone: a second stage goes on with a head that was trained"),
        ({"shots": 0}, {}, "few_shot.shots: .*greater than or equal to 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tiny_settings: Settings, parameters: Settings, changes: Settings, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        checks.prepare(build({**few_shot(tiny_settings, **parameters), **changes}))


def test_targets_without_train_rows_are_refused(tiny_settings: Settings) -> None:
    experiment = build(few_shot(tiny_settings))
    whole = loaders.load(experiment.corpus)
    train = {code: rows for code, rows in whole.splits["train"].items() if code not in TARGETS}
    corpus = type(whole)(whole.name, whole.labels, {**whole.splits, "train": train})
    with pytest.raises(InputError, match="no target has train rows to take shots of"):
        checks.check(techniques.build(experiment), experiment, corpus)
    one = build(few_shot(tiny_settings, languages=["swh_Latn"]))
    with pytest.raises(InputError, match="swh_Latn has no train rows to take shots of"):
        checks.check(techniques.build(one), one, corpus)


def test_a_probe_may_be_fitted_on_the_shots_alone(tiny_settings: Settings) -> None:
    settings = few_shot(tiny_settings, alone=True, shots=1)
    settings["training"] = {**settings["training"], "method": "probe"}
    prepared = checks.prepare(build(settings))
    assert prepared.visible.sizes("train") == {"hin_Deva": 3, "swh_Latn": 3}
    assert prepared.visible.languages("dev") == ("deu_Latn", "eng_Latn")
