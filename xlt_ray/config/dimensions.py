"""Read the dimensions of a search's space: which keys are varied, and over which ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xlt_ray.config import keys
from xlt_ray.config.experiment import Experiment
from xlt_ray.errors import InputError

MIX = ("sources", "mixture.alpha", "mixture.weights")
FREE = (
    *("training." + name for name in ("batch_size", "learning_rate", "head_learning_rate", "weight_decay", "warmup")),
    *("training." + name for name in ("decay", "clip", "label_smoothing")),
    *("network." + name for name in ("layers", "dropout", "freeze", "pooling", "max_length", "prefix")),
)
SWITCH = "{choice: [false, true]}"  # an option may also be a mapping of parameters
FORMS = "{uniform: [0, 1]}, {loguniform: [1.0e-5, 1.0e-3]}, {integers: [1, 8]} or {choice: [16, 32]}"


@dataclass(frozen=True)
class Dimension:
    """One key that is varied. `low` and `high` bound numbers (for a subset: its size); `options` are choices."""

    key: str
    kind: Literal["uniform", "loguniform", "integers", "choice", "subset", "simplex"]
    low: float = 0.0
    high: float = 1.0
    options: tuple[Any, ...] = ()


def is_switch(key: str) -> bool:
    """Return whether a key switches a technique on and off, as `techniques.NAME` does."""
    return key.startswith("techniques.") and key.count(".") == 1


def read(key: str, form: Any, base: Experiment) -> Dimension:
    """Read the range of a key; raise InputError where the key cannot be searched or the range is none."""
    place = f"search.space.{key}"
    parts = key.split(".")
    if key not in (*MIX, *FREE) and not (parts[0] == "techniques" and len(parts) in (2, 3) and all(parts)):
        known = (*MIX, *FREE, "techniques.NAME", "techniques.NAME.PARAMETER")
        raise InputError(f"{place}: cannot be searched; these can: {', '.join(known)}")
    if is_switch(key):
        return _switch(place, key, form)
    if key == "sources":
        return _subset(place, form, base)
    if key == "mixture.weights":
        if form != "simplex":
            raise InputError(f"{place}: {form!r}; write simplex, which draws weights from the uniform Dirichlet")
        return Dimension(key, "simplex")
    if not isinstance(form, Mapping) or len(form) != 1:
        raise InputError(f"{place}: {form!r} is no range; write {FORMS}")
    ((kind, values),) = form.items()
    if kind == "choice" and isinstance(values, list | tuple) and values:
        if any(value in values[:at] for at, value in enumerate(values)):
            raise InputError(f"{place}: {form!r} names a value twice; name each once")
        return Dimension(key, "choice", options=tuple(values))
    types = (int,) if kind == "integers" else (int, float)
    numbers = isinstance(values, list | tuple) and len(values) == 2 and all(type(v) in types for v in values)
    if kind not in ("uniform", "loguniform", "integers") or not numbers:
        raise InputError(f"{place}: {form!r} is no range; write {FORMS}")
    low, high = values
    if not low < high < math.inf or low == -math.inf or (kind == "loguniform" and low <= 0):
        raise InputError(
            f"{place}: {form!r} is empty or endless; the first number is the smaller, above 0 for loguniform"
        )
    return Dimension(key, kind, low, high)


def _switch(place: str, key: str, form: Any) -> Dimension:
    options = form.get("choice") if isinstance(form, Mapping) and len(form) == 1 else None
    if not isinstance(options, list | tuple) or not options:
        raise InputError(f"{place}: {form!r} is no choice; write {SWITCH}, or parameters in the place of true")
    # false is first, so that the last is on; null and {} are what they are in `techniques`
    read = [False if one is None else True if one == {} else keys.switch(one) for one in options]
    if strange := [one for one in read if not isinstance(one, bool | Mapping)]:
        raise InputError(f"{place}: {strange[0]!r} is neither false, true nor parameters; write {SWITCH}")
    if any(value in read[:at] for at, value in enumerate(read)):
        raise InputError(f"{place}: {form!r} names a value twice; name each once")
    return Dimension(key, "choice", options=tuple(sorted(read, key=lambda one: one is not False)))


def _subset(place: str, form: Any, base: Experiment) -> Dimension:
    sizes = dict(form) if isinstance(form, Mapping) else {}
    least, most = sizes.pop("at_least", 1), sizes.pop("at_most", None)
    if sizes or not (type(most) is type(least) is int and 1 <= least <= most <= len(base.sources)):
        raise InputError(
            f"{place}: {form!r} is no range of sizes; write {{at_most: 3}} or {{at_least: 2, at_most: 4}}, with "
            f"1 <= at_least <= at_most <= {len(base.sources)}, the pool in `sources`"
        )
    return Dimension("sources", "subset", least, most)
