"""Tell what happens to the workers of a run, and how long machines that are missing are waited for."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from xlt_ray.config.experiment import Experiment, ResourcesConfig
from xlt_ray.errors import TrainingError
from xlt_ray.events import OnEvent
from xlt_ray.training import cluster

WAIT_ON_CLUSTER, WAIT_HERE = 30.0, 1.0  # minutes, where the configuration says nothing
# Where the number of workers may change, Ray decides on it by resources of a moment ago, which may be gone: it finds
# out when they do not start, and has to be quick to try again. Seconds.
ATTEMPT = 15.0
RESIZE = 15.0  # seconds between looks whether there is room for more workers
QUIET = 10.0  # seconds without a word of any worker after which the cluster is looked at
EVERY = 2.0  # seconds between these looks


@dataclass
class Waiting:
    """How long is waited for machines that a run lacks, and what is said meanwhile."""

    asked: ResourcesConfig
    minutes: float
    over: bool = False
    _quiet_since: float = field(default_factory=time.monotonic)  # since then no worker was heard of
    _lacking_since: float | None = None
    _looked: float = -math.inf

    @classmethod
    def of(cls, experiment: Experiment) -> Waiting:
        """Return the waiting of an experiment; a local Ray has all the machines that it will ever have."""
        asked = experiment.resources
        default = WAIT_ON_CLUSTER if os.environ.get("RAY_ADDRESS") else WAIT_HERE
        return cls(asked, asked.wait_minutes or default)

    @property
    def attempt(self) -> float:
        """Seconds in which Ray Train may start workers; where their number may change, it tries again with another."""
        return 60 * self.minutes if isinstance(self.asked.workers, int) else min(ATTEMPT, 60 * self.minutes)

    @property
    def attempts(self) -> int:
        """How often workers may fail to start."""
        return 1 if isinstance(self.asked.workers, int) else 1 + math.ceil(60 * self.minutes / self.attempt)

    @property
    def wanted(self) -> str:
        """What is asked for, in words."""
        asked = self.asked
        return f"{asked.fewest} workers x ({cluster.shown(asked.cpus_per_worker, asked.gpus_per_worker)})"

    def heard(self) -> None:
        """Note that a worker gave a sign of life."""
        self._quiet_since, self._lacking_since = time.monotonic(), None

    def look(self, on_event: OnEvent) -> None:
        """Report that machines are missing, where no worker was heard of for a while; note when that took too long."""
        now = time.monotonic()
        if now - self._quiet_since < QUIET or now - self._looked < EVERY:
            return
        self._looked = now
        room = cluster.slots(1, self.asked.cpus_per_worker, self.asked.gpus_per_worker)
        if room >= self.asked.fewest:
            self._lacking_since = None
            return
        self._lacking_since = self._lacking_since or now
        passed = (now - self._lacking_since) / 60
        lacks = f"{self.wanted} are asked for, and the cluster has room for {room}"
        on_event({"stage": "machines", "note": f"{lacks}; waiting, for at most {self.minutes:g} minutes"})
        on_event({"stage": "machines", "done": round(passed, 1), "total": self.minutes})
        self.over = passed >= self.minutes

    def error(self) -> TrainingError:
        """Return the error of a wait that was in vain."""
        fewer = "" if self.asked.fewest == 1 else f", or set resources.workers=[1,{self.asked.most}] to begin with one"
        return TrainingError(
            f"no room for {self.wanted} within {self.minutes:g} minutes; add machines, raise resources.wait_minutes"
            f"{fewer}. The same command goes on from the last checkpoint"
        )


@contextlib.contextmanager
def draining(events: Any, on_event: OnEvent, waiting: Waiting) -> Iterator[None]:
    """Pass what workers put into the queue on to `on_event`, in a thread, until the block ends and it is empty.

    The block is interrupted where machines are waited for in vain.
    """
    from ray.util.queue import Empty

    done, inside = threading.Event(), threading.current_thread() is threading.main_thread()

    def drain() -> None:
        while True:
            try:
                event = events.get(timeout=0.5)
                waiting.heard()
                on_event(event)
            except Empty:
                if done.is_set():
                    return
                waiting.look(on_event)
                if waiting.over and inside:
                    _interrupt(done)
                    return
            except ray.exceptions.RayError:  # the cluster is going down; fit() says why
                return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)
        events.shutdown(force=True)


def _interrupt(done: threading.Event) -> None:
    """Interrupt the main thread until `done`: Ray asks a controller first, which may not answer, but only twice."""
    for _ in range(3):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if done.wait(5):
            return


def loss(failures: Mapping[int, Exception]) -> str:
    """Return in words which workers failed, and how; errors of those that lost the connection to one are left out.

    >>> loss({1: ValueError("no such file")})
    'worker 1 failed (ValueError: no such file)'
    """
    gone = {rank: error for rank, error in failures.items() if died(error)}
    found = []
    for rank, error in sorted((gone or failures).items()):
        if rank not in gone:
            first = (str(error).strip().splitlines() or [""])[0][:200]
            found.append(f"worker {rank} failed ({type(error).__name__}: {first})")
        else:
            found.append(f"worker {rank} died" + (" with its machine" if "its node has died" in str(error) else ""))
    return ", ".join(found)


def died(failure: BaseException) -> bool:
    """Return whether a worker failed by no error of Python's: its process is gone."""
    return type(failure).__module__.startswith("ray.")
