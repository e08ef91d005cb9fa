"""What a search may vary and how: the `search` section of a configuration, read, checked and turned into experiments.

A search file is an experiment whose `sources` are the pool, with a section `search` below it. A point of the space is
plain data, dotted key -> value, such as {"sources": ["eng_Latn", "swh_Latn"], "mixture.alpha": 0.4}. Mixes are
dimensions of their own: a subset of the pool, and weights drawn from the simplex.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from xlt_ray import config, config_keys
from xlt_ray.config import Experiment, InputError
from xlt_ray.search_config import SearchConfig

Point = Mapping[str, Any]

MIX = ("sources", "mixture.alpha", "mixture.weights")
FREE = (
    *("training." + name for name in ("batch_size", "learning_rate", "head_learning_rate", "weight_decay", "warmup")),
    *("training." + name for name in ("decay", "clip", "label_smoothing")),
    *("network." + name for name in ("dropout", "freeze", "pooling", "max_length", "prefix")),
)
FORMS = "{uniform: [0, 1]}, {loguniform: [1.0e-5, 1.0e-3]}, {integers: [1, 8]} or {choice: [16, 32]}"


@dataclass(frozen=True)
class Dimension:
    """One key that is varied. `low` and `high` bound numbers (for a subset: its size); `options` are choices."""

    key: str
    kind: Literal["uniform", "loguniform", "integers", "choice", "subset", "simplex"]
    low: float = 0.0
    high: float = 1.0
    options: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Search:
    """A checked search: the experiment that every trial varies, the settings, and the dimensions."""

    base: Experiment
    settings: SearchConfig
    dimensions: tuple[Dimension, ...]

    @property
    def pool(self) -> tuple[str, ...]:
        """The languages that mixes are made of."""
        return self.base.sources

    @property
    def oracle(self) -> bool:
        """Whether target labels rank the mixes, which makes every score of the search an upper bound."""
        return self.settings.selection.languages == "targets"

    @property
    def mix_dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions that frozen features can tell something about."""
        return tuple(one for one in self.dimensions if one.key in MIX)

    def key(self) -> str:
        """Name the search by what decides its result, so that the same command finds it again."""
        settings = self.settings.model_dump(mode="json")
        settings["fine_tuning"].pop("concurrent")
        text = json.dumps([self.base.key(), settings], sort_keys=True)
        return f"{self.base.name}-search-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def experiment(self, point: Point, seed: int | None = None, name: str | None = None) -> Experiment:
        """Make the experiment of a point; raise InputError where it is not a sound one."""
        data = self.base.model_dump(mode="json")
        for key, value in point.items():
            *parents, leaf = key.split(".")
            section = data
            for parent in parents:
                section = section[parent]
            section[leaf] = value
        weights = data["mixture"]["weights"]
        data["mixture"]["weights"] = {code: weights[code] for code in weights if code in data["sources"]}
        data["seed"] = self.base.seed if seed is None else seed
        data["name"] = name or self.base.name
        return config.build(data, place="search.space")

    def decode(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a searcher's parameters, as `optuna` names them, into a point.

        A subset of size m is the m languages of greatest `use:LANGUAGE`, so uniform parameters give every subset of a
        size the same chance. Weights are -log(u) normalised over the mix: the uniform Dirichlet distribution.
        """
        point: dict[str, Any] = {}
        sources = list(self.pool)
        for one in self.dimensions:
            if one.kind == "subset":
                ranked = sorted(self.pool, key=lambda code: (-parameters[f"use:{code}"], code))
                sources = sorted(ranked[: int(parameters["use"])])
                point[one.key] = sources
        for one in self.dimensions:
            if one.kind == "simplex":
                drawn = {code: -math.log(min(max(parameters[f"weight:{code}"], 1e-9), 1 - 1e-9)) for code in sources}
                total = sum(drawn.values())
                point[one.key] = {code: round(value / total, 4) for code, value in drawn.items()}
            elif one.kind == "choice":
                point[one.key] = one.options[parameters[one.key]]
            elif one.kind != "subset":
                point[one.key] = parameters[one.key]
        return _plainest(point)

    def point(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Give the point that a trial of Tune was asked for: of a grid itself, else from a searcher's parameters."""
        return parameters["point"] if "point" in parameters else self.decode(parameters)

    def encode(self, point: Point) -> dict[str, Any]:
        """Give parameters that `decode` turns into a point; keys it does not name get the base's value."""
        given = {one.key: self._usual(one.key) for one in self.dimensions} | dict(point)
        parameters: dict[str, Any] = {}
        sources = list(point.get("sources", self.pool))
        for one in self.dimensions:
            if one.kind == "subset":
                parameters["use"] = int(min(max(len(sources), one.low), one.high))
                parameters |= {f"use:{code}": 0.9 if code in sources else 0.1 for code in self.pool}
            elif one.kind == "simplex":
                weights = point.get(one.key) or dict.fromkeys(sources, 1.0)
                total = sum(weights.get(code, 1.0) for code in sources)
                shares = {code: weights.get(code, 1.0) / total * len(sources) for code in sources}
                parameters |= {f"weight:{c}": math.exp(-shares[c]) if c in shares else 0.5 for c in self.pool}
            elif one.kind == "choice":
                parameters[one.key] = one.options.index(given[one.key]) if given[one.key] in one.options else 0
            else:
                parameters[one.key] = _within(one, given[one.key])
        return parameters

    def _usual(self, key: str) -> Any:
        value: Any = self.base.model_dump(mode="json")
        for part in key.split("."):
            value = value[part]
        return value

    def grid(self) -> list[dict[str, Any]]:
        """List every point of a space of subsets, choices and whole numbers; raise InputError for a continuous one."""
        axes: list[list[tuple[str, Any]]] = []
        for one in self.dimensions:
            if one.kind == "subset":
                sizes = range(int(one.low), int(one.high) + 1)
                values: Iterable[Any] = (sorted(s) for m in sizes for s in itertools.combinations(self.pool, m))
            elif one.kind == "choice":
                values = one.options
            elif one.kind == "integers":
                values = range(int(one.low), int(one.high) + 1)
            else:
                raise InputError(
                    f"search.space.{one.key}: {one.kind} has no end of values, and search.searcher is grid; "
                    "write {choice: [...]}, or search by tpe or random"
                )
            axes.append([(one.key, value) for value in values])
        points = [_plainest(dict(values)) for values in itertools.product(*axes)]
        return list({point_key(point): point for point in points}.values())


def _plainest(point: dict[str, Any]) -> dict[str, Any]:
    # alpha and weights mean nothing to a mix of one language, which would else be trained again under other names
    if len(point.get("sources", ())) != 1:
        return point
    return {key: value for key, value in point.items() if key not in MIX or key == "sources"}


def mix_of(point: Point) -> dict[str, Any]:
    """Keep of a point what frozen features can tell something about: sources, weights and alpha."""
    return {key: value for key, value in point.items() if key in MIX}


def point_key(point: Point) -> str:
    """Name a point by its content, the same whatever the order of its keys or languages."""
    plain = {key: sorted(value) if key == "sources" else value for key, value in point.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]


def describe(point: Point) -> str:
    """Write a point for a reader.

    >>> describe({"sources": ["swh_Latn", "eng_Latn"], "mixture.weights": {"eng_Latn": 0.25, "swh_Latn": 0.75}})
    'eng_Latn .25 + swh_Latn .75'
    >>> describe({"sources": ["eng_Latn"], "mixture.alpha": 0.3, "training.learning_rate": 5e-5})
    'eng_Latn, alpha 0.3, learning_rate 5e-05'
    """
    weights = point.get("mixture.weights") or {}
    codes = sorted(point.get("sources") or weights)
    shown = [f"{code} {weights[code]:.2f}".replace(" 0.", " .") if code in weights else code for code in codes]
    rest = {key: value for key, value in point.items() if key not in ("sources", "mixture.weights")}
    settings = [f"{key.split('.')[-1]} {_number(value)}" for key, value in rest.items()]
    return ", ".join([*([" + ".join(shown)] if shown else []), *settings]) or "as configured"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Search:
    """Read a search file and apply overrides such as `search.searcher=random`; raise InputError with all faults."""
    return build(config.read(path, overrides), str(path))


def build(data: Mapping[str, Any], place: str = "configuration") -> Search:
    """Check plain data of a search; raise InputError naming place, value and way out."""
    if not isinstance(data.get("search"), Mapping):
        raise InputError(
            f"{place}: search: missing; a search file is an experiment with a section `search`, such as "
            "jobs/configs/search_sib200.yaml; without one, `xlt train` runs it"
        )
    base = config.build({key: value for key, value in data.items() if key != "search"}, place=place)
    try:
        settings = SearchConfig.model_validate(data["search"])
    except ValidationError as error:
        faults = "\n".join("  search." + config_keys.explain(fault, SearchConfig) for fault in error.errors())
        raise InputError(f"{place}:\n{faults}") from None
    dimensions = tuple(_dimension(key, form, base) for key, form in settings.space.items())
    search = Search(base, settings, dimensions)
    _check(search)
    return search


def _dimension(key: str, form: Any, base: Experiment) -> Dimension:
    place = f"search.space.{key}"
    if key not in (*MIX, *FREE):
        raise InputError(f"{place}: cannot be searched; these can: {', '.join((*MIX, *FREE))}")
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


def _subset(place: str, form: Any, base: Experiment) -> Dimension:
    sizes = dict(form) if isinstance(form, Mapping) else {}
    least, most = sizes.pop("at_least", 1), sizes.pop("at_most", None)
    if sizes or not (type(most) is type(least) is int and 1 <= least <= most <= len(base.sources)):
        raise InputError(
            f"{place}: {form!r} is no range of sizes; write {{at_most: 3}} or {{at_least: 2, at_most: 4}}, with "
            f"1 <= at_least <= at_most <= {len(base.sources)}, the pool in `sources`"
        )
    return Dimension("sources", "subset", least, most)


def _check(search: Search) -> None:
    training, settings = search.base.training, search.settings
    if training.select != "last":
        raise InputError("training.select: a search keeps the last epoch of every trial; set it to last")
    subset = next((one for one in search.dimensions if one.kind == "subset"), None)
    if settings.selection.languages == "held_out_sources" and (subset is None or subset.high >= len(search.pool)):
        raise InputError(
            f"search.selection.languages: held_out_sources needs mixes that leave a language out; set "
            f"search.space.sources.at_most below {len(search.pool)}, or rank by sources"
        )
    if len(set(settings.selection.objectives)) < len(settings.selection.objectives):
        raise InputError("search.selection.objectives: one is given twice; name each once")
    if not (settings.screening.trials and search.mix_dimensions) and not settings.fine_tuning.trials:
        raise InputError("search: no trial of any kind is asked for; raise screening.trials or fine_tuning.trials")
    if settings.searcher == "grid":
        search.grid()
    for one in search.dimensions:
        within = () if one.kind == "integers" else (one.low + 0.3 * (one.high - one.low),)  # rarely a whole number
        values = one.options if one.kind == "choice" else (one.low, one.high, *within)
        for value in values if one.kind not in ("subset", "simplex") else ():
            search.experiment({one.key: value})


def _within(one: Dimension, value: Any) -> Any:
    if value is None:
        value = math.sqrt(one.low * one.high) if one.kind == "loguniform" else (one.low + one.high) / 2
    value = min(max(value, one.low), one.high)
    return int(value) if one.kind == "integers" else value
