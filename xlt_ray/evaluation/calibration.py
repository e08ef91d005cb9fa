"""Calibrate confidences, so that an answer of confidence p is right with frequency p, and measure how far they are so.

A confidence is the probability of the predicted label, softmax(logits / temperature). The temperature is a number
fitted on dev rows of the sources; it changes no label. It cannot know that a model is less often right in a language
of which it saw no label; that is measured on test, as a table of reliability for every language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

BINS = 10  # of confidence, equally wide
LEVELS = 1000  # confidences are counted in thousandths, so that everything below works on whole numbers
ENOUGH = 20  # rows that a share of right answers is taken over, where there are so many
LARGEST = 1000.0  # a temperature, and its inverse, stay below
IMPOSSIBLE = 1000.0  # logits below the best: a label that no train row has, which no temperature makes likely

Reliability = Sequence[Sequence[int]]  # for each bin: rows, right answers, sum of confidences in thousandths


def temperature(logits: Mapping[str, np.ndarray], gold: Mapping[str, np.ndarray]) -> float:
    """Fit the temperature that minimises the cross-entropy of dev rows, each language counting the same.

    `logits` is (rows, labels) a language, `gold` (rows,) indices of labels. Above 1 it lowers confidences, below 1 it
    raises them; with no rows it is 1, which leaves them alone. So that a few dev rows that are all right do not make
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
    """Return the probability of the best label of every row: (rows, labels) logits to (rows,) float32."""
    scaled = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64) / temperature
    return (1 / np.exp(scaled).sum(axis=1)).astype(np.float32)


def cells(confidences: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Encode confidence in thousandths and whether the answer is right as one number a row, (rows,) int64."""
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
    """Return the expected calibration error of resampled rows: cells (k,), counts (k, resamples) to (resamples,).

    That is the distance of the mean confidence from the share of right answers in each of BINS equally wide bins,
    averaged with the rows as weights; 0 is perfect calibration in every bin. Source: Guo et al. 2017, equation 3.

    >>> expected_errors(cells(np.array([0.95, 0.95, 0.55, 0.55]), np.array([1, 0, 1, 0])), np.ones(4)).tolist()
    0.25
    """
    levels, right = np.divmod(kinds, 2)
    bins, apart, rows = _bins(levels), LEVELS * right - levels, counts.sum(axis=0)
    gaps = sum(np.abs(apart[bins == one] @ counts[bins == one]) for one in range(BINS))
    return np.divide(gaps / LEVELS, rows, out=np.full(rows.shape, np.nan), where=rows > 0)


def corrected(error: float, draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Remove the bias of an expected calibration error, and of resampled ones, estimated by what resampling adds.

    Chance alone keeps a share of few rows away from its confidence, so a perfectly calibrated model would seem to err,
    the more the fewer rows. Resampling adds that error once more, which estimates it. Kumar, Liang and Ma 2019,
    "Verified uncertainty calibration", do the same by normal approximation. Neither goes below 0.
    """
    bias = float(np.nanmean(draws)) - error
    return max(0.0, error - bias), np.clip(draws - 2 * bias, 0, 1)


def like(table: Reliability, confidence: float) -> dict[str, float | int] | None:
    """Return how often answers of about this confidence were right: `rows` from `low` to `high`, of them `right`.

    Counted are its bin and as many to both sides as make up ENOUGH rows; None where there is no row at all.
    """
    first = last = int(_bins(np.rint(LEVELS * np.float64(confidence)).astype(np.int64)))
    while sum(row[0] for row in table[first : last + 1]) < ENOUGH and (first > 0 or last < BINS - 1):
        first, last = max(0, first - 1), min(BINS - 1, last + 1)
    rows, right = (sum(row[i] for row in table[first : last + 1]) for i in (0, 1))
    return {"low": first / BINS, "high": (last + 1) / BINS, "rows": rows, "right": right} if rows else None


def answered(table: Reliability, least: float) -> tuple[float, float | None]:
    """Return the share of rows answered when abstaining below a confidence, in tenths, and the share of these right.

    The second is None where nothing is answered.
    """
    kept = table[round(least * BINS) :]
    rows, right, total = sum(row[0] for row in kept), sum(row[1] for row in kept), sum(row[0] for row in table)
    return rows / total if total else 0.0, right / rows if rows else None
