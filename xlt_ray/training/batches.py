"""Make the batches of an update: labelled draws, changed by techniques, and the rows of other streams beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from xlt_ray import techniques
from xlt_ray.corpora import mixture, streams
from xlt_ray.corpora.arrow import Chunked, take, text_bytes
from xlt_ray.corpora.mixture import Draws, Epoch
from xlt_ray.corpora.streams import Encoded
from xlt_ray.events import counting
from xlt_ray.model import batching, collate, precision
from xlt_ray.model.collate import Tokenize
from xlt_ray.techniques.term import Batch, own_streams
from xlt_ray.training.checkpoint import Progress
from xlt_ray.training.setup import Run

WINDOW = 64  # updates among which rows are sorted by length: wide enough to save padding, narrow enough to stay random
BLOCK = 64 * WINDOW  # updates that are planned at once and shuffled, or fewer where updates are large:
DRAWS = 1 << 20  # in such a block, of some hundred bytes each
SAMPLE = 256  # rows a language from which its tokens per byte are measured
NONE = Draws((), np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))  # draws of an update without any


class Feed:
    """The batches of one worker, `rank` of `world`: of each of an epoch's `updates` take the `batches`."""

    def __init__(self, run: Run, rank: int, world: int) -> None:
        """Measure the train rows of a run, and make ready the techniques that change them."""
        self.run, self.rank, self.world, self.task = run, rank, world, run.setup.task
        self.device = next(run.network.parameters()).device
        mix = run.experiment.mixture
        labelled = run.setup.tables("train") if run.experiment.training.labelled else {}
        drawn = {code: one for code, one in labelled.items() if mix.weights.get(code, 1.0) > 0}
        self.sizes = {code: table.num_rows for code, table in drawn.items()}
        self.train = {code: Chunked(table) for code, table in drawn.items()}
        self.lengths = {code: Lengths(table, run.tokenize) for code, table in drawn.items()}
        known = {code: table["label"].to_numpy() for code, table in drawn.items()} if mix.label_balance else {}
        self.weights = mixture.label_weights(known, run.network.head.out_features, mix)
        self.examples = run.setup.prepare_techniques(counting(run.emit, "prepare"))
        joining = _joining(run)
        self.texts = {code: Chunked(table) for code, table in run.setup.unlabelled.items()} if joining else {}
        self.joining = joining if self.texts else 0
        self.streams = dict(enumerate(own_streams(run.network).values(), start=2))
        self.tables = {
            number: {code: Chunked(table) for code, table in stream.tables.items()}
            for number, stream in self.streams.items()
        }

    def epoch(self, number: int) -> Epoch:
        """Return what epoch `number` draws; the same on every worker."""
        return mixture.epoch(self.sizes, self.run.experiment.mixture, self.run.experiment.seed, number)

    def updates(self, epoch: int, first: int = 0) -> Iterator[Draws]:
        """Yield the draws of each update of an epoch from the `first` on; the same on every worker.

        Where nothing is learned from labels there are updates without any.
        """
        if not self.sizes:
            setup = self.run.setup
            return itertools.repeat(NONE, setup.updates // setup.experiment.training.epochs - first)
        return updates(self.epoch(epoch), self.lengths, self.run.experiment.training.batch_size, first)

    def batches(self, draws: Draws, progress: Progress, total: int) -> Iterator[Batch]:
        """Yield this worker's part of an update, one of `total`, in steps under the token budget.

        Groups of a stream are in steps of their own, one or more in each.
        """
        own, step = self._own(draws), progress.step
        more = self._own(self._unlabelled(step)) if self.joining else None
        groups = {number: self._groups(number, step) for number in self.streams}
        idle = not len(own) and not more and not any(groups.values())
        rows = self._rows(own, self.train, 0, progress.epoch)
        if idle:  # all workers must meet in the sum of gradients
            first, tables = (draws, self.train) if len(draws) else self._any()
            rows = self._rows(first.take(np.arange(1)), tables, -1)
        if more:
            rows = rows.joined(self._rows(more, self.texts, 1))
        counts = [len(draws), self.joining, *(stream.rows for stream in self.streams.values())]
        shared = {"counts": torch.tensor(counts, dtype=torch.float32), "progress": torch.tensor(step / total)}
        tokens = precision.token_budget(self.run.experiment.training.tokens_per_step, self.device)
        pad = self.run.tokenize.tokenizer.pad_token_id
        for at, batch in collate.budgeted(rows.encoded, tokens, pad):
            yield {**batch, **rows.take(at), **shared}
        for number, drawn in groups.items():
            for rows in packed([self._rows(one, self.tables[number], number, step) for one in drawn], tokens):
                yield {**collate.pad(rows.encoded, pad), **rows.take(slice(None)), **shared}

    def _any(self) -> tuple[Draws, Mapping[str, Chunked]]:
        """Return some row without label, and the tables that it is from."""
        tables = self.texts or next(iter(self.tables.values()))
        start = np.zeros(1, dtype=np.int64)
        return Draws((next(iter(tables)),), start.astype(np.int32), start, start), tables

    def _own(self, draws: Draws) -> Draws:
        return draws.take(np.arange(self.rank, len(draws), self.world))

    def _unlabelled(self, step: int) -> Draws:
        """Draw the unlabelled rows of an update."""
        experiment, sizes = self.run.experiment, {code: table.num_rows for code, table in self.texts.items()}
        return streams.unlabelled(sizes, experiment.mixture.alpha, self.joining, experiment.seed, step)

    def _groups(self, number: int, step: int) -> list[Draws]:
        """Draw this worker's groups of a stream's in an update."""
        experiment = self.run.experiment
        drawn = self.streams[number].draw(experiment.mixture.alpha, experiment.seed, step, salt=number)
        return drawn[self.rank :: self.world]

    def _rows(self, draws: Draws, tables: Mapping[str, Chunked], stream: int, when: int = 0) -> Rows:
        """Encode draws of a stream, which is -1 for rows that do not count.

        `when` is the epoch of labelled rows, and the update of those of a stream of a term.
        """
        encoded: list[Encoded] = [{}] * len(draws)
        label, language = np.zeros(len(draws), dtype=np.int64), np.zeros(len(draws), dtype=np.int64)
        seed = self.run.experiment.seed
        for index in np.unique(draws.language):
            code, at = draws.languages[index], np.flatnonzero(draws.language == index)
            table = tables[code].take(draws.row[at])
            language[at] = self.run.network.index(code)
            texts, pairs = collate.texts_of(table)
            if stream == 0:
                label[at] = 0 if self.task.tagged else table["label"].to_numpy()
                texts, pairs = techniques.change_examples(
                    self.examples, texts, pairs, code, (seed, when), draws.place[at]
                )
                found = self.task.encode(self.run.tokenize, table, (texts, pairs), (seed, when), draws.place[at])
            elif stream > 1:
                rngs = [np.random.default_rng([seed, when, 6, stream, place]) for place in draws.place[at].tolist()]
                found = self.streams[stream].encoded(self.run.tokenize, texts, pairs, rngs)
            else:
                found = self.run.tokenize(texts, pairs)
            for place, one in zip(at, found, strict=True):
                encoded[place] = one
        weight = self.weights[label] if stream == 0 else np.zeros(len(draws))
        row = draws.row.astype(np.int64) if stream > 0 else np.full(len(draws), -1)
        columns: dict[str, np.ndarray] = {"label": label, "weight": weight.astype(np.float32)}
        return Rows(encoded, columns | {"language": language, "row": row, "stream": np.full(len(draws), stream)})


class Rows(NamedTuple):
    """Encoded rows, and what a batch tells of each, (rows,) by name."""

    encoded: list[Encoded]
    columns: dict[str, np.ndarray]

    def joined(self, other: Rows) -> Rows:
        """Return these rows and others."""
        columns = {name: np.concatenate([values, other.columns[name]]) for name, values in self.columns.items()}
        return Rows(self.encoded + other.encoded, columns)

    def take(self, at: list[int] | slice) -> dict[str, torch.Tensor]:
        """Return what a batch tells of the rows at some places."""
        return {name: torch.from_numpy(values[at]) for name, values in self.columns.items()}


def packed(groups: Sequence[Rows], tokens: int) -> Iterator[Rows]:
    """Yield groups, the longest first, as many together as keep to the budget of padded tokens, one at least."""
    held: Rows | None = None
    for group in sorted(groups, key=lambda one: -max(len(row["input_ids"]) for row in one.encoded)):
        both = group if held is None else held.joined(group)
        width = batching.rounded(max(len(row["input_ids"]) for row in both.encoded))
        if held is not None and width * len(both.encoded) > tokens:
            yield held
            both = group
        held = both
    if held is not None:
        yield held


def _joining(run: Run) -> int:
    """Count the unlabelled rows that join an update: as configured, else as many as labelled where a loss wants any."""
    training = run.experiment.training
    if training.unlabelled_rows is not None:
        return training.unlabelled_rows
    return training.batch_size if any(one.wants_unlabelled for one in run.setup.techniques) else 0


class Lengths:
    """Estimates the tokens of rows from their bytes and the tokens per byte of a sample.

    Sorting wants no more than this; tokenising all rows on all ranks before the first step would cost minutes.
    """

    def __init__(self, table: pa.Table, tokenize: Tokenize) -> None:
        """Measure the sample."""
        self.columns = [table[name] for name in ("text", "text_pair") if name in table.column_names]
        self.most = tokenize.max_length
        sample = np.unique(np.linspace(0, table.num_rows - 1, min(SAMPLE, table.num_rows)).astype(np.int64))
        tokens = sum(len(row["input_ids"]) for row in tokenize.rows(take(table, sample)))
        self.tokens_a_byte = tokens / max(int(self._bytes(sample).sum()), 1)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the estimates for the rows at `rows`, (rows,) int32."""
        return np.clip(np.ceil(self._bytes(rows) * self.tokens_a_byte), 1, self.most).astype(np.int32)

    def _bytes(self, rows: np.ndarray) -> np.ndarray:
        return np.sum([text_bytes(column, rows) for column in self.columns], axis=0)


def updates(
    epoch: Epoch, length: Mapping[str, Callable[[np.ndarray], np.ndarray]], batch_size: int, first: int = 0
) -> Iterator[Draws]:
    """Group an epoch's draws into updates of `batch_size` draws of similar length, in a seeded random order.

    `length` gives the tokens of a language's rows at some places. Yields the updates from the `first` on. They are
    independent of the number of workers: each takes every world-th draw of an update, `update[rank::world]`. Within an
    update draws are sorted by length, so that workers get equal work.
    """
    many = min(BLOCK, WINDOW * max(1, DRAWS // (WINDOW * batch_size)))
    for block in range(first // many, -(-len(epoch) // (many * batch_size))):
        draws = epoch.draws(block * many * batch_size, (block + 1) * many * batch_size)
        estimate = np.empty(len(draws), dtype=np.int32)
        for index in np.unique(draws.language):
            chosen = draws.language == index
            estimate[chosen] = length[draws.languages[index]](draws.row[chosen])
        groups = []
        for start in range(0, len(draws), WINDOW * batch_size):
            window = np.arange(start, min(start + WINDOW * batch_size, len(draws)))
            window = window[np.argsort(estimate[window], kind="stable")]
            groups += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        # the first block's order is what it was when an epoch was one block
        order = np.random.default_rng([epoch.seed, epoch.number, 2, *[block] * (block > 0)]).permutation(len(groups))
        for group in order[max(first - block * many, 0) :]:
            yield draws.take(groups[group])
