"""Techniques on frozen features: what a probe needs to be trained as fine-tuning is, without running the encoder twice.

Features are computed once, by `embedding.features`, and kept by content; what a technique does to them comes after.
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
from xlt_ray.events import Tell
from xlt_ray.model import collate
from xlt_ray.model.network import Network
from xlt_ray.techniques import technique
from xlt_ray.training import probe
from xlt_ray.training import setup as setups
from xlt_ray.training.embedding import Features
from xlt_ray.training.probe import Labelled
from xlt_ray.training.setup import Setup, changed


@dataclass(frozen=True)
class Frozen:
    """Features as techniques leave them, labels and ids, by `split/language`: (rows, width), (rows,) and (rows,)."""

    features: Features
    labels: Features
    ids: Features
    classes: int

    def part(self, split: str, languages: Sequence[str] | None = None) -> Labelled:
        """Take a split of all languages, or of those asked for that have it."""
        if languages is None:
            languages = [name.removeprefix(f"{split}/") for name in self.labels if name.startswith(f"{split}/")]
        there = [code for code in languages if f"{split}/{code}" in self.labels]
        features = {code: self.features[f"{split}/{code}"] for code in there}
        return Labelled(features, {code: self.labels[f"{split}/{code}"] for code in there})


def training_tables(setup: Setup, tell: Tell = lambda done, total: None) -> dict[str, pa.Table]:
    """Give the tables that a probe is fitted on, by `split/language`.

    Where techniques change examples as they are drawn, a language's train rows come once an epoch, each time changed
    anew, under one name: what fine-tuning sees in as many epochs.
    """
    tables = {f"{split}/{code}": table for split, code, table in setup.visible.tables()}
    changing = [one.prepare(setup.material, tell) for one in setup.techniques if one.changes_examples]
    for name, table in tables.items() if changing else ():
        split, code = name.split("/")
        if split == "train":
            epochs, seed = range(setup.experiment.training.epochs), setup.experiment.seed
            tables[name] = pa.concat_tables(_changed(table, code, changing, (seed, epoch)) for epoch in epochs)
    return tables


def _changed(table: pa.Table, code: str, changing: list[technique.Technique], address: tuple[int, int]) -> pa.Table:
    plain, rows = table.replace_schema_metadata(None), np.arange(table.num_rows)
    texts, pairs = changed(changing, *collate.texts_of(plain, rows), code, address, rows)
    for name, values in {"text": texts, "text_pair": pairs}.items():
        if values is not None:
            at = plain.schema.get_field_index(name)
            plain = plain.set_column(at, name, pa.array(values, plain.schema.field(name).type))
    return plain


def test_tables(setup: Setup) -> dict[str, pa.Table]:
    """Give the tables that a fitted probe is measured on, by `test/language`."""
    test = setup.corpus.for_testing()
    return {f"test/{code}": test.table("test", code) for code in setup.measured}


def texts(setup: Setup) -> dict[str, pa.Table]:
    """Give the unlabelled tables that techniques want features of, by `texts/language`."""
    wanted: dict[str, pa.Table] = {}
    for one in setup.techniques:
        wanted |= one.texts(setup.material)
    return {f"texts/{code}": table for code, table in wanted.items()}


def calibrate(setup: Setup, net: Network, found: Features) -> dict[str, float]:
    """Let techniques fit what they need of frozen features; return their figures."""
    return setups.calibrate(setup, net, lambda tables: {code: found[f"texts/{code}"] for code in tables})


def gathered(tables: Mapping[str, pa.Table], found: Features, classes: int, net: Network | None = None) -> Frozen:
    """Put labels and ids of tables, by `split/language`, beside their features as the encoder gave them.

    `net`, whose techniques are calibrated, does to the features what these ask for.
    """
    return Frozen(
        {name: found[name] if net is None else _transformed(net, name, found[name]) for name in tables},
        {name: table["label"].to_numpy().astype(np.int64) for name, table in tables.items()},
        {name: np.asarray(table["id"].to_pylist(), dtype=np.str_) for name, table in tables.items()},
        classes,
    )


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
    """Fit a probe on an experiment's mix of all languages, or of some, without touching rows of others."""
    train, dev = (frozen.part(split, languages) for split in ("train", "dev"))
    return probe.fit(train, dev, frozen.classes, experiment.mixture, strengths, start)


def calibrated(frozen: Frozen, fitted: probe.Fit, sources: Sequence[str]) -> probe.Fit:
    """Fit a probe's temperature on dev of the sources, and on nothing of other languages."""
    dev = frozen.part("dev", sources)
    logits = {code: fitted.logits(rows) for code, rows in dev.features.items()}
    return replace(fitted, temperature=calibration.temperature(logits, dev.labels))


def predict(
    frozen: Frozen, fitted: probe.Fit, split: str, languages: Sequence[str] | None = None
) -> dict[str, Predictions]:
    """Predict a split of all languages, or of some, with a probe."""
    rows, found = frozen.part(split, languages), {}
    for code, gold in rows.labels.items():
        logits = fitted.logits(rows.features[code])
        sure = calibration.confidence(logits, fitted.temperature)
        found[code] = Predictions(gold, logits.argmax(1), frozen.ids[f"{split}/{code}"], sure)
    return found
