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

from xlt_ray import bootstrap
from xlt_ray.comparison import Comparison
from xlt_ray.metrics import Predictions, Scores
from xlt_ray.search_config import Objective, Rule
from xlt_ray.similarity import coverage
from xlt_ray.space import Point, Search, mix_of, point_key

RULES: dict[Rule, str] = {
    "sources": "dev of the mix's own languages",
    "held_out_sources": "dev, for probes train as well, of the pool's languages that the mix leaves out",
    "targets": "oracle: dev of the targets, labels that a zero-shot search does not have",
}
CHOSEN = "chosen"
Fidelity = Literal["probe", "fine_tune"]
FIDELITIES: tuple[Fidelity, ...] = ("probe", "fine_tune")


@dataclass(frozen=True)
class Tried:
    """One mix tried once. `low` and `high` bound the search's objective.

    `accuracy` is per language on dev rows; a probe's, of languages that the mix leaves out, on train rows as well
    (`screening.try_mix`).
    """

    point: Mapping[str, Any]
    fidelity: Fidelity
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

    @property
    def mix(self) -> str:
        """The name of its mix; equal for a probe and a fine-tuning that differ in settings a probe does not have."""
        return point_key(mix_of(self.point))

    def to_plain(self) -> dict[str, Any]:
        """Give plain data for JSON."""
        return asdict(self) | {"point": dict(self.point), "accuracy": dict(self.accuracy)}


def breaks_ties(search: Search) -> bool:
    """Tell whether similarity to the targets decides among mixes that the search's scores do not tell apart."""
    settings = search.settings.selection
    return settings.languages == "held_out_sources" and settings.standard_errors > 0


@dataclass(frozen=True)
class Judge:
    """A rule bound to a search: what it says of a mix.

    `difficulty` is fidelity -> language -> how much easier than the pool's average it is (a probe trained on the rest
    of the pool), in accuracy, on the rows on which that fidelity is measured. Mixes leave out different languages, so
    their held-out scores are compared after taking it off; else the mix that trains on the hard languages would win by
    being asked the easy ones. `nearness` is source -> target -> similarity, of which no label is known
    (`similarity.Ranking.scores`).
    """

    search: Search
    difficulty: Mapping[Fidelity, Mapping[str, float]] = field(default_factory=dict)
    nearness: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

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
        ease = self._ease(tried.fidelity, rule)
        found = [tried.accuracy[code] - ease.get(code, 0.0) for code in self.languages(tried, rule)]
        if not found:
            return None
        objective = objective or self.search.settings.selection.objectives[0]
        return float(np.mean(found)) if objective == "mean" else float(min(found))

    def _ease(self, fidelity: Fidelity, rule: Rule) -> Mapping[str, float]:
        return self.difficulty.get(fidelity, {}) if rule == "held_out_sources" else {}

    def interval(
        self, predictions: Mapping[str, Predictions], tried: Tried, resamples: int = 500
    ) -> tuple[float, float]:
        """Bound the search's objective on a mix by 95%: a bootstrap over rows, joint where languages share ids."""
        chosen = {code: predictions[code] for code in self.languages(tried)}
        right = {code: (one.gold == one.predicted).astype(np.int64) for code, one in chosen.items()}
        ids = {code: np.asarray(one.ids) for code, one in chosen.items()}
        if bootstrap.shared(ids):
            draws = bootstrap.together(right, ids, bootstrap.share, resamples, seed=0)
        else:
            draws = {code: bootstrap.share(*bootstrap.alone(code, one, resamples, 0)) for code, one in right.items()}
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
        """Take the highest score among mixes that were fine-tuned to their end, or, where none was, among probes."""
        ranked = self._candidates(tried, rule)
        return ranked[0] if ranked else None

    def choose(self, tried: Sequence[Tried]) -> Tried | None:
        """Choose by the search's own rule: of the mixes no worse than `best`, the one most similar to the targets.

        After the one-standard-error rule (Breiman et al. 1984): scores within `selection.standard_errors` of the best's
        own standard error are taken for equal. Languages that a mix leaves out stand in for the targets and cannot say
        which of such mixes suits these targets; similarity can, without a label (`similarity.coverage`). Only for the
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
        return coverage(self.nearness, tried.point.get("sources", self.search.pool))

    def _candidates(self, tried: Sequence[Tried], rule: Rule | None = None) -> list[Tried]:
        whole = self.ranked(whole_fine_tunings(tried), rule)
        return whole or self.ranked([one for one in tried if one.fidelity == "probe"], rule)

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
        return not self.low > 0  # also where equal scores leave it unknown


def correlation(judge: Judge, tried: Sequence[Tried], resamples: int = 2000) -> Correlation | None:
    """Correlate probes with fine-tuning to the end by the search's rule; None for fewer than 4 mixes with both."""
    probed = {one.mix: judge.value(one) for one in tried if one.fidelity == "probe"}
    whole = [one for one in tried if one.fidelity == "fine_tune" and one.whole]
    both = [(probed.get(one.mix), judge.value(one)) for one in whole]
    pairs = np.array([pair for pair in both if None not in pair], dtype=float)
    if len(pairs) < 4:
        return None
    picks = np.random.default_rng(0).integers(len(pairs), size=(resamples, len(pairs)))
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


SPARE = 5  # mixes needed beyond the number of coefficients, else the intervals would say nothing


def importance(judge: Judge, tried: Sequence[Tried]) -> dict[str, Effect]:
    """Estimate how the objective differs where a language is in the mix and not the pool's average one, at equal size.

    Ordinary least squares over the probes (over whole fine-tunings where there are none): the objective on which
    languages are in the mix, with a constant for each size of mix. Where weights were searched, the effect is that of a
    tenth of the weight. The languages of a mix add up to its size, so only differences among them can be known: effects
    add up to 0. Mixes of the same languages count once, by their mean, because a searcher returns to what it likes.
    Intervals are Student's t, each for itself.

    It is an association over the mixes tried. It does not say what adding the language does to a given mix: languages
    interact (a second one of a family may bring nothing), and the searcher chose the mixes. Under the rule `sources` an
    easy language looks good because it is measured itself.

    Left out are languages in all or none of the mixes, and those that always come with others; the result is empty
    where there are fewer than 5 mixes beyond the number of coefficients.
    """
    values: dict[tuple[float, ...], list[float]] = {}
    for one in [one for one in tried if one.fidelity == "probe"] or whole_fine_tunings(tried):
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
    return {code: Effect(value, value - by, value + by, count) for code, value, by, count, told in rows if told}


def presence(search: Search, point: Point) -> tuple[float, ...]:
    """Tell of each language of the pool whether it is in a mix (0 or 1), or its tenths of the weight where searched."""
    sources = point.get("sources", search.pool)
    if not any(one.key == "mixture.weights" for one in search.dimensions):
        return tuple(float(code in sources) for code in search.pool)
    weights = point.get("mixture.weights") or {}
    given = {code: weights.get(code, 1.0) for code in sources}
    return tuple(10 * given.get(code, 0.0) / sum(given.values()) for code in search.pool)


def whole_fine_tunings(tried: Sequence[Tried]) -> list[Tried]:
    """List the fine-tunings that were not stopped early."""
    return [one for one in tried if one.fidelity == "fine_tune" and one.whole]


def shortlist(judge: Judge, tried: Sequence[Tried], fine_tuned: int, probes: int) -> list[Tried]:
    """List what to show of a search: whole fine-tunings from best to worst, then stopped ones, then probes.

    Probes are of mixes that were not fine-tuned, and at most `probes`; the others at most `fine_tuned` together.
    """
    tuned = [one for one in tried if one.fidelity == "fine_tune"]
    known = {one.mix for one in tuned}
    stopped = [one for one in tuned if not one.whole]
    others = [one for one in tried if one.fidelity == "probe" and one.mix not in known]
    shown = (judge.ranked(whole_fine_tunings(tried)) + judge.ranked(stopped))[:fine_tuned]
    return shown + judge.ranked(others)[:probes]


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
        own = rule == judge.search.settings.selection.languages
        choice = judge.choose(tried) if own else judge.best(tried, rule)
        if choice is not None:
            found.append(RuleChoice(rule, choice, {other: judge.value(choice, rule=other) for other in RULES}))
    return tuple(found)
