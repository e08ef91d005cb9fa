"""Measure how alike an encoder lays out texts and their translations, and what that tells of transfer.

Features are arrays (rows, width), those of texts and those of their translations in the same order. Nothing here reads
a label but `gaps`, which is of rows that were measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from xlt_ray.evaluation import bootstrap
from xlt_ray.evaluation.predictions import Predictions

FEWEST = 8  # languages below which a rank correlation has no interval
COMMON, ALIKE = 20, 0.9  # rows of test that are held against the pivot's, and the share of these with its label
TEMPERATURES = tuple(float(t) for t in np.geomspace(0.01, 1, 13))  # of `information`
ITERATIONS = 100  # of a probe for languages: where it can tell them apart, more change its confidence alone


def cka(rows: np.ndarray, others: np.ndarray) -> float:
    """Return the debiased linear centred kernel alignment of features (rows, any width) of texts and translations.

    1 for features that are equal but for a rotation, a shift and a scale; about 0, on either side, for features that
    have nothing in common. The index is that of Kornblith et al. 2019 (arXiv 1905.00414, equation 4); its products are
    the unbiased ones of Song et al. 2012 ("Feature selection via dependence maximization", HSIC_1), as Nguyen et al.
    2021 (arXiv 2010.15327) and Murphy et al. 2024 (arXiv 2405.01012) have it. With the plain products even unrelated
    features score near 1 once rows are fewer than dimensions. Needs 4 rows.

    >>> points = np.array([[0.0, 1.0], [2.0, 0.5], [1.0, 4.0], [3.0, 3.0], [5.0, 1.0]])
    >>> round(cka(points, 7 - 3 * points[:, ::-1]), 6)
    1.0
    """
    one, other = (_between(side) for side in (rows, others))
    return float((one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum()))


def _between(features: np.ndarray) -> np.ndarray:
    # the products of different rows, centred so that sums over rows are 0 without the diagonal; the inner product of
    # two such tables is n (n - 3) HSIC_1
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    found, count = centred @ centred.T, len(features)
    np.fill_diagonal(found, 0)
    sums = found.sum(0)
    found += sums.sum() / ((count - 1) * (count - 2)) - (sums[:, None] + sums) / (count - 2)
    np.fill_diagonal(found, 0)
    return np.asarray(found)


class Information(NamedTuple):
    """A lower bound on the mutual information of texts and translations, in nats; it cannot exceed `most`."""

    bound: float
    most: float  # the logarithm of the rows it was evaluated on
    temperature: float


def information(rows: np.ndarray, others: np.ndarray, fit: np.ndarray) -> Information:
    """Bound the mutual information of the features of texts and of their translations from below, by InfoNCE.

    The critic is the cosine about the mean of either side, divided by a temperature. Means and temperature are those of
    the rows in `fit`, (rows,) bool, and the bound is evaluated on the others, so that it is one in expectation, for an
    encoder that has not learned from these; it is the mean of both directions. van den Oord et al. 2018 (arXiv
    1807.03748); Poole et al. 2019 (arXiv 1905.06922, equation 10).
    """
    centred = [side - side[fit].mean(0) for side in (rows, others)]
    one, other = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in centred)

    def bound(chosen: np.ndarray, temperature: float) -> float:
        scores = (one[chosen] @ other[chosen].T).astype(np.float64) / temperature
        ways = [float((scores.diagonal() - logsumexp(scores, axis=axis)).mean()) for axis in (0, 1)]
        return float(np.log(len(scores))) + sum(ways) / 2

    best = max(TEMPERATURES, key=lambda temperature: bound(fit, temperature))
    return Information(bound(~fit, best), float(np.log((~fit).sum())), best)


def language_probe(features: Mapping[str, np.ndarray], fit: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return how often a fresh linear probe recognises each language by its features (rows, width).

    It is fitted on the rows in `fit`, (rows,) bool by language, and measured on the others; where translations are on
    the same side in all languages it cannot know a language by what a text is about. With as many rows of each, 1 /
    languages is chance.
    """
    labels = np.repeat([*features], [int(fit[code].sum()) for code in features])
    rows = np.concatenate([found[fit[code]] for code, found in features.items()])
    scale = StandardScaler().fit(rows)
    probe = LogisticRegression(C=0.1, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(scale.transform(rows), labels)
    asked = {code: scale.transform(found[~fit[code]]) for code, found in features.items()}
    return {code: float((probe.predict(found) == code).mean()) for code, found in asked.items()}


def mean_cosine(features: np.ndarray) -> float:
    """Return the mean cosine of two different rows: 0 where directions are spread evenly, 1 where all are one.

    Ethayarajh 2019 (arXiv 1909.00512) calls it anisotropy.

    >>> mean_cosine(np.array([[1.0, 0.0], [2.0, 0.0]])), mean_cosine(np.array([[1.0, 0.0], [0.0, 3.0]]))
    (1.0, 0.0)
    """
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    count = len(units)
    return float((np.square(units.sum(0, dtype=np.float64)).sum() - count) / (count * (count - 1)))


def dimensions(features: np.ndarray) -> float:
    """Return the participation ratio of features: 1 where they vary along a line, `width` where evenly in all ways.

    It is the squared sum of the variances along principal axes by the sum of their squares (Gao et al. 2017, "A theory
    of multineuronal dimensionality"), and less than the number of rows, so compare it at equal numbers alone.

    >>> dimensions(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    2.0
    """
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    products = centred @ centred.T  # its trace and its squares sum up the variances and their squares
    return float(np.trace(products) ** 2 / max(np.square(products).sum(), 1e-300))


def plane(features: np.ndarray) -> np.ndarray:
    """Project features onto their two main axes: (rows, width) to (rows, 2)."""
    centred = features - features.mean(0)
    return np.asarray(centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T)


class Ranked(NamedTuple):
    """A rank correlation over languages, with the 95% interval of a bootstrap that draws languages."""

    value: float
    low: float
    high: float


def spearman(one: np.ndarray, other: np.ndarray, resamples: int, seed: int) -> Ranked:
    """Return Spearman's correlation of two figures of languages, (languages,) each; nan where they are under three.

    There is no interval of fewer than FEWEST.

    >>> spearman(np.arange(9.0), np.arange(9.0) ** 2, 100, 0).value
    1.0
    """
    if len(one) < 3 or not np.ptp(one) or not np.ptp(other):
        return Ranked(np.nan, np.nan, np.nan)
    drawn = np.random.default_rng(seed).integers(len(one), size=(resamples, len(one)))
    ranks = [stats.rankdata(side[drawn], axis=1) for side in (one, other)]
    first, second = (side - side.mean(1, keepdims=True) for side in ranks)
    scale = np.sqrt(np.square(first).sum(1) * np.square(second).sum(1))
    draws = np.divide((first * second).sum(1), scale, out=np.full(resamples, np.nan), where=scale > 0)
    value = float(stats.spearmanr(one, other).statistic)
    if len(one) < FEWEST:  # a few in order are in order however they are drawn
        return Ranked(value, np.nan, np.nan)
    return Ranked(value, *(float(np.nanquantile(draws, tail)) for tail in bootstrap.TAILS))


class Gap(NamedTuple):
    """A language beside the pivot on the test rows that both have, (rows,): what is lost, where they differ, and ids.

    `lost` is 1 where the pivot alone was right and -1 where the language alone was, so its mean is the gap in accuracy.
    `apart` is 1 where predictions differ. They do where |lost| is 1, hence |gap| <= disagreement on the same rows.
    """

    lost: np.ndarray
    apart: np.ndarray
    ids: np.ndarray


def gaps(predictions: Mapping[str, Predictions], pivot: str) -> dict[str, Gap]:
    """Compare predictions on test rows with those on the pivot's rows of equal id and label.

    Left out are languages of which too few rows have an id of the pivot's, or the same label there.
    """
    found: dict[str, Gap] = {}
    if (first := predictions.get(pivot)) is None:
        return found
    for code, one in predictions.items():
        ids, mine, theirs = np.intersect1d(one.ids, first.ids, return_indices=True)
        same = one.gold[mine] == first.gold[theirs]
        if code == pivot or len(ids) < COMMON or same.mean() < ALIKE:  # else ids are equal by chance
            continue
        ids, mine, theirs = ids[same], mine[same], theirs[same]
        gold, answers = one.gold[mine], (one.predicted[mine], first.predicted[theirs])
        lost = (answers[1] == gold).astype(np.int64) - (answers[0] == gold)
        found[code] = Gap(lost, (answers[0] != answers[1]).astype(np.int64), ids)
    return found
