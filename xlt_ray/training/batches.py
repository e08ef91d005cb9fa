"""Make the batches of an update: labelled draws, changed by techniques, and unlabelled rows beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import torch

from xlt_ray.corpora import mixture
from xlt_ray.corpora.arrow import Chunked, take, text_bytes
from xlt_ray.corpora.mixture import Draws, Epoch
from xlt_ray.events import counting
from xlt_ray.model import collate, precision
from xlt_ray.model.collate import Tokenize
from xlt_ray.training.checkpoint import Progress
from xlt_ray.training.setup import Run, change_examples

WINDOW = 64  # updates among which rows are sorted by length: wide enough to save padding, narrow enough to stay random
BLOCK = 64 * WINDOW  # updates that are planned at once and shuffled, or fewer where updates are large:
DRAWS = 1 << 20  # in such a block, of some hundred bytes each
SAMPLE = 256  # rows a language from which its tokens per byte are measured


class Feed:
    """The batches of one worker, `rank` of `world`: of each of an epoch's `updates` take the `batches`."""

    def __init__(self, run: Run, rank: int, world: int) -> None:
        """Measure the train rows of a run, and make ready the techniques that change them."""
        self.run, self.rank, self.world = run, rank, world
        self.device = next(run.network.parameters()).device
        mix = run.experiment.mixture
        drawn = {code: one for code, one in run.setup.tables("train").items() if mix.weights.get(code, 1.0) > 0}
        self.sizes = {code: table.num_rows for code, table in drawn.items()}
        self.train = {code: Chunked(table) for code, table in drawn.items()}
        self.lengths = {code: Lengths(table, run.tokenize) for code, table in drawn.items()}
        known = {code: table["label"].to_numpy() for code, table in drawn.items()} if mix.label_balance else {}
        self.weights = mixture.label_weights(known, run.network.head.out_features, mix)
        self.examples = run.setup.prepare_techniques(counting(run.emit, "prepare"))
        joining = _joining(run)
        self.texts = {code: Chunked(table) for code, table in run.setup.unlabelled.items()} if joining else {}
        self.joining = joining if self.texts else 0

    def epoch(self, number: int) -> Epoch:
        """Return what epoch `number` draws; the same on every worker."""
        return mixture.epoch(self.sizes, self.run.experiment.mixture, self.run.experiment.seed, number)

    def updates(self, epoch: int, first: int = 0) -> Iterator[Draws]:
        """Yield the draws of each update of an epoch from the `first` on; the same on every worker."""
        return updates(self.epoch(epoch), self.lengths, self.run.experiment.training.batch_size, first)

    def batches(self, draws: Draws, progress: Progress, total: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield this worker's part of an update, one of `total`, in steps under the token budget.

        A batch has the encoder's inputs, (rows, tokens), and for each row its `label`, `weight`, `language` and `share`
        (see `Objective`), and its `row` in `Setup.unlabelled` of its language, -1 for labelled draws; `progress` is a
        number from 0 to 1.
        """
        own = self._own(draws)
        more = self._unlabelled(progress.step) if self.joining else draws.take(np.arange(0))
        idle = not len(own) and not len(more)  # a worker without rows runs one at weight 0: all must meet in the sum
        own = draws.take(np.arange(1)) if idle else own
        encoded, labels, language = self._rows(own, self.train, progress.epoch)
        if len(more):
            rows, _, others = self._rows(more, self.texts, None)
            encoded, language = encoded + rows, np.concatenate([language, others])
        labels = np.pad(labels, (0, len(more)))
        row = np.concatenate([np.full(len(own), -1), more.row])
        labelled = np.arange(len(encoded)) < (0 if idle else len(own))
        weight = np.where(labelled, self.weights[labels], 0.0).astype(np.float32)
        share = 0.0 if idle else len(draws) / (len(draws) + self.joining)
        tokens = precision.token_budget(self.run.experiment.training.tokens_per_step, self.device)
        for group, batch in collate.budgeted(encoded, tokens, self.run.tokenize.tokenizer.pad_token_id):
            batch["label"], batch["weight"] = torch.from_numpy(labels[group]), torch.from_numpy(weight[group])
            batch["language"], batch["row"] = torch.from_numpy(language[group]), torch.from_numpy(row[group])
            batch["share"] = torch.full((len(group),), share)
            batch["progress"] = torch.tensor(progress.step / total)
            yield batch

    def _own(self, draws: Draws) -> Draws:
        return draws.take(np.arange(self.rank, len(draws), self.world))

    def _unlabelled(self, step: int) -> Draws:
        """Draw this worker's part of the unlabelled rows of an update."""
        experiment, sizes = self.run.experiment, {code: table.num_rows for code, table in self.texts.items()}
        return self._own(mixture.unlabelled(sizes, experiment.mixture.alpha, self.joining, experiment.seed, step))

    def _rows(
        self, draws: Draws, tables: Mapping[str, Chunked], epoch: int | None
    ) -> tuple[list[dict[str, list[int]]], np.ndarray, np.ndarray]:
        """Encode draws, of an epoch or, with None, unlabelled; return (rows, labels, languages)."""
        encoded: list[dict[str, list[int]]] = [{}] * len(draws)
        labels, language = np.zeros(len(draws), dtype=np.int64), np.zeros(len(draws), dtype=np.int64)
        for index in np.unique(draws.language):
            code, at = draws.languages[index], np.flatnonzero(draws.language == index)
            table = tables[code].take(draws.row[at])
            language[at] = self.run.network.index(code)
            texts, pairs = collate.texts_of(table)
            if epoch is not None:
                labels[at] = table["label"].to_numpy()
                address = (self.run.experiment.seed, epoch)
                texts, pairs = change_examples(self.examples, texts, pairs, code, address, draws.place[at])
            for place, row in zip(at, self.run.tokenize(texts, pairs), strict=True):
                encoded[place] = row
        return encoded, labels, language


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
