"""Connect to the Ray cluster of a run, the one RAY_ADDRESS names or a local one, and translate Ray's errors."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from xlt_ray.config.experiment import Experiment
from xlt_ray.errors import InputError, TrainingError
from xlt_ray.techniques.technique import Each

AHEAD = 4  # calls a CPU that wait for it, each with its rows in memory
# polling every two seconds, the preemption watcher and Ray's own metrics only delay the start and end of small runs
RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@contextlib.contextmanager
def ray_cluster(experiment: Experiment) -> Iterator[None]:
    """Use the cluster RAY_ADDRESS names or this process is connected to, else start a local one and stop it after."""
    for name, value in RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        # Without a dashboard, port 8265 is still noted as its address, where another Ray of this machine may have one.
        # Ray Train asks there whether its controller lives, and stops the workers of one that is unknown there.
        ray.init(address="local", include_dashboard=False, dashboard_port=0, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def each(experiment: Experiment) -> Each:
    """Return a `map` that computes on all CPUs of the connected cluster, as many at once as it has room for."""

    def mapped(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        remote: Any = ray.remote(function)
        options = {"num_cpus": 1, "max_retries": experiment.resources.max_failures}
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(remote.options(**options).remote(item))
            if len(waiting) >= AHEAD * max(1, slots(1, 1, 0)):
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())

    return mapped


def slots(workers: int, cpus: float, gpus: float) -> int:
    """Count how many groups of so many workers, each with these CPUs and GPUs, the connected cluster has room for.

    Workers of a group may sit on different machines; one worker may not.
    """
    wanted = {name: asked for name, asked in (("CPU", cpus), ("GPU", gpus)) if asked}
    fits = [min(there.get(name, 0.0) / asked for name, asked in wanted.items()) for there in _machines()]
    return sum(int(most + 1e-9) for most in fits) // workers


def _machines() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_trials(workers: int, cpus: float, gpus: float) -> None:
    """Raise InputError with the arithmetic where the connected cluster cannot run one trial of a search."""
    if slots(workers, cpus, gpus):
        return
    there = _machines()
    machines = ", ".join(f"{r.get('CPU', 0):g} CPUs" + (f" and {r['GPU']:g} GPUs" if "GPU" in r else "") for r in there)
    asked = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    raise InputError(
        f"search.fine_tuning.workers: a trial needs {workers} workers x ({asked}), each worker whole on one machine; "
        f"the cluster has {len(there)} machines ({machines}), room for {slots(1, cpus, gpus)} such workers; lower "
        "search.fine_tuning.workers or resources.cpus_per_worker, or use a larger cluster"
    )


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise Ray's errors as TrainingError, and the SystemExit it makes of Ctrl-C and SIGTERM as KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise TrainingError(str(error.cause if isinstance(error.cause, FloatingPointError) else error)) from None
    except ray.exceptions.RayError as error:
        raise TrainingError(str(error)) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # fit() leaves behind one that asks a controller which is gone
