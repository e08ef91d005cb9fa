"""How fast, how steady and how large a server is, beside what else could serve the same model on the same machine.

    python benchmarks/serving.py runs/quickstart-*/ --out benchmarks/results     # about 35 minutes on two cores

Arms, one at a time and in turn, `--rounds` times: `pipeline` (FastAPI around transformers.pipeline, one uvicorn
worker), `mlflow` (`mlflow models serve`), `ours_float32` and `ours_int8` (`xlt serve`, two replicas of one thread),
`..._python` (the same behind Ray's own proxy instead of HAProxy), `..._twenty` (the same with a vocabulary trimmed to
twenty languages; its load is their texts alone), and the ceilings `onnx_float32` and `onnx_int8`:
onnxruntime called in a loop with what the server would call it with, tokenising included, no HTTP. Texts are the test
rows of the model's corpus in all its languages, one a request; the same texts in the same order for every arm. Closed
loop: 1, 8 and 64 clients that ask again as soon as they are answered. Afterwards, for ours alone: open loop at shares
of the capacity, three times the capacity for a minute, the change of the model and a killed replica under load.

    python benchmarks/serving.py runs/sib200-record-*/ --readings 1 2 4 --rounds 1 --no-trials   # two minutes a number

of a run with `translate_test`: `ours_int8_read4` and so on, which read a text in the first so many of the model's ways.
Texts are those of languages with a lexicon, and requests name their language, so that every text is read so often.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import http_load
import numpy as np
import uvloop  # half the processor's time of asyncio's own loop, which the server can use
from http_load import Taken

from xlt_ray import config
from xlt_ray.corpora import loaders
from xlt_ray.export import export
from xlt_ray.inference import artefact, engine
from xlt_ray.inference import bundle as bundles
from xlt_ray.training import checks
from xlt_ray.translation import readings

ROOT = Path(__file__).parents[1]
CLIENTS = (1, 8, 64)
SERVERS = ("pipeline", "mlflow", "ours_float32", "ours_int8", "ours_int8_twenty", "ours_int8_python")
# what `ours_int8_twenty` serves, with the pieces of their scripts alone
TWENTY = (
    *("afr_Latn", "arb_Arab", "bul_Cyrl", "cat_Latn", "ces_Latn", "deu_Latn", "ell_Grek", "eng_Latn", "fra_Latn"),
    *("hin_Deva", "ita_Latn", "nld_Latn", "pol_Latn", "por_Latn", "ron_Latn", "rus_Cyrl", "spa_Latn", "swe_Latn"),
    *("ukr_Cyrl", "vie_Latn"),
)
CEILINGS = ("onnx_float32", "onnx_int8")


@dataclass(frozen=True)
class Row:
    """What one arm did once: milliseconds, texts a second, megabytes resident in the process that holds the model.

    `processor` is milliseconds a text on processors, of all processes that hold the model together.
    """

    arm: str
    round: int
    clients: int
    texts_per_second: float
    p50: float
    p95: float
    p99: float
    memory: float
    processor: float
    failed: int


def texts_of(run: Path) -> list[tuple[str, str]]:
    """Return (language, text) of the test rows of a run's corpus, shuffled once and for all."""
    experiment = config.load(run / "experiment.yaml")
    corpus, _ = loaders.load_corpus(checks.absolute(experiment))
    rows = [
        (code, text) for code in corpus.languages("test") for text in corpus.table("test", code)["text"].to_pylist()
    ]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def memory(pid: int) -> float:
    """Return the resident megabytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def family(pid: int) -> list[int]:
    """List a process and its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def named(pids: Sequence[int], part: str) -> list[int]:
    """Pick the processes whose command line holds a word."""
    kept = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if part in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                kept.append(pid)
    return kept


class Served:
    """A server that runs: its port, and the processes that hold the model."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, holder: str) -> None:
        self.process, self.port, self.holder = process, port, holder

    def holders(self) -> list[int]:
        return named(family(self.process.pid), self.holder)

    def processor(self) -> float:
        """Return the seconds on processors so far."""
        ticks = [(Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split() for pid in self.holders()]
        return sum(int(one[11]) + int(one[12]) for one in ticks) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        return max(memory(pid) for pid in self.holders())


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str], port: int, ready: str, holder: str, log: Path) -> Iterator[Served]:
    """Start a server, wait until the path `ready` answers, and stop it; only what was started here is, by its pid."""
    # MLflow looks for uvicorn on the path
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "PATH": path}
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            wait(f"http://127.0.0.1:{port}{ready}", process, log)
            yield Served(process, port, holder)
        finally:
            left = family(process.pid)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def serving(
    arm: str, bundle: Path, folder: Path, mlflow_model: Path, log: Path
) -> contextlib.AbstractContextManager[Served]:
    """Start an arm's server and stop it again."""
    port = free_port()
    command, ready, holder = _command(arm, bundle, folder, mlflow_model, port)
    return running(command, port, ready, holder, log)


def _command(arm: str, bundle: Path, folder: Path, mlflow_model: Path, port: int) -> tuple[list[str], str, str]:
    if arm == "pipeline":
        return [sys.executable, str(ROOT / "benchmarks/peer_pipeline.py"), str(bundle), str(port)], "/readyz", "peer_"
    if arm == "mlflow":
        options = ["-m", str(mlflow_model), "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
        return [sys.executable, "-m", "mlflow", "models", "serve", *options], "/ping", "scoring_server"
    precision = arm.split("_")[1]
    variant = arm.removeprefix(f"ours_{precision}").lstrip("_")
    folder = folder.with_name(variant) if variant not in ("", "python") else folder
    proxy = ["--no-haproxy"] if arm.endswith("_python") else []
    # one thread a replica: Serve balances requests over them, and two threads of one engine wait for each other
    scaling = ["scaling.min_replicas=2", "scaling.max_replicas=2", "scaling.cpus=0.5"]
    options = [str(folder), f"precision={precision}", *scaling, "--port", str(port), *proxy]
    return [sys.executable, "-m", "xlt_ray.cli", "serve", *options], "/readyz", "ServeReplica:xlt"


def wait(url: str, process: subprocess.Popen[bytes], log: Path, limit: float = 300) -> None:
    """Wait until a server answers; raises SystemExit where it ends first."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"{url}: the server ended before it answered; see {log}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.2)
    raise SystemExit(f"{url}: no answer within {limit:g} s; see {log}")


def asked(arm: str, texts: Sequence[tuple[str, str]]) -> list[bytes]:
    """Write the requests of an arm, a text each."""
    if arm == "mlflow":
        return http_load.requests("/invocations", [{"inputs": [text]} for _, text in texts])
    if "_read" in arm:
        return http_load.requests("/v1/classify", [{"texts": [text], "languages": [code]} for code, text in texts])
    return http_load.requests("/v1/classify", [{"texts": [text]} for _, text in texts])


def closed_loops(arm: str, number: int, served: Served, texts: Sequence[tuple[str, str]], seconds: float) -> list[Row]:
    """Measure an arm with 1, 8 and 64 clients."""
    if arm.endswith("_twenty"):
        texts = [(code, text) for code, text in texts if code in TWENTY]
    requests = asked(arm, texts)
    uvloop.run(http_load.closed(served.port, requests, 1, 8, min(5, seconds)))  # warm
    rows = []
    for clients in CLIENTS:
        before = served.processor()
        taken = uvloop.run(http_load.closed(served.port, requests, 1, clients, seconds))
        processor = 1000 * (served.processor() - before) / max(taken.texts, 1)
        failed = sum(count for status, count in taken.statuses.items() if status != 200)
        rows.append(
            Row(
                arm, number, clients, taken.texts_per_second, **taken.quantiles(), memory=served.memory(),
                processor=processor, failed=failed,
            )
        )  # fmt: skip
    return rows


def ceiling(arm: str, number: int, folder: Path, texts: Sequence[tuple[str, str]], seconds: float) -> list[Row]:
    """Measure onnxruntime in a loop, without HTTP: batches of 64 on two engines of one thread, and single texts."""
    precision = arm.split("_")[1]
    engines = [engine.load(folder, precision=precision, threads=1) for _ in range(2)]
    one = _loop(engines[:1], texts, 1, seconds)
    before = time.process_time()
    many = _loop(engines, texts, 64, seconds)
    processor = 1000 * (time.process_time() - before) / max(1, many[0] * seconds)
    resident = memory(os.getpid())
    quantiles = Taken(seconds=one[1]).quantiles()
    nothing = {"p50": float("nan"), "p95": float("nan"), "p99": float("nan")}
    return [
        Row(arm, number, 1, one[0], **quantiles, memory=resident, processor=float("nan"), failed=0),
        Row(arm, number, 64, many[0], **nothing, memory=resident, processor=processor, failed=0),
    ]


def _loop(
    engines: Sequence[Any], texts: Sequence[tuple[str, str]], size: int, seconds: float
) -> tuple[float, list[float]]:
    taken: list[float] = []
    done = [0] * len(engines)
    began = time.perf_counter()

    def work(which: int) -> None:
        at = which * len(texts) // len(engines)
        while time.perf_counter() - began < seconds:
            batch = [texts[(at + i) % len(texts)][1] for i in range(size)]
            at += size
            start = time.perf_counter()
            engines[which].probabilities(engines[which].encode(batch))
            taken.append(time.perf_counter() - start)
            done[which] += size

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(engines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began), taken


def right_labels(folder: Path, precision: str, texts: Sequence[tuple[str, str]]) -> list[str]:
    """Label the texts by the bare engine, to hold a server's answers against."""
    running = engine.load(folder, precision=precision)
    found = running.probabilities(running.encode([text for _, text in texts])).argmax(1)
    return [running.labels[i] for i in found]


def wrong(taken: Taken, right: Sequence[str]) -> int:
    """Count the answers of status 200 whose label is not the bare engine's."""
    answers = [(which, json.loads(body)) for which, body in taken.bodies]
    return sum(body["results"][0]["label"] != right[which] for which, body in answers)


def open_loops(served: Served, texts: Sequence[tuple[str, str]], capacity: float, seconds: float) -> list[str]:
    """Measure throughput with sixteen texts a request, and latency at fixed shares of the capacity."""
    many = [{"texts": [text for _, text in texts[i : i + 16]]} for i in range(0, len(texts) - 16, 16)]
    taken = uvloop.run(http_load.closed(served.port, http_load.requests("/v1/classify", many), 16, 8, seconds))
    lines = [f"8 clients, 16 texts a request: {taken.texts_per_second:.1f} texts/s, statuses {dict(taken.statuses)}"]
    for share in (0.3, 0.6, 0.8):
        taken = uvloop.run(http_load.opened(served.port, asked("ours", texts), 1, share * capacity, seconds))
        found = taken.quantiles()
        lines.append(
            f"open loop at {share:.0%} ({share * capacity:.0f} texts/s): p50 {found['p50']:.1f}, "
            f"p95 {found['p95']:.1f}, p99 {found['p99']:.1f} ms, statuses {dict(taken.statuses)}"
        )
    return lines


def overload(
    served: Served, texts: Sequence[tuple[str, str]], right: Sequence[str], capacity: float, seconds: float
) -> list[str]:
    """Send three times the load that the server can take, and report how it answers."""
    before = [served.memory()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(5):
            before.append(served.memory())

    thread = threading.Thread(target=watch)
    thread.start()
    taken = uvloop.run(http_load.opened(served.port, asked("ours", texts), 1, 3 * capacity, seconds, keep=True))
    stop.set()
    thread.join()
    refused = taken.refused_seconds or [0.0]
    return [
        f"overload at 3 x {capacity:.0f} texts/s for {seconds:g} s: statuses {dict(taken.statuses)}, "
        f"goodput {taken.texts / seconds:.1f} texts/s = {taken.texts / seconds / capacity:.0%} of capacity, "
        f"wrong answers {wrong(taken, right)}, good p50 {taken.quantiles()['p50']:.0f} "
        f"p99 {taken.quantiles()['p99']:.0f} ms, "
        f"refused p50 {1000 * np.quantile(refused, 0.5):.0f} p99 {1000 * np.quantile(refused, 0.99):.0f} ms",
        f"memory of the largest replica during it, MB: {before[0]:.0f} before, {max(before):.0f} at most, "
        f"{before[-1]:.0f} after",
    ]


def exchanged(served: Served, texts: Sequence[tuple[str, str]], other: Path) -> list[str]:
    """Change the model, and change it back, under the load of 16 clients."""
    answers: dict[str, Taken] = {}
    outcomes = _under_load(served, texts, lambda: _rollouts(served.port, other), answers)
    taken = answers["taken"]
    names = Counter(json.loads(body)["model"]["name"] for _, body in taken.bodies if body.startswith(b'{"model"'))
    return [
        f"change of the model under 16 clients: statuses {dict(taken.statuses)}, "
        f"p99 {taken.quantiles()['p99']:.0f} ms, slowest {1000 * max(taken.seconds):.0f} ms, "
        f"answers by {len(names)} models ({'; '.join(outcomes)})"
    ]


def killed(served: Served, texts: Sequence[tuple[str, str]]) -> list[str]:
    """Kill -9 one of two replicas under the load of 16 clients, and wait until there are two again."""
    answers: dict[str, Taken] = {}

    def kill() -> list[str]:
        before = served.holders()
        os.kill(before[0], signal.SIGKILL)
        began = time.monotonic()
        while len(served.holders()) < len(before) and time.monotonic() - began < 120:
            time.sleep(0.2)
        return [f"a new process after {time.monotonic() - began:.1f} s"]

    outcomes = _under_load(served, texts, kill, answers)
    taken = answers["taken"]
    return [
        f"kill -9 of a replica under 16 clients: statuses {dict(taken.statuses)}, "
        f"p99 {taken.quantiles()['p99']:.0f} ms, slowest {1000 * max(taken.seconds):.0f} ms ({'; '.join(outcomes)})"
    ]


def _under_load(
    served: Served, texts: Sequence[tuple[str, str]], action: Callable[[], list[str]], answers: dict[str, Taken]
) -> list[str]:
    outcomes: list[str] = []
    requests, taken, stop = asked("ours", texts), [], threading.Event()

    def load() -> None:
        while not stop.is_set():
            taken.append(uvloop.run(http_load.closed(served.port, requests, 1, 16, 2, keep=True)))

    thread = threading.Thread(target=load)
    thread.start()
    time.sleep(3)
    outcomes += action()
    time.sleep(5)
    stop.set()
    thread.join()
    whole = Taken(wall=sum(one.wall for one in taken))
    for one in taken:
        whole.statuses.update(one.statuses)
        whole.seconds += one.seconds
        whole.bodies += one.bodies
    answers["taken"] = whole
    return outcomes


def _rollouts(port: int, other: Path) -> list[str]:
    outcomes = []
    for command in (["rollout", str(other)], ["rollback"]):
        done = subprocess.run(
            [sys.executable, "-m", "xlt_ray.cli", *command, "--port", str(port)],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        outcomes.append((done.stdout.strip() or done.stderr.strip()).splitlines()[-1].replace(f"{other.parent}/", ""))
    return outcomes


def table(rows: Sequence[Row]) -> list[str]:
    """Write medians over rounds, and what they are beside the peer."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for arm in arms:
        for clients in CLIENTS:
            mine = [row for row in rows if row.arm == arm and row.clients == clients]
            if mine:
                fields = ("texts_per_second", "p50", "p95", "p99", "memory", "processor")
                cells[arm, clients] = {name: statistics.median(getattr(one, name) for one in mine) for name in fields}
    lines = ["arm\tclients\ttexts/s\tx pipeline\tp50 ms\tp95 ms\tp99 ms\tmemory MB\tprocessor ms a text"]
    for (arm, clients), found in cells.items():
        peer = cells.get(("pipeline", clients), {}).get("texts_per_second", float("nan"))
        lines.append(
            f"{arm}\t{clients}\t{found['texts_per_second']:.1f}\t{found['texts_per_second'] / peer:.2f}\t"
            f"{found['p50']:.1f}\t{found['p95']:.1f}\t{found['p99']:.1f}\t{found['memory']:.0f}\t"
            f"{found['processor']:.1f}"
        )
    return lines


def shown(row: Row) -> str:
    """Describe the result of an arm in a line."""
    what = f"{row.texts_per_second:.1f} texts/s, p50 {row.p50:.1f}, p99 {row.p99:.1f} ms, {row.memory:.0f} MB, "
    what += f"{row.processor:.1f} ms of processor a text"
    return f"{row.arm}, {row.clients} clients: {what}, {row.failed} failed"


def prepared(run: Path, scratch: Path) -> tuple[Path, Path, Path, Path]:
    """Export the run's bundle (`xlt promote` checks it), for twenty languages, to change to, and for MLflow."""
    import mlflow

    bundle = run / "bundle"
    folder, other, model = scratch / "artefact", scratch / "other", scratch / "mlflow"
    experiment = config.load(run / "experiment.yaml")
    corpus, _ = loaders.load_corpus(checks.absolute(experiment))
    seen = [text for code in corpus.languages("train") for text in corpus.table("train", code)["text"].to_pylist()[:20]]
    export.export(bundle, folder, texts=seen)
    export.export(bundle, scratch / "twenty", vocabulary="trimmed", languages=TWENTY, texts=seen)
    export.export(bundle, other, texts=seen)
    mlflow.pyfunc.save_model(
        str(model), loader_module="xlt_ray.bundle", data_path=str(bundle), code_paths=[str(ROOT / "xlt_ray")],
        pip_requirements=[],
    )  # fmt: skip
    return bundle, folder, other, model


def prepared_readings(run: Path, scratch: Path, numbers: Sequence[int]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Export a bundle with each number of readings; return the paths of `prepared` and the languages with lexicons."""
    found = bundles.load(run / "bundle").readings
    if found is None or max(numbers) > len(found.translators):
        have = "none" if found is None else len(found.translators)
        raise SystemExit(f"{run}: --readings {max(numbers)}, but its model reads a text in {have}; give another run")
    experiment = config.load(run / "experiment.yaml")
    corpus, _ = loaders.load_corpus(checks.absolute(experiment))
    seen = [text for code in found.languages for text in corpus.table("train", code)["text"].to_pylist()[:20]]
    folder = scratch / "artefact"
    made = export.export(run / "bundle", folder, texts=seen)
    for number in numbers:
        copy = Path(shutil.copytree(folder, folder.with_name(f"read{number}")))
        cut = replace(found, translators=found.translators[:number], weights=found.weights[:number], by_language={})
        if number > 1:
            (copy / readings.FILE).write_text(readings.to_json(cut), encoding="utf-8")
        else:  # as it stands, which needs no lexicon
            (copy / readings.FILE).unlink()
        artefact.write(replace(made, folder=copy))
    return (run / "bundle", folder, folder, folder), found.languages


def main() -> None:
    """Run what is asked for, printing as it goes; rows and notes are written at the end and after every round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--arms", nargs="*", default=[*SERVERS, *CEILINGS])
    parser.add_argument("--readings", type=int, nargs="*", default=[], help="measure these numbers of readings instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each closed loop")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--trials", action=argparse.BooleanOptionalAction, default=True, help="overload, change, kill")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        texts = texts_of(options.run)
        if options.readings:
            (bundle, folder, other, model), codes = prepared_readings(options.run, Path(scratch), options.readings)
            texts = [(code, text) for code, text in texts if code in codes]
            options.arms = [f"ours_int8_read{number}" for number in options.readings]
        else:
            bundle, folder, other, model = prepared(options.run, Path(scratch))
        log = Path(scratch) / "servers.log"
        for number in range(options.rounds):
            for arm in options.arms:
                rows += one_arm(arm, number, bundle, folder, model, log, texts, options.seconds)
                for row in rows[-3:]:
                    if row.arm == arm and row.round == number:
                        print(shown(row), flush=True)
            write(options.out, rows, notes)
        if options.trials:
            for arm in [arm for arm in ("ours_int8", "ours_float32") if arm in options.arms]:
                precision = arm.split("_")[1]
                mine = [r.texts_per_second for r in rows if r.arm == arm and r.clients == 64]
                with serving(arm, bundle, folder, model, log) as served:
                    warm = uvloop.run(http_load.closed(served.port, asked(arm, texts), 1, 64, options.seconds))
                    capacity = statistics.median([*mine, warm.texts_per_second])
                    right = right_labels(folder, precision, texts)
                    for part in (
                        open_loops(served, texts, capacity, options.seconds),
                        overload(served, texts, right, capacity, options.overload_seconds),
                        exchanged(served, texts, other),
                        killed(served, texts),
                    ):
                        notes += [f"{precision}: {line}" for line in part]
                        print("\n".join(notes[-len(part) :]), flush=True)
                    write(options.out, rows, notes)
    print("\n".join(table(rows)))


def write(out: Path | None, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Write what is known so far: every row, and the table with the notes."""
    if out is None or not rows:
        return
    out.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(asdict(rows[0])), *("\t".join(map(str, asdict(row).values())) for row in rows)]
    (out / "serving.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "serving_notes.txt").write_text("\n".join([*table(rows), "", *notes]) + "\n", encoding="utf-8")


def one_arm(
    arm: str,
    number: int,
    bundle: Path,
    folder: Path,
    model: Path,
    log: Path,
    texts: list[tuple[str, str]],
    seconds: float,
) -> list[Row]:
    """Measure one arm once."""
    if arm in CEILINGS:
        return ceiling(arm, number, folder, texts, seconds)
    with serving(arm, bundle, folder, model, log) as served:
        return closed_loops(arm, number, served, texts, seconds)


if __name__ == "__main__":
    main()
