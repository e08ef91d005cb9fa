"""Resample test rows with replacement, which is the bootstrap behind every interval.

A statistic is computed on counts of cells. A cell is all that counts of a row: of classification a pair (gold class,
predicted class), of other tasks several numbers, for comparisons which model was right. Counts are (cells, resamples)
arrays: drawing rows with replacement is drawing counts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import sparse

TAILS = (0.025, 0.975)  # of the 95% interval
_ELEMENTS = 4_000_000  # weights held at once: 32 MB


def alone(code: str, cells: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Resample one language's rows, (rows,) or (rows, numbers); return the cells that occur, k, and counts of them.

    The counts are (k, resamples).

    Drawing n rows with replacement is one multinomial draw over the cells. The generator's address holds the language,
    so an interval does not depend on which other languages are measured beside it.
    """
    kinds, _, counts = distinct(cells)
    rng = np.random.default_rng([seed, zlib.crc32(code.encode())])
    return kinds, np.ascontiguousarray(rng.multinomial(len(cells), counts / len(cells), size=resamples).T)


def distinct(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cells that occur, sorted, the place of every row's among them, (rows,), and how often each does."""
    axis = None if cells.ndim == 1 else 0
    kinds, places, counts = np.unique(cells, return_inverse=True, return_counts=True, axis=axis)
    return kinds, places.reshape(-1), counts


def shared(ids: Mapping[str, np.ndarray]) -> bool:
    """Return whether any row id occurs in more than one language."""
    each = [np.unique(one) for one in ids.values()]
    return len(np.unique(np.concatenate(each))) < sum(map(len, each))


def together(
    cells: Mapping[str, np.ndarray],
    ids: Mapping[str, np.ndarray],
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    resamples: int,
    seed: int | Sequence[int],
) -> dict[str, np.ndarray]:
    """Resample row ids, the same ones for every language; return language -> what is measured (statistics, resamples).

    An id that only some languages have is a cluster of fewer rows.
    """
    items, position = np.unique(np.concatenate([ids[code] for code in cells]), return_inverse=True)
    ends = np.cumsum([len(cells[code]) for code in cells])[:-1]
    incidence = {}
    for code, where in zip(cells, np.split(position, ends), strict=True):
        kinds, kind, _ = distinct(cells[code])
        entries = (np.ones(len(kind), np.int64), (kind, where))
        incidence[code] = kinds, sparse.csr_array(entries, shape=(len(kinds), len(items)))
    rng = np.random.default_rng(seed)
    step = max(1, _ELEMENTS // len(items))
    parts: dict[str, list[np.ndarray]] = {code: [] for code in cells}
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(len(items), size=(size, len(items))) * size + np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=len(items) * size).reshape(len(items), size)
        for code, (kinds, table) in incidence.items():
            parts[code].append(measure(kinds, table @ weights))
    return {code: np.concatenate(part, axis=-1) for code, part in parts.items()}


def resampled(
    cells: Mapping[str, np.ndarray],
    ids: Mapping[str, np.ndarray],
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    resamples: int,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Resample every language `alone`, for its own interval, and as `for_means` does."""
    each = {code: measure(*alone(code, cells[code], resamples, seed)) for code in cells}
    return each, together(cells, ids, measure, resamples, seed) if shared(ids) else each


def for_means(
    cells: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Resample numbers, one a row, for means over languages: language -> averages (resamples,).

    Languages that share row ids take the same ones, because an item that is hard is hard in all of them.
    """
    if shared(ids):
        return together(cells, ids, share, resamples, seed)
    return {code: share(*alone(code, rows, resamples, seed)) for code, rows in cells.items()}


def mean(draws: np.ndarray) -> np.ndarray:
    """Average (languages, resamples) over languages; NaN, a language of which no row was drawn, is left out."""
    there = ~np.isnan(draws)
    total, languages = np.where(there, draws, 0.0).sum(axis=0), there.sum(axis=0)
    return np.divide(total, languages, out=np.full(total.shape, np.nan), where=languages > 0)


def share(kinds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average numbers over the rows drawn: the mean (resamples,) of kinds (k,) counted (k, resamples)."""
    rows = counts.sum(axis=0)
    return np.divide(kinds @ counts, rows, out=np.full(rows.shape, np.nan), where=rows > 0)
