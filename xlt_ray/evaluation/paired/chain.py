"""Compare three and more runs in their order, such as before a stage, after it and after the next.

Every step, and the way from the first run to the last, is a comparison of two runs, in groups of languages as
`comparison` has it. Whether a single language surely gained or lost is asked of the gate, which looks at all of them at
once: `ALPHA` is about the chance that a step that changes nothing has any such language, half of it for gains and half
for losses. Nothing is corrected for the number of steps.

All runs must have the same test rows, so that the steps of a language add up to the way from first to last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xlt_ray.errors import InputError
from xlt_ray.evaluation import groups
from xlt_ray.evaluation.groups import Place
from xlt_ray.evaluation.paired import comparison, gate
from xlt_ray.evaluation.predictions import Predictions, load_predictions
from xlt_ray.evaluation.scores import Scores, load_scores

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Change:
    """What changed in the mean of some languages, or in one: fractions, the later run less the earlier.

    `p_value` is two-sided, and of a single language adjusted for all that are compared. `gained` and `lost` count the
    languages of which that is sure.
    """

    languages: int
    rows: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int
    before_supervision: str | None = None  # highest rung of `supervision.LADDER`; None for sources, and where unknown
    after_supervision: str | None = None

    @property
    def uneven(self) -> bool:
        """Whether one run read more of the languages than the other, so that more than the models differs."""
        return comparison.uneven((self.before_supervision, self.after_supervision))


@dataclass(frozen=True)
class Step:
    """The changes from one run to a later one, numbered from 1, by group and by language."""

    first: int
    second: int
    groups: Mapping[str, Change]
    languages: Mapping[str, Change]

    @property
    def name(self) -> str:
        """Which runs these are."""
        return f"{self.first} to {self.second}"


@dataclass(frozen=True)
class Chain:
    """Runs in their order: what the languages are to all of them, sources first, and every step.

    The last of `steps` is from the first run to the last. `left_out` are languages that some of the runs lack.
    """

    metric: str
    places: Mapping[str, Place]
    steps: tuple[Step, ...]
    left_out: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return a table with a row a group, then a language, and step, which are its index; columns as in `Change`."""
        import pandas as pd

        rows = [
            {"group": name, "step": step.name, **asdict(change)}
            for kind in ("groups", "languages")
            for name in getattr(self.steps[0], kind)
            for step in self.steps
            for change in [getattr(step, kind)[name]]
        ]
        return pd.DataFrame(rows).set_index(["group", "step"])


def compare(folders: Sequence[Path]) -> Chain:
    """Compare finished runs, each with the next and the first with the last, on the languages that all measured.

    Raises InputError, naming the runs, where one is no finished run, where tasks, labels or test rows differ, or no
    language is common.
    """
    scores = [load_scores(folder) for folder in folders]
    for folder, one in zip(folders[1:], scores[1:], strict=True):
        _require_one_task((folders[0], scores[0]), (folder, one))
    answers = [load_predictions(folder / "predictions.npz") for folder in folders]
    measured = [one.languages.keys() & given.keys() for one, given in zip(scores, answers, strict=True)]
    common = set.intersection(*measured)
    if not common:
        listed = ", ".join(map(str, folders))
        raise InputError(f"{listed}: no language was measured in all of them; compare runs with a target in common")
    for folder, given in zip(folders[1:], answers[1:], strict=True):
        for code in sorted(common):
            _require_same_rows(code, (folders[0], answers[0][code]), (folder, given[code]))
    known: Mapping[str, groups.Measured] = {code: scores[0].languages[code] for code in sorted(common)}
    for one in scores[1:]:
        known = groups.in_both(known, one.languages)
    ends = [*pairwise(range(len(folders))), (0, len(folders) - 1)]
    steps = []
    for i, j in ends:
        try:
            steps.append(_step((i, j), (scores[j], scores[i]), (answers[j], answers[i]), groups.of(known)))
        except InputError as error:  # it names language and row
            raise InputError(f"{folders[i]} and {folders[j]}: {error}") from None
    ranked = sorted(known, key=lambda code: -steps[-1].languages[code].difference)
    apart = [code for members in groups.apart({code: known[code] for code in ranked}).values() for code in members]
    order = [*apart, *(code for code in ranked if code not in apart)]
    places = {code: Place(known[code].role, known[code].seen) for code in order}
    return Chain(scores[0].main, places, tuple(steps), tuple(sorted(set.union(*measured) - common)))


def _require_one_task(first: tuple[Path, Scores], other: tuple[Path, Scores]) -> None:
    (folder, one), (place, two) = first, other
    kinds = [f"{each.task} by {', '.join(each.metrics)}" for each in (two, one)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{place}: measured is {kinds[0]}, in {folder} {kinds[1]}; compare runs of one task")
    if two.labels != one.labels:
        strange = sorted({*two.labels} ^ {*one.labels})
        what = f"{', '.join(strange[:5])} only in one of the two" if strange else "the same names in another order"
        raise InputError(f"{place}: labels differ from those of {folder}: {what}; compare runs of one label set")


def _require_same_rows(code: str, first: tuple[Path, Predictions], other: tuple[Path, Predictions]) -> None:
    (folder, one), (place, two) = first, other
    strange = np.setxor1d(np.asarray(two.ids, dtype=np.str_), np.asarray(one.ids, dtype=np.str_))
    if len(strange):
        raise InputError(
            f"{place}: {code} has {two.rows} test rows, in {folder} {one.rows}, and id {str(strange[0])!r} is in one "
            "of the two alone; compare runs on the same test rows, or only two runs, by the rows that both have"
        )


def _step(
    ends: tuple[int, int],
    scores: tuple[Scores, Scores],
    answers: tuple[Mapping[str, Predictions], Mapping[str, Predictions]],
    members: Mapping[str, Sequence[str]],
) -> Step:
    """Compare two runs of a chain; of `scores` and `answers` the later run's are the first, as in a comparison."""
    codes = tuple(members[groups.ALL])
    rules, labels = gate.Rules(codes, tolerance=0.0), (scores[0].labels, scores[1].labels)
    falls = gate.judge(*answers, labels, rules).rows
    gains = gate.judge(*answers[::-1], labels[::-1], rules).rows  # a fall from the later run to the earlier
    rungs = [{code: one.languages[code].supervision for code in codes} for one in scores]
    languages = {
        fall.code: _of_language(fall, gain, (rungs[1][fall.code], rungs[0][fall.code]))
        for fall, gain in zip(falls, gains, strict=True)
    }
    found = comparison.in_groups(scores, answers, members)
    return Step(
        ends[0] + 1,
        ends[1] + 1,
        {name: _of_group(each, [languages[code] for code in members[name]]) for name, each in found.items()},
        languages,
    )


def _of_language(fall: gate.Row, gain: gate.Row, rungs: tuple[str | None, str | None]) -> Change:
    every = (fall.champion, fall.candidate, fall.difference, fall.low, fall.high, fall.p_value, gain.p_value)
    before, after, difference, low, high, *sides = (one for one in every if one is not None)  # all, as rows are common
    p_value = min(1.0, 2 * min(sides))
    sure = p_value <= gate.ALPHA
    gained, lost = int(sure and difference > 0), int(sure and difference < 0)
    return Change(1, fall.rows, before, after, difference, low, high, p_value, gained, lost, *rungs)


def _of_group(found: comparison.Comparison, members: Sequence[Change]) -> Change:
    before, after = (float(np.mean([getattr(one, name) for one in members])) for name in ("before", "after"))
    gained, lost = (sum(getattr(one, name) for one in members) for name in ("gained", "lost"))
    figures = (found.difference, found.low, found.high, found.p_value)
    return Change(found.languages, found.rows, before, after, *figures, gained, lost, *found.supervision[::-1])
