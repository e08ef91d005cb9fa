"""Kill what can die in the middle of train, tune, promote and serve, and count what is lost when they go on.

    python benchmarks/chaos.py                           # 100 rounds; an hour or two on two cores
    python benchmarks/chaos.py --minutes 5               # as many as begin within five minutes
    python benchmarks/chaos.py --only serve --seed 3     # one command, other moments
    python benchmarks/chaos.py --round 17                # one round of these again; the seed decides it

A seed and the number of a round decide command, victim and moment: a time of the undisturbed command's, or shortly
after a line that it printed. After a strike the command may end well by itself, or end; then the same command is given
again, until it ends well. Held against an undisturbed one: weights, predictions and scores to the bit; trials, none
lost and none twice; MLflow's runs, none twice, and no step of a metric twice; aliases, whose model must answer at any
time; answers of a server under load, each of which must be right or a refusal that the client can read. What is alive
when all is over, or lies among temporary files, is told as well. Models and corpus are tiny, all else is real: Ray,
Tune, Serve, HAProxy, MLflow's server, and PostgreSQL below it where Debian's package of it is installed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # a small corpus, and processes to start and kill

import conftest
import machines
import ray_runs
import search_runs
from local_server import artefact_of
from ray_runs import ROOT, Command, Process, environment, until
from search_runs import journal
from tracking_server import PROGRAMS, Postgres, TrackingServer

MARK = "XLT_CHAOS"  # in the environment of every process that a round starts
PATIENCE = 420  # seconds for a command, some ten times what it takes
GRACE = 90  # seconds for what outlives its command to end, or for a server to answer again
AWAY = 5  # seconds that what others keep running is away, as a server of MLflow
NAME = "tiny"


# victims: what is struck, found among the processes of a round by the title, and by which signal


@dataclass(frozen=True)
class Victim:
    """What a round strikes; `titles` are sought in command lines, and where there are none it is no single process."""

    name: str
    titles: tuple[str, ...] = ()
    signal: signal.Signals = signal.SIGKILL


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
    Victim("replica", ("ServeReplica:xlt",)),
    Victim("proxy", ("haproxy",)),
    Victim("Serve's proxy actor", ("ray::ProxyActor", "ray::HAProxyManager")),
    Victim("Serve's controller", ("ray::ServeController",)),
    Victim("raylet", ("raylet/raylet",)),
    Victim("Ray's head (GCS)", ("gcs/gcs_server",)),
    Victim("driver"),
    Victim("all at once"),
)


@dataclass
class Round:
    """One round: what was struck and when, how often the command was given, and the faults found."""

    number: int
    scenario: str
    victim: str
    moment: str = ""
    calls: int = 1
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class World:
    """A folder with an encoder, a corpus, a tracking server and a marked environment that all rounds share."""

    folder: Path
    server: TrackingServer
    database: Postgres | None
    small: Path | None  # a small file system, where one can be mounted

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

        threading.Thread(target=back).start()


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
    """A run of two workers; `plain` is an undisturbed one."""

    name, victims = "train", TRAINED

    def __init__(self, here: World) -> None:
        self.here = here
        self.seconds, self.lines = 0.0, 1
        self.plain: dict[str, bytes] = {}

    def begin(self, number: int, small: bool = False) -> tuple[Path, list[str]]:
        """Return the place of a round and its command."""
        place = self.here.small if small and self.here.small else self.here.folder / f"{self.name}{number}"
        place.mkdir(exist_ok=True)
        file = search_runs.write(self.here.data(place, f"{self.name}{number}"), place / "tiny.yaml")
        return place, ["train", str(file)]

    def measure(self) -> None:
        """Do it once undisturbed: how long it takes, what it prints, what it learns."""
        place, arguments = self.begin(-1)
        began = time.monotonic()
        command = Command(place / "log", self.here.environment(), *arguments)
        status = command.process.wait(PATIENCE)
        assert status in (0, 3), command.told
        self.seconds = time.monotonic() - began
        self.lines = sum(line.startswith("[") for line in command.told.splitlines())
        self.keep(place)
        faults = self.judge(-1, place)
        assert not faults, (faults, command.told)

    def keep(self, place: Path) -> None:
        self.plain = ray_runs.results(self.folder(place))

    def folder(self, place: Path) -> Path:
        return next((place / "runs").glob("tiny-*/"), place)

    def judge(self, number: int, place: Path) -> list[str]:
        """Return what is wrong with what a round left."""
        folder = self.folder(place)
        found = [name for name, content in ray_runs.results(folder).items() if content != self.plain[name]]
        faults = [f"{name} differs from the undisturbed run's" for name in found]
        faults += [f"{one.name} is left" for one in folder.glob("lease-*")]
        return faults + self.tracked(number, runs=1, history=10)

    def tracked(self, number: int, runs: int, history: int) -> list[str]:
        """Hold MLflow to so many finished runs, and to one value a step."""
        client = mlflow.MlflowClient(self.here.server.url)
        experiment = client.get_experiment_by_name(f"{self.name}{number}")
        if experiment is None:
            return ["MLflow knows no such experiment"]
        known = client.search_runs([experiment.experiment_id])
        keys = collections.Counter(run.data.tags["xlt.run_key"] for run in known)
        faults = [f"MLflow has {count} runs of {key}" for key, count in keys.items() if count > 1]
        if runs and len(known) != runs:
            faults.append(f"MLflow has {len(known)} runs and not {runs}")
        faults += [f"MLflow has a run as {status}" for run in known if (status := run.info.status) != "FINISHED"]
        for run in known:
            for key in run.data.metrics:
                steps = [one.step for one in client.get_metric_history(run.info.run_id, key)]
                if len(set(steps)) < len(steps):
                    faults.append(f"MLflow has a step of {key} twice")
                if key == "train/epoch_loss" and history and len(steps) != history:
                    faults.append(f"MLflow has {len(steps)} epochs and not {history}")
        return faults

    def still(self, number: int) -> list[str]:
        """Judge what must hold at any time, between a strike and the command that goes on."""
        return []


class Tune(Train):
    """A small search."""

    name = "tune"

    def begin(self, number: int, small: bool = False) -> tuple[Path, list[str]]:
        place = self.here.small if small and self.here.small else self.here.folder / f"{self.name}{number}"
        place.mkdir(exist_ok=True)
        search = {"screening": {"trials": 4}, "fine_tuning": {"trials": 3, "scheduler": "none"}}
        search["retraining"] = {"seeds": 1, "baselines": []}  # type: ignore[dict-item]
        more = {"search": search, "resources": {"cpus_per_worker": 1}, "training": {"epochs": 3}}
        file = search_runs.write(self.here.data(place, f"{self.name}{number}", **more), place / "tiny.yaml")
        return place, ["tune", str(file)]

    def keep(self, place: Path) -> None:
        self.scores = {line["name"]: line for line in journal(self.folder(place)) if line["fidelity"] == "probe"}

    def folder(self, place: Path) -> Path:
        return next((place / "runs").glob("tiny-search-*/"), place)

    def judge(self, number: int, place: Path) -> list[str]:
        folder = self.folder(place)
        lines = journal(folder)
        written = collections.Counter((line["fidelity"], line["name"], line["epochs"]) for line in lines)
        faults = [f"{key} is in the journal {count} times" for key, count in written.items() if count > 1]
        whole = [line["name"] for line in lines if line["fidelity"] == "fine_tune" and line["whole"]]
        if len(whole) != 3:
            faults.append(f"{len(whole)} trials ended and not 3")
        for line in lines:
            if line["fidelity"] == "probe" and line["name"] in self.scores and line != self.scores[line["name"]]:
                faults.append(f"the probe {line['name']} has another score than undisturbed")
        if not list(folder.glob("retrained/tiny-chosen-*/result.json")):
            faults.append("nothing was retrained")
        faults += [f"{one.name} is left" for one in folder.rglob("lease-*")]
        return faults + self.tracked(number, runs=0, history=0)


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
        place.mkdir(exist_ok=True)
        options = ["--name", f"promote{number}", "--uri", self.here.server.url, "--cache", str(place / "cache")]
        return place, ["promote", str(self.run), *options]

    def keep(self, place: Path) -> None:
        self.answers = self.answer(-1)

    def answer(self, number: int) -> list[Any]:
        """Return what the model of the alias answers."""
        options = ["--uri", self.here.server.url]
        command = [sys.executable, "-m", "xlt_ray.cli", "predict", f"models:/promote{number}@champion", str(self.texts)]
        done = subprocess.run([*command, *options], env=self.here.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return [(line["label"], round(line["confidence"], 4)) for line in map(json.loads, done.stdout.splitlines())]

    def judge(self, number: int, place: Path) -> list[str]:
        client = mlflow.MlflowClient(self.here.server.url)
        versions = client.search_model_versions(f"name='promote{number}'")
        faults = [] if len(versions) == 1 else [f"{len(versions)} versions and not 1"]
        return faults + self.still(number, needed=True)

    def still(self, number: int, needed: bool = False) -> list[str]:
        client = mlflow.MlflowClient(self.here.server.url)
        models = client.search_registered_models(f"name='promote{number}'")
        if not (models and "champion" in models[0].aliases):
            return ["the alias is missing"] if needed else []
        try:
            return [] if self.answer(number) == self.answers else ["the model of the alias answers otherwise"]
        except AssertionError as error:
            return [f"the model of the alias does not answer: {error}"]


class TrainOnCluster(Train):
    """The same run on a head without CPUs and two nodes of one CPU."""

    name, victims = "train on a cluster", ON_A_CLUSTER

    def __init__(self, here: World, train: Train) -> None:
        super().__init__(here)
        self.seconds, self.lines, self.plain = train.seconds, train.lines, train.plain


def wait_for(command: Command, job: Train, rng: np.random.Generator) -> str:
    """Wait for the moment of a strike, a share of the undisturbed time or a little after a line; return it."""
    if rng.random() < 0.5:
        seconds = float(rng.uniform(0.05, 1.0)) * job.seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.process.wait(seconds)
        return f"{seconds:.0f} of {job.seconds:.0f} s"
    line, later = int(rng.integers(1, max(2, job.lines))), float(rng.uniform(0, 2))

    def printed() -> bool:
        return command.process.poll() is not None or command.told.count("\n[") + 1 >= line

    with contextlib.suppress(AssertionError):
        until(printed, "a line", PATIENCE)
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.process.wait(later)
    return f"line {line} of {job.lines}"


def strike(here: World, victim: Victim, command: Command, place: Path, rng: np.random.Generator) -> str:
    """Strike, and return what was hit, or an empty string where there is nothing of the kind at the moment."""
    family = [one for one in here.processes() if one.pid != command.process.pid]
    if victim.name.startswith("driver"):
        if victim.signal == signal.SIGINT:
            os.killpg(command.process.pid, signal.SIGINT)  # what a terminal does
        else:
            command.process.send_signal(victim.signal)
        if "torn" in victim.name:
            files = [file for file in (place / "cache").rglob("*") if file.is_file() and file.stat().st_size > 1]
            if files:
                torn = files[int(rng.integers(len(files)))]
                os.truncate(torn, torn.stat().st_size // 2)
                return f"driver, and {torn.relative_to(place)}"
        return victim.name
    if victim.name == "all at once":
        for process in family:
            process.kill()
        command.process.kill()
        return f"{len(family) + 1} processes"
    if victim.name in ("tracking server", "database"):
        which = here.server if victim.name == "tracking server" else here.database
        if which is None:
            return ""
        here.restart(which)
        return victim.name
    if victim.name == "disk full":
        with contextlib.suppress(OSError), (place / "filler").open("wb") as file:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        return victim.name
    named = [one for one in family if any(title in one.command for title in victim.titles)]
    if victim.name == "any process":
        named = family
    if not named:
        return ""
    hit = named[int(rng.integers(len(named)))]
    hit.kill()
    return hit.command[:60]


def play(here: World, job: Train, victim: Victim, this: Round, rng: np.random.Generator) -> None:
    """Play a round of a command that ends."""
    full = victim.name == "disk full"
    if full and here.small is None:
        this.notes.append("no file system could be mounted: the driver is killed instead")
        full, victim = False, TRAINED[0]
    place, arguments = job.begin(this.number, full)
    variables = here.environment()
    if victim.name.startswith("clock"):
        variables |= _clock(here, 3600 if "forward" in victim.name else -3600, float(rng.uniform(0, 0.7)) * job.seconds)
    command = Command(place / "log0", variables, *arguments)
    this.moment = "" if victim.name.startswith("clock") else wait_for(command, job, rng)
    if command.process.poll() is None and not victim.name.startswith("clock"):
        hit = strike(here, victim, command, place, rng)
        if not hit:
            this.notes.append(f"there was no {victim.name}: the driver was killed")
            command.process.kill()
    this.faults += job.still(this.number)
    while not _ended_well(command, this):
        (place / "filler").unlink(missing_ok=True)
        if this.calls == 4 or any("hung" in fault for fault in this.faults):
            this.faults.append(f"not done after {this.calls} calls: {command.told[-1500:]}")
            break
        command = Command(place / f"log{this.calls}", here.environment(), *arguments)
        this.calls += 1
    (place / "filler").unlink(missing_ok=True)
    if command.process.returncode == 3:  # what is not sent yet is kept, and the command says how to send it
        this.notes.append("sent to MLflow by `xlt sync`")
        Command(place / "sync", here.environment(), "sync", str(job.folder(place))).process.wait(PATIENCE)
    if not this.faults:
        this.faults += job.judge(this.number, place)


def _ended_well(command: Command, this: Round) -> bool:
    """Wait for a command's end; note a hang, and an end that tells the user nothing."""
    try:
        status = command.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        this.faults.append(f"hung for {PATIENCE} s: {command.told[-1500:]}")
        command.end()
        return False
    if status > 0 and "Traceback (most recent call last)" in command.told:
        this.faults.append(f"a traceback instead of a sentence: {command.told[-1500:]}")
    return status in (0, 3)


def _clock(here: World, jump: int, after: float) -> dict[str, str]:
    """Return the environment in which Python's clock jumps some seconds after a process began."""
    folder = here.folder / "clock"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import os, time\n_time, _began = time.time, time.monotonic()\n"
        "_after, _jump = map(float, os.environ['JUMP'].split())\n"
        "time.time = lambda: _time() + (_jump if time.monotonic() - _began > _after else 0)\n"
    )
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "JUMP": f"{after} {jump}"}


def play_on_cluster(here: World, job: Train, victim: Victim, this: Round, rng: np.random.Generator) -> None:
    """Play a round on a cluster of its own; what is killed of it comes back some seconds later, as in a cloud."""
    place, arguments = job.begin(this.number)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(machines.machines())
        for _ in range(2):
            cluster.add()
        variables = {**here.environment(), **cluster.environment(), MARK: str(here.folder)}
        command = Command(place / "log0", variables, *arguments)
        this.moment = wait_for(command, job, rng)
        if command.process.poll() is None:
            if victim.name == "node":
                cluster.kill(cluster.nodes[int(rng.integers(2))])
                cluster.add()
            elif victim.name == "head node":
                stack.close()
                cluster = stack.enter_context(machines.machines())
                for _ in range(2):
                    cluster.add()
            else:
                workers = [one for node in cluster.nodes for one in ray_runs.offspring(node.pid)
                           if any(title in one.command for title in victim.titles)]  # fmt: skip
                (workers or [command.process])[0].kill()
        while not _ended_well(command, this):
            if this.calls == 4 or this.faults:
                this.faults.append(f"not done after {this.calls} calls: {command.told[-1500:]}")
                return
            variables["RAY_ADDRESS"] = cluster.address
            command = Command(place / f"log{this.calls}", variables, *arguments)
            this.calls += 1
        if command.process.returncode == 3:
            Command(place / "sync", here.environment(), "sync", str(job.folder(place))).process.wait(PATIENCE)
        this.faults += job.judge(this.number, place)


# the server, which goes on from round to round


class Clients:
    """Clients that ask without a pause, compare every answer with the right one, and keep what they were told."""

    def __init__(self, url: str, right: dict[str, Any], count: int = 4) -> None:
        self.url, self.right = url, right
        self.told: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def _ask(self, number: int) -> None:
        rng, texts = np.random.default_rng(number), list(self.right)
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stop.wait(0.02):
                asked = [texts[i] for i in rng.integers(len(texts), size=3)]
                try:
                    answer = client.post("/v1/classify", json={"texts": asked})
                except httpx.HTTPError as error:
                    self.told[type(error).__name__] += 1  # the connection broke, and the client knows it
                    continue
                self.told[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    if [_rounded(one) for one in answer.json()["results"]] != [self.right[text] for text in asked]:
                        self.wrong.append(f"a wrong answer to {asked}: {answer.text[:300]}")
                elif answer.status_code != 503:
                    self.wrong.append(f"status {answer.status_code}: {dict(answer.headers)} {answer.text[:300]}")

    def __enter__(self) -> Clients:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def _rounded(result: dict[str, Any]) -> tuple[str, float]:
    return result["label"], round(result["confidence"], 3)


class Server:
    """A server of two replicas."""

    def __init__(self, here: World) -> None:
        self.here = here
        self.model = here.folder / "served" / "artefact"
        if not self.model.is_dir():
            artefact_of(here.folder / "encoder", here.folder / "served")
        (self.port,) = ray_runs.free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = self.start()
        texts = [f"eng{i} deu{j} swh{i}" for i in range(8) for j in range(4)]
        results = httpx.post(f"{self.url}/v1/classify", json={"texts": texts}, timeout=30).json()["results"]
        self.right = dict(zip(texts, map(_rounded, results), strict=True))

    def start(self) -> Command:
        """Start it, on the same port each time, and wait until it answers."""
        options = ["--port", str(self.port), "scaling.min_replicas=2", "scaling.max_replicas=2", "scaling.cpus=0.5"]
        options.append(f"cache_dir={self.here.folder}/cache")
        command = Command(self.here.folder / "serve.log", self.here.environment(), "serve", str(self.model), *options)
        command.until("answers at", limit_s=PATIENCE)
        return command

    def end(self) -> None:
        """End it by Ctrl-C."""
        self.command.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.command.process.wait(GRACE)
        self.command.end()


def play_serving(here: World, victim: Victim, this: Round, rng: np.random.Generator) -> None:
    """Strike a server under load; it answers again, or ends and the same command serves again on the same port."""
    server = Server(here)
    try:
        with Clients(server.url, server.right) as clients:
            until(lambda: clients.told["200"] > 20, "the first answers", GRACE)
            later = float(rng.uniform(0, 3))
            time.sleep(later)
            this.moment = f"{later:.1f} s of load"
            if not strike(here, victim, server.command, here.folder, rng):
                this.faults.append(f"there was no {victim.name}")
            time.sleep(2)
            before = clients.told["200"]
            process = server.command.process
            try:
                until(lambda: process.poll() is not None or clients.told["200"] > before + 50, "answers", GRACE)
            except AssertionError:
                this.faults.append(f"no answer for {GRACE} s, and the server goes on: {server.command.told[-1500:]}")
                server.command.end()
            if process.poll() is not None:
                this.calls = 2
                until(lambda: not here.processes(), "the end of what the server had started", GRACE)
                server.command = server.start()
                before = clients.told["200"]
                until(lambda: clients.told["200"] > before + 50, "answers of the new server", GRACE)
    finally:
        server.end()
    this.faults += clients.wrong[:3]
    this.notes.append(", ".join(f"{count} x {told}" for told, count in sorted(clients.told.items())))


def tidy(here: World, this: Round) -> None:
    """Wait for what still runs, and count it and what is left of temporary files; then remove all."""
    with contextlib.suppress(AssertionError):
        until(lambda: not here.processes(), "the end of everything", GRACE)
    for process in here.processes():
        this.faults.append(f"still alive after {GRACE} s: {process.command[:100]}")
        process.kill()
    left = [one for one in here.scratch.iterdir() if one.name not in ("ray", ".ses")]  # Ray keeps its logs
    for one in left:
        inside = [str(file.relative_to(one)) for file in one.rglob("*")]
        this.notes.append(f"left in TMPDIR: {one.name} with {', '.join(inside[:4]) or 'nothing'}")
    for one in here.scratch.iterdir():
        shutil.rmtree(one, ignore_errors=True) if one.is_dir() else one.unlink(missing_ok=True)
    for one in here.small.iterdir() if here.small else ():
        shutil.rmtree(one, ignore_errors=True) if one.is_dir() else one.unlink()


def table(rounds: Sequence[Round]) -> str:
    """Write what was struck, how it ended and what was lost as a table of Markdown."""
    lines = ["| command | struck | rounds | ended by itself | given again | faults |", "|---|---|---:|---:|---:|---:|"]
    kinds: dict[tuple[str, str], list[Round]] = {}
    for one in rounds:
        kinds.setdefault((one.scenario, one.victim), []).append(one)
    for (scenario, victim), ones in sorted(kinds.items()):
        alone, faults = sum(one.calls == 1 for one in ones), sum(bool(one.faults) for one in ones)
        lines.append(f"| {scenario} | {victim} | {len(ones)} | {alone} | {len(ones) - alone} | {faults} |")
    return "\n".join(lines)


SHARES = {"train": 0.35, "tune": 0.2, "promote": 0.15, "serve": 0.2, "train on a cluster": 0.1}


def choose(seed: int, number: int, only: str | None) -> tuple[str, Victim, np.random.Generator]:
    """Choose what a round does."""
    rng = np.random.default_rng([seed, number])
    scenario = only or str(rng.choice([*SHARES], p=[*SHARES.values()]))
    victims = {"train": TRAINED, "tune": TRAINED, "promote": PROMOTED, "serve": SERVED}.get(scenario, ON_A_CLUSTER)
    return scenario, victims[int(rng.integers(len(victims)))], rng


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no round begins later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*SHARES])
    parser.add_argument("--round", type=int, help="play this one alone")
    parser.add_argument("--out", type=Path, help="a file for what was found, as JSON lines; logs go beside it")
    arguments = parser.parse_args()
    numbers = range(arguments.rounds) if arguments.round is None else [arguments.round]
    with world() as here:
        rounds = run(here, numbers, arguments)
    print(table(rounds))
    faulty = [one for one in rounds if one.faults]
    print(f"{len(rounds)} rounds, {len(faulty)} with a fault, {sum(one.seconds for one in rounds) / 60:.0f} minutes")
    sys.exit(bool(faulty) or not rounds)


def run(here: World, numbers: Sequence[int], arguments: argparse.Namespace) -> list[Round]:
    """Play rounds one after another, and print a line for each."""
    end = time.monotonic() + 60 * arguments.minutes
    jobs = Jobs(here)
    rounds: list[Round] = []
    for number in numbers:
        if time.monotonic() > end:
            break
        scenario, victim, rng = choose(arguments.seed, number, arguments.only)
        this = Round(number, scenario, victim.name)
        began = time.monotonic()
        try:
            if scenario == "serve":
                play_serving(here, victim, this, rng)
            elif scenario == "train on a cluster":
                play_on_cluster(here, jobs.of(scenario), victim, this, rng)
            else:
                play(here, jobs.of(scenario), victim, this, rng)
        except AssertionError as error:
            this.faults.append(str(error)[-1500:])
        tidy(here, this)
        this.seconds = time.monotonic() - began
        rounds.append(this)
        _tell(this, here, arguments.out)
    return rounds


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


def _tell(this: Round, here: World, out: Path | None) -> None:
    verdict = "; ".join(this.faults).replace("\n", " ")[:300] or "fine"
    notes = f" ({'; '.join(this.notes)})" if this.notes else ""
    words = f"round {this.number}: {this.scenario}, {this.victim}, {this.moment}: {this.calls} calls, {verdict}{notes}"
    print(f"{words}  [{this.seconds:.0f} s]", flush=True)
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(this.__dict__) + "\n")
    place = here.folder / f"{this.scenario}{this.number}"
    if place.is_dir():
        if out and this.faults:
            shutil.copytree(place, out.with_suffix("") / place.name, dirs_exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
