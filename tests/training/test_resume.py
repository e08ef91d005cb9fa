"""Kill -9 a worker, kill -9 the driver, Ctrl-C: the same command resumes, and every bit is the same."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from ray_runs import (
    TRAIN_WORKER,
    Command,
    Process,
    Settings,
    environment,
    offspring,
    results,
    run_key,
    settings,
    until,
)

from xlt_ray.config.read import build
from xlt_ray.events import Event
from xlt_ray.runs import run

pytestmark = [pytest.mark.slow, pytest.mark.long]

STEPS, EPOCH, REPORTED = 800, 200, 16  # updates in all, an epoch, and between two reported losses
TRAINING: Settings = {
    "epochs": 4,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "average_last": 3,  # so that a sum of weights is under way from the second epoch on
    "checkpoint_every": 47,
    "precision": "float32",
}
RESOURCES = {"workers": 2, "cpus_per_worker": 0.5}


def slow(encoder: Path, corpus: Path, folder: Path, **sections: object) -> Settings:
    """Settings of a run with dropout that trains long enough to be hit in the middle."""
    mixture = {"draws_per_epoch": EPOCH * TRAINING["batch_size"]}
    return settings(encoder, corpus, folder, training=TRAINING, resources=RESOURCES, mixture=mixture, **sections)


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


class Undisturbed:
    """What a run that nobody touched left."""

    def __init__(self, data: Settings) -> None:
        events: list[Event] = []
        outcome = run.run(build(data), events.append)
        self.results = results(outcome.folder.local)
        self.losses = {event["step"]: event["train/loss"] for event in events if "train/loss" in event}


@pytest.fixture(scope="module")
def undisturbed(tiny_encoder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    done = Undisturbed(slow(tiny_encoder, tiny_corpus, tmp_path_factory.mktemp("undisturbed")))
    assert list(done.losses) == list(range(REPORTED, STEPS + 1, REPORTED))
    return done


def equal(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_a_worker_killed_in_mid_epoch_changes_no_bit(
    undisturbed: Undisturbed, tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    killed: list[Process] = []

    def kill_one(event: Event) -> None:
        events.append(event)
        if not killed and event.get("step", 0) > 1.5 * EPOCH:
            workers = [process for process in offspring(os.getpid()) if TRAIN_WORKER in process.command]
            assert len(workers) == 2
            killed.append(workers[-1])
            workers[-1].kill()

    outcome = run.run(build(slow(tiny_encoder, tiny_corpus, tmp_path)), kill_one)
    assert killed and not killed[0].now()
    began = [index for index, event in enumerate(events) if event["stage"] == "load"]
    assert len(began) == 2, "the workers were started once more, and once only"
    steps = [event.get("step", 0) for event in events]
    reached, resumed = max(steps[: began[1]]), next(step for step in steps[began[1] :] if step)
    assert EPOCH < reached < STEPS, "the kill hit while training went on"
    assert REPORTED < resumed <= reached, "they went on from a checkpoint"
    equal(results(outcome.folder.local), undisturbed.results)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[Path], Command]]:
    drivers: list[Command] = []

    def start(config: Path) -> Command:
        drivers.append(Command(tmp_path / f"driver{len(drivers)}.log", environment(), "train", config))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.end()


def resumed_at(driver: Command) -> int:
    """Return the first update that a driver reported."""
    return int(re.findall(rf"training  loss .*  (\d+) of {STEPS}\n", driver.told)[0])


def furthest(folder: Path) -> int:
    """Return the last update whose loss is in the outbox of a run."""
    if not (folder / "outbox.jsonl").is_file():
        return 0
    lines = (folder / "outbox.jsonl").read_bytes().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return max((record["step"] for record in records if record["kind"] == "metrics"), default=0)


def test_a_driver_interrupted_then_killed_goes_on_each_time_and_changes_no_bit(
    undisturbed: Undisturbed, tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, begin: Callable[[Path], Command]
) -> None:
    uri = f"sqlite:///{tmp_path / 'xlt.db'}"
    data = slow(tiny_encoder, tiny_corpus, tmp_path, tracking={"uri": uri, "flush_seconds": 120})
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump(data))
    folder = tmp_path / "runs" / run_key(build(data))
    # after so many more updates two more checkpoints were reported, and the first of them is safe
    enough = 2 * TRAINING["checkpoint_every"] + REPORTED

    first = begin(tmp_path / "slow.yaml")
    first.until(lambda: furthest(folder) >= enough, "a safe checkpoint")
    os.killpg(first.process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
    assert first.process.wait(120) == 130, first.told
    assert first.told.endswith("interrupted; the same command resumes from what is done\n")
    assert "Traceback" not in first.told
    assert resumed_at(first) == REPORTED, "a new run reports its first loss"
    stopped = furthest(folder)

    second = begin(tmp_path / "slow.yaml")
    second.until(lambda: furthest(folder) > stopped, "a loss that was not known before")
    news = furthest(folder)
    second.until(lambda: furthest(folder) >= news + enough, "a safe checkpoint")
    second.process.kill()
    assert second.process.wait(60) == -signal.SIGKILL
    assert resumed_at(second) > REPORTED, "it went on from a checkpoint"
    assert any(TRAIN_WORKER in process.command for process in second.family.values())
    until(lambda: not second.left(), "Ray to follow its driver into death")
    assert furthest(folder) < STEPS and not (folder / "result.json").exists()

    third = begin(tmp_path / "slow.yaml")
    assert third.process.wait(300) == 0, third.told
    assert resumed_at(second) < resumed_at(third), "it went on from a later checkpoint"
    equal(results(folder), undisturbed.results)
    assert_tracked_once(uri, undisturbed.losses)


def assert_tracked_once(uri: str, losses: dict[int, float]) -> None:
    """Hold MLflow to a single finished run in which no metric has a step twice and the curve is the given one."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "xlt"]
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    histories = {key: client.get_metric_history(tracked.info.run_id, key) for key in tracked.data.metrics}
    for key, history in histories.items():
        assert len({metric.step for metric in history}) == len(history), f"{key} has a step twice"
    assert {metric.step: metric.value for metric in histories["train/loss"]} == losses
    assert len(histories["train/epoch_loss"]) == TRAINING["epochs"]
    assert {"test/accuracy/swh_Latn", "test/accuracy/mean_zero_shot"} <= histories.keys()
