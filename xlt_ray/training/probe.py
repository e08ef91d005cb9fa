"""Fit a linear probe, a logistic regression on the features of the frozen encoder: the baseline that all must beat.

Alain and Bengio 2017. Features of a frozen encoder are computed once and cached, see `embedding`; fitting then takes
seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from xlt_ray.config.sections import MixtureConfig
from xlt_ray.corpora import mixture
from xlt_ray.errors import InputError
from xlt_ray.evaluation.features import Features
from xlt_ray.model.network import Network

ABSENT = -1e4  # bias of a label that no source row has: finite, yet never the largest


@dataclass(frozen=True)
class Fit:
    """A fitted probe on features that are not standardised: logits = features @ weight.T + bias."""

    weight: np.ndarray  # (classes, width) float32
    bias: np.ndarray  # (classes,) float32
    strength: float
    dev_loss: Mapping[float, float]  # cross-entropy for each strength tried, mean over the sources
    dev_accuracy: Mapping[float, float]  # likewise
    temperature: float = 1.0  # as of a `Network`

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Score every class for every row: (rows, width) float32 to (rows, classes) float32."""
        scores: np.ndarray = features @ self.weight.T + self.bias
        return scores

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the likeliest class of every row: (rows, width) float32 to (rows,) int64."""
        return self.logits(features).argmax(1)


@dataclass(frozen=True)
class Labelled:
    """Rows by language: `features[language]` is (rows, width) float32, `labels[language]` (rows,) int64."""

    features: Features
    labels: Features

    def where(self, kept: Mapping[str, np.ndarray]) -> Labelled:
        """Return the rows for which `kept[language]`, (rows,) bool, is true, of languages that have any."""
        codes = [code for code in self.labels if kept[code].any()]
        return Labelled(*({code: of[code][kept[code]] for code in codes} for of in (self.features, self.labels)))

    def __add__(self, other: Labelled) -> Labelled:
        """Return the rows of both."""
        parts = {code: [one for one in (self, other) if code in one.labels] for code in {**self.labels, **other.labels}}
        features = {code: np.concatenate([one.features[code] for one in each]) for code, each in parts.items()}
        labels = {code: np.concatenate([one.labels[code] for one in each]) for code, each in parts.items()}
        return Labelled(features, labels)


def fit(
    train: Labelled,
    dev: Labelled,
    classes: int,
    mixture_config: MixtureConfig,
    strengths: tuple[float, ...],
    start: Fit | None = None,
) -> Fit:
    """Fit a multinomial logistic regression on standardised source features, its L2 strength chosen on source dev.

    Rows are weighted so that every language counts by its share of the mixture, as in fine-tuning, and every label by
    `label_balance`. The strength of best dev accuracy, as a mean over the sources, is chosen, and where several tie, as
    they do on some hundred dev rows, that of least cross-entropy. `start`, a fit of the same classes on similar rows,
    warm-starts the solver; the optimum does not change. Raises InputError where no source has dev rows and there are
    several strengths to choose from.
    """
    if not dev.labels and len(strengths) > 1:
        raise InputError(
            "training.probe_strengths: no source has dev rows to choose by; add dev rows or give one strength"
        )
    x, y, weights = _stack(train, classes, mixture_config)
    centre, scale = x.mean(0), x.std(0) + 1e-6
    x = (x - centre) / scale
    begin = None if start is None else (start.weight * scale, start.bias + start.weight @ centre)
    fits: dict[float, tuple[np.ndarray, np.ndarray]] = {}
    dev_loss: dict[float, float] = {}
    dev_accuracy: dict[float, float] = {}
    for strength in sorted(strengths):
        weight, bias = _regress(x, y, weights, strength, classes, begin)
        weight, bias = weight / scale, bias - (weight / scale) @ centre
        fits[strength] = weight.astype(np.float32), bias.astype(np.float32)
        if gold := dev.labels:
            scores = {code: log_softmax(dev.features[code] @ weight.T + bias, axis=1) for code in gold}
            losses = [-scores[code][np.arange(len(gold[code])), gold[code]].mean() for code in gold]
            dev_loss[strength] = float(np.mean(losses))
            dev_accuracy[strength] = float(np.mean([(scores[c].argmax(1) == gold[c]).mean() for c in gold]))
    best = max(fits, key=lambda strength: (dev_accuracy.get(strength), -dev_loss.get(strength, 0.0)))
    return Fit(*fits[best], best, dev_loss, dev_accuracy)


def cross_validate(
    rows: Labelled,
    folds: Mapping[str, np.ndarray],
    scored: Collection[str],
    classes: int,
    mixture_config: MixtureConfig,
    strengths: tuple[float, ...],
) -> tuple[float, dict[float, float], dict[float, float]]:
    """Choose a strength by cross-validation; return it, and the cross-entropy and the accuracy of each.

    `folds[language]` (rows,) are numbers from 0, the same for translations of each other; all but one fold are fitted
    to in turn, and the languages in `scored` of that one are predicted. Taken is the least strength whose accuracy, the
    mean over languages and folds, is within one standard error of the best (Breiman et al. 1984, section 3.4.3): on
    unlike languages a stronger penalty is the safer choice.
    """
    losses: dict[float, list[float]] = {strength: [] for strength in sorted(strengths)}
    right: dict[float, list[float]] = {strength: [] for strength in sorted(strengths)}
    for fold in np.unique(np.concatenate(list(folds.values()))):
        rest = rows.where({code: folds[code] != fold for code in rows.labels})
        asked = rows.where({code: (folds[code] == fold) & (code in scored) for code in rows.labels})
        labels = np.unique(np.concatenate([np.empty(0), *rest.labels.values()]))
        start: Fit | None = None
        for strength in losses if asked.labels and len(labels) > 1 else ():
            start = fit(rest, Labelled({}, {}), classes, mixture_config, (strength,), start)
            scores = {code: log_softmax(start.logits(of), axis=1) for code, of in asked.features.items()}
            gold = asked.labels
            losses[strength].append(np.mean([-scores[c][np.arange(len(gold[c])), gold[c]].mean() for c in gold]))
            right[strength].append(np.mean([(scores[c].argmax(1) == gold[c]).mean() for c in gold]))
    if not right[min(strengths)]:
        raise InputError(
            "training.probe_select: cross_validation finds no rows of two labels beside those it would measure; add "
            "rows of the sources, or give one strength in training.probe_strengths"
        )
    loss, accuracy = ({strength: float(np.mean(found)) for strength, found in of.items()} for of in (losses, right))
    best = max(accuracy, key=lambda strength: (accuracy[strength], -loss[strength]))
    error = float(np.std(right[best], ddof=1) / np.sqrt(len(right[best]))) if len(right[best]) > 1 else 0.0
    return min(strength for strength in accuracy if accuracy[strength] >= accuracy[best] - error), loss, accuracy


def refit(train: Labelled, dev: Labelled, classes: int, mixture_config: MixtureConfig, fitted: Fit) -> Fit:
    """Fit once more on the rows of train and dev together, by the strength that `fitted`, a fit on train, was given.

    A strength is relative to the mean loss of a row (see `_regress`), so that it means the same for more rows. Scores
    on dev and the temperature stay those of `fitted`: the new fit has seen dev, and its own would promise too much.
    """
    # cold: dev may have a label that train lacks
    again = fit(train + dev, Labelled({}, {}), classes, mixture_config, (fitted.strength,))
    return replace(fitted, weight=again.weight, bias=again.bias)


def install(network: Network, fitted: Fit) -> None:
    """Copy a fitted probe into a network's head, so that the network is evaluated, saved and served like any other."""
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(fitted.weight))
        network.head.bias.copy_(torch.from_numpy(fitted.bias))
    network.temperature = fitted.temperature


def _stack(rows: Labelled, classes: int, config: MixtureConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concatenate the rows of languages; return (features, labels, weights), the weights of mean 1."""
    features, labels = rows.features, rows.labels
    sizes = {code: len(gold) for code, gold in labels.items()}
    share = mixture.shares(sizes, config.alpha, config.weights)
    used = [code for code in features if share[code] > 0]
    total = sum(sizes[code] for code in used)
    weights = np.concatenate([np.full(sizes[code], share[code] * total / sizes[code]) for code in used])
    x = np.concatenate([features[code] for code in used]).astype(np.float64)
    y = np.concatenate([labels[code] for code in used])
    return x, y, weights * mixture.label_weights(labels, classes, config)[y]


def _regress(
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    strength: float,
    classes: int,
    begin: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit one strength on standardised rows; return (weight (classes, width), bias (classes,))."""
    present = np.unique(y)
    if len(present) < 2:
        raise InputError("training: the sources' train rows hold one label only; a classifier needs two or more")
    # rows grow the data term but not the penalty; dividing makes one strength mean the same at every corpus size
    model = LogisticRegression(C=strength * 1000 / len(y), max_iter=500, tol=1e-4, warm_start=True)
    if begin is not None and len(present) > 2:
        model.coef_, model.intercept_ = begin[0][present], begin[1][present]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a nearly unpenalised fit may stop early; dev decides
        model.fit(x, y, sample_weight=weights)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, ABSENT)
    if len(present) == 2:
        weight[present] = np.vstack([-model.coef_, model.coef_]) / 2
        bias[present] = np.r_[-model.intercept_, model.intercept_] / 2
    else:
        weight[present], bias[present] = model.coef_, model.intercept_
    return weight, bias
