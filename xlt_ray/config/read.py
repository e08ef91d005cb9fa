"""Read a configuration from YAML and overrides: an Experiment, or one InputError that lists every fault."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from xlt_ray import sniff
from xlt_ray.config import keys, plain_yaml
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.masking import public
from xlt_ray.errors import InputError

BECAME_TECHNIQUES = {"training.language_id": "weight"}  # option -> the parameter that has its value


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read an Experiment from a YAML file and overrides such as `mixture.alpha=0.5`; raise InputError like `build`."""
    return build(read(path, overrides), place=str(path))


def read(path: str | Path, overrides: Iterable[str] = (), section: type[BaseModel] = Experiment) -> dict[str, Any]:
    """Read a YAML file of a section into plain data and apply overrides; raise InputError where it is not one."""
    file = Path(path)
    if pointer := sniff.lfs_pointer(file):
        raise InputError(pointer)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; ready ones are under jobs/configs/") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); give a YAML file") from None
    try:
        data = plain_yaml.loads(text, section)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: holds {type(data).__name__}, not keys with values; start from jobs/configs/quickstart.yaml"
        )
    return plain(data, overrides, str(path), section)


def plain(data: Any, overrides: Iterable[str], place: str, section: type[BaseModel] = Experiment) -> dict[str, Any]:
    """Copy plain data and apply overrides such as `mixture.alpha=0.5`; raise InputError where it is no mapping."""
    try:
        merged: Any = json.loads(json.dumps(data, default=str))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{place}: not plain data ({error}); write names with text, numbers, lists or names below them"
        ) from None
    if not isinstance(merged, dict):
        raise InputError(f"{place}: holds {type(data).__name__}, not keys with values; it needs `sources` at least")
    for override in overrides:
        if override.startswith("techniques.") and "techniques" in merged:
            try:
                merged["techniques"] = keys.named(merged["techniques"])  # so that they can be reached by name
            except ValueError as error:
                raise InputError(f"{place}:\n  techniques: {error}") from None
        _apply(merged, override, section)
    return merged


def build(data: Mapping[str, Any], overrides: Iterable[str] = (), place: str = "configuration") -> Experiment:
    """Return the Experiment of plain data and overrides; raise InputError listing every fault at once."""
    merged = plain(data, overrides, place)
    _move_techniques(merged)
    try:
        return Experiment.model_validate(merged)
    except ValidationError as error:
        faults = "\n".join("  " + keys.explain(fault, Experiment) for fault in error.errors())
        raise InputError(f"{place}:\n{faults}") from None


def _move_techniques(data: dict[str, Any]) -> None:
    """Move options of older files that have become techniques of the same name."""
    for key, parameter in BECAME_TECHNIQUES.items():
        section, name = key.split(".")
        if isinstance(data.get(section), dict) and (value := data[section].pop(name, None)):
            with contextlib.suppress(ValueError):  # wrong `techniques` are reported when they are validated
                data["techniques"] = {**keys.named(data.get("techniques", {})), name: {parameter: value}}


def _apply(data: dict[str, Any], override: str, section: type[BaseModel]) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: an override is written key=value, such as mixture.alpha=0.5")
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key}: {parent} holds {inner!r}, so nothing can stand below it")
        data = inner
    try:
        data[leaf] = plain_yaml.value(value, section, [*parents, leaf])
    except ValueError as error:
        raise InputError(f"{override!r}: the value is {error}") from None


def dump(experiment: Experiment) -> str:
    """Return an experiment as YAML that `load` reads back to an equal one, except secrets in URIs, which are masked."""
    return plain_yaml.dumps(public(experiment.model_dump(mode="json")))
