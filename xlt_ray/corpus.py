"""Labelled rows per split and language, kept on disk as Arrow tables.

A split is one Arrow IPC file whose batches are tagged with their language; opened memory-mapped, its tables cost
address space and no memory. Nothing here turns a whole column into Python objects, so millions of rows are fine.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.config import InputError

SPLITS = ("train", "dev", "test")
BATCH_ROWS = 65_536
SHOWN_FAULTS = 20

# number of rows, the file they come from, the line of the first; rows of one origin stand on successive lines
Origin = tuple[int, str, int | None]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Rows of train, dev and test per language. A table has the columns `text` (string), `label` (int32, an index into
    `labels`), `id` (string) and, in pair tasks alone, `text_pair` (string)."""

    name: str
    labels: tuple[str, ...]
    splits: Mapping[str, Mapping[str, pa.Table]] = field(repr=False)
    licence: str = ""
    # the user or the loader listed the labels, so one that only some languages have is meant
    labels_stated: bool = False
    # labels whose rows are left out, and how many they were: split -> language -> number
    drop_labels: tuple[str, ...] = ()
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict, repr=False)
    # labels of rows that are outside `labels`: index len(labels) + k is unknown_labels[k]; `check` refuses such rows
    unknown_labels: tuple[str, ...] = ()
    # what its reader decided or left out, for `prepare` to tell
    notes: tuple[str, ...] = ()

    def table(self, split: str, language: str) -> pa.Table:
        """Give the rows of one language in one split; raise InputError when there are none."""
        found = self.splits.get(split, {}).get(language)
        if found is None:
            raise InputError(f"corpus {self.name}, {split}: no {language}; {offer(language, self.languages(split))}")
        return found

    def languages(self, split: str) -> tuple[str, ...]:
        """List the languages that have rows in this split, sorted."""
        return tuple(sorted(code for code, table in self.splits.get(split, {}).items() if table.num_rows))

    def sizes(self, split: str) -> dict[str, int]:
        """Count the rows of every language of a split, also where there are none."""
        return {language: table.num_rows for language, table in sorted(self.splits.get(split, {}).items())}

    def measured(self, sources: Sequence[str], targets: Sequence[str] | Literal["all"]) -> tuple[str, ...]:
        """List, sorted, the languages to measure: targets ("all": whatever has test rows), and sources with some."""
        tested = self.languages("test")
        wanted = tested if targets == "all" else targets
        return tuple(sorted({*wanted, *(language for language in sources if language in tested)}))

    def for_training(self, sources: Sequence[str], targets_dev: bool = False) -> Corpus:
        """Keep train and dev of the sources alone, so that whatever trains on it cannot see a target's label.

        `targets_dev` keeps the dev rows of every language: the oracle, whose scores are no zero-shot result.
        """
        dev = self.languages("dev") if targets_dev else sources
        return replace(self, splits={"train": self._only("train", sources), "dev": self._only("dev", dev), "test": {}})

    def for_testing(self) -> Corpus:
        """Keep test alone."""
        return replace(self, splits={"train": {}, "dev": {}, "test": self._only("test", self.languages("test"))})

    def unlabelled(self, languages: Iterable[str], ids: bool = False) -> dict[str, pa.Table]:
        """Give the texts of languages without their labels: rows of train, else of dev, never of test.

        A table has `text` and, in pair tasks, `text_pair` alone, besides `id` where `ids` asks for it; a language
        without such rows is absent.
        """
        columns = ("text", "text_pair", *(["id"] if ids else []))
        texts = {}
        for language in languages:
            tables = [self.splits.get(split, {}).get(language) for split in ("train", "dev")]
            table = next((table for table in tables if table is not None and table.num_rows), None)
            if table is not None:
                texts[language] = table.select([c for c in columns if c in table.column_names])
        return texts

    def _only(self, split: str, languages: Iterable[str]) -> dict[str, pa.Table]:
        tables = self.splits.get(split, {})
        return {language: tables[language] for language in languages if language in tables}

    @property
    def has_pairs(self) -> bool:
        """Whether rows are pairs of texts."""
        return any("text_pair" in table.column_names for _, _, table in self.tables())

    def tables(self) -> Iterator[tuple[str, str, pa.Table]]:
        """Go through (split, language, table), in a fixed order."""
        for split in SPLITS:
            for language in self.languages(split):
                yield split, language, self.splits[split][language]

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of labels and rows in their order, the same wherever they lie and however they are chunked."""
        digest = hashlib.sha256(json.dumps([self.labels, self.unknown_labels]).encode())
        for split, language, table in self.tables():
            digest.update(json.dumps([split, language, table.num_rows]).encode())
            for column in ("text", "text_pair", "id", "label"):
                if column in table.column_names:
                    digest.update(column.encode() + column_digest(table[column]))
        return digest.hexdigest()


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


def taken_from(table: pa.Table, rows: pa.Table) -> pa.Table:
    """Note that rows come from the file of the table they were taken out of, and that their lines are not known.

    They no longer follow one another.
    """
    origins = origins_of(table)
    return with_origin(rows, origins[0][1], None) if origins else rows


def place(corpus: Corpus, split: str, language: str, row: int) -> str:
    """Say where a row comes from: file and line where known, else file or split, language and the row's id."""
    table = corpus.table(split, language)
    name = f"{split}, {language}, row {table['id'][row].as_py()}"
    for rows, file, line in origins_of(table):
        if row < rows:
            return f"{file}, {name}" if line is None else f"{file}, line {line + row}"
        row -= rows
    return name


def first_of(corpus: Corpus, split: str, language: str, bad: pa.ChunkedArray, what: str, remedy: str) -> Iterator[str]:
    """Say of rows marked as bad where the first is and how many more there are; nothing where none is."""
    count = pc.sum(bad).as_py() or 0
    if count:
        others = f" (and {count - 1} more rows of {split}, {language})" if count > 1 else ""
        row = pc.index(bad, True).as_py()
        yield f"{place(corpus, split, language, row)}: {what}{others}; {remedy}"


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


def offer(language: str, there: Sequence[str]) -> str:
    """Say what to do about a language that is not there, naming those that are."""
    if not there:
        return "no language has this split; check corpus.path and corpus.splits"
    near = difflib.get_close_matches(language, there, n=3, cutoff=0.4)
    some = ", ".join(near or there[:10])
    return f"add its rows, or take a language that has it, such as {some}"


def refuse(title: str, faults: Sequence[str]) -> NoReturn:
    """Raise one InputError that lists faults, the first 20 of them and then a count."""
    shown = [f"  {fault}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        shown.append(f"  ... and {len(faults) - SHOWN_FAULTS} more")
    message = "\n".join([f"{title}: {len(faults)} fault{'s' if len(faults) > 1 else ''}", *shown])
    raise InputError(message, faults)
