"""Measure whether texts find their translations by their features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CHUNK = 1024  # rows compared at once with all others, so that memory does not grow with the square
NEIGHBOURS = 4  # of Artetxe and Schwenk 2019


class Retrieval(NamedTuple):
    """How often a text's translation is found among those of all others, each a share from 0 to 1."""

    forward: float  # precision at 1, from the rows to the others
    backward: float
    xsim: float  # share of the rows whose translation has not the largest margin


def retrieval(rows: np.ndarray, others: np.ndarray) -> Retrieval:
    """Measure features (rows, width) of texts and of their translations, in the same order, by cosine.

    Each side has its own mean taken away first, as languages lie apart. `xsim` is the error of Heffernan et al. 2022
    ("Bitext mining using distilled sentence representations"): the margin is the cosine divided by the mean of those to
    the nearest four of either side (Artetxe and Schwenk 2019, "Margin-based parallel corpus mining", equation 2). Of
    equal ones the first counts.
    """
    one, other = (_directions(side) for side in (rows, others))
    near, near_other = _nearest(one, other), _nearest(other, one)
    right = np.arange(len(one))
    found = [_best(one, other), _best(other, one), _best(one, other, near, near_other)]
    forward, backward, margin = (float((best == right).mean()) for best in found)
    return Retrieval(forward, backward, 1 - margin)


def _directions(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(0)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12))


def _nearest(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the mean cosine of each row to its nearest others, (rows,)."""
    count = min(NEIGHBOURS, len(others))
    found = []
    for start in range(0, len(rows), CHUNK):
        cosines = rows[start : start + CHUNK] @ others.T
        found.append(np.partition(cosines, -count, axis=1)[:, -count:].mean(1))
    return np.concatenate(found)


def _best(
    rows: np.ndarray, others: np.ndarray, near: np.ndarray | None = None, near_other: np.ndarray | None = None
) -> np.ndarray:
    """Return the place of the other with the largest cosine, or margin where it is known what is near, (rows,)."""
    found = []
    for start in range(0, len(rows), CHUNK):
        scores = rows[start : start + CHUNK] @ others.T
        if near is not None and near_other is not None:
            scores = scores / np.maximum((near[start : start + CHUNK, None] + near_other) / 2, 1e-12)
        found.append(scores.argmax(1))
    return np.concatenate(found)
