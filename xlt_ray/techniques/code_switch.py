"""Code-switching: replace some words of source texts by their translations into the languages to transfer to.

CoSDA-ML (Qin et al. 2020, arXiv 2006.06402) replaces words by translations of a random language each time a row is
drawn, so that the encoder brings words of many languages into the same contexts. Where no dictionary is given, one is
induced from the unlabelled rows that the corpus has in parallel.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import regex
from pydantic import Field, PrivateAttr, field_validator

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.arrow import column_digest
from xlt_ray.corpora.mixture import shares
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.languages import codes, lexicon, word_alignment
from xlt_ray.languages.lexicon import FEWEST_PAIRS, LONGEST, Lexicon
from xlt_ray.languages.word_alignment import WORD, fold
from xlt_ray.techniques.technique import Available, Example, Material, Reads, Technique

VERSION = 1  # of how lexicons are induced; part of the name of a cached one
GAP = regex.compile(r"[\s\-]+")  # what may stand between the words of a phrase
APOSTROPHES = ("'", "’")
ENDING = 2  # letters; after an apostrophe so few are part of a word, as in it's and we'll


class CodeSwitch(Technique):
    """Replace words of training texts by translations into other languages, anew each time a row is drawn."""

    name: ClassVar[str] = "code_switch"
    paper: ClassVar[str] = "Qin et al. 2020, CoSDA-ML, arXiv 2006.06402"
    needs: ClassVar[str] = (
        "unlabelled train (else dev) rows of targets with the ids of the source's, 100 or more; or dictionaries"
    )
    cost: ClassVar[str] = "0.6 s a pair of languages once, for 700 rows, then kept in corpus.cache_dir; 0.3 ms a row"

    reads: ClassVar[Reads] = "parallel"
    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {"lexicons": ("induced",)}

    rate: float = Field(0.3, ge=0, le=1, description="chance that a word or phrase that can be translated is replaced")
    languages: tuple[str, ...] | Literal["targets"] = Field(
        "targets", description="languages to switch to; targets: all that have unlabelled texts and are no source"
    )
    alpha: float | None = Field(
        None, ge=0, le=5, description="p(language) ~ entries ** alpha, 0: all alike; default: mixture.alpha"
    )
    lexicons: str = Field(
        "induced",
        description="induced, from parallel rows; or where {source}-{language}.tsv, .tei or .index files lie: a "
        "directory, or a pattern with {language} and, where there are several sources, {source}",
    )
    score: float = Field(0.5, gt=0, le=1, description="induced: the least score of a translation")
    phrases: bool = Field(True, description="replace phrases that the lexicon has as wholes, the longest first")
    mix: Literal["word", "sentence"] = Field(
        "word", description="draw a language for each word, as CoSDA-ML does, or one for a whole text"
    )
    _vocabularies: Mapping[str, Vocabulary] = PrivateAttr(default_factory=dict)

    @field_validator("languages")
    @classmethod
    def _canonical(cls, languages: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if isinstance(languages, str):
            return languages
        if not languages:
            raise ValueError("no language to switch to; name some, or write targets")
        return tuple(dict.fromkeys(codes.resolve(code) for code in languages))

    def reads_of(self, targets: Collection[str], there: Collection[str]) -> tuple[str, ...]:
        """Return the targets to switch to: those named, else all that have rows or may have a dictionary."""
        wanted = self._named or (there if self.lexicons == "induced" else targets)
        return tuple(code for code in sorted(targets) if code in wanted)

    def check(self, available: Available) -> None:
        """Raise InputError where no language has what a lexicon is made of, or one that is named has none."""
        experiment = available.experiment
        # those of `Material.texts`, from which lexicons are made later
        rows = {code: table for code, table in available.texts.items() if code in available.languages}
        faults = {pair: self._fault(pair, rows, experiment) for pair in self._pairs(experiment, rows)}
        self._refuse(experiment, faults)

    def prepare(self, material: Material, on_progress: OnProgress = lambda done, total: None) -> CodeSwitch:
        """Return the technique with its lexicons: read, taken from the cache, or induced and put there."""
        experiment, found = material.experiment, {}
        pairs = self._pairs(experiment, material.texts)
        faults = {pair: self._fault(pair, material.texts, experiment) for pair in pairs}
        able = [pair for pair in pairs if faults[pair] is None]
        # each worker in an order of its own, so that they seldom induce the same one and find the others' in the cache
        for number, place in enumerate(np.random.default_rng(os.getpid()).permutation(len(able))):
            found[able[place]] = self._lexicon(able[place], material.texts, experiment)
            on_progress(number + 1, len(able))
        found = {pair: found[pair] for pair in able}  # in their order, wherever the work began
        faults |= {pair: "its lexicon has no entry" for pair in able if not found[pair].entries}
        self._refuse(experiment, faults)
        alpha = experiment.mixture.alpha if self.alpha is None else self.alpha
        ready = self.model_copy()
        ready._vocabularies = {
            source: Vocabulary.of([one for (mine, _), one in found.items() if mine == source and one.entries], alpha)
            for source in dict.fromkeys(source for source, _ in found)
        }
        return ready

    def example(self, example: Example, rng: np.random.Generator) -> Example:
        """Switch both texts of a row; a row of a language without lexicons stays as it is."""
        vocabulary = self._vocabularies.get(example.language)
        if vocabulary is None or not vocabulary.lexicons:
            return example
        pair = None if example.text_pair is None else self._switched(example.text_pair, vocabulary, rng)
        return replace(example, text=self._switched(example.text, vocabulary, rng), text_pair=pair)

    def _switched(self, text: str, vocabulary: Vocabulary, rng: np.random.Generator) -> str:
        """Replace each word or phrase that has a translation with probability `rate`, and keep all that is between.

        The text is cut into phrases and words before anything is drawn, so `rate` is the expected share of replaced
        words among those that can be replaced. `word` draws from the languages that know the word.
        """
        spans = [match.span() for match in WORD.finditer(text)]
        words = [fold(text[low:high]) for low, high in spans]
        ends = _ends(text, spans, LONGEST if self.phrases else 1)
        whole = vocabulary.draw(range(len(vocabulary.lexicons)), rng) if self.mix == "sentence" else None
        pieces, done, at = [], 0, 0
        while at < len(words):
            length, knowing = vocabulary.lookup(words[at : ends[at]], whole)
            if not length or _ending(text, spans[at], length):
                at += 1
                continue
            low, high = spans[at][0], spans[at + length - 1][1]
            if rng.random() < self.rate:
                language = vocabulary.draw(knowing, rng)
                options = vocabulary.lexicons[language].entries[" ".join(words[at : at + length])]
                translation, _ = options[_drawn([score for _, score in options], rng)]
                pieces += [text[done:low], _cased(text[low:high], translation)]
                done = high
            at += length
        return "".join([*pieces, text[done:]])

    @property
    def _named(self) -> tuple[str, ...]:
        return () if self.languages == "targets" else self.languages

    def _pairs(self, experiment: Experiment, rows: Mapping[str, pa.Table]) -> list[tuple[str, str]]:
        others = [code for code in sorted(rows) if code not in experiment.sources]
        if self.languages == "targets" and self.lexicons != "induced" and experiment.targets != "all":
            others = sorted({*others, *experiment.targets} - {*experiment.sources})  # a dictionary needs no rows
        wanted = self._named or others
        return [(source, code) for source in experiment.sources for code in wanted if code != source]

    def _fault(self, pair: tuple[str, str], rows: Mapping[str, pa.Table], experiment: Experiment) -> str | None:
        """Return why there is no lexicon from a source into a language, None where there is one."""
        source, code = pair
        if self.lexicons != "induced":
            missing = "no file of {} under techniques.code_switch.lexicons"
            return None if self._file(pair, experiment) else missing.format(" -> ".join(pair))
        if unsegmented := next((one for one in pair if lexicon.unsegmented(one)), None):
            return f"{unsegmented} is written without spaces between words, so no lexicon can be induced"
        if source not in rows or code not in rows:
            return f"{code if source in rows else source} has no train or dev rows, or is neither source nor target"
        common = word_alignment.shared(rows[source].select(["id"]), rows[code].select(["id"]))[0].num_rows
        if common < FEWEST_PAIRS:
            return f"{common} rows have the same id in {source} and {code}, fewer than {FEWEST_PAIRS}"
        return None

    def _refuse(self, experiment: Experiment, faults: Mapping[tuple[str, str], str | None]) -> None:
        """Raise InputError where a named language has a lexicon from no source, or no language has one at all."""
        able = {code for (_, code), fault in faults.items() if fault is None}
        lacking = {code: fault for (_, code), fault in faults.items() if fault and code not in able}
        named = {code: fault for code, fault in lacking.items() if code in self._named}
        if named or not able:
            shown = "".join(f"\n  {code}: {fault}" for code, fault in list((named or lacking).items())[:20])
            what = "" if self.languages == "targets" else f": {', '.join(named or self._named)}"
            raise InputError(
                f"techniques.code_switch.languages{what}: no lexicon from {', '.join(experiment.sources)}; give "
                f"dictionaries by techniques.code_switch.lexicons, rows with equal ids (corpus.id), or other languages"
                f"{shown}"
            )

    def _file(self, pair: tuple[str, str], experiment: Experiment) -> Path | None:
        """Find the file of a pair; one named by the language alone serves only where there is one source."""
        source, code = pair
        alone = len(experiment.sources) == 1
        if "{language}" in self.lexicons:
            if not alone and "{source}" not in self.lexicons:
                raise InputError(
                    f"techniques.code_switch.lexicons: {self.lexicons} has no {{source}}, and there are "
                    f"{len(experiment.sources)} sources; write both, as in {{source}}-{{language}}.tsv"
                )
            file = Path(self.lexicons.replace("{source}", source).replace("{language}", code)).expanduser()
            return file if file.is_file() else None
        folder = Path(self.lexicons).expanduser()
        if not folder.is_dir():
            raise InputError(
                f"techniques.code_switch.lexicons: {self.lexicons} is no folder; give one, or a pattern with "
                "{language}, or induced"
            )
        names = [f"{source}-{code}", *([code] if alone else [])]
        files = [folder / f"{name}{ending}" for name in names for ending in (".tsv", ".csv", ".tei", ".index")]
        return next((file for file in files if file.is_file()), None)

    def _lexicon(self, pair: tuple[str, str], rows: Mapping[str, pa.Table], experiment: Experiment) -> Lexicon:
        if self.lexicons != "induced":
            file = self._file(pair, experiment)
            assert file is not None, "_fault finds a file that is missing"
            return lexicon.read(file, *pair)
        tables = [rows[code] for code in pair]
        settings = hashlib.sha256(json.dumps([VERSION, pair, self.score, self.phrases]).encode())
        for table in tables:
            for column in ("id", "text", "text_pair"):
                if column in table.column_names:
                    settings.update(column.encode() + column_digest(table[column]))
        folder = Path(experiment.corpus.cache_dir).expanduser() / "lexicons"
        kept = folder / f"{'-'.join(pair)}-{settings.hexdigest()[:16]}.tsv"
        if not kept.is_file():
            # written and read back, so that a first run and a later one see the same order of entries
            lexicon.write(kept, lexicon.induce_tables(tables[0], tables[1], pair, self.score, self.phrases))
        return lexicon.read_table(kept, *pair)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The lexicons from one source, and `p`, the probability (lexicons,) of drawing each."""

    lexicons: Sequence[Lexicon]
    p: np.ndarray

    @classmethod
    def of(cls, lexicons: Sequence[Lexicon], alpha: float) -> Vocabulary:
        """Share the draws among lexicons by their numbers of entries, p ~ entries ** alpha."""
        share = shares({one.target: len(one.entries) for one in lexicons}, alpha) if lexicons else {}
        return cls(lexicons, np.array([share[one.target] for one in lexicons]))

    @cached_property
    def knowing(self) -> Mapping[str, list[int]]:
        """The indices of the lexicons that have each entry."""
        found: dict[str, list[int]] = {}
        for number, one in enumerate(self.lexicons):
            for key in one.entries:
                found.setdefault(key, []).append(number)
        return found

    def lookup(self, words: Sequence[str], whole: int | None) -> tuple[int, Sequence[int]]:
        """Return the length in words of the longest entry that `words` begin with, and the lexicons that have it.

        (0, ()) where there is none. `whole` is the one lexicon to look in, None for all.
        """
        if whole is not None:
            return self.lexicons[whole].match(words), (whole,)
        for length in range(len(words), 0, -1):
            if knowing := self.knowing.get(" ".join(words[:length])):
                return length, knowing
        return 0, ()

    def draw(self, numbers: Sequence[int], rng: np.random.Generator) -> int:
        """Draw one of these lexicons by their shares."""
        return numbers[_drawn(self.p[list(numbers)], rng)]


def _ends(text: str, spans: Sequence[tuple[int, int]], longest: int) -> list[int]:
    """Return for each word the index after the last word of its longest phrase: no punctuation lies within one."""
    ends = [len(spans)] * len(spans)
    for at in range(len(spans) - 2, -1, -1):
        ends[at] = ends[at + 1] if GAP.fullmatch(text, spans[at][1], spans[at + 1][0]) else at + 1
    return [min(end, at + longest) for at, end in enumerate(ends)]


def _ending(text: str, span: tuple[int, int], length: int) -> bool:
    low, high = span
    return length == 1 and high - low <= ENDING and text[max(low - 1, 0) : low] in APOSTROPHES


def _cased(before: str, translation: str) -> str:
    """Return a translation with the initial capital of what it replaces, where its script has capitals.

    >>> _cased("Sea", "bahari"), _cased("sea", "Meer")
    ('Bahari', 'Meer')
    """
    if before[0] != before[0].lower() and translation[0] == translation[0].lower():
        return translation[0].title() + translation[1:]
    return translation


def _drawn(weights: Sequence[float] | np.ndarray, rng: np.random.Generator) -> int:
    """Draw an index with probability proportional to its weight; where there is only one, no random number is drawn."""
    if len(weights) == 1:
        return 0
    upto = np.cumsum(weights)
    return min(int(np.searchsorted(upto, rng.random() * upto[-1], side="right")), len(weights) - 1)
