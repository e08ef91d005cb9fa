"""Compute statistics over the trials of a search: agreement of the fidelities, effects of languages, rules' choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from xlt_ray.config.search import Rule
from xlt_ray.evaluation.paired.comparison import Comparison
from xlt_ray.evaluation.scores import Scores
from xlt_ray.search.selection import RULES, Judge, Tried, probes, whole_fine_tunings
from xlt_ray.search.space import Point, Search

RESAMPLES = 2000


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of the cheap fidelity with fine-tuning over the mixes that had both."""

    rho: float
    low: float
    high: float
    mixes: int

    @property
    def misleads(self) -> bool:
        """Whether the interval reaches 0, so that the cheap fidelity may not rank mixes as fine-tuning does."""
        return not self.low > 0  # also of NaN, where all scores are equal


def correlation(judge: Judge, tried: Sequence[Tried]) -> Correlation | None:
    """Correlate probes with fine-tuning to the end by the search's rule; None for fewer than 4 mixes with both."""
    probed = {one.mix: judge.value(one) for one in probes(tried)}
    both = [(probed.get(one.mix), judge.value(one)) for one in whole_fine_tunings(tried)]
    pairs = np.array([pair for pair in both if None not in pair], dtype=float)
    if len(pairs) < 4:
        return None
    picks = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    drawn = [stats.spearmanr(*pairs[pick].T).statistic for pick in picks if len(set(pick)) > 2]
    low, high = np.nanquantile(drawn, (0.025, 0.975)).tolist()
    return Correlation(float(stats.spearmanr(*pairs.T).statistic), low, high, len(pairs))


@dataclass(frozen=True)
class Effect:
    """How the objective differs where a language is in the mix: a fraction with its 95% interval."""

    value: float
    low: float
    high: float
    mixes: int  # of those compared, that have the language


SPARE = 5  # mixes needed beyond the number of coefficients, else the intervals would be of no use


def importance(judge: Judge, tried: Sequence[Tried]) -> dict[str, Effect]:
    """Estimate how the objective differs where a language is in the mix and not the pool's average one, at equal size.

    Ordinary least squares over the probes (over whole fine-tunings where there are none): the objective on which
    languages are in the mix, with a constant for each size of mix. Where weights were searched, the effect is that of a
    tenth of the weight. The languages of a mix add up to its size, so only differences among them can be known: effects
    add up to 0. Mixes of the same languages count once, by their mean, because a searcher returns to what it likes.
    Intervals are Student's t, each for itself.

    It is an association over the mixes tried, not what adding the language does to a given mix: languages
    interact (a second one of a family may bring nothing), and the searcher chose the mixes. Under the rule `sources` an
    easy language looks good because it is measured itself.

    The greatest effect comes first. Left out are languages in all or none of the mixes, and those that always come with
    others; the result is empty where there are fewer than 5 mixes beyond the number of coefficients.
    """
    values: dict[tuple[float, ...], list[float]] = {}
    for one in probes(tried) or whole_fine_tunings(tried):
        value = judge.value(one)
        if value is not None:
            values.setdefault(presence(judge.search, one.point), []).append(value)
    mixes = np.array(list(values)).reshape(len(values), len(judge.search.pool))
    mean = np.array([np.mean(each) for each in values.values()])
    varies = mixes.min(axis=0, initial=np.inf) < mixes.max(axis=0, initial=-np.inf)
    codes = [code for code, differs in zip(judge.search.pool, varies, strict=True) if differs]
    sizes = (mixes > 0).sum(axis=1)
    constants = sizes[:, None] == np.unique(sizes)
    design = np.hstack([mixes[:, varies], constants])
    spare = len(mixes) - (int(np.linalg.matrix_rank(design)) if len(mixes) else 0)
    if spare < SPARE or len(codes) < 2:
        return {}
    inverse = np.linalg.pinv(design)
    variance = float(((mean - design @ (inverse @ mean)) ** 2).sum()) / spare
    against_mean = np.hstack([np.eye(len(codes)) - 1 / len(codes), np.zeros((len(codes), constants.shape[1]))])
    known = np.abs(against_mean @ inverse @ design - against_mean).max(axis=1) < 1e-6
    effects = against_mean @ inverse @ mean
    reach = stats.t.ppf(0.975, spare) * np.sqrt(variance * ((against_mean @ inverse) ** 2).sum(axis=1))
    counts = (mixes[:, varies] > 0).sum(axis=0)
    rows = zip(codes, effects.tolist(), reach.tolist(), counts.tolist(), known, strict=True)
    found = {code: Effect(value, value - by, value + by, count) for code, value, by, count, sure in rows if sure}
    return dict(sorted(found.items(), key=lambda pair: -pair[1].value))


def presence(search: Search, point: Point) -> tuple[float, ...]:
    """Return for each language of the pool whether a mix has it (0 or 1), or its tenths of the weight if searched."""
    sources = search.sources(point)
    if not search.varies("mixture.weights"):
        return tuple(float(code in sources) for code in search.pool)
    weights = point.get("mixture.weights") or {}
    known = {code: weights.get(code, 1.0) for code in sources}
    return tuple(10 * known.get(code, 0.0) / sum(known.values()) for code in search.pool)


def shortlist(judge: Judge, tried: Sequence[Tried], fine_tuned: int, probed: int) -> list[Tried]:
    """List what to show of a search: whole fine-tunings from best to worst, then stopped ones, then probes.

    Probes are of mixes that were not fine-tuned, and at most `probed`; the others at most `fine_tuned` together.
    """
    tuned = [one for one in tried if one.fidelity == "fine_tune"]
    known = {one.mix for one in tuned}
    stopped = [one for one in tuned if not one.whole]
    others = [one for one in probes(tried) if one.mix not in known]
    shown = (judge.ranked(whole_fine_tunings(tried)) + judge.ranked(stopped))[:fine_tuned]
    return shown + judge.ranked(others)[:probed]


@dataclass(frozen=True)
class Retrained:
    """A mix trained after the search was over, with seeds that the search had not used, and measured on test."""

    name: str  # CHOSEN, or the baseline
    point: Point
    folders: tuple[str, ...]
    scores: tuple[Scores, ...]  # one a seed

    def mean(self, key: str) -> float:
        """Average a summary such as `accuracy/mean_unseen` over seeds; NaN where no language belongs under it."""
        return float(np.mean([one.summary.get(key, np.nan) for one in self.scores]))


@dataclass(frozen=True)
class RuleChoice:
    """What a rule would have chosen among the mixes tried, and what that choice scores under every rule."""

    rule: Rule
    choice: Tried
    values: Mapping[Rule, float | None]


@dataclass(frozen=True)
class Findings:
    """Everything a search found, for its report."""

    search: Search
    judge: Judge
    tried: tuple[Tried, ...]
    chosen: Tried
    rules: tuple[RuleChoice, ...]
    correlation: Correlation | None
    retrained: tuple[Retrained, ...]
    comparisons: Mapping[str, Mapping[str, Comparison]]  # baseline -> group of languages -> chosen less baseline
    ranking: tuple[Mapping[str, Any], ...]  # rows of `xlt rank-sources`: language, score, reasons, ...
    seconds: float  # of wall clock for screening and fine-tuning
    busy: float | None  # share of that in which the workers of trials trained or measured
    notes: tuple[str, ...] = ()


def rule_choices(judge: Judge, tried: Sequence[Tried]) -> tuple[RuleChoice, ...]:
    """Compare what each rule would have chosen, where its languages were measured."""
    found = []
    for rule in RULES:
        own = rule == judge.search.settings.selection.languages
        choice = judge.choose(tried) if own else judge.best(tried, rule)
        if choice is not None:
            found.append(RuleChoice(rule, choice, {other: judge.value(choice, rule=other) for other in RULES}))
    return tuple(found)
