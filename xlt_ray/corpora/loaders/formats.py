"""Read one local tsv, csv, jsonl or parquet file as a stream of tables of strings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora.arrow import BATCH_ROWS, with_origin
from xlt_ray.corpora.loaders import delimited, diagnosis, jsonl
from xlt_ray.corpora.loaders.conversion import Note
from xlt_ray.corpora.loaders.diagnosis import FileFaults, columns_of, lines_of, require_columns, roles

KINDS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
EMPTY = "empty, taken as no rows"
QUOTED = "double quotes are read as enclosing fields; corpus.quoting=plain reads them as characters"

Tables = Iterator[tuple[pa.Table, int | None]]  # each with the line of its first row, where its rows are one line each


class Measure(NamedTuple):
    """What the bytes of a text file show before it is parsed."""

    empty: bool  # nothing but white space
    one_line: bool
    broken: bool  # lines and rows are not one to one
    quotes: bool


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its name, ignoring .gz, .bz2 and .zst; None: not one of those read here."""
    return next((kind for suffix, kind in KINDS.items() if unpacked(name).endswith(suffix)), None)


def unpacked(name: str) -> str:
    """Return the name of a file, in lower case, without the suffix of its compression."""
    name = name.lower()
    for packed in diagnosis.PACKED:
        name = name.removesuffix(packed)
    return name


def read(file: Path, shown: str, kind: str, config: CorpusConfig, notes: list[Note]) -> Iterator[pa.Table]:
    """Yield the rows of one file as tables of strings: text, label, and where asked for text_pair, id and language.

    Labels and ids that are empty are null; texts never are. `shown` is the file's name for messages; what should be
    known of a file that can be read is appended to `notes`. Raises FileFaults.
    """
    try:
        if fault := diagnosis.foreign(file, shown, kind):
            raise FileFaults([fault])
        if kind == "parquet" and file.stat().st_size:
            tables = _parquet_tables(file, shown, config)
        else:
            texts = _text_tables(file, shown, kind, config, notes)
            tables = ((shape(table, shown, config), line) for table, line in texts)
        rows = 0
        for table, line in tables:
            yield with_origin(table, shown, line)
            rows += table.num_rows
        if not rows:
            # a file without rows must not vanish: `check` names it
            empty = pa.schema([(name, pa.string()) for name in columns_of(config)]).empty_table()
            yield with_origin(shape(empty, shown, config), shown, None)
    except (pa.ArrowException, OSError, UnicodeError, json.JSONDecodeError, jsonl.NotObject) as error:
        raise FileFaults(_explained(file, shown, kind, config, error)) from error


def _explained(file: Path, shown: str, kind: str, config: CorpusConfig, error: Exception) -> list[str]:
    try:
        found = [] if kind == "parquet" else diagnosis.undecodable(file, shown)
        if not found and kind == "jsonl":
            found = jsonl.faults(file, shown, config)
        elif not found and kind in delimited.DELIMITERS:
            found = delimited.plain_faults(file, shown, kind, columns_of(config))
    except OSError as unread:
        return [f"{shown}: cannot be read ({unread}); copy it again"]
    remedy = "check that it is complete and of this format, or set corpus.format"
    return found or [f"{shown}: cannot be read as {kind} ({error}); {remedy}"]


def shape(table: pa.Table, shown: str, config: CorpusConfig, names: Sequence[str] | None = None) -> pa.Table:
    """Keep the columns asked for, as strings under our names; `names` are those of integer labels (ClassLabel)."""
    columns: dict[str, pa.ChunkedArray] = {}
    for role, parts in roles(config).items():
        texts = [_text(table[part], f"{shown}: column {part!r} (corpus.{role})", role) for part in parts]
        if role.startswith("text"):
            columns[role] = pc.fill_null(texts[0], "") if len(texts) == 1 else _joined(texts)
        elif role == "label" and names is not None:
            columns[role] = _named(table[parts[0]], names)
        else:
            blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts[0])), 0)
            columns[role] = pc.if_else(pc.fill_null(blank, True), pa.scalar(None, pa.string()), texts[0])
    return pa.table(columns)


def _text(column: pa.ChunkedArray, where: str, role: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    whole = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    whole = whole or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    if not whole and not (role.startswith("text") and pa.types.is_floating(kind)):
        raise FileFaults([f"{where} holds {kind}, which is no {role}; store it as text, or name another column"])
    text = column.cast(kind).cast(pa.string())
    text.validate(full=True)
    return text


def _joined(texts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    parts = [pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text) for text in texts]
    return pc.binary_join_element_wise(*parts, " ", null_handling="skip")


def _named(column: pa.ChunkedArray, names: Sequence[str]) -> pa.ChunkedArray:
    # -1 is what data sets write for a row without a label
    known = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names)))
    numbers = pc.if_else(known, column.cast(pa.int64()), pa.scalar(None, pa.int64()))
    return pc.take(pa.chunked_array([pa.array(names, pa.string())]), numbers)


def _measure(file: Path) -> Measure:
    empty, one_line, broken, quotes, carried = True, True, False, False, b"\n"
    with lines_of(file) as stream:
        while data := stream.read(1 << 20):
            data = carried + data
            body = data.rstrip(b"\r\n")
            carried = data[len(body) :]
            text = body.lstrip(b"\r\n") if empty else body
            one_line = one_line and b"\n" not in text and b"\r" not in text
            empty = empty and not body.strip().removeprefix(b"\xef\xbb\xbf")
            broken = broken or b"\n\n" in body or b"\n\r\n" in body or body.count(b"\r") > body.count(b"\r\n")
            quotes = quotes or b'"' in body
    return Measure(empty, one_line, broken, quotes)


def _text_tables(file: Path, shown: str, kind: str, config: CorpusConfig, notes: list[Note]) -> Tables:
    measure = _measure(file)
    if measure.empty:
        notes.append((EMPTY, shown))
        return
    wanted = columns_of(config)
    if kind == "jsonl":
        if fault := jsonl.other_layout(file, shown):
            raise FileFaults([fault])
        types = jsonl.types_of(file, wanted)
        require_columns(shown, list(types), config)
        with pa.input_stream(str(file), compression="detect") as stream:
            yield from _numbered(jsonl.batches(stream, types, wanted), None if measure.broken else 1)
        return
    header = delimited.plain_header(file, delimited.DELIMITERS[kind])
    if fault := delimited.other_separator(shown, kind, header, config):
        raise FileFaults([fault])
    if measure.quotes and delimited.quoted(file, shown, kind, config):
        if kind == "tsv" and config.quoting == "auto":
            notes.append((QUOTED, shown))
        yield from delimited.strict_tables(file, shown, kind, wanted, config)
        return
    require_columns(shown, header, config)
    if measure.one_line:
        return  # Arrow refuses a header without a line break
    with pa.input_stream(str(file), compression="detect") as stream:
        yield from _numbered(delimited.plain_batches(stream, kind, wanted), None if measure.broken else 2)


def _numbered(batches: Iterable[pa.RecordBatch], line: int | None) -> Tables:
    for batch in batches:
        yield pa.Table.from_batches([batch]), line
        line = None if line is None else line + batch.num_rows


def _parquet_tables(file: Path, shown: str, config: CorpusConfig) -> Tables:
    with pa.parquet.ParquetFile(file) as parquet:
        require_columns(shown, parquet.schema_arrow.names, config)
        names = _class_names(parquet.schema_arrow, config.label)
        # columns of a wrong type are refused also where there are no rows
        shape(parquet.schema_arrow.empty_table(), shown, config, names)
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns_of(config)):
            yield shape(pa.Table.from_batches([batch]), shown, config, names), None


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Read the label names that `datasets` writes into a parquet file's metadata for a ClassLabel column."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(column, {})
    return list(feature["names"]) if feature.get("_type") == "ClassLabel" else None
