"""Fit a linear probe on the features of the frozen encoder, with techniques applied as fine-tuning applies them.

The order is: tables that techniques change (`training_tables`), their features (`embedding.features`, cached), features
that techniques change (`Frozen.of`), and the probe on these (`fit`, `fit_temperature`, `refit`, `predict`).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.arrow import with_texts
from xlt_ray.evaluation import calibration, evaluate
from xlt_ray.evaluation.features import Features
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.events import OnProgress
from xlt_ray.model import collate
from xlt_ray.model.network import Network
from xlt_ray.techniques.technique import Technique
from xlt_ray.training import probe
from xlt_ray.training import setup as setups
from xlt_ray.training.probe import Labelled
from xlt_ray.training.setup import Setup

FOLDS = 10  # of cross-validation


@dataclass(frozen=True)
class Frozen:
    """Features, labels and ids by `split/language`: (rows, width) float32, (rows,) int64 and (rows,) strings."""

    features: Features
    labels: Features
    ids: Features
    classes: int

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table], found: Features, classes: int, net: Network | None) -> Frozen:
        """Put the labels and ids of tables beside the features that the encoder computed of them.

        `net`, whose techniques are calibrated, applies its steps to the features; None leaves them as they are.
        """
        features = {name: found[name] for name in tables}
        if net is not None:
            features = {name: _transformed(net, name.split("/")[1], rows) for name, rows in features.items()}
        return cls(
            features,
            {name: table["label"].to_numpy().astype(np.int64) for name, table in tables.items()},
            {name: np.asarray(table["id"].to_pylist(), dtype=np.str_) for name, table in tables.items()},
            classes,
        )

    def without(self, ids: Collection[str]) -> Frozen:
        """Return the rows of other ids than these."""
        kept = {name: ~np.isin(rows, list(ids)) for name, rows in self.ids.items()}
        features, labels, rest = (
            {name: of[name][rows] for name, rows in kept.items()} for of in (self.features, self.labels, self.ids)
        )
        return Frozen(features, labels, rest, self.classes)

    def part(self, split: str, languages: Sequence[str] | None) -> Labelled:
        """Return a split of all languages, for None, or of those asked for that have it."""
        there = [name.removeprefix(f"{split}/") for name in self.labels if name.startswith(f"{split}/")]
        chosen = there if languages is None else [code for code in languages if code in there]
        features, labels = ({code: of[f"{split}/{code}"] for code in chosen} for of in (self.features, self.labels))
        return Labelled(features, labels)


def training_tables(setup: Setup, on_progress: OnProgress = lambda done, total: None) -> dict[str, pa.Table]:
    """Return the tables that a probe is fitted on, of train and dev, by `split/language`.

    Where techniques change examples, the train table of a language has its rows once an epoch, each time changed anew:
    the texts that fine-tuning would see in as many epochs.
    """
    train, changing = setup.tables("train"), setup.prepare_techniques(on_progress)
    if changing:
        seed, epochs = setup.experiment.seed, range(setup.experiment.training.epochs)
        for code, table in train.items():
            train[code] = pa.concat_tables(_changed(table, code, changing, (seed, epoch)) for epoch in epochs)
    return _named("train", train) | _named("dev", setup.tables("dev"))


def _named(split: str, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    return {f"{split}/{code}": table for code, table in tables.items()}


def _changed(table: pa.Table, code: str, changing: Sequence[Technique], address: tuple[int, int]) -> pa.Table:
    rows = np.arange(table.num_rows)
    texts, pairs = techniques.change_examples(changing, *collate.texts_of(table), code, address, rows)
    return with_texts(table, {"text": texts} if pairs is None else {"text": texts, "text_pair": pairs})


def read_tables(setup: Setup) -> dict[str, pa.Table]:
    """Return the tables that a fitted probe is measured on as the encoder reads them, by `test/key` of a reading."""
    return _named("test", evaluate.read(setup.tables("test"), setup.readings))


def texts(setup: Setup) -> dict[str, pa.Table]:
    """Return the unlabelled tables that techniques need features of, by `texts of NAME/key`."""
    wanted: dict[str, pa.Table] = {}
    for one in setup.techniques:
        wanted |= _named(texts_of(one), one.texts(setup.material))
    return wanted


def texts_of(technique: Technique) -> str:
    """Return what stands before the keys of a technique's `texts`."""
    return f"texts of {technique.name}"


def calibrate(setup: Setup, net: Network, found: Features) -> dict[str, float]:
    """Calibrate the techniques in `net` on the features of `texts`; return their figures as `technique/figure`."""
    return setups.calibrate(setup, net, lambda one: lambda tables: _named_by(texts_of(one), tables, found))


def _named_by(split: str, tables: Mapping[str, pa.Table], found: Features) -> dict[str, np.ndarray]:
    return {key: found[f"{split}/{key}"] for key in tables}


def weigh(setup: Setup, net: Network, frozen: Frozen, found: Features, fitted: probe.Fit) -> Setup:
    """Let techniques weigh readings by the scores that a probe gives to `texts`.

    The probe is one without the rows that readings are weighed by. What `fitted` says of rows that it was fitted to is
    close to their labels, and those of their translations in the targets are the same.
    """
    if setup.readings is None or not any(one.weighs_readings for one in setup.techniques):
        return setup
    unseen, texts = setup.readings.unseen, setup.material.texts
    left = {one for code, rows in unseen.items() for one in texts[code].filter(pa.array(rows))["id"].to_pylist()}
    if left:
        rest = frozen.without(left).part("train", None)
        config = setup.experiment.mixture
        if len(np.unique(np.concatenate([np.empty(0), *rest.labels.values()]))) < 2:
            return setup  # nothing can be fitted to so few rows, so readings weigh alike
        fitted = probe.fit(rest, Labelled({}, {}), frozen.classes, config, (fitted.strength,), fitted)

    return setup.weigh(lambda one: lambda tables: score_rows(net, _named_by(texts_of(one), tables, found), fitted))


def score(setup: Setup, net: Network, found: Features, fitted: probe.Fit) -> dict[str, np.ndarray]:
    """Return the logits that a probe gives to the test rows, (rows, classes) float32, by key of their readings."""
    readings = setup.readings
    keys = [key for code in setup.measured for key in ([code] if readings is None else readings.keys(code))]
    return score_rows(net, {key: found[f"test/{key}"] for key in keys}, fitted)


def score_rows(net: Network, features: Features, fitted: probe.Fit) -> dict[str, np.ndarray]:
    """Return the logits that a probe gives to features, which are not yet transformed, by key of their readings."""
    return {key: fitted.logits(_transformed(net, key, rows)) for key, rows in features.items()}


def _transformed(net: Network, key: str, features: np.ndarray) -> np.ndarray:
    if not len(net.steps):
        return features
    language = torch.full((len(features),), net.index(key))
    with torch.inference_mode():
        return net.transform(torch.from_numpy(np.asarray(features)), language).numpy()


def fit(
    frozen: Frozen,
    experiment: Experiment,
    strengths: tuple[float, ...],
    languages: Sequence[str] | None = None,
    start: probe.Fit | None = None,
) -> probe.Fit:
    """Fit a probe on train by an experiment's mixture, of all languages or of some; dev decides among `strengths`.

    `start` warm-starts the solver, see `probe.fit`.
    """
    train, dev = (frozen.part(split, languages) for split in ("train", "dev"))
    return probe.fit(train, dev, frozen.classes, experiment.mixture, strengths, start)


def choose(frozen: Frozen, experiment: Experiment) -> probe.Fit:
    """Fit a probe on train, its penalty chosen among `training.probe_strengths` as `training.probe_select` says."""
    strengths, config = experiment.training.probe_strengths, experiment.mixture
    if experiment.training.probe_select == "source_dev" or len(strengths) == 1:
        return fit(frozen, experiment, strengths)
    train, dev = frozen.part("train", None), frozen.part("dev", experiment.sources)
    folds: dict[str, np.ndarray] = {}
    for split, rows in (("train", train), ("dev", dev)):
        for code in rows.labels:
            ids = frozen.ids[f"{split}/{code}"].tolist()
            mine = np.array([zlib.crc32(one.encode()) % FOLDS for one in ids], dtype=np.int64)
            folds[code] = np.concatenate([folds[code], mine]) if code in folds else mine
    best, loss, accuracy = probe.cross_validate(
        train + dev, folds, experiment.sources, frozen.classes, config, strengths
    )
    found = probe.fit(train, Labelled({}, {}), frozen.classes, config, (best,))
    return replace(found, dev_loss=loss, dev_accuracy=accuracy)


def fit_temperature(frozen: Frozen, fitted: probe.Fit, sources: Sequence[str]) -> probe.Fit:
    """Return a probe with a temperature fitted on dev of the sources, and on nothing of other languages."""
    dev = frozen.part("dev", sources)
    logits = {code: fitted.logits(rows) for code, rows in dev.features.items()}
    return replace(fitted, temperature=calibration.temperature(logits, dev.labels))


def refit(frozen: Frozen, experiment: Experiment, fitted: probe.Fit) -> probe.Fit:
    """Fit a probe once more as `training.refit` asks: on train and on dev of the sources, never on dev of a target.

    Its penalty and its temperature are those of `fitted`, chosen and fitted while dev was held out; so this comes last.
    A search that ranks mixes by dev does not call it. Dev rows are added once and as they stand, also where techniques
    change train rows.
    """
    if experiment.training.refit == "none":
        return fitted
    train, dev = frozen.part("train", None), frozen.part("dev", experiment.sources)
    return probe.refit(train, dev, frozen.classes, experiment.mixture, fitted)


def refitted(setup: Setup) -> dict[str, int]:
    """Return how many dev rows of each source `refit` adds; {} where it adds none."""
    experiment = setup.experiment
    if experiment.training.refit == "none":
        return {}
    used = [code for code in experiment.sources if experiment.mixture.weights.get(code, 1.0) > 0]
    return {code: rows for code, rows in setup.visible.sizes("dev").items() if code in used}


def predict(
    frozen: Frozen, fitted: probe.Fit, split: str, languages: Sequence[str] | None = None
) -> dict[str, Predictions]:
    """Predict a split of all languages, or of some, with a probe; return predictions by language."""
    rows = frozen.part(split, languages)
    found = {}
    for code, gold in rows.labels.items():
        logits = fitted.logits(rows.features[code])
        sure = calibration.confidence(logits, fitted.temperature)
        found[code] = Predictions(gold, logits.argmax(1), frozen.ids[f"{split}/{code}"], sure)
    return found
