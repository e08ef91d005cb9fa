"""Retrieval of translations by features: what is found is what looking at all pairs finds."""

from __future__ import annotations

import numpy as np
import pytest

from xlt_ray.translation import retrieval as module
from xlt_ray.translation.retrieval import by_scale, retrieval


def brute(rows: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    one, other = (side - side.mean(0) for side in (rows, others))
    cosine = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in other] for a in one])
    right = np.arange(len(rows))
    near = [np.sort(side, axis=1)[:, -4:].mean(1) for side in (cosine, cosine.T)]
    margin = cosine / ((near[0][:, None] + near[1][None, :]) / 2)
    found = [float((best == right).mean()) for best in (cosine.argmax(1), cosine.argmax(0), margin.argmax(1))]
    return found[0], found[1], 1 - found[2]


@pytest.mark.parametrize("chunk", [7, 1024])
def test_it_finds_what_comparing_all_pairs_finds(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 12)) + 5
    others = rows + 0.9 * rng.normal(size=(60, 12)) - 3
    found = retrieval(rows, others)
    assert tuple(found) == pytest.approx(brute(rows, others))
    assert 0.1 < found.forward < 1 and 0 < found.xsim < 0.9


@pytest.mark.parametrize("chunk", [7, 1024])
def test_by_scale_takes_away_what_is_usual_around_both_texts(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 12))
    others = rows + 0.9 * rng.normal(size=(60, 12))
    others[7] = others.mean(0) + 0.1 * others.sum(0)  # near to many
    one, other = (side - side.mean(0) for side in (rows, others))
    cosine = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in other] for a in one])
    usual = [np.sort(side, axis=1)[:, -10:].mean(1) for side in (cosine, cosine.T)]
    scores = 2 * cosine - usual[0][:, None] - usual[1][None, :]
    right = np.arange(60)
    wanted = [float((best == right).mean()) for best in (scores.argmax(1), scores.argmax(0))]
    assert tuple(by_scale(rows, others)) == pytest.approx(wanted)
    assert by_scale(rows, others).forward != retrieval(rows, others).forward


def test_a_shift_of_a_language_hides_nothing() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 8))
    assert retrieval(rows, rows + 100) == (1.0, 1.0, 0.0)


def test_features_that_are_all_the_same_find_nothing() -> None:
    found = retrieval(np.ones((20, 4)), np.random.default_rng(0).normal(size=(20, 4)))
    assert found.forward == found.backward == 1 / 20 and found.xsim == 19 / 20


def test_a_single_pair_finds_itself() -> None:
    assert retrieval(np.ones((1, 4)), np.ones((1, 4))) == (1.0, 1.0, 0.0)
