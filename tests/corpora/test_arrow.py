"""Rows taken from tables of many chunks, and the bytes of their texts, without a look at other rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from xlt_ray.corpora.arrow import Chunked, take, text_bytes


def chunked(kind: pa.DataType) -> tuple[pa.Table, list[str | None]]:
    texts = [None if number % 7 == 3 else "ä" * (number % 5) + str(number) for number in range(60)]
    whole = pa.table({"text": pa.array(texts, kind), "label": pa.array(range(60), pa.int32())})
    parts = [whole.slice(0, 10), whole.slice(10, 0), whole.slice(10, 1), whole.slice(11)]  # slices keep an offset
    return pa.concat_tables(parts), texts


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_rows_come_in_the_order_asked_for(kind: pa.DataType) -> None:
    table, texts = chunked(kind)
    again = Chunked(table)
    for rows in ([], [59], [3, 10, 10, 0, 59, 11, 9], list(reversed(range(60)))):
        found = take(table, np.array(rows, dtype=np.int64))
        assert found.schema == table.schema and found.equals(again.take(np.array(rows, dtype=np.int64)))
        assert found["text"].to_pylist() == [texts[row] for row in rows]
        assert found["label"].to_pylist() == rows
        wanted = [len((texts[row] or "").encode()) for row in rows]
        assert text_bytes(table["text"], np.array(rows, dtype=np.int64)).tolist() == wanted


def test_a_table_without_rows_gives_none() -> None:
    table = pa.table({"text": pa.array([], pa.string())})
    assert take(table, np.empty(0, np.int64)).num_rows == 0
