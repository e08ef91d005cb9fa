"""Align the words of parallel texts: IBM Model 1 in both directions, and phrases by its alignments."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.languages.words import fold

ITERATIONS = 5
PHRASE_WORDS = 3
MOST_WORDS = 100  # of a text that is aligned, since the cost is the product of both lengths
MOST_CELLS = 10_000_000  # word times word, over all pairs: bounds time and memory on large corpora

Pair = tuple[str, str, float]  # source words, target words (both joined by spaces), score


def forms_of(rows: Iterable[list[str]]) -> dict[str, str]:
    """Return the most frequent form of each folded word in rows of words: capitals that begin a text hardly count."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for place, word in enumerate(row):
            # a sentence's first word has a capital whatever it is, so it only counts where there is nothing else
            counts[fold(word)][word] += 1000 if place else 1
    return {key: max(sorted(forms), key=forms.__getitem__) for key, forms in counts.items()}


def shared(source: pa.Table, target: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the rows of two tables that have an id in common, in the same order."""
    wanted = target["id"].cast(pa.large_string()).combine_chunks()
    places = pc.index_in(source["id"].cast(pa.large_string()), value_set=wanted)
    there = np.flatnonzero(pc.is_valid(places).to_numpy())
    found = places.take(there).to_numpy()
    _, first = np.unique(found, return_index=True)
    return source.take(np.sort(there[first])), target.take(found[np.sort(first)])


def translations(rows: Sequence[tuple[list[str], list[str]]], score: float, phrases: bool) -> list[Pair]:
    """Return what translates what in rows of (source words, target words), by IBM Model 1 (Brown et al. 1993).

    A word pair scores sqrt(p(t|s) p(s|t)), and 1 means that each is the only translation of the other. Phrases are up
    to three words whose alignments, in both directions the same, lead nowhere else (Och and Ney 2004), seen at least
    twice; their score is the same of relative frequencies (Koehn et al. 2003). Pairs below `score` are left out.
    """
    rows = [(mine, theirs) for mine, theirs in rows if 0 < len(mine) <= MOST_WORDS and 0 < len(theirs) <= MOST_WORDS]
    within = np.cumsum([(len(mine) + 1) * (len(theirs) + 1) for mine, theirs in rows]) <= MOST_CELLS
    rows = rows[: int(within.sum())]
    if not rows:
        return []
    source, target = _Side.of([mine for mine, _ in rows]), _Side.of([theirs for _, theirs in rows])
    forward, back = _Model.fit(source, target), _Model.fit(target, source)
    found = list(_word_pairs(source, target, forward, back, score))
    if phrases:
        found += _phrase_pairs(source, target, forward.aligned, back.aligned, score)
    return found


@dataclass(frozen=True, eq=False)
class _Side:
    """The texts of one language end to end; the last of `numbers` is 0, the NULL word, so place -1 stands for it."""

    vocabulary: list[str]
    numbers: np.ndarray  # (places + 1,) of words
    ends: np.ndarray  # (rows,) place after each row's last
    relative: np.ndarray  # (places + 1,) where in its row a place is, 0 to 1

    @classmethod
    def of(cls, rows: Sequence[list[str]]) -> _Side:
        known = {"": 0}
        numbers = [known.setdefault(word, len(known)) for row in rows for word in row]
        relative = np.concatenate([(np.arange(len(row)) + 0.5) / len(row) for row in rows])
        return cls(
            list(known), np.array([*numbers, 0]), np.cumsum([len(row) for row in rows]), np.append(relative, 9.0)
        )


class _Model(NamedTuple):
    """p(word | given) of the pairs that stand in one row, and the given place that each word's place comes from."""

    given: np.ndarray
    word: np.ndarray
    p: np.ndarray
    aligned: np.ndarray  # (places of the words,), -1 for NULL

    @classmethod
    def fit(cls, given: _Side, words: _Side) -> _Model:
        froms, places = [], []
        for low, high, first, end in zip(
            [0, *given.ends[:-1]], given.ends, [0, *words.ends[:-1]], words.ends, strict=True
        ):
            froms.append(np.tile(np.append(np.arange(low, high), -1), end - first))
            places.append(np.repeat(np.arange(first, end), high - low + 1))
        origin, place = np.concatenate(froms), np.concatenate(places)
        width = len(words.vocabulary)
        pair, which = np.unique(given.numbers[origin] * width + words.numbers[place], return_inverse=True)
        owner, p = pair // width, np.ones(len(pair))
        for _ in range(ITERATIONS):
            weight = p[which]
            counts = np.bincount(which, weight / np.bincount(place, weight)[place])
            p = counts / np.bincount(owner, counts)[owner]
        # IBM Model 1 knows no places, so of equal words the one nearer to the diagonal is taken
        order = np.lexsort((np.abs(given.relative[origin] - words.relative[place]), -p[which], place))
        best = order[np.searchsorted(place[order], np.arange(words.ends[-1]))]
        return cls(owner, pair % width, p, origin[best])


def _word_pairs(source: _Side, target: _Side, forward: _Model, back: _Model, score: float) -> Iterator[Pair]:
    width = len(target.vocabulary)
    mine, theirs = forward.given * width + forward.word, back.word * width + back.given
    common, left, right = np.intersect1d(mine, theirs, assume_unique=True, return_indices=True)
    scores = np.sqrt(forward.p[left] * back.p[right])
    for pair, p in zip(common[scores >= score], scores[scores >= score], strict=True):
        s, t = divmod(int(pair), width)
        if s and t:
            yield source.vocabulary[s], target.vocabulary[t], min(float(p), 1.0)


def _phrase_pairs(
    source: _Side, target: _Side, from_source: np.ndarray, from_target: np.ndarray, score: float
) -> Iterator[Pair]:
    linked = (from_target >= 0) & (from_source[from_target] == np.arange(len(from_target)))
    to, back = np.where(linked, from_target, -1), np.full(len(from_source), -1)
    back[to[linked]] = np.flatnonzero(linked)
    counts: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    first = 0
    for end in source.ends:
        for start in range(first, end):
            for stop in range(start + 2, min(start + PHRASE_WORDS, end) + 1):
                if to[start] >= 0 and to[stop - 1] >= 0:
                    places = to[start:stop][to[start:stop] >= 0]
                    low, high = places.min(), places.max() + 1
                    inside = back[low:high]
                    if high - low <= PHRASE_WORDS and ((inside < 0) | ((inside >= start) & (inside < stop))).all():
                        counts[
                            tuple(source.numbers[start:stop].tolist()), tuple(target.numbers[low:high].tolist())
                        ] += 1
        first = end
    of_source, of_target = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    for (s, t), count in counts.items():
        of_source[s] += count
        of_target[t] += count
    for (s, t), count in counts.items():
        p = count / math.sqrt(of_source[s] * of_target[t])
        if count >= 2 and p >= score:
            yield " ".join(source.vocabulary[i] for i in s), " ".join(target.vocabulary[i] for i in t), p
