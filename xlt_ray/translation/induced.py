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
import pyarrow.compute as pc

from xlt_ray.corpora.arrow import column_digest
from xlt_ray.errors import InputError
from xlt_ray.languages import lexicon, word_alignment
from xlt_ray.languages.lexicon import FEWEST_PAIRS, Lexicon
from xlt_ray.languages.words import fold, without_words, words
from xlt_ray.translation import translator

VERSION = 1  # of how lexicons are induced; part of the name of a cached one
FOLDS = 4  # of the rows of a language, one of which a second lexicon has not seen
MOST = 500  # rows of that fold, since every one is encoded once a reading
FEWEST_JUDGED = 20  # rows of that fold by which a lexicon is judged
LEAST_RATE = 0.7  # of `match_rate`, below which rows are no translations of each other


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


def held_out(table: pa.Table, other: pa.Table | None = None) -> np.ndarray:
    """Return which rows a second lexicon is not to see, (rows,) bool, at most 500.

    Of rows with a counterpart in `other` these are a quarter, by their ids, and then come those that have none, which
    no lexicon sees. Without `other` they are a quarter of all.
    """
    digests = np.array([zlib.crc32(str(one).encode()) for one in table["id"].to_pylist()], dtype=np.int64)
    alone = np.zeros(len(digests), dtype=bool)
    if other is not None:
        ids = other["id"].cast(pa.large_string()).combine_chunks()
        alone = ~pc.is_in(table["id"].cast(pa.large_string()), value_set=ids).to_numpy()
    places = np.flatnonzero((digests % FOLDS == 0) | alone)
    found = np.zeros(len(digests), dtype=bool)
    found[places[np.lexsort((digests[places], alone[places]))[:MOST]]] = True
    return found


@dataclass(frozen=True)
class Judged:
    """A lexicon of all parallel rows, one of those that were not held out, and by these how good that one is.

    A lexicon translates the rows it was induced from better than any others, so what is estimated on such rows needs
    one that has not seen them. `match_rate` is nan where too few rows were held out to tell.
    """

    whole: Lexicon
    part: Lexicon
    match_rate: float

    @property
    def unlike(self) -> str | None:
        """Why the rows are no translations of each other, None where they may be."""
        return unlike((self.whole.source, self.whole.target), self.match_rate)


def unlike(pair: tuple[str, str], rate: float) -> str | None:
    """Return why rows of equal ids are no translations, by their `match_rate`; None where they may be, or for nan."""
    if not rate < LEAST_RATE:
        return None
    return (
        f"rows of {pair[0]} and {pair[1]} with the same id do not look like translations: word by word, a row that was "
        f"held out shares more with its own counterpart than with another in {100 * rate:.0f}% of comparisons, and 50% "
        "is chance"
    )


def judge(pair: tuple[str, str], tables: tuple[pa.Table, pa.Table], held: pa.Array, settings: Settings) -> Judged:
    """Induce a lexicon with all rows, and one without those whose ids are in `held`, and judge it by these."""
    source, target = tables
    there = pc.is_in(source["id"], value_set=held.cast(source["id"].type))
    whole = induce(pair, (source, target), settings)
    part = induce(pair, (source.filter(pc.invert(there)), target), settings, fewest=1)
    mine, theirs = word_alignment.shared(source.filter(there), target)
    if mine.num_rows < FEWEST_JUDGED:
        return Judged(whole, part, float("nan"))
    gloss = translator.WordByWord(translator.Lexicons({pair[0]: translator.pack(part)}), settings.score, pair[1])
    texts = gloss.translate([text or "" for text in mine["text"].to_pylist()], *pair)
    return Judged(whole, part, match_rate(texts, [text or "" for text in theirs["text"].to_pylist()]))


def match_rate(texts: Sequence[str], others: Sequence[str]) -> float:
    """Return how often a text shares more words with its own counterpart than with that of another text, 0 to 1.

    Words count by their inverse document frequency, and ties by half: 0.5 is chance, 1 tells every counterpart. It is
    the area under the curve of telling them, a mean over texts.
    """
    bags = [{fold(word) for word in words(text)} for text in others]
    rows: dict[str, list[int]] = {}
    for place, bag in enumerate(bags):
        for word in bag:
            rows.setdefault(word, []).append(place)
    found = []
    for place, text in enumerate(texts):
        scores = np.zeros(len(others))
        for word in {fold(word) for word in words(text)} & rows.keys():
            scores[rows[word]] += np.log(len(others) / len(rows[word]))
        rest = np.delete(scores, place)
        found.append(np.mean((rest < scores[place]) + 0.5 * (rest == scores[place])))
    return float(np.mean(found))


def packed(job: tuple[tuple[str, str], tuple[pa.Table, pa.Table], pa.Array, Settings]) -> tuple[bytes, bytes, float]:
    """Return what `judge` makes of its arguments, with both lexicons packed."""
    found = judge(*job)
    return translator.pack(found.whole), translator.pack(found.part), found.match_rate
