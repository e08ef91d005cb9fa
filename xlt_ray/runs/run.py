"""Do one run, from a configuration to a report: train or probe on Ray, score once on test, then save and record.

Whatever is killed, the same command resumes the run: checkpoints, features and the outbox of tracking are on disk, and
`result.json`, written last, marks the run as finished.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from xlt_ray import durable, techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import dump
from xlt_ray.corpora import seen
from xlt_ray.corpora.loaders import LOADERS
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate, metrics
from xlt_ray.evaluation.features import Features
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions, save_predictions
from xlt_ray.evaluation.scores import Scores, load_scores
from xlt_ray.events import OnEvent, counting
from xlt_ray.inference import bundle
from xlt_ray.model import encoders, network
from xlt_ray.model.network import Built, Network
from xlt_ray.reports import figures, readings, report
from xlt_ray.runs import lease, stages
from xlt_ray.runs.lease import Held
from xlt_ray.runs.records import record_end, record_event, record_start
from xlt_ray.runs.stages import Planned
from xlt_ray.runs.storage import RESULT, RunFolder
from xlt_ray.tracking import courier
from xlt_ray.tracking import environment as tracking_environment
from xlt_ray.tracking.outbox import Outbox, pending
from xlt_ray.training import cluster, distributed, embedding, frozen, probe
from xlt_ray.training.setup import Setup


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, scores, and how many tracking records could not be sent yet."""

    experiment: Experiment
    folder: RunFolder
    measured: Scores | None  # None where no task was learned
    unsent: int
    repeated: bool  # the run had been finished before, and nothing was computed now

    @property
    def scores(self) -> Scores:
        """What was measured on test; raises InputError where no task was learned."""
        return scores_of(self.measured, self.folder.local)


def scores_of(measured: Scores | None, place: Path) -> Scores:
    """Return the scores of the run in a place; raise InputError where it learned no task."""
    if measured is None:
        raise InputError(
            f"{place}: an encoder that learned no task has no scores; train a run that begins from it, with "
            f"network.init={place}/bundle"
        )
    return measured


def run(
    experiment: Experiment,
    on_event: OnEvent = lambda event: None,
    parent_key: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Outcome:
    """Run an experiment, resume it, or return its result if it is finished; raise InputError where it cannot be run.

    That is found before any work. Where another process is at it, its progress is shown and its result returned; see
    `lease.held`. `parent_key` nests the tracked run below the one of that key; `tags` are tracked
    beside the run's own.
    """
    on_event({"stage": "check"})
    planned = stages.plan(experiment)
    if planned.loaded.corpus and (done := finished(experiment, planned.folder())):
        return done
    setup = planned.check(counting(on_event, "prepare"))
    return _begin(planned, setup, on_event, parent_key, tags or {})


def _begin(
    planned: Planned, setup: Setup, on_event: OnEvent, parent_key: str | None, tags: Mapping[str, str]
) -> Outcome:
    """Do the stage that a run begins from, where it is not done, then the run, once all of it was checked."""
    folder, stage = planned.folder(), planned.stage
    with lease.held(folder, on_event, lambda: finished(planned.experiment, folder)) as held:
        if held.done:
            return held.done
        if stage is not None and not stage.done:
            on_event({"stage": "check", "note": f"network.init: {stage.key} comes first"})
            below, asked = f"{folder.key}-{folder.identity()}", {"xlt.stage_of": folder.key}
            _begin(stage, stage.check(), held.on_event, below, asked)
            on_event({"stage": "check", "note": f"network.init: {stage.key} is done"})
            setup = planned.check(counting(on_event, "prepare"))  # of what it has made too
        return _run(setup, held, parent_key, tags)


def _run(setup: Setup, held: Held[Outcome], parent_key: str | None, tags: Mapping[str, str]) -> Outcome:
    """Do, or resume, the run whose folder is held by this process."""
    experiment, folder = setup.experiment, held.folder
    folder.download("outbox.jsonl", "outbox.sent")
    durable.write(folder.local / "experiment.yaml", dump(experiment))
    run_key = f"{folder.key}-{folder.identity()}"
    outbox = Outbox.open(folder.local, experiment.tracking, run_key, experiment.name, parent_key)
    record_start(outbox, setup)
    outbox.tags(tags)
    sender = courier.start(outbox)
    try:
        scores = _train_and_score(setup, folder, outbox, held.on_event)
        outbox.finish("FINISHED")
        held.on_event({"stage": "track"})
        unsent = sender.close(experiment.tracking.flush_seconds)
    except BaseException as error:
        outbox.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        sender.close(min(10.0, experiment.tracking.flush_seconds))
        held.upload()
        raise
    summary = {} if scores is None else dict(scores.summary)
    durable.write(folder.local / RESULT, json.dumps({"summary": summary, "key": folder.key}))
    held.upload()
    return Outcome(experiment, folder, scores, unsent, repeated=False)


def finished(experiment: Experiment, folder: RunFolder) -> Outcome | None:
    """Return the result of an experiment's run in its folder, None where it is not finished."""
    if not folder.finished():
        return None
    folder.download("scores.json", figures.FILE)
    scores = load_scores(folder.local) if experiment.training.labelled else None
    return Outcome(experiment, folder, scores, pending(folder.local), repeated=True)


@dataclass(frozen=True)
class Fitted:
    """A model after fine-tuning or probing, its predictions on test, and what was measured during training."""

    model: Built
    predictions: dict[str, Predictions]
    setup: Setup  # with how texts are read by the model
    history: list[dict[str, float]]  # a row an epoch
    reported: list[dict[str, float]]  # losses between the epochs
    facts: dict[str, float]  # figures of techniques
    apart: dict[str, float] = field(default_factory=dict)  # accuracy of each reading by itself, by key


def _train_and_score(setup: Setup, folder: RunFolder, outbox: Outbox, on_event: OnEvent) -> Scores | None:
    experiment, started = setup.experiment, time.monotonic()
    on_event({"stage": "start"})

    def follow(event: dict[str, Any]) -> None:
        record_event(outbox, event)
        on_event(event)

    with cluster.ray_cluster(experiment), cluster.plain_errors():
        setup = setup.read(cluster.each(experiment), counting(follow, "prepare"))
        fitted = _probe(setup, follow) if experiment.training.method == "probe" else _fine_tune(setup, folder, follow)
    for row in (*fitted.reported, *fitted.history):
        record_event(outbox, row)  # again, because events on their way to a driver that was killed are lost
    outbox.metrics({f"techniques/{name}": value for name, value in fitted.facts.items()}, step=0)
    scores = None
    if experiment.training.labelled:
        on_event({"stage": "score"})
        scores = _score(setup, fitted)
    on_event({"stage": "save"})
    files = _save(folder, fitted, scores)
    outbox.metrics({"seconds": time.monotonic() - started}, step=0)
    record_end(outbox, experiment, folder, scores, files)
    return scores


def _score(setup: Setup, fitted: Fitted) -> Scores:
    net, tokenize, _ = fitted.model
    experiment, config = setup.experiment, setup.experiment.evaluation
    seen = encoders.seen_languages(net.encoder, tokenize.tokenizer)
    roles = Roles(experiment.sources, setup.few_shot, seen, setup.supervision)
    scores = metrics.score(
        fitted.predictions, setup.corpus.labels, roles, config.resamples, experiment.seed, experiment.task
    )
    return replace(scores, temperature=net.temperature)


def _save(folder: RunFolder, fitted: Fitted, scores: Scores | None) -> dict[str, Path]:
    """Write bundle, predictions and report into the run's folder; return the files to record."""
    net, tokenize, identity = fitted.model
    setup, experiment = fitted.setup, fitted.setup.experiment
    before = techniques.bundles(setup.techniques, experiment)
    made = bundle.Bundle(
        net,
        tokenize,
        setup.corpus.labels if experiment.training.labelled else (),
        experiment,
        scores,
        run=folder.key,
        readings=setup.readings,
        supervision=setup.supervision,
        corpus=setup.corpus.fingerprint,
        lineage=bundle.lineage(before),
        seen=seen.together(setup.read_texts(), *map(seen.load, before.values())),
    )
    bundle.save(folder.local / "bundle", made, identity)
    facts, environment = corpus_facts(setup), tracking_environment.environment()
    for name, content in {"history": fitted.history, "corpus": facts, "environment": environment}.items():
        (folder.local / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    files = {}
    if scores is not None:
        files = dict(report.write(folder.local, scores, experiment, facts, fitted.history, environment))
        files["predictions.npz"] = folder.local / "predictions.npz"
        save_predictions(files["predictions.npz"], fitted.predictions)
    if (table := figures.write(folder.local, fitted.facts, alone=scores is None)) is not None:
        files[figures.FILE] = table
    if setup.readings is not None:
        files["readings.tsv"] = readings.write(folder.local, setup.readings, setup.material.texts, fitted.apart)
    return files


def _fine_tune(setup: Setup, folder: RunFolder, on_event: OnEvent) -> Fitted:
    trained = distributed.fine_tune(setup.experiment, *folder.checkpoints(), on_event)
    model = setup.build()
    network.restore_weights(model.network, trained.weights)
    model.network.temperature = trained.temperature
    model.network.eval()
    return Fitted(model, trained.predictions, setup, trained.history, trained.reported, trained.facts, trained.apart)


def _probe(setup: Setup, on_event: OnEvent) -> Fitted:
    def prepared(done: int, total: int) -> None:
        on_event({"stage": "prepare", "done": done, "total": total})

    tables, test = frozen.training_tables(setup, prepared), frozen.read_tables(setup)
    features, _ = embedding.features(setup.experiment, {**tables, **test, **frozen.texts(setup)}, on_event)
    model = setup.build()
    on_event({"stage": "fit"})
    fitted, facts, setup = fit_probe(setup, model.network, tables, features)
    scored, test = frozen.score(setup, model.network, features, fitted), setup.tables("test")
    predictions = evaluate.predictions(setup.task, scored, test, fitted.temperature, setup.readings)
    probe.install(model.network, fitted)
    model.network.eval()
    training = setup.experiment.training
    crossed = training.probe_select == "cross_validation" and len(training.probe_strengths) > 1
    kind = "cross_validated" if crossed else "dev"
    for number, strength in enumerate(fitted.dev_loss):
        found = {f"{kind}/loss": fitted.dev_loss[strength], f"{kind}/accuracy": fitted.dev_accuracy[strength]}
        on_event({"stage": "fit", "step": number, "strength": strength, **found})
    if added := frozen.refitted(setup):
        what = f"with {sum(added.values())} dev rows of the sources, at strength {fitted.strength:g}"
        on_event({"stage": "fit", "note": f"the probe was fitted once more {what}"})
    apart = evaluate.apart(setup.task, scored, test, setup.readings)
    return Fitted(model, predictions, setup, history=[], reported=[], facts=facts, apart=apart)


def fit_probe(
    setup: Setup, net: Network, tables: Mapping[str, pa.Table], features: Features
) -> tuple[probe.Fit, dict[str, float], Setup]:
    """Fit techniques and a probe to training tables.

    Returns the probe, figures of techniques, and the setup with readings weighed for the probe. `features` are of all
    rows that the probe and its techniques are fitted to, by the names that `frozen` gives to their tables.
    """
    experiment, classes = setup.experiment, len(setup.corpus.labels)
    facts = frozen.calibrate(setup, net, features)
    rows = frozen.Frozen.of(tables, features, classes, net)
    fitted = frozen.choose(rows, experiment)
    fitted = frozen.fit_temperature(rows, fitted, experiment.sources)  # while dev is held out
    fitted = frozen.refit(rows, experiment, fitted)
    setup = frozen.weigh(setup, net, rows, features, fitted)
    return fitted, facts, setup


def corpus_facts(setup: Setup) -> dict[str, Any]:
    """Return what the report says of the rows behind a result."""
    corpus, config = setup.corpus, setup.experiment.corpus
    return {
        "name": corpus.name,
        "licence": corpus.licence,
        "description": _description(config.loader),
        "labels": list(corpus.labels),
        "fingerprint": corpus.fingerprint,
        "mixture": [asdict(share) for share in setup.mixture],
        "added": {name: dict(rows) for name, rows in setup.added.items() if rows},
        "refit": frozen.refitted(setup),
        "dropped": setup.dropped,
    }


def _description(loader: str) -> str:
    # a loader's line in the catalogue, and the paragraphs of its docstring on what its rows are not good for
    paragraphs = (importlib.import_module(f"xlt_ray.corpora.loaders.{loader}").__doc__ or "").strip().split("\n\n")
    limits = [" ".join(p.split()) for p in paragraphs[1:] if p.startswith("What it is not")]
    return " ".join([LOADERS[loader][0].upper() + LOADERS[loader][1:] + ".", *limits])
