"""Turn rows into padded batches: updates of similar length, cut into steps under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from xlt_ray import batching
from xlt_ray.mixture import Draws

WINDOW = 64  # updates among which rows are sorted by length: wide enough to save padding, narrow enough to stay random
SAMPLE = 256  # rows a language from which its tokens per byte are measured


class Tokenize:
    """Turn the texts of rows into token ids, always in the same way: prefix, truncation, pair template."""

    def __init__(self, tokenizer: Any, prefix: str, max_length: int) -> None:
        self.tokenizer, self.prefix, self.max_length = tokenizer, prefix, max_length

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, list[int]]]:
        """Encode texts; each row is a dict of `input_ids` and, where the encoder uses them, `token_type_ids`."""
        encoded = self.tokenizer(
            [self.prefix + text for text in texts],
            list(pairs) if pairs is not None else None,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
        )
        keys = list(encoded.keys())
        return [{key: encoded[key][i] for key in keys} for i in range(len(texts))]

    def rows(self, table: pa.Table, indices: np.ndarray) -> list[dict[str, list[int]]]:
        """Encode the rows of a corpus table at `indices`."""
        return self(*texts_of(table, indices))


def texts_of(table: pa.Table, indices: np.ndarray) -> tuple[list[str], list[str] | None]:
    """Take the texts at `indices` of a corpus table, and their pairs where it has any."""
    taken = table.select([c for c in ("text", "text_pair") if c in table.column_names]).take(pa.array(indices))
    pairs = taken["text_pair"].to_pylist() if "text_pair" in taken.column_names else None
    return taken["text"].to_pylist(), pairs


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


def pad(rows: Sequence[Mapping[str, Sequence[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad rows into int64 tensors of shape (rows, longest), with their attention mask."""
    width = batching.rounded(max(len(row["input_ids"]) for row in rows))
    batch = {
        key: torch.full((len(rows), width), pad_id if key == "input_ids" else 0, dtype=torch.long) for key in rows[0]
    }
    batch["attention_mask"] = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        for key, values in row.items():
            batch[key][i, : len(values)] = torch.tensor(values)
        batch["attention_mask"][i, : len(row["input_ids"])] = 1
    return batch


def budgeted(
    rows: Sequence[dict[str, list[int]]], tokens: int, pad_id: int
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield (positions in `rows`, padded batch) until all rows are given, each batch under the token budget."""
    for group in batching.steps([len(row["input_ids"]) for row in rows], tokens):
        yield group, pad([rows[i] for i in group], pad_id)
