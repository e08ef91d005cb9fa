"""The supervision ladder: where a language stands follows from what techniques read of it, and is shown everywhere."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outline import printed

from xlt_ray import supervision, techniques
from xlt_ray.config.read import build
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.paired import comparison
from xlt_ray.evaluation.predictions import Predictions, save_predictions
from xlt_ray.evaluation.scores import Scores
from xlt_ray.inference import artefact
from xlt_ray.reports import report

TARGETS = ("fra_Latn", "hin_Deva")
ZERO_SHOT, UNLABELLED, PARALLEL, FEW_SHOT, ORACLE = supervision.LADDER
EXPECTED = {
    (): ZERO_SHOT,
    ("lora",): ZERO_SHOT,
    ("centre",): UNLABELLED,
    ("adversarial",): UNLABELLED,
    ("language_id",): UNLABELLED,
    ("code_switch",): PARALLEL,
    ("translate_train",): PARALLEL,
    ("few_shot",): FEW_SHOT,
    ("centre", "code_switch", "lora"): PARALLEL,
    ("few_shot", "code_switch"): FEW_SHOT,
    ("translate_train", "centre"): PARALLEL,
}


def experiment(*chosen: Any, **settings: Any) -> Any:
    return build({"name": "made", "sources": ["eng_Latn"], "techniques": list(chosen), **settings})


def rungs(*chosen: Any, **settings: Any) -> dict[str, str]:
    return techniques.supervised(experiment(*chosen, **settings), ("eng_Latn", *TARGETS), TARGETS, TARGETS)


def scores(supervised: dict[str, str] | None, few_shot: tuple[str, ...] = ()) -> Scores:
    rng = np.random.default_rng(0)
    rows = [str(row) for row in range(40)]
    found = {
        code: Predictions(np.arange(40) % 2, rng.integers(2, size=40), rows, np.full(40, 0.7))
        for code in ("eng_Latn", *TARGETS)
    }
    roles = Roles(("eng_Latn",), few_shot, frozenset({"eng_Latn", "fra_Latn"}), supervised)
    return metrics.score(found, ("a", "b"), roles, 50)


def test_the_examples_hold() -> None:
    tried = doctest.testmod(supervision)
    assert tried.attempted >= 3 and not tried.failed


@pytest.mark.parametrize("chosen", EXPECTED, ids="+".join)
def test_a_run_stands_on_the_highest_rung_of_its_techniques(chosen: tuple[str, ...]) -> None:
    assert rungs(*chosen) == dict.fromkeys(TARGETS, EXPECTED[chosen])
    assert rungs(*chosen, training={"select": "target_dev"}) == dict.fromkeys(TARGETS, ORACLE)


def test_a_language_of_which_nothing_was_read_stays_zero_shot() -> None:
    only_french = techniques.supervised(experiment("centre"), ("eng_Latn", *TARGETS), ("eng_Latn", "fra_Latn"), ())
    assert only_french == {"fra_Latn": UNLABELLED, "hin_Deva": ZERO_SHOT}
    assert rungs({"few_shot": {"languages": ["fra_Latn"]}}, "centre") == {"fra_Latn": FEW_SHOT, "hin_Deva": UNLABELLED}
    assert rungs({"code_switch": {"languages": ["hin_Deva"]}}) == {"fra_Latn": ZERO_SHOT, "hin_Deva": PARALLEL}
    with_files = experiment({"code_switch": {"lexicons": "dictionaries"}})
    assert techniques.supervised(with_files, TARGETS, (), ()) == dict.fromkeys(TARGETS, PARALLEL)
    translated = experiment("translate_train")
    assert techniques.supervised(translated, ("tha_Thai", "hin_Deva"), ("tha_Thai", "hin_Deva"), ()) == {
        "tha_Thai": ZERO_SHOT, "hin_Deva": PARALLEL
    }  # fmt: skip


def test_a_run_from_a_bundle_inherits_what_its_run_read(tmp_path: Path) -> None:
    earlier = experiment("code_switch", sources=["deu_Latn"]).model_dump(mode="json")
    content = {"experiment": earlier, "languages": ["deu_Latn", "fra_Latn"]}
    (tmp_path / "encoder").mkdir()
    for init in (tmp_path, tmp_path / "encoder"):
        (tmp_path / "bundle.json").write_text(json.dumps(content))  # of before bundles held it
        expected = {"fra_Latn": PARALLEL, "hin_Deva": ZERO_SHOT, "deu_Latn": FEW_SHOT}
        assert rungs(network={"init": str(init)}) == expected
        (tmp_path / "bundle.json").write_text(json.dumps(content | {"supervision": {"fra_Latn": FEW_SHOT}}))
        assert rungs("centre", network={"init": str(init)})["fra_Latn"] == FEW_SHOT


def test_scores_keep_it_for_each_language_and_older_ones_load_without() -> None:
    found = scores({"fra_Latn": PARALLEL})
    assert {code: one.supervision for code, one in found.languages.items()} == {
        "eng_Latn": None, "fra_Latn": PARALLEL, "hin_Deva": ZERO_SHOT
    }  # fmt: skip
    assert found.supervision == PARALLEL and found.rung(["hin_Deva"]) == ZERO_SHOT
    assert Scores.from_json(found.to_json()) == found
    assert found.to_frame()["supervision"].dropna().to_dict() == {"fra_Latn": PARALLEL, "hin_Deva": ZERO_SHOT}
    older = json.loads(found.to_json())
    for one in older["languages"].values():
        del one["supervision"]
    read = Scores.from_json(json.dumps(older))
    assert read.supervision is None and "not recorded" in printed(report.table(read, experiment()))


def test_tables_titles_and_plots_say_it(tmp_path: Path) -> None:
    found, made = scores({"fra_Latn": PARALLEL, "hin_Deva": UNLABELLED}), experiment("code_switch")
    text = printed(report.table(found, made))
    assert text.startswith("made: test scores in % (zero-shot + parallel text)")
    assert "zero-shot + parallel text, mean (2)" in text
    assert "Zero-shot + unlabelled text in 1 of 2 languages" in text
    (row,) = (line for line in text.splitlines() if "hin_Deva" in line)
    assert "+ unlabelled" in row
    page = report.write(tmp_path, found, made, {}, [], {})["report.html"].read_text(encoding="utf-8")
    assert "scores by language (zero-shot + parallel text)</title>" in page
    assert '<td class="text">zero-shot + unlabelled text</td>' in page
    assert "targets: zero-shot + parallel text" in (tmp_path / "languages.svg").read_text(encoding="utf-8")
    assert "hin_Deva\t" in (tmp_path / "scores.tsv").read_text() and "\t+ unlabelled text" in (
        tmp_path / "scores.tsv"
    ).read_text(encoding="utf-8")
    plain = printed(report.table(scores({}), experiment()))
    assert plain.startswith("made: test scores in % (zero-shot)") and "compare with" not in plain


def test_a_few_shot_language_takes_no_zero_shot_one_along() -> None:
    found = scores({"fra_Latn": FEW_SHOT, "hin_Deva": UNLABELLED}, ("fra_Latn",))
    assert found.supervision == UNLABELLED and found.languages["fra_Latn"].role == "few-shot"
    assert "(zero-shot + unlabelled text, few-shot)" in printed(report.table(found, experiment("few_shot", "centre")))


def test_two_runs_on_different_rungs_are_told_apart(tmp_path: Path) -> None:
    for name, supervised in (("first", {"fra_Latn": PARALLEL}), ("second", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(scores(supervised).to_json(), encoding="utf-8")
        rows = {code: Predictions(np.arange(4) % 2, np.zeros(4, int), list("abcd")) for code in ("eng_Latn", *TARGETS)}
        save_predictions(tmp_path / name / "predictions.npz", rows)
    found = comparison.compare_runs(tmp_path / "first", tmp_path / "second")
    assert found["zero-shot"].supervision == (PARALLEL, ZERO_SHOT) and found["zero-shot"].uneven
    assert found["source"].supervision == (None, None) and not found["source"].uneven
    assert not replace(found["zero-shot"], supervision=(None, ZERO_SHOT)).uneven, "an older run is no other rung"


def test_an_artefact_says_it_of_each_language(tmp_path: Path) -> None:
    made = experiment("code_switch").model_dump(mode="json")
    content = {"experiment": made, "labels": ["a", "b"], "prefix": "", "max_length": 8, "encoder": "tiny"}
    (tmp_path / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "scores.json").write_text(scores({"fra_Latn": PARALLEL}).to_json(), encoding="utf-8")
    found = artefact.describe(tmp_path, 0)
    assert found.provenance["supervision"] == PARALLEL
    assert [found.languages[code]["supervision"] for code in ("eng_Latn", *TARGETS)] == [None, PARALLEL, ZERO_SHOT]
