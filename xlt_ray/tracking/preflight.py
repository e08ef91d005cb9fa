"""Check `tracking` before anything runs: the address of MLflow, and names that MLflow will not accept."""

from __future__ import annotations

import contextlib
import posixpath
import re
import sqlite3
from collections.abc import Iterator

from xlt_ray.config.masking import masked
from xlt_ray.config.sections import TrackingConfig
from xlt_ray.tracking import tracking_uri

ALIAS = re.compile(r"(?!latest$|v\d+$)[\w-]{1,100}", re.ASCII | re.IGNORECASE)  # what MLflow takes
NAME_LIMIT, EXPERIMENT_LIMIT = 256, 500  # characters MLflow keeps


def faults(config: TrackingConfig) -> list[str]:
    """List what MLflow will never accept of a configuration, each with place, value and a remedy; [] where it is sound.

    Nothing is sent over a network, so a server that is down is no fault. With `uri: off` nothing is checked.
    """
    if config.uri == "off":
        return []
    return [*_uri(config), *_names(config)]


def alias_fault(alias: str) -> str | None:
    """Return why MLflow refuses an alias, and what to write; None where it accepts it."""
    if ALIAS.fullmatch(alias):
        return None
    return f"{alias!r}; letters, digits, _ and -, and neither latest nor a version such as v1; write champion"


def name_fault(name: str) -> str | None:
    """Return why a registered model cannot have a name, and what to write; None where it can.

    MLflow refuses / and : and what would be another path; a model with @ or quotes in its name is never found again.
    """
    if not name.strip() or name in (".", "..") or posixpath.normpath(name) != name or len(name) > NAME_LIMIT:
        return f"{name[:80]!r} cannot be the name of a model; write letters, digits, _ and -"
    if strange := re.search(r"[/:@'\"`%\\\x00-\x1f]", name):
        better = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
        return f"{name!r} cannot be the name of a model, because of {strange[0]!r}; write {better}"
    return None


def _uri(config: TrackingConfig) -> Iterator[str]:
    if wrong := tracking_uri.fault(config.uri, written=True):
        yield f"tracking.uri: {wrong}"
    elif number := _deleted(config):
        where, restore = masked(config.uri), tracking_uri.restoring(config.uri, number)
        yield f"tracking.experiment: {config.experiment!r} is deleted in {where}; {restore}, or name another"


def _deleted(config: TrackingConfig) -> str | None:
    """Return the experiment's id where a local database has it as deleted; without MLflow, which takes seconds."""
    query = "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'"
    file = tracking_uri.sqlite_file(config.uri)
    if file is None or not file.is_file() or not file.stat().st_size:
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
