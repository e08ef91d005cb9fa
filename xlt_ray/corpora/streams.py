"""Rows that join the updates of training beside labelled draws, or alone: single ones, or groups of translations."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.corpora.arrow import take
from xlt_ray.corpora.mixture import Draws, shares

LABELLED, UNLABELLED = "labelled", "unlabelled"  # streams that every technique may have a loss on


Encoded = dict[str, list[int]]  # a row as numbers by piece: `input_ids`, and what else a network or a loss takes
# Encodes texts, and the second texts of pairs, with a `model.collate.Tokenize` and a generator for each row.
Encode = Callable[[Any, list[str], list[str] | None, list[np.random.Generator]], list[Encoded]]


@dataclass(frozen=True, eq=False)
class Stream(ABC):
    """Rows that join every update beside labelled draws, in groups that no step, budget or worker cuts.

    `tables` are their texts by language.
    """

    tables: Mapping[str, pa.Table]

    @property
    @abstractmethod
    def rows(self) -> int:
        """How many rows join an update."""

    @abstractmethod
    def draw(self, alpha: float, seed: int, step: int, salt: int) -> list[Draws]:
        """Draw the groups that join update `step`; the same on every worker. `salt` tells streams of one run apart."""

    def encoded(
        self, tokenize: Any, texts: list[str], pairs: list[str] | None, generators: list[np.random.Generator]
    ) -> list[Encoded]:
        """Encode texts as `Encode` does; by default as texts that are measured are, and by no chance."""
        return tokenize(texts, pairs)


@dataclass(frozen=True, eq=False)
class Groups(Stream):
    """Pairs of translations, in groups of one language and of pairs that are all different.

    A loss that tells the rows of a group apart is then the same on any number of workers. `pairs[language]`, (pairs, 2)
    int64, are places of rows in the tables of that language and of `pivot`. A group has `group` pairs: first the rows
    of the language, then those of the pivot in the same order.
    """

    pivot: str
    pairs: Mapping[str, np.ndarray] = field(repr=False)
    group: int
    groups: int  # of an update

    @property
    def rows(self) -> int:
        """How many rows join an update."""
        return 2 * self.group * self.groups

    def draw(self, alpha: float, seed: int, step: int, salt: int) -> list[Draws]:
        """Draw the groups that join update `step`, languages by p ~ pairs ** alpha."""
        names = tuple(sorted(self.pairs))
        share = shares({name: len(self.pairs[name]) for name in names}, alpha)
        rng = np.random.default_rng([seed, step, 5, salt])
        found = []
        for _ in range(self.groups):
            language = int(rng.choice(len(names), p=[share[name] for name in names]))
            pairs = self.pairs[names[language]]
            rows = pairs[rng.choice(len(pairs), self.group, replace=False)].T.reshape(-1)
            sides = np.repeat(np.array([language, len(names)], dtype=np.int32), self.group)
            found.append(Draws((*names, self.pivot), sides, rows, np.arange(len(rows))))
        return found


@dataclass(frozen=True, eq=False)
class Singles(Stream):
    """Rows one by one, `drawn` an update, for a loss that does not read them as they stand, such as a masked one.

    `encode` gives all rows of all updates the same keys.
    """

    drawn: int
    encode: Encode

    @property
    def rows(self) -> int:
        """How many rows join an update."""
        return self.drawn

    def draw(self, alpha: float, seed: int, step: int, salt: int) -> list[Draws]:
        """Draw the rows that join update `step`, languages by p ~ rows ** alpha."""
        sizes = {code: table.num_rows for code, table in self.tables.items()}
        found = unlabelled(sizes, alpha, self.drawn, seed, step, salt)
        return [found.take(np.array([at])) for at in range(len(found))]

    def encoded(
        self, tokenize: Any, texts: list[str], pairs: list[str] | None, generators: list[np.random.Generator]
    ) -> list[Encoded]:
        """Encode texts as `encode` does."""
        return self.encode(tokenize, texts, pairs, generators)


def unlabelled(sizes: Mapping[str, int], alpha: float, rows: int, seed: int, step: int, *salt: int) -> Draws:
    """Draw the single rows without labels that join update `step`, languages by p ~ rows ** alpha.

    The same on every rank and after a restart, as `mixture.epoch` is. A `salt` draws others.
    """
    names = tuple(sorted(code for code, count in sizes.items() if count))
    share = shares({name: sizes[name] for name in names}, alpha)
    rng = np.random.default_rng([seed, step, 3, *salt])
    language = rng.choice(len(names), rows, p=[share[name] for name in names])
    counts = np.array([sizes[name] for name in names])
    return Draws(names, language.astype(np.int32), rng.integers(counts[language]), np.arange(rows))


def counterparts(rows: pa.Table, others: pa.Table) -> np.ndarray:
    """Return the place of each row's translation among `others`, the row of its id, (rows,) int64; -1 for none.

    An id that stands twice in either table tells no translation.
    """
    mine, theirs = (table["id"].cast(pa.large_string()).combine_chunks() for table in (rows, others))
    places = pc.fill_null(pc.index_in(mine, value_set=theirs), -1).to_numpy().astype(np.int64)
    for ids in (mine, theirs):
        places[pc.is_in(mine, value_set=_repeated(ids)).to_numpy(zero_copy_only=False)] = -1
    return places


def pairs(rows: pa.Table, others: pa.Table) -> np.ndarray:
    """Return the places of rows and of their translations among `others`, (pairs, 2) int64, all texts different.

    Two pairs with one text would have each other's translation as a wrong one.
    """
    places = counterparts(rows, others)
    mine = np.flatnonzero(places >= 0)
    found = np.stack([mine, places[mine]], axis=1)
    for side, table in enumerate((rows, others)):
        taken = take(table, found[:, side])
        columns = [taken[name].cast(pa.large_string()) for name in ("text", "text_pair") if name in table.column_names]
        texts = pc.binary_join_element_wise(*columns, pa.scalar("\0", pa.large_string())).combine_chunks()
        found = found[np.sort(np.unique(texts.dictionary_encode().indices.to_numpy(), return_index=True)[1])]
    return found


def held_out(table: pa.Table, count: int) -> np.ndarray:
    """Return the places of `count` rows to measure by, (count,) int64, sorted; chosen by id, in all tables alike.

    There are more where several rows have one id.
    """
    digests = np.array([zlib.crc32(str(one).encode()) for one in table["id"].to_pylist()], dtype=np.int64)
    last = np.sort(digests)[:count]
    return np.flatnonzero(digests <= last[-1]) if len(last) else np.empty(0, dtype=np.int64)


def _repeated(values: pa.Array) -> pa.Array:
    counts = pc.value_counts(values)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))
