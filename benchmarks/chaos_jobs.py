"""What benchmarks/chaos.py plays with: a small world with its servers, the commands in it and what they must leave."""

from __future__ import annotations

import collections
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow

from xlt_ray import durable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # a small corpus, and processes to start and kill

import conftest
import ray_runs
import search_runs
from ray_runs import Command, Process, environment
from search_runs import journal
from tracking_server import PROGRAMS, Postgres, TrackingServer

MARK = "XLT_CHAOS"  # in the environment of every process that a round starts
PATIENCE = 420  # seconds for a command, some ten times what it takes
GRACE = 90  # seconds for what outlives its command to end, or for a server to answer again
AWAY = 5  # seconds that what others keep running is away, as a server of MLflow


# victims: what is struck, found among the processes of a round by the title, and by which signal


@dataclass(frozen=True)
class Victim:
    """What a round strikes; `titles` are sought in command lines, and where there are none it is no single process."""

    name: str
    titles: tuple[str, ...] = ()
    signal: signal.Signals = signal.SIGKILL
    harmless: bool = False  # to the clients of a server: no connection of theirs goes through it


TRAINED: tuple[Victim, ...] = (
    Victim("driver"),
    Victim("driver, Ctrl-C", signal=signal.SIGINT),
    Victim("driver, SIGTERM", signal=signal.SIGTERM),
    Victim("worker", ("ray::RayTrainWorker", "ray::Trial", "ray::ResourceTrainable", "ray::Embedder", "ray::try_mix")),
    Victim("Train's controller", ("ray::TrainController",)),
    Victim("queue of progress", ("ray::_QueueActor",)),
    Victim("raylet", ("raylet/raylet",)),
    Victim("Ray's head (GCS)", ("gcs/gcs_server",)),
    Victim("courier", (ray_runs.COURIER,)),
    Victim("any process"),
    Victim("all at once"),
    Victim("tracking server"),
    Victim("database"),
    Victim("driver, then a torn file in the cache"),
    Victim("clock, an hour forward"),
    Victim("clock, an hour back"),
    Victim("disk full"),
)
OF_ONE_PROCESS = {"driver", "all at once", "tracking server", "database", "clock"}
PROMOTED = tuple(one for one in TRAINED if one.name.split(",")[0] in OF_ONE_PROCESS)
ON_A_CLUSTER = (Victim("node"), Victim("head node"), Victim("driver"), Victim("worker", ("ray::RayTrainWorker",)))
SERVED = (
    Victim("replica", ("ServeReplica:xlt",), harmless=True),
    Victim("proxy", ("haproxy",)),
    Victim("Serve's proxy actor", ("ray::ProxyActor", "ray::HAProxyManager")),
    Victim("Serve's controller", ("ray::ServeController",), harmless=True),
    Victim("raylet", ("raylet/raylet",)),
    Victim("Ray's head (GCS)", ("gcs/gcs_server",)),
    Victim("driver"),
    Victim("all at once"),
)


@dataclass
class World:
    """A folder with an encoder, a corpus, a tracking server and a marked environment that all rounds share."""

    folder: Path
    server: TrackingServer
    database: Postgres | None
    small: Path | None  # a small file system, where one can be mounted
    restarts: list[threading.Thread] = field(default_factory=list)

    @property
    def scratch(self) -> Path:
        return self.folder / "t"

    def environment(self, **more: str) -> dict[str, str]:
        own = {MARK: str(self.folder), "TMPDIR": str(self.scratch), "HOME": str(self.folder / "home")}
        return environment(**own, MLFLOW_HTTP_REQUEST_TIMEOUT="20", RAY_DISABLE_IMPORT_WARNING="1", **more)

    def processes(self) -> list[Process]:
        """List the living processes that rounds have started, found by their environment whoever their parent is."""
        return ray_runs.marked(f"{MARK}={self.folder}")

    def data(self, place: Path, experiment: str, **sections: Any) -> dict[str, Any]:
        tracking = {"uri": self.server.url, "experiment": experiment, "register_as": None}
        shared: dict[str, Any] = {"tracking": tracking, "resources": {"workers": 2, "max_failures": 3}}
        shared["training"] = {"epochs": 10, "batch_size": 16, "checkpoint_every": 4}
        build = search_runs.search_settings if "search" in sections else ray_runs.settings
        return build(self.folder / "encoder", self.folder / "corpus", place, **shared | sections)

    def restart(self, which: TrackingServer | Postgres) -> None:
        """Kill the tracking server or its database, and start it again after some seconds, beside what goes on."""
        which.kill()

        def back() -> None:
            time.sleep(AWAY)
            which.start()

        self.restarts.append(threading.Thread(target=back))
        self.restarts[-1].start()

    def settled(self) -> None:
        """Wait for the servers that were killed to be back."""
        while self.restarts:
            self.restarts.pop().join()
        self.server.wait()  # raises where it is not


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Make the world, and unmake it: what is left of processes is killed."""
    with tempfile.TemporaryDirectory(prefix="c") as temp, contextlib.ExitStack() as stack:
        folder = Path(temp)
        folder.chmod(0o755)  # PostgreSQL's user is another
        for name in ("t", "home", "tracking", "small"):
            (folder / name).mkdir()
        conftest.save_encoder(folder / "encoder")
        for number, (language, rows) in enumerate(zip(conftest.LANGUAGES, (160, 40, 12, 12), strict=True)):
            for split, count, start in (("train", rows, 0), ("dev", 21, 1000), ("test", 45, 2000)):
                file = folder / "corpus" / language / f"{split}.tsv"
                conftest.write_rows(file, language, count, 10 * number + start, start)
        database = stack.enter_context(Postgres(folder / "postgres").running()) if PROGRAMS else None
        store = database.uri if database else f"sqlite:///{folder}/tracking/mlflow.db"
        server = stack.enter_context(TrackingServer(folder / "tracking", store).running())
        made = World(folder, server, database, _mounted(folder / "small", stack))
        try:
            yield made
        finally:
            for process in made.processes():
                process.kill()


def _mounted(folder: Path, stack: contextlib.ExitStack) -> Path | None:
    """Mount a file system of 24 MB, where this user may; return its folder."""
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        return None
    stack.callback(subprocess.run, ["umount", "-l", str(folder)], capture_output=True)
    return folder


# jobs: commands that end. Each makes its command for a round and judges what is left of it


class Train:
    """A run of two workers, held against an undisturbed one."""

    name, victims = "train", TRAINED

    def __init__(self, here: World) -> None:
        self.here = here
        self.seconds, self.lines = 0.0, 1
        self.plain: Any = None  # what an undisturbed one left
        self.recorded: Any = None  # what MLflow knows of it

    def settings(self, place: Path, experiment: str) -> dict[str, Any]:
        return self.here.data(place, experiment)

    def begin(self, number: int, small: bool = False) -> tuple[Path, list[str]]:
        """Return the place of a round and its command; `small` is for one whose disk can be filled."""
        place = self.here.folder / f"{self.name}{number}"
        place.mkdir()
        storage = self.here.small if small and self.here.small else place
        file = search_runs.write(self.settings(storage, f"{self.name}{number}"), place / "tiny.yaml")
        return place, [self.name.split()[0], str(file)]

    def measure(self) -> None:
        """Do it once undisturbed: how long it takes, what it prints, what it leaves."""
        place, arguments = self.begin(-1)
        began = time.monotonic()
        command = Command(place / "log", self.here.environment(), *arguments)
        status = command.process.wait(PATIENCE)
        assert status == 0, command.told
        self.seconds = time.monotonic() - began
        self.lines = len(progress(command))
        self.plain, self.recorded = self.left(-1, place), self.tracked(-1)

    def folder(self, place: Path) -> Path:
        """Return the folder of the run, wherever its storage is."""
        places = [place, *([self.here.small] if self.here.small else [])]
        return next(found for one in places for found in (one / "runs").glob("tiny-*/"))

    def left(self, number: int, place: Path) -> dict[str, Any]:
        """Return what a round left, to be compared with the undisturbed one's."""
        folder = self.folder(place)
        leases = [one.name for one in folder.rglob("lease-*")]
        return {**ray_runs.results(folder), "leases": leases, "drafts": [one.name for one in durable.drafts(folder)]}

    def tracked(self, number: int) -> Any:
        """Return what MLflow knows, to be compared with what it knows of the undisturbed one."""
        client = mlflow.MlflowClient(self.here.server.url)
        experiment = client.get_experiment_by_name(f"{self.name}{number}")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return sorted((self._record(client, run) for run in runs), key=str)

    def _record(self, client: mlflow.MlflowClient, run: Any) -> dict[str, Any]:
        metrics = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        return {
            "status": run.info.status,
            "steps": {key: sorted(one.step for one in history) for key, history in metrics.items()},
            "params": sorted(run.data.params),
            "artefacts": sorted(one.path for one in client.list_artifacts(run.info.run_id)),
        }

    def judge(self, number: int, place: Path) -> list[str]:
        """Return what is wrong with what a round left."""
        return compared("", self.left(number, place), self.plain) + compared(
            "MLflow: ", self.tracked(number), self.recorded
        )

    def still(self, number: int) -> list[str]:
        """Judge what must hold at any time, between a strike and the command that goes on."""
        return []


def progress(command: Command) -> list[str]:
    return [line for line in command.told.splitlines() if line.startswith("[")]


def compared(where: str, found: Any, expected: Any) -> list[str]:
    """Describe how two things differ, down to the keys and elements in which they do."""
    if found == expected:
        return []
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            fault
            for key in sorted({*found, *expected}, key=str)
            for fault in compared(f"{where}{key}: ", found.get(key), expected.get(key))
        ]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [fault for one, other in zip(found, expected, strict=True) for fault in compared(where, one, other)]
    return [f"{where}{str(found)[:200]} instead of {str(expected)[:200]}"]


class Tune(Train):
    """A small search."""

    name = "tune"

    def settings(self, place: Path, experiment: str) -> dict[str, Any]:
        search: dict[str, Any] = {"screening": {"trials": 4}, "fine_tuning": {"trials": 3, "scheduler": "none"}}
        search["retraining"] = {"seeds": 1, "baselines": []}
        more = {"search": search, "resources": {"cpus_per_worker": 1}, "training": {"epochs": 3}}
        return self.here.data(place, experiment, **more)

    def left(self, number: int, place: Path) -> dict[str, Any]:
        folder = self.folder(place)
        lines = journal(folder)
        written = collections.Counter((line["fidelity"], line["name"], line["epochs"]) for line in lines)
        timed = ("seconds", "cost")  # which differ from one time to the next
        probes = [line for line in lines if line["fidelity"] == "probe"]
        return {
            "probes": {one["name"]: {key: one[key] for key in one if key not in timed} for one in probes},
            "written twice": [key for key, count in written.items() if count > 1],
            "ended": sum(line["fidelity"] == "fine_tune" and bool(line["whole"]) for line in lines),
            "retrained": len(list(folder.glob("retrained/tiny-chosen-*/result.json"))),
            "leases": [one.name for one in folder.rglob("lease-*")],
            "drafts": [one.name for one in durable.drafts(folder)],
        }

    def _record(self, client: mlflow.MlflowClient, run: Any) -> dict[str, Any]:
        """Which mixes are fine-tuned may differ; that each is there once, and no step twice, may not."""
        found = super()._record(client, run)
        twice = [key for key, steps in found["steps"].items() if len(set(steps)) < len(steps)]
        return {"status": found["status"], "twice": twice, "below": "mlflow.parentRunId" in run.data.tags}


class Promote(Train):
    """A promotion of one finished run, each time under a name of its own."""

    name, victims = "promote", PROMOTED

    def __init__(self, here: World, train: Train) -> None:
        super().__init__(here)
        self.run = train.folder(here.folder / "train-1")
        self.texts = here.folder / "texts"
        self.texts.write_text("eng1 eng2\neng30\ndeu50 deu55\n", encoding="utf-8")

    def begin(self, number: int, small: bool = False) -> tuple[Path, list[str]]:
        place = self.here.folder / f"{self.name}{number}"
        place.mkdir()
        options = ["--name", f"promote{number}", "--uri", self.here.server.url, "--cache", str(place / "cache")]
        return place, ["promote", str(self.run), *options]

    def left(self, number: int, place: Path) -> dict[str, Any]:
        client = mlflow.MlflowClient(self.here.server.url)
        (model,) = client.search_registered_models(f"name='promote{number}'")
        versions = [one.version for one in client.search_model_versions(f"name='promote{number}'")]
        return {"versions": versions, "aliases": model.aliases, "answers": self.answers(number)}

    def tracked(self, number: int) -> Any:
        return None

    def answers(self, number: int) -> Any:
        """Return what the model of the alias answers, or why it does not."""
        options = ["--uri", self.here.server.url]
        command = [sys.executable, "-m", "xlt_ray.cli", "predict", f"models:/promote{number}@champion", str(self.texts)]
        variables = self.here.environment()
        done = subprocess.run([*command, *options], env=variables, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            return done.stdout + done.stderr
        return [(line["label"], round(line["confidence"], 4)) for line in map(json.loads, done.stdout.splitlines())]

    def still(self, number: int) -> list[str]:
        self.here.settled()
        client = mlflow.MlflowClient(self.here.server.url)
        models = client.search_registered_models(f"name='promote{number}'")
        if not (models and "champion" in models[0].aliases):
            return []
        return compared("the alias, meanwhile: ", self.answers(number), self.plain["answers"])


class TrainOnCluster(Train):
    """The same run on a head without CPUs and two nodes of one CPU."""

    name, victims = "train on a cluster", ON_A_CLUSTER

    def __init__(self, here: World, train: Train) -> None:
        super().__init__(here)
        self.seconds, self.lines = train.seconds, train.lines
        self.plain, self.recorded = train.plain, train.recorded


class Jobs:
    """The jobs that rounds have asked for, each measured once without a disturbance."""

    def __init__(self, here: World) -> None:
        self.here, self.made = here, dict[str, Train]()

    def of(self, name: str) -> Train:
        if name not in self.made:
            if name == "train":
                job = Train(self.here)
            elif name == "tune":
                job = Tune(self.here)
            elif name == "promote":
                job = Promote(self.here, self.of("train"))
            else:
                job = TrainOnCluster(self.here, self.of("train"))
            if not job.seconds:
                job.measure()
            self.made[name] = job
        return self.made[name]
