"""Describe the keys of a configuration, explain what is wrong with one, and read the ways to write `techniques`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

SWITCHES = {"on": True, "yes": True, "off": False, "no": False}


def explain(fault: Any, section: type[BaseModel]) -> str:
    """Explain in a line what pydantic found wrong with a key of a section, and what was probably meant."""
    path = [str(part) for part in fault["loc"]]
    place = ".".join(path) or "experiment"
    if fault["type"] == "extra_forbidden":
        if place == "search":
            return "search: this file describes a search, which `xlt tune` runs; take the section out to train one mix"
        keys = [key for key, _, _ in describe(section)]
        near = [key for key in keys if key.split(".")[-1] == path[-1]] or difflib.get_close_matches(place, keys, 1, 0.6)
        meant = f", did you mean {' or '.join(near[:2])}?"
        return f"{place}: unknown key" + (meant if near else "; `xlt catalogue` lists the keys")
    if fault["type"] == "missing":
        return f"{place}: missing; give it a value"
    message = fault["msg"].removeprefix("Value error, ")
    shown = "" if fault["type"] == "value_error" else f" (got {fault['input']!r})"
    if fault["type"] == "string_type" and isinstance(fault["input"], bool | int | float):
        shown += "; write it in quotes"
    return f"{place}: {message}{shown}"


def switch(value: Any) -> Any:
    """Return true or false for a word that switches a technique on or off, also one of YAML 1.1; else the value itself.

    >>> switch("off"), switch("yes"), switch({"rate": 0.3})
    (False, True, {'rate': 0.3})
    """
    return SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


def named(techniques: Any) -> Any:
    """Read `techniques`, a list of names and of names with parameters, as name -> parameters, in the same order.

    A technique that is null or false is left out, and one that is true has its default parameters.

    >>> named(["one", {"another": {"rate": 0.3}}])
    {'one': {}, 'another': {'rate': 0.3}}
    """
    if isinstance(techniques, list | tuple):
        pairs = [pair for one in techniques for pair in (one.items() if isinstance(one, Mapping) else [(one, True)])]
    elif isinstance(techniques, Mapping):
        pairs = list(techniques.items())
    else:
        pairs = [(techniques, True)] if techniques else []
    names = [str(name) for name, _ in pairs]
    if twice := repeated(names):
        raise ValueError(f"{', '.join(twice)} given twice; list each technique once")
    switched = {str(name): switch(value) for name, value in pairs}
    return {
        name: {} if value is True else value
        for name, value in switched.items()
        if value is not None and value is not False
    }


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that stand more than once, sorted."""
    return sorted({name for name in names if names.count(name) > 1})


def describe(section: type[BaseModel], above: str = "") -> list[tuple[str, Any, str]]:
    """List every key of a section as (dotted key, default, meaning), in the order of the file."""
    rows: list[tuple[str, Any, str]] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows.append((above + name, "", (field.annotation.__doc__ or "").strip().split("\n")[0]))
            rows += describe(field.annotation, f"{above}{name}.")
        else:
            default = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
            rows.append((above + name, default, field.description or ""))
    return rows
