"""The Python API: train, search, evaluate and ask models in a script or a notebook, after `import xlt_ray`.

`train`, `tune`, `evaluate` and `compare` work on the files of the commands of these names: a run begun with the one can
be resumed with the other.
Errors are those of `xlt_ray.errors`: InputError for what is refused before any work, with place, value and remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from xlt_ray import config as configuration
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import plain
from xlt_ray.config.sections import Section
from xlt_ray.errors import InputError
from xlt_ray.evaluation.paired import chain, comparison
from xlt_ray.evaluation.scores import Scores
from xlt_ray.events import OnEvent
from xlt_ray.inference import artefact, bundle
from xlt_ray.inference.model import Model
from xlt_ray.model.encoders import without_bars
from xlt_ray.registry import fetch, versions
from xlt_ray.runs import measure, run
from xlt_ray.search import search as searching
from xlt_ray.search import space
from xlt_ray.search.findings import Findings
from xlt_ray.search.selection import CHOSEN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Config = str | Path | Mapping[str, Any] | Experiment
PLACE = "configuration"  # what errors call a mapping
SECTIONS = {
    name
    for name, one in Experiment.model_fields.items()
    if isinstance(one.annotation, type) and issubclass(one.annotation, Section)
}


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its folder, what was measured, and how many tracking records are not sent (see `xlt sync`).

    One that learned no task (`training.method: adapt`) has no scores, report or model, and its `bundle` is an encoder.
    """

    folder: Path
    experiment: Experiment = field(repr=False)
    measured: Scores | None
    unsent: int = 0

    @property
    def scores(self) -> Scores:
        """What was measured on test; raises InputError where no task was learned."""
        return run.scores_of(self.measured, self.folder)

    @property
    def report(self) -> Path:
        """The run's page, with its table and plots."""
        return self.folder / "report.html"

    @property
    def bundle(self) -> Path:
        """What another run can begin from, as its `network.init`."""
        return self.folder / "bundle"

    @cached_property
    def model(self) -> Model:
        """The model that the run made."""
        return load(self.folder)


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A finished search: its folder, all it found, and how many tracking records are not sent (see `xlt sync`)."""

    folder: Path
    findings: Findings = field(repr=False)
    unsent: int = 0

    @property
    def report(self) -> Path:
        """The search's page: the ranked mixes, the plots and what to beware of."""
        return self.folder / "search.html"

    @property
    def chosen(self) -> Experiment:
        """The experiment that the search chose."""
        return self.findings.search.experiment(self.findings.chosen.point)

    @cached_property
    def mixes(self) -> pd.DataFrame:
        """Every mix tried, a row each, the columns those of search.tsv: fractions from 0 to 1, measured on dev."""
        return pd.read_csv(self.folder / "search.tsv", sep="\t")

    @cached_property
    def model(self) -> Model:
        """The chosen mix, retrained; of several seeds the first. Raises InputError where nothing was retrained."""
        found = next((one for one in self.findings.retrained if one.name == CHOSEN), None)
        if found is None:
            raise InputError(f"{self.folder}: the search retrained nothing; train {self.folder / 'chosen.yaml'}")
        return load(self.folder / found.folders[0])


def load(model: str | Path, tracking_uri: str | None = None, device: str = "cpu") -> Model:
    """Load the model of a run's folder, of a bundle's, or a registered one: models:/NAME@ALIAS, models:/NAME/VERSION.

    `tracking_uri` is where models are registered, by default what `mlflow.set_tracking_uri` or MLFLOW_TRACKING_URI say,
    else the database xlt.db here. `device` is what torch calls it, such as "cuda". Every file is held against its
    checksum. Raises InputError for what is no model, RegistryError where MLflow fails.
    """
    spec = str(_path(model, "model"))
    if not spec.startswith("models:") and (fetch.bundle_in(Path(spec)) / artefact.FILE).is_file():
        raise InputError(f"{model}: an artefact, which `xlt serve` answers with; load the run that it was made from")
    with versions.undisturbed() as own:
        found = fetch.fetch(spec, tracking_uri or own, fetch.Form(device="cuda"))  # the bundle, as it was saved
    with without_bars():
        one = bundle.load(found.folder)
    try:
        one.network.to(device)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch's, for what is no device and what is not there
        why = str(error).split("\n", 1)[0]
        raise InputError(
            f"device: {device!r} cannot be used ({why}); write cpu, or cuda where torch has a GPU"
        ) from None
    return Model(found.model, one)


def train(config: Config, overrides: Mapping[str, Any] | None = None, progress: bool | OnEvent = True) -> Run:
    """Train and measure a model as `xlt train` does, resume it where it was interrupted, or return the finished run.

    `config` is a YAML file, the same as a mapping, or an Experiment; `overrides` change it, as {"mixture.alpha": 0.5}.
    `progress` shows bars, or lines where there is no terminal; a function receives the events instead. Raises
    InputError before any work for a configuration or data that cannot give a sound result, TrainingError where training
    fails.
    """
    experiment = _experiment(config, overrides)
    with _events(progress) as on_event:
        outcome = run.run(experiment, on_event)
        if outcome.repeated:
            outcome.folder.download(
                "bundle", "report.html", "predictions.npz", "figures.tsv"
            )  # what `Run` offers, of a remote run
            at = outcome.folder.shown
            on_event({"stage": "check", "note": f"{at}: finished before; `xlt promote {at}` registers it elsewhere"})
    return Run(outcome.folder.local, experiment, outcome.measured, outcome.unsent)


def tune(config: Config, overrides: Mapping[str, Any] | None = None, progress: bool | OnEvent = True) -> SearchResult:
    """Search the mix of sources as `xlt tune` does, and retrain the choice; parameters and errors as for `train`.

    `config` is an experiment with a section `search`.
    """
    changes = _overrides(overrides)
    if isinstance(config, str | Path):
        search = space.load(config, changes)
    else:
        search = space.build(plain(_plain(config), changes, PLACE), PLACE)
    with _events(progress) as on_event:
        found = searching.run(search, on_event)
    return SearchResult(found.folder.local, found.findings, found.unsent)


def evaluate(
    model: str | Path | Run | Model,
    config: Config | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool | OnEvent = True,
) -> Scores:
    """Measure a model on the test split of its own corpus, or of the one in `config`, language by language.

    `model` is a run, a model, or what `load` takes; the other parameters are as for `train`. Measured are the targets
    of `config` and the model's own sources; those of `config` are not used. The corpus must have the model's labels;
    InputError names those that differ.
    """
    if not isinstance(model, Model):
        model = model.model if isinstance(model, Run) else load(model)
    experiment = _experiment(model.bundle.experiment if config is None else config, overrides)
    with _events(progress) as on_event:
        return measure.measure(model.bundle, experiment, on_event)


def compare(first: Run | str | Path, second: Run | str | Path, *later: Run | str | Path) -> pd.DataFrame:
    """Test whether one finished run is better than another on the test rows of both, as `xlt compare` does.

    Return a group of languages a row: `languages` and `rows`, how many were compared, which are those that both runs
    answered; `difference` in the mean of the main metric, first less second, with `low` and `high`, its 95% interval by
    a paired bootstrap over rows; `p_value`; `first_supervision` and `second_supervision`, the highest rung of the
    supervision ladder in each run, None for sources. Where these differ, so does more than the models.

    Of three and more runs, each is compared with the next and the first with the last, and a difference is the later
    less the earlier: `Chain.to_frame` tells the rows, by group or language and step, such as ("all", "1 to 2").
    """
    folders = [Path(one.folder if isinstance(one, Run) else _path(one, "run")) for one in (first, second, *later)]
    if later:
        return chain.compare(folders).to_frame()
    found = comparison.compare_runs(*folders)
    columns = ("languages", "rows", "difference", "low", "high", "p_value")
    rows = {name: [*(getattr(one, key) for key in columns), *one.supervision] for name, one in found.items()}
    named = [*columns, "first_supervision", "second_supervision"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=named).rename_axis("group")


def plot(scores: Scores | Run | Model) -> Figure:
    """Draw the accuracy of every language with its 95% interval, sources apart from targets; a matplotlib figure."""
    from xlt_ray.reports import plots

    found = scores if isinstance(scores, Scores) else getattr(scores, "scores", None)
    if not isinstance(found, Scores):
        raise InputError(f"scores: {type(scores).__name__} holds none; give a run, or what `evaluate` returns")
    return plots.bars(found)


def _experiment(config: Config, overrides: Mapping[str, Any] | None) -> Experiment:
    if isinstance(config, str | Path):
        return configuration.load(config, _overrides(overrides))
    return configuration.build(_plain(config), _overrides(overrides), PLACE)


def _plain(config: Mapping[str, Any] | Experiment) -> Mapping[str, Any]:
    return config.model_dump(mode="json") if isinstance(config, Experiment) else config


def _overrides(overrides: Mapping[str, Any] | None) -> list[str]:
    if not isinstance(overrides, Mapping | None):
        raise InputError(f'overrides: {overrides!r}; write keys with their values, as {{"mixture.alpha": 0.5}}')
    found: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        within = isinstance(value, Mapping) and key in SECTIONS  # a section keeps what is not named
        found |= {f"{key}.{name}": inner for name, inner in value.items()} if within else {key: value}
    if wrong := [key for key in found if not isinstance(key, str) or "=" in key]:
        raise InputError(f"overrides: {wrong[0]!r} is no key; write one such as mixture.alpha")
    try:  # JSON is YAML, so every value comes through as it is
        return [f"{key}={json.dumps(value, default=_as_plain, ensure_ascii=False)}" for key, value in found.items()]
    except TypeError as error:
        raise InputError(f"overrides: {error}; write text, numbers, lists or mappings") from None


def _as_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic | pd.Series):
        return value.tolist()
    raise TypeError(f"{value!r} is no plain value")


@contextmanager
def _events(progress: bool | OnEvent) -> Iterator[OnEvent]:
    with without_bars():
        if not isinstance(progress, bool) and not callable(progress):
            raise InputError(f"progress: {progress!r}; write True or False, or give a function of an event")
        if callable(progress):
            yield progress
        elif not progress:
            yield lambda event: None
        else:
            from rich.console import Console

            from xlt_ray.cli.progress import shown

            with shown(Console(highlight=False)) as on_event:
                yield on_event


def _path(value: str | Path, name: str) -> str | Path:
    if not isinstance(value, str | Path):
        raise InputError(f"{name}: {type(value).__name__}; give a folder, or models:/NAME@ALIAS")
    return value if str(value).startswith("models:") else Path(value).expanduser()
