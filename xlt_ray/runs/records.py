"""Write a run's start, progress and end to its outbox, from where MLflow receives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.evaluation.scores import Scores
from xlt_ray.inference import bundle
from xlt_ray.runs.storage import RunFolder
from xlt_ray.tracking import environment
from xlt_ray.tracking.outbox import Outbox
from xlt_ray.training.setup import Setup


def record_start(outbox: Outbox, setup: Setup) -> None:
    """Record the configuration as parameters, what is trained how and on which machine as tags, and the corpus."""
    experiment = setup.experiment
    outbox.params(flat(experiment.model_dump(mode="json")))
    outbox.tags(
        {
            "xlt.selection": "oracle" if experiment.oracle else experiment.training.select,
            "xlt.method": experiment.training.method,
            "xlt.techniques": ", ".join(experiment.techniques) or "none",
        }
        | setup.rungs
    )
    if ancestors := bundle.lineage(techniques.bundles(setup.techniques, experiment)):
        outbox.tags({"xlt.lineage": ", ".join(one["run"] or one["bundle"] for one in ancestors)})
    outbox.tags({f"xlt.environment.{name}": value for name, value in environment.environment().items()})
    profile = {"labels": len(setup.corpus.labels), "train": {s.language: s.rows for s in setup.mixture}}
    where = experiment.corpus.path or experiment.corpus.loader
    outbox.dataset(setup.corpus.name, where, setup.corpus.fingerprint[:32], profile, "training")


METRICS = ("train/", "dev/", "cross_validated/", "oracle_dev/", "learning_rate")  # begin the names of what is recorded


def record_event(outbox: Outbox, event: Mapping[str, Any]) -> None:
    """Record the losses, dev scores and learning rate of an event of training as metrics of its step."""
    logged = {k: v for k, v in event.items() if k.startswith(METRICS)}
    if logged:
        outbox.metrics(logged, step=int(event["step"]))


def record_end(
    outbox: Outbox, experiment: Experiment, folder: RunFolder, scores: Scores | None, files: Mapping[str, Path]
) -> None:
    """Record the scores on test, what was written in `files`, and the bundle where the configuration names a model."""
    if scores is not None:
        outbox.metrics(_measured(scores), step=0)
    for path in (*files.values(), folder.local / "experiment.yaml"):
        outbox.artifact(path)
    if experiment.tracking.register_as:
        outbox.model(
            folder.local / "bundle",
            experiment.tracking.register_as,
            experiment.tracking.alias,
            pairs=bool(experiment.corpus.text_pair),
        )


def _measured(scores: Scores) -> dict[str, float]:
    found = {f"test/{name}": value for name, value in scores.summary.items()} | {"temperature": scores.temperature}
    for code, language in scores.languages.items():
        found |= {f"test/{name}/{code}": one.value for name, one in language.metrics.items()}
        if language.transfer_gap is not None:
            found[f"test/transfer_gap/{code}"] = language.transfer_gap
        if language.calibration_error is not None:
            found[f"test/calibration_error/{code}"] = language.calibration_error
    return found


def flat(data: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return every value of nested data by its dotted key, as MLflow's parameters are named.

    >>> flat({"mixture": {"alpha": 0.3}, "sources": ["eng_Latn"]})
    {'mixture.alpha': 0.3, 'sources': '["eng_Latn"]'}
    """
    rows: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            rows |= flat(value, f"{above}{key}.")
        else:
            rows[above + key] = value if isinstance(value, str | int | float | bool) else json.dumps(value)
    return rows
