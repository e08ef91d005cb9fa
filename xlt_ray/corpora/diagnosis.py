"""What is wrong with a file of rows, line by line: found by going through it slowly, once Arrow has failed on it."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from xlt_ray.config import CorpusConfig, InputError
from xlt_ray.corpus import SHOWN_FAULTS


class FileFaults(InputError):
    """What is wrong with one file, each fault with place, value and remedy."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


def roles(config: CorpusConfig) -> dict[str, tuple[str, ...]]:
    """List the columns that make up each of text, text_pair, label, id and language, where they are asked for."""
    asked = {role: getattr(config, role) for role in ("text", "text_pair", "label", "id", "language")}
    return {
        role: tuple(names.split("+")) if role.startswith("text") else (names,) for role, names in asked.items() if names
    }


def missing_columns(shown: str, there: Sequence[str], config: CorpusConfig) -> list[str]:
    """Say which of the columns asked for a file does not have, or has twice."""
    faults = []
    for role, names in roles(config).items():
        for name in names:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            remedy = f"did you mean corpus.{role}={near[0]}?" if near else f"set corpus.{role} to one of these"
            if name not in there:
                faults.append(f"{shown}: no column {name!r} for corpus.{role}; it has {', '.join(there)}; {remedy}")
            elif there.count(name) > 1:
                faults.append(f"{shown}: column {name!r} (corpus.{role}) stands there twice; rename one of them")
    return faults


def lines_of(file: Path) -> io.BufferedReader:
    """Open a file as bytes, unpacked where its name says that it is packed."""
    return io.BufferedReader(pa.input_stream(str(file), compression="detect"), 1 << 20)


class NotObject(ValueError):
    """A line of a jsonl file is JSON but no object."""


def json_row(line: bytes) -> dict[str, Any]:
    """Parse one line of a jsonl file; raise UnicodeDecodeError, json.JSONDecodeError or NotObject."""
    row = json.loads(line.decode("utf-8-sig"))
    if not isinstance(row, dict):
        raise NotObject(f"{type(row).__name__} instead of an object")
    return row


def diagnose(file: Path, shown: str, kind: str, config: CorpusConfig) -> list[str]:
    """Find the faults of a text file line by line, at most 20; none where nothing is seen to be wrong."""
    if kind == "parquet":
        return []
    found = {"tsv": _ragged_tsv, "csv": _ragged_csv, "jsonl": _bad_json}[kind]
    for search in (_undecodable, found):
        try:
            faults = list(itertools.islice(search(file, shown, config), SHOWN_FAULTS))
        except OSError as error:
            return [f"{shown}: cannot be read ({error}); copy it again"]
        if faults:
            return faults
    return []


def _undecodable(file: Path, shown: str, config: CorpusConfig) -> Iterator[str]:
    start = 0
    with lines_of(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = line[error.start : error.start + 1].hex()
                yield (
                    f"{shown}, line {number}: byte {start + error.start} of the file (0x{bad}) is not UTF-8; "
                    "convert it, from the encoding it has: iconv -f latin1 -t utf-8 OLD > NEW"
                )
            start += len(line)
    if start == 0:
        yield f"{shown}: empty; give it a header and rows, or remove it"


def _ragged_tsv(file: Path, shown: str, config: CorpusConfig) -> Iterator[str]:
    width = 0
    with lines_of(file) as stream:
        for number, line in enumerate(stream, 1):
            columns = line.rstrip(b"\r\n").count(b"\t") + 1
            width = width or columns
            if columns != width and line.strip(b"\r\n"):
                yield _ragged(f"{shown}, line {number}", columns, width, line.decode(), "tab")


def _ragged_csv(file: Path, shown: str, config: CorpusConfig) -> Iterator[str]:
    width, before = 0, 0
    with io.TextIOWrapper(lines_of(file), encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            for row in rows:
                width = width or len(row)
                if row and len(row) != width:
                    yield _ragged(f"{shown}, line {before + 1}", len(row), width, ",".join(row), "comma")
                before = rows.line_num
        except csv.Error as error:
            yield (
                f"{shown}, line {before + 1}: {error} in the row that starts here; close the quote and write a double "
                'quote inside a quoted text as ""'
            )


def _ragged(place: str, columns: int, width: int, line: str, separator: str) -> str:
    return (
        f"{place}: {columns} columns where the header has {width} ({line.strip()[:60]!r}); a text holds a {separator} "
        f"or a line break: take it out, or write the file as jsonl"
    )


def _bad_json(file: Path, shown: str, config: CorpusConfig) -> Iterator[str]:
    kinds: dict[str, type] = {}
    with lines_of(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json_row(line)
            except (json.JSONDecodeError, NotObject) as error:
                yield f"{shown}, line {number}: {error}; write one JSON object a line, as `jq -c` does"
                continue
            for name in itertools.chain(*roles(config).values()):
                value = row.get(name)
                if value is not None and not isinstance(value, kinds.setdefault(name, type(value))):
                    yield (
                        f"{shown}, line {number}: {name!r} is {type(value).__name__} ({str(value)[:40]!r}) and "
                        f"{kinds[name].__name__} before; write it as text everywhere"
                    )
