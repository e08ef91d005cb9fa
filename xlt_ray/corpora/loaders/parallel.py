"""Read parallel text from files of its own, as unlabelled rows whose ids translations of each other share.

Three layouts are understood: tables with a column a language (.tsv), translation memories (.tmx), and files of one
language each that are aligned by line, as Moses and OPUS have them (news.eng_Latn beside news.swh_Latn).
"""

from __future__ import annotations

import glob
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa

from xlt_ray import sniff
from xlt_ray.corpora.corpus import refuse
from xlt_ray.errors import InputError, collecting
from xlt_ray.languages import codes

PLACE = "corpus.parallel"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
NO_TEXT = ("id", "")  # columns of a table that hold none

Unit = tuple[str, Mapping[str, str]]  # an id, and the text of each language that has one


def read(where: str, known: Collection[str] = ()) -> dict[str, pa.Table]:
    """Return the rows of all files by language, with the columns `id` and `text`; equal ids are translations.

    `where` is a file, a folder whose files are read, or a pattern with *. `known` are codes that a corpus uses beside
    those of `codes`. An id is a file's path below the folder and a line or unit, and a text without a translation in
    its line is left out. Raises InputError that lists what is wrong with which file and line.
    """
    root, files = _files(where)
    aligned: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    single, strangers = [], []
    for file in files:
        code = _code(file.suffix[1:], known)
        if file.suffix.lower() in (".tsv", ".tmx"):
            single.append(file)
        elif code is not None:
            aligned[str(file.with_suffix(""))].append((code, file))
        else:
            strangers.append(file.name)
    faults: list[str] = []
    rows: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    readers = [_table(file, known) if file.suffix.lower() == ".tsv" else _memory(file, known) for file in single]
    readers += [_lines(stem, sides) for stem, sides in sorted(aligned.items())]
    for name, units in zip([*map(str, single), *sorted(aligned)], readers, strict=True):
        short = Path(name).relative_to(root).as_posix()
        with collecting(faults):
            for number, texts in units:
                for code, text in texts.items() if len(texts) > 1 else ():
                    rows[code][0].append(f"{short}:{number}")
                    rows[code][1].append(text)
    if faults:
        refuse(PLACE, faults)
    if len(rows) < 2:
        raise InputError(
            f"{PLACE} {where}: no text with a translation found; name .tsv files with a column a language, .tmx "
            "files, or files aligned by line whose suffixes are languages, such as news.eng_Latn and news.swh_Latn"
        )
    if strangers:
        warnings.warn(
            f"{PLACE}: left out, as their suffixes are neither .tsv, .tmx nor a language: {', '.join(strangers[:5])}"
            + (f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""),
            stacklevel=2,
        )
    columns = {code: [pa.array(column, pa.string()) for column in both] for code, both in sorted(rows.items())}
    return {code: pa.table(both, names=["id", "text"]) for code, both in columns.items()}


def _files(where: str) -> tuple[Path, list[Path]]:
    """Return the folder that ids are relative to, and the files of a path or pattern, sorted."""
    path = Path(where).expanduser()
    if path.is_dir():
        return path, sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if path.is_file():
        return path.parent, [path]
    found = sorted(Path(one) for one in glob.glob(str(path), recursive=True) if Path(one).is_file())
    if not found:
        raise InputError(f"{PLACE} {where}: no such file, and no pattern that matches one; name a folder or files")
    fixed = Path(str(path).partition("*")[0])
    return (fixed if fixed.is_dir() else fixed.parent), found


def _code(name: str, known: Collection[str]) -> str | None:
    return name if name in known else codes.read(name) if name else None


def _table(file: Path, known: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, texts by language) of a table, whose first line names the language of each column."""
    lines = sniff.text_lines(file)
    header = [cell.strip() for cell in next(lines, "").split("\t")]
    columns = {place: _code(cell, known) for place, cell in enumerate(header) if cell.lower() not in NO_TEXT}
    named = [code for code in columns.values() if code is not None]
    if len(named) < len(columns) or len(named) < 2:
        wrong = next((header[place] for place, code in columns.items() if code is None), " ".join(header))
        raise InputError(
            f"{file}, line 1: {wrong[:60]!r}: a first line names the language of each column, two or more, such as "
            "eng_Latn and swh_Latn, and perhaps id; write one"
        )
    if len(set(named)) < len(named):
        raise InputError(f"{file}, line 1: {' '.join(header)!r}: two columns are of one language; leave one out")
    for number, line in enumerate(lines, 2):
        cells = line.split("\t")
        if len(cells) != len(header) and line.strip():
            raise InputError(
                f"{file}, line {number}: {len(cells)} columns where the first line has {len(header)}; correct the line"
            )
        yield number, _stripped((str(code), cells[place]) for place, code in columns.items() if line.strip())


def _memory(file: Path, known: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (number, texts by language) of the units of a translation memory; a language's first variant counts."""
    number, above = 0, []
    try:
        # as a stream; outer entities are not fetched, and expat bounds what inner ones may do
        for event, element in ElementTree.iterparse(file, ("start", "end")):
            if event == "start":
                above.append(element)
                continue
            above.pop()
            if element.tag == "tu":
                number += 1
                variants = (
                    (one.get(LANGUAGE) or one.get("lang") or "", one.find("seg")) for one in element.iter("tuv")
                )
                found = [(_code(name, known), "".join(seg.itertext())) for name, seg in variants if seg is not None]
                yield number, _stripped((code, text) for code, text in reversed(found) if code is not None)
                for parent in above[-1:]:
                    parent.clear()  # or the units that are done would stay in memory
    except ElementTree.ParseError as error:
        raise InputError(f"{file}, line {error.position[0]}: not well-formed XML ({error}); fetch it again") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); fetch it again") from None


def _lines(stem: str, sides: Sequence[tuple[str, Path]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, texts by language) of files that are aligned by line."""
    if len({code for code, _ in sides}) < len(sides) or len(sides) < 2:
        names = ", ".join(file.name for _, file in sides)
        raise InputError(f"{stem}: {names}: aligned files are one a language, of two or more; add or remove one")
    columns = {code: list(sniff.text_lines(file)) for code, file in sides}
    sizes = {file.name: len(columns[code]) for code, file in sides}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"{stem}: files aligned by line differ in their numbers of lines ({shown}); align them")
    for number, texts in enumerate(zip(*columns.values(), strict=True), 1):
        yield number, _stripped(zip(columns, texts, strict=True))


def _stripped(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {code: shown for code, text in texts if (shown := " ".join(text.split()))}
