"""On real Ray: one worker, two workers and no Ray give the same model, and errors come back as the user's own."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray_runs import TRAIN_WORKER, Settings, offspring, run_key, settings
from typer.testing import CliRunner

from xlt_ray import cli, errors
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.config.sections import ResourcesConfig
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.evaluation.predictions import load_predictions
from xlt_ray.evaluation.scores import Scores
from xlt_ray.events import Event
from xlt_ray.inference import artefact, bundle
from xlt_ray.model import network
from xlt_ray.model.network import Weights, trained
from xlt_ray.runs import run
from xlt_ray.training import distributed, embedding, loop, setup
from xlt_ray.training.workers.waiting import Waiting

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

TRAINING = {"average_last": 2, "checkpoint_every": 5}
RECORDED = ("train/loss", "train/epoch_loss", "dev/accuracy")


@dataclass
class Done:
    """An outcome with all events and losses."""

    outcome: run.Outcome
    events: list[Event]
    workers: int  # processes of Ray Train seen at work

    @property
    def folder(self) -> Path:
        return self.outcome.folder.local

    @property
    def losses(self) -> dict[int, float]:
        return {event["step"]: event["train/loss"] for event in self.events if "train/loss" in event}

    @property
    def history(self) -> list[dict[str, float]]:
        return json.loads((self.folder / "history.json").read_text())

    @property
    def model(self) -> bundle.Bundle:
        return bundle.load(self.folder / "bundle")


def carry_out(data: Settings) -> Done:
    """Run an experiment and count the workers when one of them reports that it begins."""
    events: list[Event] = []
    workers = 0

    def follow(event: Event) -> None:
        nonlocal workers
        if event["stage"] == "load":
            workers = sum(TRAIN_WORKER in process.command for process in offspring(os.getpid()))
        events.append(event)

    return Done(run.run(build(data), follow), events, workers)


@pytest.fixture(scope="module")
def data(tiny_encoder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("ray")
    return settings(tiny_encoder, tiny_corpus, folder, training=TRAINING, network={"dropout": 0.0})


@pytest.fixture(scope="module")
def one(data: Settings, local_ray: None) -> Done:
    """The run of a single worker."""
    return carry_out(data)


@pytest.fixture(scope="module")
def two(data: Settings, local_ray: None) -> Done:
    """The same on two workers."""
    return carry_out(data | {"resources": {"workers": 2}})


@dataclass
class Plain:
    """The same experiment fitted by the loop alone, in this process."""

    network: network.Network
    history: list[dict[str, float]]
    losses: dict[int, float]
    ends: list[Weights]  # the weights at the end of each epoch


@pytest.fixture(scope="module")
def plain(data: Settings) -> Plain:
    experiment = build(data)
    corpus, _ = loaders.load_corpus(experiment)
    made = setup.Setup.of(experiment, corpus)
    net, tokenize, _ = made.build()
    losses: dict[int, float] = {}
    ends: list[Weights] = []

    def report(metrics: dict[str, float], save: setup.Save | None) -> None:
        if "epoch" in metrics:
            ends.append({name: tensor.clone() for name, tensor in trained(net).items()})

    def emit(metrics: dict[str, float]) -> None:
        if "train/loss" in metrics:
            losses[int(metrics["step"])] = metrics["train/loss"]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as on a worker of one CPU
    try:
        progress = loop.fit(setup.Run(made, net, tokenize, report, emit))
    finally:
        torch.set_num_threads(threads)
    return Plain(net, progress.history, losses, ends)


def same_weights(model: torch.nn.Module, other: torch.nn.Module, tolerance: float) -> None:
    here, there = model.state_dict(), other.state_dict()
    assert here.keys() == there.keys()
    for name in here:
        torch.testing.assert_close(
            here[name], there[name], rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_one_worker_gives_the_bits_of_the_loop_without_ray(one: Done, plain: Plain) -> None:
    assert one.workers == 1
    assert one.losses == plain.losses
    assert one.history == plain.history
    same_weights(one.model.network, plain.network, tolerance=0)


def test_two_workers_give_the_model_of_one(one: Done, two: Done, plain: Plain) -> None:
    assert two.workers == 2
    assert two.losses == pytest.approx(one.losses, rel=1e-4)  # by update: on a busy machine they come in another order
    for row, expected in zip(two.history, one.history, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    same_weights(two.model.network, plain.network, tolerance=1e-3)
    assert two.outcome.scores.temperature == pytest.approx(one.outcome.scores.temperature, rel=1e-2)


def test_the_model_is_the_mean_of_the_last_epochs_ends(two: Done, plain: Plain) -> None:
    found = dict(two.model.network.state_dict())
    for name, tensor in plain.ends[-1].items():
        mean = (plain.ends[-2][name] + tensor) / 2
        torch.testing.assert_close(found[name], mean, rtol=1e-3, atol=1e-3)
    moved = max(float((found[name] - tensor).abs().max()) for name, tensor in plain.ends[-1].items())
    assert moved > 1e-2  # the last epoch's own weights are something else


def test_a_run_leaves_everything_a_reader_needs(two: Done) -> None:
    json_files = {f"{name}.json" for name in ("result", "scores", "history", "corpus", "environment")}
    others = {"scores.tsv", "report.html", "experiment.yaml", "predictions.npz", "identity.txt"}
    assert json_files | others <= {file.name for file in two.folder.iterdir()}
    assert two.outcome.folder.local.name == run_key(two.outcome.experiment)
    assert artefact.describe(two.folder / "bundle", 0).provenance["run"] == two.folder.name
    assert not two.outcome.repeated and two.outcome.unsent == 0
    stages = [event["stage"] for event in two.events]
    assert list(dict.fromkeys(stages)) == ["check", "start", "load", "train", "evaluate", "score", "save", "track"]
    kept = list((two.folder / "ray").glob("checkpoint_*/"))
    assert len(kept) == 1, "old checkpoints are deleted"


def agrees_with_itself(done: Done, corpus: Path) -> None:
    """Hold the scores to the predictions and the predictions to what the bundle answers."""
    predictions = load_predictions(done.folder / "predictions.npz")
    scores = done.outcome.scores
    assert set(predictions) == set(scores.languages) == {"eng_Latn", "deu_Latn", "swh_Latn", "hin_Deva"}
    for code, found in predictions.items():
        rows = [line.split("\t") for line in (corpus / code / "test.tsv").read_text().splitlines()[1:]]
        assert list(found.ids) == [row[0] for row in rows]
        labels = [done.model.labels[index] for index in found.predicted]
        assert labels == done.model.predict([row[1] for row in rows])
        sure = done.model.probabilities([row[1] for row in rows]).max(axis=1)
        np.testing.assert_allclose(found.confidence, sure, atol=0.02)  # bfloat16 where the machine is faster so
        right = np.mean([label == row[2] for label, row in zip(labels, rows, strict=True)])
        assert scores.languages[code].accuracy == pytest.approx(right)
    assert scores.summary["accuracy/mean_source"] > 0.7  # one in three by chance
    assert scores.temperature == done.model.network.temperature != 1
    assert Scores.from_json((done.folder / "scores.json").read_text()) == scores


def test_scores_predictions_and_bundle_say_the_same(two: Done, tiny_corpus: Path) -> None:
    agrees_with_itself(two, tiny_corpus)


def test_a_finished_run_is_shown_and_not_done_again(two: Done) -> None:
    events: list[Event] = []
    again = run.run(two.outcome.experiment, events.append)
    assert again.repeated and again.scores == two.outcome.scores
    assert events == [{"stage": "check"}], "the corpus is read, as its rows are part of what names the run"


def test_what_a_killed_driver_did_not_hear_is_recorded_in_the_end(
    one: Done, data: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = (one.folder / "ray").glob("checkpoint_*/")
    monkeypatch.setattr(
        distributed, "fine_tune", lambda *ignored: distributed._read_final(kept)
    )  # without a single event
    tracking = {"uri": f"sqlite:///{tmp_path / 'xlt.db'}", "flush_seconds": 0}
    outcome = run.run(build(data | {"tracking": tracking, "storage": str(tmp_path / "runs")}))
    lines = (outcome.folder.local / "outbox.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "metrics"]
    heard = {key: {r["step"]: r["values"][key] for r in records if key in r["values"]} for key in RECORDED}
    assert heard["train/loss"] == one.losses
    assert heard["train/epoch_loss"] == {row["step"]: row["train/epoch_loss"] for row in one.history}
    assert heard["dev/accuracy"] == {row["step"]: row["dev/accuracy"] for row in one.history}


def test_a_probe_computes_every_feature_once(
    data: Settings, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data | {"training": {"method": "probe", "precision": "auto"}, "resources": {"workers": 2}}
    first = carry_out(data)
    embedded = [event for event in first.events if event["stage"] == "embed"]
    assert embedded[0]["done"] == 0 and embedded[-1]["done"] == embedded[-1]["total"] > 0
    agrees_with_itself(first, tiny_corpus)

    monkeypatch.setattr(embedding, "Embedder", None)  # there is nothing left for an actor to do
    second = carry_out(data | {"name": "again"})
    assert second.outcome.scores == first.outcome.scores
    embedded = [event for event in second.events if event["stage"] == "embed"]
    assert embedded == [{"stage": "embed", "done": embedded[0]["total"], "total": embedded[0]["total"]}]


@pytest.mark.long
def test_a_worker_that_diverges_ends_the_run_with_its_own_words(data: Settings, tmp_path: Path) -> None:
    file = tmp_path / "diverges.yaml"
    file.write_text(yaml.safe_dump(data | {"storage": str(tmp_path / "runs")}))
    done = CliRunner().invoke(
        cli.app, ["train", str(file), "training.learning_rate=1.0e+30", "training.average_last=1"]
    )
    assert done.exit_code == 1, done.output
    (line,) = [line for line in done.stderr.splitlines() if line and "Loading weights" not in line]
    assert line.startswith("error: training diverged by update ")
    assert "lower training.learning_rate (now 1e+30)" in line
    # it would only diverge again: no restart, although resources.max_failures allows three
    assert done.stdout.count("loading the encoder on the workers") == 1


def test_what_is_wrong_for_a_worker_alone_is_still_an_input_error(data: Settings, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(data["network"]["init"], encoder)
    changed = data | {"network": {**data["network"], "init": str(encoder)}, "storage": str(tmp_path / "runs")}

    def lose_it(event: Event) -> None:
        if event["stage"] == "start":
            shutil.rmtree(encoder)

    with pytest.raises(InputError, match="network.init: there is no directory"):
        run.run(build(changed), lose_it)


@pytest.mark.long
def test_a_worker_that_dies_too_often_is_reported_in_one_sentence(data: Settings, tmp_path: Path) -> None:
    def kill(event: Event) -> None:
        if event["stage"] == "load":
            (worker,) = [process for process in offspring(os.getpid()) if TRAIN_WORKER in process.command]
            worker.kill()

    changed = data | {"resources": {"max_failures": 0}, "storage": str(tmp_path / "runs")}
    with pytest.raises(errors.TrainingError) as stopped:
        run.run(build(changed), kill)
    message = str(stopped.value)
    assert message.startswith("a worker died")  # how it continues depends on the instant: see the next test
    assert "\n" not in message and "goes on from the last checkpoint" in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerGroupError("", {0: ray.exceptions.ActorDiedError()}), "a worker died, after as many restarts as"),
        (ControllerError(ray.exceptions.ActorDiedError()), "a worker died as its work began (The actor died"),
        (ControllerError(WorkerGroupStartupFailedError("no")), "a worker died as its work began (no); where memory"),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), "no room for 2 workers x (1 CPUs) within 5 minutes; add"),
        (WorkerGroupError("loss is nan", {0: ValueError()}), "Training failed due to worker errors:\nloss is nan"),
    ],
)
def test_every_way_a_worker_can_die_is_reported_as_such(error: Exception, message: str) -> None:
    asked = ResourcesConfig.model_validate({"workers": 2, "max_failures": 0})
    waiting = Waiting(asked, 5.0)
    assert str(distributed._plain_error(error, waiting)).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init": "no/such-directory/of-mine"}, "network.init"),
        ({"freeze": [7]}, "network.freeze: 7 blocks, but the encoder has 2"),
        ({"max_length": 512}, "network.max_length: 512 tokens"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_any_work(
    data: Settings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    events: list[Event] = []
    experiment: Experiment = build(data | {"network": {**data["network"], **change}, "storage": str(tmp_path / "runs")})
    with pytest.raises(InputError, match=message):
        run.run(experiment, events.append)
    assert [event["stage"] for event in events] == ["check"]
