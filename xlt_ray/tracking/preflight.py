"""What can be known of `tracking` before anything runs: where MLflow is, and the names that it will not take."""

from __future__ import annotations

import contextlib
import posixpath
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from xlt_ray.config.experiment import TrackingConfig
from xlt_ray.config.masking import masked
from xlt_ray.tracking import tracking_uri

ALIAS = re.compile(r"(?!latest$|v\d+$)[\w-]{1,100}", re.ASCII | re.IGNORECASE)  # what MLflow takes
NAME_LIMIT, EXPERIMENT_LIMIT = 256, 500  # characters MLflow keeps


def faults(config: TrackingConfig) -> list[str]:
    """List what MLflow will never accept of a configuration, each with place, value and a remedy; [] where it is sound.

    No network is asked, so a server that is down is no fault. With `uri: off` nothing is looked at.
    """
    if config.uri == "off":
        return []
    return [*_uri(config), *_names(config)]


def alias_fault(alias: str) -> str | None:
    """Say why an alias cannot be; None where it can."""
    if ALIAS.fullmatch(alias):
        return None
    return f"{alias!r}; letters, digits, _ and -, and neither latest nor a version such as v1; write champion"


def name_fault(name: str) -> str | None:
    """Say why a registered model cannot be called so; None where it can.

    MLflow refuses / and : and what would be another path; @ and quotes could never be asked for again.
    """
    if not name.strip() or name in (".", "..") or posixpath.normpath(name) != name or len(name) > NAME_LIMIT:
        return f"{name[:80]!r} cannot be the name of a model; write letters, digits, _ and -"
    if strange := re.search(r"[/:@'\"`%\\\x00-\x1f]", name):
        better = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
        return f"{name!r} cannot be the name of a model, because of {strange[0]!r}; write {better}"
    return None


def _uri(config: TrackingConfig) -> Iterator[str]:
    if wrong := tracking_uri.fault(config.uri) or tracking_uri.unwritable(config.uri):
        yield f"tracking.uri: {wrong}"
    elif config.uri.startswith("sqlite") and (number := _deleted(config)):
        where, restore = masked(config.uri), tracking_uri.restoring(config.uri, number)
        yield f"tracking.experiment: {config.experiment!r} is deleted in {where}; {restore}, or name another"


def _deleted(config: TrackingConfig) -> str | None:
    """Give the id of the experiment where a local database holds it as deleted; without MLflow, which takes seconds."""
    file = Path(tracking_uri.absolute(config.uri).partition(":///")[2].partition("?")[0])
    query = "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'"
    if not file.is_file() or not file.stat().st_size:
        return None
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file, timeout=1)) as database:
        row = database.execute(query, (config.experiment,)).fetchone()
        return str(row[0]) if row else None
    return None


def _names(config: TrackingConfig) -> Iterator[str]:
    experiment = config.experiment
    if not experiment.strip() or len(experiment) > EXPERIMENT_LIMIT:
        yield f"tracking.experiment: {experiment[:80]!r}: empty or over {EXPERIMENT_LIMIT} characters; write xlt"
    if config.uri.startswith("databricks") and not experiment.startswith("/"):
        yield f"tracking.experiment: {experiment!r}: Databricks wants a path; write /Shared/{experiment}"
    if config.register_as is not None and (wrong := name_fault(config.register_as)):
        yield f"tracking.register_as: {wrong}"
    if config.alias is not None and (wrong := alias_fault(config.alias)):
        yield f"tracking.alias: {wrong}"
    if config.alias and config.register_as is None:
        yield f"tracking.alias: {config.alias!r} needs a registered model; set tracking.register_as"
