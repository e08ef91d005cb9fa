"""Read one local file of rows, of any format, as a stream of tables of strings, or of lists of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from xlt_ray.config.sections import CONLL, CorpusConfig
from xlt_ray.corpora.arrow import BATCH_ROWS, each, with_origin
from xlt_ray.corpora.loaders import conll, delimited, diagnosis, jsonl
from xlt_ray.corpora.loaders.conversion import Note
from xlt_ray.corpora.loaders.diagnosis import (
    TEXT,
    FileFaults,
    columns_of,
    lines_of,
    lists_of,
    require_columns,
    roles,
)
from xlt_ray.languages.words import spans

KINDS = {
    ".conll": "conll",
    ".conllu": "conllu",
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
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


def suffixes_of(kind: str | None) -> set[str]:
    """Return the suffixes of files that a folder may hold of a kind, or where none is asked for of any."""
    if kind in CONLL:
        return {".conll", ".conllu", ".iob", ".iob2", ".bio", ".txt"}
    return {suffix for suffix, one in KINDS.items() if kind in (None, one)}


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
        if config.words is not None and kind in {*delimited.DELIMITERS, *CONLL}:
            raise FileFaults([f"{shown}: {kind} has no lists, as corpus.words wants; write jsonl, or leave that out"])
        if kind in CONLL:
            tables: Tables = ((table, None) for table in conll.tables(file, shown, kind, config, notes))
        elif kind == "parquet" and file.stat().st_size:
            tables = _parquet_tables(file, shown, config)
        else:
            texts = _text_tables(file, shown, kind, config, notes)
            tables = ((shape(table, shown, config, line=line), line) for table, line in texts)
        rows = 0
        for table, line in tables:
            yield with_origin(table, shown, line)
            rows += table.num_rows
        if not rows:
            # a file without rows must not vanish: `check` names it
            yield with_origin(_without_rows(shown, kind, config), shown, None)
    except (pa.ArrowException, OSError, UnicodeError, json.JSONDecodeError, jsonl.NotObject) as error:
        raise FileFaults(_explained(file, shown, kind, config, error)) from error


def _without_rows(shown: str, kind: str, config: CorpusConfig) -> pa.Table:
    if kind in CONLL:
        return conll.SCHEMA.empty_table()
    lists = lists_of(config)
    kinds = {name: pa.list_(pa.string()) if name in lists else pa.string() for name in columns_of(config)}
    return shape(pa.schema(kinds).empty_table(), shown, config)


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


def shape(
    table: pa.Table, shown: str, config: CorpusConfig, names: Sequence[str] | None = None, line: int | None = None
) -> pa.Table:
    """Keep the columns asked for, as strings under our names; `names` are those of integer labels (ClassLabel).

    Words and their tags stay lists. Raises FileFaults where a text does not hold its words; `line` is that of the first
    row.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    given = table.column_names
    for role, parts in roles(config).items():
        where = f"{shown}: column {parts[0]!r} (corpus.{role})"
        if parts[0] in lists_of(config):
            columns[role] = _lists(table[parts[0]], where, role, names if role == "label" else None)
            continue
        if config.words is not None and parts == (TEXT,) and TEXT not in given:
            continue
        texts = [_text(table[part], f"{shown}: column {part!r} (corpus.{role})", role) for part in parts]
        if role.startswith("text"):
            columns[role] = texts[0] if len(texts) == 1 else _joined(texts)
        elif role == "label" and names is not None:
            columns[role] = _named(table[parts[0]], names)
        else:
            columns[role] = _filled(texts[0])
    stated = "text" in columns
    if config.words is not None:
        joined = pc.binary_join(columns["words"], " ")
        columns["text"] = pc.coalesce(_filled(columns["text"]), joined) if "text" in columns else joined
    for role in ("text", "text_pair"):
        columns |= {role: pc.fill_null(columns[role], "")} if role in columns else {}
    whole = pa.table(columns)
    if stated and config.words is not None:
        _require_words_in_text(whole, shown, line)
    return whole


def _filled(text: pa.ChunkedArray) -> pa.ChunkedArray:
    blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(text)), 0)
    return pc.if_else(pc.fill_null(blank, True), pa.scalar(None, pa.string()), text)


def _lists(column: pa.ChunkedArray, where: str, role: str, names: Sequence[str] | None) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.list_(pa.string()))
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise FileFaults([f"{where} holds {kind}, and tagged words want a list; name another column"])

    def change(values: pa.Array) -> pa.Array:
        whole = pa.chunked_array([values])
        text = _text(whole, where, role)
        named = text if role == "words" else _filled(text) if names is None else _named(whole, names)
        return named.combine_chunks()

    return each(column, change, pa.string())


def _require_words_in_text(table: pa.Table, shown: str, line: int | None) -> None:
    faults = []
    for row, (text, listed) in enumerate(zip(table["text"].to_pylist(), table["words"].to_pylist(), strict=True)):
        words = listed or []
        if None in words or text == " ".join(words):  # `check` refuses the former
            continue
        found = spans(text, words)
        end = found[-1][1] if found else 0
        if len(found) < len(words) or text[end:].strip():
            there = f"word {words[len(found)]!r}" if len(found) < len(words) else "the end of the words"
            place = shown if line is None else f"{shown}, line {line + row}"
            faults.append(f"{place}: {there} is not what follows in its text at {text[end:][:40]!r}")
    if faults:
        more = f" (and {len(faults) - 1} more rows)" if len(faults) > 1 else ""
        raise FileFaults(
            [f"{faults[0]}{more}; correct either, or take the text's column away: words are then joined by spaces"]
        )


def _text(column: pa.ChunkedArray, where: str, role: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    whole = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    whole = whole or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    if not whole and not (role.startswith("text") and pa.types.is_floating(kind)):
        remedy = (
            "store it as text, or name another column"
            + listed * ", or where words are tagged that of words in corpus.words"
        )
        raise FileFaults([f"{where} holds {kind}, which is no {role}; {remedy}"])
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
        notes.append((conll.EMPTY, shown))
        return
    wanted = columns_of(config)
    if kind == "jsonl":
        if fault := jsonl.other_layout(file, shown, lists_of(config)):
            raise FileFaults([fault])
        types = jsonl.types_of(file, wanted, lists_of(config))
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
    feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)  # that of a list's values
    return list(feature["names"]) if feature.get("_type") == "ClassLabel" else None
