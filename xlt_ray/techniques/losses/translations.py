"""Which languages have rows that are translations: asked before any work, and judged before they are learned from."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

import numpy as np
import pyarrow as pa
from torch import distributed

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.streams import counterparts
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.languages.lexicon import FEWEST_PAIRS
from xlt_ray.techniques.technique import Available, Reads, Technique
from xlt_ray.translation import induced
from xlt_ray.translation.lexicons import shown

LOW = 0.05  # least score of a translation where rows are judged
Bitext = Mapping[str, pa.Table]  # rows by language, of which those of equal ids are translations
Faults = dict[str, str | None]  # why a language has no translations, None where it has some


def faults(rows: Bitext, languages: Collection[str], pivot: str) -> Faults:
    """Return why languages have too few translations in `pivot`, None of each that has enough."""
    there = [code for code in languages if code in rows and pivot in rows]
    pairs = {code: int((counterparts(rows[code], rows[pivot]) >= 0).sum()) for code in there}
    few = {code: f"{pairs.get(code, 0)} of its rows have the id of one of {pivot}" for code in languages}
    return {code: few[code] if pairs.get(code, 0) < FEWEST_PAIRS else None for code in languages}


def judged(
    rows: Bitext, found: Faults, pivot: str, settings: induced.Settings, on_progress: OnProgress
) -> Iterator[str]:
    """Yield the languages whose rows are translations in `pivot`, and put into `found` why those of others are not.

    Workers judge in an order of each one's own: what one has put into a shared cache, another finds there.
    """
    names = list(found)
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    start = len(names) * rank // world
    for number, code in enumerate(names[start:] + names[:start], start=1):
        pair = (code, pivot)
        if found[code] is None and induced.fault(pair, rows) is None:  # else there are no words to tell by
            found[code] = induced.no_translations(pair, rows, settings)
        if found[code] is None:
            yield code
        on_progress(number, len(names))


def spread(features: np.ndarray, place: str, pivot: str) -> float:
    """Return the mean squared distance of features (rows, width) from their mean; raise InputError where it is 0.

    `place` is the key that names whose features they are.
    """
    found = float(np.square(features - features.mean(0)).sum(1).mean())
    if not found > 0:
        raise InputError(
            f"{place}: the features of all {len(features)} texts of {pivot} are the same, so there is nothing to "
            "learn; name another bundle or encoder there, or give other texts"
        )
    return found


def tell(place: str, found: Faults, pivot: str, without: str) -> None:
    """Raise InputError where no language has translations, and warn of those that have none, which do `without`."""
    lacking = {code: fault for code, fault in found.items() if fault}
    if len(lacking) == len(found):
        raise InputError(
            f"{place}: no language has rows that can be learned from as translations of {FEWEST_PAIRS} or more "
            f"rows of {pivot}; give parallel rows (equal ids, corpus.id), parallel text (corpus.parallel), put a "
            f"source that has some first in sources, or take it out{shown(lacking)}"
        )
    if lacking:
        warnings.warn(
            f"{place}: {len(lacking)} of {len(found)} languages have no translations, and {without}{shown(lacking)}",
            stacklevel=3,
        )


class OfTranslations(Technique):
    """A technique whose loss is on texts with their translations in the first source, the pivot, and on no others."""

    methods: ClassVar[tuple[str, ...]] = ("fine_tune", "adapt")
    reads: ClassVar[Reads] = "parallel"
    wants_parallel: ClassVar[bool] = True

    def reads_each(
        self, experiment: Experiment, targets: Collection[str], there: Collection[str]
    ) -> Mapping[str, Reads]:
        """Return what it reads of each target: nothing of one without translations."""
        read = super().reads_each(experiment, targets, there)
        if not isinstance(there, Mapping):
            return read
        found = faults(there, read, experiment.sources[0])
        return {code: what for code, what in read.items() if not found[code]}

    def check(self, available: Available) -> None:
        """Refuse a run in which no language has translations, and warn of those that have none."""
        pivot, rows = available.experiment.sources[0], available.bitext
        self.tell(faults(rows, [code for code in rows if code != pivot], pivot), pivot)

    def tell(self, found: Faults, pivot: str) -> None:
        """Raise InputError where no language is left, and warn of those that are not."""
        tell(f"techniques.{self.name}", found, pivot, "take no part in the loss")


def translated(experiment: Experiment, texts: Bitext, on_progress: OnProgress) -> tuple[list[str], Faults]:
    """Return the languages whose rows were judged to be translations in the pivot, sorted, and why others are not."""
    pivot = experiment.sources[0]
    found = faults(texts, [code for code in texts if code != pivot], pivot)
    settings = induced.Settings(LOW, True, experiment.corpus.cache_dir)
    return sorted(judged(texts, found, pivot, settings, on_progress)), found
