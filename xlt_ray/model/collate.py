"""Tokenise rows and pad them into batches under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from xlt_ray.model import batching


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

    def rows(self, table: pa.Table) -> list[dict[str, list[int]]]:
        """Encode the rows of a table of a corpus."""
        return self(*texts_of(table))


def texts_of(table: pa.Table) -> tuple[list[str], list[str] | None]:
    """Return the texts of a table of a corpus, and the second texts of pairs, None where it has no pairs."""
    pairs = table["text_pair"].to_pylist() if "text_pair" in table.column_names else None
    return table["text"].to_pylist(), pairs


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
    rows: Sequence[Mapping[str, Sequence[int]]], tokens: int, pad_id: int
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield (positions in `rows`, padded batch) of all rows, each batch under the token budget."""
    for group in batching.steps([len(row["input_ids"]) for row in rows], tokens):
        yield group, pad([rows[i] for i in group], pad_id)
