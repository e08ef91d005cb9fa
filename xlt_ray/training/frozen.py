"""Fit a linear probe on the features of the frozen encoder, with techniques applied as fine-tuning applies them.

The order is: tables that techniques change (`training_tables`), their features (`embedding.features`, cached), features
that techniques change (`Frozen.of`), and the probe on these (`fit`, `fit_temperature`, `refit`, `predict`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from xlt_ray.config.experiment import Experiment
from xlt_ray.evaluation import calibration
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.events import OnProgress
from xlt_ray.model import collate
from xlt_ray.model.network import Network
from xlt_ray.techniques.technique import Technique
from xlt_ray.training import probe
from xlt_ray.training import setup as setups
from xlt_ray.training.embedding import Features
from xlt_ray.training.probe import Labelled
from xlt_ray.training.setup import Setup, change_examples


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
        return cls(
            {name: found[name] if net is None else _transformed(net, name, found[name]) for name in tables},
            {name: table["label"].to_numpy().astype(np.int64) for name, table in tables.items()},
            {name: np.asarray(table["id"].to_pylist(), dtype=np.str_) for name, table in tables.items()},
            classes,
        )

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
    plain, rows = table.replace_schema_metadata(None), np.arange(table.num_rows)
    texts, pairs = change_examples(changing, *collate.texts_of(plain, rows), code, address, rows)
    for name, values in {"text": texts, "text_pair": pairs}.items():
        if values is not None:
            at = plain.schema.get_field_index(name)
            plain = plain.set_column(at, name, pa.array(values, plain.schema.field(name).type))
    return plain


def test_tables(setup: Setup) -> dict[str, pa.Table]:
    """Return the tables that a fitted probe is measured on, by `test/language`."""
    return _named("test", setup.tables("test"))


def texts(setup: Setup) -> dict[str, pa.Table]:
    """Return the unlabelled tables that techniques need features of to calibrate, by `texts/language`."""
    wanted: dict[str, pa.Table] = {}
    for one in setup.techniques:
        wanted |= one.texts(setup.material)
    return _named("texts", wanted)


def calibrate(setup: Setup, net: Network, found: Features) -> dict[str, float]:
    """Calibrate the techniques in `net` on the features of `texts`; return their figures as `technique/figure`."""
    return setups.calibrate(setup, net, lambda tables: {code: found[f"texts/{code}"] for code in tables})


def _transformed(net: Network, name: str, features: np.ndarray) -> np.ndarray:
    if not len(net.steps):
        return features
    language = torch.full((len(features),), net.index(name.split("/")[1]))
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
