"""Temperature and reliability: known values, what few rows may not do, and whose labels have a say."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from xlt_ray.errors import InputError
from xlt_ray.evaluation import bootstrap, calibration, metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions, load_predictions, save_predictions
from xlt_ray.evaluation.scores import Scores
from xlt_ray.training import frozen
from xlt_ray.training.frozen import Frozen
from xlt_ray.training.probe import ABSENT, Fit


def drawn(rows: int, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits, and gold labels as often as the logits' probabilities say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, classes))
    gold = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return logits.astype(np.float32), gold


def test_the_examples_in_the_docstrings() -> None:
    found = doctest.testmod(calibration)
    assert found.failed == 0 and found.attempted == 3


# temperature


@pytest.mark.parametrize("factor", [0.2, 1.0, 2.5, 40.0])
def test_logits_scaled_by_a_factor_give_back_the_factor(factor: float) -> None:
    logits, gold = drawn(20_000)
    found = calibration.temperature({"eng_Latn": factor * logits}, {"eng_Latn": gold})
    assert found == pytest.approx(factor, rel=0.03)
    plain = calibration.temperature({"eng_Latn": logits}, {"eng_Latn": gold})
    assert found == pytest.approx(factor * plain, rel=1e-4)


def test_each_language_counts_the_same_however_many_rows_it_has() -> None:
    (many, right), (few, wrong) = drawn(9000), drawn(3000, seed=1)
    one = calibration.temperature({"a": 3 * many, "b": few}, {"a": right, "b": wrong})
    other = calibration.temperature({"a": 3 * many[:3000], "b": few}, {"a": right[:3000], "b": wrong})
    assert one == pytest.approx(other, rel=0.05)
    assert 1.2 < one < 2.8


def test_a_few_rows_that_are_all_right_do_not_make_answers_certain() -> None:
    logits = np.tile([5.0, 0.0, -1.0], (40, 1))
    found = calibration.temperature({"x": logits}, {"x": np.zeros(40, int)})
    assert calibration.confidence(logits, found)[0] == pytest.approx(41 / 42, abs=0.01)
    all_wrong = calibration.temperature({"x": logits}, {"x": np.ones(40, int)})
    assert calibration.confidence(logits, all_wrong)[0] == pytest.approx(1 / 3, abs=0.01)


def test_labels_that_a_probe_never_saw_have_no_say() -> None:
    logits, gold = drawn(3000)
    logits[:, 4] = ABSENT
    answerable = gold != 4
    alone = calibration.temperature({"x": logits[answerable]}, {"x": gold[answerable]})
    assert calibration.temperature({"x": logits}, {"x": gold}) == pytest.approx(alone, rel=0.01)


def test_without_rows_or_a_choice_nothing_is_changed() -> None:
    assert calibration.temperature({}, {}) == 1
    assert calibration.temperature({"x": np.zeros((0, 3))}, {"x": np.zeros(0, int)}) == 1
    assert calibration.temperature({"x": np.ones((5, 1))}, {"x": np.zeros(5, int)}) == 1
    assert calibration.temperature({"x": np.full((5, 3), ABSENT) * [0, 1, 1]}, {"x": np.ones(5, int)}) == 1


def test_a_confidence_is_the_probability_of_the_best_label() -> None:
    logits, _ = drawn(50)
    for temperature in (0.5, 1.0, 3.0):
        found = calibration.confidence(logits, temperature)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, softmax(logits / temperature, axis=1).max(axis=1), rtol=1e-5)


def test_a_probe_is_calibrated_on_dev_of_its_sources_alone_and_gives_the_same_labels() -> None:
    features, gold = drawn(2000)
    wild, nonsense = drawn(2000, seed=5)[0], np.zeros(2000, int)
    names = {"dev/eng_Latn": (3 * features, gold), "dev/swh_Latn": (wild, nonsense), "test/eng_Latn": (wild, nonsense)}
    held = Frozen({n: f for n, (f, _) in names.items()}, {n: g for n, (_, g) in names.items()}, {
        n: np.arange(2000).astype(str) for n in names
    }, 5)  # fmt: skip
    fitted = Fit(np.eye(5, dtype=np.float32), np.zeros(5, np.float32), 1.0, {}, {})
    one = frozen.fit_temperature(held, fitted, ["eng_Latn", "deu_Latn"])
    assert one.temperature == pytest.approx(3, rel=0.05)
    before, after = (frozen.predict(held, fit, "test")["eng_Latn"] for fit in (fitted, one))
    assert np.array_equal(before.predicted, after.predicted)
    assert before.confidence is not None and after.confidence is not None
    assert (after.confidence < before.confidence).all()
    assert frozen.fit_temperature(held, fitted, ["deu_Latn"]).temperature == 1


# calibration error


def error(confidences: Any, right: Any) -> float:
    cells = calibration.cells(np.array(confidences), np.array(right))
    return float(calibration.expected_errors(*np.unique(cells, return_counts=True)))


def test_the_expected_calibration_error_of_known_answers() -> None:
    assert error([0.75] * 4, [1, 1, 1, 0]) == 0
    assert error([1.0] * 4, [0, 0, 0, 0]) == 1
    assert error([0.9, 0.9, 0.6, 0.6], [1, 0, 1, 1]) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    # within a bin too much and too little make up for each other, between bins they do not
    assert error([0.61, 0.69], [1, 0]) == pytest.approx(0.15)
    assert error([0.59, 0.69], [1, 0]) == pytest.approx((0.41 + 0.69) / 2)
    assert error([0.0, 0.1, 1.0], [0, 0, 1]) == pytest.approx(0.1 / 3)


def test_the_table_of_reliability_counts_every_row_once() -> None:
    cells = calibration.cells(np.array([0.05, 0.1, 0.899, 0.9, 1.0]), np.array([0, 1, 1, 0, 1]))
    table = calibration.reliability(cells)
    assert table[0] == (1, 0, 50) and table[1] == (1, 1, 100) and table[8] == (1, 1, 899) and table[9] == (2, 1, 1900)
    assert sum(row[0] for row in table) == 5
    assert calibration.pooled([table, table])[9] == [4, 2, 3800]
    from_table = sum(abs(1000 * right - sure) for _, right, sure in table) / 5000
    assert from_table == pytest.approx(error([0.05, 0.1, 0.899, 0.9, 1.0], [0, 1, 1, 0, 1]))


def test_what_chance_adds_to_the_error_of_a_perfect_model_is_mostly_taken_off() -> None:
    plain, better = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sure = rng.beta(3, 1, 150)
        cells = calibration.cells(sure, rng.random(150) < sure)
        one = float(calibration.expected_errors(*np.unique(cells, return_counts=True)))
        draws = calibration.expected_errors(*bootstrap.alone("x", cells, 300, seed))
        corrected, moved = calibration.corrected(one, draws)
        assert corrected >= 0 and moved.min() >= 0
        plain.append(one)
        better.append(corrected)
    assert np.mean(plain) > 0.06
    assert np.mean(better) < 0.7 * np.mean(plain)


# scores


def predictions(shift: float = 0.0, rows: int = 400) -> dict[str, Predictions]:
    """Make predictions up whose confidence is `shift` more than how often they are right."""
    found = {}
    for number, code in enumerate(("eng_Latn", "swh_Latn", "yor_Latn")):
        rng = np.random.default_rng(number)
        chance = rng.uniform(0.3, 0.95 - shift, rows)
        predicted = np.where(rng.random(rows) < chance, 0, 1)
        sure = (chance + shift).astype(np.float32)
        found[code] = Predictions(np.zeros(rows, int), predicted, [f"{code}{i}" for i in range(rows)], sure)
    return found


def score(found: dict[str, Predictions]) -> Scores:
    roles = Roles(("eng_Latn",), seen=frozenset({"eng_Latn", "swh_Latn"}))
    return metrics.score(found, ("a", "b"), roles, 300, 0)


def test_scores_tell_the_calibration_error_of_every_language_and_the_means() -> None:
    for shift in (0.0, 0.2):
        scores = score(predictions(shift))
        errors = []
        for one in scores.languages.values():
            low, found, high = one.calibration_error_low, one.calibration_error, one.calibration_error_high
            assert low is not None and found is not None and high is not None and one.reliability is not None
            errors.append(found)
            assert found == pytest.approx(shift, abs=0.06) and low <= found <= high
            assert sum(row[0] for row in one.reliability) == one.support
            assert sum(row[1] for row in one.reliability) == round(one.accuracy * one.support)
        summary = scores.summary
        assert summary["calibration_error/mean"] == pytest.approx(np.mean(errors))
        assert summary["calibration_error/mean_zero_shot"] == pytest.approx(np.mean(errors[1:]))
        assert summary["calibration_error/mean_unseen"] == errors[2]
        assert summary["calibration_error/worst"] == max(errors)
        for key in ("mean", "mean_zero_shot"):
            low, high = (summary[f"calibration_error/{key}_{end}"] for end in ("low", "high"))
            assert low <= summary[f"calibration_error/{key}"] <= high
        assert Scores.from_json(scores.to_json()) == scores


def test_confidences_change_nothing_else_that_is_measured() -> None:
    found = predictions()
    without = score({code: Predictions(one.gold, one.predicted, one.ids) for code, one in found.items()})
    scores = score(found)
    rest = {key: value for key, value in scores.summary.items() if not key.startswith("calibration_error")}
    assert rest == without.summary
    for code, one in without.languages.items():
        assert one.calibration_error is None and one.reliability is None
        other = scores.languages[code]
        assert (one.accuracy, one.accuracy_low, one.macro_f1_high) == (
            other.accuracy, other.accuracy_low, other.macro_f1_high,
        )  # fmt: skip


def test_files_written_before_there_were_confidences_are_read(tmp_path: Any) -> None:
    found = {code: Predictions(one.gold, one.predicted, one.ids) for code, one in predictions().items()}
    save_predictions(tmp_path / "old.npz", found)
    loaded = load_predictions(tmp_path / "old.npz")
    assert all(one.confidence is None for one in loaded.values())
    scores = score(loaded)
    text = scores.to_json().replace(' "temperature": 1.0,\n', "")
    for name in ("calibration_error", "calibration_error_low", "calibration_error_high", "reliability"):
        text = text.replace(f', "{name}": null', "")
    assert "reliability" not in text and "temperature" not in text
    assert Scores.from_json(text) == scores
    save_predictions(tmp_path / "new.npz", predictions())
    new = load_predictions(tmp_path / "new.npz")
    assert score(new) == score(predictions())


@pytest.mark.parametrize("sure", [[0.5], [0.5, 1.5], [0.5, np.nan]])
def test_what_is_no_confidence_is_refused(sure: list[float]) -> None:
    rows = Predictions(np.zeros(2, int), np.zeros(2, int), ["a", "b"], np.array(sure))
    with pytest.raises(InputError, match="eng_Latn: confidence must be a number from 0 to 1 for each row"):
        score({"eng_Latn": rows})


# what is reported of it


TABLE = [[0, 0, 0]] * 5 + [[8, 3, 4400], [6, 4, 3900], [10, 7, 7500], [30, 25, 25500], [100, 98, 97000]]


def test_answers_as_confident_are_counted_over_as_many_bins_as_it_takes() -> None:
    assert calibration.like(TABLE, 0.87) == {"low": 0.8, "high": 0.9, "rows": 30, "right": 25}
    assert calibration.like(TABLE, 1.0) == {"low": 0.9, "high": 1.0, "rows": 100, "right": 98}
    assert calibration.like(TABLE, 0.65) == {"low": 0.5, "high": 0.8, "rows": 24, "right": 14}
    assert calibration.like(TABLE, 0.0) == {"low": 0.0, "high": 0.8, "rows": 24, "right": 14}
    few = [[0, 0, 0]] * 9 + [[3, 2, 2900]]
    assert calibration.like(few, 0.2) == {"low": 0.0, "high": 1.0, "rows": 3, "right": 2}
    assert calibration.like([[0, 0, 0]] * 10, 0.5) is None


def test_what_abstaining_brings() -> None:
    assert calibration.answered(TABLE, 0.0) == (1, pytest.approx(137 / 154))
    assert calibration.answered(TABLE, 0.8) == (pytest.approx(130 / 154), pytest.approx(123 / 130))
    assert calibration.answered(TABLE[:5] + [[0, 0, 0]] * 5, 0.5) == (0, None)
    assert calibration.answered([[4, 1, 200]] + [[0, 0, 0]] * 9, 0.5) == (0, None)
