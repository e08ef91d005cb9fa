"""Splits of a corpus as Arrow IPC files, and where each of their rows came from."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

BATCH_ROWS = 65_536

# number of rows, the file they come from, the line of the first; rows of one origin stand on successive lines
Origin = tuple[int, str, int | None]


def column_digest(column: pa.ChunkedArray) -> bytes:
    """Sha256 of an integer or string column's values and lengths, 64 bytes, however it is chunked."""
    # values and lengths are hashed apart, since a stream of both would depend on where the chunks end
    values, lengths = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        if pa.types.is_integer(chunk.type):
            values.update(pc.fill_null(chunk.cast(pa.int32()), -1).to_numpy(zero_copy_only=False).tobytes())
            continue
        length = pc.fill_null(pc.binary_length(chunk).cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        lengths.update(length.tobytes())
        if length.clip(0).sum():
            solid = pc.fill_null(chunk.cast(pa.large_binary()), b"")
            offsets = memoryview(solid.buffers()[1]).cast("q")
            values.update(memoryview(solid.buffers()[2])[offsets[solid.offset] : offsets[solid.offset + len(solid)]])
    return values.digest() + lengths.digest()


def with_origin(table: pa.Table, file: str, line: int | None) -> pa.Table:
    """Note in a table's metadata which file its rows come from and the line of the first (None: unknown)."""
    return _with_origins(table, [(table.num_rows, file, line)])


def _with_origins(table: pa.Table, origins: Sequence[Origin]) -> pa.Table:
    merged: list[Origin] = []
    for rows, file, line in origins:
        if merged and merged[-1][1] == file and _follows(merged[-1], line):
            rows, line = rows + merged[-1][0], merged[-1][2]
            merged.pop()
        merged.append((rows, file, line))
    return table.replace_schema_metadata({"origins": json.dumps(merged)} if merged else None)


def _follows(before: Origin, line: int | None) -> bool:
    rows, _, first = before
    return line is None if first is None else line == first + rows


def origins_of(table: pa.Table) -> list[Origin]:
    """List (rows, file, line of the first or None) of the runs of rows that a table is made of; empty when unknown."""
    kept = (table.schema.metadata or {}).get(b"origins")
    return [tuple(origin) for origin in json.loads(kept)] if kept else []


def write_split(file: Path, rows: Iterable[tuple[str, pa.Table]]) -> None:
    """Write (language, table) pairs as one Arrow IPC file that `open_split` maps; a language may come several times.

    Pairs are taken one by one, so a generator streams. Give a language's tables one after another for quick reading.
    The file appears whole or not at all: it is written beside its name and renamed. All tables have the same columns.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    passing = file.with_name(f".{file.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        with pa.OSFile(str(passing), "wb") as sink:
            _write_batches(sink, rows)
        os.replace(passing, file)
    finally:
        passing.unlink(missing_ok=True)


def _write_batches(sink: pa.NativeFile, rows: Iterable[tuple[str, pa.Table]]) -> None:
    writer = None
    for language, table in rows:
        origins = origins_of(table)
        plain = table.replace_schema_metadata(None)
        if writer is None:
            schema = plain.schema
            writer = pa.ipc.new_file(sink, schema)
        start = 0
        batches = plain.cast(schema).to_batches(max_chunksize=BATCH_ROWS)
        # a language without rows is kept, so that `check` can say that its file is empty
        for batch in batches or [pa.RecordBatch.from_pylist([], schema=schema)]:
            mine = _part(origins, start, batch.num_rows)
            writer.write_batch(batch, custom_metadata={"language": language, "origins": json.dumps(mine)})
            start += batch.num_rows
    if writer is None:
        writer = pa.ipc.new_file(sink, pa.schema([]))
    writer.close()


def _part(origins: Sequence[Origin], start: int, rows: int) -> list[Origin]:
    part: list[Origin] = []
    at = 0
    for count, file, line in origins:
        low, high = max(at, start), min(at + count, start + rows)
        if low < high or (rows == 0 and not part):
            part.append((high - low, file, None if line is None else line + low - at))
        at += count
    return part


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
