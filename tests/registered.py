"""Finished runs with tiny bundles in a real MLflow, for the tests of registry, fetching and promotion."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlt_ray import tasks
from xlt_ray.config.read import build
from xlt_ray.config.sections import TrackingConfig
from xlt_ray.corpora import loaders
from xlt_ray.evaluation.predictions import Predictions, save_predictions
from xlt_ray.inference import bundle
from xlt_ray.model import collate, network
from xlt_ray.tracking import outbox
from xlt_ray.tracking.delivery import Delivery
from xlt_ray.training import checks

NAME = "tiny"


def database(folder: Path) -> str:
    """Create an empty tracking database; takes a second."""
    from xlt_ray.tracking import mlflow_run

    uri = f"sqlite:///{folder / 'xlt.db'}"
    mlflow_run._create_database(uri)
    return uri


def client(uri: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(uri)


def settings(encoder: Path, corpus: Path, cache: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "corpus": {"loader": "files", "path": str(corpus), "id": "id", "cache_dir": str(cache)},
        "sources": ["eng_Latn", "deu_Latn"],
        "network": {"init": str(encoder), "max_length": 32, "freeze": []},
        "training": {"precision": "float32"},
        "evaluation": {"resamples": 200},
        "tracking": {"register_as": NAME},
    }


def made_bundle(folder: Path, data: Mapping[str, Any], seed: int = 0, labels: tuple[str, ...] | None = None) -> Path:
    """Save a bundle of an untrained network whose answers differ from text to text."""
    experiment = build(dict(data))
    corpus, _ = loaders.load_corpus(checks.absolute(experiment))
    labels = labels or corpus.labels
    net, tokenize, identity = network.build(experiment.network, len(labels), seed)
    texts = [text for code in corpus.languages("test") for text in corpus.table("test", code)["text"].to_pylist()]
    with torch.no_grad():
        net.head.weight *= 100
        batch = collate.pad(tokenize(texts), tokenize.tokenizer.pad_token_id)
        net.head.bias -= net.head.weight @ net.eval().features(batch).mean(0)
    bundle.save(folder, bundle.Bundle(net.eval(), tokenize, labels, experiment, None), identity)
    return folder


def answers(data: Mapping[str, Any], right: Mapping[str, float], seed: int = 0) -> dict[str, Predictions]:
    """Return predictions of the corpus's test rows, a share of the answers right, language -> share."""
    experiment = build(dict(data))
    corpus, _ = loaders.load_corpus(checks.absolute(experiment))
    task = tasks.build(experiment.task, corpus.labels)
    rng = np.random.default_rng(seed)
    found = {}
    for code, share in right.items():
        table = corpus.table("test", code)
        gold, sizes = task.gold(table), task.sizes(table)
        wrong = np.argsort(rng.random(len(gold)))[round(share * len(gold)) :]
        predicted = gold.copy()
        predicted[wrong] = (gold[wrong] + 1) % len(corpus.labels)
        ids, ratios = np.asarray(table["id"].to_pylist(), dtype=np.str_), task.ratios(gold, predicted, sizes)
        found[code] = Predictions(gold, predicted, ids, None, sizes, ratios)
    return found


def finished(
    folder: Path, uri: str, made: Path, predictions: Mapping[str, Predictions] | None, deliver: bool = True
) -> Path:
    """Make a finished run: its bundle, its predictions, and its outbox, already delivered; nothing is registered."""
    box = outbox.Outbox.open(folder, TrackingConfig(uri=uri), folder.name, folder.name)
    shutil.copytree(made, folder / "bundle")
    if predictions is not None:
        save_predictions(folder / "predictions.npz", predictions)
        box.artifact(folder / "predictions.npz")
    box.finish()
    if deliver:
        Delivery(folder, uri).send()
    return folder


def stages(seen: list[str]) -> Callable[[dict[str, Any]], None]:
    def note(event: dict[str, Any]) -> None:
        if event["stage"] not in seen[-1:]:
            seen.append(event["stage"])

    return note
