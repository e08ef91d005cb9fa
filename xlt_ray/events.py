"""What long work reports while it runs: events, and the names of its stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

STAGES = {
    "check": "reading and checking the corpus",
    "wait": "waiting for the process that does this work",
    "start": "starting Ray",
    "machines": "waiting for machines",
    "load": "loading the encoder on the workers",
    "train": "training",
    "prepare": "preparing techniques",
    "measure": "measuring the encoder",
    "embed": "computing features",
    "fit": "fitting the probe",
    "screen": "trying mixes on frozen features",
    "tune": "fine-tuning mixes",
    "retrain": "retraining",
    "evaluate": "measuring on test",
    "score": "computing intervals",
    "compare": "comparing languages",
    "save": "writing bundle and report",
    "track": "sending to MLflow",
    "register": "finding or registering the version",
    "gate": "comparing with the present version on the same test rows",
    "export": "making the fast artefact",
    "agree": "checking the artefact against the original",
    "upload": "sending the artefact to MLflow",
    "ask": "fetching the model back, loading it and asking it once",
    "alias": "moving the alias",
}

LONG = ("screen", "tune", "retrain", "agree")  # stages whose time left a log tells as well

OnProgress = Callable[[int, int], None]  # (done, total) of whatever is counted

Event = dict[str, Any]

OnEvent = Callable[[Event], None]


def counting(on_event: OnEvent, stage: str) -> OnProgress:
    """Return a callback that reports (done, total) of a stage as an event."""
    return lambda done, total: on_event({"stage": stage, "done": done, "total": total})
