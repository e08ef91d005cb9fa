"""The cheap fidelity of a search: thousands of mixes tried as logistic regressions on frozen features.

Every row of the pool is embedded once, in parallel, and kept by content (`train.features`); a trial is then a few fits
of tens of milliseconds, or a second where the mix is large.
"""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
import ray

from xlt_ray import cluster, probe, train
from xlt_ray.config import Experiment, InputError
from xlt_ray.corpus import Corpus
from xlt_ray.metrics import Predictions
from xlt_ray.selection import FIDELITIES, Judge, Tried
from xlt_ray.space import Point, Search, mix_of, point_key
from xlt_ray.train import OnEvent

STARTUP = 50  # mixes drawn at random before TPE takes over: a few for each language of an ordinary pool
CANDIDATES = 24  # that TPE weighs for each mix
FOLDS = 4  # of row ids, where languages left out have rows that the mix trains on in translation


@dataclass(frozen=True)
class Frozen:
    """Features and labels of train and dev, by `split/language`: arrays (rows, width), (rows,) and (rows,)."""

    features: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    ids: Mapping[str, np.ndarray]
    classes: int

    def part(self, split: str, languages: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Take a split of some languages as (features, labels) by language, leaving out those that lack it."""
        there = [code for code in languages if f"{split}/{code}" in self.labels]
        return {c: self.features[f"{split}/{c}"] for c in there}, {c: self.labels[f"{split}/{c}"] for c in there}


def embed(experiment: Experiment, corpus: Corpus, on_event: OnEvent) -> Frozen:
    """Compute the features of everything in a corpus, from the cache where they are known, on the whole cluster."""
    asked = experiment.resources
    workers = max(1, cluster.slots(1, asked.cpus_per_worker, asked.gpus_per_worker))
    experiment = experiment.model_copy(update={"resources": asked.model_copy(update={"workers": workers})})
    tables = {f"{split}/{code}": table for split, code, table in corpus.tables()}
    found, _ = train.features(experiment, tables, on_event)
    labels = {name: table["label"].to_numpy().astype(np.int64) for name, table in tables.items()}
    ids = {name: np.asarray(table["id"].to_pylist(), dtype=np.str_) for name, table in tables.items()}
    return Frozen(found, labels, ids, len(corpus.labels))


def fit(frozen: Frozen, experiment: Experiment, strengths: tuple[float, ...]) -> probe.Fit:
    """Fit a probe on an experiment's mix, without touching rows of other languages."""
    sources, mixture = experiment.sources, experiment.mixture
    return probe.fit(*frozen.part("train", sources), *frozen.part("dev", sources), frozen.classes, mixture, strengths)


def predict(frozen: Frozen, fitted: probe.Fit, split: str, languages: Sequence[str]) -> dict[str, Predictions]:
    """Predict a split of some languages with a probe."""
    features, labels = frozen.part(split, languages)
    return {
        code: Predictions(labels[code], (features[code] @ fitted.weight.T + fitted.bias).argmax(1), frozen.ids[name])
        for code in labels
        if (name := f"{split}/{code}")
    }


def predict_left_out(
    frozen: Frozen, experiment: Experiment, fitted: probe.Fit, pool: Sequence[str]
) -> dict[str, Predictions]:
    """Predict train rows of the languages that a mix leaves out, none by a fit that saw the row in another language.

    Rows that share an id are translations of each other. Ids that the mix trains on are dealt into `FOLDS` parts, and a
    part is predicted by a fit on the others (cross-fitting); all other rows by `fitted`, the fit on the whole mix.
    """
    others = [code for code in pool if code not in experiment.sources and f"train/{code}" in frozen.labels]
    taught = np.unique(np.concatenate([frozen.ids[f"train/{code}"] for code in experiment.sources]))
    deal = np.vectorize(lambda name: zlib.crc32(name.encode()) % FOLDS, otypes=[np.int64])
    dealt = {code: deal(frozen.ids[f"train/{code}"]) for code in (*experiment.sources, *others)}
    part = {code: np.where(np.isin(frozen.ids[f"train/{code}"], taught), dealt[code], -1) for code in others}
    found = {code: np.full(len(part[code]), -1) for code in others}
    for number in np.unique(np.concatenate(list(part.values()) or [np.empty(0, int)])).tolist():
        rest = fitted
        if number >= 0:
            kept = _without(frozen, {code: dealt[code] == number for code in experiment.sources})
            if len(np.unique(np.concatenate([kept.labels[f"train/{code}"] for code in experiment.sources]))) < 2:
                continue  # too few rows to teach anything
            rest = fit(kept, experiment, (fitted.strength,))
        for code in others:
            here = part[code] == number
            rows = frozen.features[f"train/{code}"][here]
            found[code][here] = (rows @ rest.weight.T + rest.bias).argmax(1)
    told = {code: found[code] >= 0 for code in others}
    return {
        code: Predictions(frozen.labels[name][told[code]], found[code][told[code]], frozen.ids[name][told[code]])
        for code in others
        if (name := f"train/{code}")
    }


def _without(frozen: Frozen, rows: Mapping[str, np.ndarray]) -> Frozen:
    features, labels, ids = dict(frozen.features), dict(frozen.labels), dict(frozen.ids)
    for code, gone in rows.items():
        for table in (features, labels, ids):
            table[f"train/{code}"] = table[f"train/{code}"][~gone]
    return replace(frozen, features=features, labels=labels, ids=ids)


def _joined(dev: Predictions, train: Predictions) -> Predictions:
    # a row number may name one row of dev and another of train
    ids = [np.char.add(f"{split}/", one.ids) for split, one in (("dev", dev), ("train", train))]
    return Predictions(
        np.concatenate([dev.gold, train.gold]), np.concatenate([dev.predicted, train.predicted]), np.concatenate(ids)
    )


def try_mix(judge: Judge, frozen: Frozen, point: Point, dev_alone: bool = False) -> Tried:
    """Fit a mix and measure it on every dev split there is, and on train rows of the languages it leaves out.

    The latter where the search ranks by them, unless `dev_alone`: a fine-tuning is measured on some hundred dev rows
    of a language, and a probe can afford all that are labelled.
    """
    began = time.monotonic()
    search = judge.search
    experiment = search.experiment(mix_of(point))
    fitted = fit(frozen, experiment, search.settings.screening.strengths)
    codes = [name.removeprefix("dev/") for name in frozen.labels if name.startswith("dev/")]
    predictions = predict(frozen, fitted, "dev", codes)
    if not dev_alone and search.settings.selection.languages == "held_out_sources":
        left_out = predict_left_out(frozen, experiment, fitted, search.pool)
        predictions |= {code: _joined(predictions[code], left_out[code]) for code in left_out}
    accuracy = {code: float((one.gold == one.predicted).mean()) for code, one in predictions.items()}
    draft = Tried(point, "probe", 0, True, accuracy, 0.0, 1.0, 0.0, 0.0)
    there = bool(judge.languages(draft))  # a baseline that uses the whole pool leaves no language out
    low, high = judge.interval(predictions, draft) if there else (0.0, 1.0)
    return replace(draft, low=low, high=high, cost=time.monotonic() - began)


class Screening:
    """Mixes tried as tasks on Ray, which share one copy of the features and are tried again where a worker dies."""

    def __init__(self, judge: Judge, frozen: Frozen) -> None:
        asked = judge.search.base.resources
        self.slots = cluster.slots(1, asked.cpus_per_worker, 0)
        self.frozen = ray.put(frozen)
        self.task: Any = ray.remote(num_cpus=asked.cpus_per_worker, max_retries=3)(try_mix)
        self.trust(judge)

    def trust(self, judge: Judge) -> None:
        """Judge by this from now on."""
        self.judge, self._shared = judge, ray.put(judge)

    def start(self, point: Point, dev_alone: bool = False) -> Any:
        """Begin to try a point; gives the task, whose result is a `Tried`."""
        return self.task.remote(self._shared, self.frozen, point, dev_alone)

    def map(self, points: Sequence[Point], dev_alone: bool = False) -> list[Tried]:
        """Try points, in parallel, and give the results in their order."""
        return ray.get([self.start(point, dev_alone) for point in points])

    def measure_difficulty(self) -> Judge:
        """Learn how easy each language of the pool is for a probe trained on the rest, and judge by it from now on."""
        pool = self.judge.search.pool
        if len(pool) > 1:
            rest = [{"sources": [other for other in pool if other != code]} for code in pool]
            wanted = FIDELITIES if self.judge.search.settings.screening.trials else ("fine_tune",)
            difficulty = {}
            for fidelity in wanted:  # each on the rows on which it is measured
                found = self.map(rest, dev_alone=fidelity == "fine_tune")
                known = {c: one.accuracy[c] for c, one in zip(pool, found, strict=True) if c in one.accuracy}
                mean = float(np.mean(list(known.values()))) if known else 0.0
                difficulty[fidelity] = {code: value - mean for code, value in known.items()}
            self.trust(Judge(self.judge.search, difficulty))
        return self.judge

    def run(self, proposals: Proposals, record: Callable[[Tried], Tried], more: Callable[[], bool]) -> None:
        """Try what is proposed until nothing more is or `more` says no; `record` is told of each result."""
        waiting: dict[Any, Proposal] = {}
        feed = iter(proposals)
        while True:
            # one at work and one at hand for every slot
            while len(waiting) < 2 * self.slots and more() and (proposal := next(feed, None)) is not None:
                waiting[self.start(proposal.point)] = proposal
            if not waiting:
                return
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            proposals.tell(waiting.pop(ready), record(ray.get(ready)))


@dataclass(frozen=True)
class Proposal:
    """A mix to try and, where a sampler drew it, its trial in the study."""

    point: Point
    trial: optuna.trial.Trial | None


class Proposals:
    """Where the next mix comes from: given ones first, then all of a small space, or a sampler that learns.

    `done` are mixes tried by an earlier session; the sampler is told of them, so its state is what it was.
    """

    def __init__(self, judge: Judge, starts: Sequence[Point], done: Sequence[Tried], trials: int) -> None:
        self.judge, self.left = judge, trials - len(done)
        search = judge.search
        self.space, self.usual = distributions(search, mix_only=True), search.encode({})
        self.seen = {point_key(mix_of(one.point)) for one in done}
        self.study = study(search, len(done))
        self.blind = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=search.base.seed + len(done)))
        self.values = {one.key: one for one in done}
        for one in done:
            self._add(one)
        self.whole = whole_space(search)
        known, starts = {point_key(point) for point in self.whole}, [_completed(search, point) for point in starts]
        # a baseline outside a small space must not take the place of a mix inside it
        first = [point for point in starts if not known or point_key(point) in known]
        self.given = (*first, *self.whole, *starts)

    def __iter__(self) -> Iterator[Proposal]:
        for point in self.given:
            if self._fresh(point):
                yield Proposal(mix_of(point), None)
        repeats = 0
        while self.left > 0 and not self.whole and repeats < 10 * STARTUP:
            asked = self.study.ask(self.space)
            trial: optuna.trial.Trial | None = asked
            point = self._decoded(asked)
            if not self._fresh(point):
                # a sampler that likes a region of subsets alone names the same few again and again
                self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
                trial, point = None, self._decoded(self.blind.ask(self.space))
                if not self._fresh(point):
                    repeats += 1
                    continue
            repeats = 0
            yield Proposal(point, trial)

    def _decoded(self, trial: optuna.trial.Trial) -> Point:
        return mix_of(self.judge.search.decode({**self.usual, **trial.params}))

    def tell(self, proposal: Proposal, tried: Tried) -> None:
        """Let the sampler learn from a result."""
        values = self._values(tried)
        if proposal.trial is None:
            self._add(tried)
        elif values is not None:
            self.study.tell(proposal.trial, values)

    def _fresh(self, point: Point) -> bool:
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
    """Tell whether a mix has as many languages as the space allows, which baselines such as the whole pool may not."""
    every = len(search.pool)
    low, high = next(((one.low, one.high) for one in search.dimensions if one.kind == "subset"), (every, every))
    return low <= len(point.get("sources", search.pool)) <= high


def _completed(search: Search, point: Point) -> Point:
    # a point of the space names all that is varied, so that a probe and the fine-tuning of its mix have one name
    whole = mix_of(search.decode(search.encode(point)))
    return whole if all(whole.get(key) == value for key, value in point.items()) else point


def distributions(search: Search, mix_only: bool = False) -> dict[str, optuna.distributions.BaseDistribution]:
    """Name the parameters that `Search.decode` reads, as Optuna's distributions."""
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


def sampler(search: Search, told: int, startup: int = STARTUP) -> optuna.samplers.BaseSampler:
    """Make the sampler that a search asks for; its numbers depend on how many results it has been told of.

    TPE (Bergstra et al. 2011), multivariate (Falkner et al. 2018), with the constant liar for mixes under way.
    """
    seed = int(np.random.SeedSequence([search.base.seed, told]).generate_state(1)[0])
    if search.settings.searcher == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup, n_ei_candidates=CANDIDATES
            )
    return optuna.samplers.RandomSampler(seed=seed)


def study(search: Search, told: int) -> optuna.Study:
    """Make an empty study in the directions of a search's objectives."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: Any = ["maximize"] * len(search.settings.selection.objectives)
    return optuna.create_study(directions=directions, sampler=sampler(search, told))


def whole_space(search: Search) -> list[dict[str, Any]]:
    """List all mixes of a search where they are no more than its probes; else nothing."""
    mixes = Search(search.base, search.settings, search.mix_dimensions)
    try:
        points = mixes.grid()
    except InputError:
        return []
    return points if len(points) <= search.settings.screening.trials else []
