"""Write and map splits of a corpus as Arrow IPC files, with the file and line that each of their rows came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray import durable

BATCH_ROWS = 65_536

# number of rows, the file they come from, the line of the first; rows of one origin stand on successive lines
Origin = tuple[int, str, int | None]


def column_digest(column: pa.ChunkedArray) -> bytes:
    """Return the SHA-256 of a column's values, integers, strings or lists of them, then of their lengths: 64 bytes.

    The same however the column is chunked.
    """
    # values and lengths are hashed apart, since a stream of both would depend on where the chunks end
    hashed, lengths = hashlib.sha256(), hashlib.sha256()
    if pa.types.is_list(column.type):
        hashed.update(column_digest(values(column)))
        column = pc.list_value_length(column)
    for chunk in column.chunks:
        if pa.types.is_integer(chunk.type):
            hashed.update(pc.fill_null(chunk.cast(pa.int32()), -1).to_numpy(zero_copy_only=False).tobytes())
            continue
        length = pc.fill_null(pc.binary_length(chunk).cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        lengths.update(length.tobytes())
        if length.clip(0).sum():
            solid = pc.fill_null(chunk.cast(pa.large_binary()), b"")
            offsets = memoryview(solid.buffers()[1]).cast("q")
            hashed.update(memoryview(solid.buffers()[2])[offsets[solid.offset] : offsets[solid.offset + len(solid)]])
    return hashed.digest() + lengths.digest()


def values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values of a column of lists end to end, or another column as it is."""
    return pc.list_flatten(column) if pa.types.is_list(column.type) else column


def each(column: pa.ChunkedArray, change: Callable[[pa.Array], pa.Array], kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column of lists with their values changed to some of type `kind`; null lists stay."""
    found = []
    for chunk in column.chunks:
        lengths = pc.list_value_length(chunk)
        ends = np.cumsum(np.r_[0, pc.fill_null(lengths, 0).to_numpy()], dtype=np.int32)
        inside = change(chunk.flatten()).cast(kind)
        found.append(pa.ListArray.from_arrays(pa.array(ends), inside, mask=pc.is_null(lengths)))
    return pa.chunked_array(found, pa.list_(kind))


class Chunked:
    """A table of which rows are taken again and again; its chunks are listed once."""

    def __init__(self, table: pa.Table) -> None:
        self.schema, self.num_rows, self.batches = table.schema, table.num_rows, table.to_batches()
        self.ends = _ends(self.batches)

    def take(self, rows: np.ndarray) -> pa.Table:
        """Return the rows at `rows`, in that order, in memory of their own.

        Arrow's `take` joins all chunks of a column of strings first: it reads millions of rows for a few of them.
        """
        found = [(batch.take(pa.array(inside)), at) for batch, inside, at in _by_chunk(self.batches, self.ends, rows)]
        whole = pa.Table.from_batches([batch for batch, _ in found], schema=self.schema)
        return whole.take(pa.array(np.argsort(np.concatenate([np.empty(0, np.int64), *(at for _, at in found)]))))


def take(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return the rows of a table at `rows` as `Chunked` does."""
    return Chunked(table).take(rows)


def text_bytes(column: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """Return how many bytes the texts at `rows` of a column of strings have, (rows,) int64, without reading them."""
    found = np.empty(len(rows), dtype=np.int64)
    for chunk, inside, at in _by_chunk(column.chunks, _ends(column.chunks), rows):
        offsets = np.frombuffer(chunk.buffers()[1], np.int64 if pa.types.is_large_string(chunk.type) else np.int32)
        start = offsets[chunk.offset + inside]
        found[at] = offsets[chunk.offset + inside + 1] - start
    return found


def _ends(chunks: Sequence[Any]) -> np.ndarray:
    return np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)


def _by_chunk(
    chunks: Sequence[Any], ends: np.ndarray, rows: np.ndarray
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yield each chunk that has some of the rows, their places in it, and where they stand in `rows`."""
    which = np.searchsorted(ends, rows, "right")
    for index in np.unique(which):
        at = np.flatnonzero(which == index)
        yield chunks[index], rows[at] - (ends[index] - len(chunks[index])), at


def with_texts(table: pa.Table, texts: Mapping[str, Sequence[str] | pa.ChunkedArray]) -> pa.Table:
    """Return a table with other texts, one a row, in some of its columns, and without the places of its rows."""
    found = table.replace_schema_metadata(None)
    for name, values in texts.items():
        at = found.schema.get_field_index(name)
        kind = found.schema.field(at)
        column = values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind.type)
        found = found.set_column(at, kind, column)
    return found


def with_origin(table: pa.Table, file: str, line: int | None) -> pa.Table:
    """Note in a table's metadata which file its rows come from and the line of the first (None: unknown)."""
    return _with_origins(table, [(table.num_rows, file, line)])


def _with_origins(table: pa.Table, origins: Sequence[Origin]) -> pa.Table:
    merged: list[Origin] = []
    # of a table without rows the first file is kept, so that its name can be reported
    for rows, file, line in [origin for origin in origins if origin[0]] or origins[:1]:
        before, same, first = merged[-1] if merged else (0, "", None)
        if file == same and line == (None if first is None else first + before):
            merged[-1] = (before + rows, file, first)
        else:
            merged.append((rows, file, line))
    return table.replace_schema_metadata({"origins": json.dumps(merged)} if merged else None)


def origins_of(table: pa.Table) -> list[Origin]:
    """List (rows, file, line of the first or None) of the runs of rows that a table is made of; empty when unknown."""
    kept = (table.schema.metadata or {}).get(b"origins")
    return [tuple(origin) for origin in json.loads(kept)] if kept else []


def write_split(file: Path, rows: Iterable[tuple[str, pa.Table]]) -> None:
    """Write (language, table) pairs as one Arrow IPC file that `open_split` maps; a language may come several times.

    Pairs are taken one by one, so a generator streams. A language's tables are read fastest where they follow one
    another. All tables have the same columns. The file appears whole or not at all.
    """
    with durable.publishing(file) as draft, pa.OSFile(str(draft), "wb") as sink:
        writer = None
        for language, table in rows:
            plain = table.replace_schema_metadata(None)
            if writer is None:
                schema = plain.schema
                writer = pa.ipc.new_file(sink, schema)
            origins = origins_of(table)
            batches = plain.cast(schema).to_batches(max_chunksize=BATCH_ROWS)
            # a language without rows is kept, so that `check` can report that its file is empty
            for batch in batches or [pa.RecordBatch.from_pylist([], schema=schema)]:
                writer.write_batch(batch, custom_metadata={"language": language, "origins": json.dumps(origins)})
                origins = []  # those of a whole table stand with its first batch
        if writer is None:
            writer = pa.ipc.new_file(sink, pa.schema([]))
        writer.close()


def open_split(file: Path) -> dict[str, pa.Table]:
    """Map what `write_split` wrote: language -> table, in no memory of its own; the file must stay while in use."""
    reader = pa.ipc.open_file(pa.memory_map(str(file), "r"))
    batches: dict[str, list[pa.RecordBatch]] = {}
    origins: dict[str, list[Origin]] = {}
    for index in range(reader.num_record_batches):
        batch, tags = reader.get_batch_with_custom_metadata(index)
        language = tags[b"language"].decode()
        batches.setdefault(language, []).append(batch)
        origins.setdefault(language, []).extend(tuple(origin) for origin in json.loads(tags[b"origins"]))
    return {
        language: _with_origins(pa.Table.from_batches(parts), origins[language]) for language, parts in batches.items()
    }
