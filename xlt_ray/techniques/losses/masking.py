"""Mask words of texts, and measure how well an encoder fills them in.

Devlin et al. 2019 ("BERT"): of the pieces that are asked for 80% become the mask, 10% another piece, and 10% stay.
Whole words are chosen, as a word of which some pieces stay is easy to guess; a word of more than LONGEST pieces, as a
sentence of a language without spaces is, is cut into parts of so many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xlt_ray.corpora.streams import Encoded

LONGEST = 4  # pieces that are masked together
MASK, OTHER = 0.8, 0.1  # shares of pieces that become the mask, or another one


@dataclass(frozen=True, eq=False)
class Masking:
    """What is masked of texts, and by what: pieces of `vocabulary`, (pieces,) int64, sorted, `rate` of those of a text.

    An encoded row has `answers` besides, the place in the vocabulary of each piece that is asked for plus one, else 0.
    """

    vocabulary: np.ndarray
    mask: int  # id of the mask
    rate: float
    restart: bool = False  # positions begin anew in the second text of a pair
    first: int = 0  # the position of a row's first piece, as the encoder counts

    def __call__(
        self, tokenize: Any, texts: list[str], pairs: list[str] | None, generators: list[np.random.Generator]
    ) -> list[Encoded]:
        """Encode texts, and mask the share `rate` of their pieces, each by its own generator."""
        found = []
        for row, words, second, rng in zip(*tokenize.words(texts, pairs), generators, strict=True):
            parts = self.parts(row["input_ids"], words)
            order = rng.permutation(len(parts))
            ends = np.cumsum([len(parts[part]) for part in order])
            wanted = max(1, round(self.rate * sum(map(len, parts))))
            at = _joined(parts, order[: int(np.searchsorted(ends, wanted)) + 1])
            chance, others = rng.random(len(at)), rng.choice(self.vocabulary, len(at))
            own = np.array(row["input_ids"])[at]
            put = np.where(chance < MASK, self.mask, np.where(chance < MASK + OTHER, others, own))
            found.append(self._masked(row, at, put, second))
        return found

    def each_once(self, tokenize: Any, texts: list[str], pairs: list[str] | None = None) -> list[list[Encoded]]:
        """Encode every text several times, so that each of its words is masked in one of them: texts -> rows.

        About the share `rate` of a text is masked at a time, always by the mask; of pairs the first text alone is.
        """
        found = []
        for number, (row, words, second) in enumerate(zip(*tokenize.words(texts, pairs), strict=True)):
            parts = self.parts(row["input_ids"][:second], words[:second])
            order = np.random.default_rng(number).permutation(len(parts))
            times = min(len(parts), max(1, round(1 / self.rate)))
            places = [_joined(parts, order[time::times]) for time in range(times)]
            found.append([self._masked(row, at, np.full(len(at), self.mask), second) for at in places])
        return found

    def parts(self, ids: Sequence[int], words: Sequence[int]) -> list[list[int]]:
        """Return the places of the pieces of every word, or of part of a long one, that may be asked for."""
        parts: list[list[int]] = []
        last = -1
        for place, word in enumerate(words):
            if word < 0 or not self._known[min(ids[place], len(self._known) - 1)]:
                continue
            if word != last or len(parts[-1]) == LONGEST:
                parts.append([])
            parts[-1].append(place)
            last = word
        return parts

    @cached_property
    def _known(self) -> np.ndarray:
        """Whether each piece up to the last of the vocabulary, and one more, is in it."""
        known = np.zeros(int(self.vocabulary.max(initial=0)) + 2, dtype=bool)
        known[self.vocabulary] = True
        return known

    def _masked(self, row: Mapping[str, list[int]], at: np.ndarray, put: np.ndarray, second: int) -> Encoded:
        """Return a row in which other pieces are put at some places, and those that stood there are asked for."""
        ids = np.array(row["input_ids"])
        answers = np.zeros(len(ids), dtype=np.int64)
        answers[at] = np.searchsorted(self.vocabulary, ids[at]) + 1
        ids[at] = put
        found = {**row, "input_ids": ids.tolist(), "answers": answers.tolist()}
        if self.restart:
            places = np.concatenate([np.arange(second), np.arange(len(ids) - second)])
            found["position_ids"] = (self.first + places).tolist()
        return found


def _joined(parts: Sequence[Sequence[int]], chosen: np.ndarray) -> np.ndarray:
    return np.array([place for part in chosen for place in parts[part]], dtype=np.int64)
