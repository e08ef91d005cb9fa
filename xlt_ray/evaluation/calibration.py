"""Calibration: let a confidence be right as often as it says, and count how often answers of each confidence are.

A confidence is the probability of the label that is given, softmax(logits / temperature). The temperature is a number
fitted on dev rows of the sources; it changes no label. It cannot know that a model is less sure to be right in a
language it saw no label of; that is measured on test, as a table of reliability for every language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

BINS = 10  # of confidence, equally wide
LEVELS = 1000  # confidences are counted in thousandths, so that everything below works on whole numbers
ENOUGH = 20  # rows that a share of right answers is told of, where there are so many
LARGEST = 1000.0  # a temperature, and its inverse, stay below
IMPOSSIBLE = 1000.0  # logits below the best: a label that no train row has, which no temperature makes likely

Reliability = Sequence[Sequence[int]]  # for each bin: rows, right answers, sum of confidences in thousandths


def temperature(logits: Mapping[str, np.ndarray], gold: Mapping[str, np.ndarray]) -> float:
    """Fit the temperature that minimises the cross-entropy of dev rows, each language counting the same.

    `logits` is (rows, labels) a language, `gold` (rows,) indices of labels. Above 1 it makes answers less sure, below 1
    surer, and 1 leaves them alone: that is what comes of no rows. So that a few dev rows that are all right do not make
    every answer certain, 1 / (n + 2) of each of n rows counts for the likeliest label besides its gold one, as in Platt
    1999, "Probabilistic outputs for support vector machines", section 2.2. Source: Guo et al. 2017, "On calibration of
    modern neural networks", section 4.2.

    >>> logits = np.log([[0.8, 0.2]] * 1000)
    >>> round(temperature({"x": 3 * logits}, {"x": np.arange(1000) % 5 // 4}), 1)
    3.0
    """
    from scipy.optimize import minimize_scalar  # a server, which only answers, does without scipy

    tables, aims, weights = [], [], []
    total = sum(map(len, gold.values()))
    for code, scores in logits.items():
        table = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
        rows, labels = np.arange(len(table)), gold[code]
        answerable = table[rows, labels] > -IMPOSSIBLE
        if scores.shape[1] < 2 or not answerable.any():
            continue
        others = table.copy()
        others[rows, labels] = -np.inf
        aim = ((total + 1) * table[rows, labels] + others.max(axis=1)) / (total + 2)
        tables.append(table[answerable])
        aims.append(aim[answerable])
        weights.append(np.full(answerable.sum(), 1 / answerable.sum()))
    if not tables:
        return 1.0
    table, aim, weight = np.concatenate(tables), np.concatenate(aims), np.concatenate(weights)

    def cross_entropy(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float(weight @ (np.log(np.exp(table * inverse).sum(axis=1)) - aim * inverse))

    edge = np.log(LARGEST)
    found = minimize_scalar(cross_entropy, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Give the probability of the best label of every row: (rows, labels) logits to (rows,) float32."""
    scaled = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64) / temperature
    return (1 / np.exp(scaled).sum(axis=1)).astype(np.float32)


def cells(confidences: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number what counts of a row, (rows,) int64: its confidence in thousandths, and whether its answer is right."""
    return 2 * np.rint(LEVELS * np.asarray(confidences, dtype=np.float64)).astype(np.int64) + right


def reliability(cells: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Count, for each of BINS equal parts of 0 to 1: rows, right answers, and the sum of confidences in thousandths."""
    levels, right = np.divmod(cells, 2)
    parts = [np.bincount(_bins(levels), weights, BINS) for weights in (None, right, levels)]
    return tuple(tuple(int(number) for number in row) for row in zip(*parts, strict=True))


def _bins(levels: np.ndarray) -> np.ndarray:
    return np.minimum(levels * BINS // LEVELS, BINS - 1)


def pooled(tables: Iterable[Reliability]) -> Reliability:
    """Add up tables of reliability, so that every row counts the same."""
    added = np.zeros((BINS, 3), dtype=np.int64)
    for table in tables:
        added += np.asarray(table)
    return [[int(number) for number in row] for row in added]


def expected_errors(kinds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compute the expected calibration error of resampled rows: cells (k,), counts (k, resamples) to (resamples,).

    In each of BINS equally wide bins, how far the mean confidence is from the share of right answers; of that the mean,
    weighted by rows. 0 is right as often as it says, in every bin. Source: Guo et al. 2017, equation 3.

    >>> expected_errors(cells(np.array([0.95, 0.95, 0.55, 0.55]), np.array([1, 0, 1, 0])), np.ones(4)).tolist()
    0.25
    """
    levels, right = np.divmod(kinds, 2)
    bins, apart, rows = _bins(levels), LEVELS * right - levels, counts.sum(axis=0)
    gaps = sum(np.abs(apart[bins == one] @ counts[bins == one]) for one in range(BINS))
    return np.divide(gaps / LEVELS, rows, out=np.full(rows.shape, np.nan), where=rows > 0)


def corrected(error: float, draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Take the bias off an expected calibration error, and off draws of it, by what resampling adds to it.

    Chance alone keeps a share of few rows away from its confidence, so a perfect model would seem to err, the more the
    fewer rows. Resampling adds that once more, and what it adds is taken off. Kumar, Liang and Ma 2019, "Verified
    uncertainty calibration", do the same by normal approximation. Neither goes below 0.
    """
    bias = float(np.nanmean(draws)) - error
    return max(0.0, error - bias), np.clip(draws - 2 * bias, 0, 1)


def like(table: Reliability, confidence: float) -> dict[str, float | int] | None:
    """Say how often answers of a confidence like this were right: `rows` from `low` to `high`, and how many `right`.

    That is the bin it lies in, with as many to both sides as ENOUGH rows take; None where there is no row at all.
    """
    first = last = int(_bins(np.rint(LEVELS * np.float64(confidence)).astype(np.int64)))
    while sum(row[0] for row in table[first : last + 1]) < ENOUGH and (first > 0 or last < BINS - 1):
        first, last = max(0, first - 1), min(BINS - 1, last + 1)
    rows, right = (sum(row[i] for row in table[first : last + 1]) for i in (0, 1))
    return {"low": first / BINS, "high": (last + 1) / BINS, "rows": rows, "right": right} if rows else None


def answered(table: Reliability, least: float) -> tuple[float, float | None]:
    """Say what abstaining below a confidence, one of tenths, brings: share of rows answered, and share of these right.

    The second is None where nothing is answered.
    """
    kept = table[round(least * BINS) :]
    rows, right, total = sum(row[0] for row in kept), sum(row[1] for row in kept), sum(row[0] for row in table)
    return rows / total if total else 0.0, right / rows if rows else None
