"""How many replicas serve 10,000 texts a second: a simulation of their queues, held against two replicas that run here.

    python benchmarks/capacity.py runs/quickstart-*/ --out benchmarks/results      # some ten minutes on two cores
    python benchmarks/capacity.py --plan benchmarks/results/capacity.json          # the plan from its figures; a minute

A replica answers what waits for it in batches, one at a time; a batch takes `fixed` seconds and `text` seconds a text
more. Both are fitted to one replica, with 1 and with 64 clients that ask again as soon as they are answered, while a
neighbour keeps the other core busy with the same model, as a second replica would: they share caches, the memory and
what HAProxy and the client take. From that the throughput and the quantiles of the latency of two replicas are
simulated, at shares of what they can take, and printed beside what they did. The lag of autoscaling is measured with
one replica that may become two. The plan simulates arrivals at random (Poisson) on replicas of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import http_load
import numpy as np
import serving
import uvloop

if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `xlt serve` does; read once, when ray is imported

from serve.app import ONGOING
from serve.control import control
from serve.replica.admission import Queue
from serve.replica.batcher import LINGER
from serve.replica.service import CHUNK_TOKENS
from serve.settings import Limits
from xlt_ray.export import export
from xlt_ray.inference import engine
from xlt_ray.tracking.environment import environment

SHARES = (0.3, 0.6, 0.8, 0.9)
RATE = 10_000  # texts a second of the plan
CORES = 16  # of one of its machines, of which one is HAProxy's and Ray's
PRICE = 0.714  # dollars an hour for it: AWS c7i.4xlarge on demand, us-east-1, 2025
SCALE = 10  # what grows for a minute is simulated on so much smaller a scale


@dataclass(frozen=True)
class Replica:
    """Seconds of a batch, `fixed`, and of each `text` in it, and how many it has at most."""

    fixed: float
    text: float
    most: int

    def seconds(self, texts: int) -> float:
        """Return how long a batch takes."""
        return self.fixed + self.text * texts

    @property
    def rate(self) -> float:
        """Texts a second where batches are full."""
        return self.most / self.seconds(self.most)


@dataclass
class Seen:
    """What came of requests: when each was asked and how long its answer took, when those refused were, time in all."""

    asked: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    wall: float = 0.0

    def since(self, when: float) -> Seen:
        """Return what came of the requests asked from then on."""
        kept = [(asked, took) for asked, took in zip(self.asked, self.seconds, strict=True) if asked >= when]
        refused = [asked for asked in self.refused if asked >= when]
        return Seen([asked for asked, _ in kept], [took for _, took in kept], refused, self.wall - when)

    def quantiles(self) -> list[float]:
        """Return p50, p95 and p99 in milliseconds."""
        return (np.quantile(self.seconds, [0.5, 0.95, 0.99]) * 1000).tolist() if self.seconds else [math.nan] * 3

    def refusals(self) -> float:
        """Return the share of requests that was refused."""
        return len(self.refused) / max(1, len(self.refused) + len(self.seconds))


class Simulation:
    """Replicas behind proxies, each of which sends a request to the replica with the fewest of its own under way.

    A replica has some requests in hand (`serve.app.ONGOING`) and as many at its door, and refuses the rest and what it
    could not answer in time (`serve.replica.admission.Queue`). Replicas may come and go, which the proxies know at
    once: what those that go have in hand is asked again elsewhere.
    """

    def __init__(self, replica: Replica, count: int, proxies: int = 1, seed: int = 0) -> None:
        self.replica, self.proxies = replica, proxies
        self.limits = Limits()
        self.rng = np.random.default_rng(seed)
        self.up = np.zeros(0, dtype=bool)
        self.under_way = np.zeros((proxies, 0))
        self.queues: list[Queue] = []
        self.waiting: list[deque[tuple[float, int]]] = []  # (when asked for, by which proxy)
        self.door: list[deque[tuple[float, int]]] = []
        self.busy: list[list[tuple[float, int]] | None] = []  # None: idle; []: lingers
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.quiet: list[float] = []  # until when the next batch waits for more
        self.order = itertools.count()
        self.seen = Seen()
        self.again: Callable[[float], None] = lambda now: None
        self.come(count)

    def at(self, when: float, what: Callable[[float], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self.events, (when, next(self.order), what))

    def run(self) -> Seen:
        """Let happen what is to happen, in order."""
        while self.events:
            now, _, what = heapq.heappop(self.events)
            what(now)
            self.seen.wall = now
        return self.seen

    def come(self, count: int) -> None:
        """Add replicas."""
        self.up = np.append(self.up, np.ones(count, dtype=bool))
        self.under_way = np.hstack([self.under_way, np.zeros((self.proxies, count))])
        for _ in range(count):
            self.queues.append(Queue(self.limits.waiting_texts))
            self.waiting.append(deque())
            self.door.append(deque())
            self.busy.append(None)
            self.quiet.append(0.0)

    def go(self, now: float, count: int) -> None:
        """Lose replicas with what they have in hand."""
        for which in np.flatnonzero(self.up)[:count]:
            self.up[which] = False
            lost = [*(self.busy[which] or ()), *self.waiting[which], *self.door[which]]
            self.waiting[which], self.door[which] = deque(), deque()
            for asked, proxy in lost:
                self.ask(now, proxy, asked)

    def ask(self, now: float, proxy: int | None = None, asked: float | None = None) -> None:
        """Send a request in by a proxy, by default any."""
        proxy = int(self.rng.integers(self.proxies)) if proxy is None else proxy
        load = np.where(self.up, self.under_way[proxy], np.inf)
        which = int(self.rng.choice(np.flatnonzero(load == load.min())))
        one = (now if asked is None else asked, proxy)
        if self.queues[which].waiting < ONGOING:
            self.under_way[proxy, which] += 1
            self.enter(now, which, one)
        elif len(self.door[which]) < ONGOING:
            self.under_way[proxy, which] += 1
            self.door[which].append(one)
        else:
            self.refuse(now, one)

    def refuse(self, now: float, one: tuple[float, int]) -> None:
        """Refuse a request, whose client asks again a little later."""
        self.seen.refused.append(one[0])
        self.at(now + 0.01, self.again)

    def enter(self, now: float, which: int, one: tuple[float, int]) -> None:
        """Let a request into a replica, which may refuse it."""
        queue = self.queues[which]
        if not queue.free(1, self.limits.deadline_s):
            self.under_way[one[1], which] -= 1
            self.refuse(now, one)
            return
        queue.waiting += 1
        self.waiting[which].append(one)
        if self.busy[which] is None:
            self.linger(now, which)

    def begin(self, now: float, which: int) -> None:
        """Begin a batch of what waits."""
        if not self.up[which]:
            return
        waiting = self.waiting[which]
        batch = self.busy[which] = [waiting.popleft() for _ in range(min(self.replica.most, len(waiting)))]
        seconds = self.replica.seconds(len(batch))
        self.at(now + seconds, lambda then: self.end(then, which, batch, seconds))

    def end(self, now: float, which: int, batch: list[tuple[float, int]], seconds: float) -> None:
        """Answer a batch, and begin the next, a little later where it may become larger by that."""
        if not self.up[which]:
            return
        self.queues[which].measured(len(batch), seconds)
        for asked, proxy in batch:
            self.queues[which].waiting -= 1
            self.under_way[proxy, which] -= 1
            self.seen.asked.append(asked)
            self.seen.seconds.append(now - asked)
            self.at(now, self.again)
        self.quiet[which] = now + LINGER * seconds if len(batch) > 1 else 0.0
        self.busy[which] = []  # not idle while those at the door come in
        while self.door[which] and self.queues[which].waiting < ONGOING:
            self.enter(now, which, self.door[which].popleft())
        self.busy[which] = None
        if self.waiting[which]:
            self.linger(now, which)

    def linger(self, now: float, which: int) -> None:
        """Wait for more before the next batch, as `serve.replica.batcher` does, where it is not full."""
        self.busy[which] = []
        full = len(self.waiting[which]) >= self.replica.most
        self.at(now if full else max(now, self.quiet[which]), lambda then: self.begin(then, which))


def closed(replica: Replica, count: int, clients: int, seconds: float = 5) -> Seen:
    """Simulate clients that ask again as soon as they are answered."""
    simulation = Simulation(replica, count)

    def again(now: float) -> None:
        if now < seconds:
            simulation.ask(now)

    simulation.again = again
    for _ in range(clients):
        simulation.at(0, simulation.ask)
    return simulation.run()


def opened(simulation: Simulation, times: Iterable[float]) -> Seen:
    """Simulate requests that come at given times, whatever comes back."""
    for when in times:
        simulation.at(when, simulation.ask)
    return simulation.run()


def poisson(rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Draw times of arrivals at random."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


def fitted(alone: float, many: float, most: int) -> Replica:
    """Find the replica that answers `alone` texts a second of one client, and `many` of 64, by bisection."""
    low, high = 0.0, 1 / alone
    for _ in range(16):
        text = (low + high) / 2
        seen = closed(Replica(1 / alone - text, text, most), 1, 64)
        low, high = (text, high) if len(seen.seconds) / seen.wall > many else (low, text)
    return Replica(1 / alone - (low + high) / 2, (low + high) / 2, most)


# what is measured


@contextlib.contextmanager
def server(folder: Path, log: Path, precision: str, least: int, most: int) -> Iterator[serving.Served]:
    """Serve a model here, on replicas of one thread."""
    port = serving.free_port()
    options = [f"precision={precision}", f"scaling.min_replicas={least}", f"scaling.max_replicas={most}"]
    command = [sys.executable, "-m", "xlt_ray.cli", "serve", str(folder), "--port", str(port), *options]
    with serving.running([*command, "scaling.cpus=0.5"], port, "/readyz", "ServeReplica:xlt", log) as served:
        while not control.state_file(port).is_file():  # written when all replicas are there
            if served.process.poll() is not None:
                raise SystemExit(f"the server ended before all replicas were there; see {log}")
            time.sleep(0.1)
        yield served


@contextlib.contextmanager
def neighbour(folder: Path, precision: str, texts: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Keep a core busy with the model, on one thread, eight texts at a time."""
    script = (
        "import json, sys; from xlt_ray.inference import engine; texts = json.load(sys.stdin);"
        f"running = engine.load({str(folder)!r}, precision={precision!r}, threads=1)\n"
        "while True:\n"
        "    for at in range(0, len(texts), 8):\n"
        "        running.probabilities(running.encode(texts[at : at + 8]))"
    )
    environment = os.environ | {"PYTHONPATH": str(serving.ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdin
        json.dump([text for _, text in texts[:800]], process.stdin)
        process.stdin.close()
        time.sleep(10)  # it loads the model
        yield
        assert process.poll() is None, "the neighbour ended"
    finally:
        process.kill()
        process.wait()


def measure(folder: Path, texts: Sequence[tuple[str, str]], log: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one replica, two, and one that becomes two."""
    asked = serving.asked("ours", texts)
    two: list[dict[str, float]] = []
    found: dict[str, Any] = {"one": {}, "two": two}

    def loop(served: serving.Served, clients: int) -> http_load.Taken:
        return uvloop.run(http_load.closed(served.port, asked, 1, clients, args.seconds))

    with server(folder, log, args.precision, 1, 1) as served:
        loop(served, 8)
        for where in ("alone", "beside a neighbour"):
            with neighbour(folder, args.precision, texts) if where != "alone" else contextlib.nullcontext():
                for clients in (1, 64):
                    before = served.processor()
                    taken = [loop(served, clients) for _ in range(args.rounds)]
                    rate = statistics.median(one.texts_per_second for one in taken)
                    cores = rate * (served.processor() - before) / sum(one.texts for one in taken)
                    found["one"][f"{clients} {where}"] = {"rate": rate, "cores": cores}
                    told_so = f"one replica {where}, {clients} clients: {rate:.1f} texts/s on {cores:.2f} cores"
                    print(told_so, flush=True)
    with server(folder, log, args.precision, 2, 2) as served:
        loop(served, 8)
        for clients in (8, 64):
            two += [{"clients": clients, **told(loop(served, clients))} for _ in range(args.rounds)]
        capacity = statistics.median(one["rate"] for one in two if one["clients"] == 64)
        for share in SHARES:
            for _ in range(args.rounds):
                taken_once = uvloop.run(http_load.opened(served.port, asked, 1, share * capacity, args.seconds))
                two.append({"clients": 0, "share": share, "asked": share * capacity, **told(taken_once)})
    for one in two:
        print(json.dumps(one), flush=True)
    found["seconds"] = args.seconds
    return found | {"lag": lag(folder, log, asked, args, 1.3 * found["one"]["64 alone"]["rate"])}


def told(taken: http_load.Taken) -> dict[str, float]:
    """Return what is kept of a measurement."""
    failed = sum(count for status, count in taken.statuses.items() if status != 200)
    return {"rate": taken.texts_per_second, **taken.quantiles(), "failed": failed}


def lag(folder: Path, log: Path, asked: Sequence[bytes], args: argparse.Namespace, rate: float) -> dict[str, float]:
    """Return the seconds from too much load for one replica until Ray says that a second one runs."""
    taken: list[http_load.Taken] = []
    seconds = math.nan
    with server(folder, log, args.precision, 1, 2) as served, control.found(served.port, None, None, None) as found:
        load = threading.Thread(
            target=lambda: taken.append(uvloop.run(http_load.opened(served.port, asked, 1, rate, 90)))
        )
        load.start()
        began = time.monotonic()
        while load.is_alive():
            if len(found.replicas()) > 1 and math.isnan(seconds):
                seconds = time.monotonic() - began
            time.sleep(0.5)
        load.join()
    if math.isnan(seconds):
        raise SystemExit(f"{rate:.0f} texts a second for 90 s brought no second replica; see what limits it in the log")
    return {"rate": rate, "seconds": seconds, "answered": taken[0].texts, "refused": taken[0].statuses[503]}


# what is simulated


def check(found: dict[str, Any], most: int) -> Replica:
    """Fit one replica, simulate two, and print both beside what was measured."""
    alone, many = (found["one"][f"{clients} beside a neighbour"]["rate"] for clients in (1, 64))
    replica = fitted(alone, many, most)
    print(f"a batch takes {1000 * replica.fixed:.1f} ms and {1000 * replica.text:.2f} ms a text, at most {most}")
    print("| load | texts/s | simulated | p50, p95, p99 ms | simulated |\n|---|---:|---:|---:|---:|")
    kinds = dict.fromkeys((one["clients"], one.get("share")) for one in found["two"])
    for clients, share in kinds:
        ones = [one for one in found["two"] if (one["clients"], one.get("share")) == (clients, share)]
        if any(one["failed"] for one in ones):
            raise SystemExit(f"{sum(one['failed'] for one in ones)} requests failed; measure again")
        if clients:
            seen, name = closed(replica, 2, clients), f"{clients} clients"
        else:
            rate = ones[0]["asked"]
            seen = opened(Simulation(replica, 2), np.arange(0, found["seconds"], 1 / rate))
            name = f"{rate:.0f} a second"
        middle = [statistics.median(one[key] for one in ones) for key in ("rate", "p50", "p95", "p99")]
        cells = [name, f"{middle[0]:.0f}", f"{len(seen.seconds) / seen.wall:.0f}"]
        cells += [", ".join(f"{one:.0f}" for one in quantiles) for quantiles in (middle[1:], seen.quantiles())]
        print(f"| {' | '.join(cells)} |")
    return replica


def plan(found: dict[str, Any], replica: Replica) -> None:
    """Print what 10,000 texts a second take."""
    cores = max(1.0, found["one"]["64 beside a neighbour"]["cores"])
    each = int((CORES - 1) / cores)
    print(
        f"a replica answers {replica.rate:.0f} texts/s on {cores:.2f} cores: {each} on a machine of {CORES}\n\n"
        "| busy | replicas | machines | p50 ms | p99 ms | one machine's gone: p99 ms, refused | dollars a million |\n"
        "|---:|---:|---:|---:|---:|---:|---:|"
    )
    for machines in dict.fromkeys(math.ceil(RATE / replica.rate / busy / each) for busy in (0.5, 0.6, 0.7, 0.8, 0.9)):
        count = machines * each
        quiet = opened(Simulation(replica, count, machines), poisson(RATE, 10)).quantiles()
        lost = Simulation(replica, count, machines)
        lost.at(2, lambda now, lost=lost: lost.go(now, each))  # type: ignore[misc]
        seen = opened(lost, poisson(RATE, 12)).since(2)
        price = machines * PRICE / 3600 / RATE * 1e6
        print(
            f"| {RATE / replica.rate / count:.0%} | {count} | {machines} | {quiet[0]:.0f} | {quiet[2]:.0f} | "
            f"{seen.quantiles()[2]:.0f}, {seen.refusals():.1%} | {price:.2f} |"
        )
    seconds = found["lag"]["seconds"]
    print(f"\nautoscaling took {seconds:.0f} s; the load grows at once, replicas for it come after as long:\n")
    print("| busy before | load grows by | p99 ms meanwhile | refused meanwhile |\n|---:|---:|---:|---:|")
    for busy, growth in itertools.product((0.5, 0.7), (1.2, 1.5, 2.0)):
        rate = RATE / SCALE
        count = math.ceil(rate / replica.rate / busy)
        grown = Simulation(replica, count)
        seen = opened(grown, np.concatenate([poisson(rate, 2), 2 + poisson(growth * rate, seconds, seed=1)])).since(2)
        print(f"| {busy:.0%} | {growth:g} x | {seen.quantiles()[2]:.0f} | {seen.refusals():.1%} |")


def main() -> None:
    """Measure and check, or plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run")
    parser.add_argument("--precision", default="float32", choices=("float32", "int8"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--plan", type=Path, metavar="FIGURES", help="plan from what was measured before")
    parser.add_argument("--out", type=Path, help="folder for capacity.json, what was measured")
    args = parser.parse_args()
    if args.plan:
        found = json.loads(args.plan.read_text(encoding="utf-8"))
    elif args.run:
        texts = serving.texts_of(args.run)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "artefact"
            export.export(args.run / "bundle", folder, texts=[text for _, text in texts[:200]])
            found = measure(folder, texts, Path(scratch) / "serve.log", args)
            running = engine.load(folder, precision=args.precision)
            lengths = [len(row) for row in running.encode([text for _, text in texts[:2000]])]
        found |= {"tokens": statistics.mean(lengths), "processor": environment()["cpu"]}
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "capacity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        parser.error("give the folder of a run, or --plan and the figures of one")
    replica = check(found, int(2 * CHUNK_TOKENS["cpu"] / found["tokens"]))
    plan(found, replica)


if __name__ == "__main__":
    main()
