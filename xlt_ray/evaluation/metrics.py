"""Compute scores per language from gold labels and predictions, with intervals, and their means over languages.

Everything is computed from counts, which the task names, that are summed over rows and divided once, so a score
does not depend on how rows were sharded over workers or batches. Means over languages are unweighted: a language with
40 rows counts as much as one with 4,000, because the question is which languages are served and not which are
plentiful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from xlt_ray import tasks
from xlt_ray.errors import InputError
from xlt_ray.evaluation import bootstrap, calibration, groups
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.evaluation.scores import Interval, LanguageScore, Scores
from xlt_ray.tasks.task import Task


def score(
    predictions: Mapping[str, Predictions],
    labels: Sequence[str],
    roles: Roles,
    resamples: int = 2000,
    seed: int = 0,
    task: str = tasks.DEFAULT,
) -> Scores:
    """Compute the scores of every language and their summary; `roles` are what the languages are to the model.

    Intervals are 95% percentile bootstrap intervals over test rows (Efron and Tibshirani 1993, chapter 13): they say
    how far a score could move with another test set of this size, not with another training seed. Resampled macro-F1 is
    centred on the measured one, because resampling loses rare classes and would put the whole interval below it. Where
    the main metric is 0 or 1, resampling shows no spread, and the Wilson interval of as many rows, all of them wrong or
    right, stands in.

    The summary holds, for every metric (of classification `accuracy` and `macro_f1`): `mean` (all languages),
    `mean_zero_shot`, `mean_few_shot`, `mean_source`, `mean_seen` and `mean_unseen` (zero-shot languages that the
    encoder met or did not meet in pre-training), each also with `_low` and `_high`; `worst`; `std` (over all languages,
    dividing by their number). Where all predictions have a confidence, the same for `calibration_error`, whose worst is
    the largest. Besides, `transfer_gap/mean` over the zero-shot languages, with `_low` and `_high`. A key is absent
    where no language belongs under it.

    Where languages share row ids (parallel test sets) ids are resampled jointly for the means, because an item that is
    hard is hard in all languages: resampling each language alone would make the interval of a mean far too narrow.

    Raises InputError naming the language when one is empty, has arrays of different lengths or unknown classes.
    """
    _check(predictions, len(labels))
    asked, codes = tasks.build(task, labels), sorted(predictions)
    each = {code: predictions[code] for code in codes}
    cells = {code: asked.cells(one.gold, one.predicted, one.sizes) for code, one in each.items()}
    ids = {code: np.asarray(predictions[code].ids) for code in codes}
    exact = {code: _exact(asked, cells[code]) for code in codes}
    resampled = bootstrap.resampled(cells, ids, asked.measure, resamples, seed)
    alone, for_means = ({code: _centred(asked, draws[code], exact[code]) for code in codes} for draws in resampled)
    best = max((float(exact[code][0]) for code in codes if roles.role(code) == groups.SOURCE), default=None)
    languages = {}
    for code in codes:
        intervals = _intervals(asked, exact[code], alone[code], predictions[code].rows)
        table = confusion(predictions[code].gold, predictions[code].predicted, len(labels))
        languages[code] = _language(code, roles.place(code), intervals, table, predictions[code].rows, best)
    if all(rows.confidence is not None for rows in predictions.values()):
        languages, errors = _calibrated(languages, predictions, resamples, seed)
        for_means = {code: np.vstack([for_means[code], errors[code]]) for code in codes}
    return Scores(tuple(labels), languages, _summary(languages, for_means, asked.metrics), task=task)


def _exact(task: Task, cells: np.ndarray) -> np.ndarray:
    kinds, _, counts = bootstrap.distinct(cells)
    return np.nan_to_num(task.measure(kinds, counts))  # a metric of nothing is 0


def _check(predictions: Mapping[str, Predictions], classes: int) -> None:
    if not predictions:
        raise InputError("predictions: hold no language, so there is nothing to measure; give at least one")
    for code, rows in predictions.items():
        answers = rows.rows if rows.sizes is None else int(np.sum(rows.sizes))
        lengths = (len(rows.gold), len(rows.predicted), answers)
        if len(set(lengths)) > 1 or len(rows.ids if rows.sizes is None else rows.sizes) != rows.rows:
            raise InputError(
                f"{code}: {lengths[0]} gold labels, {lengths[1]} predictions, {rows.rows} ids of {answers} answers; "
                "give one of each an answer"
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


def _intervals(task: Task, exact: np.ndarray, draws: np.ndarray, rows: int) -> dict[str, Interval]:
    """Return the metrics of a language, (metrics,), with intervals by its resampled ones, (metrics, resamples)."""
    low, high = np.clip(np.nan_to_num(np.nanquantile(draws, bootstrap.TAILS, axis=1)), 0, 1).tolist()
    values = exact.tolist()
    if values[0] in (0, 1):
        wilson = stats.binomtest(rows if values[0] else 0, rows).proportion_ci(method="wilson")
        low[0], high[0] = float(wilson.low), float(wilson.high)
    return {name: Interval(*found) for name, *found in zip(task.metrics, values, low, high, strict=True)}


def _language(
    code: str, place: groups.Place, found: Mapping[str, Interval], table: np.ndarray, rows: int, best: float | None
) -> LanguageScore:
    """Return the scores of a language; `best` is the main metric of the best source."""
    return LanguageScore(
        code=code,
        role=str(place.role),
        support=rows,
        metrics=found,
        transfer_gap=None if best is None else best - next(iter(found.values())).value,
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
    ids = {code: one.answer_ids for code, one in predictions.items()}
    measure = calibration.expected_errors
    if all(one.sizes is None for one in predictions.values()):
        alone, for_means = bootstrap.resampled(cells, ids, measure, resamples, seed)
    else:  # answers of a row are drawn together
        alone = {}
        for number, code in enumerate(cells):
            alone |= bootstrap.together({code: cells[code]}, ids, measure, resamples, [seed, number])
        shared = bootstrap.shared({code: np.asarray(one.ids) for code, one in predictions.items()})
        for_means = bootstrap.together(cells, ids, measure, resamples, seed) if shared else alone
    added, errors = {}, {}
    for code, one in languages.items():
        plain = float(calibration.expected_errors(*np.unique(cells[code], return_counts=True)))
        error, draws = calibration.corrected(plain, alone[code])
        _, errors[code] = calibration.corrected(plain, for_means[code])
        low, high = np.quantile(draws, bootstrap.TAILS).tolist()
        found = {"calibration_error": error, "calibration_error_low": low, "calibration_error_high": high}
        added[code] = replace(one, **found, reliability=calibration.reliability(cells[code]))
    return added, errors


def _summary(
    languages: Mapping[str, LanguageScore], draws: Mapping[str, np.ndarray], metrics: Sequence[str]
) -> dict[str, float]:
    grouped = groups.of(languages)
    source, zero_shot = grouped.get(groups.SOURCE), grouped.get(groups.ZERO_SHOT)
    summary: dict[str, float] = {}
    measured = (*metrics, "calibration_error")[: len(next(iter(draws.values())))]
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
        summary[f"{metric}/worst"] = float((min if metric in metrics else max)(values.values()))
        summary[f"{metric}/std"] = float(np.std(list(values.values())))
    if source and zero_shot:
        best = max(source, key=lambda code: languages[code].main.value)
        gaps = draws[best][0] - bootstrap.mean(np.stack([draws[code][0] for code in zero_shot]))
        low, high = np.nanquantile(gaps, bootstrap.TAILS).tolist()
        mean = languages[best].main.value - summary[f"{metrics[0]}/mean_zero_shot"]
        summary |= {"transfer_gap/mean": mean, "transfer_gap/mean_low": low, "transfer_gap/mean_high": high}
    return summary


def confusion(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count rows by gold class (rows of the table) and predicted class (columns): (classes, classes) whole numbers.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = np.asarray(gold, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _centred(task: Task, draws: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return resampled metrics, (metrics, resamples), of a language whose metrics are `exact`."""
    found = []
    for name, row, value in zip(task.metrics, draws, exact, strict=True):
        if np.isnan(row).all():  # of nothing, in every resample as in the whole
            row = np.full(row.shape, value)
        # resampling loses rare classes and so pulls macro-F1 down, with many classes below every plausible value
        found.append(row + (value - np.nanmean(row)) if name in task.biased else row)
    return np.stack(found)


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
