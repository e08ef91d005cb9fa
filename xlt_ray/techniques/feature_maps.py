"""Estimate linear maps of features of one language onto features of their translations in another.

A map takes x, less the mean of its language, to x (I + D). Mapping one space onto another by translations is the oldest
cross-lingual alignment (Mikolov et al. 2013, "Exploiting similarities among languages for machine translation"; Artetxe
et al. 2016, "Learning principled bilingual mappings of word embeddings", compares estimators). Sentences of one encoder
lie near each other to begin with, so what is estimated here is the deviation D from the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# of a ridge map, relative to the mean eigenvalue of the Gram matrix of the features
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Estimate(NamedTuple):
    """A map as what it adds to the identity, D (width, width), and figures of how it was estimated."""

    added: np.ndarray
    figures: Mapping[str, float]


def ridge(features: np.ndarray, wanted: np.ndarray, penalties: Sequence[float] = PENALTIES) -> Estimate:
    """Estimate a map by ridge regression towards the identity from features of translations, (pairs, width) each.

    D minimises |X (I + D) - Y|^2 + penalty * unit * |D|^2, X and Y being the features less their means and `unit` the
    mean eigenvalue of X X'. A large penalty leaves D = 0, a small one trusts the pairs. Of the penalties that one is
    taken whose maps, each estimated without one pair, are nearest to the `wanted` features of that pair. This error is
    exact and needs one decomposition alone: the residual of a pair divided by one less its leverage (Allen 1974).

    Figures: `penalty_log10`, and `distance_left`, that error as a share of the one of D = 0.
    """
    x, y = (one - one.mean(0, dtype=np.float64) for one in (features, wanted))
    left, sizes, right = np.linalg.svd(x, full_matrices=False)
    missing, powers = y - x, sizes**2
    unit, turned = powers.sum() / len(x) or 1.0, left.T @ missing
    errors = {}
    for penalty in (*penalties, np.inf):
        kept = powers / (powers + penalty * unit)
        leverage = (left**2) @ kept + 1 / len(x)  # the means are estimated too
        residual = missing - left @ (kept[:, None] * turned)
        errors[penalty] = float(((residual / (1 - leverage)[:, None]) ** 2).sum())
    best = min(penalties, key=errors.__getitem__)
    added = right.T @ ((sizes / (powers + best * unit))[:, None] * turned)
    share = errors[best] / errors[np.inf] if errors[np.inf] else 1.0
    return Estimate(added, {"penalty_log10": float(np.log10(best)), "distance_left": share})


def procrustes(features: np.ndarray, wanted: np.ndarray) -> Estimate:
    """Estimate a rotation from features of translations, (pairs, width) each (Schoenemann 1966).

    I + D is the orthogonal matrix that minimises |X (I + D) - Y|^2, X and Y being the features less their means. Of
    those that do so alike, where there are fewer pairs than directions, the one nearest to the identity is taken.
    """
    x, y = (one - one.mean(0, dtype=np.float64) for one in (features, wanted))
    product = x.T @ y
    product += 1e-6 * np.linalg.norm(product) * np.eye(len(product))
    left, _, right = np.linalg.svd(product)
    return Estimate(left @ right - np.eye(len(product)), {})
