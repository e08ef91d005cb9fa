"""Read what a search may vary, the `search` section of a configuration, check it, and turn points into experiments.

A search file is an experiment whose `sources` are the pool, with a section `search` below it. A point of the space is
plain data, dotted key -> value, such as {"sources": ["eng_Latn", "swh_Latn"], "mixture.alpha": 0.4}. Mixes are
dimensions of their own: a subset of the pool, and weights drawn from the simplex. So are techniques: `techniques.NAME`
is false for off, true for on as the base has it (else with its defaults), or a mapping of parameters for on with those;
`techniques.NAME.PARAMETER` sets one where it is on. That such techniques exist is checked by `prepare.check`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xlt_ray import config, techniques
from xlt_ray.config import dimensions
from xlt_ray.config.dimensions import MIX, SWITCH, Dimension, is_switch
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.keys import explain
from xlt_ray.config.search import SearchConfig
from xlt_ray.errors import InputError
from xlt_ray.runs import storage

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Search:
    """A checked search: the experiment that every trial varies, the settings, and the dimensions."""

    base: Experiment
    settings: SearchConfig
    dimensions: tuple[Dimension, ...]
    fingerprint: str = ""  # of the corpus, once that is read
    metric: str = "accuracy"  # the main one of the task, once labels are known

    @property
    def pool(self) -> tuple[str, ...]:
        """The languages that mixes are made of."""
        return self.base.sources

    @property
    def sizes(self) -> range:
        """The numbers of languages that a mix may have."""
        subset = next((one for one in self.dimensions if one.kind == "subset"), None)
        return range(int(subset.low), int(subset.high) + 1) if subset else range(len(self.pool), len(self.pool) + 1)

    def sources(self, point: Point) -> Sequence[str]:
        """Return the languages of a point, which is the whole pool where it names none."""
        return point.get("sources", self.pool)

    def varies(self, key: str) -> bool:
        """Return whether a key is a dimension of the space."""
        return any(one.key == key for one in self.dimensions)

    @property
    def oracle(self) -> bool:
        """Whether target labels rank the mixes, which makes every score of the search an upper bound."""
        return self.settings.selection.languages == "targets"

    @property
    def mix_dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions whose effect frozen features show."""
        return tuple(one for one in self.dimensions if one.key in MIX)

    def key(self) -> str:
        """Return the name of the search, made of what decides its result, so that the same command finds it again."""
        return self._key

    @cached_property
    def _key(self) -> str:  # files that techniques read may change while it runs
        settings = self.settings.model_dump(mode="json")
        settings["fine_tuning"].pop("concurrent")
        read = sorted({techniques.digest(self._techniques(point)) for _, point in self.extremes()})
        text = json.dumps([storage.key(self.base, self.fingerprint + "".join(read)), settings], sort_keys=True)
        return f"{self.base.name}-search-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def experiment(self, point: Point, seed: int | None = None, name: str | None = None) -> Experiment:
        """Return the experiment of a point; raise InputError where it is not a valid one."""
        data = self.base.model_dump(mode="json")
        for key, value in point.items():
            section, _, leaf = key.rpartition(".")
            if not key.startswith("techniques."):
                (data[section] if section else data)[leaf] = value
        data["techniques"] = self._techniques(point)
        weights = data["mixture"]["weights"]
        data["mixture"]["weights"] = {code: weights[code] for code in weights if code in data["sources"]}
        data["seed"] = self.base.seed if seed is None else seed
        data["name"] = name or self.base.name
        return config.build(data, place="search.space")

    def _techniques(self, point: Point) -> dict[str, dict[str, Any]]:
        """Return the techniques of a point: those of the base in their order, then those that only the space names."""
        keys = [key for key in (*(one.key for one in self.dimensions), *point) if key.startswith("techniques.")]
        found = {}
        for name in dict.fromkeys([*self.base.techniques, *(key.split(".")[1] for key in keys)]):
            if not self._on(point, name):
                continue
            option, above = point.get(f"techniques.{name}"), f"techniques.{name}."
            parameters = option if isinstance(option, Mapping) else self.base.techniques.get(name, {})
            single = {key.removeprefix(above): value for key, value in point.items() if key.startswith(above)}
            found[name] = {**parameters, **single}
        return found

    def _on(self, point: Point, name: str) -> bool:
        return point.get(f"techniques.{name}", name in self.base.techniques) is not False

    def _simplified(self, point: dict[str, Any]) -> dict[str, Any]:
        """Drop what has no effect, so that equal experiments have equal points and none is trained twice.

        That is alpha and weights of a mix of one language, and parameters of techniques that are off.
        """
        single = len(point.get("sources", ())) == 1
        idle = {key for key in point if key.count(".") == 2 and not self._on(point, key.split(".")[1])}
        idle |= {key for key in MIX if single and key != "sources"}
        return {key: value for key, value in point.items() if key not in idle}

    def extremes(self) -> Iterator[tuple[str, Point]]:
        """Yield (key, point) for every option, or bound and a number between, of each dimension; the rest as usual.

        A point that sets a parameter of a technique switches it on.
        """
        switches = {one.key: one.options for one in self.dimensions if is_switch(one.key)}
        for one in self.dimensions:
            if one.kind in ("subset", "simplex"):
                continue
            within = () if one.kind == "integers" else (one.low + 0.3 * (one.high - one.low),)  # rarely a whole number
            above = one.key.rpartition(".")[0]
            on = {above: switches[above][-1]} if above in switches else {}
            for value in one.options if one.kind == "choice" else (one.low, one.high, *within):
                yield one.key, {**on, one.key: value}

    def decode(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the point of a trial's parameters: those of `proposals.distributions`, or of a grid the point itself.

        A subset of size m is the m languages of greatest `use:LANGUAGE`, so uniform parameters give every subset of a
        size the same chance. Weights are -log(u) normalised over the mix: the uniform Dirichlet distribution.
        """
        if "point" in parameters:
            return dict(parameters["point"])
        point: dict[str, Any] = {}
        if self.varies("sources"):
            ranked = sorted(self.pool, key=lambda code: (-parameters[f"use:{code}"], code))
            point["sources"] = sorted(ranked[: int(parameters["use"])])
        for one in self.dimensions:
            if one.kind == "simplex":
                uniform = {code: min(max(parameters[f"weight:{code}"], 1e-9), 1 - 1e-9) for code in self.sources(point)}
                drawn = {code: -math.log(value) for code, value in uniform.items()}
                total = sum(drawn.values())
                point[one.key] = {code: round(value / total, 4) for code, value in drawn.items()}
            elif one.kind == "choice":
                point[one.key] = one.options[parameters[one.key]]
            elif one.kind != "subset":
                point[one.key] = parameters[one.key]
        return self._simplified(point)

    def encode(self, point: Point) -> dict[str, Any]:
        """Return parameters that `decode` turns into a point; a key that it does not name gets the base's value."""
        values = {one.key: self._base_value(one) for one in self.dimensions} | dict(point)
        parameters: dict[str, Any] = {}
        sources = list(self.sources(point))
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
                parameters[one.key] = one.options.index(values[one.key]) if values[one.key] in one.options else 0
            else:
                parameters[one.key] = _within(one, values[one.key])
        return parameters

    def _base_value(self, one: Dimension) -> Any:
        value: Any = self.base.model_dump(mode="json")
        for part in one.key.split("."):
            value = (value or {}).get(part)  # None where a technique is absent, or leaves a parameter at its default
        if not is_switch(one.key):
            return value
        return False if value is None else value if value in one.options else True

    def grid(self) -> list[dict[str, Any]]:
        """List every point of a space of subsets, choices and whole numbers; raise InputError for a continuous one."""
        axes: list[list[tuple[str, Any]]] = []
        for one in self.dimensions:
            if one.kind == "subset":
                values: Iterable[Any] = (sorted(s) for m in self.sizes for s in itertools.combinations(self.pool, m))
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
        points = [self._simplified(dict(values)) for values in itertools.product(*axes)]
        return list({point_key(point): point for point in points}.values())


def mix_of(point: Point) -> dict[str, Any]:
    """Return the part of a point whose effect frozen features show: sources, weights and alpha."""
    return {key: value for key, value in point.items() if key in MIX}


def point_key(point: Point) -> str:
    """Return a point's name, made of its content whatever the order of its keys or languages."""
    plain = {key: sorted(value) if key == "sources" else value for key, value in point.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]


def describe(point: Point) -> str:
    """Return a point in words.

    >>> describe({"sources": ["swh_Latn", "eng_Latn"], "mixture.weights": {"eng_Latn": 0.25, "swh_Latn": 0.75}})
    'eng_Latn .25 + swh_Latn .75'
    >>> describe({"sources": ["eng_Latn"], "mixture.alpha": 0.3, "training.learning_rate": 5e-5})
    'eng_Latn, alpha 0.3, learning_rate 5e-05'
    >>> describe({"techniques.one": False, "techniques.two": {"remove": 2}, "techniques.three.rate": 0.5})
    'no one, two(remove=2), three.rate 0.5'
    """
    weights = point.get("mixture.weights") or {}
    codes = sorted(point.get("sources") or weights)
    shown = [f"{code} {weights[code]:.2f}".replace(" 0.", " .") if code in weights else code for code in codes]
    rest = {key: value for key, value in point.items() if key not in ("sources", "mixture.weights")}
    settings = [_setting(key, value) for key, value in rest.items()]
    return ", ".join([*([" + ".join(shown)] if shown else []), *settings]) or "as configured"


def _setting(key: str, value: Any) -> str:
    if not key.startswith("techniques."):
        return f"{key.split('.')[-1]} {_number(value)}"
    name = key.removeprefix("techniques.")  # whole, as parameters of two techniques may have one name
    if isinstance(value, Mapping) and is_switch(key):
        return f"{name}({', '.join(f'{inner}={_number(one)}' for inner, one in value.items())})"
    return f"{name} {_number(value)}" if not is_switch(key) else name if value else f"no {name}"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Search:
    """Read a search file and apply overrides such as `search.searcher=random`; raise InputError with all faults."""
    return build(config.read(path, overrides), str(path))


def build(data: Mapping[str, Any], place: str = "configuration") -> Search:
    """Check plain data of a search; raise InputError naming place, value and remedy."""
    if not isinstance(data.get("search"), Mapping):
        raise InputError(
            f"{place}: search: missing; a search file is an experiment with a section `search`, such as "
            "jobs/configs/search_sib200.yaml; without one, `xlt train` runs it"
        )
    base = config.build({key: value for key, value in data.items() if key != "search"}, place=place)
    try:
        settings = SearchConfig.model_validate(data["search"])
    except ValidationError as error:
        faults = "\n".join("  search." + explain(fault, SearchConfig) for fault in error.errors())
        raise InputError(f"{place}:\n{faults}") from None
    search = Search(base, settings, tuple(dimensions.read(key, form, base) for key, form in settings.space.items()))
    _check(search)
    return search


def _check(search: Search) -> None:
    training, settings = search.base.training, search.settings
    if not training.labelled:
        raise InputError(
            f"training.method: {training.method} learns no task, so there are no scores to choose by; search the run "
            "that begins from it (network.init)"
        )
    if training.select != "last":
        raise InputError("training.select: a search keeps the last epoch of every trial; set it to last")
    if settings.selection.languages == "held_out_sources" and max(search.sizes) >= len(search.pool):
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
    _check_techniques(search)
    for _, point in search.extremes():
        search.experiment(point)


def _check_techniques(search: Search) -> None:
    switches = {one.key: one.options for one in search.dimensions if is_switch(one.key)}
    for one in search.dimensions:
        above, _, leaf = one.key.rpartition(".")
        if one.key.count(".") < 2:
            continue
        name = above.removeprefix("techniques.")
        if not any(option is not False for option in switches.get(above, (name in search.base.techniques,))):
            raise InputError(
                f"search.space.{one.key}: {name} is on in no mix; add it to `techniques`, or search.space.{above}: "
                f"{SWITCH}"
            )
        if twice := next((o for o in switches.get(above, ()) if isinstance(o, Mapping) and leaf in o), None):
            raise InputError(
                f"search.space.{one.key}: an option of {above}, {dict(twice)}, sets {leaf} as well; leave it out of one"
            )


def _within(one: Dimension, value: Any) -> Any:
    if value is None:
        value = math.sqrt(one.low * one.high) if one.kind == "loguniform" else (one.low + one.high) / 2
    value = min(max(value, one.low), one.high)
    return int(value) if one.kind == "integers" else value
