"""Rank the mixes of a search on dev scores by a stated rule, and say how far the ranking can be trusted.

Nothing here has test scores of the mixes a search tried: a trial is measured on dev, and only the mixes that were
retrained after the choice was made come with `Scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import stats

from xlt_ray.comparison import Comparison
from xlt_ray.metrics import Scores
from xlt_ray.space import Objective, Point, Rule, Search, point_key

RULES: dict[Rule, str] = {
    "sources": "dev of the mix's own languages",
    "held_out_sources": "dev of the pool's languages that the mix leaves out",
    "targets": "oracle: dev of the targets, labels that a zero-shot search does not have",
}
CHOSEN = "chosen"


@dataclass(frozen=True)
class Tried:
    """One mix tried once. `accuracy` is on dev rows, per language; `low` and `high` bound the search's objective."""

    point: Mapping[str, Any]
    fidelity: Literal["probe", "fine_tune"]
    epochs: int  # trained; 0 for a probe
    whole: bool  # False where it was stopped before its last epoch
    accuracy: Mapping[str, float]
    low: float
    high: float
    seconds: float  # of wall clock since the search began, over all its sessions
    cost: float  # seconds of work of one worker

    @property
    def key(self) -> str:
        """The name of the point; equal for the same mix at another fidelity."""
        return point_key(self.point)

    def to_plain(self) -> dict[str, Any]:
        """Give plain data for JSON."""
        return asdict(self) | {"point": dict(self.point), "accuracy": dict(self.accuracy)}


@dataclass(frozen=True)
class Judge:
    """A rule bound to a search: what it says of a mix.

    `difficulty` is language -> how much easier than the pool's average it is (a probe trained on the rest of the pool),
    in accuracy. Mixes leave out different languages, so their held-out scores are compared after taking it off;
    else the mix that trains on the hard languages would win by being asked the easy ones.
    """

    search: Search
    difficulty: Mapping[str, float] = field(default_factory=dict)

    def languages(self, tried: Tried, rule: Rule | None = None) -> list[str]:
        """List the languages on which a rule measures a mix."""
        sources = set(tried.point.get("sources", self.search.pool))
        pool = set(self.search.pool)
        wanted = {
            "sources": lambda code: code in sources,
            "held_out_sources": lambda code: code in pool - sources,
            "targets": lambda code: code not in pool,
        }[rule or self.search.settings.selection.languages]
        return sorted(code for code in tried.accuracy if wanted(code))

    def value(self, tried: Tried, objective: Objective | None = None, rule: Rule | None = None) -> float | None:
        """Score a mix by a rule (default: the search's first objective and rule); None where it measured nothing."""
        rule = rule or self.search.settings.selection.languages
        ease = self.difficulty if rule == "held_out_sources" else {}
        found = [tried.accuracy[code] - ease.get(code, 0.0) for code in self.languages(tried, rule)]
        if not found:
            return None
        objective = objective or self.search.settings.selection.objectives[0]
        return float(np.mean(found)) if objective == "mean" else float(min(found))

    def ranked(self, tried: Sequence[Tried], rule: Rule | None = None) -> list[Tried]:
        """Sort mixes from best to worst by a rule, leaving out those that it cannot score; a mix counts once."""
        latest = {one.key: one for one in tried}
        scored = [(value, one) for one in latest.values() if (value := self.value(one, rule=rule)) is not None]
        return [one for _, one in sorted(scored, key=lambda pair: (-pair[0], len(pair[1].point), pair[1].key))]

    def choose(self, tried: Sequence[Tried], rule: Rule | None = None) -> Tried | None:
        """Take the best mix that was fine-tuned to its end, or, where none was, the best probe."""
        whole = [one for one in tried if one.fidelity == "fine_tune" and one.whole]
        ranked = self.ranked(whole, rule) or self.ranked([one for one in tried if one.fidelity == "probe"], rule)
        return ranked[0] if ranked else None

    def pareto(self, tried: Sequence[Tried]) -> list[Tried]:
        """List the mixes that no other beats in one objective without losing in another, best first in the first."""
        objectives = self.search.settings.selection.objectives
        ranked = self.ranked(tried)
        values = [[self.value(one, objective) or 0.0 for objective in objectives] for one in ranked]
        table = np.asarray(values).reshape(len(ranked), len(objectives))
        beaten = [bool(((table >= row).all(1) & (table > row).any(1)).any()) for row in table]
        return [one for one, worse in zip(ranked, beaten, strict=True) if not worse]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of the cheap fidelity with fine-tuning over the mixes that had both."""

    rho: float
    low: float
    high: float
    mixes: int

    @property
    def misleads(self) -> bool:
        """Whether it cannot be said that the cheap fidelity ranks mixes as fine-tuning does."""
        return self.low <= 0


def correlation(judge: Judge, tried: Sequence[Tried], resamples: int = 2000) -> Correlation | None:
    """Correlate probes with fine-tuning to the end by the search's rule; None for fewer than 4 mixes with both."""
    tuned = {one.key: judge.value(one) for one in tried if one.fidelity == "fine_tune" and one.whole}
    probed = {one.key: judge.value(one) for one in tried if one.fidelity == "probe"}
    pairs = np.array([(probed[k], tuned[k]) for k in tuned if probed.get(k) is not None and tuned[k] is not None])
    if len(pairs) < 4:
        return None
    picks = np.random.default_rng(0).integers(len(pairs), size=(resamples, len(pairs)))
    drawn = [stats.spearmanr(*pairs[pick].T).statistic for pick in picks if len(set(pick)) > 2]
    low, high = np.nanquantile(drawn, (0.025, 0.975)).tolist()
    return Correlation(float(stats.spearmanr(*pairs.T).statistic), low, high, len(pairs))


@dataclass(frozen=True)
class Retrained:
    """A mix trained after the search was over, with seeds that the search had not used, and measured on test."""

    name: str  # CHOSEN, or the baseline
    point: Point
    folders: tuple[str, ...]
    scores: tuple[Scores, ...]  # one a seed

    def mean(self, group: str) -> float:
        """Average a summary such as `accuracy/mean_unseen` over seeds; NaN where no language belongs under it."""
        return float(np.mean([one.summary.get(group, np.nan) for one in self.scores]))


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
        choice = judge.choose(tried, rule)
        if choice is not None:
            found.append(RuleChoice(rule, choice, {other: judge.value(choice, rule=other) for other in RULES}))
    return tuple(found)
