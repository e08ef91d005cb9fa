"""Induce lexicons from the parallel rows of a corpus, and cache them by content."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from xlt_ray.corpora.arrow import column_digest
from xlt_ray.errors import InputError
from xlt_ray.languages import lexicon, word_alignment
from xlt_ray.languages.lexicon import FEWEST_PAIRS, Lexicon
from xlt_ray.languages.words import without_words
from xlt_ray.translation import translator

VERSION = 1  # of how lexicons are induced; part of the name of a cached one
FOLDS = 4  # of the rows of a language, one of which a second lexicon has not seen
MOST = 500  # rows of that fold, since every one is encoded once a reading


@dataclass(frozen=True)
class Settings:
    """How lexicons are induced and where they are kept: the least score, whether of phrases too, and the cache."""

    score: float
    phrases: bool
    cache_dir: str


def fault(pair: tuple[str, str], rows: Mapping[str, pa.Table]) -> str | None:
    """Return why no lexicon can be induced from the rows of two languages, None where one can be."""
    source, code = pair
    if one := without_words(source, code):
        return f"{one} is written without spaces between words, so no lexicon can be induced"
    if source not in rows or code not in rows:
        return f"{code if source in rows else source} has no train or dev rows, or is neither source nor target"
    common = word_alignment.shared(rows[source].select(["id"]), rows[code].select(["id"]))[0].num_rows
    if common < FEWEST_PAIRS:
        return f"{common} rows have the same id in {source} and {code}, fewer than {FEWEST_PAIRS}"
    return None


def induce(
    pair: tuple[str, str], tables: tuple[pa.Table, pa.Table], settings: Settings, fewest: int = FEWEST_PAIRS
) -> Lexicon:
    """Return the lexicon of two tables' rows of equal ids, from the cache where it was induced before."""
    digest = hashlib.sha256(json.dumps([VERSION, pair, settings.score, settings.phrases]).encode())
    for table in tables:
        for column in ("id", "text", "text_pair"):
            if column in table.column_names:
                digest.update(column.encode() + column_digest(table[column]))
    folder = Path(settings.cache_dir).expanduser() / "lexicons"
    kept = folder / f"{'-'.join(pair)}-{digest.hexdigest()[:16]}.tsv"
    if not kept.is_file():
        # written and read back, so that a first run and a later one see the same order of entries
        lexicon.write(kept, lexicon.induce_tables(*tables, pair, settings.score, settings.phrases, fewest))
    return lexicon.read_table(kept, *pair)


def file(place: str, where: str, names: Sequence[str], **parts: str) -> Path | None:
    """Find the file of a lexicon, None where there is none.

    `where` is a pattern with {language}, in which `parts` are filled in, or a folder with a file of one of the `names`.
    Raises InputError at `place` of the configuration where it is neither.
    """
    if "{language}" in where:
        for name, value in parts.items():
            where = where.replace(f"{{{name}}}", value)
        found = Path(where).expanduser()
        return found if found.is_file() else None
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise InputError(f"{place}: {where} is no folder; give one, or a pattern with {{language}}, or induced")
    files = [folder / f"{name}{ending}" for name in names for ending in (".tsv", ".csv", ".tei", ".index")]
    return next((one for one in files if one.is_file()), None)


def held_out(table: pa.Table) -> np.ndarray:
    """Return which rows a second lexicon is not to see, (rows,) bool: a quarter of them, at most 500, by their ids."""
    digests = np.array([zlib.crc32(str(one).encode()) for one in table["id"].to_pylist()], dtype=np.int64)
    fold = np.flatnonzero(digests % FOLDS == 0)
    found = np.zeros(len(digests), dtype=bool)
    found[fold[np.argsort(digests[fold], kind="stable")[:MOST]]] = True
    return found


def both(job: tuple[tuple[str, str], tuple[pa.Table, pa.Table], Settings]) -> tuple[bytes, bytes]:
    """Return two packed lexicons of a (pair, tables, settings): of all rows, and of those that are not `held_out`.

    A lexicon translates the rows it was induced from better than any others, so what is estimated on such rows needs
    one that has not seen them.
    """
    pair, (source, target), settings = job
    rest = source.filter(pa.array(~held_out(source)))
    whole, part = induce(pair, (source, target), settings), induce(pair, (rest, target), settings, fewest=1)
    return translator.pack(whole), translator.pack(part)
