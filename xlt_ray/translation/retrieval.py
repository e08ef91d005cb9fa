"""Measure whether texts find their translations by their features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

CHUNK = 1024  # rows compared at once with all others, so that memory does not grow with the square
NEIGHBOURS = 4  # of Artetxe and Schwenk 2019
NEAREST = 10  # of Conneau et al. 2018


class Retrieval(NamedTuple):
    """How often a text's translation is found among those of all others by cosine, each a share from 0 to 1."""

    forward: float  # precision at 1, from the rows to the others
    backward: float
    xsim: float  # share of the rows whose translation has not the largest margin


class ByScale(NamedTuple):
    """The same by cross-domain similarity local scaling (CSLS)."""

    forward: float
    backward: float


def retrieval(rows: np.ndarray, others: np.ndarray) -> Retrieval:
    """Measure features (rows, width) of texts and of their translations, in the same order, by cosine.

    Each side has its own mean taken away first, as languages lie apart. `xsim` is the error of Heffernan et al. 2022
    ("Bitext mining using distilled sentence representations"): the margin is the cosine divided by the mean of those to
    the nearest four of either side (Artetxe and Schwenk 2019, "Margin-based parallel corpus mining", equation 2). Of
    equal ones the first counts.
    """
    one, other = (_directions(side) for side in (rows, others))
    near, near_other = _nearest(one, other), _nearest(other, one)
    forward, backward = _share(_cosines(one, other)), _share(_cosines(other, one))
    parts = zip(np.split(near, range(CHUNK, len(near), CHUNK)), _cosines(one, other), strict=True)
    margins = (cosines / np.maximum((own[:, None] + near_other) / 2, 1e-12) for own, cosines in parts)
    return Retrieval(forward, backward, 1 - _share(margins))


def by_scale(rows: np.ndarray, others: np.ndarray) -> ByScale:
    """Measure features as `retrieval` does, but find by twice the cosine less what is usual around both texts.

    That is the mean of the cosines to the nearest ten of the other side (Conneau et al. 2018, "Word translation without
    parallel data", equation 7), so that a text which is near to everything is not found by everyone.
    """
    one, other = (_directions(side) for side in (rows, others))
    near, near_other = _nearest(one, other, NEAREST), _nearest(other, one, NEAREST)
    # what is usual around the text that asks is the same for all that it may find
    return ByScale(
        _share(2 * cosines - near_other for cosines in _cosines(one, other)),
        _share(2 * cosines - near for cosines in _cosines(other, one)),
    )


def _directions(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(0)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12))


def _cosines(rows: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the cosines of rows to all others, some rows at a time: (some rows, others)."""
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK] @ others.T


def _nearest(rows: np.ndarray, others: np.ndarray, most: int = NEIGHBOURS) -> np.ndarray:
    """Return the mean cosine of each row to its nearest others, (rows,)."""
    count = min(most, len(others))
    return np.concatenate(
        [np.partition(cosines, -count, axis=1)[:, -count:].mean(1) for cosines in _cosines(rows, others)]
    )


def _share(scores: Iterable[np.ndarray]) -> float:
    """Return how often the other of the same place has the largest score, which some rows after others give."""
    best = np.concatenate([part.argmax(1) for part in scores])
    return float((best == np.arange(len(best))).mean())
