"""Propose the mixes that a search tries: given ones, all of a small space, or those that an Optuna sampler draws."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from xlt_ray.errors import InputError
from xlt_ray.search.selection import Judge, Tried
from xlt_ray.search.space import Point, Search, mix_of, point_key

STARTUP = 50  # mixes drawn at random before TPE proposes: a few for each language of an ordinary pool
CANDIDATES = 24  # that TPE weighs for each mix


@dataclass(frozen=True)
class Proposal:
    """A mix to try and, where the study's sampler drew it, its trial there."""

    point: Point
    trial: optuna.trial.Trial | None


class Proposals:
    """Mixes to try, each once: `starts`, then all of a small space or else what a sampler draws.

    `done` are mixes tried before; the sampler receives them, but is seeded by their number as well, so a resumed search
    proposes other mixes than one that was not interrupted.
    """

    def __init__(self, judge: Judge, starts: Sequence[Point], done: Sequence[Tried], trials: int) -> None:
        self.judge, self.left = judge, trials - len(done)
        search = judge.search
        self.space, self.base = distributions(search, mix_only=True), search.encode({})
        self.seen = {point_key(mix_of(one.point)) for one in done}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions: Any = ["maximize"] * len(search.settings.selection.objectives)
        self.study = optuna.create_study(directions=directions, sampler=sampler(search, len(done)))
        self.random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=search.base.seed + len(done)))
        for one in done:
            self._add(one)
        self.whole = whole_space(search)
        known, starts = {point_key(point) for point in self.whole}, [_completed(search, point) for point in starts]
        # a baseline outside a small space must not take the place of a mix inside it
        first = [point for point in starts if not known or point_key(point) in known]
        self.given = (*first, *self.whole, *starts)

    def __iter__(self) -> Iterator[Proposal]:
        for point in self.given:
            if self._claim(point):
                yield Proposal(mix_of(point), None)
        repeats = 0
        while self.left > 0 and not self.whole and repeats < 10 * STARTUP:
            trial = self.study.ask(self.space)
            point = self._decoded(trial)
            if self._claim(point):
                yield Proposal(point, trial)
            else:
                # a sampler that prefers a region of subsets proposes the same few again and again
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                point = self._decoded(self.random.ask(self.space))
                if not self._claim(point):
                    repeats += 1
                    continue
                yield Proposal(point, None)
            repeats = 0

    def _decoded(self, trial: optuna.trial.Trial) -> Point:
        return mix_of(self.judge.search.decode({**self.base, **trial.params}))

    def learn(self, proposal: Proposal, tried: Tried) -> None:
        """Report a result to the sampler."""
        values = self._values(tried)
        if proposal.trial is None:
            self._add(tried)
        elif values is not None:
            self.study.tell(proposal.trial, values)

    def _claim(self, point: Point) -> bool:
        """Count a mix as tried and return True, or return False where it is known or no trial is left."""
        key = point_key(mix_of(point))
        if key in self.seen or self.left <= 0:
            return False
        self.seen.add(key)
        self.left -= 1
        return True

    def _values(self, tried: Tried) -> list[float] | None:
        objectives = self.judge.search.settings.selection.objectives
        values = [self.judge.value(tried, objective) for objective in objectives]
        return None if None in values else values  # type: ignore[return-value]

    def _add(self, tried: Tried) -> None:
        values, search = self._values(tried), self.judge.search
        if values is None or not inside(search, tried.point):
            return
        parameters = {name: value for name, value in search.encode(tried.point).items() if name in self.space}
        self.study.add_trial(optuna.trial.create_trial(params=parameters, distributions=self.space, values=values))


def inside(search: Search, point: Point) -> bool:
    """Return whether a mix has as many languages as the space allows; a baseline such as the whole pool may not."""
    return len(search.sources(point)) in search.sizes


def candidates(search: Search, tried: Sequence[Tried]) -> list[Tried]:
    """List the mixes that may be chosen: baselines outside the space are tried as well."""
    return [one for one in tried if inside(search, one.point)]


def _completed(search: Search, point: Point) -> Point:
    # a point of the space names all that is varied, so that a probe and the fine-tuning of its mix have one name
    whole = mix_of(search.decode(search.encode(point)))
    return whole if all(whole.get(key) == value for key, value in point.items()) else point


def distributions(search: Search, mix_only: bool = False) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return Optuna's distributions of the parameters that `Search.decode` reads."""
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    unit = optuna.distributions.FloatDistribution(0.0, 1.0)
    for one in search.mix_dimensions if mix_only else search.dimensions:
        if one.kind == "subset":
            found["use"] = optuna.distributions.IntDistribution(int(one.low), int(one.high))
            found |= {f"use:{code}": unit for code in search.pool}
        elif one.kind == "simplex":
            found |= {f"weight:{code}": unit for code in search.pool}
        elif one.kind == "choice":
            found[one.key] = optuna.distributions.CategoricalDistribution(range(len(one.options)))
        elif one.kind == "integers":
            found[one.key] = optuna.distributions.IntDistribution(int(one.low), int(one.high))
        else:
            found[one.key] = optuna.distributions.FloatDistribution(one.low, one.high, log=one.kind == "loguniform")
    return found


def sampler(search: Search, results: int, startup: int = STARTUP) -> optuna.samplers.BaseSampler:
    """Return the sampler of a search, seeded by its seed and the number of results so far.

    TPE (Bergstra et al. 2011), multivariate (Falkner et al. 2018), with the constant liar for mixes that are running.
    """
    seed = int(np.random.SeedSequence([search.base.seed, results]).generate_state(1)[0])
    if search.settings.searcher == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup, n_ei_candidates=CANDIDATES
            )
    return optuna.samplers.RandomSampler(seed=seed)


def whole_space(search: Search) -> list[dict[str, Any]]:
    """List all mixes of a search where they are no more than its probes; else nothing."""
    mixes = Search(search.base, search.settings, search.mix_dimensions)
    try:
        points = mixes.grid()
    except InputError:
        return []
    return points if len(points) <= search.settings.screening.trials else []


def starts(judge: Judge, screened: Sequence[Tried]) -> list[Point]:
    """Choose the mixes to fine-tune first: the probes' choice and the best of other sets, half of all trials.

    Of mixes that differ in weights alone the best is enough.
    """
    search = judge.search
    if search.settings.searcher != "tpe":
        return []
    chosen: dict[tuple[str, ...], Point] = {}
    found = candidates(search, screened)
    first = judge.choose(found)
    for one in (*((first,) if first else ()), *judge.ranked(found)):
        chosen.setdefault(tuple(search.sources(one.point)), mix_of(one.point))
    return list(chosen.values())[: max(1, search.settings.fine_tuning.trials // 2)]
