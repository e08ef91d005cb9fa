"""Find what is wrong with a file of rows: which bytes, which line, and a remedy that works when it is followed."""

from __future__ import annotations

import collections
import difflib
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import yaml

from xlt_ray import sniff
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora.corpus import SHOWN_FAULTS
from xlt_ray.errors import InputError

BLOCK = 8 << 20  # bytes Arrow parses at once, so the longest line it can take; the longest field read strictly
TEXT = CorpusConfig.model_fields["text"].default  # a column that need not be there where one of words is
PACKED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".zst": b"\x28\xb5\x2f\xfd"}


class FileFaults(InputError):
    """The faults of one file, each with place, value and remedy."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults), faults)


def roles(config: CorpusConfig) -> dict[str, tuple[str, ...]]:
    """List the columns that make up each of text, text_pair, words, label, id and language, where asked for."""
    asked = {role: getattr(config, role) for role in ("text", "text_pair", "words", "label", "id", "language")}
    return {
        role: tuple(names.split("+")) if role.startswith("text") else (names,) for role, names in asked.items() if names
    }


def columns_of(config: CorpusConfig) -> list[str]:
    """List the columns asked for, each once."""
    return list(dict.fromkeys(itertools.chain(*roles(config).values())))


def lists_of(config: CorpusConfig) -> tuple[str, ...]:
    """List the columns that hold lists: words and their tags."""
    return () if config.words is None else (config.words, config.label)


def require_columns(shown: str, there: Sequence[str], config: CorpusConfig) -> None:
    """Raise FileFaults where a file does not have a column asked for, or has it twice; a text is not, beside words."""
    faults = []
    listed = ", ".join(name if name == name.strip() else repr(name) for name in (n[:40] for n in there[:20]))
    made = config.words is not None and config.text == TEXT and TEXT not in there
    for role, names in roles(config).items():
        for name in () if made and role == "text" else names:
            near = next(iter(difflib.get_close_matches(name, there, n=1, cutoff=0.5)), None)
            if any(column.strip('"') == name for column in there):
                remedy = "its double quotes enclose it: set corpus.quoting=quoted"
            elif near is None:
                remedy = f"set corpus.{role} to one of these, or write a line of names above the rows"
            elif re.fullmatch(r"[\w.-]+", near) and yaml.safe_load(near) == near:
                remedy = f"did you mean corpus.{role}={near}?"
            else:
                remedy = f"rename {near!r} to {name!r} in the file"
            if name not in there:
                faults.append(f"{shown}: no column {name!r} for corpus.{role}; it has {listed}; {remedy}")
            elif there.count(name) > 1:
                faults.append(f"{shown}: column {name!r} (corpus.{role}) stands there twice; rename one of them")
    if faults:
        raise FileFaults(faults)


def lines_of(file: Path) -> io.BufferedReader:
    """Open a file as bytes, unpacked where its name says that it is packed."""
    return io.BufferedReader(pa.input_stream(str(file), compression="detect"), 1 << 20)


def foreign(file: Path, shown: str, kind: str) -> str | None:
    """Describe what a file is by its first bytes, where its name or `corpus.format` says otherwise; else return None.

    Raises OSError where it cannot be read.
    """
    with file.open("rb") as stream:
        start = stream.read(sniff.HEAD)
    if not start or (fault := sniff.pointer_fault(start, shown)):
        return fault if start else None
    magic = next((magic for suffix, magic in PACKED.items() if file.name.lower().endswith(suffix)), None)
    if magic and not start.startswith(magic):
        return (
            sniff.foreign(start, shown) or f"{shown}: not packed, as its name says; take the last ending off its name"
        )
    if kind == "parquet":
        if start.startswith((b"PAR1", b"PARE")):
            return None
        begins = f"it begins with {start[:20]!r}"
        return sniff.foreign(start, shown) or (
            f"{shown}: cannot be read as parquet ({begins}); copy it again, or name it by what it is"
        )
    if start.startswith(b"PAR1"):
        return (
            f"{shown}: a parquet file, which its name does not say; rename it to end in .parquet, or where "
            "corpus.path is a pattern with the ending, set corpus.format=parquet"
        )
    if not magic:
        return sniff.foreign(start, shown)
    with lines_of(file) as unpacked:
        fault = sniff.foreign(unpacked.read(sniff.HEAD), shown)
    return f"{fault} (unpack it first)" if fault else None


def undecodable(file: Path, shown: str) -> list[str]:
    """List the lines that are not UTF-8: each among others that are, or the first of a file in another encoding."""
    bad: list[tuple[int, int, bytes, UnicodeDecodeError]] = []
    start, mixed = 0, False
    with lines_of(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                mixed = not line.decode("utf-8").isascii() or mixed
            except UnicodeDecodeError as error:
                if len(bad) < SHOWN_FAULTS:
                    bad.append((number, start, line, error))
            start += len(line)
    return [
        sniff.undecodable(f"{shown}, line {number}", line, error, start, mixed, shown)
        for number, start, line, error in (bad if mixed else bad[:1])
    ]


def ragged(place: str, columns: int, width: int, line: str, kind: str) -> str:
    """Describe the fault of a row that has another number of columns than the header."""
    separator = "tab" if kind == "tsv" else "comma"
    return (
        f"{place}: {columns} columns where the header has {width} ({line.strip()[:60]!r}); a text holds a {separator} "
        "or a line break: take it out, enclose the text in double quotes, or write the file as jsonl"
    )


def refused(
    file: Path, shown: str, skip: int, read: Callable[[bytes], Iterable[pa.RecordBatch]], remedy: str
) -> Iterator[str]:
    """Find by bisection the first line that `read` refuses with an Arrow error.

    The first `skip` lines, those of a header, are left out.
    """

    def refusal(lines: Sequence[bytes]) -> str | None:
        try:
            collections.deque(read(b"".join(lines)), maxlen=0)
        except pa.ArrowException as error:
            text = str(error)
            return text.removeprefix("JSON parse error: ").split(" in row ")[0] if text.startswith("JSON") else text
        return None

    number = skip
    with lines_of(file) as stream:
        for _ in range(skip):
            stream.readline()
        while lines := stream.readlines(1 << 20):
            if refusal(lines) is not None:
                while len(lines) > 1:
                    half = lines[: len(lines) // 2]
                    if refusal(half) is None:
                        number, half = number + len(half), lines[len(half) :]
                    lines = half
                if (reason := refusal(lines)) is not None:
                    if len(lines[0]) > BLOCK:
                        reason = f"{len(lines[0]):,} bytes, where {BLOCK:,} can be read"
                    value = lines[0][:60].decode("utf-8", "replace").strip()
                    yield f"{shown}, line {number + 1}: {reason} ({value!r}); {remedy}"
                    return
            number += len(lines)


def first_of(*searches: Iterator[str]) -> list[str]:
    """Return the faults, at most 20, of the first search that finds some; none where no search does."""
    found = (list(itertools.islice(search, SHOWN_FAULTS)) for search in searches)
    return next((faults for faults in found if faults), [])
