"""Techniques on frozen features: what a probe needs to be trained as fine-tuning is, without running the encoder twice.

Features are computed once, by `train.features`, and kept by content; what a technique does to them comes after.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from xlt_ray import collate, probe, techniques
from xlt_ray.metrics import Predictions
from xlt_ray.network import Network
from xlt_ray.prepare import Prepared
from xlt_ray.techniques import Tell

Features = Mapping[str, np.ndarray]


def training_tables(prepared: Prepared, tell: Tell = lambda done, total: None) -> dict[str, pa.Table]:
    """Give the tables that a probe is fitted on, by `split/language`.

    Where techniques change examples as they are drawn, a language's train rows come once an epoch, each time changed
    anew, under one name: what fine-tuning sees in as many epochs.
    """
    tables = {f"{split}/{code}": table for split, code, table in prepared.visible.tables()}
    changing = [one.prepare(prepared.material, tell) for one in prepared.techniques if one.changes_examples]
    for name, table in tables.items() if changing else ():
        split, code = name.split("/")
        if split == "train":
            epochs, seed = range(prepared.experiment.training.epochs), prepared.experiment.seed
            tables[name] = pa.concat_tables(_changed(table, code, changing, (seed, epoch)) for epoch in epochs)
    return tables


def _changed(table: pa.Table, code: str, changing: list[techniques.Technique], address: tuple[int, int]) -> pa.Table:
    plain, rows = table.replace_schema_metadata(None), np.arange(table.num_rows)
    texts, pairs = techniques.changed(changing, *collate.texts_of(plain, rows), code, address, rows)
    for name, values in {"text": texts, "text_pair": pairs}.items():
        if values is not None:
            at = plain.schema.get_field_index(name)
            plain = plain.set_column(at, name, pa.array(values, plain.schema.field(name).type))
    return plain


def test_tables(prepared: Prepared) -> dict[str, pa.Table]:
    """Give the tables that a fitted probe is measured on, by `test/language`."""
    test = prepared.corpus.for_testing()
    return {f"test/{code}": test.table("test", code) for code in prepared.measured}


def texts(prepared: Prepared) -> dict[str, pa.Table]:
    """Give the unlabelled tables that techniques want features of, by `texts/language`."""
    wanted: dict[str, pa.Table] = {}
    for one in prepared.techniques:
        wanted |= one.texts(prepared.material)
    return {f"texts/{code}": table for code, table in wanted.items()}


def settle(prepared: Prepared, net: Network, found: Features) -> dict[str, float]:
    """Let techniques compute what they need of frozen features; gives their figures."""
    return techniques.settle(
        prepared.techniques, net, lambda tables: {code: found[f"texts/{code}"] for code in tables}, prepared.material
    )


def transform(net: Network, name: str, features: np.ndarray) -> np.ndarray:
    """Do to the features of a table, named `split/language`, what techniques ask for: (rows, width) float32."""
    if not len(net.steps):
        return features
    language = torch.full((len(features),), net.index(name.split("/")[1]))
    with torch.inference_mode():
        return net.transform(torch.from_numpy(np.asarray(features)), language).numpy()


def fit(prepared: Prepared, net: Network, tables: Mapping[str, pa.Table], found: Features) -> probe.Fit:
    """Fit a probe on features as the encoder gave them, by `split/language` as `tables` are.

    `net` is one whose techniques have settled; what they do to features is done here.
    """
    rows, dev = (_part(net, tables, found, split) for split in ("train", "dev"))
    training, classes = prepared.experiment.training, len(prepared.corpus.labels)
    return probe.fit(*rows, *dev, classes, prepared.experiment.mixture, training.probe_strengths)


def predict(
    net: Network, fitted: probe.Fit, tables: Mapping[str, pa.Table], found: Features, split: str
) -> dict[str, Predictions]:
    """Predict the rows of a split by language, of tables and features as `fit` takes them."""
    features, gold = _part(net, tables, found, split)
    return {
        code: Predictions(
            gold=gold[code].astype(np.int64),
            predicted=fitted.predict(features[code]),
            ids=np.asarray(tables[f"{split}/{code}"]["id"].to_pylist(), dtype=np.str_),
        )
        for code in gold
    }


def _part(net: Network, tables: Mapping[str, pa.Table], found: Features, split: str) -> tuple[Features, Features]:
    """Take a split as (features as techniques leave them, labels) by language."""
    named = {name.removeprefix(f"{split}/"): name for name in tables if name.startswith(f"{split}/")}
    features = {code: transform(net, name, found[name]) for code, name in named.items()}
    return features, {code: tables[name]["label"].to_numpy() for code, name in named.items()}
