"""Compute sampling shares p ~ weight * rows ** alpha, and draw epochs that no restart or worker count changes.

Any draws of an epoch are found without the others, so that tens of millions of rows cost neither memory nor a wait.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xlt_ray.config.sections import MixtureConfig
from xlt_ray.corpora.permutation import Permutation
from xlt_ray.errors import InputError


@dataclass(frozen=True)
class Draws:
    """Training rows in the order of their draws: row `row[i]` of language `languages[language[i]]`."""

    languages: tuple[str, ...]
    language: np.ndarray  # (draws,) int32
    row: np.ndarray  # (draws,) int64
    place: np.ndarray  # (draws,) int64, in their epoch

    def __len__(self) -> int:
        return len(self.row)

    def take(self, at: np.ndarray) -> Draws:
        """Return the draws at `at`."""
        return Draws(self.languages, self.language[at], self.row[at], self.place[at])


@dataclass(frozen=True)
class Share:
    """The part of an epoch that one language has; `repeats` is how often each of its rows is expected."""

    language: str
    rows: int
    weight: float
    share: float
    draws: float
    repeats: float


def shares(sizes: Mapping[str, int], alpha: float, weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Share the draws among languages: p ~ weight * rows ** alpha, summing to 1.

    alpha = 1 keeps the corpus sizes, alpha = 0 gives every language the same share whatever its size, and alpha > 1
    favours the large. Exponent smoothing as in Devlin's multilingual BERT (0.7) and Conneau et al. 2020, eq. 1 (0.3).

    >>> shares({"eng_Latn": 900, "swh_Latn": 100}, alpha=1)
    {'eng_Latn': 0.9, 'swh_Latn': 0.1}
    >>> shares({"eng_Latn": 900, "swh_Latn": 100}, alpha=0.5)
    {'eng_Latn': 0.75, 'swh_Latn': 0.25}
    >>> shares({"eng_Latn": 900, "swh_Latn": 100}, alpha=0, weights={"swh_Latn": 3})
    {'eng_Latn': 0.25, 'swh_Latn': 0.75}
    """
    weights = weights or {}
    raw = {code: weights.get(code, 1.0) * float(rows) ** alpha if rows else 0.0 for code, rows in sizes.items()}
    total = sum(raw.values())
    if not 0 < total < float("inf"):
        raise InputError(
            f"mixture: weights times rows ** alpha sum to {total} (rows: {dict(sizes)}); give a source that "
            "has rows a positive weight of ordinary size"
        )
    return {code: value / total for code, value in raw.items()}


def table(sizes: Mapping[str, int], config: MixtureConfig) -> list[Share]:
    """Describe the mixture: every language's rows, share, expected draws an epoch and expected repeats of each row."""
    share = shares(sizes, config.alpha, config.weights)
    draws = config.draws_per_epoch or sum(rows for code, rows in sizes.items() if share[code] > 0)
    expected = {code: draws * share[code] for code in sizes}
    return [
        Share(code, rows, config.weights.get(code, 1.0), share[code], expected[code], expected[code] / max(rows, 1))
        for code, rows in sizes.items()
    ]


@dataclass(frozen=True)
class Epoch:
    """All draws of an epoch, of which any part can be asked for."""

    sizes: Mapping[str, int]  # rows, by language, sorted
    seed: int
    number: int  # from 0
    before: np.ndarray  # (languages,) int64: draws of earlier epochs
    counts: np.ndarray  # (languages,) int64: draws of this one

    def __len__(self) -> int:
        return int(self.counts.sum())

    def draws(self, start: int = 0, stop: int | None = None) -> Draws:
        """Return the draws from place `start` up to `stop`, or to the end."""
        place = np.arange(start, len(self) if stop is None else min(stop, len(self)))
        item = Permutation(len(self), [self.seed, self.number, 1])(place)  # number of a draw, language after language
        ends = np.cumsum(self.counts)
        language = np.searchsorted(ends, item, "right").astype(np.int32)
        nth = item - (ends - self.counts - self.before)[language]  # of its language since the run began
        row = np.empty(len(place), dtype=np.int64)
        for index, (name, rows) in enumerate(self.sizes.items()):
            own = language == index
            row[own] = _stream(name, rows, self.seed, nth[own])
        return Draws(tuple(self.sizes), language, row, place)


def epoch(sizes: Mapping[str, int], config: MixtureConfig, seed: int, number: int) -> Epoch:
    """Draw epoch `number` (from 0): the same on every rank, on every machine, before and after a restart.

    Each language has one endless stream of its rows, one permutation after another, and an epoch takes the next piece
    of it. So over a whole run no row of a language is drawn twice more often than another, and alpha = 1 with
    the default number of draws is the usual epoch: every row once.
    """
    sizes = dict(sorted(sizes.items()))
    before = np.zeros(len(sizes), dtype=np.int64)
    for earlier in range(number):
        before += _counts(sizes, config, seed, earlier)
    return Epoch(sizes, seed, number, before, _counts(sizes, config, seed, number))


def label_weights(labels: Mapping[str, np.ndarray], classes: int, config: MixtureConfig) -> np.ndarray:
    """Weigh labels in the loss, (classes,) float32: w ~ frequency ** -label_balance, of mean 1 over the draws.

    `labels[language]` are those of its rows, (rows,), and a label's frequency is that among the mixture's draws.
    label_balance = 0 weighs every row alike; with 1 every label counts the same in sum, however rare (inverse
    frequency, King and Zeng 2001, "Logistic regression in rare events data"). A label without rows has weight 1.

    >>> label_weights({"eng_Latn": np.array([0, 0, 0, 0, 1])}, 2, MixtureConfig(label_balance=1)).tolist()
    [0.625, 2.5]
    """
    if not config.label_balance:
        return np.ones(classes, dtype=np.float32)
    share = shares({code: len(rows) for code, rows in labels.items()}, config.alpha, config.weights)
    counts = [share[code] * np.bincount(rows, minlength=classes) / max(len(rows), 1) for code, rows in labels.items()]
    frequency = np.sum(counts, axis=0)
    there = frequency > 0
    weights = np.power(frequency, -config.label_balance, where=there, out=np.ones(classes))
    weights[there] /= (weights * frequency)[there].sum()
    return weights.astype(np.float32)


def _counts(sizes: Mapping[str, int], config: MixtureConfig, seed: int, number: int) -> np.ndarray:
    # systematic sampling: every count is its expectation rounded up or down, unbiased over epochs, and the sum is exact
    expected = {share.language: share.draws for share in table(sizes, config)}
    ends = np.cumsum([expected[name] for name in sorted(sizes)])
    offset = np.random.default_rng([seed, number, 0]).random()
    ticks = np.floor(ends + offset).astype(np.int64)
    ticks[-1] = round(ends[-1])
    return np.diff(np.minimum(ticks, ticks[-1]), prepend=0)


def _stream(language: str, rows: int, seed: int, nth: np.ndarray) -> np.ndarray:
    """Return the rows that stand at places `nth` of a language's endless stream."""
    cycle, place = np.divmod(nth, max(rows, 1))
    order = np.argsort(cycle, kind="stable")
    found = np.empty_like(nth)
    for own in np.split(order, np.flatnonzero(np.diff(cycle[order])) + 1) if len(nth) else ():
        found[own] = Permutation(rows, [seed, zlib.crc32(language.encode()), cycle[own[0]]])(place[own])
    return found
