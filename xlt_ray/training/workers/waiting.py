"""Tell what happens to the workers of a run, and how long machines that are missing are waited for."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from xlt_ray import interrupts
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import ResourcesConfig
from xlt_ray.errors import TrainingError
from xlt_ray.events import OnEvent
from xlt_ray.training import cluster

WAIT_ON_CLUSTER, WAIT_HERE = 30.0, 2.0  # minutes, where the configuration says nothing
# Where the number of workers may change, Ray decides on it by resources of a moment ago, which may be gone: it finds
# out when they do not start, and has to be quick to try again. Seconds.
ATTEMPT = 15.0
RESIZE = 15.0  # seconds between looks whether there is room for more workers
QUIET = 10.0  # seconds without a word of any worker after which the cluster is looked at
RESERVED = 60.0  # the same where there is room, but perhaps not for us
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
        default = WAIT_HERE if cluster.is_local() else WAIT_ON_CLUSTER
        return cls(asked, asked.wait_minutes or default)

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change."""
        return not isinstance(self.asked.workers, int)

    @property
    def attempt(self) -> float:
        """Seconds in which Ray Train may start workers; where their number may change, it tries again with another."""
        return min(ATTEMPT, 60 * self.minutes) if self.elastic else 60 * self.minutes / 2

    @property
    def attempts(self) -> int:
        """How often workers may fail to start before the last attempt."""
        return math.ceil(60 * self.minutes / self.attempt) if self.elastic else 1

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
            if self.elastic and now - self._quiet_since > RESERVED:
                note = "no worker yet: others use the cluster, or Ray keeps room for a run that was killed (3 minutes)"
                on_event({"stage": "machines", "note": note})
            return
        self._lacking_since = self._lacking_since or now
        passed = (now - self._lacking_since) / 60
        lacks = f"{self.wanted} are asked for, and the cluster has room for {room}"
        on_event({"stage": "machines", "note": f"{lacks}; waiting, for at most {self.minutes:g} minutes"})
        on_event({"stage": "machines", "done": round(passed, 1), "total": self.minutes})
        self.over = self.elastic and passed >= self.minutes  # else Ray ends it

    def error(self) -> TrainingError:
        """Return the error of a wait that was in vain."""
        asked = self.asked
        fewer = "" if asked.fewest == 1 else f", or set 'resources.workers=[1,{asked.most}]' to begin with one"
        return TrainingError(
            f"no room for {self.wanted} within {self.minutes:g} minutes; add machines, raise resources.wait_minutes"
            f"{fewer}. The same command goes on from the last checkpoint"
        )


@contextlib.contextmanager
def draining(events: Any, on_event: OnEvent, waiting: Waiting) -> Iterator[None]:
    """Pass what workers put into the queue on to `on_event`, in a thread, until the block ends and it is empty.

    The block is interrupted, and raises the error, where machines are waited for in vain or `on_event` raises one, as
    where what it keeps finds no room on the disk.
    """
    from ray.util.queue import Empty

    done, inside = threading.Event(), interrupts.allow()
    failed: list[Exception] = []

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
                    raise waiting.error() from None
            except ray.exceptions.RayError:  # the cluster is going down; fit() says why
                return

    def watch() -> None:
        try:
            drain()
        except Exception as error:
            failed.append(error)
            if inside and not done.is_set():
                interrupts.interrupt_until(done)

    def close() -> None:
        done.set()
        thread.join(timeout=10)
        events.shutdown(force=True)

    thread = threading.Thread(target=watch, daemon=True)
    try:
        try:
            thread.start()
            yield
        finally:
            try:
                close()
            except (KeyboardInterrupt, SystemExit):  # Ray makes the second of the first
                if not failed:
                    raise
                close()  # interrupted by `watch`, as the block had just ended
    except BaseException:
        if failed:
            raise failed[0] from None
        raise
    if failed:
        raise failed[0]


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
