"""Runs on real Ray, and the processes they start, for the tests that kill them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.loaders import load_corpus
from xlt_ray.training import cluster
from xlt_ray.training.checks import absolute

TRAIN_WORKER = "RayTrainWorker"  # in the title of a process that runs a worker of Ray Train
COURIER = "xlt_ray.tracking.courier"
ROOT = Path(__file__).parents[1]
CPUS = 2
_left_running: list[bool] = []  # whether a Ray that `local_ray` started runs in this process

Settings = dict[str, Any]


def settings(encoder: Path, corpus: Path, folder: Path, **sections: Any) -> Settings:
    """Plain data of a small experiment that writes below `folder`; sections given are merged into the defaults."""
    data: Settings = {
        "name": "tiny",
        "corpus": {"loader": "files", "path": str(corpus), "id": "id", "cache_dir": str(folder / "cache")},
        "sources": ["eng_Latn", "deu_Latn"],
        "network": {"init": str(encoder), "max_length": 32, "freeze": []},
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 5e-3, "precision": "float32"},
        "evaluation": {"resamples": 100},
        "tracking": {"uri": "off"},
        "storage": str(folder / "runs"),
    }
    for name, value in sections.items():
        data[name] = {**data.get(name, {}), **value} if isinstance(value, Mapping) else value
    return data


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """Use a local Ray of two CPUs, however many the machine has and whatever RAY_ADDRESS names.

    It is started where none runs, which takes seconds, and left running for whoever asks next; see `stop_local_ray`.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.RAY_TRAIN_SETTINGS.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        if not ray.is_initialized():
            cluster.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level=40)
            _left_running.append(True)
        yield
    if not (ray.is_initialized() and _all_free()):
        stop_local_ray()


def _all_free() -> bool:
    """Return whether nothing that ran holds a CPU any more, soon."""
    for _ in range(50):
        if ray.available_resources().get("CPU") == CPUS:
            return True
        time.sleep(0.1)
    return False


def stop_local_ray() -> None:
    """End the Ray that `local_ray` left running, if it did."""
    if _left_running:
        ray.shutdown()
        _left_running.clear()


def environment(**changes: str) -> dict[str, str]:
    """Give the environment for a driver that starts a Ray of its own, whatever Ray this process knows."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "120"} | changes


def free_ports(count: int) -> list[int]:
    """Find ports of 127.0.0.1 that nobody listens on, where neither Ray nor the kernel looks for one.

    What is started on them listens later: a port out of the kernel's own range could by then be that of a connection.
    """
    kernel = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    usual = range(20000, kernel)  # Ray keeps 10002 to 19999 for its workers
    found: list[int] = []
    for port in random.SystemRandom().sample(usual or range(40000, 60000), 1000):
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"1000 ports tried, and not {count} of them were free")


def until(condition: Callable[[], Any], what: str, limit_s: float = 300.0) -> Any:
    """Wait for a condition; the limit only bounds a failing test."""
    end = time.monotonic() + limit_s
    while not (result := condition()):
        assert time.monotonic() < end, f"waited {limit_s:g} s for {what}"
        time.sleep(0.05)
    return result


@dataclass(frozen=True)
class Process:
    """A process told apart from a later one of the same pid by when it was started."""

    pid: int
    started: str
    parent: int = field(compare=False)
    command: str = field(compare=False)

    def now(self) -> Process | None:
        """Look again: under which command it runs now; None when it is dead or only waits to be collected."""
        found = _read(self.pid)
        return found if found == self else None

    def kill(self) -> None:
        if self.now():
            os.kill(self.pid, signal.SIGKILL)


def offspring(pid: int) -> list[Process]:
    """List the living children of a process, their children and so on."""
    everybody = [found for name in os.listdir("/proc") if name.isdigit() and (found := _read(int(name)))]
    family, size = {pid}, 0
    while len(family) > size:
        size = len(family)
        family |= {one.pid for one in everybody if one.parent in family}
    return [one for one in everybody if one.pid in family and one.pid != pid]


def marked(mark: str) -> list[Process]:
    """List the living processes whose environment holds NAME=VALUE, whoever their parent is by now."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(_read(int(name)))
    return [one for one in found if one]


def _read(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None
    return None if fields[0] == "Z" else Process(pid, fields[19], int(fields[1]), command.strip())


class Command:
    """`xlt` with arguments in a session of its own, as a terminal would start it; `variables` are its environment."""

    def __init__(self, log: Path, variables: Mapping[str, str], *arguments: object) -> None:
        self.log, self.family = log, dict[int, Process]()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xlt_ray.cli", *map(str, arguments)], cwd=log.parent,
                env={"PYTHONPATH": str(ROOT), **variables}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    @property
    def told(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, condition: Callable[[], object] | str, what: str = "", limit_s: float = 300) -> None:
        """Wait for a condition, or for words in what it prints."""

        def met() -> bool:
            ended = self.process.poll() is not None
            self.look()
            if condition in self.told if isinstance(condition, str) else condition():
                return True
            assert not ended, f"ended before {what or condition}:\n{self.told}"
            return False

        until(met, what or str(condition), limit_s)

    def look(self) -> None:
        """Note what it has started so far, under the latest title of each process."""
        self.family.update({process.pid: process for process in offspring(self.process.pid)})

    def left(self) -> list[Process]:
        """List what outlived the command and could still write to its run.

        Not so the courier, which has the last words to deliver, and two agents of Ray, which try for a minute to tell
        the cluster that the cluster is gone.
        """
        alive = [now for process in self.family.values() if (now := process.now())]
        return [now for now in alive if COURIER not in now.command and not now.command.endswith("Agent")]

    def end(self) -> None:
        """Kill what is left, and of the processes that it had started those that outlived it."""
        self.look()
        self.process.kill()
        self.process.wait()
        for process in self.family.values():
            process.kill()


def results(folder: Path) -> dict[str, bytes]:
    """Read the files of a finished run that say what was learned: weights, predictions, history, scores."""
    names = [
        "bundle/head.safetensors",
        "bundle/encoder/model.safetensors",
        "predictions.npz",
        "history.json",
        "scores.json",
    ]
    return {name: (folder / name).read_bytes() for name in names}


def run_key(experiment: Experiment) -> str:
    """Return the name of an experiment's run, which its corpus is part of."""
    return experiment.key(load_corpus(absolute(experiment))[0].fingerprint)
