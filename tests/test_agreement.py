"""An artefact is held against its bundle, group by group, and what is decided follows from counts alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from artefacts import TEXTS, bundled

from xlt_ray import agreement, artefact, export
from xlt_ray.config import InputError

LANGUAGES = {
    "a": {"role": "source", "seen": True},
    "b": {"role": "zero-shot", "seen": True},
    "c": {"role": "zero-shot", "seen": False},
}
GOLD = {code: np.arange(400) % 3 for code in LANGUAGES}


def flipped(code: str, rows: int, to_wrong: bool = True) -> dict[str, np.ndarray]:
    """Give answers right everywhere but in the first rows of one language."""
    return {one: (gold + (np.arange(400) < rows) * (one == code) * to_wrong) % 3 for one, gold in GOLD.items()}


def test_equal_answers_pass() -> None:
    found = agreement.compare(GOLD, GOLD, GOLD, LANGUAGES)
    assert found["passed"] and found["agreement"] == 1 and found["texts"] == 1200
    assert list(found["groups"]) == ["all", "source", "zero-shot", "zero-shot seen", "zero-shot unseen"]
    assert found["groups"]["zero-shot"] == {"rows": 800, "before": 1, "after": 1, "change": 0}
    assert found["worst"] == {"language": "a", "agreement": 1}


def test_one_group_worse_off_fails_where_the_mean_would_pass() -> None:
    found = agreement.compare(GOLD, GOLD, flipped("c", 2), LANGUAGES)
    assert found["agreement"] > agreement.AGREEMENT and not found["passed"]
    assert found["groups"]["zero-shot unseen"]["change"] == pytest.approx(-2 / 400)
    assert found["worst"] == {"language": "c", "agreement": 398 / 400}
    assert agreement.compare(GOLD, GOLD, flipped("c", 1), LANGUAGES)["passed"]


def test_other_labels_fail_even_where_they_are_right() -> None:
    found = agreement.compare(GOLD, flipped("b", 7), GOLD, LANGUAGES)
    assert found["groups"]["all"]["change"] > 0 and not found["passed"]


def test_groups_without_languages_are_left_out() -> None:
    found = agreement.compare({"x": GOLD["a"]}, GOLD | {"x": GOLD["a"]}, {"x": GOLD["a"]}, {})
    assert list(found["groups"]) == ["all"] and found["passed"]


def test_the_margin_catches_all_but_a_few_wrong_labels() -> None:
    rng = np.random.default_rng(0)
    precise = rng.normal(size=(5000, 4))
    rough = precise + rng.normal(scale=0.02, size=precise.shape)
    found = agreement.margin(rough, precise)
    wrong = rough.argmax(1) != precise.argmax(1)
    left = wrong & (agreement.margins(rough) >= found)
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
    assert artefact.record(tmp_path / "artefact", found).checks == found

    with pytest.raises(InputError, match="there is no row to compare by; give a test split"):
        agreement.check(original, tmp_path / "artefact", {"eng_Latn": table[:0]})
    other = bundled(tmp_path / "other", tiny_encoder, "seed=1")
    with pytest.raises(InputError, match="artefact: not made of .*other, whose digest differs; export it again"):
        agreement.check(other, tmp_path / "artefact", {"eng_Latn": table})
