"""What more workers bring: the time of an update split into its parts, measured here, and a model of it for GPUs.

    python benchmarks/scaling.py                         # the parts, on 1, 2 and 4 workers; some ten minutes
    python benchmarks/scaling.py --rows 1 20             # 1 and 20 million rows: memory, and time to the first loss
    python benchmarks/scaling.py --plan                  # the model's table for 8, 64 and 512 GPUs; at once

The parts are those of the quickstart's run, with its encoder: `input`, tokenising and padding; `compute`, forward and
backward with nothing sent; `sending`, what the same takes longer where gradients are averaged over workers, and
`alone`, one such average of as many bytes with nothing else going on; `optimiser`, with the gradient's norm. Workers
are processes of one thread that gloo joins on this machine, in turn, several times; each figure is the median over
updates of the slowest worker's. A model with three constants is fitted to one and two workers and held against four.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import distributed

from xlt_ray import config
from xlt_ray.config.sections import MixtureConfig
from xlt_ray.corpora import mixture
from xlt_ray.tracking.environment import environment
from xlt_ray.training import batches, loop
from xlt_ray.training.checks import prepare
from xlt_ray.training.cluster import LOOPBACK
from xlt_ray.training.setup import Run
from xlt_ray.training.workers import process_group

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "jobs" / "configs" / "quickstart.yaml"
WARM = 4  # updates that are not timed
CODES = ("eng_Latn", "arb_Arab", "bul_Cyrl", "deu_Latn", "ell_Grek", "spa_Latn", "fra_Latn", "hin_Deva", "rus_Cyrl",
         "swh_Latn", "tha_Thai", "tur_Latn", "urd_Arab", "vie_Latn", "zho_Hans")  # fmt: skip
SECONDS = ("input", "compute", "sending", "alone", "optimiser", "checkpoint")


# the parts of an update


@dataclass(frozen=True)
class Arm:
    """What is measured: how many workers, and how they share gradients and the optimiser's state."""

    workers: int
    all_reduce: str = "float32"
    shard_optimizer: bool = False

    @property
    def name(self) -> str:
        more = [", bfloat16 sent" * (self.all_reduce == "bfloat16"), ", optimiser sharded" * self.shard_optimizer]
        return str(self.workers) + "".join(more)


@dataclass(frozen=True)
class Parts:
    """Seconds of the parts of an update; bytes sent an update and worker, of state, and of a checkpoint."""

    input: float
    compute: float
    sending: float
    alone: float
    optimiser: float
    checkpoint: float
    sent_bytes: int
    state_bytes: int
    rows: int

    @property
    def update(self) -> float:
        return self.input + self.compute + self.sending + self.optimiser


ARMS = (
    Arm(1),
    Arm(2),
    Arm(2, "bfloat16"),
    Arm(2, shard_optimizer=True),
    Arm(2, "bfloat16", True),
    Arm(4),
    Arm(4, "bfloat16", True),
)


class Clock:
    """Times the parts of each update of a run, with and without sending by turns."""

    def __init__(self, state: loop.TrainingState) -> None:
        self.state, self.spent, self.sends = state, dict.fromkeys(("input", "optimiser"), 0.0), True
        made_by, step, apply = state.feed.batches, state._step, state.optimizer.step

        def timed_batches(*arguments: Any) -> Iterator[Any]:
            began = time.perf_counter()
            made = list(made_by(*arguments))
            self.spent["input"] += time.perf_counter() - began
            return iter(made)

        def timed_apply(*arguments: Any) -> Any:
            began = time.perf_counter()
            done = apply(*arguments)
            self.spent["optimiser"] += time.perf_counter() - began
            return done

        patched: Any = state
        patched.feed.batches, patched.optimizer.step = timed_batches, timed_apply
        patched._step = lambda batch, rows, last: step(batch, rows, last and self.sends)

    def updates(self, count: int) -> Iterator[tuple[bool, dict[str, float]]]:
        """Do updates, and yield whether gradients were sent, and the seconds of input, optimiser and the rest."""
        total = self.state.run.setup.updates
        for number, draws in zip(range(count), self.state.feed.updates(0), strict=False):
            if self.state.world > 1:
                distributed.barrier()
            self.sends, self.spent = number % 2 == 0, dict.fromkeys(self.spent, 0.0)
            began = time.perf_counter()
            self.state._update(draws, total)
            whole = time.perf_counter() - began
            self.state.progress.step += 1
            yield self.sends, self.spent | {"rest": whole - sum(self.spent.values())}


def work(rank: int, arm: Arm, port: int, updates: int) -> Parts:
    """Be one worker of an arm."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if arm.workers > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
        process_group.join("127.0.0.1", port, rank, arm.workers, gpus=False)
    asked = [f"training.all_reduce={arm.all_reduce}", f"resources.shard_optimizer={arm.shard_optimizer}"]
    setup = prepare(config.load(QUICKSTART, [*asked, "tracking.uri=off", "training.precision=float32"]))
    net, tokenize, _ = setup.build()
    state = loop.begin(Run(setup, net, tokenize))
    state.run.network.train()
    found: dict[str, list[float]] = {name: [] for name in ("input", "optimiser", "sent", "kept")}
    for number, (sent, spent) in enumerate(Clock(state).updates(WARM + updates)):
        if number >= WARM:
            found["input"].append(_slowest(spent["input"], arm))
            found["optimiser"].append(_slowest(spent["optimiser"], arm))
            found["sent" if sent else "kept"].append(_slowest(spent["rest"], arm))
    middle = {name: statistics.median(values) for name, values in found.items()}
    trained = sum(one.numel() for one in state.parameters)
    each = 2 if arm.all_reduce == "bfloat16" else 4
    kept = getattr(state.optimizer, "optim", state.optimizer).state.values()
    parts = Parts(
        input=middle["input"],
        compute=middle["kept"],
        sending=max(middle["sent"] - middle["kept"], 0.0) if arm.workers > 1 else 0.0,
        alone=_alone(arm, trained),
        optimiser=middle["optimiser"],
        checkpoint=_checkpoint(state),
        sent_bytes=trained * each if arm.workers > 1 else 0,
        state_bytes=sum(tensor.nbytes for one in kept for tensor in one.values()),
        rows=state.experiment.training.batch_size,
    )
    if arm.workers > 1:
        distributed.destroy_process_group()
    return parts


def _slowest(seconds: float, arm: Arm) -> float:
    """Return the most seconds that a worker took."""
    found = torch.tensor([seconds], dtype=torch.float64)
    if arm.workers > 1:
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return float(found)


def _alone(arm: Arm, numbers: int) -> float:
    """Return the seconds of one average over workers, with nothing else going on."""
    if arm.workers == 1:
        return 0.0
    buffer = torch.zeros(numbers, dtype=getattr(torch, arm.all_reduce))
    taken = []
    for _ in range(5):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(buffer)
        taken.append(_slowest(time.perf_counter() - began, arm))
    return statistics.median(taken)


def _checkpoint(state: loop.TrainingState) -> float:
    """Return the seconds that one checkpoint takes on the first worker, with the gathering of a sharded optimiser."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        state.run.report = lambda metrics, save: save(Path(folder)) if save and state.rank == 0 else None
        state._checkpoint({})
        return time.perf_counter() - began


def measure(arm: Arm, updates: int) -> Parts:
    """Measure an arm in processes of its own."""
    store = process_group.meeting_place("127.0.0.1")
    with ProcessPoolExecutor(arm.workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, rank, arm, store.port, updates) for rank in range(arm.workers)]
        found = [future.result() for future in futures]
    return replace(found[0], state_bytes=max(one.state_bytes for one in found))


def parts(args: argparse.Namespace) -> None:
    """Measure all arms in turn, and print the table and the model."""
    arms = [arm for arm in ARMS if arm.workers in args.workers]
    found: dict[Arm, list[Parts]] = {arm: [] for arm in arms}
    for number in range(args.rounds):
        for arm in arms:
            found[arm].append(measure(arm, args.updates))
            print(f"round {number + 1}, {arm.name}: {found[arm][-1].update:.3f} s an update", flush=True)
    middle = {arm: _middle(ones) for arm, ones in found.items()}
    first = next(iter(middle.values())).update
    head = (
        "| workers | rows/s | x | input | compute | sending | alone | optimiser | checkpoint | MB sent | MB of state |"
    )
    print(
        f"\nprocessor: {environment()['cpu']}, {os.cpu_count()} cores; seconds an update\n\n{head}\n|---|"
        + "---:|" * 10
    )
    for arm, one in middle.items():
        seconds = [f"{getattr(one, name):.3f}" for name in SECONDS]
        cells = [arm.name, f"{one.rows / one.update:.1f}", f"{first / one.update:.2f}", *seconds]
        print("| " + " | ".join([*cells, f"{one.sent_bytes / 1e6:.0f}", f"{one.state_bytes / 1e6:.0f}"]) + " |")
    if {1, 2, 4} <= {*args.workers}:
        predict(middle)
    if args.out:
        rows = [{"arm": arm.name, **asdict(one)} for arm, ones in found.items() for one in ones]
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _middle(ones: Sequence[Parts]) -> Parts:
    kinds = {name: type(value) for name, value in asdict(ones[0]).items()}
    return Parts(**{name: kind(statistics.median(getattr(one, name) for one in ones)) for name, kind in kinds.items()})


def predict(middle: dict[Arm, Parts]) -> None:
    """Fit the model to one and two workers, and hold it against four."""
    one, two, four = (middle[Arm(workers)] for workers in (1, 2, 4))
    cores = os.cpu_count() or 1
    compute = (one.compute + one.input) / one.rows  # seconds of a core a row
    wire = two.alone / (two.sent_bytes * 2 * (2 - 1) / 2)  # seconds a byte, of the ring's 2 (N - 1) / N
    beside = two.sending / two.alone  # the backward pass hides some of it, and takes the cores that it needs
    contention = (two.compute + two.input) / (compute * two.rows / min(2, cores))
    asked = compute * four.rows / min(4, cores) * contention + wire * four.sent_bytes * 2 * 3 / 4 * beside
    asked += two.optimiser * max(4 / cores, 1)
    print(
        f"\nmodel, of one and two workers: {1000 * compute:.1f} ms of a core a row, {contention:.2f} times that where "
        f"both cores work, {1e9 * wire:.2f} s a GB of the ring, {beside:.2f} times that beside the backward pass\n"
        f"four workers on {cores} cores: {asked:.3f} s an update by the model, {four.update:.3f} s measured "
        f"({100 * (asked / four.update - 1):+.0f}%)"
    )


# millions of rows


def rows(args: argparse.Namespace) -> None:
    """Train on corpora of so many million rows, twice each, and print memory and the time to the first loss."""
    for millions in args.rows:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rate, grown = pool.submit(draw, int(millions * 1e6)).result()
        print(f"{millions:g} million rows: {rate / 1e6:.2f} million draws a second and core, in {grown:.0f} MB")
    print("| million rows | cache | first loss, s | driver, GB (of its own) | worker, GB (of its own) | ended, s |")
    print("|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        for millions in args.rows:
            place = Path(folder) / f"{millions:g}"
            write_rows(place / "corpus", int(millions * 1e6))
            for cache in ("none yet", "there"):
                print(f"| {millions:g} | {cache} | " + " | ".join(train(place)) + " |", flush=True)
            shutil.rmtree(place)


def draw(rows: int) -> tuple[float, float]:
    """Draw the first million of a whole epoch, in updates of 32; return draws a second, and the MB that it takes."""
    sizes = dict.fromkeys(CODES, rows // len(CODES))
    length = {code: (lambda rows: (rows % 100 + 1).astype(np.int32)) for code in CODES}
    before, began, drawn = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), 0
    for update in batches.updates(mixture.epoch(sizes, MixtureConfig(alpha=0.3), 0, 2), length, 32):
        drawn += len(update)
        if drawn >= 1e6 - 64:
            break
    taken = time.perf_counter() - began
    return drawn / taken, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000


def write_rows(folder: Path, count: int) -> None:
    """Write `count` train rows of 15 words, evenly over 15 languages, as Parquet; no text comes twice."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{number:x}" for number in range(5000)])
    some = pa.array([" ".join(words[rng.integers(0, 5000, 14)]) for _ in range(20_000)])
    for number, code in enumerate(CODES):
        (folder / code).mkdir(parents=True)
        for at, (split, total) in enumerate((("train", count // len(CODES)), ("dev", 20), ("test", 20))):
            schema = pa.schema({"id": pa.string(), "text": pa.string(), "label": pa.string()})
            with pq.ParquetWriter(folder / code / f"{split}.parquet", schema) as file:
                for start in range(0, total, 1 << 18):
                    size = min(1 << 18, total - start)
                    names = pa.array(np.arange(start, start + size) + 10**9 * (at + 3 * number)).cast(pa.string())
                    texts = pc.binary_join_element_wise(some.take(pa.array(rng.integers(0, 20_000, size))), names, " ")
                    labels = pa.array(["a", "b", "c"]).take(pa.array(rng.integers(0, 3, size)))
                    file.write_table(pa.table([names, texts, labels], schema=schema))


def train(place: Path) -> tuple[str, ...]:
    """Train four updates on a corpus; return the cells of the table."""
    data = {
        "name": "rows",
        "corpus": {"loader": "files", "path": str(place / "corpus"), "id": "id", "cache_dir": str(place / "cache")},
        "sources": list(CODES),
        "network": {"max_length": 32},
        "mixture": {"draws_per_epoch": 64},
        "training": {"epochs": 1, "batch_size": 16},
        "tracking": {"uri": "off"},
        "storage": str(place / "runs"),
    }
    shutil.rmtree(place / "runs", ignore_errors=True)
    (place / "rows.yaml").write_text(json.dumps(data))
    command = [sys.executable, "-m", "xlt_ray.cli", "train", str(place / "rows.yaml")]
    began, first, peaks = time.monotonic(), 0.0, {"driver": [0.0, 0.0], "worker": [0.0, 0.0]}
    with (place / "told").open("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        while process.poll() is None:
            for kind, memory in _memory(process.pid):
                peaks[kind] = [max(pair) for pair in zip(peaks[kind], memory, strict=True)]
            if not first and "loss" in (place / "told").read_text():
                first = time.monotonic() - began
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit((place / "told").read_text())
    shown = [f"{peaks[kind][0]:.2f} ({peaks[kind][1]:.2f})" for kind in ("driver", "worker")]
    return f"{first:.0f}", *shown, f"{time.monotonic() - began:.0f}"


def _memory(driver: int) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the GB of the driver and of workers: resident, and without the pages of files."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            worker = b"RayTrainWorker" in (folder / "cmdline").read_bytes()
            if worker or int(folder.name) == driver:
                status = dict(re.findall(r"(VmRSS|RssAnon):\s+(\d+)", (folder / "status").read_text()))
                if len(status) == 2:
                    yield "worker" if worker else "driver", (int(status["VmRSS"]) / 1e6, int(status["RssAnon"]) / 1e6)


# a plan for GPUs


@dataclass(frozen=True)
class Machine:
    """What the model takes a GPU and its network for. None of it was measured by this project."""

    name: str
    flops: float  # a second, bfloat16, as its data sheet has it
    memory_bytes: float  # a second
    inside: float  # bytes a second between the eight GPUs of a machine, one direction
    outside: float  # bytes a second out of a machine, one direction

    used: float = 0.4  # share of `flops` that training an encoder reaches
    launch: float = 0.03  # seconds of forward and backward an update takes at the least, however few the rows


@dataclass(frozen=True)
class Model:
    """An encoder and its rows."""

    name: str
    weights: float
    embeddings: float
    tokens: float  # a row, of both texts of a pair


A100 = Machine("A100 80 GB, 200 Gb/s a machine", 312e12, 2.0e12, 300e9, 25e9)
H100 = Machine("H100 80 GB, 8 x 400 Gb/s a machine", 989e12, 3.35e12, 450e9, 400e9)
LARGE = Model("XLM-R large", 560e6, 257e6, 45)
TOKENISED = 150e-6  # seconds of a core a row, as `input` was measured here; nothing else goes on meanwhile
ROWS = 15 * 393_000


def update(machine: Machine, model: Model, gpus: int, batch: int, frozen: bool, sent_bytes: int) -> dict[str, float]:
    """Return the seconds of the parts of an update: 6 operations a weight and token, a ring in machines and between."""
    trained = model.weights - (model.embeddings if frozen else 0)
    share = -(-batch // gpus)
    operations = 6 * (model.weights - model.embeddings) * model.tokens * share  # embeddings are looked up
    compute = max(operations / (machine.flops * machine.used), machine.launch)
    machines, inside = max(gpus // 8, 1), min(gpus, 8)
    wire = 2 * trained * sent_bytes * (inside - 1) / inside / machine.inside
    wire += 2 * trained * sent_bytes * (machines - 1) / machines / machine.outside
    exposed = max(wire - 2 / 3 * compute, wire * 0.1)  # DDP sends while the backward pass goes on, but for the last
    # AdamW reads 16 bytes a weight and writes 12
    optimiser = trained * 28 / machine.memory_bytes
    return {"compute": compute, "sending": exposed, "optimiser": optimiser, "input": TOKENISED * share}


def plan() -> None:
    """Print what the model expects of each number of GPUs, and of each change."""
    print("| GPUs | rows an update | trained | sent | rows/s | efficiency | an epoch, min | of which sending |")
    print("|---:|---:|---|---|---:|---:|---:|---:|")
    for machine in (A100, H100):
        print(f"| **{machine.name}** | | | | | | | |")
        best = 2048 / sum(update(machine, LARGE, 1, 2048, False, 4).values())
        for gpus in (1, 8, 64, 512):
            arms = [(2048, False, 4), (2048, False, 2), (2048, True, 2), (16_384, True, 2)]
            for batch, frozen, size in [(64, False, 4), *(arms if gpus > 1 else arms[:1])]:
                found = update(machine, LARGE, gpus, batch, frozen, size)
                rate = batch / sum(found.values())
                what = ("all but embeddings" if frozen else "all", "bfloat16" if size == 2 else "float32")
                sending = found["sending"] / sum(found.values())
                cells = [gpus, f"{batch:,}", *what, f"{rate:,.0f}", f"{100 * rate / best / gpus:.0f}%"]
                print("| " + " | ".join(map(str, [*cells, f"{ROWS / rate / 60:.1f}", f"{100 * sending:.0f}%"])) + " |")


def main() -> None:
    """Measure, or print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2, 4], choices=sorted({arm.workers for arm in ARMS})
    )
    parser.add_argument("--updates", type=int, default=24, help="timed, half of them without sending")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=float, nargs="+", help="millions")
    parser.add_argument("--work", type=Path, help="folder for the millions of rows; default: where temporary files go")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--out", type=Path, help="write all measurements as JSON lines")
    args = parser.parse_args()
    if args.plan:
        plan()
    elif args.rows:
        rows(args)
    else:
        parts(args)


if __name__ == "__main__":
    main()
