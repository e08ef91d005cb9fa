"""Read a text in several ways where it is measured or served: as it stands, and in translations of it.

Each reading is encoded and scored like a text of its own, and the scores are averaged. To what depends on the language
of a text, as centring does, a reading is a language of its own, named by `key`: the encoder sees another text.
Needs neither torch nor pyarrow, since a server reads texts in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlt_ray.errors import InputError
from xlt_ray.languages import codes
from xlt_ray.translation.translator import Lexicons, Translator, WordByWord

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
FILE = "readings.json"
MARK = "/"  # in no code of a language
ORIGINAL = "original"


def key(code: str, number: int) -> str:
    """Return the name of a language's reading among the languages of a network: 0, as it stands, has the language's.

    >>> key("swh_Latn", 0), key("swh_Latn", 2)
    ('swh_Latn', 'swh_Latn/2')
    """
    return f"{code}{MARK}{number}" if number else code


def language_of(name: str) -> str:
    """Return the language of a `key`.

    >>> language_of("swh_Latn/2"), language_of("swh_Latn")
    ('swh_Latn', 'swh_Latn')
    """
    return name.partition(MARK)[0]


def is_first(name: str) -> bool:
    """Return whether a `key` is that of a language, and not of a further reading of it."""
    return MARK not in name


@dataclass(frozen=True, eq=False)
class Asked:
    """Texts as they are read, one row a reading: `owners` (rows,) are the places of their texts, ascending.

    `keys` name the language and the reading of each row, None where the language is unknown. `shares` (rows,) are the
    weights of the rows, which sum to 1 over those of a text.
    """

    texts: list[str]
    pairs: list[str] | None
    keys: list[str | None]
    owners: np.ndarray
    shares: np.ndarray

    @property
    def parts(self) -> np.ndarray:
        """What part of its text's rows each row is, (rows,): they sum to the number of texts."""
        return np.asarray(1 / np.bincount(self.owners)[self.owners])

    def joined(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the probabilities of texts (texts, labels) from those of rows (rows, labels), float32.

        The logarithms are averaged, which is the same as to average the scores before the softmax.
        """
        if len(self.owners) == 0 or self.owners[-1] == len(self.owners) - 1:
            return probabilities
        logs = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)) * self.shares[:, None]
        starts = np.flatnonzero(np.diff(self.owners, prepend=-1))
        means = np.add.reduceat(logs, starts)
        powers = np.exp(means - means.max(1, keepdims=True))
        return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Readings:
    """How texts of each language are read: by `translators` into the language `into`, None for the text as it stands.

    A language that a translator does not translate, or an unknown one, is read as it stands. `weights` are one a
    translator, `by_language` those of single languages. `held_out` are translators that have not seen the rows of
    `unseen`, by language (rows,) bool, for what is estimated on a corpus' own texts, and `match_rates` say how well
    they do on these, see `induced.match_rate`; a bundle keeps neither.
    """

    into: str
    translators: tuple[Translator | None, ...]
    weights: tuple[float, ...]
    by_language: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    held_out: tuple[Translator | None, ...] = ()
    unseen: Mapping[str, np.ndarray] = field(default_factory=dict)
    match_rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that have a lexicon, sorted."""
        return tuple(sorted(_lexicons(self).packed))

    def several(self, code: str | None) -> bool:
        """Return whether texts of a language are read otherwise than as they stand."""
        return code is not None and any(one and one.translates(code, self.into) for one in self.translators)

    def keys(self, code: str) -> list[str]:
        """Return the keys of a language's readings; that of the language itself is of the text as it stands alone."""
        if not self.several(code):
            return [code]
        first = 0 if self.translators[0] is None else 1
        return [key(code, number) for number in range(first, first + len(self.translators))]

    def shares(self, code: str) -> np.ndarray:
        """Return the weights of a language's readings, in the order of `keys`, which sum to 1."""
        if not self.several(code):
            return np.ones(1)
        found = np.array(self.by_language.get(code, self.weights))
        return found / found.sum()

    def texts(self, texts: Sequence[str], code: str | None) -> list[list[str]]:
        """Return every reading of texts of one language, in the order of `keys`: (readings, texts)."""
        return self._read(texts, code, self.translators)

    def _read(
        self, texts: Sequence[str], code: str | None, translators: Sequence[Translator | None]
    ) -> list[list[str]]:
        if code is None or not self.several(code):
            return [list(texts)]
        return [list(texts) if one is None else one.translate(texts, code, self.into) for one in translators]

    def tables(self, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
        """Return the readings of tables by language, by `key`."""
        return {
            name: read for code, table in tables.items() for name, read in self._tables(code, table, self.translators)
        }

    def to_estimate(self, code: str, table: pa.Table, alike: bool = False) -> dict[str, pa.Table]:
        """Return rows of a corpus' unlabelled texts, by `key`, read as texts are that no lexicon was induced from.

        Texts as they stand are always among them, with all rows. Where they are to be `alike`, every reading has the
        same rows, and there are none but the readings of the language.
        """
        unseen = table.filter(self.unseen[code]) if code in self.unseen else table
        found = dict(self._tables(code, unseen, self.held_out or self.translators))
        return found if alike else found | {code: table}

    def coverage(self, code: str, table: pa.Table) -> list[float]:
        """Return for each reading of a language the share of words that are translated, in rows it has not seen.

        `table` holds all of the language's unlabelled rows; the share is 0 as they stand.
        """
        if code in self.unseen:
            table = table.filter(self.unseen[code])
        texts = [text or "" for text in table["text"].to_pylist()]
        used = (self.held_out or self.translators) if self.several(code) else (None,)
        return [one.coverage(texts, code) if isinstance(one, WordByWord) else 0.0 for one in used]

    def _tables(
        self, code: str, table: pa.Table, translators: Sequence[Translator | None]
    ) -> Iterator[tuple[str, pa.Table]]:
        if not self.several(code):
            yield code, table
            return
        columns = [name for name in ("text", "text_pair") if name in table.column_names]
        read = {
            name: self._read([text or "" for text in table[name].to_pylist()], code, translators) for name in columns
        }
        from xlt_ray.corpora.arrow import with_texts  # here, because a server reads texts alone

        for number, name in enumerate(self.keys(code)):
            yield name, with_texts(table, {column: read[column][number] for column in columns})

    def describe(self, code: str | None) -> str:
        """Return in words how texts of a language are read.

        >>> gloss = WordByWord(Lexicons({"swh_Latn": b""}), 0.1, "eng_Latn")
        >>> Readings("eng_Latn", (None, gloss), (1, 1)).describe("swh_Latn")
        'original + 1 word-by-word English reading'
        """
        if not self.several(code):
            return "original"
        others = sum(one is not None for one in self.translators)
        what = f"{others} word-by-word {codes.name(self.into)} reading{'s' if others > 1 else ''}"
        return f"original + {what}" if others < len(self.translators) else what

    def named(self, code: str | None) -> list[str]:
        """Return the name of each reading of a language, in the order of `keys`."""
        if not self.several(code):
            return [ORIGINAL]
        return [ORIGINAL if one is None else one.name for one in self.translators]

    def with_lexicon(self, code: str, packed: bytes) -> Readings:
        """Return readings that know one more language, or another lexicon of a known one; `packed` is of `pack`."""
        lexicons = Lexicons({**_lexicons(self).packed, code: packed})
        weights = {one: kept for one, kept in self.by_language.items() if one != code}  # they suited another lexicon
        return replace(
            self,
            by_language=weights,
            translators=tuple(one and replace(one, lexicons=lexicons) for one in _words(self)),
        )


def by_lexicon(
    into: str, scores: Sequence[float], original: bool, lexicons: Lexicons, weights: Sequence[float] = ()
) -> Readings:
    """Return readings of a text as it stands, with `original`, then word by word at each of the least `scores`."""
    translators = (*([None] if original else []), *(WordByWord(lexicons, score, into) for score in scores))
    return Readings(into, translators, tuple(weights) or (1.0,) * len(translators))


def _words(readings: Readings) -> list[WordByWord | None]:
    found = [one for one in readings.translators if one is None or isinstance(one, WordByWord)]
    assert len(found) == len(readings.translators), "there is no other kind of translator yet"
    return found


def _lexicons(readings: Readings) -> Lexicons:
    return next(one.lexicons for one in _words(readings) if one is not None)


def to_json(readings: Readings) -> str:
    """Return what `from_json` reads: everything but what is held out."""
    scores = [None if one is None else one.score for one in _words(readings)]
    listed = [{"score": score, "weight": weight} for score, weight in zip(scores, readings.weights, strict=True)]
    content = {
        "format": FORMAT,
        "into": readings.into,
        "readings": listed,
        "weights": dict(readings.by_language),
        "lexicons": _lexicons(readings).to_json(),
    }
    return json.dumps(content, indent=1)


def read(file: Path) -> Readings:
    """Read readings that were written by `to_json`; raise InputError where the file holds something else."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(f"{file}: format {content['format']}, this version reads {FORMAT}; train again")
        scores = [one["score"] for one in content["readings"]]
        weights = [float(one["weight"]) for one in content["readings"]]
        lexicons = Lexicons.from_json(content["lexicons"])
        found = by_lexicon(str(content["into"]), [s for s in scores if s], scores[0] is None, lexicons, weights)
        return replace(found, by_language={code: tuple(map(float, one)) for code, one in content["weights"].items()})
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{file}: damaged ({error!r}); copy the folder again") from None


def asked(
    readings: Readings | None,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    languages: Sequence[str | None] | None = None,
) -> Asked:
    """Return texts as they are read; without `languages`, or without `readings`, as they stand."""
    known: list[str | None] = [None] * len(texts) if languages is None else list(languages)
    if readings is None or not any(map(readings.several, set(known))):
        places = np.arange(len(texts))
        return Asked(list(texts), None if pairs is None else list(pairs), known, places, np.ones(len(texts)))
    read: list[list[str]] = [[] for _ in texts]
    seconds: list[list[str]] = [[] for _ in texts]
    for code in dict.fromkeys(known):  # a language at a time, since its lexicon has to be unpacked
        mine = [place for place, one in enumerate(known) if one == code]
        for of, into in ((texts, read), *([] if pairs is None else [(pairs, seconds)])):
            for column in readings.texts([of[place] for place in mine], code):
                for place, text in zip(mine, column, strict=True):
                    into[place].append(text)
    keys = [name for code in known for name in ([None] if code is None else readings.keys(code))]
    shares = np.concatenate([readings.shares(code or "") for code in known])
    owners = np.repeat(np.arange(len(texts)), [len(one) for one in read])
    found, second = ([text for one in of for text in one] for of in (read, seconds))
    return Asked(found, None if pairs is None else second, keys, owners, shares)
