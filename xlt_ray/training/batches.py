"""Make the batches of an update: labelled draws, changed by techniques, and unlabelled rows beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from xlt_ray.corpora import mixture
from xlt_ray.corpora.mixture import Draws
from xlt_ray.events import counting
from xlt_ray.model import collate, precision
from xlt_ray.model.collate import Tokenize
from xlt_ray.training.checkpoint import Progress
from xlt_ray.training.setup import Run, change_examples

WINDOW = 64  # updates among which rows are sorted by length: wide enough to save padding, narrow enough to stay random

SAMPLE = 256  # rows a language from which its tokens per byte are measured


class Feed:
    """The batches of one worker, `rank` of `world`: `plan` an epoch, then take the `batches` of each of its updates."""

    def __init__(self, run: Run, rank: int, world: int) -> None:
        """Measure the train rows of a run, and make ready the techniques that change them."""
        self.run, self.rank, self.world = run, rank, world
        self.device = next(run.network.parameters()).device
        mix = run.experiment.mixture
        tables = run.setup.tables("train")
        self.train = {code: table for code, table in tables.items() if mix.weights.get(code, 1.0) > 0}
        self.lengths = {code: lengths(table, run.tokenize) for code, table in self.train.items()}
        known = {code: table["label"].to_numpy() for code, table in self.train.items()} if mix.label_balance else {}
        self.weights = mixture.label_weights(known, run.network.head.out_features, mix)
        self.examples = run.setup.prepare_techniques(counting(run.emit, "prepare"))
        self.joining = _joining(run)
        self.texts = dict(run.setup.unlabelled) if self.joining else {}

    def plan(self, epoch: int) -> tuple[Draws, list[np.ndarray]]:
        """Return an epoch's draws, and the positions among them of each of its updates; the same on every worker."""
        experiment = self.run.experiment
        sizes = {code: table.num_rows for code, table in self.train.items()}
        draws = mixture.epoch(sizes, experiment.mixture, experiment.seed, epoch)
        return draws, updates(draws, self.lengths, experiment.training.batch_size, experiment.seed, epoch)

    def batches(
        self, draws: Draws, positions: np.ndarray, progress: Progress, total: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Yield this worker's part of an update, one of `total`, in steps under the token budget.

        A batch has the encoder's inputs, (rows, tokens), and for each row its `label`, `weight`, `language` and `share`
        (see `Objective`), and its `row` in `Setup.unlabelled` of its language, -1 for labelled draws; `progress` is a
        number from 0 to 1.
        """
        own = positions[self.rank :: self.world]
        more, places = self._unlabelled(progress.step)
        idle = not len(own) and not len(places)  # a worker without rows runs one at weight 0: all must meet in the sum
        own = positions[:1] if idle else own
        encoded, labels, language = self._rows(draws, self.train, own, progress.epoch)
        if len(places):
            rows, _, others = self._rows(more, self.texts, places, None)
            encoded, language = encoded + rows, np.concatenate([language, others])
        labels = np.pad(labels, (0, len(places)))
        row = np.concatenate([np.full(len(own), -1), more.row[places]])
        labelled = np.arange(len(encoded)) < (0 if idle else len(own))
        weight = np.where(labelled, self.weights[labels], 0.0).astype(np.float32)
        share = 0.0 if idle else len(positions) / (len(positions) + len(more))
        tokens = precision.token_budget(self.run.experiment.training.tokens_per_step, self.device)
        for group, batch in collate.budgeted(encoded, tokens, self.run.tokenize.tokenizer.pad_token_id):
            batch["label"], batch["weight"] = torch.from_numpy(labels[group]), torch.from_numpy(weight[group])
            batch["language"], batch["row"] = torch.from_numpy(language[group]), torch.from_numpy(row[group])
            batch["share"] = torch.full((len(group),), share)
            batch["progress"] = torch.tensor(progress.step / total)
            yield batch

    def _unlabelled(self, step: int) -> tuple[Draws, np.ndarray]:
        """Draw the unlabelled rows of an update; return the draws and the positions of those that are this worker's."""
        if not self.texts:
            return Draws((), np.empty(0, np.int32), np.empty(0, np.int64)), np.empty(0, np.int64)
        sizes = {code: table.num_rows for code, table in self.texts.items()}
        experiment = self.run.experiment
        more = mixture.unlabelled(sizes, experiment.mixture.alpha, self.joining, experiment.seed, step)
        return more, np.arange(len(more))[self.rank :: self.world]

    def _rows(
        self, draws: Draws, tables: Mapping[str, pa.Table], places: np.ndarray, epoch: int | None
    ) -> tuple[list[dict[str, list[int]]], np.ndarray, np.ndarray]:
        """Encode the draws at `places`, of an epoch or, with None, unlabelled; return (rows, labels, languages)."""
        encoded: list[dict[str, list[int]]] = [{}] * len(places)
        labels, language = np.zeros(len(places), dtype=np.int64), np.zeros(len(places), dtype=np.int64)
        for index in np.unique(draws.language[places]):
            code = draws.languages[index]
            at = np.flatnonzero(draws.language[places] == index)
            rows, table = draws.row[places[at]], tables[code]
            language[at] = self.run.network.index(code)
            texts, pairs = collate.texts_of(table, rows)
            if epoch is not None:
                labels[at] = table["label"].take(rows).to_numpy()
                address = (self.run.experiment.seed, epoch)
                texts, pairs = change_examples(self.examples, texts, pairs, code, address, places[at])
            for place, row in zip(at, self.run.tokenize(texts, pairs), strict=True):
                encoded[place] = row
        return encoded, labels, language


def _joining(run: Run) -> int:
    """Count the unlabelled rows that join an update: as configured, else as many as labelled where a loss wants any."""
    training = run.experiment.training
    if training.unlabelled_rows is not None:
        return training.unlabelled_rows
    return training.batch_size if any(one.wants_unlabelled for one in run.setup.techniques) else 0


def lengths(table: pa.Table, tokenize: Tokenize) -> np.ndarray:
    """Estimate the tokens of every row, (rows,) int32, from its bytes and the tokens per byte of a sample.

    Sorting wants no more than this; tokenising all rows on all ranks before the first step would cost minutes.
    """
    size = sum(
        pc.fill_null(pc.binary_length(table[column]), 0).to_numpy().astype(np.float64)
        for column in ("text", "text_pair")
        if column in table.column_names
    )
    size = np.asarray(size)
    sample = np.unique(np.linspace(0, len(size) - 1, min(SAMPLE, len(size))).astype(np.int64))
    tokens = sum(len(row["input_ids"]) for row in tokenize.rows(table, sample))
    ratio = tokens / max(float(size[sample].sum()), 1.0)
    return np.clip(np.ceil(size * ratio), 1, tokenize.max_length).astype(np.int32)


def updates(draws: Draws, length: Mapping[str, np.ndarray], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Group an epoch's draws into updates of `batch_size` positions of similar length, in a seeded random order.

    Independent of the number of workers: each takes every world-th position of an update, `update[rank::world]`.
    Within an update rows are sorted by length, so that workers get equal work.
    """
    estimate = np.empty(len(draws), dtype=np.int32)
    for index, name in enumerate(draws.languages):
        chosen = draws.language == index
        estimate[chosen] = length[name][draws.row[chosen]]
    groups = []
    for start in range(0, len(draws), WINDOW * batch_size):
        window = np.arange(start, min(start + WINDOW * batch_size, len(draws)))
        window = window[np.argsort(estimate[window], kind="stable")]
        groups += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    order = np.random.default_rng([seed, epoch, 2]).permutation(len(groups))
    return [groups[i] for i in order]
