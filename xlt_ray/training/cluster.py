"""Connect to the Ray cluster of a run, the one RAY_ADDRESS names or a local one, and translate Ray's errors."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray._private.node import Node

from xlt_ray import interrupts
from xlt_ray.config.experiment import Experiment
from xlt_ray.errors import InputError, TrainingError

if TYPE_CHECKING:
    from xlt_ray.techniques.technique import Each

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"  # the name of the interface
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
VITAL = {"raylet": "Ray's raylet", "gcs_server": "Ray's head (GCS)"}
TRIES, LATE = 3, ("timed out during startup", "Failed to connect to GCS")
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
        before = {name: os.environ.get(name) for name in INTERFACES}
        os.environ.update(dict.fromkeys(INTERFACES, LOOPBACK))  # workers have the environment that Ray started in
        try:
            init_on_loopback("local", include_dashboard=False, dashboard_port=0, **quiet)
        finally:
            for name, old in before.items():
                del os.environ[name]
                if old is not None:
                    os.environ[name] = old
    try:
        with _in_a_line() if os.environ.get("RAY_ADDRESS") else watched():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Interrupt the main thread soon after a process dies without which the local Ray can do nothing, and say so.

    Ray waits for it, for a minute, and then ends this process without a word, or prints what a user cannot read. Raises
    TrainingError. Checked with Ray 2.60.
    """
    over, interrupted = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if died():
                interrupted.set()
                interrupts.interrupt_until(over)
                return

    thread = threading.Thread(target=watch, daemon=True)
    if interrupts.allow():
        thread.start()
    try:
        with _in_a_line():
            yield
        if interrupted.is_set():
            raise TrainingError(died())
    except BaseException as error:
        by_user = isinstance(error, KeyboardInterrupt | SystemExit) and not interrupted.is_set()
        if not by_user and not isinstance(error, InputError) and (sentence := died()):
            raise TrainingError(sentence) from None
        raise
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


@contextlib.contextmanager
def _in_a_line() -> Iterator[None]:
    """Let Ray say of a dead raylet that it is dead, and not print the end of its log, which it keeps in raylet.out."""
    worker: Any = ray._private.worker
    usual = worker.print_to_stdstream

    def show(told: dict[str, Any], ignore_prefix: bool) -> None:
        usual(told | {"lines": [line.partition(" Possible reasons")[0] for line in told["lines"]]}, ignore_prefix)

    worker.print_to_stdstream = show
    try:
        yield
    finally:
        worker.print_to_stdstream = usual


def died() -> str:
    """Say in a sentence which process of the Ray that was started here is dead, "" while none is."""
    node: Any = ray._private.worker._global_node
    gone = [VITAL[name] for name, _ in node.dead_processes() if name in VITAL] if node else []
    remedy = "where memory is short, give it less to do at once; the same command goes on"
    return f"{gone[0]} died on this machine; {remedy}" if gone else ""


def init_on_loopback(address: str, **options: Any) -> None:
    """Connect to a Ray on this machine's loopback interface, or start one ("local").

    None of its own servers listens beyond this machine: Ray would replace 127.0.0.1 by the machine's address, and its
    servers then listen on every interface. Checked with Ray 2.60.
    """
    from ray._private import services

    usual, services.resolve_ip_for_localhost = services.resolve_ip_for_localhost, lambda host: host
    try:
        init(address=address, _node_ip_address="127.0.0.1", **options)
    finally:
        services.resolve_ip_for_localhost = usual


def init(**options: Any) -> None:
    """Call `ray.init`, and again where Ray gives up the Ray that it starts.

    It waits for 30 s, and a busy machine may need more. What a try has started ends with it. Raises TrainingError after
    three tries. Checked with Ray 2.60.
    """
    for left in reversed(range(TRIES)):
        try:
            ray.init(**options)
            return
        except Exception as error:  # that is its class
            if options.get("address") != "local" or not any(words in str(error) for words in LATE):
                raise
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if isinstance(node := frame.f_locals.get("self"), Node):
                    node.kill_all_processes(check_alive=False, wait=True)
            if not left:
                remedy = "give this machine less to do at once; the same command goes on"
                raise TrainingError(f"Ray did not start in {TRIES} tries of 30 s; {remedy}") from None


def is_local() -> bool:
    """Return whether the connected Ray is one of this machine alone, which has all the CPUs that it will ever have."""
    return bool(ray.util.get_node_ip_address() == "127.0.0.1")


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
    machines = ", ".join(shown(one.get("CPU", 0), one.get("GPU", 0)) for one in there)
    raise InputError(
        f"search.fine_tuning.workers: a trial needs {workers} workers x ({shown(cpus, gpus)}), each worker whole on "
        f"one machine; the cluster has {len(there)} machines ({machines}), room for {slots(1, cpus, gpus)} such "
        "workers; lower search.fine_tuning.workers or resources.cpus_per_worker, or use a larger cluster"
    )


def shown(cpus: float, gpus: float) -> str:
    """Return what a worker asks for, or a machine has, in words.

    >>> shown(2, 0), shown(0.5, 1)
    ('2 CPUs', '0.5 CPUs and 1 GPUs')
    """
    return f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")


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
