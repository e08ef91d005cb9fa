"""Predictions: the same for any token budget and number of workers, and each at its own row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import LABELS
from workers import on_workers

from xlt_ray import tasks
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.evaluate import Inputs
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.model import collate, network

TASK = tasks.build("classification", LABELS)


def parts(experiment: Experiment) -> tuple[network.Network, collate.Tokenize, dict[str, pa.Table]]:
    corpus = loaders.load(experiment.corpus)
    net, tokenize, _ = network.build(experiment.network, len(corpus.labels), experiment.seed)
    rows, device = np.arange(45), torch.device("cpu")
    net.eval()
    features = evaluate.outputs(
        net.features, device, corpus.table("test", "eng_Latn"), rows, Inputs(tokenize, "float32", 512)
    )
    with torch.no_grad():  # far from ties, and every label is predicted somewhere
        net.head.weight *= 100
        net.head.bias -= net.head.weight @ torch.from_numpy(features.mean(0))
    # as many rows as two workers, fewer than four, and more than both
    sizes = {"eng_Latn": 45, "deu_Latn": 3, "hin_Deva": 2}
    tables = {code: corpus.table("test", code).slice(0, rows) for code, rows in sizes.items()}
    return net, tokenize, tables


def predict(settings: dict[str, Any], tokens: int = 256) -> dict[str, Predictions]:
    net, tokenize, tables = parts(build(settings))
    return evaluate.predict(net, TASK, tables, Inputs(tokenize, "float32", tokens))


def assert_equal(one: dict[str, Predictions], other: dict[str, Predictions]) -> None:
    assert list(one) == list(other)
    for language in one:
        np.testing.assert_allclose(one[language].confidence, other[language].confidence, rtol=1e-4)
        for name in ("gold", "predicted", "ids"):
            assert np.array_equal(getattr(one[language], name), getattr(other[language], name)), (language, name)


def test_predictions_are_the_argmax_of_each_row_in_its_order(tiny_experiment: Experiment) -> None:
    net, tokenize, tables = parts(tiny_experiment)
    found = evaluate.predict(net, TASK, tables, Inputs(tokenize, "float32", 64))
    assert list(found) == list(tables)
    net.eval()
    for language, table in tables.items():
        with torch.no_grad():
            single = [
                int(net(collate.pad(tokenize([text]), tokenize.tokenizer.pad_token_id)).argmax())
                for text in table["text"].to_pylist()
            ]
        assert found[language].predicted.tolist() == single
        assert found[language].gold.tolist() == table["label"].to_pylist()
        assert found[language].ids.tolist() == table["id"].to_pylist()
    assert set(found["eng_Latn"].predicted.tolist()) == {0, 1, 2}


def test_a_temperature_changes_confidences_and_no_label(tiny_experiment: Experiment) -> None:
    net, tokenize, tables = parts(tiny_experiment)
    plain = evaluate.predict(net, TASK, tables, Inputs(tokenize, "float32", 64))
    for temperature in (0.1, 1.7, 30.0):
        net.temperature = temperature
        found = evaluate.predict(net, TASK, tables, Inputs(tokenize, "float32", 64))
        for language, table in tables.items():
            assert np.array_equal(found[language].predicted, plain[language].predicted)
            rows = np.arange(table.num_rows)
            logits = evaluate.outputs(net, torch.device("cpu"), table, rows, Inputs(tokenize, "float32", 64))
            wanted = (torch.from_numpy(logits) / temperature).softmax(-1).max(-1).values
            np.testing.assert_allclose(found[language].confidence, wanted, rtol=1e-4)


def temperature(settings: dict[str, Any]) -> float:
    net, tokenize, tables = parts(build(settings))
    return evaluate.temperature(net, TASK, tables, Inputs(tokenize, "float32", 256))


def test_the_number_of_workers_changes_no_temperature(tiny_settings: dict[str, Any]) -> None:
    alone = temperature(tiny_settings)
    assert alone != 1
    found = on_workers(2, temperature, tiny_settings)
    assert found[0] == found[1] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("tokens", [8, 40, 10**6])
def test_the_token_budget_changes_no_prediction(tiny_settings: dict[str, Any], tokens: int) -> None:
    assert_equal(predict(tiny_settings, tokens), predict(tiny_settings))


@pytest.mark.parametrize("world", [2, 4])
def test_the_number_of_workers_changes_no_prediction_and_all_know_them_all(
    tiny_settings: dict[str, Any], world: int
) -> None:
    alone = predict(tiny_settings)
    for found in on_workers(world, predict, tiny_settings):
        assert_equal(found, alone)


def test_outputs_come_in_the_order_of_the_rows_asked_for(
    tiny_experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, tokenize, tables = parts(tiny_experiment)
    net.eval()
    table, device = tables["eng_Latn"], torch.device("cpu")

    def features(rows: list[int], tokens: int) -> np.ndarray:
        return evaluate.outputs(net.features, device, table, np.array(rows), Inputs(tokenize, "float32", tokens))

    every = features(list(range(45)), 10**6)
    assert every.shape == (45, 32) and every.dtype == np.float32
    monkeypatch.setattr(evaluate, "CHUNK", 4)
    np.testing.assert_allclose(features([7, 3, 44, 0, 3, 9], 24), every[[7, 3, 44, 0, 3, 9]], rtol=1e-4, atol=1e-5)


def test_bfloat16_gives_float32_outputs_near_the_others(tiny_experiment: Experiment) -> None:
    net, tokenize, tables = parts(tiny_experiment)
    net.eval()
    rows, device = np.arange(45), torch.device("cpu")
    exact, rough = (
        evaluate.outputs(net.features, device, tables["eng_Latn"], rows, Inputs(tokenize, precision, 256))
        for precision in ("float32", "bfloat16")
    )
    assert rough.dtype == np.float32 and not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, atol=0.1)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_leaves_the_networks_mode_and_the_generator_alone(
    tiny_experiment: Experiment, training: bool
) -> None:
    net, tokenize, tables = parts(tiny_experiment)
    net.train(training)
    before = torch.get_rng_state()
    evaluate.predict(net, TASK, tables, Inputs(tokenize, "float32", 256))
    assert net.training == training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_progress_counts_the_rows_to_their_end(tiny_experiment: Experiment) -> None:
    net, tokenize, tables = parts(tiny_experiment)
    reported: list[tuple[int, int]] = []
    evaluate.predict(
        net, TASK, tables, Inputs(tokenize, "float32", 256), lambda done, total: reported.append((done, total))
    )
    assert reported == [(45, 50), (48, 50), (50, 50)]


def test_pairs_are_predicted_as_pairs(tiny_experiment: Experiment, tiny_encoder: Path) -> None:
    net, tokenize, tables = parts(tiny_experiment)
    alone = tables["eng_Latn"]
    paired = alone.append_column("text_pair", alone["text"].take(list(reversed(range(45)))))
    net.eval()
    a, b = (
        evaluate.outputs(net, torch.device("cpu"), table, np.arange(45), Inputs(tokenize, "float32", 256))
        for table in (alone, paired)
    )
    assert np.abs(a - b).max() > 1e-3
