"""Compare two models on the rows both have predicted: a paired bootstrap of the difference in the main metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xlt_ray.errors import InputError
from xlt_ray.evaluation import bootstrap, groups
from xlt_ray.evaluation.predictions import Predictions, load_predictions
from xlt_ray.evaluation.scores import Scores, load_scores

RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """How much the mean of the main metric of the first model is above the second's on the rows both have predicted."""

    difference: float
    low: float
    high: float
    p_value: float
    languages: int
    rows: int
    per_language: Mapping[str, float]
    # highest rung of `supervision.LADDER` in each model; None for sources, and where it is not recorded
    supervision: tuple[str | None, str | None] = (None, None)

    @property
    def uneven(self) -> bool:
        """Whether one model read more of the languages than the other, so that more than the models differs."""
        return uneven(self.supervision)


def uneven(rungs: tuple[str | None, str | None]) -> bool:
    """Return whether the rungs of two models differ, where both are known."""
    return rungs[0] != rungs[1] and None not in rungs


def compare_runs(first: Path, second: Path) -> dict[str, Comparison]:
    """Compare two finished runs, first less second, in each group of languages; a role counts where both have it."""
    one, other = (load_scores(folder) for folder in (first, second))
    if one.metrics != other.metrics:
        measured = " and ".join(", ".join(each.metrics) for each in (one, other))
        raise InputError(f"{first} and {second}: measured are {measured}; compare runs of one task")
    known = groups.in_both(one.languages, other.languages)
    a, b = (load_predictions(folder / "predictions.npz") for folder in (first, second))
    members: dict[str, list[str]] = {groups.ALL: []} | groups.of(known)  # with nothing in common, that is refused
    return in_groups((one, other), (a, b), members)


def in_groups(
    scores: tuple[Scores, Scores],
    answers: tuple[Mapping[str, Predictions], Mapping[str, Predictions]],
    members: Mapping[str, Sequence[str]],
) -> dict[str, Comparison]:
    """Compare two runs in groups of languages, name -> codes; raises what `compare_seeds` does."""
    a, b = answers
    found = {name: compare_seeds([{code: a[code] for code in codes}], [b]) for name, codes in members.items()}
    return {name: replace(each, supervision=_rungs(*scores, each)) for name, each in found.items()}


def _rungs(one: Scores, other: Scores, found: Comparison) -> tuple[str | None, str | None]:
    compared = [code for code in found.per_language if code in one.languages and code in other.languages]
    return one.rung(compared), other.rung(compared)


def compare_seeds(a: Sequence[Mapping[str, Predictions]], b: Sequence[Mapping[str, Predictions]]) -> Comparison:
    """Test whether two models differ in their main metric, on the languages and row ids both have, by a paired
    bootstrap.

    Each side is one model trained with one or several seeds, the same number on both; a row's gain is the average over
    seeds, taken in pairs. The interval then bounds what other test rows would give these very runs; how far other seeds
    would move the difference shows in its spread over the pairs, which the caller has.

    The p-value is two-sided: how often a resampled difference, shifted to have no effect, is at least as large as the
    one observed, counting the observed itself. Ids shared by languages are resampled jointly, as in `metrics.score`.
    Sources: Efron and Tibshirani 1993, chapter 16; Koehn 2004, "Statistical significance tests for machine translation
    evaluation"; Berg-Kirkpatrick, Burkett and Klein 2012, "An empirical investigation of statistical significance in
    NLP". Raises InputError when nothing is common, an id occurs twice, gold labels differ, or the numbers of runs do.
    """
    if len(a) != len(b):
        raise InputError(f"compare: {len(a)} runs against {len(b)}; give both models the same seeds")
    both = sorted(set.intersection(*(set(one) for one in (*a, *b))))
    paired = {code: _pairs(code, [one[code] for one in a], [one[code] for one in b]) for code in both}
    paired = {code: one for code, one in paired.items() if len(one[0])}
    if not paired:
        raise InputError("compare: no language with a common row id; compare predictions made on the same test rows")
    ids = {code: one[0] for code, one in paired.items()}
    gains = {code: one[1] for code, one in paired.items()}
    draws = bootstrap.for_means(gains, ids, RESAMPLES, seed=0)
    per_language = {code: float(gain.mean()) for code, gain in gains.items()}
    difference = float(np.mean(list(per_language.values())))
    resampled = bootstrap.mean(np.stack(list(draws.values())))
    low, high = np.nanquantile(resampled, bootstrap.TAILS).tolist()
    extreme = int(np.sum(np.abs(resampled - difference) >= abs(difference) - 1e-12))
    p_value = (1 + extreme) / (1 + RESAMPLES)
    return Comparison(difference, low, high, p_value, len(gains), sum(map(len, gains.values())), per_language)


def _pairs(code: str, a: Sequence[Predictions], b: Sequence[Predictions]) -> tuple[np.ndarray, np.ndarray]:
    each = [pair(code, first, second) for first, second in zip(a, b, strict=True)]
    if any(len(ids) != len(each[0][0]) or (ids != each[0][0]).any() for ids, _ in each):
        raise InputError(f"{code}: the runs of one model predicted different rows; compare runs on the same test rows")
    return each[0][0], np.mean([gains for _, gains in each], axis=0)


def pair(code: str, a: Predictions, b: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids both have and, for each, by how much the first is better, see `Predictions.values`.

    Where answers are right or wrong that is 1 where only the first is right, -1 where only the second, else 0. Raises
    InputError naming the language when an id occurs twice or gold labels differ.
    """
    ids_a, ids_b = np.asarray(a.ids, dtype=np.str_), np.asarray(b.ids, dtype=np.str_)
    for ids in (ids_a, ids_b):
        names, times = np.unique(ids, return_counts=True)
        if len(times) and times.max() > 1:
            often = times.argmax()
            raise InputError(f"{code}: id {str(names[often])!r} occurs {times[often]} times; make row ids unique")
    common, first, second = np.intersect1d(ids_a, ids_b, assume_unique=True, return_indices=True)
    if (a.ratios is None) != (b.ratios is None):
        raise InputError(f"{code}: the two were measured by different metrics; compare models of one task and labels")
    if (differs := _differing(a, first, b, second)) is not None:
        raise InputError(
            f"{code}: id {str(common[differs])!r} has different gold labels in the two; compare predictions made on "
            "one corpus with one label set"
        )
    return common, a.values(first) - b.values(second)


def _differing(a: Predictions, first: np.ndarray, b: Predictions, second: np.ndarray) -> int | None:
    """Return the place of the first of two models' common rows whose gold answers differ, None where all are alike."""
    (row, gold), (other_row, other) = a.golds(first), b.golds(second)
    if np.array_equal(row, other_row):
        differs = row[gold != other]
        return int(differs[0]) if len(differs) else None
    each = [np.bincount(rows, minlength=len(first)) for rows in (row, other_row)]
    return int(np.flatnonzero(each[0] != each[1])[0])
