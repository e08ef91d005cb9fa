"""A Ray of our own on this machine, beside others."""

from __future__ import annotations

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import node, services
from ray.util.state import get_actor
from ray.util.state.exception import RayStateApiException
from ray_runs import offspring, until

from xlt_ray.config.experiment import Experiment
from xlt_ray.errors import TrainingError
from xlt_ray.training import cluster


@pytest.mark.slow
def test_the_dashboard_of_another_ray_is_not_asked_whether_ours_lives(
    tiny_experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it knows nothing of Ray Train takes for dead, and stops the workers of a training that is well."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked: list[str] = []

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    try:
        other = ThreadingHTTPServer(("127.0.0.1", 8265), Dashboard)
    except OSError:
        pytest.skip("port 8265, that of dashboards, is taken")
    with other, cluster.ray_cluster(tiny_experiment):
        threading.Thread(target=other.serve_forever, daemon=True).start()
        actor = ray.remote(num_cpus=0)(threading.Event).remote()
        address = ray.get_runtime_context().gcs_address
        with pytest.raises(RayStateApiException):
            get_actor(actor._actor_id.hex(), address=address, timeout=5)
        other.shutdown()
    assert not asked


@pytest.mark.slow
@pytest.mark.parametrize(("process", "name"), [("raylet", "raylet"), ("gcs_server", "head")])
def test_where_ray_itself_dies_the_run_ends_soon_with_a_sentence(
    tiny_experiment: Experiment, monkeypatch: pytest.MonkeyPatch, process: str, name: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    began, told = 0.0, rf"Ray's {name}.* died on this machine; where memory is short, .* goes on"
    with pytest.raises(TrainingError, match=told), cluster.ray_cluster(tiny_experiment), cluster.plain_errors():
        actor: Any = ray.remote(num_cpus=0)(threading.Event).remote()
        waiting = actor.wait.remote(300)
        node: Any = ray._private.worker._global_node
        node.all_processes[process][0].process.kill()
        began = time.monotonic()
        ray.get(waiting)
    assert time.monotonic() - began < 60 and not ray.is_initialized()


def test_only_a_start_that_took_too_long_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def start(**options: Any) -> None:
        asked.append(options)
        if faults:
            raise faults.pop(0)

    monkeypatch.setattr(ray, "init", start)
    late = Exception("The current node timed out during startup.")
    unfound = ray.exceptions.RaySystemError("Failed to connect to GCS. Please check if the GCS server is running.")
    faults: list[Exception] = [late, unfound]
    cluster.init(address="local")
    assert asked == [{"address": "local"}] * 3
    for fault in (ConnectionError("nobody there"), unfound):  # who names a cluster is told that it is not there
        faults = [fault, Exception("never raised")]
        with pytest.raises(type(fault)):
            cluster.init(address="10.0.0.1:6379")
    assert len(asked) == 5
    faults = [late] * 3
    with pytest.raises(TrainingError, match=r"Ray did not start in 3 tries of 30 s; .*; the same command goes on"):
        cluster.init(address="local")
    assert len(asked) == 8


@pytest.mark.slow
@pytest.mark.long
def test_a_machine_too_busy_for_ray_to_start_is_given_another_try(
    tiny_experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given_up: list[Any] = []
    get_node = services.get_node

    def late(address: str, node_id: str) -> Any:
        if len(given_up) < busy:
            given_up.append(offspring(os.getpid()))
            raise RuntimeError("not registered yet")
        return get_node(address, node_id)

    # 30 s pass at once
    hurried = SimpleNamespace(sleep=time.sleep, time=time.time, monotonic=count(0, 31).__next__)
    monkeypatch.setattr(node, "time", hurried)
    monkeypatch.setattr(services, "get_node", late)
    busy = 1
    with cluster.ray_cluster(tiny_experiment):
        assert ray.get(ray.remote(num_cpus=0)(lambda: os.getpid()).remote()) != os.getpid()
        assert given_up[0]
        until(lambda: not any(one.now() for one in given_up[0]), "all that the first try had started to end")
    busy, given_up[:] = 3, []
    with (
        pytest.raises(TrainingError, match=r"Ray did not start in 3 tries of 30 s; .*; the same command goes on"),
        cluster.ray_cluster(tiny_experiment),
    ):
        pass
    assert len(given_up) == 3 and not ray.is_initialized()
    until(lambda: not any(one.now() for each in given_up for one in each), "all that three tries had started to end")
