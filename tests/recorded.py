"""A run's outbox with something of every kind in it, and what a tracking server must know of it afterwards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from xlt_ray.config.sections import TrackingConfig
from xlt_ray.tracking.outbox import Outbox

KEY = "trial-0123456789"


def settings(uri: str, **changes: Any) -> TrackingConfig:
    return TrackingConfig.model_validate({"uri": uri, "flush_seconds": 60} | changes)


def begin(folder: Path, uri: str, key: str = KEY, parent_key: str | None = None, **config: Any) -> Outbox:
    return Outbox.open(folder, settings(uri, **config), key, "trial", parent_key)


def record_all(box: Outbox, steps: range = range(3)) -> None:
    """Record something of every kind but a model."""
    box.params({"mixture.alpha": 0.3, "sources": "eng_Latn"})
    for step in steps:
        box.metrics({"train/loss": 1 / (step + 1), "odd/nan": math.nan, "odd/infinite": -math.inf}, step)
    box.metrics({"test/accuracy/swh_Latn": 0.76}, 0)
    box.tags({"xlt.method": "probe"})
    box.dataset("voice_commands", "https://example.org/corpus", "f00d", {"rows": {"eng_Latn": 3}}, "training")
    (box.folder / "report.html").write_text("<p>fine</p>")
    box.artifact(box.folder / "report.html")
    box.finish()


def store(uri: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(uri)


def runs(uri: str, experiment: str = "xlt") -> list[Any]:
    client = store(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def steps_of(uri: str, run: Any, key: str) -> list[int]:
    return [metric.step for metric in store(uri).get_metric_history(run.info.run_id, key)]


def assert_once(uri: str, steps: range = range(3), experiment: str = "xlt") -> Any:
    """Hold a server to what `record_all` recorded: one run, every step once, every input once."""
    (run,) = runs(uri, experiment)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"mixture.alpha": "0.3", "sources": "eng_Latn"}
    assert run.data.tags["xlt.method"] == "probe"
    assert math.isnan(run.data.metrics["odd/nan"])
    assert run.data.metrics["odd/infinite"] < -1e308
    for key in ("train/loss", "odd/nan", "odd/infinite"):
        assert sorted(steps_of(uri, run, key)) == list(steps)
    assert steps_of(uri, run, "test/accuracy/swh_Latn") == [0]
    (dataset,) = store(uri).get_run(run.info.run_id).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("voice_commands", "f00d")
    assert dataset.tags[0].value == "training"
    assert [file.path for file in store(uri).list_artifacts(run.info.run_id)] == ["report.html"]
    return run
