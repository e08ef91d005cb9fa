"""Read one local tsv, csv, jsonl or parquet file as a stream of tables of strings."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from xlt_ray.config import CorpusConfig
from xlt_ray.corpora.diagnosis import FileFaults, NotObject, diagnose, json_row, lines_of, missing_columns, roles
from xlt_ray.corpus import BATCH_ROWS, with_origin

KINDS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
PACKED = (".gz", ".bz2", ".zst")
BLOCK = 8 << 20  # bytes Arrow parses at once, so the longest line it can take
PEEKED = 1000  # lines of a jsonl file that tell its columns and their types

ARROW_TYPES: dict[type, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def kind_of(name: str) -> str | None:
    """Tell the kind of a file by its name, looking through .gz, .bz2 and .zst; None: not one of those read here."""
    name = name.split("?")[0].lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((kind for suffix, kind in KINDS.items() if name.endswith(suffix)), None)


def read(file: Path, shown: str, kind: str, config: CorpusConfig) -> Iterator[pa.Table]:
    """Give the rows of one file as tables of strings: text, label, and where asked for text_pair, id and language.

    Labels and ids that are empty are null; texts never are. `shown` is the file's name for messages. Raises FileFaults.
    """
    try:
        there = _header(file, kind)
        faults = missing_columns(shown, there, config) if any(there) else diagnose(file, shown, kind, config)
        blank, quotes = (True, 0) if kind == "parquet" or faults else _measure(file)
        if kind == "csv" and quotes % 2:
            # Arrow may take all that follows an open quote for one unfinished row and leave it out without a word
            faults = diagnose(file, shown, kind, config)
        if faults:
            raise FileFaults(faults)
        # the line of a row is known where every row is one line
        line = None if blank or (kind == "csv" and quotes) else 1 if kind == "jsonl" else 2
        rows = 0
        for table, names in _tables(file, kind, config):
            yield with_origin(shape(table, shown, config, names), shown, None if line is None else line + rows)
            rows += table.num_rows
    except (pa.ArrowException, OSError, UnicodeError, json.JSONDecodeError, NotObject) as error:
        remedy = "check that it is complete and of this format, or set corpus.format"
        raise FileFaults(
            diagnose(file, shown, kind, config) or [f"{shown}: cannot be read as {kind} ({error}); {remedy}"]
        ) from error


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


def _header(file: Path, kind: str) -> list[str]:
    if kind == "parquet":
        return list(pa.parquet.read_schema(file).names)
    if kind == "jsonl":
        return list(_json_types(file))
    with lines_of(file) as stream:
        line = stream.readline().decode("utf-8-sig").rstrip("\r\n")
    # a file of the old Mac has no other line break
    line = line.split("\r")[0]
    return line.split("\t") if kind == "tsv" else next(csv.reader([line]), [])


def _measure(file: Path) -> tuple[bool, int]:
    """Tell whether blank lines stand between others, and count double quotes."""
    blank, quotes, carried = False, 0, b""
    with lines_of(file) as stream:
        while data := stream.read(1 << 20):
            data = carried + data
            body = data.rstrip(b"\r\n")
            carried = data[len(body) :]
            blank = blank or b"\n\n" in body or b"\n\r\n" in body
            quotes += body.count(b'"')
    return blank, quotes


def _tables(file: Path, kind: str, config: CorpusConfig) -> Iterator[tuple[pa.Table, Sequence[str] | None]]:
    wanted = list(dict.fromkeys(itertools.chain(*roles(config).values())))
    if kind == "parquet":
        with pa.parquet.ParquetFile(file) as parquet:
            names = _class_names(parquet.schema_arrow, config.label)
            empty = parquet.schema_arrow.empty_table().select(wanted)
            batches: Iterable[pa.RecordBatch] = parquet.iter_batches(batch_size=BATCH_ROWS, columns=wanted)
            yield from ((table, names) for table in _or_empty(batches, empty))
        return
    with pa.input_stream(str(file), compression="detect") as stream:
        empty = pa.schema([(name, pa.string()) for name in wanted]).empty_table()
        batches = _json(stream, file, wanted) if kind == "jsonl" else _delimited(stream, kind, wanted)
        yield from ((table, None) for table in _or_empty(batches, empty))


def _or_empty(batches: Iterable[pa.RecordBatch], empty: pa.Table) -> Iterator[pa.Table]:
    # a file without rows must not vanish: `check` names it
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        yield pa.Table.from_batches([batch])
    if not rows:
        yield empty


def _delimited(stream: pa.NativeFile, kind: str, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    quoted = kind == "csv"
    yield from pa.csv.open_csv(
        stream,
        read_options=pa.csv.ReadOptions(block_size=BLOCK),
        # in a tsv a double quote is a character like any other
        parse_options=pa.csv.ParseOptions(
            delimiter="," if quoted else "\t",
            quote_char='"' if quoted else False,
            double_quote=quoted,
            newlines_in_values=quoted,
        ),
        # texts such as NA, null and 007 stay what they are
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in wanted},
            include_columns=list(wanted),
            strings_can_be_null=False,
        ),
    )


def _json(stream: pa.NativeFile, file: Path, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    types = _json_types(file)
    schema = pa.schema([(name, ARROW_TYPES.get(types[name], pa.string())) for name in wanted])
    yield from pa.json.open_json(
        stream,
        read_options=pa.json.ReadOptions(block_size=BLOCK),
        parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )


def _json_types(file: Path) -> dict[str, type]:
    """Give the columns of a jsonl file's first lines, each with the type of its first value that is not null."""
    types: dict[str, type] = {}
    with lines_of(file) as stream:
        for line in itertools.islice(stream, PEEKED):
            for name, value in (json_row(line) if line.strip() else {}).items():
                if types.get(name, type(None)) is type(None):
                    types[name] = type(value)
    return types


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Read the label names that `datasets` writes into a parquet file's metadata for a ClassLabel column."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(column, {})
    return list(feature["names"]) if feature.get("_type") == "ClassLabel" else None
