"""Translate-test: read texts in translation where they are measured or served, beside their original.

Translating the test texts into the source language is the oldest cross-lingual transfer there is (Conneau et al. 2018,
"XNLI", section 5; Artetxe et al. 2020, "Translation Artifacts in Cross-lingual Transfer Learning"). Here a word-by-word
gloss is enough, since the encoder reads many languages a little: what it cannot read becomes words that it can.
Averaging the scores of the original and of translations beats either (Oh et al. 2022, "Synergy with Translation
Artifacts for Training and Inference in Multilingual Tasks").

Lexicons are induced from the unlabelled train rows that a corpus has in parallel: no label of a target is read, but
parallel text is. A lexicon of another kind of text, such as a general dictionary, brings much less.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from scipy.optimize import minimize
from scipy.special import log_softmax

from xlt_ray.config.experiment import Experiment
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.languages import codes, lexicon
from xlt_ray.languages.lexicon import Lexicon
from xlt_ray.languages.words import translatable
from xlt_ray.techniques.technique import Available, Each, Embed, Material, Reads, Score, Technique
from xlt_ray.translation import induced
from xlt_ray.translation import readings as reading
from xlt_ray.translation.lexicons import shown
from xlt_ray.translation.readings import Readings
from xlt_ray.translation.translator import Lexicons, pack

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

FEWEST_WEIGHED = 20  # rows by which the readings of a language are weighed


def listed(given: Any) -> Any:
    """Return a number as a tuple of one, and all else as it is; ValueError for text."""
    if isinstance(given, str):
        raise ValueError(f"{given!r}: write numbers in brackets, such as [0.3, 0.1]")
    return (given,) if isinstance(given, int | float) else given


def _in_range(scores: tuple[float, ...]) -> tuple[float, ...]:
    if wrong := [score for score in scores if not 0 < score <= 1]:
        raise ValueError(f"{wrong[0]}: a score is above 0 and at most 1")
    if len(set(scores)) < len(scores):
        raise ValueError("one of them stands there twice; weigh it by weights instead")
    return scores


# least scores of a translation, one for each reading
Scores = Annotated[tuple[float, ...], BeforeValidator(listed), AfterValidator(_in_range)]


class TranslateTest(Technique):
    """Read test and served texts as they stand and word by word in another language, and average the scores."""

    name: ClassVar[str] = "translate_test"
    paper: ClassVar[str] = "Conneau et al. 2018, arXiv 1809.05053; Oh et al. 2022, arXiv 2210.09588"
    needs: ClassVar[str] = (
        "unlabelled rows of targets with the ids of those of `into`, or corpus.parallel, 100 or more; or dictionaries"
    )
    cost: ClassVar[str] = (
        "1 s a language for lexicons, once for 700 rows, then kept in corpus.cache_dir; a test or served text is "
        "encoded once a reading"
    )
    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {"lexicons": ("induced",)}

    into: str | None = Field(None, description="language that texts are read in; default: the first of sources")
    scores: Scores = Field(
        (0.3, 0.1, 0.05),
        min_length=1,
        max_length=8,
        description="least score of a translation, for each reading: a lower one translates more words, and worse",
    )
    keep_original: bool = Field(True, description="read the text as it stands too")
    weights: tuple[float, ...] | Literal["agreement"] = Field(
        (),
        description="of the readings, original first; default: all alike. agreement: in each language by how well they "
        "agree with what a probe says of the parallel texts in `into`, where there are 80 or more",
    )
    lexicons: str = Field(
        "induced",
        description="induced, from parallel rows; or where {language}-{into}.tsv, .tei or .index files lie: a "
        "directory, or a pattern with {language}",
    )
    phrases: bool = Field(True, description="translate phrases that the lexicon has as wholes, the longest first")

    @field_validator("into")
    @classmethod
    def _canonical(cls, into: str | None) -> str | None:
        return None if into is None else codes.resolve(into)

    @field_validator("weights", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return given if given == "agreement" else listed(given)

    @field_validator("weights")
    @classmethod
    def _positive(cls, weights: tuple[float, ...] | str) -> tuple[float, ...] | str:
        if isinstance(weights, str):
            return weights
        if wrong := [weight for weight in weights if not 0 < weight < float("inf")]:
            raise ValueError(f"{wrong[0]}: a weight is a finite number above 0; leave a reading out instead")
        return weights

    @property
    def reads(self) -> Reads:
        """Translations, or a dictionary."""
        return "parallel"

    def reads_of(self, targets: Collection[str], there: Collection[str]) -> tuple[str, ...]:
        """Return the targets of which there can be a lexicon: with a dictionary, any may have a file."""
        if self.lexicons != "induced":
            return tuple(sorted(targets))
        return tuple(code for code in super().reads_of(targets, there) if translatable(code))

    def check(self, available: Available) -> None:
        """Raise InputError where no target has what a lexicon is made of, or weights are not one a reading."""
        count = len(self.scores) + self.keep_original
        if self._fixed and len(self._fixed) != count:
            raise InputError(
                f"techniques.translate_test.weights: {len(self._fixed)} of them for {count} readings; give one a "
                "reading, that of the original first"
            )
        experiment = available.experiment
        if self.weighs_readings and experiment.training.method == "fine_tune":
            raise InputError(
                "techniques.translate_test.weights: agreement asks what a model says of texts that it was not trained "
                "on, of which a fine-tuned one has none; leave weights out, or set training.method to probe"
            )
        into, targets = self._into(experiment), available.targets
        if self.weighs_readings and not any(self._weighable(available.texts, code, into) for code in targets):
            raise InputError(
                "techniques.translate_test.weights: agreement compares rows of targets with their translations in "
                f"{into}, and no target has {FEWEST_WEIGHED * induced.FOLDS} rows with the ids of those in the corpus; "
                "leave weights out"
            )
        rows = available.bitext
        faults = {code: self._fault(code, into, rows) for code in targets if code != into}
        lacking = {code: fault for code, fault in faults.items() if fault}
        if len(lacking) == len(faults):
            raise InputError(
                f"techniques.translate_test: no target has a lexicon into {into}; give parallel rows of {into} "
                "(equal ids, corpus.id), parallel text (corpus.parallel), name a language that has some in "
                "techniques.translate_test.into, or give dictionaries by techniques.translate_test.lexicons"
                f"{shown(lacking)}"
            )
        if lacking:
            warnings.warn(
                f"techniques.translate_test: {len(lacking)} of {len(faults)} targets are read as they stand"
                f"{shown(lacking)}",
                stacklevel=2,
            )

    def readings(
        self, material: Material, each: Each = map, on_progress: OnProgress = lambda done, total: None
    ) -> Readings:
        """Induce or read the lexicons of all languages but the sources and `into`; the others are read as they stand.

        What is induced is induced twice: `Readings.held_out` reads rows that its lexicons were not induced from. A
        language whose rows do not look like translations is read as it stands, with a warning; raises InputError where
        none is left.
        """
        experiment = material.experiment
        into, texts, rows = self._into(experiment), material.texts, material.bitext
        others = [code for code in material.languages if code not in (*experiment.sources, into)]
        whole, part, rates = {}, {}, {}
        if self.lexicons != "induced":
            read = {code: self._read(code, into) for code in others}
            whole = {code: pack(one) for code, one in read.items() if one is not None and one.entries}
            unseen = {code: induced.held_out(texts[code]) for code in whole if code in texts}
            return replace(self._of(into, whole), unseen=unseen)
        able = [code for code in others if self._fault(code, into, rows) is None]
        parallel = material.parallel
        unseen = {code: induced.held_out(texts[code], rows[into], parallel.get(code)) for code in able if code in texts}
        held = {code: texts[code]["id"].filter(pa.array(those)) for code, those in unseen.items()}
        for code in {*able} & {*parallel}:
            those = induced.held_out(parallel[code], rows[into])
            if code in unseen:  # the same sentence may stand in both
                those |= induced.stands_in(parallel[code], texts[code].filter(pa.array(unseen[code])))
            more = parallel[code]["id"].filter(pa.array(those))
            held[code] = pa.chunked_array([*(held[code].chunks if code in held else ()), *more.chunks])
        settings = induced.Settings(min(self.scores), self.phrases, experiment.corpus.cache_dir)
        jobs = (((code, into), (rows[code], rows[into]), held[code].combine_chunks(), settings) for code in able)
        for number, (code, found) in enumerate(zip(able, each(induced.packed, jobs), strict=True), start=1):
            whole[code], part[code], rates[code] = found
            on_progress(number, len(able))
        for code in self._unlike(into, rates):
            del whole[code], part[code]
        unseen = {code: those for code, those in unseen.items() if code in whole}
        held_out = self._of(into, part).translators
        return replace(self._of(into, whole), held_out=held_out, unseen=unseen, match_rates=rates)

    @staticmethod
    def _weighable(texts: Mapping[str, pa.Table], code: str, into: str) -> bool:
        if code == into or code not in texts or into not in texts:
            return False
        ids = texts[into]["id"].cast(pa.large_string()).combine_chunks()
        common = pc.sum(pc.is_in(texts[code]["id"].cast(pa.large_string()), value_set=ids)).as_py() or 0
        return bool(common >= FEWEST_WEIGHED * induced.FOLDS)

    def _unlike(self, into: str, rates: Mapping[str, float]) -> list[str]:
        """Return the languages whose rows of equal ids are no translations, after a warning of them."""
        faults = {code: why for code, rate in rates.items() if (why := induced.unlike((code, into), rate))}
        if not faults:
            return []
        told = "".join(f"\n  {why}" for why in list(faults.values())[:20])
        place = "techniques.translate_test"
        remedy = "leave out corpus.id, or the part of corpus.parallel, whose equal ids are no translations"
        if len(faults) == len(rates):
            raise InputError(
                f"{place}: no language has rows that translate those of {into}; {remedy}, or take it out{told}"
            )
        warnings.warn(
            f"{place}: {len(faults)} of {len(rates)} languages are read as they stand, since their rows do not "
            f"translate those of {into}; if that is so in others too, {remedy}{told}",
            stacklevel=2,
        )
        return list(faults)

    def texts(self, material: Material) -> Mapping[str, pa.Table]:
        """Return the rows by which readings are weighed, in each reading, and those of `into`."""
        readings = material.readings
        if readings is None or not self.weighs_readings or readings.into not in material.texts:
            return {}
        into, found = material.texts[readings.into], {}
        for code, table in material.texts.items():
            for key, rows in readings.to_estimate(code, table, alike=True).items() if readings.several(code) else ():
                found[key] = rows.filter(pc.is_in(rows["id"], value_set=into["id"].combine_chunks()))
        found = {key: rows for key, rows in found.items() if rows.num_rows >= FEWEST_WEIGHED}
        if not found:
            return {}
        ids = pa.chunked_array([chunk for table in found.values() for chunk in table["id"].chunks]).unique()
        return found | {readings.into: into.filter(pc.is_in(into["id"], value_set=ids))}

    @property
    def weighs_readings(self) -> bool:
        """Whether they are weighed by agreement."""
        return self.weights == "agreement"

    def weigh(self, material: Material, score: Score) -> Readings | None:
        """Weigh the readings of each language by how well they predict what a head says of the translations.

        The rows are parallel, and neither lexicons nor the head were made from them: what a head says of rows that it
        was fitted to is close to their labels, which are those of their translations. No label is read.
        """
        tables, readings = self.texts(material), material.readings
        if readings is None or not tables:
            return readings
        scores, into = score(tables), readings.into
        known = dict(zip(tables[into]["id"].to_pylist(), scores[into].argmax(1), strict=True))
        found = {}
        for code in filter(readings.several, material.texts):
            keys = readings.keys(code)
            if keys[0] in tables:
                wanted = np.array([known[one] for one in tables[keys[0]]["id"].to_pylist()])
                found[code] = agreement(np.stack([scores[key] for key in keys]), wanted)
        return replace(readings, by_language=found)

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Return the number of languages that are translated, and the mean share of words that are, for each score."""
        found = material.readings
        if found is None:
            return {}
        shares = [found.coverage(code, table) for code, table in material.texts.items() if found.several(code)]
        names = [*(["original"] if self.keep_original else []), *(f"coverage_{score:g}" for score in self.scores)]
        means = dict(zip(names, np.nanmean(shares or [[np.nan] * len(names)], axis=0).tolist(), strict=True))
        means.pop("original", None)
        return {"languages": float(len(shares)), **means}

    def _of(self, into: str, packed: Mapping[str, bytes]) -> Readings:
        return reading.by_lexicon(into, self.scores, self.keep_original, Lexicons(packed), self._fixed)

    @property
    def _fixed(self) -> tuple[float, ...]:
        return () if isinstance(self.weights, str) else self.weights

    def _into(self, experiment: Experiment) -> str:
        return self.into or experiment.sources[0]

    def _fault(self, code: str, into: str, rows: Mapping[str, pa.Table]) -> str | None:
        """Return why there is no lexicon of a language, None where there is one; InputError for one that is damaged."""
        if self.lexicons == "induced":
            return induced.fault((code, into), rows)
        found = self._read(code, into)
        if found is None:
            return "no file of it under techniques.translate_test.lexicons"
        return None if found.entries else "its file under techniques.translate_test.lexicons is empty"

    def _read(self, code: str, into: str) -> Lexicon | None:
        """Read the dictionary of a language, None where there is no file of it."""
        names = [f"{code}-{into}"]
        file = induced.file("techniques.translate_test.lexicons", self.lexicons, names, language=code, into=into)
        return None if file is None else lexicon.read(file, code, into)


def agreement(logits: np.ndarray, wanted: np.ndarray) -> tuple[float, ...]:
    """Return the weights of readings, which sum to 1, whose weighted sum of logits predicts `wanted` best.

    `logits` are (readings, rows, classes) and `wanted` (rows,) classes. It is the most probable choice where the
    logarithms of weights have a normal distribution of variance 1 around their mean, so that few rows decide little;
    the scale of the sum is free.
    """
    count, rows = len(logits), np.arange(len(wanted))

    def loss(logs: np.ndarray) -> float:
        mixed = log_softmax(np.tensordot(np.exp(logs), logits.astype(np.float64), 1), axis=1)
        return float(-mixed[rows, wanted].sum() + 0.5 * ((logs - logs.mean()) ** 2).sum())

    found = minimize(loss, np.full(count, np.log(2 / count)), method="L-BFGS-B", bounds=[(-6.0, 3.0)] * count)
    weights = np.exp(found.x)
    return tuple((weights / weights.sum()).tolist())
