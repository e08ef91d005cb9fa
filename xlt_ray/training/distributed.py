"""Fine-tune on the workers of a Ray Train TorchTrainer.

After a kill, a call with the same storage path resumes from the last checkpoint there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from safetensors.torch import load_file, save_file

from xlt_ray import durable
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.loaders import load_corpus
from xlt_ray.errors import InputError, TrainingError
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.predictions import Predictions, load_predictions, save_predictions
from xlt_ray.events import Event, OnEvent, counting
from xlt_ray.model import network
from xlt_ray.training import loop
from xlt_ray.training.setup import Report, Run, Save, Setup
from xlt_ray.training.workers.process_group import OwnMeetingPlace
from xlt_ray.training.workers.waiting import RESIZE, Waiting, died, draining, loss

LASTING = (InputError, FloatingPointError)  # errors a restart cannot cure


@dataclass(frozen=True)
class Trained:
    """The result of fine-tuning: the weights that training changed, see `network.trained`, and what was measured."""

    weights: dict[str, torch.Tensor]
    predictions: dict[str, Predictions]  # on test
    reported: list[dict[str, float]]  # losses during epochs
    history: list[dict[str, float]]  # a row an epoch
    facts: dict[str, float]  # figures of techniques
    temperature: float
    apart: dict[str, float]  # accuracy of each reading by itself, by key


def fine_tune(experiment: Experiment, storage_path: str, filesystem: Any, on_event: OnEvent) -> Trained:
    """Fine-tune on Ray Train and predict test; with the same storage path, resume where an earlier call stopped.

    Raises InputError or TrainingError, in plain words, where workers fail.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    asked = experiment.resources
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # elsewhere it would die with a machine
    waiting = Waiting.of(experiment)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(waiting.attempt)
    trainer = TorchTrainer(
        _worker,
        # Ray shows this in its dashboard and its logs, and workers track nothing
        torch_config=OwnMeetingPlace(),
        train_loop_config={"experiment": experiment.model_dump(mode="json", exclude={"tracking"}), "events": events},
        scaling_config=ScalingConfig(
            num_workers=asked.workers,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE,  # type: ignore[call-arg]
            use_gpu=asked.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": asked.cpus_per_worker,
                **({"GPU": asked.gpus_per_worker} if asked.gpus_per_worker else {}),
            },
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=asked.max_failures, controller_failure_limit=waiting.attempts),  # type: ignore[call-arg]
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[_on_failure(events, waiting)],
        ),
    )
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with draining(events, on_event, waiting):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise _plain_error(error, waiting) from None
    assert result.checkpoint is not None
    with _opened(result.checkpoint) as folder:
        return _read_final(folder)


@contextlib.contextmanager
def _opened(checkpoint: Any) -> Iterator[Path]:
    """Open the folder of a checkpoint where it is, on a disk of this machine, else a copy."""
    here = Path(checkpoint.path)
    if here.is_absolute() and here.is_dir():  # Ray copies what a file system of fsspec holds, gigabytes of it
        yield here
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def _plain_error(error: Any, waiting: Waiting) -> InputError | TrainingError:
    """Return the error of Ray Train's that tells a user what went wrong and what to do."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, InputError):
        return cause
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return waiting.error()
    failures = getattr(error, "worker_failures", {}).values()
    if any(died(failure) for failure in failures):
        most = waiting.asked.max_failures
        what = f"a worker died, after as many restarts as resources.max_failures={most} allows"
    elif isinstance(cause, ray.exceptions.RayActorError | WorkerGroupStartupFailedError):
        last = str(cause).strip().rpartition("\n")[2]
        what = f"a worker died as its work began ({last})"
    else:
        return TrainingError(str(cause))
    return TrainingError(
        f"{what}; where memory is short, lower training.tokens_per_step or resources.workers. "
        "The same command goes on from the last checkpoint"
    )


def _on_failure(events: Any, waiting: Waiting) -> Any:
    """Return a callback of Ray Train that tells which worker failed, and ends the run where a restart cures nothing."""
    from ray.train import UserCallback

    class OnFailure(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, LASTING):
                    raise error
            note = f"{loss(worker_exceptions)}; training goes on from the last checkpoint with {waiting.wanted}"
            events.actor.put_nowait.remote({"stage": "train", "note": f"{note} or more" if waiting.elastic else note})

    return OnFailure()


def _worker(settings: dict[str, Any]) -> None:
    """Run on every worker: train to the end, calibrate, then predict this worker's share of test."""
    from ray.train import get_checkpoint, get_context
    from ray.train.torch import get_device

    experiment = Experiment.model_validate(settings["experiment"])
    rank, events = get_context().get_world_rank(), settings["events"]
    torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker)))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a worker is what was asked for

    def emit(event: Event) -> None:
        if rank == 0:
            events.actor.put_nowait.remote(event)  # not waited for: progress must not hold up a step

    restored = get_checkpoint()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_opened(restored)) if restored else None
        if folder is not None and (folder / "final.json").is_file():
            return  # everything is done; the driver reads this checkpoint
        emit({"stage": "load"})
        corpus, _ = load_corpus(experiment)
        prepared = counting(emit, "prepare")
        setup = Setup.of(experiment, corpus, on_progress=prepared).read(on_progress=prepared)
        net, tokenize, _ = setup.build()
        net.to(get_device())
        report = _reporter(rank)
        run = Run(setup, net, tokenize, report, emit=lambda event: emit({"stage": "train"} | event))
        progress = loop.fit(run, folder)
    facts = {name: getattr(progress, name) for name in ("reported", "history", "facts")}
    predictions = _measure(run, progress.precision, facts, emit) if experiment.training.labelled else {}
    report({"step": progress.step, "final": 1.0}, lambda folder: _write_final(folder, net, predictions, facts))


def _measure(run: Run, precision: str, facts: dict[str, Any], emit: OnEvent) -> dict[str, Predictions]:
    """Fit the temperature, predict this worker's share of test, and put what was found besides into `facts`."""
    net, setup, inputs = run.network, run.setup, run.inputs(precision)
    dev = {code: table for code, table in setup.tables("dev").items() if code in run.experiment.sources}
    net.temperature = evaluate.temperature(net, setup.task, dev, inputs)
    test = setup.tables("test")
    scored = evaluate.score(net, setup.task, evaluate.read(test, setup.readings), inputs, counting(emit, "evaluate"))
    facts["temperature"] = net.temperature
    facts["apart"] = evaluate.apart(setup.task, scored, test, setup.readings)
    return evaluate.predictions(setup.task, scored, test, net.temperature, setup.readings)


def _reporter(rank: int) -> Report:
    """Return the `report` of a `Run` that hands metrics and, from rank 0, checkpoints to Ray Train."""
    from ray.train import Checkpoint, report

    def send(metrics: dict[str, float], save: Save | None) -> None:
        if rank != 0 or save is None:
            report(metrics)
            return
        with durable.scratch() as folder:
            save(folder)
            report(metrics, checkpoint=Checkpoint.from_directory(folder))

    return send


def _write_final(
    folder: Path, net: network.Network, predictions: Mapping[str, Predictions], facts: dict[str, Any]
) -> None:
    net.terms.clear()  # trained with the network, but no part of it
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.trained(net).items()}
    save_file(weights, folder / "weights.safetensors")
    save_predictions(folder / "predictions.npz", predictions)
    (folder / "final.json").write_text(json.dumps(facts), encoding="utf-8")


def _read_final(folder: Path) -> Trained:
    facts = json.loads((folder / "final.json").read_text(encoding="utf-8"))
    weights, predictions = load_file(folder / "weights.safetensors"), load_predictions(folder / "predictions.npz")
    return Trained(
        weights,
        predictions,
        facts["reported"],
        facts["history"],
        facts["facts"],
        facts.get("temperature", 1.0),  # 1 in files of before there was any
        facts.get("apart", {}),
    )
