"""Rows that join the updates of training beside labelled draws: single ones, or groups of translations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.corpora.arrow import take
from xlt_ray.corpora.mixture import Draws, shares

LABELLED, UNLABELLED = "labelled", "unlabelled"  # streams that every technique may have a loss on


@dataclass(frozen=True, eq=False)
class Stream:
    """Pairs of translations that join every update in atomic groups, which no step, budget or worker cuts.

    A loss that tells the rows of a group apart is then the same on any number of workers. `pairs[language]`, (pairs, 2)
    int64, are places of rows in the tables of that language and of `pivot`. A group is of one language and has `group`
    pairs, all different: first the rows of the language, then those of the pivot in the same order.
    """

    tables: Mapping[str, pa.Table]
    pivot: str
    pairs: Mapping[str, np.ndarray] = field(repr=False)
    group: int
    groups: int  # of an update

    @property
    def rows(self) -> int:
        """How many rows join an update."""
        return 2 * self.group * self.groups

    def draw(self, alpha: float, seed: int, step: int, salt: int) -> list[Draws]:
        """Draw the groups that join update `step`, languages by p ~ pairs ** alpha; the same on every worker.

        `salt` tells streams of one run apart.
        """
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


def unlabelled(sizes: Mapping[str, int], alpha: float, rows: int, seed: int, step: int) -> Draws:
    """Draw the single rows without labels that join update `step`, languages by p ~ rows ** alpha.

    The same on every rank and after a restart, as `mixture.epoch` is.
    """
    names = tuple(sorted(code for code, count in sizes.items() if count))
    share = shares({name: sizes[name] for name in names}, alpha)
    rng = np.random.default_rng([seed, step, 3])
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


def _repeated(values: pa.Array) -> pa.Array:
    counts = pc.value_counts(values)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))
