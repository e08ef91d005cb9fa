"""Load a corpus of tsv, csv, jsonl, parquet or CoNLL files: local ones, or any that fsspec can reach.

`corpus.path` is a directory that holds LANGUAGE/train.tsv and so on (or train.tsv and so on, with `corpus.language`
naming the column of the language), or a pattern such as https://host/{language}/{split}.tsv.
"""

from __future__ import annotations

import glob
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from xlt_ray.config.sections import CONLL, CorpusConfig
from xlt_ray.corpora.corpus import Corpus, refuse
from xlt_ray.corpora.loaders import conversion, formats
from xlt_ray.corpora.loaders.diagnosis import FileFaults
from xlt_ray.errors import InputError
from xlt_ray.languages import codes

ELSEWHERE = ("validation", "valid", "val", "development")  # what others call dev


@dataclass(frozen=True)
class Layout:
    """Where the files are: all below `root`, at paths that match a pattern of {language}, {split} and wildcards."""

    fs: fsspec.AbstractFileSystem
    root: str
    tail: str
    directory: bool  # the user named a directory, so that any known suffix counts


@dataclass(frozen=True)
class Found:
    """One file of the corpus; `language` is its name in the path, None where a column holds it."""

    split: str
    language: str | None
    path: str
    shown: str
    kind: str


def load(config: CorpusConfig) -> Corpus:
    """Convert the files of `corpus.path` to Arrow in `corpus.cache_dir`, once, and open that memory-mapped.

    A change of any file's size or time, or of the columns asked for, converts anew. Raises InputError that lists what
    is wrong with which file and line.
    """
    layout = _layout(config)
    found = _find(layout, config)
    origin = [[file.split, file.language, file.shown, file.kind, _identity(layout.fs, file)] for file in found]
    notes: list[conversion.Note] = []
    return conversion.corpus(
        config,
        conversion.key(config, origin),
        layout.root.rstrip("/").rpartition("/")[2] or "files",
        lambda folder: _rows(layout.fs, found, config, folder, notes),
        notes,
    )


def _find(layout: Layout, config: CorpusConfig) -> list[Found]:
    claims: dict[str, str] = {}
    found: list[Found] = []
    there: set[str] = set()
    for split, name in config.splits.items():
        for language, path in _of_split(layout, name, config):
            there |= {language} if language else set()
            if language is None or conversion.wanted(language, config, claims) is not None:
                found.append(_described(layout, split, language, path, config))
    _refuse_missing_languages(config, claims, there)
    _refuse_nothing(layout, config, found)
    _refuse_doubles(layout, found)
    return found


def _described(layout: Layout, split: str, language: str | None, path: str, config: CorpusConfig) -> Found:
    kind = config.format or formats.kind_of(_plain(layout.fs, path))
    shown = path if isinstance(layout.fs, LocalFileSystem) else str(layout.fs.unstrip_protocol(path))
    if kind is None:
        raise InputError(f"{shown}: its suffix tells no format; set corpus.format")
    if kind in CONLL and not config.tagged:
        raise InputError(f"{shown}: holds tagged words; set corpus.format={kind}, so that the configuration says it")
    return Found(split, language, path, shown, kind)


def _layout(config: CorpusConfig) -> Layout:
    if config.path is None:
        raise InputError("corpus.path: not set; name a directory that holds LANGUAGE/train.tsv and so on, or a pattern")
    fs, path = _place(config.path)
    local = isinstance(fs, LocalFileSystem)
    fixed = path if local and Path(path).is_dir() else re.split(r"\{language\}|\{split\}|\*", path)[0]
    if fixed != path:
        root, _, _ = fixed.rpartition("/")
        layout = Layout(fs, root, path[len(root) :].lstrip("/"), directory=False)
    else:
        _refuse_no_directory(fs, path, config)
        layout = Layout(fs, path, "{split}.*" if config.language else "{language}/{split}.*", directory=True)
    if "{split}" not in layout.tail or ("{language}" in layout.tail) == bool(config.language):
        raise InputError(
            f"corpus.path {config.path}: a pattern holds {{split}}, and {{language}} unless corpus.language (now "
            f"{config.language}) names the column of the language, such as data/{{language}}/{{split}}.tsv"
        )
    return layout


def _place(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    # fsspec would cut a folder's own name at a # or at ::
    if "://" not in path or path.startswith("file://"):
        return LocalFileSystem(), str(Path(path.removeprefix("file://")).expanduser().absolute())
    try:
        fs, found = url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"corpus.path {path}: {error}; install what it needs, or copy the files") from error
    return fs, str(found)


def _plain(fs: fsspec.AbstractFileSystem, path: str) -> str:
    # the address of a file may go on behind a question mark, its name on a disk not
    return path.split("?")[0] if "http" in fs.protocol else path


def _refuse_no_directory(fs: fsspec.AbstractFileSystem, path: str, config: CorpusConfig) -> None:
    if "http" in fs.protocol:
        raise InputError(
            f"corpus.path {config.path}: a web address needs a pattern, such as {path}/{{language}}/{{split}}.tsv"
        )
    if fs.isfile(path):
        parent, _, file = path.rpartition("/")
        suffix = file.partition(".")[2]
        raise InputError(
            f"corpus.path {config.path}: one file; name its directory, or a pattern such as {parent}/{{split}}.{suffix}"
        )
    if not fs.isdir(path):
        raise InputError(f"corpus.path {config.path}: no such directory; set corpus.path=WHERE_THE_FILES_ARE")


def _of_split(layout: Layout, name: str, config: CorpusConfig) -> list[tuple[str | None, str]]:
    """List (language in the path or None, path) of the files of a split, `name` in their paths."""
    if "http" in layout.fs.protocol and "*" not in layout.tail and (config.languages or config.language):
        return _named(layout, name, config)
    tail = re.sub(r"([\[?])", r"[\1]", layout.tail)  # characters of a name; the only wildcard is *
    wildcard = tail.replace("{split}", glob.escape(name)).replace("{language}", "*")
    try:
        if isinstance(layout.fs, LocalFileSystem):
            inside = glob.glob(wildcard, root_dir=layout.root, recursive=True)
            paths = sorted(f"{layout.root.rstrip('/')}/{path}" for path in inside)
        else:
            paths = sorted(layout.fs.glob(f"{glob.escape(layout.root)}/{wildcard}"))
    except Exception as error:  # every file system raises errors of its own
        raise InputError(
            f"corpus.path {config.path}: cannot be listed ({type(error).__name__}: {error}); check the address, or "
            "name the languages in corpus.languages"
        ) from error
    expression = re.compile(_expression(layout.tail, name))
    matches = [(match, path) for path in paths if (match := expression.search(path))]
    if layout.directory:
        known = formats.suffixes_of(config.format)
        # train.tsv and train.tsv.gz, but not train.old.tsv
        suffixes = [formats.unpacked(path.rpartition("/")[2][len(name) :]) for _, path in matches]
        fitting = [(pair, suffix) for pair, suffix in zip(matches, suffixes, strict=True) if suffix in known]
        # tagged words may lie beside rows, and want their format to be named
        rows = [pair for pair, suffix in fitting if config.format or formats.KINDS[suffix] not in CONLL]
        matches = rows or [pair for pair, _ in fitting]
    return [(match.groupdict().get("language"), path) for match, path in matches]


def _named(layout: Layout, name: str, config: CorpusConfig) -> list[tuple[str | None, str]]:
    asked = config.languages.values() if isinstance(config.languages, Mapping) else config.languages or ()
    tried = [
        (language, f"{layout.root}/{layout.tail}".replace("{split}", name).replace("{language}", language or ""))
        for language in ([None] if config.language else asked)
    ]
    return [(language, path) for language, path in tried if layout.fs.exists(path)]


def _expression(tail: str, name: str) -> str:
    # matched at the end of a path only, because file systems spell the beginning in their own way
    parts = re.split(r"(\{language\}|\{split\}|\*\*|\*)", tail)
    again = "(?P=language)"
    known = {"{split}": re.escape(name), "{language}": again, "**": ".*", "*": "[^/]*"}
    pattern = "".join(known.get(part, re.escape(part)) for part in parts)
    return f"(?:^|/){pattern.replace(again, '(?P<language>[^/]+)', 1)}$"


def _refuse_nothing(layout: Layout, config: CorpusConfig, found: list[Found]) -> None:
    there = {file.split for file in found}
    if "dev" not in there and config.splits.get("dev") == "dev":
        other = next((name for name in ELSEWHERE if _of_split(layout, name, config)), None)
        if other:
            raise InputError(
                f"corpus.path {config.path}: no dev files, but some called {other}; set corpus.splits.dev={other}"
            )
    if found:
        return
    looked = ", ".join(layout.tail.replace("{split}", name) for name in config.splits.values())
    try:
        beside = sorted(entry.rstrip("/").rpartition("/")[2] for entry in layout.fs.ls(layout.root, detail=False))
        there_is = (
            f"there are {', '.join(beside[:10])}{' ...' if len(beside) > 10 else ''}" if beside else "it is empty"
        )
    except Exception as error:  # every file system raises errors of its own
        there_is = f"it cannot be listed: {type(error).__name__}: {error}"
    raise InputError(
        f"corpus.path {config.path}: looked in {layout.root or '/'} for {looked} and found none of them ({there_is}); "
        "check corpus.path, corpus.splits and corpus.languages"
    )


def _refuse_doubles(layout: Layout, found: list[Found]) -> None:
    if "*" in layout.tail and not layout.directory:
        return  # the pattern asks for several files
    first: dict[tuple[str, str | None], Found] = {}
    for file in found:
        other = first.setdefault((file.split, file.language), file)
        if other is not file:
            raise InputError(
                f"{other.shown} and {file.shown}: two files for {file.split}; remove one, or set corpus.format"
            )


def _refuse_missing_languages(config: CorpusConfig, claims: Mapping[str, str], there: set[str]) -> None:
    if config.language or config.languages is None or not there:
        return
    missing = [code for code in config.languages if codes.resolve(code) not in claims]
    if missing:
        names = ", ".join(sorted(there)[:20]) + (" ..." if len(there) > 20 else "")
        raise InputError(
            f"corpus.languages: no files for {', '.join(missing)} under corpus.path {config.path}; there are files for "
            f"{names}; take some of these, or write OUR_CODE: THEIR_NAME"
        )


def _identity(fs: fsspec.AbstractFileSystem, file: Found) -> Any:
    if isinstance(fs, LocalFileSystem):
        status = Path(file.path).stat()
        return [status.st_size, status.st_mtime_ns]
    try:
        # size, and whatever of etag, checksum and time this file system has
        return json.loads(json.dumps(fs.info(file.path), default=str))
    except Exception as error:  # every file system raises errors of its own
        raise InputError(
            f"{file.shown}: cannot be reached ({type(error).__name__}: {error}); check the address"
        ) from error


def _rows(
    fs: fsspec.AbstractFileSystem, found: list[Found], config: CorpusConfig, folder: Path, notes: list[conversion.Note]
) -> conversion.Rows:
    faults: list[str] = []
    for number, file in enumerate(found):
        try:
            local = _local(fs, file, folder / str(number))
            for table in formats.read(local, file.shown, file.kind, config, notes):
                yield file.split, file.language, table
        except FileFaults as error:
            faults += error.faults
        finally:
            shutil.rmtree(folder / str(number), ignore_errors=True)
    if faults:
        refuse(f"corpus.path {config.path}", faults)


def _local(fs: fsspec.AbstractFileSystem, file: Found, folder: Path) -> Path:
    """Return the path of a local file, or of a copy of one elsewhere, which may be read more than once."""
    if isinstance(fs, LocalFileSystem):
        return Path(file.path)
    folder.mkdir()
    copy = folder / _plain(fs, file.path).rpartition("/")[2]
    try:
        fs.get_file(file.path, str(copy))
    except Exception as error:  # every file system raises errors of its own
        raise FileFaults([f"{file.shown}: cannot be fetched ({type(error).__name__}: {error}); try again"]) from error
    return copy
