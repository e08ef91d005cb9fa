"""Find the lexicons from the sources of a run into other languages, and translate rows of the sources by them.

A lexicon is induced from unlabelled parallel rows, or read from a table or a dictionary. One that is induced is cached
by content, and so are the rows that are translated by any, since many processes ask for the same ones.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from xlt_ray import durable
from xlt_ray.corpora.arrow import column_digest, open_split, with_texts, write_split
from xlt_ray.errors import InputError
from xlt_ray.languages import codes, lexicon
from xlt_ray.languages.lexicon import Lexicon
from xlt_ray.translation import induced
from xlt_ray.translation.translator import Lexicons, WordByWord, pack

VERSION = 1  # of how rows are translated; part of the name of cached ones
SHOWN = 20  # languages of which a fault is told

Pair = tuple[str, str]  # a source, and the language that it is translated into
Faults = Mapping[Pair, str | None]  # why a pair cannot be translated, None where it can


@dataclass(frozen=True, eq=False)
class FromSources:
    """The lexicons from `sources` that the section `place` of a configuration asks for.

    `where` is induced, a folder, or a pattern with {language} and, where there are several sources, {source}. `rows`
    are unlabelled texts by language, with ids, from which lexicons are induced.
    """

    place: str  # such as techniques.NAME
    where: str
    sources: tuple[str, ...]
    rows: Mapping[str, pa.Table]
    settings: induced.Settings

    def fault(self, pair: Pair) -> str | None:
        """Return why there is no lexicon of a pair, None where there is one."""
        if self.where == "induced":
            return induced.fault(pair, self.rows)
        return None if self.file(pair) else f"no file of {' -> '.join(pair)} under {self.place}.lexicons"

    def refuse(self, faults: Faults, named: Collection[str]) -> dict[str, str]:
        """Raise InputError as `refuse` does, with what to do about a lexicon that is missing."""
        remedy = (
            f"no lexicon from {', '.join(self.sources)}; give dictionaries by {self.place}.lexicons, translations that "
            "share an id (corpus.id), parallel text (corpus.parallel), or other languages"
        )
        return refuse(self.place, faults, named, remedy)

    def file(self, pair: Pair) -> Path | None:
        """Find the file of a pair, None where there is none; one named by the language alone serves a single source."""
        source, code = pair
        alone = len(self.sources) == 1
        if not alone:
            both_named(f"{self.place}.lexicons", self.where, len(self.sources))
        names = [f"{source}-{code}", *([code] if alone else [])]
        return induced.file(f"{self.place}.lexicons", self.where, names, source=source, language=code)

    def lexicon(self, pair: Pair) -> Lexicon:
        """Read the lexicon of a pair that has no `fault`, from the cache where it was induced before, or induce it."""
        if self.where != "induced":
            file = self.file(pair)
            assert file is not None, "fault finds a file that is missing"
            return lexicon.read(file, *pair)
        source, code = pair
        return induced.induce(pair, (self.rows[source], self.rows[code]), self.settings)

    def unlike(self, pair: Pair) -> str | None:
        """Return why the rows of a pair, once judged, are no translations to induce from, None where they may be."""
        return induced.no_translations(pair, self.rows, self.settings) if self.where == "induced" else None

    def translated(self, table: pa.Table, pair: Pair) -> pa.Table:
        """Return rows of a source word by word in another language: `text` and `text_pair` change, all else stays.

        Words, and phrases where `settings` have them, are replaced whose best translation scores `settings.score` or
        more. From the cache where the same rows were translated before by the same lexicon. Raises InputError where the
        lexicon translates nothing.
        """
        source, code = pair
        columns = [name for name in ("text", "text_pair") if name in table.column_names]
        folder = Path(self.settings.cache_dir).expanduser() / "translations"
        kept = folder / f"{source}-{code}-{self._digest(table.select(columns), pair)}.arrow"
        if not durable.sealed(kept):
            gloss = WordByWord(Lexicons({source: pack(self._usable(pair))}), self.settings.score, code)
            texts = {name: [text or "" for text in table[name].to_pylist()] for name in columns}
            found = {name: gloss.translate(each, source, code) for name, each in texts.items()}
            write_split(kept, [(code, pa.table({name: pa.array(each, pa.string()) for name, each in found.items()}))])
            durable.seal(kept)
        read = open_split(kept)[code]
        return with_texts(table, {name: read[name] for name in columns})

    def _usable(self, pair: Pair) -> Lexicon:
        """Return the lexicon of a pair without entries that are not asked for."""
        found, score = self.lexicon(pair), self.settings.score
        entries = {
            key: options
            for key, options in found.entries.items()
            if options[0][1] >= score and (self.settings.phrases or " " not in key)
        }
        if not entries:
            raise InputError(
                f"{self.place}.lexicons: that of {' -> '.join(pair)} has no entry that scores {score:g} or more; lower "
                f"{self.place}.score, give another lexicon, or leave {pair[1]} out of {self.place}.languages"
            )
        return replace(found, entries=entries)

    def _digest(self, texts: pa.Table, pair: Pair) -> str:
        """Return what the translation of texts depends on: the texts, the settings, and what the lexicon is made of."""
        settings = [VERSION, induced.VERSION, pair, self.settings.score, self.settings.phrases]
        digest = hashlib.sha256(json.dumps(settings).encode())
        made_of = [self.rows[code] for code in pair] if self.where == "induced" else []
        for table in (texts, *made_of):
            for column in ("id", "text", "text_pair"):
                if column in table.column_names:
                    digest.update(column.encode() + column_digest(table[column]))
        if self.where != "induced" and (file := self.file(pair)):
            # a dictionary has its articles beside it
            for part in sorted({file, *file.parent.glob(f"{glob.escape(file.stem)}.*")}):
                digest.update(f"{part.name}\0{durable.digest(part)}".encode())
        return digest.hexdigest()[:16]


def languages_named(languages: tuple[str, ...] | str, to_what: str) -> tuple[str, ...] | str:
    """Return the canonical codes of languages that a parameter lists, or `targets` as it is; ValueError for none."""
    if isinstance(languages, str):
        return languages
    if not languages:
        raise ValueError(f"no language to {to_what}; name some, or write targets")
    return tuple(dict.fromkeys(codes.resolve(code) for code in languages))


def both_named(place: str, pattern: str, sources: int) -> None:
    """Raise InputError where one file of a pattern with {language} would have to serve several sources."""
    if "{language}" in pattern and "{source}" not in pattern:
        raise InputError(
            f"{place}: {pattern} has no {{source}}, and there are {sources} sources; write both, as in "
            "{source}-{language}.tsv"
        )


def refuse(place: str, faults: Faults, named: Collection[str], remedy: str) -> dict[str, str]:
    """Raise InputError where a `named` language can be translated into from no source, or no language can at all.

    Returns why the others that cannot be, cannot, by language.
    """
    able = {code for (_, code), fault in faults.items() if fault is None}
    lacking = {code: fault for (_, code), fault in faults.items() if fault and code not in able}
    wrong = {code: fault for code, fault in lacking.items() if code in named}
    if wrong or not able:
        what = f": {', '.join(wrong or named)}" if named else ""
        raise InputError(f"{place}.languages{what}: {remedy}{shown(wrong or lacking)}")
    return lacking


def shown(faults: Mapping[str, str]) -> str:
    """Return the faults of languages, a line each, the first 20 of them."""
    return "".join(f"\n  {code}: {fault}" for code, fault in list(faults.items())[:SHOWN])
