"""A chain of runs: every step is the comparison of its two runs, steps add up, and nothing unlike is paired."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from xlt_ray import cli
from xlt_ray.errors import InputError
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.paired import chain, comparison, gate
from xlt_ray.evaluation.predictions import Predictions, save_predictions

LABELS, ROWS = ("a", "b"), 80
SEEN = frozenset({"eng_Latn", "fra_Latn", "swh_Latn"})
ROLES = Roles(("eng_Latn",), seen=SEEN)
SHARES = {
    "first": {"eng_Latn": 0.9, "fra_Latn": 0.8, "swh_Latn": 0.5, "yor_Latn": 0.7},
    "second": {"eng_Latn": 0.9, "fra_Latn": 0.75, "swh_Latn": 0.8, "yor_Latn": 0.7},
    "third": {"eng_Latn": 0.9, "fra_Latn": 0.8, "swh_Latn": 0.8, "yor_Latn": 0.3},
}
Write = Callable[..., Path]


def answers(shares: Mapping[str, float], labels: int = 2, prefix: str = "row") -> dict[str, Predictions]:
    """Predictions of which the first rows are right, so that what differs between runs is known."""
    gold = np.arange(ROWS) % labels
    ids = [f"{prefix}{row}" for row in range(ROWS)]
    right = {code: np.arange(ROWS) < round(share * ROWS) for code, share in shares.items()}
    return {code: Predictions(gold, np.where(of, gold, (gold + 1) % labels), ids) for code, of in right.items()}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (comparison, gate):
        monkeypatch.setattr(module, "RESAMPLES", 400)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def one(
        name: str, found: Mapping[str, Predictions] | None = None, labels: Any = LABELS, roles: Any = ROLES
    ) -> Path:
        found = answers(SHARES[name]) if found is None else found
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        save_predictions(folder / "predictions.npz", found)
        scores = metrics.score(found, labels, roles, 20)
        (folder / "scores.json").write_text(scores.to_json(), encoding="utf-8")
        return folder

    return one


@pytest.fixture
def runs(write: Write) -> list[Path]:
    return [write(name) for name in SHARES]


def asked(*folders: Path) -> Any:
    return CliRunner().invoke(cli.app, ["compare", *map(str, folders)])


@pytest.mark.parametrize(
    "content", ["{}", "nonsense", "[]", '{"languages": {"eng_Latn": {}}}', '{"languages": 1}', "\udcff"]
)
@pytest.mark.parametrize("places", [(0, 1), (1, 0), (1, 2, 0)], ids=str)
def test_damaged_scores_are_named_with_a_remedy(runs: list[Path], content: str, places: tuple[int, ...]) -> None:
    file = runs[0] / "scores.json"
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    done = asked(*(runs[place] for place in places))
    assert done.exit_code == 2, done.output
    assert (
        f"error: {file}: damaged, no scores can be read from it; `xlt evaluate {runs[0]} --out {file}`" in done.stderr
    )


def test_scores_of_a_later_version_are_not_called_damaged(runs: list[Path]) -> None:
    (runs[0] / "scores.json").write_text('{"format": 9}', encoding="utf-8")
    assert "scores.json: format 9, this version reads 1 and 2; use the version it is of" in asked(*runs[:2]).stderr


def test_every_step_is_the_comparison_of_its_two_runs(runs: list[Path]) -> None:
    found = chain.compare(runs)
    assert [step.name for step in found.steps] == ["1 to 2", "2 to 3", "1 to 3"]
    for step in found.steps:
        alone = comparison.compare_runs(runs[step.second - 1], runs[step.first - 1])
        assert list(alone) == list(step.groups)
        for name, one in alone.items():
            figures = (one.difference, one.low, one.high, one.p_value, one.languages, one.rows)
            got = step.groups[name]
            assert (got.difference, got.low, got.high, got.p_value, got.languages, got.rows) == figures
            assert got.after - got.before == pytest.approx(got.difference)
        for code, gain in alone["all"].per_language.items():
            assert step.languages[code].difference == pytest.approx(gain)
            assert step.languages[code].before == pytest.approx(SHARES[[*SHARES][step.first - 1]][code])


def test_steps_of_a_language_add_up_and_what_is_sure_is_counted(runs: list[Path]) -> None:
    found = chain.compare(runs)
    *between, whole = found.steps
    for code in found.places:
        assert sum(step.languages[code].difference for step in between) == pytest.approx(
            whole.languages[code].difference
        )
    sure = {
        step.name: {code: one.gained - one.lost for code, one in step.languages.items() if one.gained or one.lost}
        for step in found.steps
    }
    # four rows of French are no more than chance among four languages
    assert sure == {"1 to 2": {"swh_Latn": 1}, "2 to 3": {"yor_Latn": -1}, "1 to 3": {"swh_Latn": 1, "yor_Latn": -1}}
    assert (whole.groups["all"].gained, whole.groups["all"].lost) == (1, 1)
    assert (whole.groups["zero-shot seen"].gained, whole.groups["zero-shot seen"].lost) == (1, 0)
    back = chain.compare(runs[::-1]).steps[-1]
    assert {code: (one.lost, one.gained) for code, one in back.languages.items()} == {
        code: (one.gained, one.lost) for code, one in whole.languages.items()
    }


def test_gains_and_losses_share_the_chance_of_an_error() -> None:
    fall = gate.Row("x", 80, 0.7, 0.6, -0.1, -0.2, 0.0, 0.04, "falls")
    gain = replace(fall, p_value=1.0)
    assert chain._of_language(fall, gain, (None, None)).lost == 0, "the gate alone, one-sided, calls it a fall"
    assert chain._of_language(replace(fall, p_value=0.02), gain, (None, None)).lost == 1


def test_languages_stand_by_role_and_pretraining_and_by_what_all_runs_measured(write: Write) -> None:
    first, second = write("first"), write("second")
    rest = {code: share for code, share in SHARES["third"].items() if code != "yor_Latn"}
    third = write("third", answers(rest), roles=Roles(("eng_Latn",), ("swh_Latn",), seen=SEEN))
    found = chain.compare([first, second, third])
    assert found.left_out == ("yor_Latn",)
    assert [(code, place.role, place.seen) for code, place in found.places.items()] == [
        ("eng_Latn", "source", True),
        ("fra_Latn", "zero-shot", True),
        ("swh_Latn", None, True),
    ]
    assert [step.groups["zero-shot"].languages for step in found.steps] == [1, 1, 1]
    printed = asked(first, second, third).stdout
    assert "Left out, as not every run measured them: yor_Latn\n" in printed and "differs" in printed


def test_the_command_prints_every_language_step_and_group(runs: list[Path]) -> None:
    for folder, lineage in zip(runs, ([], ["first"], ["first", "elsewhere"]), strict=True):
        content = {"format": 1, "run": folder.name, "lineage": [{"run": one} for one in lineage], "sha256": {}}
        (folder / "bundle").mkdir()
        (folder / "bundle" / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    done = asked(*runs, runs[2])
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[:4] == [
        f"1 {runs[0]}",
        *(f"{number} {runs[at]}, begun from 1" for number, at in ((2, 1), (3, 2), (4, 2))),
    ]
    (swahili,) = (line for line in lines if "swh_Latn" in line)
    assert swahili.startswith("Swahili swh_Latn zero-shot yes 80 50.0 +30.0* +0.0 +0.0 +30.0* [+")
    assert any(line.startswith("zero-shot (3) 1 to 2 66.7 +8.3 [+") and line.endswith(" 1 0") for line in lines)
    assert "accuracy on test in % in run 1, and points gained in each step; * surely" in lines
    assert "among all 4 languages of a step" in done.stdout and "read more" not in done.stdout
    assert asked(*runs[:2]).stdout.startswith("all (4): -6.2 points ["), "two alone are told as ever"


def test_the_rung_of_every_run_is_told_where_it_differs(write: Write) -> None:
    runs = [write("first"), write("second"), write("third")]
    plain = asked(*runs).stdout
    raised = replace(ROLES, supervision={"swh_Latn": "+ parallel text"})
    runs = [write("first", roles=replace(ROLES, supervision={})), write("second", roles=raised), runs[2]]
    printed = asked(*runs).stdout
    assert f"1  {runs[0]}, zero-shot\n2  {runs[1]}, zero-shot + parallel text\n3  {runs[2]}\n" in printed
    caution = "A run read more of these languages than another"
    assert caution in printed and caution not in plain


def test_a_chain_is_a_table_too(runs: list[Path]) -> None:
    found = chain.compare(runs).to_frame()
    assert list(found.index[:3]) == [("all", "1 to 2"), ("all", "2 to 3"), ("all", "1 to 3")]
    assert found.xs("1 to 2", level="step")["difference"]["swh_Latn"] == pytest.approx(0.3)
    whole = found.xs("1 to 3", level="step")
    assert (whole["gained"]["all"], whole["lost"]["all"]) == (1, 1)
    assert len(found) == 3 * (5 + 4)


def other_gold(found: dict[str, Predictions]) -> dict[str, Predictions]:
    swapped = found["swh_Latn"].gold.copy()
    swapped[3] = 1 - swapped[3]
    return found | {"swh_Latn": replace(found["swh_Latn"], gold=swapped)}


UNLIKE = {
    "other rows": (
        {"found": answers(SHARES["third"], prefix="line")},
        "third: eng_Latn has 80 test rows, in .*first 80, and id 'line0' is in one of the two alone; compare runs on",
    ),
    "labels": ({"labels": ("a", "c")}, "third: labels differ from those of .*first: b, c only in one of the two"),
    "order of labels": ({"labels": ("b", "a")}, "third: labels differ from .*: the same names in another order"),
    "languages": (
        {"found": answers({"deu_Latn": 0.5})},
        "first, .*second, .*third: no language was measured in all of them; compare runs with a target in common",
    ),
    "gold": (
        {"found": other_gold(answers(SHARES["third"]))},
        "second and .*third: swh_Latn: id 'row3' has different gold labels in the two; compare predictions",
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_what_cannot_be_paired_is_refused_before_anything_is_printed(write: Write, case: str) -> None:
    changed, message = UNLIKE[case]
    folders = [write("first"), write("second"), write("third", **changed)]
    with pytest.raises(InputError, match=message):
        chain.compare(folders)
    done = asked(*folders)
    assert (done.exit_code, done.stdout) == (2, "") and "error: " in done.stderr


def test_other_tasks_and_what_is_no_run_are_refused(write: Write, runs: list[Path], tmp_path: Path) -> None:
    content = json.loads((runs[1] / "scores.json").read_text(encoding="utf-8"))
    (runs[1] / "scores.json").write_text(json.dumps(content | {"task": "tag"}), encoding="utf-8")
    with pytest.raises(InputError, match="second: measured is tag by accuracy, macro_f1, in .*first classification by"):
        chain.compare(runs)
    with pytest.raises(InputError, match="no scores.json; give the folder of a finished run"):
        chain.compare([runs[0], runs[2], tmp_path])
