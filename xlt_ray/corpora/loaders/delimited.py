"""Read tsv and csv: fast with Arrow where double quotes are characters like any others, else strictly by RFC 4180.

Arrow's own handling of quotes is not used: it accepts text after a closing quote, and drops what follows an open one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from xlt_ray import sniff
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora.arrow import BATCH_ROWS
from xlt_ray.corpora.loaders.diagnosis import (
    BLOCK,
    FileFaults,
    first_of,
    lines_of,
    ragged,
    refused,
    require_columns,
    roles,
)

DELIMITERS = {"tsv": "\t", "csv": ","}
ENOUGH = 5  # fields that are no chance any more, where each of them looks quoted

# a program that writes rows from standard input with other separators
RESEPARATE = 'import csv,sys; csv.writer(sys.stdout{}).writerows(csv.reader(sys.stdin, delimiter="{}"))'

Lines = tuple[int, list[str], list[str]]  # the first line's number, the values, the lines as they stand


class Unquoted(ValueError):
    """A row whose quotes are not as RFC 4180 has them; `line` is where it starts."""

    def __init__(self, line: int, reason: str, start: str) -> None:
        super().__init__(f"{reason} in the row that starts here ({start.strip()[:60]!r})")
        self.line = line


def strict_rows(file: Path, delimiter: str) -> Iterator[Lines]:
    """Read rows by RFC 4180, the header first, blank lines left out; raise Unquoted, and UnicodeDecodeError.

    A quote inside a field that does not begin with one is a character, as every reader has it. Memory is bounded by the
    longest field, 8 MiB.
    """
    lines_read: list[str] = []
    with _fields_up_to(BLOCK), io.TextIOWrapper(lines_of(file), encoding="utf-8-sig", newline="") as stream:

        def kept() -> Iterator[str]:
            for line in stream:
                lines_read.append(line)
                yield line

        rows = csv.reader(kept(), delimiter=delimiter, strict=True)
        while True:
            first = rows.line_num + 1
            lines_read.clear()
            try:
                values = next(rows, None)
            except csv.Error as error:
                raise Unquoted(first, str(error), lines_read[0]) from None
            if values is None:
                return
            if values:
                yield first, values, lines_read


@contextlib.contextmanager
def _fields_up_to(size: int) -> Iterator[None]:
    before = csv.field_size_limit(size)  # the module has one for all of its readers
    try:
        yield
    finally:
        csv.field_size_limit(before)


def quoted(file: Path, shown: str, kind: str, config: CorpusConfig) -> bool:
    """Decide whether the double quotes of a file enclose fields; raise FileFaults where a tsv can be read in both ways.

    A csv's do. A tsv's do where reading it so gives rows of equal width and reading it plainly does not, or where all
    of its fields are quoted by one of the rules that programs write by; `corpus.quoting` overrules.
    """
    if config.quoting != "auto" or kind == "csv":
        return config.quoting != "plain"
    uneven = next(uneven_lines(file, "\t"), None)
    found = _Evidence(config)
    try:
        for row in strict_rows(file, "\t"):
            found.add(*row)
    except Unquoted as error:
        found.fault = found.fault or f"line {error.line}: {error}"
    if uneven and found.fault:
        line, columns, width, _ = uneven
        raise FileFaults(
            [
                f"{shown}, {found.fault}; with quotes as characters, line {line} has {columns} columns where the "
                f"header has {width}; correct one of the two, and set corpus.quoting=quoted or plain to see all faults"
            ]
        )
    if found.fault or not found.differs:
        return False
    decided = found.decide(even=not uneven)
    if decided is None:
        raise FileFaults(
            [
                f"{shown}, line {found.differs[0]}: the double quotes of {found.differs[1].strip()[:60]!r} may enclose "
                "fields or belong to the texts; set corpus.quoting=quoted or corpus.quoting=plain"
            ]
        )
    return decided


class _Evidence:
    """Collects from a tsv, read strictly row by row, what its quotes were written by."""

    # the fields that a program quotes: of Python and pandas, of spreadsheets, then all, and all but numbers
    RULES: dict[str, Callable[[str], object]] = {
        "minimal": re.compile(r'[\t\r\n"]').search,
        "spreadsheet": re.compile(r'[\t\r\n",]').search,
        "all": lambda field: True,
        "text": lambda field: not re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|NA|TRUE|FALSE", field),
    }

    def __init__(self, config: CorpusConfig) -> None:
        self.fault = ""
        self.differs: tuple[int, str] | None = None  # the first line that the two readings parse differently
        self.rules = dict(self.RULES)
        self.swallowed = Swallowed("\t", config)
        self.rows, self.quoted_fields = 0, 0
        self.always: set[int] = set()  # columns quoted in every row but the header
        self.header = self.doubled = self.long = False

    def add(self, line: int, values: list[str], lines: Sequence[str]) -> None:
        self.swallowed.add(line, values, lines)
        if self.swallowed.width != len(values):
            self.fault = self.fault or f"line {line}: {len(values)} columns where the header has {self.swallowed.width}"
        raw = "".join(lines).removeprefix("\ufeff").rstrip("\r\n")
        fields = raw.split("\t")
        for name, rule in list(self.rules.items()):
            written = "\t".join(f'"{v.replace(chr(34), chr(34) * 2)}"' if rule(v) else v for v in values)
            if written != raw:
                del self.rules[name]
        if fields != values:
            self.differs = self.differs or (line, raw)
            self.long = self.long or len(lines) > 1
        enclosed = {n for n, field in enumerate(fields) if len(field) > 1 and field[0] == field[-1] == '"'}
        self.quoted_fields += len(enclosed)
        self.doubled = self.doubled or any('""' in fields[n][1:-1] for n in enclosed)
        if self.rows == 0:
            self.header = bool(enclosed)
        else:
            self.always = enclosed if self.rows == 1 else self.always & enclosed
        self.rows += 1

    def decide(self, even: bool) -> bool | None:
        """Return whether quotes enclose fields in a file that reads strictly, and plainly if `even`; None: unclear."""
        swallows = self.swallowed.first() is not None
        if not even:
            return None if swallows else True
        if self.long and swallows:
            return False  # each line is a row of its own: two texts that begin and end with a quote, rows apart
        if self.header or self.rules.keys() - {"spreadsheet"} or (self.always and self.rows > ENOUGH):
            return True
        if "spreadsheet" in self.rules:
            return self.quoted_fields >= ENOUGH or None
        return None if self.doubled else False


class Swallowed:
    """Finds quoted texts that hold whole rows of the file, label and all, as an unclosed quote makes them."""

    def __init__(self, delimiter: str, config: CorpusConfig) -> None:
        self.delimiter, self.label, self.at, self.width = delimiter, config.label, -1, 0
        self.labels: set[str] = set()
        self.like_rows: dict[str, tuple[int, str]] = {}  # by label: the first text with such a line, and its own

    def add(self, line: int, values: list[str], lines: Sequence[str]) -> None:
        """Add a row: its first line's number, its values and its lines; the header comes first."""
        if not self.width:
            self.width = len(values)
            self.at = values.index(self.label) if self.label in values else -1
        elif self.at >= 0 and len(values) == self.width and len(self.labels) < BATCH_ROWS:
            self.labels.add(values[self.at])
            for number, text in enumerate(lines[:-1]):
                fields = text.rstrip("\r\n").split(self.delimiter)
                # a row whose long text comes after its label has that label in its first line by right
                inside = number > 0 or any(field.startswith('"') for field in fields[: self.at])
                if inside and len(fields) == self.width and len(self.like_rows) < BATCH_ROWS:
                    self.like_rows.setdefault(fields[self.at], (line, lines[0]))

    def first(self) -> tuple[int, str] | None:
        """Return the line number where the first such text starts, and that line; valid once all rows were added."""
        return min((found for label, found in self.like_rows.items() if label in self.labels), default=None)


def uneven_lines(file: Path, delimiter: str) -> Iterator[tuple[int, int, int, str]]:
    """Yield the lines that split into another number of columns than the first: (line, columns, width, text).

    A carriage return ends a row, as it does for Arrow, but not a line, as it does not for an editor.
    """
    width, separator = 0, delimiter.encode()
    with lines_of(file) as stream:
        for number, line in enumerate(stream, 1):
            for row in line.replace(b"\r", b"\n").split(b"\n"):
                columns = row.count(separator) + 1
                width = width or (columns if row else 0)
                if row and columns != width:
                    yield number, columns, width, row.decode("utf-8", "replace")


def plain_header(file: Path, delimiter: str) -> list[str]:
    """Split the first line that is not blank."""
    with lines_of(file) as stream:
        lines = iter(lambda: stream.readline(BLOCK).decode("utf-8-sig"), "")
        line = next((line.strip("\r\n") for line in lines if line.strip("\r\n")), "")
    # a file of the old Mac has no other line break
    return line.split("\r")[0].split(delimiter)


def plain_batches(
    stream: pa.NativeFile | pa.BufferReader, kind: str, wanted: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Read with Arrow, double quotes as characters."""
    yield from pa.csv.open_csv(
        stream,
        read_options=pa.csv.ReadOptions(block_size=BLOCK),
        parse_options=pa.csv.ParseOptions(delimiter=DELIMITERS[kind], quote_char=False, double_quote=False),
        # texts such as NA, null and 007 stay what they are
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in wanted},
            include_columns=list(wanted),
            strings_can_be_null=False,
        ),
    )


def strict_tables(
    file: Path, shown: str, kind: str, wanted: Sequence[str], config: CorpusConfig
) -> Iterator[tuple[pa.Table, int | None]]:
    """Read strictly: tables of strings, each with the line of its first row where its rows are one line each.

    Raises FileFaults at the end, with all rows of another width than the header's, or at the first row whose quotes
    are wrong; and where a text holds whole rows of the file, unless `corpus.quoting` says that it is quoted.
    """
    rows = strict_rows(file, DELIMITERS[kind])
    faults: list[str] = []
    swallowed = Swallowed(DELIMITERS[kind], config)
    try:
        first, header, lines = next(rows)
        require_columns(shown, header, config)
        swallowed.add(first, header, lines)
        at = [header.index(name) for name in wanted]
        while batch := list(itertools.islice(_even(rows, shown, len(header), kind, swallowed, faults), BATCH_ROWS)):
            columns = {
                name: pa.array([values[n] for _, values in batch], pa.string())
                for name, n in zip(wanted, at, strict=True)
            }
            one_each = batch[-1][0] - batch[0][0] == len(batch) - 1
            yield pa.table(columns), batch[0][0] if one_each else None
    except Unquoted as error:
        faults.append(f"{shown}, line {error.line}: {error}; {_close(file, kind)}")
    if config.quoting == "auto" and (found := swallowed.first()):
        faults.append(
            f"{shown}, line {found[0]}: a quoted text that starts here ({found[1].strip()[:60]!r}) holds "
            "whole rows of the file; close its quote, or set corpus.quoting=quoted where the text is meant so"
        )
    if faults:
        raise FileFaults(faults)


def _even(
    rows: Iterable[Lines], shown: str, width: int, kind: str, swallowed: Swallowed, faults: list[str]
) -> Iterator[tuple[int, list[str]]]:
    for line, values, lines in rows:
        swallowed.add(line, values, lines)
        if len(values) == width:
            yield line, values
        elif len(faults) < BATCH_ROWS:
            faults.append(ragged(f"{shown}, line {line}", len(values), width, "".join(lines), kind))


def _close(file: Path, kind: str) -> str:
    remedy = 'close the quote and write a double quote inside a quoted text as ""'
    if next(uneven_lines(file, DELIMITERS[kind]), None) is None:
        remedy += ", or set corpus.quoting=plain where double quotes are characters of the texts"
    return remedy


def other_separator(shown: str, kind: str, header: Sequence[str], config: CorpusConfig) -> str | None:
    """Describe a tsv or csv whose columns are separated otherwise, where its first line is one column; else None."""
    if len(header) != 1 or all(name in header for names in roles(config).values() for name in names):
        return None
    other = max(";\t,|", key=header[0].count)
    if other not in header[0]:
        return None
    fault = f"{shown}: its columns are separated by {other!r} ({header[0][:60]!r})"
    if other == "\t":
        return f"{fault}; name it .tsv, or where corpus.path is a pattern with the ending, set corpus.format=tsv"
    code = RESEPARATE.format(', delimiter="\\t"' if kind == "tsv" else "", other)
    return f"{fault}; {sniff.in_place(f'python3 -c {shlex.quote(code)}', shown)} writes it as {kind}"


def plain_faults(file: Path, shown: str, kind: str, wanted: Sequence[str]) -> list[str]:
    """Find what makes a file unreadable with double quotes as characters, at most 20 faults with their exact lines."""
    header = (DELIMITERS[kind].join(plain_header(file, DELIMITERS[kind])) + "\n").encode()

    def read(lines: bytes) -> Iterator[pa.RecordBatch]:
        return plain_batches(pa.BufferReader(header + lines), kind, wanted)

    uneven = uneven_lines(file, DELIMITERS[kind])
    return first_of(
        (ragged(f"{shown}, line {line}", columns, width, row, kind) for line, columns, width, row in uneven),
        refused(file, shown, 1, read, "correct the line or remove it"),
    )
