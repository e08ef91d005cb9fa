"""Kill what can die in the middle of train, tune, promote and serve, and count what is lost when they go on.

    python benchmarks/chaos.py                           # 100 rounds; an hour or two on two cores
    python benchmarks/chaos.py --minutes 5               # as many as begin within five minutes
    python benchmarks/chaos.py --play "serve: replica" "train: any process"    # these pairs alone
    python benchmarks/chaos.py --round 17                # one round of these again; the seed decides it
    python benchmarks/chaos.py --first 40 --out FOLDER   # the rounds from 40 on; the table counts all of that folder

A seed and the number of a round decide command, victim and moment: every pair of a command and a victim comes once in
an order of the seed's, then again; the moment is a time of the undisturbed command's, or shortly after a line of it.
After a strike the command may end well by itself, or end; then the same command is given again, until it ends well.
Held against an undisturbed one: weights, predictions and scores to the bit; trials, none lost and none twice; what
MLflow knows; an alias, whose model must answer at any time once it is there; answers of a server under load, each of
which must be right or a refusal that the client can read. What is alive when all is over, or left among temporary
files, is a fault too. Models and corpus are tiny, all else is real: Ray, Tune, Serve, HAProxy, MLflow's server, and
PostgreSQL below it where Debian's package of it is installed.
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
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from chaos_jobs import (
    GRACE,
    PATIENCE,
    SERVED,
    Jobs,
    Promote,
    Train,
    TrainOnCluster,
    Tune,
    Victim,
    World,
    progress,
    world,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import machines
import ray_runs
from local_server import artefact_of
from ray_runs import ROOT, Command, until

from xlt_ray.training.cluster import VITAL

Environment = Callable[[], dict[str, str]]


@dataclass
class Round:
    """One round: what was struck and when, how often the command was given, and the faults found."""

    number: int
    scenario: str
    victim: str
    hit: str = ""  # nothing, where the command had ended before the moment, or had no such process
    moment: str = ""
    calls: int = 1
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seed: int = 0


def wait_for(command: Command, job: Train, rng: np.random.Generator) -> str:
    """Wait for the moment of a strike, a share of the undisturbed time or a little after a line; return it."""
    if rng.random() < 0.5:
        seconds = float(rng.uniform(0.05, 1.0)) * job.seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.process.wait(seconds)
        return f"{seconds:.0f} of {job.seconds:.0f} s"
    line, later = int(rng.integers(1, max(2, job.lines))), float(rng.uniform(0, 2))
    with contextlib.suppress(AssertionError):
        until(lambda: command.process.poll() is not None or len(progress(command)) >= line, "a line", PATIENCE)
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
            if not files:
                return "driver, and nothing was in the cache yet"
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
        if here.small is None:
            return ""
        with contextlib.suppress(OSError), (here.small / "filler").open("wb") as file:
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
    return Path(hit.command.split()[0]).name


def play(here: World, job: Train, victim: Victim, this: Round, rng: np.random.Generator) -> None:
    """Play a round of a command that ends."""
    place, arguments = job.begin(this.number, small=victim.name == "disk full")
    variables = here.environment()
    if victim.name.startswith("clock"):
        jump, after = (3600 if "forward" in victim.name else -3600), float(rng.uniform(0, 0.7)) * job.seconds
        this.hit, this.moment = f"{jump} s", f"{after:.0f} s after a process began"
        variables |= _clock(here, jump, after)
    command = Command(place / "log0", variables, *arguments)
    if not this.hit:
        this.moment = wait_for(command, job, rng)
        if command.process.poll() is None:
            this.hit = strike(here, victim, command, place, rng)
    finish(here, job, command, this, here.environment, arguments)


def finish(
    here: World,
    job: Train,
    command: Command,
    this: Round,
    variables: Environment,
    arguments: list[str],
) -> None:
    """Give the same command again until it ends well, then judge what it left."""
    while not _ended_well(here, command, this):
        this.faults += job.still(this.number)
        if this.calls == 4 or this.faults:
            this.faults.append(f"not done after {this.calls} calls: {command.told[-1500:]}")
            return
        command = Command(command.log.with_name(f"log{this.calls}"), variables(), *arguments)
        this.calls += 1
    here.settled()
    place = command.log.parent
    if command.process.returncode == 3:  # what is not sent yet is kept, and the command says how to send it
        this.notes.append("sent to MLflow by `xlt sync`")
        sync = Command(place / "sync", here.environment(), "sync", str(job.folder(place)))
        if sync.process.wait(PATIENCE):
            this.faults.append(f"`xlt sync`: {sync.told[-1500:]}")
    this.faults += job.judge(this.number, place)


def _ended_well(here: World, command: Command, this: Round) -> bool:
    """Wait for a command's end, and free the disk; note a hang, and an end that tells the user nothing."""
    try:
        status = command.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        this.faults.append(f"hung for {PATIENCE} s: {command.told[-1500:]}")
        command.end()
        return False
    finally:
        if here.small:
            (here.small / "filler").unlink(missing_ok=True)
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
        cluster = _cluster(stack)

        def variables() -> dict[str, str]:
            return here.environment(RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled", **machines.QUICK)

        command = Command(place / "log0", variables(), *arguments)
        this.moment = wait_for(command, job, rng)
        if command.process.poll() is None:
            this.hit = victim.name
            if victim.name == "node":
                cluster.kill(cluster.nodes[int(rng.integers(2))])
                cluster.add()
            elif victim.name == "head node":
                stack.close()
                cluster = _cluster(stack)
            elif victim.name == "driver":
                command.process.kill()
            else:
                family = [one for node in cluster.nodes for one in ray_runs.offspring(node.pid)]
                workers = [one for one in family if any(title in one.command for title in victim.titles)]
                this.hit = victim.name if workers else ""
                for one in workers[:1]:
                    one.kill()
        finish(here, job, command, this, variables, arguments)


def _cluster(stack: contextlib.ExitStack) -> machines.Machines:
    made = stack.enter_context(machines.machines())
    for _ in range(2):
        made.add()
    return made


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
                if not self._right(asked, answer):
                    self.wrong.append(f"{asked}: {answer.status_code} {dict(answer.headers)} {answer.text[:300]}")

    def _right(self, asked: list[str], answer: httpx.Response) -> bool:
        """Return whether an answer is the right one, or a refusal of the documented form."""
        try:
            if answer.status_code == 503:
                return "retry-after" in answer.headers and bool(answer.json()["error"]["message"])
            results = [_rounded(one) for one in answer.json()["results"]]
        except (ValueError, KeyError):
            return False
        return answer.status_code == 200 and results == [self.right[text] for text in asked]

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
        """End it by Ctrl-C, which must do."""
        self.command.process.send_signal(signal.SIGINT)
        assert self.command.process.wait(GRACE) == 0, self.command.told[-1500:]


def play_serving(here: World, victim: Victim, this: Round, rng: np.random.Generator) -> None:
    """Strike a server under load; it answers again, or ends and the same command serves again on the same port."""
    server = Server(here)
    clients = Clients(server.url, server.right)
    try:
        with clients:
            _strike_server(here, server, clients, victim, this, rng)
        server.end()
    finally:
        this.faults += clients.wrong[:3]
        this.notes.append(", ".join(f"{count} x {told}" for told, count in sorted(clients.told.items())))
        broken = sum(count for told, count in clients.told.items() if not told.isdigit())
        if victim.harmless and broken:
            this.faults.append(f"{broken} connections broke")


def _strike_server(
    here: World, server: Server, clients: Clients, victim: Victim, this: Round, rng: np.random.Generator
) -> None:
    def answers(what: str) -> None:
        before = clients.told["200"]
        process = server.command.process
        until(lambda: process.poll() is not None or clients.told["200"] > before + 50, what, GRACE)

    answers("the first answers")
    later = float(rng.uniform(0, 3))
    time.sleep(later)
    this.moment = f"{later:.1f} s of load"
    this.hit = strike(here, victim, server.command, here.folder, rng)
    time.sleep(2)
    answers("answers, or the end of the server")
    if this.hit and any(title.rpartition("/")[2] in VITAL for title in victim.titles):
        process = server.command.process  # replicas answer for some seconds yet
        until(lambda: process.poll() is not None, "the end of the server, as Ray is dead", GRACE)
        last = server.command.told.strip().rpartition("\n")[2]
        if process.returncode != 1 or not last.startswith("error: Ray's "):
            this.faults.append(f"ended with status {process.returncode} and: {last[:300]}")
    if server.command.process.poll() is not None:
        this.calls = 2
        until(lambda: not here.processes(), "the end of what the server had started", GRACE)
        server.command = server.start()
        answers("answers of the new server")


def tidy(here: World, this: Round) -> None:
    """Wait for what still runs, and count it and what is left of temporary files; then remove all."""
    with contextlib.suppress(AssertionError):
        until(lambda: not here.processes(), "the end of everything", GRACE)
    for process in here.processes():
        this.faults.append(f"still alive after {GRACE} s: {process.command[:100]}")
        process.kill()
    # what killed processes left goes when the next one makes a temporary folder; Ray keeps its logs and locks
    sweep = "from xlt_ray import durable\nwith durable.scratch(): pass"
    subprocess.run([sys.executable, "-c", sweep], env=here.environment(), cwd=ROOT, check=True)
    for one in here.scratch.iterdir():
        if one.name not in ("ray", ".ses", "_ray_lockfiles"):
            inside = [str(file.relative_to(one)) for file in one.rglob("*")]
            this.faults.append(f"left in TMPDIR: {one.name} with {', '.join(inside[:4]) or 'nothing'}")
        shutil.rmtree(one, ignore_errors=True) if one.is_dir() else one.unlink(missing_ok=True)


def table(rounds: Sequence[Round]) -> str:
    """Write what was struck, how it ended and what was lost as a table of Markdown."""
    head = ("command", "to be struck", "rounds", "struck", "ended by itself", "given again", "faults")
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * 5]
    kinds: dict[tuple[str, str], list[Round]] = {}
    for one in rounds:
        kinds.setdefault((one.scenario, one.victim), []).append(one)
    for (scenario, victim), ones in sorted(kinds.items()):
        hit = [one for one in ones if one.hit]
        alone, faults = sum(one.calls == 1 for one in hit), sum(bool(one.faults) for one in ones)
        counts = (len(ones), len(hit), alone, len(hit) - alone, faults)
        lines.append(f"| {scenario} | {victim} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


PLAYED: dict[str, tuple[Victim, ...]] = {job.name: job.victims for job in (Train, Tune, Promote, TrainOnCluster)}
PLAYED["serve"] = SERVED
PAIRS = {f"{name}: {victim.name}": (name, victim) for name, victims in PLAYED.items() for victim in victims}


def choose(seed: int, number: int, pairs: Sequence[str]) -> tuple[str, Victim, np.random.Generator]:
    """Choose what a round does: all pairs in an order of the seed's, then again in another."""
    turn, place = divmod(number, len(pairs))
    pair = pairs[int(np.random.default_rng([seed, turn]).permutation(len(pairs))[place])]
    return *PAIRS[pair], np.random.default_rng([seed, number, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="default: 100, or one for each pair of --play")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no round begins later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--play", nargs="+", choices=[*PAIRS], metavar="PAIR", help=f"one of {', '.join(PAIRS)}")
    parser.add_argument("--round", type=int, help="play this one alone")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first round, where others were played before"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for what was found, as JSON lines, and for logs of faults; all there are counted",
    )
    arguments = parser.parse_args()
    rounds = arguments.rounds or (len(arguments.play) if arguments.play else 100)
    numbers = range(arguments.first, rounds) if arguments.round is None else [arguments.round]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all that was started is ended
    with world() as here:
        played = run(here, numbers, arguments)
    if arguments.out:
        with contextlib.suppress(FileNotFoundError):  # no round was played yet
            lines = (arguments.out / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
            kept = [Round(**json.loads(line)) for line in lines]
            played = list({(one.seed, one.number, one.scenario, one.victim): one for one in kept}.values())
    print(table(played))
    faulty = [one for one in played if one.faults]
    print(f"{len(played)} rounds, {len(faulty)} with a fault, {sum(one.seconds for one in played) / 60:.0f} minutes")
    sys.exit(bool(faulty) or not played)


def run(here: World, numbers: Sequence[int], arguments: argparse.Namespace) -> list[Round]:
    """Play rounds one after another, and print a line for each."""
    end = time.monotonic() + 60 * arguments.minutes
    jobs = Jobs(here)
    rounds: list[Round] = []
    for number in numbers:
        if time.monotonic() > end:
            break
        scenario, victim, rng = choose(arguments.seed, number, arguments.play or [*PAIRS])
        this = Round(number, scenario, victim.name, seed=arguments.seed)
        began = time.monotonic()
        try:
            if scenario == "serve":
                play_serving(here, victim, this, rng)
            elif scenario == TrainOnCluster.name:
                play_on_cluster(here, jobs.of(scenario), victim, this, rng)
            else:
                play(here, jobs.of(scenario), victim, this, rng)
        except Exception as error:  # what is lost shows as a missing file, a server that is away and much else
            this.faults.append("".join(traceback.format_exception(error)[-3:])[-1500:])
        tidy(here, this)
        this.seconds = time.monotonic() - began
        rounds.append(this)
        _tell(this, here, arguments.out)
    return rounds


def _tell(this: Round, here: World, out: Path | None) -> None:
    """Print and keep what a round found, then remove its files."""
    verdict = "; ".join(this.faults).replace("\n", " ")[:600] or "fine"
    notes = f" ({'; '.join(this.notes)})" if this.notes else ""
    struck = f"{this.hit or 'nothing'} at {this.moment}"
    words = f"round {this.number}: {this.scenario}: {this.victim}: {struck}, {this.calls} calls, {verdict}{notes}"
    print(f"{words}  [{this.seconds:.0f} s]", flush=True)
    place = here.folder / f"{this.scenario}{this.number}"
    if out:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(this.__dict__) + "\n")
        if this.faults:
            logs = [*place.glob("log*"), *here.folder.glob("serve.log")]
            for log in logs:
                shutil.copy(log, out / f"round{this.number}-{log.name}")
    for folder in (place, *(here.small.iterdir() if here.small else ())):
        shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else folder.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
