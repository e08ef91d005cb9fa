"""A Ray of our own on this machine, beside others."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import ray
from ray.util.state import get_actor
from ray.util.state.exception import RayStateApiException

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
