"""Read parallel text from files of its own, as unlabelled rows whose ids translations of each other share.

Three layouts are understood: tables with a column a language (.tsv), translation memories (.tmx), and files of one
language each that are aligned by line, as Moses and OPUS have them (news.eng_Latn beside news.swh_Latn).
"""

from __future__ import annotations

import glob
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa

from xlt_ray import sniff
from xlt_ray.corpora.corpus import refuse
from xlt_ray.errors import InputError, collecting
from xlt_ray.languages import codes

PLACE = "corpus.parallel"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
NO_TEXT = ("key", "")  # columns of a table that hold none; not id, which is Indonesian
MARKUP = {"bpt", "ept", "it", "ph", "ut"}  # elements of a segment whose content is none of its text
MAGIC = (*sniff.PACKED, sniff.POINTER, b"PK\x03\x04")

Units = Iterator[tuple[int, dict[str, str]]]  # line or number, and the text of each language that has one


def read(where: str, known: Collection[str] = ()) -> dict[str, pa.Table]:
    """Return the rows of all files by language, with the columns `id` and `text`; equal ids are translations.

    `where` is a file, a folder whose files are read, or a pattern of them. `known` are codes that a corpus uses beside
    those of `codes`. An id is a file's path below the folder and a line or unit, and a text without a translation in
    its line is left out. Raises InputError that lists what is wrong with which file and line.
    """
    root, files = _files(where)
    readers, strangers = _readers(root, files, known)
    rows: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    faults: list[str] = []
    for name, units in readers.items():
        with collecting(faults):
            for number, texts in units:
                for code, text in texts.items() if len(texts) > 1 else ():
                    rows[code][0].append(f"{name}:{number}")
                    rows[code][1].append(text)
    if faults:
        refuse(PLACE, faults)
    shown = ", ".join(strangers[:5]) + (f" and {len(strangers) - 5} more" if len(strangers) > 5 else "")
    if len(rows) < 2:
        raise InputError(
            f"{PLACE} {where}: no text with a translation found; name .tsv files with a column a language, .tmx "
            "files, or several files aligned by line whose suffixes are languages, such as news.eng_Latn and "
            f"news.swh_Latn{f' (there: {shown})' if shown else ''}"
        )
    if strangers:
        warnings.warn(
            f"{PLACE}: left out, as they are neither .tsv, .tmx nor aligned with a file of another language: {shown}",
            stacklevel=2,
        )
    columns = {code: [pa.array(column, pa.string()) for column in both] for code, both in sorted(rows.items())}
    return {code: pa.table(both, names=["id", "text"]) for code, both in columns.items()}


def _files(where: str) -> tuple[Path, list[Path]]:
    """Return the folder that ids are relative to, and the files of a path or pattern, sorted."""
    path = Path(where).expanduser()
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file())
        return path, sorted(one for one in inside if not any(part[0] == "." for part in one.relative_to(path).parts))
    if path.is_file():
        return path.parent, [path]
    found = sorted(Path(one) for one in glob.glob(str(path), recursive=True) if Path(one).is_file())
    if not found:
        raise InputError(f"{PLACE} {where}: no such file, and no pattern that matches one; name a folder or files")
    fixed = next(number for number, part in enumerate(path.parts) if glob.has_magic(part))
    return Path(*path.parts[:fixed]), found


def _readers(root: Path, files: Sequence[Path], known: Collection[str]) -> tuple[dict[str, Units], list[str]]:
    """Return what yields the units of each table, memory and set of aligned files, and the names of other files."""
    aligned: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    found: dict[str, Units] = {}
    strangers = []
    for file in files:
        name, kind, code = file.relative_to(root).as_posix(), file.suffix.lower(), _code(file.suffix[1:], known)
        if kind in (".tsv", ".tmx"):
            found[name] = _table(file, known) if kind == ".tsv" else _memory(file, known)
        elif code is None:
            strangers.append(name)
        else:
            aligned[name.removesuffix(file.suffix)].append((code, file))
    for stem, sides in aligned.items():
        if len(sides) > 1:
            found[stem] = _lines(stem, sides)
        else:
            strangers.append(sides[0][1].relative_to(root).as_posix())
    return found, strangers


def _code(name: str, known: Collection[str]) -> str | None:
    return name if name in known else codes.read(name) if name else None


def _table(file: Path, known: Collection[str]) -> Units:
    """Yield the lines of a table, whose first one names the language of each column."""
    lines = sniff.text_lines(file)
    header = [cell.strip() for cell in next(lines, "").split("\t")]
    columns = {place: _code(cell, known) for place, cell in enumerate(header) if cell.lower() not in NO_TEXT}
    named = [code for code in columns.values() if code is not None]
    if len(named) < len(columns) or len(named) < 2:
        wrong = next((header[place] for place, code in columns.items() if code is None), " ".join(header))
        raise InputError(
            f"{file}, line 1: {wrong[:60]!r}: a first line names the language of each column, two or more, such as "
            "eng_Latn and swh_Latn, and may call one that holds no text key; write one"
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


def _memory(file: Path, known: Collection[str]) -> Units:
    """Yield the units of a translation memory; of a language's variants in a unit the first counts."""
    try:
        with file.open("rb") as stream:
            start = stream.read(sniff.HEAD)
        if start.startswith(MAGIC):
            raise InputError(sniff.foreign(start, str(file)) or f"{file}: no text")
        for number, unit in enumerate(sniff.elements(file, "tu"), 1):
            yield number, _stripped(reversed([*_variants(unit, known)]))
    except ElementTree.ParseError as error:
        raise InputError(f"{file}, line {error.position[0]}: not well-formed XML ({error}); fetch it again") from None
    except (ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        command = sniff.in_place("iconv -f ENCODING -t UTF-8", str(file))
        raise InputError(
            f"{file}: its encoding cannot be read ({error}); {command} converts it, and then take the encoding out of "
            "its first line"
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); fetch it again") from None


def _variants(unit: ElementTree.Element, known: Collection[str]) -> Iterator[tuple[str, str]]:
    for variant in (one for one in unit if sniff.tag(one) == "tuv"):
        code = _code(variant.get(LANGUAGE) or variant.get("lang") or "", known)
        for segment in (one for one in variant if sniff.tag(one) == "seg"):
            if code is not None:
                yield code, _text(segment)


def _text(element: ElementTree.Element) -> str:
    inside = "" if sniff.tag(element) in MARKUP else (element.text or "") + "".join(map(_text, element))
    return inside + ("" if sniff.tag(element) == "seg" else element.tail or "")


def _lines(stem: str, sides: Sequence[tuple[str, Path]]) -> Units:
    """Yield the lines of files that are aligned by line."""
    if len({code for code, _ in sides}) < len(sides):
        names = ", ".join(file.name for _, file in sides)
        raise InputError(f"{stem}: {names}: two of these files are of one language; leave one out")
    columns = {code: list(sniff.text_lines(file)) for code, file in sides}
    sizes = {file.name: len(columns[code]) for code, file in sides}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"{stem}: files aligned by line differ in their numbers of lines ({shown}); align them")
    for number, texts in enumerate(zip(*columns.values(), strict=True), 1):
        yield number, _stripped(zip(columns, texts, strict=True))


def _stripped(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {code: shown for code, text in texts if (shown := " ".join(text.split()))}
