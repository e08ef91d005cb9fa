"""Code-switching: replace some words of source texts by their translations into the languages to transfer to.

CoSDA-ML (Qin et al. 2020, arXiv 2006.06402) replaces words by translations of a random language each time a row is
drawn, so that the encoder brings words of many languages into the same contexts. Where no dictionary is given, one is
induced from the unlabelled rows that the corpus has in parallel.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr, field_validator

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.mixture import shares
from xlt_ray.events import OnProgress
from xlt_ray.languages.lexicon import Lexicon
from xlt_ray.languages.words import LONGEST, replace_words
from xlt_ray.techniques.technique import Available, Example, Material, Reads, Technique
from xlt_ray.translation import induced
from xlt_ray.translation.lexicons import FromSources, languages_named, shown


class CodeSwitch(Technique):
    """Replace words of training texts by translations into other languages, anew each time a row is drawn."""

    name: ClassVar[str] = "code_switch"
    paper: ClassVar[str] = "Qin et al. 2020, CoSDA-ML, arXiv 2006.06402"
    needs: ClassVar[str] = (
        "unlabelled rows of targets with the ids of the source's, or corpus.parallel, 100 or more; or dictionaries"
    )
    cost: ClassVar[str] = "1.2 s a pair of languages once, for 700 rows, then kept in corpus.cache_dir; 0.3 ms a row"

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
        return languages_named(languages, "switch to")

    def reads_of(self, targets: Collection[str], there: Collection[str]) -> tuple[str, ...]:
        """Return the targets to switch to: those named, else all that have rows or may have a dictionary."""
        wanted = self._named or (there if self.lexicons == "induced" else targets)
        return tuple(code for code in sorted(targets) if code in wanted)

    def check(self, available: Available) -> None:
        """Raise InputError where no language has what a lexicon is made of, or one that is named has none."""
        experiment = available.experiment
        lexicons, rows = self._lexicons(experiment, available.bitext), available.bitext
        lexicons.refuse({pair: lexicons.fault(pair) for pair in self._pairs(experiment, rows)}, self._named)

    def prepare(self, material: Material, on_progress: OnProgress = lambda done, total: None) -> CodeSwitch:
        """Return the technique with its lexicons: read, taken from the cache, or induced and put there."""
        experiment, rows, found = material.experiment, material.bitext, {}
        lexicons = self._lexicons(experiment, rows)
        faults = {pair: lexicons.fault(pair) for pair in self._pairs(experiment, rows)}
        able = [pair for pair, fault in faults.items() if fault is None]
        # each worker in an order of its own, so that they seldom induce the same one and find the others' in the cache
        for number, place in enumerate(np.random.default_rng(os.getpid()).permutation(len(able))):
            pair = able[place]
            found[pair] = lexicons.lexicon(pair)
            faults[pair] = lexicons.unlike(pair) or (None if found[pair].entries else "its lexicon has no entry")
            on_progress(number + 1, len(able))
        found = {pair: found[pair] for pair in able if faults[pair] is None}  # in their order, wherever the work began
        lexicons.refuse(faults, self._named)
        if useless := {f"{' -> '.join(pair)}": why for pair in able if (why := faults[pair])}:
            warnings.warn(
                f"techniques.code_switch: left out {len(useless)} of {len(able)} lexicons{shown(useless)}", stacklevel=2
            )
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
        whole = vocabulary.draw(range(len(vocabulary.lexicons)), rng) if self.mix == "sentence" else None

        def choose(key: str, knowing: Sequence[int]) -> str | None:
            if rng.random() >= self.rate:
                return None
            options = vocabulary.lexicons[vocabulary.draw(knowing, rng)].entries[key]
            return options[_drawn([score for _, score in options], rng)][0]

        longest = LONGEST if self.phrases else 1
        return replace_words(text, lambda words: vocabulary.lookup(words, whole), choose, longest)

    @property
    def _named(self) -> tuple[str, ...]:
        return () if self.languages == "targets" else self.languages

    def _pairs(self, experiment: Experiment, rows: Mapping[str, pa.Table]) -> list[tuple[str, str]]:
        others = [code for code in sorted(rows) if code not in experiment.sources]
        if self.languages == "targets" and self.lexicons != "induced" and experiment.targets != "all":
            others = sorted({*others, *experiment.targets} - {*experiment.sources})  # a dictionary needs no rows
        wanted = self._named or others
        return [(source, code) for source in experiment.sources for code in wanted if code != source]

    def _lexicons(self, experiment: Experiment, rows: Mapping[str, pa.Table]) -> FromSources:
        settings = induced.Settings(self.score, self.phrases, experiment.corpus.cache_dir)
        return FromSources(f"techniques.{self.name}", self.lexicons, experiment.sources, rows, settings)


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


def _drawn(weights: Sequence[float] | np.ndarray, rng: np.random.Generator) -> int:
    """Draw an index with probability proportional to its weight; where there is only one, no random number is drawn."""
    if len(weights) == 1:
        return 0
    upto = np.cumsum(weights)
    return min(int(np.searchsorted(upto, rng.random() * upto[-1], side="right")), len(weights) - 1)
