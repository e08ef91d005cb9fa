"""Decide whether a candidate may take the champion's place: paired on the same test rows, language by language.

No served language may fall by more than the tolerance, and the mean over them not by more than `MEAN`. With a hundred
test rows a language and dozens of languages, some of two equally good models' languages differ by five points by luck
alone, and every second of their means is below the other by some. So a language counts against the candidate only if
its fall exceeds the tolerance *and* is more than chance among all the languages looked at. The mean is held tighter, as
small falls add up from promotion to promotion: it may fall by `MEAN` at most, and not even that if it is more than
chance. A fall that may be chance is marked `unclear` and refuses only when asked to.

The test rows are used once, after all other choices were made. Each promotion that they decide makes them a little more
like dev rows: whoever promotes often on one test set should renew it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from xlt_ray.errors import InputError
from xlt_ray.evaluation import bootstrap
from xlt_ray.evaluation.paired.comparison import pair
from xlt_ray.evaluation.predictions import Predictions

RESAMPLES = 2000
MEAN = 0.002  # that the mean may fall by, where chance explains it; a tenth of the tolerance where that is less
ALPHA = 0.05  # chance that any language at all of an equally good candidate is called fallen
Verdict = Literal["holds", "unclear", "falls", "lost", "new"]


@dataclass(frozen=True)
class Rules:
    """What a candidate must meet.

    `served` are the languages that matter, by default all that the champion was measured in. `tolerance` is a fraction:
    0 lets no significant fall pass and the mean not fall at all, 1 looks at the mean alone. `strict` also refuses falls
    that may be chance. `force` promotes in spite of the reasons against, which are found all the same.
    """

    served: tuple[str, ...] = ()
    tolerance: float = 0.02
    strict: bool = False
    force: bool = False


@dataclass(frozen=True)
class Row:
    """One served language: fractions, candidate less champion; figures are None where nothing could be compared.

    `p_value` is that of a fall, adjusted for all the languages compared.
    """

    code: str
    rows: int
    champion: float | None
    candidate: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Gate:
    """The result of a comparison: `difference` is that of the means over the languages both were measured in.

    `low` and `high` bound its 95% interval.
    """

    rows: tuple[Row, ...]
    difference: float
    low: float
    high: float
    tolerance: float
    strict: bool
    reasons: tuple[str, ...]  # why the candidate is refused; empty when it passes
    metric: str = ""  # what was compared, where that is known

    @property
    def allowed(self) -> float:
        """By how much the mean may fall where chance explains it."""
        return min(MEAN, self.tolerance / 10)

    @property
    def unclear(self) -> bool:
        """Whether the mean falls, by as little as it may and no more than chance explains."""
        return -self.allowed - 1e-9 <= self.difference < -1e-9 and self.high >= -1e-9

    @property
    def passed(self) -> bool:
        """Whether the candidate may take the champion's place."""
        return not self.reasons


def judge(
    candidate: Mapping[str, Predictions],
    champion: Mapping[str, Predictions],
    labels: tuple[Sequence[str], Sequence[str]],
    rules: Rules = Rules(),
) -> Gate:
    """Compare two models on the rows both predicted; `labels` are the candidate's and the champion's.

    A fall is tested one-sided by a paired bootstrap of studentised differences: the largest over all languages, each
    shifted to have no effect, is what a language's own is held against, from the largest down (Westfall and Young 1993,
    "Resampling-based multiple testing"; Romano and Wolf 2005, "Stepwise multiple testing as formalized data snooping",
    algorithm 4.1). So the chance that any language of an equally good candidate is called fallen is `ALPHA` at most.
    Ids that languages share are drawn jointly. An interval of a language where both models answer alike is a point,
    which says little where rows are few.

    Raises InputError where labels differ, gold labels differ, or no language can be compared.
    """
    _require_same_labels(*labels)
    served = tuple(dict.fromkeys(rules.served)) or tuple(sorted(champion))
    gains: dict[str, np.ndarray] = {}
    ids: dict[str, np.ndarray] = {}
    for code in served:
        if code in candidate and code in champion:
            ids[code], gain = pair(code, candidate[code], champion[code])
            if len(gain):
                gains[code] = gain
    if not gains:
        raise InputError(
            f"languages: {', '.join(served[:5])}: none was measured for both models on a common test row; name others, "
            "or measure both on one corpus"
        )
    draws = bootstrap.for_means(gains, {code: ids[code] for code in gains}, RESAMPLES, seed=0)
    stacked = np.stack(list(draws.values()))
    p_values = _fall_p_values(gains, stacked)
    rows = []
    for code in served:
        if code in gains:
            scores = _score(candidate[code], ids[code]), _score(champion[code], ids[code])
            rows.append(_row(code, scores, gains[code], draws[code], p_values[code], rules.tolerance))
        else:
            rows.append(_alone(code, candidate.get(code), champion.get(code)))
    difference = float(np.mean([gain.mean() for gain in gains.values()]))
    low, high = np.nanquantile(bootstrap.mean(stacked), bootstrap.TAILS).tolist()
    found = Gate(tuple(rows), difference, low, high, rules.tolerance, rules.strict, ())
    return replace(found, reasons=tuple(_reasons(found)))


def _require_same_labels(candidate: Sequence[str], champion: Sequence[str]) -> None:
    if list(candidate) == list(champion):
        return
    strange = sorted({*candidate} ^ {*champion})
    what = f"{', '.join(strange[:5])} only in one of the two" if strange else "the same names in another order"
    raise InputError(
        f"labels: the candidate's differ from the champion's: {what}; a service's answers would change their meaning, "
        "so promote it under another name or alias"
    )


def _fall_p_values(gains: Mapping[str, np.ndarray], draws: np.ndarray) -> dict[str, float]:
    """Return the adjusted p-values of falls by stepping down; `draws` is (languages, resamples), in gains' order."""
    means = np.array([gain.mean() for gain in gains.values()])
    rows = np.array([len(gain) for gain in gains.values()])
    # where rows all agree there is no spread; at least the spread of a single differing row is assumed
    spread = np.sqrt(np.maximum([gain.var() for gain in gains.values()], 1 / rows) / rows)
    fallen = -means / spread
    by_chance = np.nan_to_num((means[:, None] - draws) / spread[:, None], nan=-np.inf)  # NaN: no row was drawn
    order = np.argsort(-fallen, kind="stable")
    largest = np.maximum.accumulate(by_chance[order][::-1], axis=0)[::-1]  # over this and all that fell less
    extreme = (largest >= fallen[order][:, None] - 1e-9).sum(axis=1)
    adjusted = np.maximum.accumulate((1 + extreme) / (1 + draws.shape[1]))
    codes = list(gains)
    return {codes[place]: float(p_value) for place, p_value in zip(order, adjusted, strict=True)}


def _score(predictions: Predictions, ids: np.ndarray) -> float:
    there = np.isin(np.asarray(predictions.ids, dtype=np.str_), ids)
    return float(predictions.values(np.flatnonzero(there)).mean())


def _row(
    code: str, scores: tuple[float, float], gain: np.ndarray, draws: np.ndarray, p_value: float, tolerance: float
) -> Row:
    """Return the row of a language; `scores` are the main metrics of candidate and champion."""
    candidate, champion = scores
    difference = float(gain.mean())
    low, high = np.nanquantile(draws, bootstrap.TAILS).tolist()
    verdict: Verdict = "holds"
    if difference < -tolerance - 1e-9:  # a fall of exactly the tolerance is allowed, whatever its last bit
        verdict = "falls" if p_value <= ALPHA else "unclear"
    return Row(code, len(gain), champion, candidate, difference, low, high, p_value, verdict)


def _alone(code: str, candidate: Predictions | None, champion: Predictions | None) -> Row:
    """Return the row of a language in which the two cannot be compared; without champion there is nothing to lose."""
    there = [None if one is None or not one.rows else one.score for one in (champion, candidate)]
    lost = there[1] is None or there[0] is not None
    rows = candidate.rows if candidate is not None else 0
    return Row(code, rows, there[0], there[1], None, None, None, None, "lost" if lost else "new")


def _reasons(found: Gate) -> list[str]:
    reasons = []
    chance = ", which may be chance, but --strict"
    if found.difference < -1e-9 and (found.strict or not found.unclear):
        interval = f"[{100 * found.low:z.2f}, {100 * found.high:z.2f}]"
        why = chance if found.unclear else f"; {100 * found.allowed:g} at most is let pass, where chance explains it"
        reasons.append(
            f"the mean over the served languages falls by {-100 * found.difference:.2f} points {interval}{why}"
        )
    for row in found.rows:
        if row.verdict == "lost":
            why = "the candidate was not measured in it" if row.candidate is None else "no test row in common"
            reasons.append(f"{row.code}: served, but {why}")
        elif row.difference is not None and (row.verdict == "falls" or row.verdict == "unclear" and found.strict):
            reasons.append(
                f"{row.code}: falls by {-100 * row.difference:.1f} points, more than {100 * found.tolerance:g}"
                f"{'' if row.verdict == 'falls' else chance}"
            )
    return reasons
