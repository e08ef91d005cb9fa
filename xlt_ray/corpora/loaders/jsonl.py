"""Read jsonl, a JSON object a line, and describe what is wrong with a file that is not."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from xlt_ray import sniff
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora.loaders.diagnosis import BLOCK, columns_of, first_of, lines_of, lists_of, refused

PEEKED = 1000  # lines that show a file's columns and their types
NULL = type(None)
ARROW_TYPES: dict[Any, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
ARROW_TYPES |= {list[kind]: pa.list_(arrow) for kind, arrow in ARROW_TYPES.items()}  # type: ignore[valid-type]

# programs that turn other JSON, from standard input, into rows, and half characters into question marks
ROWS = "import json,re,sys; [print(json.dumps(row)) for row in {}]"
COLUMNS = (
    "(lambda d: [dict(zip(d, row)) for row in zip(*(c.values() if isinstance(c, dict) else c for c in d.values()))])"
    "(json.load(sys.stdin))"
)
ONE_BY_ONE = r'map(json.loads, re.split(r"(?<=\})\s*\n(?=\{)", sys.stdin.read().strip()))'
WHOLE = (
    "import json,sys; [print(json.dumps(json.loads(line), ensure_ascii=False)"
    '.encode("utf-8", "replace").decode()) for line in sys.stdin]'
)


HALF = re.compile("[^\ud800-\udfff]{0,20}([\ud800-\udfff])")


class NotObject(ValueError):
    """A line of a jsonl file is JSON but no object."""


def row_of(line: bytes) -> dict[str, Any]:
    """Parse one line; raise UnicodeDecodeError, json.JSONDecodeError or NotObject."""
    row = json.loads(line.decode("utf-8-sig"))
    if not isinstance(row, dict):
        raise NotObject(f"{type(row).__name__} instead of an object")
    return row


def _type(value: Any, listed: bool) -> Any:
    """Return the type of a value, of a list of words or tags with that of its first value."""
    if not listed or not isinstance(value, list):
        return type(value)
    return next((list[type(one)] for one in value if one is not None), NULL)  # type: ignore[misc]


def types_of(file: Path, wanted: Sequence[str], lists: Collection[str] = ()) -> dict[str, Any]:
    """Return the columns of a file's first lines, each with the type of its first value that is not null.

    1000 lines are read, and more where a wanted column is null in all of them. Of `lists` the type is that of a list's
    values too, as in list[str].
    """
    types: dict[str, Any] = {}
    with lines_of(file) as stream:
        for number, line in enumerate(stream):
            if number >= PEEKED and all(types.get(name) is not NULL for name in wanted):
                break
            for name, value in (row_of(line) if line.strip() else {}).items():
                if types.get(name, NULL) is NULL:
                    types[name] = _type(value, name in lists)
    return types


def batches(stream: pa.NativeFile, types: dict[str, Any], wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read the wanted columns with Arrow, each by its type in `types`."""
    schema = pa.schema([(name, ARROW_TYPES.get(types.get(name, str), pa.string())) for name in wanted])
    yield from pa.json.open_json(
        stream,
        read_options=pa.json.ReadOptions(block_size=BLOCK),
        parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )


def other_layout(file: Path, shown: str, lists: Collection[str] = ()) -> str | None:
    """Describe a file that is one array, one object or objects over several lines, with a remedy; else None.

    `lists` are columns that hold lists in a row.
    """
    with lines_of(file) as stream:
        lines = stream.read(sniff.HEAD).decode("utf-8-sig", "ignore").lstrip().splitlines()
    if not lines or not lines[0].startswith(("[", "{")):
        return None
    try:
        first = json.loads(lines[0])
    except json.JSONDecodeError:
        # an object that is cut off has others below it
        first = None if len(lines) > 1 and lines[1].startswith("{") else ...
    if lines[0].startswith("[") and (first is ... or (first and isinstance(first[0], dict))):
        what, rows = "one JSON array", "json.load(sys.stdin)"
    elif first is ... and len(lines) > 1:
        what, rows = _over_lines(file)
    elif isinstance(first, dict) and len(lines) == 1 and not {*lists} & {*first} and (layout := _layout(first)):
        what, rows = layout
    else:
        return None
    convert = sniff.in_place(f"python3 -c {shlex.quote(ROWS.format(rows))}", shown)
    return f"{shown}: {what}, not a JSON object a line; {convert} writes it so"


def _over_lines(file: Path) -> tuple[str, str]:
    with lines_of(file) as stream:
        text = stream.read(8 * BLOCK).decode("utf-8-sig", "ignore")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return "JSON objects over several lines", ONE_BY_ONE
    return _layout(whole) or ("one JSON object", "[json.load(sys.stdin)]")


def _layout(whole: dict[str, Any]) -> tuple[str, str] | None:
    for name, rows in whole.items():
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            return f"one JSON object with its rows in {name!r}", f"json.load(sys.stdin)[{json.dumps(name)}]"
    if len(whole) > 1 and all(isinstance(column, list | dict) for column in whole.values()):
        return "one JSON object that holds columns", COLUMNS
    return None


def faults(file: Path, shown: str, config: CorpusConfig) -> list[str]:
    """Find what makes a file unreadable, at most 20 faults with their exact lines; none where all of it can be read."""
    wanted, lists = columns_of(config), lists_of(config)
    try:
        types = types_of(file, wanted, lists)
    except ValueError:
        types = {}
    remedy = "correct the line (a number in quotes is text) or remove it"
    return first_of(
        _bad_rows(file, shown, wanted, lists),
        refused(file, shown, 0, lambda lines: batches(pa.BufferReader(lines), types, wanted), remedy),
    )


def _bad_rows(file: Path, shown: str, wanted: Sequence[str], lists: Collection[str]) -> Iterator[str]:
    """Yield a fault of each kind: its first line, and how many more there are."""
    kinds: dict[str, Any] = {}
    first: dict[str, str] = {}
    more: Counter[str] = Counter()
    with lines_of(file) as stream:
        for number, line in enumerate(stream, 1):
            for kind, fault in _bad_line(line, dict.fromkeys(wanted, False) | dict.fromkeys(lists, True), kinds, shown):
                first.setdefault(kind, f"{shown}, line {number}: {fault}")
                more[kind] += 1
    for kind, fault in first.items():
        yield fault + (f"; {more[kind] - 1:,} more such" if more[kind] > 1 else "")


def _bad_list(name: str, value: Any, kinds: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if not isinstance(value, list):
        what = f"{name!r} is a {type(value).__name__}"
        yield what, f"{what} ({str(value)[:40]!r}), not a list of words or tags; write one value a word"
        return
    for one in value:
        what = f"{name!r} holds {type(one).__name__}"
        if isinstance(one, list | dict):
            yield what, f"{what} ({str(one)[:40]!r}); write one text or number a word"
        elif one is not None and type(one) is not (before := kinds.setdefault(name, type(one))):
            yield what, f"{what} ({str(one)[:40]!r}) and {before.__name__} before; write it as text everywhere"


def _bad_line(line: bytes, wanted: Mapping[str, bool], kinds: dict[str, Any], shown: str) -> Iterator[tuple[str, str]]:
    try:
        row = row_of(line) if line.strip() else {}
    except (json.JSONDecodeError, NotObject) as error:
        start = line.decode("utf-8", "replace").strip()[:60]
        yield str(getattr(error, "msg", error)), f"{error} ({start!r}); write one JSON object a line"
        return
    for name, listed in wanted.items():
        value = row.get(name)
        if listed and value is not None:
            yield from _bad_list(name, value, kinds)
        elif isinstance(value, list | dict):
            what = f"{name!r} is a {type(value).__name__}"
            yield what, f"{what} ({str(value)[:40]!r}), not one value; write one text or number"
        elif value is not None and type(value) is not (before := kinds.setdefault(name, type(value))):
            what = f"{name!r} is {type(value).__name__}"
            yield what, f"{what} ({str(value)[:40]!r}) and {before.__name__} before; write it as text everywhere"
    for name, value in row.items():
        if half := HALF.search(name) or HALF.search(json.dumps(value, ensure_ascii=False)[1:]):
            convert = sniff.in_place(f"python3 -c {shlex.quote(WHOLE)}", shown)
            yield (
                "half",
                f"{name!r} holds {ascii(half[1])[1:-1]}, half of a character such as an emoji ({ascii(half[0])}); "
                f"write the character whole, or {convert} puts a question mark there",
            )
            return
