"""Tracking: a run never waits for MLflow, and whatever is killed or down, MLflow ends up with everything exactly once."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xlt_ray import courier, outbox, tracking
from xlt_ray.config import InputError, TrackingConfig
from xlt_ray.delivery import Delivery
from xlt_ray.outbox import Outbox

KEY = "trial-0123456789"
ROOT = Path(__file__).parents[1]


def until(condition: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    """Wait for a condition; the limit only bounds a failing test."""
    end = time.monotonic() + limit_s
    while not (result := condition()):
        assert time.monotonic() < end, f"waited {limit_s} s for {what}"
        time.sleep(0.02)
    return result


def python(code: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def settings(uri: str, **changes: Any) -> TrackingConfig:
    return TrackingConfig.model_validate({"uri": uri, "flush_seconds": 60} | changes)


def begin(folder: Path, uri: str, key: str = KEY, **more: Any) -> Outbox:
    return Outbox.open(folder, settings(uri), key, "trial", **more)


def record_all(box: Outbox, steps: range = range(3)) -> None:
    """Record something of every kind but a model."""
    box.params({"mixture.alpha": 0.3, "sources": "eng_Latn"})
    for step in steps:
        box.metrics({"train/loss": 1 / (step + 1), "odd/nan": math.nan, "odd/infinite": -math.inf}, step)
    box.metrics({"test/accuracy/swh_Latn": 0.76}, 0)
    box.tags({"xlt.method": "probe"})
    box.dataset("voice_commands", "https://example.org/corpus", "f00d", {"rows": {"eng_Latn": 3}}, "training", {"text": "string"})
    (box.folder / "report.html").write_text("<p>fine</p>")
    box.artifact(box.folder / "report.html", "reports")
    box.finish()


def store(uri: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(uri)


def runs(uri: str) -> list[Any]:
    client = store(uri)
    experiment = client.get_experiment_by_name("xlt")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def steps_of(uri: str, run: Any, key: str) -> list[int]:
    return [metric.step for metric in store(uri).get_metric_history(run.info.run_id, key)]


def assert_once(uri: str, steps: range = range(3)) -> Any:
    """Hold a server to what `record_all` recorded: one run, every step once, every input once."""
    (run,) = runs(uri)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"mixture.alpha": "0.3", "sources": "eng_Latn"}
    assert run.data.tags["xlt.method"] == "probe"
    assert math.isnan(run.data.metrics["odd/nan"])
    assert run.data.metrics["odd/infinite"] < -1e308
    for key in ("train/loss", "odd/nan", "odd/infinite"):
        assert sorted(steps_of(uri, run, key)) == list(steps)
    assert steps_of(uri, run, "test/accuracy/swh_Latn") == [0]
    (dataset,) = store(uri).get_run(run.info.run_id).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == ("voice_commands", "f00d", "training")
    assert [file.path for file in store(uri).list_artifacts(run.info.run_id, "reports")] == ["reports/report.html"]
    return run


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has created and nobody used; creating one takes seconds, copying it none."""
    file = tmp_path_factory.mktemp("fresh") / "fresh.db"
    store(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(tmp_path: Path, fresh: Path) -> str:
    shutil.copy(fresh, tmp_path / "xlt.db")
    return f"sqlite:///{tmp_path / 'xlt.db'}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, fresh: Path) -> Iterator[str]:
    """A real tracking server; yields its address."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(fresh, folder / "server.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stores = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "files")]
    command = [sys.executable, "-m", "mlflow", "server", *stores, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return bool(urllib.request.urlopen(f"{address}/health", timeout=5).read() == b"OK")
        except OSError:
            return False

    try:
        until(up, "the tracking server", 120)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Line:
    """A telephone line to a server: without one (`target`) it takes calls and never answers; it can lose answers."""

    def __init__(self, target: int | None = None, lose_answer_to: bytes | None = None, port: int = 0) -> None:
        self._target, self._lose = target, lose_answer_to
        self._listener = socket.create_server(("127.0.0.1", port))
        self._sockets: list[socket.socket] = [self._listener]
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.called, self.lost = threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(caller)
            threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        try:
            while request := caller.recv(1 << 20):
                self.called.set()
                if self._target is None:
                    continue
                losing = self._lose is not None and self._lose in request and not self.lost.is_set()
                callee = self._connection(caller)
                callee.sendall(request)
                if losing:
                    until(lambda: callee.recv(1), "the answer that is to be lost")
                    self.lost.set()
                    caller.close()
                    return
        except OSError:
            return

    def _connection(self, caller: socket.socket) -> socket.socket:
        known = getattr(self, "_callees", None)
        if known is None:
            known = self._callees: dict[int, socket.socket] = {}
        if id(caller) not in known:
            callee = known[id(caller)] = socket.create_connection(("127.0.0.1", self._target or 0))
            self._sockets.append(callee)
            threading.Thread(target=self._answer, args=(callee, caller), daemon=True).start()
        return known[id(caller)]

    def _answer(self, callee: socket.socket, caller: socket.socket) -> None: ...

    def close(self) -> None:
        for one in self._sockets:
            one.close()
