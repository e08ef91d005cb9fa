"""Induce lexicons from the parallel rows of a corpus, and cache them by content."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray import durable
from xlt_ray.corpora.arrow import column_digest, take
from xlt_ray.errors import InputError
from xlt_ray.languages import lexicon, word_alignment
from xlt_ray.languages.lexicon import FEWEST_PAIRS, Lexicon
from xlt_ray.languages.words import fold, without_words, words
from xlt_ray.translation import translator

VERSION = 1  # of how lexicons are induced; part of the name of a cached one
FOLDS = 4  # of the rows of a language, one of which a second lexicon has not seen
MOST = 500  # rows of that fold, since every one is encoded once a reading
FEWEST_JUDGED = 20  # rows of that fold by which a lexicon is judged
JUDGED_AT = 0.05  # the least score by which it is judged, whatever is asked of it
LEAST_RATE = 0.6  # of `match_rate`, below which rows are no translations of each other


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
        return (
            f"{code if source in rows else source} has no train or dev rows and no parallel text, or is neither source "
            "nor target"
        )
    common = word_alignment.shared(rows[source].select(["id"]), rows[code].select(["id"]))[0].num_rows
    if common < FEWEST_PAIRS:
        return f"{common} rows have the same id in {source} and {code}, fewer than {FEWEST_PAIRS}"
    return None


def induce(
    pair: tuple[str, str], tables: tuple[pa.Table, pa.Table], settings: Settings, fewest: int = FEWEST_PAIRS
) -> Lexicon:
    """Return the lexicon of two tables' rows of equal ids, from the cache where it was induced before."""
    kept = _kept(pair, tables, settings).with_suffix(".tsv")
    if not durable.sealed(kept):
        # written and read back, so that a first run and a later one see the same order of entries
        lexicon.write(kept, lexicon.induce_tables(*tables, pair, settings.score, settings.phrases, fewest))
        durable.seal(kept)
    return lexicon.read_table(kept, *pair)


def _kept(pair: tuple[str, str], tables: Sequence[pa.Table], settings: Settings) -> Path:
    """Return where what is made of tables by these settings is kept, without a suffix."""
    digest = hashlib.sha256(json.dumps([VERSION, pair, settings.score, settings.phrases]).encode())
    for table in tables:
        for column in ("id", "text", "text_pair"):
            if column in table.column_names:
                digest.update(column.encode() + column_digest(table[column]))
    return Path(settings.cache_dir).expanduser() / "lexicons" / f"{'-'.join(pair)}-{digest.hexdigest()[:16]}"


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


def held_out(table: pa.Table, other: pa.Table | None = None, beside: pa.Table | None = None) -> np.ndarray:
    """Return which rows a second lexicon is not to see, (rows,) bool, at most 500.

    Of rows with a counterpart in `other`, or whose text stands in the parallel text `beside` too, these are a quarter,
    by their ids; then come the rest, which no lexicon sees. Without `other` they are a quarter of all.
    """
    digests = np.array([zlib.crc32(str(one).encode()) for one in table["id"].to_pylist()], dtype=np.int64)
    alone = np.zeros(len(digests), dtype=bool)
    if other is not None:
        ids = other["id"].cast(pa.large_string()).combine_chunks()
        alone = ~pc.is_in(table["id"].cast(pa.large_string()), value_set=ids).to_numpy()
    if beside is not None:
        alone &= ~stands_in(table, beside)
    places = np.flatnonzero((digests % FOLDS == 0) | alone)
    found = np.zeros(len(digests), dtype=bool)
    found[places[np.lexsort((digests[places], alone[places]))[:MOST]]] = True
    return found


def stands_in(table: pa.Table, other: pa.Table) -> np.ndarray:
    """Return which rows of a table have a text that stands in another, (rows,) bool."""
    texts = other["text"].cast(pa.large_string()).combine_chunks()
    return np.asarray(pc.is_in(table["text"].cast(pa.large_string()), value_set=texts).to_numpy())


@dataclass(frozen=True)
class Judged:
    """A lexicon of all parallel rows, one of those that were not held out, and by these how good that one is.

    A lexicon translates the rows it was induced from better than any others, so what is estimated on such rows needs
    one that has not seen them. `match_rate` is nan where too few rows were held out to tell.
    """

    whole: Lexicon
    part: Lexicon
    match_rate: float


def unlike(pair: tuple[str, str], rate: float) -> str | None:
    """Return why rows of equal ids are no translations, by their `match_rate`; None where they may be, or for nan."""
    if not rate < LEAST_RATE:
        return None
    return (
        f"rows of {pair[0]} and {pair[1]} with the same id do not look like translations: word by word, a row that was "
        f"held out shares more with its own counterpart than with another in {100 * rate:.0f}% of comparisons, and 50% "
        "is chance"
    )


def no_translations(pair: tuple[str, str], rows: Mapping[str, pa.Table], settings: Settings) -> str | None:
    """Return why rows of equal ids of two languages, once judged, are no translations; None where they may be."""
    source, target = (rows[code] for code in pair)
    held = source["id"].filter(pa.array(held_out(source, target))).combine_chunks()
    return unlike(pair, rate_of(pair, (source, target), held, settings))


def judge(pair: tuple[str, str], tables: tuple[pa.Table, pa.Table], held: pa.Array, settings: Settings) -> Judged:
    """Induce a lexicon with all rows, and one without those whose ids are in `held`, and judge it by these.

    The second has entries down to a score of 0.05, whatever `settings` ask for.
    """
    rate = rate_of(pair, tables, held, settings)
    return Judged(induce(pair, tables, settings), _part(pair, tables, held, settings), rate)


def rate_of(pair: tuple[str, str], tables: tuple[pa.Table, pa.Table], held: pa.Array, settings: Settings) -> float:
    """Return the match rate of the rows whose ids are in `held`, by a lexicon of the others; nan for too few.

    Rows of the corpus and parallel text beside it are judged apart, and the lower rate counts. It is cached.
    """
    source, target = tables
    seen = source.filter(pc.is_in(source["id"], value_set=held.cast(source["id"].type)))
    kept = _kept(pair, (source, target, seen), _low(settings)).with_suffix(".rate")
    if not durable.sealed(kept):
        part = _part(pair, tables, held, settings)
        durable.write(kept, repr(_rate(part, word_alignment.shared(seen, target), _low(settings))))
        durable.seal(kept)
    return float(kept.read_text(encoding="utf-8"))


def _low(settings: Settings) -> Settings:
    return replace(settings, score=min(settings.score, JUDGED_AT))


def _part(pair: tuple[str, str], tables: tuple[pa.Table, pa.Table], held: pa.Array, settings: Settings) -> Lexicon:
    source, target = tables
    rest = source.filter(pc.invert(pc.is_in(source["id"], value_set=held.cast(source["id"].type))))
    return induce(pair, (rest, target), _low(settings), fewest=1)


def _rate(part: Lexicon, held: tuple[pa.Table, pa.Table], settings: Settings) -> float:
    """Return the least match rate of rows that a lexicon has not seen and their counterparts, nan for too few."""
    pair, (mine, theirs) = (part.source, part.target), held
    lexicons = translator.Lexicons({part.source: translator.pack(part)})
    gloss = translator.WordByWord(lexicons, settings.score, part.target)
    beside = np.array(mine["beside"]) if "beside" in mine.column_names else np.zeros(mine.num_rows, dtype=bool)
    rates = []
    for rows in (np.flatnonzero(beside == kind) for kind in (False, True)):
        if len(rows) >= FEWEST_JUDGED:
            texts, others = ([text or "" for text in take(one, rows)["text"].to_pylist()] for one in (mine, theirs))
            rates.append(match_rate(gloss.translate(texts, *pair), others))
    return min(rates, default=float("nan"))


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
