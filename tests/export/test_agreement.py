"""An artefact is held against its bundle, group by group, and what is decided follows from counts alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from artefacts import TEXTS, bundled

from xlt_ray.errors import InputError
from xlt_ray.export import agreement, export
from xlt_ray.inference import artefact, engine

LANGUAGES = {
    "a": {"role": "source", "seen": True},
    "b": {"role": "zero-shot", "seen": True},
    "c": {"role": "zero-shot", "seen": False},
    "d": {"role": "few-shot", "seen": True},
}
Answers = dict[str, np.ndarray]
GOLD = {code: np.arange(400) % 3 for code in LANGUAGES}


def flipped(code: str, rows: int, gold: Answers = GOLD) -> Answers:
    """Return answers right everywhere but in the first rows of one language."""
    return gold | {code: (gold[code] + (np.arange(len(gold[code])) < rows)) % 3}


def sized(**rows: int) -> Answers:
    return {code: np.arange(number) % 3 for code, number in rows.items()}


def test_equal_answers_pass() -> None:
    found = agreement.compare(GOLD, GOLD, GOLD, LANGUAGES)
    assert found["passed"] and found["agreement"] == 1 and found["texts"] == 1600 and found["changed"] == 0
    assert list(found["groups"]) == ["all", "source", "few-shot", "zero-shot", "zero-shot seen", "zero-shot unseen"]
    whole = {"rows": 800, "before": 1, "after": 1, "change": 0, "lost": 0, "won": 0}
    assert found["groups"]["zero-shot"] == whole and found["groups"]["few-shot"]["rows"] == 400
    assert found["worst"] == {"language": "a", "agreement": 1} and found["reasons"] == found["unclear"] == []


@pytest.mark.parametrize("group", ["a", "c", "d"])
def test_one_group_worse_off_fails_where_the_mean_would_pass(group: str) -> None:
    found = agreement.compare(GOLD, GOLD, flipped(group, 6), LANGUAGES)
    assert found["agreement"] > agreement.AGREEMENT and not found["passed"]
    name = {"a": "source", "c": "zero-shot unseen", "d": "few-shot"}[group]
    assert found["groups"][name]["change"] == pytest.approx(-6 / 400)
    assert f"{name}: 6 of 400 rows turn wrong and 0 right, 1.50 points less and more than 0.3" in found["reasons"]
    assert found["worst"] == {"language": group, "agreement": 394 / 400}


@pytest.mark.parametrize(
    ("rows", "lost", "passed"),
    [
        (289, 1, True),  # 0.35 points: a single row
        (289, 2, True),
        (289, 6, False),  # 2 points
        (20, 1, True),
        (20, 2, True),  # of one sentence in two languages, perhaps
        (20, 4, False),
        (20, 8, False),
        (1, 1, True),
        (5000, 15, True),  # exactly the limit
        (5000, 18, True),
        (5000, 40, False),
    ],
)
def test_what_chance_explains_does_not_count_in_a_group_of_any_size(rows: int, lost: int, passed: bool) -> None:
    gold = sized(a=20_000, c=rows)
    found = agreement.compare(gold, gold, flipped("c", lost, gold), LANGUAGES)
    assert found["passed"] is passed and found["groups"]["zero-shot unseen"]["lost"] == lost
    told = [line for line in found["unclear" if passed else "reasons"] if line.startswith("zero-shot")]
    assert len(told) == (lost > agreement.LOSS * rows), "unseen are all that is zero-shot here: one line, not two"
    assert all(f"{lost} of {rows} rows turn wrong and 0 right" in line for line in told)


@pytest.mark.parametrize(
    ("rows", "changed", "passed"), [(100, 1, True), (100, 2, True), (100, 6, False), (20, 3, False)]
)
def test_other_labels_are_counted_by_what_chance_explains_too(rows: int, changed: int, passed: bool) -> None:
    gold = sized(a=rows)
    after = {"a": (gold["a"] + 2 * (np.arange(rows) < changed)) % 3}  # wrong before and after
    found = agreement.compare(gold, flipped("a", changed, gold), after, LANGUAGES)
    assert found["passed"] is passed and found["groups"]["all"]["change"] == 0
    line = f"{changed} of {rows} rows get another label, more than 0.5%"
    assert found["unclear" if passed else "reasons"] == [line]
    assert found["low"] < found["agreement"] == 1 - changed / rows


def test_rows_that_turn_right_make_up_for_rows_that_turn_wrong() -> None:
    gold = sized(a=20_000, c=500)
    for lost, won, unclear, passed in ((9, 8, 0, True), (15, 8, 1, True), (25, 8, 1, False)):
        before = flipped("c", won, gold)
        after = gold | {"c": (gold["c"] + (np.arange(500) >= 500 - lost)) % 3}
        found = agreement.compare(gold, before, after, LANGUAGES)
        group = found["groups"]["zero-shot unseen"]
        assert (group["lost"], group["won"], found["passed"]) == (lost, won, passed)
        assert any(one.startswith("zero-shot") for one in found["unclear"] + found["reasons"]) == unclear


def test_equally_good_artefacts_are_refused_as_seldom_as_promised() -> None:
    """Every row changes with a chance just within the limits, half of the changes for the worse."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        gold = sized(a=300, b=900, c=289, d=40)
        moved = {code: rng.random(len(one)) < 0.004 for code, one in gold.items()}
        first = {code: rng.random(len(one)) < 0.5 for code, one in gold.items()}
        before = {code: (gold[code] + (moved[code] & first[code])) % 3 for code in gold}
        after = {code: (gold[code] + (moved[code] & ~first[code])) % 3 for code in gold}
        refused += not agreement.compare(gold, before, after, LANGUAGES)["passed"]
    assert refused <= 15


def test_a_sample_is_the_same_rows_every_time_and_other_rows_in_other_languages() -> None:
    table = pa.table({"row": list(range(100))})
    drawn = agreement.sample(table, "a", 10)["row"].to_pylist()
    assert drawn == sorted(set(drawn)) and len(drawn) == 10
    assert drawn == agreement.sample(table, "a", 10)["row"].to_pylist()
    assert drawn != agreement.sample(table, "b", 10)["row"].to_pylist()
    assert agreement.sample(table, "a", 100) is agreement.sample(table, "a", None) is table


def test_groups_without_languages_are_left_out() -> None:
    found = agreement.compare({"x": GOLD["a"]}, GOLD | {"x": GOLD["a"]}, {"x": GOLD["a"]}, {})
    assert list(found["groups"]) == ["all"] and found["passed"]


def test_the_margin_catches_all_but_a_few_wrong_labels() -> None:
    rng = np.random.default_rng(0)
    precise = rng.normal(size=(5000, 4))
    rough = precise + rng.normal(scale=0.02, size=precise.shape)
    found = agreement.margin(rough, precise)
    wrong = rough.argmax(1) != precise.argmax(1)
    left = wrong & (engine.margins(rough) >= found)
    assert wrong.sum() > 50 and left.mean() <= 2 * agreement.LEFT_WRONG and 0.02 < found < 0.2
    assert agreement.margin(precise, precise) == 0
    # no wrong label among few rows, and still a margin
    assert agreement.margin(precise[:5] * 9 + 0.01 * rough[:5], precise[:5] * 9) > 0


def test_one_label_is_never_in_doubt() -> None:
    assert agreement.margin(np.ones((3, 1)), np.ones((3, 1))) == 0


def test_a_check_is_recorded_and_names_every_precision(tiny_encoder: Path, tmp_path: Path) -> None:
    original = bundled(tmp_path / "bundle", tiny_encoder)
    export.export(original, tmp_path / "artefact", texts=TEXTS)
    texts = [f"{language}{i} {language}{i % 7}" for language in ("eng", "hin") for i in range(40)]
    table = pa.table({"text": texts, "label": pa.array([i % 3 for i in range(80)], pa.int32())})
    told: list[tuple[int, int]] = []
    tables = {"eng_Latn": table[:40], "hin_Deva": table[40:]}
    found = agreement.check(original, tmp_path / "artefact", tables, lambda *count: told.append(count))
    every = 3 * table.num_rows  # by the bundle and by two networks
    assert len(told) == 6 and told[0] == (40, every) and told[-1] == (every, every) and told == sorted(told)
    assert set(found) == {"float32", "int8"}
    assert found["float32"]["agreement"] == 1 and found["float32"]["passed"] and found["float32"]["asked"] == 0
    assert 0 <= found["int8"]["asked"] < 1 and found["int8"]["texts"] == 80
    json.dumps(found, allow_nan=False)
    assert found["int8"]["of"] == 80
    assert artefact.record(tmp_path / "artefact", found).checks == found
    told.clear()
    some = agreement.check(original, tmp_path / "artefact", tables, lambda *count: told.append(count), rows=7)
    assert (some["int8"]["texts"], some["int8"]["of"], told[-1]) == (14, 80, (42, 42))

    with pytest.raises(InputError, match="there is no row to compare by; give a test split"):
        agreement.check(original, tmp_path / "artefact", {"eng_Latn": table[:0]})
    other = bundled(tmp_path / "other", tiny_encoder, "seed=1")
    with pytest.raises(InputError, match="artefact: not made of .*other, whose digest differs; export it again"):
        agreement.check(other, tmp_path / "artefact", {"eng_Latn": table})
