"""The Python API: train, search, evaluate and ask models in a script or a notebook, after `import xlt_ray`.

Every function does what the command of its name does, with the same files, so a run begun here can be resumed there.
Errors are those of `xlt_ray.errors`: InputError for what is refused before any work, with place, value and remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from xlt_ray import config as configuration
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import plain
from xlt_ray.errors import InputError, RegistryError, TrainingError
from xlt_ray.evaluation import groups
from xlt_ray.evaluation.metrics import Scores
from xlt_ray.events import OnEvent
from xlt_ray.inference import artefact, bundle
from xlt_ray.languages import codes
from xlt_ray.languages.identify import Identifier
from xlt_ray.registry import fetch
from xlt_ray.runs import measure, run
from xlt_ray.search import search as searching
from xlt_ray.search import space
from xlt_ray.search.findings import Findings
from xlt_ray.search.selection import CHOSEN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "InputError",
    "Model",
    "RegistryError",
    "Run",
    "Scores",
    "SearchResult",
    "TrainingError",
    "compare",
    "evaluate",
]
__all__ += ["load", "plot", "train", "tune"]

Config = str | Path | Mapping[str, Any] | Experiment
PLACE = "configuration"  # what errors call a mapping
INTERVAL = ("accuracy", "accuracy_low", "accuracy_high")


@dataclass(frozen=True)
class Model:
    """A model in memory. `name` is its folder, or models:/NAME/VERSION; `bundle` is what it consists of."""

    name: str
    bundle: bundle.Bundle

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the columns of `probabilities`."""
        return self.bundle.labels

    @property
    def scores(self) -> Scores | None:
        """What its run measured on test, language by language; None for a bundle without scores."""
        return self.bundle.scores

    def predict(
        self,
        texts: Iterable[str],
        languages: str | Sequence[str | None] | None = None,
        pairs: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Classify texts; return one row a text, with the index of `texts` where that is a Series.

        Columns: `text`; `label`; `score`, its calibrated probability; `language`, a FLORES code, None where it could
        not be told; `trained_on`, whether labels of that language were; `accuracy`, `accuracy_low`, `accuracy_high`,
        what was measured on test rows of that language with its 95% interval, NaN where it was not measured.

        `languages` is one code for all texts or one a text, of any usual kind, None where it is to be guessed from the
        text. `pairs` are the second texts of a model of pairs. Raises InputError where lengths differ, or one of
        `texts` is no text.
        """
        index = texts.index if isinstance(texts, pd.Series) else None
        texts = _texts(texts)
        known = self._languages(texts, languages)
        found = self._probabilities(texts, known, pairs)
        measured = self.scores.languages if self.scores else {}
        rows = [measured.get(code or "") for code in known]
        columns: dict[str, Any] = {
            "text": texts,
            "label": [self.labels[i] for i in found.argmax(1)],
            "score": found.max(1),
            "language": known,
            "trained_on": [None if one is None else groups.trained_on(one.role) for one in rows],
        }
        for name in INTERVAL:
            columns[name] = np.array([np.nan if one is None else getattr(one, name) for one in rows], dtype=float)
        return pd.DataFrame(columns, index=index)

    def probabilities(
        self,
        texts: Iterable[str],
        languages: str | Sequence[str | None] | None = None,
        pairs: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Return the calibrated probability of every label: (texts, labels) float32; parameters as for `predict`."""
        texts = _texts(texts)
        return self._probabilities(texts, self._languages(texts, languages), pairs)

    def _probabilities(
        self, texts: Sequence[str], known: Sequence[str | None], pairs: Sequence[str] | None
    ) -> np.ndarray:
        if pairs is None and self.bundle.experiment.corpus.text_pair:
            raise InputError("pairs: missing, and this model classifies pairs of texts; give the second texts")
        pairs = None if pairs is None else _texts(pairs, "pairs")
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"pairs: {len(pairs)} of them for {len(texts)} texts; give one a text")
        return self.bundle.probabilities(texts, pairs, known)

    def _languages(self, texts: Sequence[str], languages: str | Sequence[str | None] | None) -> list[str | None]:
        alike = languages is None or isinstance(languages, str)
        named = [languages] * len(texts) if alike else list(languages or ())
        if len(named) != len(texts):
            raise InputError(f"languages: {len(named)} of them for {len(texts)} texts; give one a text, or one for all")
        guesses = {i: self._identifier.guess(texts[i]).code for i, code in enumerate(named) if code is None}
        return [codes.resolve(str(code)) if code is not None else guesses[i] for i, code in enumerate(named)]

    @cached_property
    def _identifier(self) -> Identifier:
        return Identifier()


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, what was measured, and how many tracking records are not sent (see `xlt sync`)."""

    folder: Path
    experiment: Experiment
    scores: Scores
    unsent: int = 0

    @property
    def report(self) -> Path:
        """The run's page, with its table and plots."""
        return self.folder / "report.html"

    @cached_property
    def model(self) -> Model:
        """The model that the run made."""
        return load(self.folder)


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its folder, all it found, and how many tracking records are not sent (see `xlt sync`)."""

    folder: Path
    findings: Findings
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

    `tracking_uri` is where models are registered, by default MLFLOW_TRACKING_URI or the database xlt.db here. `device`
    is what torch calls it, such as "cuda". Every file is held against its checksum. Raises InputError for what is no
    model, RegistryError where MLflow fails.
    """
    if not str(model).startswith("models:") and (fetch.bundle_in(Path(model).expanduser()) / artefact.FILE).is_file():
        raise InputError(f"{model}: an artefact, which `xlt serve` answers with; load the run that it was made from")
    found = fetch.fetch(str(model), tracking_uri, fetch.Form(device="cuda"))  # the bundle, as it was saved
    with _no_foreign_bars():
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
    return Run(outcome.folder.local, experiment, outcome.scores, outcome.unsent)


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

    `model` is a run, a model, or what `load` takes; the other parameters are as for `train`. The corpus must have the
    model's labels; InputError names those that differ.
    """
    model = model.model if isinstance(model, Run) else model if isinstance(model, Model) else load(model)
    experiment = _experiment(model.bundle.experiment if config is None else config, overrides)
    with _events(progress) as on_event:
        return measure.measure(model.bundle, experiment, on_event)


def compare(first: Run | str | Path, second: Run | str | Path) -> pd.DataFrame:
    """Test whether one finished run is better than another on the test rows of both, as `xlt compare` does.

    Return a group of languages a row: `languages`, how many; `difference` of their mean accuracies, first less second,
    with `low` and `high`, its 95% interval by a paired bootstrap over rows; `p_value`.
    """
    folders = (one.folder if isinstance(one, Run) else Path(one) for one in (first, second))
    found = measure.compare_runs(*folders)
    columns = ("languages", "difference", "low", "high", "p_value")
    rows = {name: [getattr(one, column) for column in columns] for name, one in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("group")


def plot(scores: Scores) -> Figure:
    """Draw the accuracy of every language with its 95% interval, sources apart from targets; a matplotlib figure."""
    from xlt_ray.reports import plots

    return plots.bars(scores)


def _experiment(config: Config, overrides: Mapping[str, Any] | None) -> Experiment:
    if isinstance(config, str | Path):
        return configuration.load(config, _overrides(overrides))
    return configuration.build(_plain(config), _overrides(overrides), PLACE)


def _plain(config: Mapping[str, Any] | Experiment) -> Mapping[str, Any]:
    return config.model_dump(mode="json") if isinstance(config, Experiment) else config


def _overrides(overrides: Mapping[str, Any] | None) -> list[str]:
    if not isinstance(overrides, Mapping | None):
        raise InputError(f'overrides: {overrides!r}; write keys with their values, as {{"mixture.alpha": 0.5}}')
    # JSON is YAML, so every value comes through as it is
    return [f"{key}={json.dumps(value, default=str)}" for key, value in (overrides or {}).items()]


@contextmanager
def _events(progress: bool | OnEvent) -> Iterator[OnEvent]:
    with _no_foreign_bars():
        if callable(progress):
            yield progress
        elif not progress:
            yield lambda event: None
        else:
            from rich.console import Console

            from xlt_ray.cli.progress import shown

            with shown(Console(highlight=False)) as on_event:
                yield on_event


@contextmanager
def _no_foreign_bars() -> Iterator[None]:
    # transformers draws bars of its own for every file that it loads or writes
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    if isinstance(texts, str):
        raise InputError(f"{name}: one text, {texts[:40]!r}, not several; put it into a list")
    found = list(texts)
    for position, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"{name}: number {position} is {text!r}, no text; leave it out")
    return found
