"""Compute scores per language from gold labels and predictions, with intervals, and their means over languages.

Everything is computed from counts (a C x C confusion table per language) that are divided once, so that a score does
not depend on how rows were sharded over workers or batches. Means over languages are unweighted: a language with 40
rows counts as much as one with 4,000, because the question is which languages are served and not which are plentiful.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter
from scipy import sparse, stats

from xlt_ray import supervision
from xlt_ray.errors import InputError
from xlt_ray.evaluation import bootstrap, calibration, groups
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.languages import codes

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class LanguageScore:
    """The scores of one language: fractions from 0 to 1; `low` and `high` bound the 95% interval."""

    code: str
    role: str  # as `groups` defines it: "source", "few-shot" or "zero-shot"
    support: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    macro_f1_low: float
    macro_f1_high: float
    transfer_gap: float | None  # best source's accuracy minus this one's; None when no source was measured
    seen: bool | None  # by the encoder in pre-training; None when unknown
    confusion: tuple[tuple[int, ...], ...]  # rows gold, columns predicted
    # as `calibration` defines them; None where predictions have no confidences
    calibration_error: float | None = None
    calibration_error_low: float | None = None
    calibration_error_high: float | None = None
    reliability: tuple[tuple[int, ...], ...] | None = None
    supervision: str | None = None  # rung of `supervision.LADDER`; None of a source, and in scores of before


@dataclass(frozen=True, repr=False)
class Scores:
    """The scores of every language, and their summary, whose keys `score` explains.

    `temperature` is the one by which confidences were computed, 1 where none was fitted.
    """

    labels: tuple[str, ...]
    languages: Mapping[str, LanguageScore]
    summary: Mapping[str, float]
    temperature: float = 1.0

    @property
    def supervision(self) -> str | None:
        """The highest rung of `supervision.LADDER` of the zero-shot languages; None where it is not known of any."""
        return self.rung(groups.of(self.languages).get(groups.ZERO_SHOT, ()))

    def rung(self, codes: Iterable[str]) -> str | None:
        """Return the highest rung of `supervision.LADDER` of these languages, None where it is not known of any."""
        return supervision.highest(self.languages[code].supervision for code in codes)

    def titles(self) -> dict[str, str]:
        """Return the title of every group of languages; where none of its labels was read, it says what else was."""
        members = groups.of(self.languages)
        rungs = {name: self.rung(members.get(name, ())) for name in groups.OF_TARGETS}
        return {name: supervision.titled(one.title, rungs.get(name)) for name, one in groups.GROUPS.items()}

    def worst(self) -> LanguageScore:
        """Return the language with the lowest accuracy; of equals the first by code."""
        return min(self.languages.values(), key=lambda language: (language.accuracy, language.code))

    def to_frame(self) -> pd.DataFrame:
        """Return a table with a language a row, sources first and then from the best to the worst; index: its code.

        Columns: `name`, `role`, `seen`, `support`, `supervision`, and each of `accuracy`, `macro_f1`,
        `calibration_error` with its `_low` and `_high`, besides `transfer_gap`; fractions, NaN where there is none.
        """
        import pandas as pd

        ranked = sorted(
            self.languages.values(), key=lambda one: (groups.ROLES.index(one.role), -one.accuracy, one.code)
        )
        rows = [{"name": codes.name(one.code), **asdict(one)} for one in ranked]
        frame = pd.DataFrame(rows).set_index("code").drop(columns=["confusion", "reliability"])
        described = ("name", "role", "seen", "support", "supervision")
        return frame.astype({name: float for name in frame if name not in described})

    def means(self) -> pd.DataFrame:
        """Return a table with a group of languages a row, named as by `compare`: how many, and means with intervals.

        Columns: `languages`, and each of `accuracy`, `macro_f1`, `calibration_error` with its `_low` and `_high`, NaN
        where there is none. Languages weigh the same, and intervals take into account that their rows may be shared.
        """
        import pandas as pd

        ends = [(metric, end) for metric in (*METRICS, "calibration_error") for end in ("", "_low", "_high")]
        rows = {
            name: [
                len(members),
                *(self.summary.get(f"{metric}/{groups.GROUPS[name].key}{end}") for metric, end in ends),
            ]
            for name, members in groups.of(self.languages).items()
        }
        columns = ["languages", *(f"{metric}{end}" for metric, end in ends)]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("group")
        return frame.astype(dict.fromkeys(columns[1:], float))

    def __repr__(self) -> str:
        mean = self.summary.get("accuracy/mean", float("nan"))
        return f"Scores({len(self.languages)} languages, mean accuracy {mean:.3f})"

    def _repr_html_(self) -> str:  # what a notebook shows
        return str(self.to_frame().to_html(float_format=lambda value: f"{value:.3f}"))

    def to_json(self) -> str:
        """Return the scores as JSON, one language a line."""
        rows = (f"  {json.dumps(code)}: {json.dumps(asdict(one))}" for code, one in self.languages.items())
        head = f'{{"labels": {json.dumps(self.labels)},\n "summary": {json.dumps(dict(self.summary))},\n'
        head += f' "temperature": {json.dumps(self.temperature)},\n'
        return head + ' "languages": {\n' + ",\n".join(rows) + "}}\n"

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """Read what `to_json` wrote, also before there were confidences; the scores are equal to those written."""
        return TypeAdapter(cls).validate_python(json.loads(text))


def load_scores(folder: Path) -> Scores:
    """Read the scores of a finished run or of a bundle; raise InputError where the folder holds none."""
    file = folder / "scores.json"
    if not file.is_file():
        raise InputError(f"{folder}: no scores.json; give the folder of a finished run that learned a task")
    return Scores.from_json(file.read_text(encoding="utf-8"))


def score(
    predictions: Mapping[str, Predictions],
    labels: Sequence[str],
    roles: Roles,
    resamples: int = 2000,
    seed: int = 0,
) -> Scores:
    """Compute the scores of every language and their summary; `roles` are what the languages are to the model.

    Intervals are 95% percentile bootstrap intervals over test rows (Efron and Tibshirani 1993, chapter 13): they say
    how far a score could move with another test set of this size, not with another training seed. Resampled macro-F1 is
    centred on the measured one, because resampling loses rare classes and would put the whole interval below it. Where
    every row is right or every row is wrong, resampling shows no spread and the accuracy's Wilson interval stands in.

    The summary holds, for `accuracy` and `macro_f1`: `mean` (all languages), `mean_zero_shot`, `mean_few_shot`,
    `mean_source`, `mean_seen` and `mean_unseen` (zero-shot languages that the encoder met or did not meet in
    pre-training), each also with `_low` and `_high`; `worst`; `std` (over all languages, dividing by their number).
    Where all predictions have a confidence, the same for `calibration_error`, whose worst is the largest. Besides,
    `transfer_gap/mean` over the zero-shot languages, with `_low` and `_high`. A key is absent where no language belongs
    under it.

    Where languages share row ids (parallel test sets) ids are resampled jointly for the means, because an item that is
    hard is hard in all languages: resampling each language alone would make the interval of a mean far too narrow.

    Raises InputError naming the language when one is empty, has arrays of different lengths or unknown classes.
    """
    _check(predictions, len(labels))
    codes, classes = sorted(predictions), len(labels)
    tables = {code: confusion(predictions[code].gold, predictions[code].predicted, classes) for code in codes}
    cells = {code: np.int64(classes) * predictions[code].gold + predictions[code].predicted for code in codes}
    ids = {code: np.asarray(predictions[code].ids) for code in codes}

    def measure(kinds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return _accuracy_and_macro_f1(kinds, counts, classes)

    resampled = bootstrap.resampled(cells, ids, measure, resamples, seed)
    alone, for_means = ({code: _centred(draws[code], tables[code]) for code in codes} for draws in resampled)
    best = max((predictions[code].accuracy for code in codes if roles.role(code) == groups.SOURCE), default=None)
    languages = {code: _language(code, roles.place(code), tables[code], alone[code], best) for code in codes}
    if all(rows.confidence is not None for rows in predictions.values()):
        languages, errors = _calibrated(languages, predictions, resamples, seed)
        for_means = {code: np.vstack([for_means[code], errors[code]]) for code in codes}
    return Scores(tuple(labels), languages, _summary(languages, for_means))


def _check(predictions: Mapping[str, Predictions], classes: int) -> None:
    if not predictions:
        raise InputError("predictions: hold no language, so there is nothing to measure; give at least one")
    for code, rows in predictions.items():
        lengths = (len(rows.gold), len(rows.predicted), len(rows.ids))
        if len(set(lengths)) > 1:
            raise InputError(
                f"{code}: {lengths[0]} gold labels, {lengths[1]} predictions, {lengths[2]} ids; give one of each a row"
            )
        sure = rows.confidence
        if sure is not None and not (len(sure) == lengths[0] and np.all((sure >= 0) & (sure <= 1))):
            raise InputError(f"{code}: confidence must be a number from 0 to 1 for each row")
        if not lengths[0]:
            raise InputError(f"{code}: no rows to measure; leave the language out or give it test rows")
        low = min(int(np.min(rows.gold)), int(np.min(rows.predicted)))
        high = max(int(np.max(rows.gold)), int(np.max(rows.predicted)))
        if low < 0 or high >= classes:
            raise InputError(
                f"{code}: class {low if low < 0 else high}, but there are {classes} labels (0 to {classes - 1}); "
                "use the label set the predictions were made with"
            )


def _language(
    code: str, place: groups.Place, table: np.ndarray, draws: np.ndarray, best: float | None
) -> LanguageScore:
    """Return the scores of a language; `draws` are its resampled ones, `best` the accuracy of the best source."""
    right, rows = int(np.trace(table)), int(table.sum())
    (low, f1_low), (high, f1_high) = np.clip(np.quantile(draws, bootstrap.TAILS, axis=1), 0, 1).tolist()
    if right in (0, rows):
        wilson = stats.binomtest(right, rows).proportion_ci(method="wilson")
        low, high = float(wilson.low), float(wilson.high)
    return LanguageScore(
        code=code,
        role=str(place.role),
        support=rows,
        accuracy=right / rows,
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=macro_f1(table),
        macro_f1_low=f1_low,
        macro_f1_high=f1_high,
        transfer_gap=None if best is None else best - right / rows,
        seen=place.seen,
        supervision=place.supervision,
        confusion=tuple(tuple(row) for row in table.tolist()),
    )


def _calibrated(
    languages: Mapping[str, LanguageScore], predictions: Mapping[str, Predictions], resamples: int, seed: int
) -> tuple[dict[str, LanguageScore], dict[str, np.ndarray]]:
    """Add the reliability of confidences to languages; return also the resampled calibration errors for means."""
    sure = {code: one.confidence for code, one in predictions.items() if one.confidence is not None}
    cells = {code: calibration.cells(sure[code], one.gold == one.predicted) for code, one in predictions.items()}
    ids = {code: np.asarray(one.ids) for code, one in predictions.items()}
    alone, for_means = bootstrap.resampled(cells, ids, calibration.expected_errors, resamples, seed)
    added, errors = {}, {}
    for code, one in languages.items():
        plain = float(calibration.expected_errors(*np.unique(cells[code], return_counts=True)))
        error, draws = calibration.corrected(plain, alone[code])
        _, errors[code] = calibration.corrected(plain, for_means[code])
        low, high = np.quantile(draws, bootstrap.TAILS).tolist()
        found = {"calibration_error": error, "calibration_error_low": low, "calibration_error_high": high}
        added[code] = replace(one, **found, reliability=calibration.reliability(cells[code]))
    return added, errors


def _summary(languages: Mapping[str, LanguageScore], draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    grouped = groups.of(languages)
    source, zero_shot = grouped.get(groups.SOURCE), grouped.get(groups.ZERO_SHOT)
    summary: dict[str, float] = {}
    measured = (*METRICS, "calibration_error")[: len(next(iter(draws.values())))]
    for position, metric in enumerate(measured):
        values = {code: getattr(one, metric) for code, one in languages.items()}
        for name, members in grouped.items():
            key = f"{metric}/{groups.GROUPS[name].key}"
            summary[key] = float(np.mean([values[code] for code in members]))
            mean_draws = bootstrap.mean(np.stack([draws[code][position] for code in members]))
            low, high = np.clip(np.nanquantile(mean_draws, bootstrap.TAILS), 0, 1).tolist()
            if len(members) == 1:  # one interval, not two that differ by chance
                one = languages[members[0]]
                low, high = getattr(one, f"{metric}_low"), getattr(one, f"{metric}_high")
            summary[f"{key}_low"], summary[f"{key}_high"] = low, high
        summary[f"{metric}/worst"] = float((min if metric in METRICS else max)(values.values()))
        summary[f"{metric}/std"] = float(np.std(list(values.values())))
    if source and zero_shot:
        best = max(source, key=lambda code: languages[code].accuracy)
        gaps = draws[best][0] - bootstrap.mean(np.stack([draws[code][0] for code in zero_shot]))
        low, high = np.nanquantile(gaps, bootstrap.TAILS).tolist()
        mean = languages[best].accuracy - summary["accuracy/mean_zero_shot"]
        summary |= {"transfer_gap/mean": mean, "transfer_gap/mean_low": low, "transfer_gap/mean_high": high}
    return summary


def confusion(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count rows by gold class (rows of the table) and predicted class (columns): (classes, classes) whole numbers.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = np.asarray(gold, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def macro_f1(confusion: np.ndarray) -> float:
    """Return the mean F1 over the classes that occur in gold or predictions, each counting the same.

    A class that occurs in neither is left out; one that occurs and is never right counts 0. That is scikit-learn's
    `f1_score(gold, predicted, average="macro", zero_division=0)` with its default labels.
    """
    return float(_macro(np.diagonal(confusion), confusion.sum(axis=1) + confusion.sum(axis=0)))


def _macro(right: np.ndarray, either: np.ndarray) -> np.ndarray:
    # F1 = 2 right / (gold + predicted); classes on the first axis
    occurs = either > 0
    f1 = np.divide(2.0 * right, either, out=np.zeros(either.shape), where=occurs)
    classes = occurs.sum(axis=0)
    return np.divide(f1.sum(axis=0), classes, out=np.full(classes.shape, np.nan), where=classes > 0)


def _accuracy_and_macro_f1(kinds: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Return accuracy and macro-F1 (2, resamples) of resampled rows: cells (k,) and their counts (k, resamples)."""
    gold, predicted = np.divmod(kinds, classes)
    each = np.arange(len(kinds))
    ones = np.ones(len(kinds), counts.dtype)
    marginal = sparse.csr_array((ones, (gold, each)), shape=(classes, len(kinds)))
    marginal = marginal + sparse.csr_array((ones, (predicted, each)), shape=(classes, len(kinds)))
    hits = gold == predicted
    right = np.zeros((classes, counts.shape[1]), counts.dtype)
    right[gold[hits]] = counts[hits]
    rows = counts.sum(axis=0)
    accuracy = np.divide(right.sum(axis=0), rows, out=np.full(rows.shape, np.nan), where=rows > 0)
    return np.stack([accuracy, _macro(right, marginal @ counts)])


def _centred(draws: np.ndarray, table: np.ndarray) -> np.ndarray:
    # resampling loses rare classes and so pulls macro-F1 down, with many classes below every plausible value
    accuracy, f1 = draws
    return np.stack([accuracy, f1 + (macro_f1(table) - np.nanmean(f1))])


def classification_report(
    confusion: Sequence[Sequence[int]] | np.ndarray, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and support of every class, in the order of the labels; 0 where undefined."""
    table = np.asarray(confusion)
    right, gold, predicted = np.diagonal(table), table.sum(axis=1), table.sum(axis=0)
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(gold, 1)
    f1 = 2 * right / np.maximum(gold + predicted, 1)
    names = ("label", "precision", "recall", "f1", "support")
    columns = (labels, precision.tolist(), recall.tolist(), f1.tolist(), gold.tolist())
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
