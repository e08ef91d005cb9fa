"""Try thousands of mixes as logistic regressions on frozen features, the cheap fidelity of a search.

Every row of the pool is embedded once, in parallel, and cached by content (`embedding.features`); a trial is then a few
fits of tens of milliseconds, or a second where the mix is large.

Techniques of the base that change features, as `centre` does, change them here, the same for every mix. What else
techniques do, and what the space varies of them, is left to fine-tuning.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.events import OnEvent
from xlt_ray.search.proposals import Proposal, Proposals
from xlt_ray.search.selection import FIDELITIES, Fidelity, Judge, Tried
from xlt_ray.search.space import Point, Search, mix_of
from xlt_ray.training import cluster, embedding, frozen, probe
from xlt_ray.training.frozen import Frozen, fit, predict
from xlt_ray.training.setup import Setup

FOLDS = 4  # of row ids, where languages left out have rows that the mix trains on in translation


def embed(
    experiment: Experiment,
    corpus: Corpus,
    on_event: OnEvent,
    texts: Mapping[str, pa.Table] | None = None,
    also: Mapping[str, pa.Table] | None = None,
) -> Frozen:
    """Compute the features of all rows of a corpus on the whole cluster, or read them from the cache.

    `texts`, by language and without labels, are what techniques fit their change of features on. `also` are more texts
    to embed at the same time, for the cache alone.
    """
    resources = experiment.resources
    workers = max(1, cluster.slots(1, resources.cpus_per_worker, resources.gpus_per_worker))
    experiment = experiment.model_copy(update={"resources": resources.model_copy(update={"workers": workers})})
    tables = {f"{split}/{code}": table for split, code, table in corpus.tables()}
    setup = Setup.of(experiment, corpus, texts)
    # no language is named as trained on, so all are moved, as for any probe
    material = replace(setup.material, trained=())
    moving = tuple(one for one in setup.techniques if one.texts(material)) if texts else ()
    setup = replace(setup, techniques=moving, material=material)
    wanted = frozen.texts(setup)
    known, _ = embedding.features(experiment, {**(also or {}), **wanted, **tables}, on_event)
    net = None
    if moving:
        net = setup.build().network
        frozen.calibrate(setup, net, known)
    return Frozen.of(tables, known, len(corpus.labels), net)


def predict_left_out(
    frozen: Frozen, experiment: Experiment, fitted: probe.Fit, pool: Sequence[str]
) -> dict[str, Predictions]:
    """Predict train rows of the languages that a mix leaves out, each by a fit that did not see it in any language.

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
                continue  # too few rows to learn from
            rest = fit(kept, experiment, (fitted.strength,), experiment.sources, start=fitted)
        for code in others:
            here = part[code] == number
            found[code][here] = rest.predict(frozen.features[f"train/{code}"][here])
    known = {code: found[code] >= 0 for code in others}
    return {
        code: Predictions(frozen.labels[name][known[code]], found[code][known[code]], frozen.ids[name][known[code]])
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

    The latter only where the search ranks by held-out languages, and not if `dev_alone`: a fine-tuning is measured on
    some hundred dev rows of a language, and a probe is cheap enough for all labelled ones.
    """
    began = time.monotonic()
    experiment = judge.search.experiment(mix_of(point))
    fitted = fit(frozen, experiment, judge.search.settings.screening.strengths, experiment.sources)
    predictions = predict(frozen, fitted, "dev")
    if not dev_alone:
        predictions = _with_train(judge.search, frozen, experiment, fitted, predictions)
    accuracy = {code: one.score for code, one in predictions.items()}
    tried = Tried(point, "probe", accuracy=accuracy)
    if judge.languages(tried):  # a baseline that uses the whole pool leaves no language out
        low, high = judge.interval(predictions, tried)
        tried = replace(tried, low=low, high=high)
    return replace(tried, cost=time.monotonic() - began)


def left_out(search: Search, frozen: Frozen, code: str) -> dict[Fidelity, float]:
    """Return the accuracy in a language of the pool of a probe trained on the rest of it.

    By fidelity, on the rows on which each is measured. Empty where the language has no dev rows; without the fidelity
    `probe` where the search screens nothing.
    """
    experiment = search.experiment({"sources": [other for other in search.pool if other != code]})
    fitted = fit(frozen, experiment, search.settings.screening.strengths, experiment.sources)
    predictions = predict(frozen, fitted, "dev", [code])
    found: dict[Fidelity, float] = {"fine_tune": predictions[code].score} if predictions else {}
    if found and search.settings.screening.trials:
        found["probe"] = _with_train(search, frozen, experiment, fitted, predictions)[code].score
    return found


def _with_train(
    search: Search, frozen: Frozen, experiment: Experiment, fitted: probe.Fit, dev: Mapping[str, Predictions]
) -> dict[str, Predictions]:
    if search.settings.selection.languages != "held_out_sources":
        return dict(dev)
    others = predict_left_out(frozen, experiment, fitted, search.pool)
    return {**dev, **{code: _joined(dev[code], others[code]) for code in others if code in dev}}


class Screening:
    """Mixes tried as Ray tasks, which share one copy of the features and are retried where a worker dies."""

    def __init__(self, judge: Judge, frozen: Frozen) -> None:
        self.cpus = judge.search.base.resources.cpus_per_worker
        self.slots = cluster.slots(1, self.cpus, 0)
        self.frozen = ray.put(frozen)
        self.task: Any = ray.remote(num_cpus=self.cpus, max_retries=3)(try_mix)
        self.use_judge(judge)

    def use_judge(self, judge: Judge) -> None:
        """Score mixes by another judge in the tasks that start from now on."""
        self.judge, self._shared = judge, ray.put(judge)

    def start(self, point: Point, dev_alone: bool = False) -> Any:
        """Start the task of a point and return it; its result is a `Tried`."""
        return self.task.remote(self._shared, self.frozen, point, dev_alone)

    def map(self, points: Sequence[Point], dev_alone: bool = False) -> list[Tried]:
        """Try points in parallel and return the results in their order."""
        return ray.get([self.start(point, dev_alone) for point in points])

    def measure_difficulty(self) -> Judge:
        """Measure how easy each language of the pool is for a probe trained on the rest; return a judge that has it."""
        pool = self.judge.search.pool
        if len(pool) > 1:
            score: Any = ray.remote(num_cpus=self.cpus, max_retries=3)(left_out)
            found = ray.get([score.remote(self.judge.search, self.frozen, code) for code in pool])
            difficulty = {}
            for fidelity in FIDELITIES:  # each on the rows on which it is measured
                known = {code: one[fidelity] for code, one in zip(pool, found, strict=True) if fidelity in one}
                mean = float(np.mean(list(known.values()))) if known else 0.0
                difficulty[fidelity] = {code: value - mean for code, value in known.items()}
            self.use_judge(replace(self.judge, difficulty=difficulty))
        return self.judge

    def run(self, proposals: Proposals, record: Callable[[Tried], Tried], more: Callable[[], bool]) -> None:
        """Try proposals until there are none or `more` returns False, and pass each result through `record`."""
        waiting: dict[Any, Proposal] = {}
        feed = iter(proposals)
        while True:
            # one running and one waiting for every slot
            while len(waiting) < 2 * self.slots and more() and (proposal := next(feed, None)) is not None:
                waiting[self.start(proposal.point)] = proposal
            if not waiting:
                return
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            proposals.learn(waiting.pop(ready), record(ray.get(ready)))
