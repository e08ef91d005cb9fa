"""Rank the mixes of a search on dev scores by a stated rule, with the interval of each score.

Nothing here has test scores: a trial is measured on dev, and only mixes retrained after the choice come with `Scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import stats

from xlt_ray.config.search import Objective, Rule
from xlt_ray.evaluation import bootstrap
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.search.similarity import coverage
from xlt_ray.search.space import Search, mix_of, point_key

RULES: dict[Rule, str] = {
    "sources": "dev of the mix's own languages",
    "held_out_sources": "dev, for probes train as well, of the pool's languages that the mix leaves out",
    "targets": "oracle: dev of the targets, labels that a zero-shot search does not have",
}
CHOSEN = "chosen"
RESAMPLES = 500
Fidelity = Literal["probe", "fine_tune"]
FIDELITIES: tuple[Fidelity, ...] = ("probe", "fine_tune")


@dataclass(frozen=True)
class Tried:
    """One mix tried once. `low` and `high` bound the search's objective; 0 and 1, the default, where it is unknown.

    `accuracy` is per language on dev rows, or the main metric of another task; a probe's, of languages that the mix
    leaves out, on train rows as well (`screening.try_mix`). The order of the fields is that of a line of the journal.
    """

    point: Mapping[str, Any]
    fidelity: Fidelity
    _: KW_ONLY
    epochs: int = 0  # trained; 0 for a probe
    whole: bool = True  # False where it was stopped before its last epoch
    accuracy: Mapping[str, float]
    low: float = 0.0
    high: float = 1.0
    seconds: float = 0.0  # of wall clock since the search began, over all its sessions; the journal sets it
    cost: float = 0.0  # seconds of work of one worker

    @property
    def key(self) -> str:
        """The name of the point; equal for the same mix at another fidelity."""
        return point_key(self.point)

    @property
    def mix(self) -> str:
        """The name of its mix; equal for a probe and a fine-tuning that differ in settings a probe does not have."""
        return point_key(mix_of(self.point))


def breaks_ties(search: Search) -> bool:
    """Return whether similarity to the targets decides among mixes whose scores count as equal."""
    settings = search.settings.selection
    return settings.languages == "held_out_sources" and settings.standard_errors > 0


@dataclass(frozen=True)
class Judge:
    """A rule bound to a search: it scores mixes, ranks them and chooses one.

    `difficulty` is fidelity -> language -> how much easier than the pool's average it is (a probe trained on the rest
    of the pool), in accuracy, on the rows on which that fidelity is measured. Mixes leave out different languages, so
    their held-out scores are compared after subtracting it; else the mix that trains on the hard languages would win by
    being measured on the easy ones. `nearness` is source -> target -> similarity, for which no label was read
    (`similarity.Ranking.scores`).
    """

    search: Search
    difficulty: Mapping[Fidelity, Mapping[str, float]] = field(default_factory=dict)
    nearness: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def languages(self, tried: Tried, rule: Rule | None = None) -> list[str]:
        """List the languages on which a rule measures a mix."""
        sources = set(self.search.sources(tried.point))
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
        ease = self._ease(tried.fidelity, rule)
        found = [tried.accuracy[code] - ease.get(code, 0.0) for code in self.languages(tried, rule)]
        if not found:
            return None
        objective = objective or self.search.settings.selection.objectives[0]
        return float(np.mean(found)) if objective == "mean" else float(min(found))

    def _ease(self, fidelity: Fidelity, rule: Rule) -> Mapping[str, float]:
        return self.difficulty.get(fidelity, {}) if rule == "held_out_sources" else {}

    def interval(self, predictions: Mapping[str, Predictions], tried: Tried) -> tuple[float, float]:
        """Return the 95% interval of the search's objective: a bootstrap over rows, joint where languages share ids."""
        chosen = {code: predictions[code] for code in self.languages(tried)}
        right = {code: one.values() for code, one in chosen.items()}
        ids = {code: np.asarray(one.ids) for code, one in chosen.items()}
        if bootstrap.shared(ids):
            draws = bootstrap.together(right, ids, bootstrap.share, RESAMPLES, seed=0)
        else:
            draws = {code: bootstrap.share(*bootstrap.alone(code, one, RESAMPLES, 0)) for code, one in right.items()}
        settings = self.search.settings.selection
        ease = self._ease(tried.fidelity, settings.languages)
        table = np.stack([draws[code] - ease.get(code, 0.0) for code in draws])
        summed = bootstrap.mean(table) if settings.objectives[0] == "mean" else np.nanmin(table, axis=0)
        low, high = np.nanquantile(summed, bootstrap.TAILS).tolist()
        return low, high

    def ranked(self, tried: Sequence[Tried], rule: Rule | None = None) -> list[Tried]:
        """Sort mixes from best to worst by a rule, leaving out those that it cannot score; a mix counts once."""
        latest = {one.key: one for one in tried}
        scored = [(value, one) for one in latest.values() if (value := self.value(one, rule=rule)) is not None]
        return [one for _, one in sorted(scored, key=lambda pair: (-pair[0], len(pair[1].point), pair[1].key))]

    def best(self, tried: Sequence[Tried], rule: Rule | None = None) -> Tried | None:
        """Return the mix of the highest score among those fine-tuned to their end, or, where none was, among probes."""
        ranked = self._candidates(tried, rule)
        return ranked[0] if ranked else None

    def choose(self, tried: Sequence[Tried]) -> Tried | None:
        """Choose by the search's own rule: of the mixes no worse than `best`, the one most similar to the targets.

        After the one-standard-error rule (Breiman et al. 1984): scores within `selection.standard_errors` of the best's
        own standard error count as equal. Languages that a mix leaves out stand in for the targets and do not show
        which of such mixes suits these targets; similarity does, without a label (`similarity.coverage`). Only for the
        rule `held_out_sources`, and where similarities are known; else the best score is chosen.
        """
        near = self.near(tried)
        return max(near, key=self.coverage) if len(near) > 1 else next(iter(near), None)

    def near(self, tried: Sequence[Tried]) -> list[Tried]:
        """List the mixes that count as equal to `best`, which comes first."""
        ranked = self._candidates(tried)
        settings = self.search.settings.selection
        if not ranked or not self.nearness or not breaks_ties(self.search):
            return ranked[:1]
        error = (ranked[0].high - ranked[0].low) / (2 * stats.norm.ppf(0.975))
        least = (self.value(ranked[0]) or 0.0) - settings.standard_errors * error
        return [one for one in ranked if one is ranked[0] or (self.value(one) or 0.0) > least]

    def coverage(self, tried: Tried) -> float:
        """Average over targets the similarity of the mix's most similar language: 0 to 1."""
        return coverage(self.nearness, self.search.sources(tried.point))

    def _candidates(self, tried: Sequence[Tried], rule: Rule | None = None) -> list[Tried]:
        return self.ranked(whole_fine_tunings(tried), rule) or self.ranked(probes(tried), rule)

    def pareto(self, tried: Sequence[Tried]) -> list[Tried]:
        """List the mixes that no other beats in one objective without losing in another, by the first objective."""
        objectives = self.search.settings.selection.objectives
        ranked = self.ranked(tried)
        values = [[self.value(one, objective) or 0.0 for objective in objectives] for one in ranked]
        table = np.asarray(values).reshape(len(ranked), len(objectives))
        beaten = [bool(((table >= row).all(1) & (table > row).any(1)).any()) for row in table]
        return [one for one, worse in zip(ranked, beaten, strict=True) if not worse]


def probes(tried: Sequence[Tried]) -> list[Tried]:
    """List the mixes screened."""
    return [one for one in tried if one.fidelity == "probe"]


def whole_fine_tunings(tried: Sequence[Tried]) -> list[Tried]:
    """List the fine-tunings that were not stopped early."""
    return [one for one in tried if one.fidelity == "fine_tune" and one.whole]
