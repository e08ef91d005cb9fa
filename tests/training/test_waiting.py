"""What workers say is passed on, and what goes wrong there ends the work that is waited for."""

from __future__ import annotations

import errno
import queue
import threading
import time
from typing import Any

import pytest
from ray.util.queue import Empty

from xlt_ray.config.sections import ResourcesConfig
from xlt_ray.errors import TrainingError
from xlt_ray.events import Event
from xlt_ray.training import cluster
from xlt_ray.training.workers.waiting import Waiting, draining

FULL = OSError(errno.ENOSPC, "No space left on device")


class Events(queue.Queue[Event]):
    """A queue as Ray's is to those who read it."""

    def get(self, block: bool = True, timeout: float | None = None) -> Event:
        try:
            return super().get(block, timeout)
        except queue.Empty:
            raise Empty from None

    def shutdown(self, force: bool = False, **_: Any) -> None:
        assert force


def waiting(**asked: Any) -> Waiting:
    return Waiting(ResourcesConfig.model_validate({"workers": 1, **asked}), minutes=5.0)


def full(event: Event) -> None:
    raise FULL


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_what_cannot_be_kept_ends_the_work_with_its_error(seconds: float) -> None:
    events, began = Events(), time.monotonic()
    events.put({"stage": "train"})
    with pytest.raises(OSError, match="No space left"), draining(events, full, waiting()):
        time.sleep(seconds)  # work that is over before the error is seen, and work that is under way
    assert time.monotonic() - began < 20


def test_the_error_of_what_cannot_be_kept_is_the_one_that_is_told() -> None:
    events = Events()
    events.put({"stage": "train"})
    with pytest.raises(OSError, match="No space left"), draining(events, full, waiting()):
        raise TrainingError("no worker writes to a disk that is full")


def test_in_another_thread_the_error_is_raised_when_the_work_is_over() -> None:
    events, raised = Events(), []
    events.put({"stage": "train"})

    def work() -> None:
        try:
            with draining(events, full, waiting()):
                time.sleep(1)
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert raised == [FULL]


def test_an_elastic_run_that_waits_in_vain_ends_with_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "slots", lambda *_: 0)
    lacking = waiting(workers=[1, 4])
    lacking.minutes, lacking._quiet_since = 0.0, -100.0
    told: list[Event] = []
    with pytest.raises(TrainingError, match="no room for 1 workers"), draining(Events(), told.append, lacking):
        time.sleep(60)
    assert told


def test_all_that_workers_said_is_passed_on_before_the_end() -> None:
    events, told = Events(), []
    with draining(events, told.append, waiting()):
        for number in range(100):
            events.put({"stage": "train", "done": number})
    assert [event["done"] for event in told] == list(range(100))
