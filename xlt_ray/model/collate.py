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
        encoded = self._encoded(texts, pairs)
        keys = list(encoded.keys())
        return [{key: encoded[key][i] for key in keys} for i in range(len(texts))]

    def words(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> tuple[list[dict[str, list[int]]], list[list[int]], list[int]]:
        """Encode texts as ever; tell the word of every piece, by a number that grows along the row, and where a pair's
        second text begins.

        A word is -1 for what stands in no text: the prefix, and pieces that the tokenizer adds.
        """
        found = self._encoded(texts, pairs, return_offsets_mapping=True)
        offsets = found.pop("offset_mapping")
        words, seconds = [], []
        for number, spans in enumerate(offsets):
            own: list[int] = []
            last, count = None, -1
            sequences = found.sequence_ids(number)
            seconds.append(sequences.index(1) if 1 in sequences else len(sequences))
            places = zip(sequences, found.word_ids(number), strict=True)
            for (_, end), place in zip(spans, places, strict=True):
                inside = place[0] is not None and not (place[0] == 0 and end <= len(self.prefix))
                if inside and place != last:
                    last, count = place, count + 1
                own.append(count if inside else -1)
            words.append(own)
        return [{key: found[key][i] for key in found} for i in range(len(texts))], words, seconds

    def pieces(self, texts: Sequence[str]) -> list[tuple[dict[str, list[int]], list[tuple[int, int]]]]:
        """Encode texts as ever; tell for each where its pieces stand in it, (-1, -1) of what stands in no text."""
        found = self._encoded(texts, None, return_offsets_mapping=True)
        rows, before = [], len(self.prefix)
        offsets = found.pop("offset_mapping")
        for number, spans in enumerate(offsets):
            inside = found.sequence_ids(number)
            places = [
                (max(start - before, 0), end - before) if inside[place] == 0 and end > max(before, start) else (-1, -1)
                for place, (start, end) in enumerate(spans)
            ]
            rows.append(({key: found[key][number] for key in found}, places))
        return rows

    def _encoded(self, texts: Sequence[str], pairs: Sequence[str] | None, **more: Any) -> Any:
        return self.tokenizer(
            [self.prefix + text for text in texts],
            list(pairs) if pairs is not None else None,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            **more,
        )

    def rows(self, table: pa.Table) -> list[dict[str, list[int]]]:
        """Encode the rows of a table of a corpus."""
        return self(*texts_of(table))


def texts_of(table: pa.Table) -> tuple[list[str], list[str] | None]:
    """Return the texts of a table of a corpus, and the second texts of pairs, None where it has no pairs."""
    pairs = table["text_pair"].to_pylist() if "text_pair" in table.column_names else None
    return table["text"].to_pylist(), pairs


def pad(rows: Sequence[Mapping[str, Sequence[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad rows into int64 tensors of shape (rows, longest), with their attention mask.

    What is not of pieces, such as `word`, may be longer than the pieces are.
    """
    width = batching.rounded(max(len(row["input_ids"]) for row in rows))
    keys = dict.fromkeys(key for row in rows for key in row)
    widths = {key: max(width, *(len(row.get(key, ())) for row in rows)) for key in keys}
    batch = {
        key: torch.full((len(rows), widths[key]), pad_id if key == "input_ids" else 0, dtype=torch.long) for key in keys
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
