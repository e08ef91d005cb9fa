"""Training throughput beside the loops people write today: same encoder, same rows, same two threads, interleaved.

    python benchmarks/training.py                   rows a second, memory, time to the first step (half an hour)
    python benchmarks/training.py --accuracy        the same number of epochs in every arm, then test accuracy

Arms: `plain`, the loop most people write (pad to 128, float32, Adam over all parameters, batch 16); `trainer`,
`transformers.Trainer` with its defaults but batch 16, and dynamic padding (needs `pip install accelerate`); `loop`,
xlt_ray's loop in one process without Ray; `ray1`, the same on Ray Train with one worker of two threads; `ray2`, with
two workers of one thread each; `spare` and `ray_spare`, the loop and Ray with one thread, which leaves Ray's own
processes the second core. Every measurement is a process of its own. The rows are SIB-200's English train split; the
first epoch is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

THREADS, BATCH, LENGTH = 2, 16, 128
ARMS = ("plain", "trainer", "loop", "ray1", "ray2", "spare", "ray_spare")
MEASURED = ("eng_Latn", "deu_Latn", "hin_Deva", "swh_Latn")


def main() -> None:
    """Run all arms in turn, several times, and print the table; or one arm, when called by itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(Path(__file__).parents[2] / "shared" / "data" / "sib200"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0, help="default: 2, or 5 with --accuracy")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write all measurements as JSON")
    args = parser.parse_args()
    args.epochs = args.epochs or (5 if args.accuracy else 2)
    if args.arm:
        print("RESULT " + json.dumps(globals()[f"_{args.arm}"](args)))
        return
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.arms}
    for number in range(1 if args.accuracy else args.rounds):
        for arm in args.arms:
            found[arm].append(_in_a_process(arm, args))
            print(f"round {number + 1} {arm}: {json.dumps(found[arm][-1])}", flush=True)
    _table(found)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _in_a_process(arm: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--arm", arm, "--data", args.data, "--epochs", str(args.epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false"}
    started = time.time()
    done = subprocess.run(
        command + (["--accuracy"] if args.accuracy else []),
        env=environment | {"STARTED": str(started)},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{arm} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1][7:])


def _table(found: dict[str, list[dict[str, Any]]]) -> None:
    def middle(arm: str, key: str) -> float:
        return statistics.median(run[key] for run in found[arm])

    print("\n| arm | rows/s | x plain | x trainer | first step, s | peak memory, GB | accuracy eng / mean of 4 |")
    print("|---|---|---|---|---|---|---|")
    for arm in found:
        rate = middle(arm, "rows_per_second")
        ratios = [
            f"{rate / middle(peer, 'rows_per_second'):.2f}" if peer in found else "" for peer in ("plain", "trainer")
        ]
        right = found[arm][-1].get("accuracy", {})
        shown = f"{100 * right['eng_Latn']:.1f} / {100 * np.mean(list(right.values())):.1f}" if right else ""
        cells = [
            arm,
            f"{rate:.1f}",
            *ratios,
            f"{middle(arm, 'first_step'):.1f}",
            f"{middle(arm, 'peak_gb'):.2f}",
            shown,
        ]
        print("| " + " | ".join(cells) + " |")
    if {"ray1", "ray2"} <= found.keys():
        ratio = middle("ray2", "rows_per_second") / middle("ray1", "rows_per_second")
        print(f"\ntwo workers of one thread: {ratio:.2f} x one worker of two threads")
    for alone, on_ray, when in (("loop", "ray1", "after start-up"), ("spare", "ray_spare", "with a core to itself")):
        if {alone, on_ray} <= found.keys():
            share = 1 - middle(on_ray, "rows_per_second") / middle(alone, "rows_per_second")
            print(f"Ray's share of the time {when}: {100 * share:.1f}%")


def _experiment(args: argparse.Namespace, workers: int = 1, threads: float = THREADS) -> Any:
    from xlt_ray.config.read import build

    return build(
        {
            "name": "speed",
            "corpus": {
                "loader": "files",
                "path": args.data,
                "label": "category",
                "id": "index_id",
                "languages": list(MEASURED),
            },
            "sources": ["eng_Latn"],
            "training": {"epochs": args.epochs, "batch_size": BATCH, "learning_rate": 5e-5},
            "network": {"max_length": LENGTH},
            "resources": {"workers": workers, "cpus_per_worker": threads},
            "tracking": {"uri": "off"},
        }
    )


def _rows(args: argparse.Namespace) -> tuple[Any, list[str], np.ndarray]:
    from xlt_ray.training.checks import prepare

    corpus = prepare(_experiment(args)).corpus
    table = corpus.table("train", "eng_Latn")
    return corpus, ["query: " + text for text in table["text"].to_pylist()], table["label"].to_numpy()


def _network(args: argparse.Namespace) -> tuple[Any, Any]:
    import torch

    from xlt_ray.model import network

    torch.set_num_threads(THREADS)
    net, tokenize, _ = network.build(_experiment(args).network.model_copy(update={"freeze": ()}), 7, seed=0)
    return net, tokenize.tokenizer


def _result(args: argparse.Namespace, times: list[float], corpus: Any, net: Any, tokenizer: Any) -> dict[str, Any]:
    warm = len(times) // args.epochs - 1  # updates of the first epoch, less one: the clock starts at its end
    found = {
        "rows_per_second": BATCH * (len(times) - 1 - warm) / (times[-1] - times[warm]),
        "first_step": times[0] - float(os.environ["STARTED"]),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    return found | ({"accuracy": _accuracy(corpus, net, tokenizer)} if args.accuracy else {})


def _accuracy(corpus: Any, net: Any, tokenizer: Any) -> dict[str, float]:
    from xlt_ray import tasks
    from xlt_ray.evaluation import evaluate
    from xlt_ray.model.collate import Tokenize

    tables = {code: corpus.table("test", code) for code in MEASURED}
    inputs = evaluate.Inputs(Tokenize(tokenizer, "query: ", LENGTH), "float32", 4096)
    predictions = evaluate.predict(net, tasks.build(tasks.DEFAULT, corpus.labels), tables, inputs)
    return {code: one.score for code, one in predictions.items()}


def _plain(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    corpus, texts, labels = _rows(args)
    net, tokenizer = _network(args)
    optimizer, rng, times = torch.optim.Adam(net.parameters(), lr=5e-5), np.random.default_rng(0), []
    net.train()
    for _ in range(args.epochs):
        order = rng.permutation(len(texts))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            batch = tokenizer(
                [texts[i] for i in chosen],
                padding="max_length",
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            )
            loss = torch.nn.functional.cross_entropy(net(dict(batch)), torch.from_numpy(labels[chosen]).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.time())
    return _result(args, times, corpus, net, tokenizer)


def _trainer(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    corpus, texts, labels = _rows(args)
    net, tokenizer = _network(args)
    times: list[float] = []

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None, **_: Any) -> dict[str, Any]:
            logits = self.net({"input_ids": input_ids, "attention_mask": attention_mask})
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.time())

    encoded = tokenizer(texts, truncation=True, max_length=LENGTH)
    rows = [
        {"input_ids": encoded["input_ids"][i], "attention_mask": encoded["attention_mask"][i], "labels": int(labels[i])}
        for i in range(len(texts))
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=BATCH, num_train_epochs=args.epochs, use_cpu=True, save_strategy="no",
            dataloader_drop_last=True, disable_tqdm=True,
        )  # fmt: skip
        collator = transformers.DataCollatorWithPadding(tokenizer)
        transformers.Trainer(
            Classifier(), arguments, train_dataset=rows, data_collator=collator, callbacks=[Clock()]
        ).train()
    net.eval()
    return _result(args, times, corpus, net, tokenizer)


def _loop(args: argparse.Namespace, threads: int = THREADS) -> dict[str, Any]:
    import torch

    from xlt_ray.training import loop
    from xlt_ray.training.checks import prepare
    from xlt_ray.training.setup import Run

    torch.set_num_threads(threads)
    setup = prepare(_experiment(args))
    net, tokenize, _ = setup.build()
    times: list[tuple[int, float]] = []

    def emit(metrics: dict[str, float]) -> None:
        if "train/loss" in metrics:
            times.append((int(metrics["step"]), time.time()))

    loop.fit(Run(setup, net, tokenize, emit=emit))
    return _from_events(args, times, setup.corpus, net, tokenize.tokenizer)


def _from_events(
    args: argparse.Namespace, times: list[tuple[int, float]], corpus: Any, net: Any, tokenizer: Any
) -> Any:
    # only stretches within an epoch count: between epochs dev is measured, which the peers do not do
    per_epoch = -(-corpus.table("train", "eng_Latn").num_rows // BATCH)
    spent = steps = 0.0
    for (step, at), (later, then) in zip(times, times[1:], strict=False):
        if step > per_epoch and (step - 1) // per_epoch == (later - 1) // per_epoch:
            spent, steps = spent + then - at, steps + later - step
    found = {
        "rows_per_second": BATCH * steps / spent,
        "first_step": times[0][1] - float(os.environ["STARTED"]),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    return found | ({"accuracy": _accuracy(corpus, net, tokenizer)} if args.accuracy else {})


def _on_ray(args: argparse.Namespace, workers: int, threads: float) -> dict[str, Any]:
    from xlt_ray.model import network
    from xlt_ray.runs.storage import RunFolder
    from xlt_ray.training import cluster, distributed
    from xlt_ray.training.checks import prepare

    experiment = _experiment(args, workers, threads)
    prepared = prepare(experiment)
    times: list[tuple[int, float]] = []
    peak = [0.0]

    def on_event(event: dict[str, Any]) -> None:
        if "train/loss" in event:
            times.append((int(event["step"]), time.time()))
            peak[0] = max(peak[0], _workers_memory())

    with tempfile.TemporaryDirectory() as folder, cluster.ray_cluster(experiment):
        place = RunFolder(Path(folder)).checkpoints()
        trained = distributed.fine_tune(prepared.experiment, *place, on_event)
    net, tokenize, _ = prepared.build()
    network.restore_weights(net, trained.weights)
    return _from_events(args, times, prepared.corpus, net.eval(), tokenize.tokenizer) | {"peak_gb": peak[0]}


def _workers_memory() -> float:
    # resident memory of all Ray Train workers together, in GB
    total = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if b"RayTrainWorker" in (folder / "cmdline").read_bytes():
                    total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except OSError:  # the process is gone
                continue
    return total / 2**30


def _ray1(args: argparse.Namespace) -> dict[str, Any]:
    return _on_ray(args, 1, THREADS)


def _ray2(args: argparse.Namespace) -> dict[str, Any]:
    return _on_ray(args, 2, THREADS / 2)


def _spare(args: argparse.Namespace) -> dict[str, Any]:
    return _loop(args, 1)


def _ray_spare(args: argparse.Namespace) -> dict[str, Any]:
    return _on_ray(args, 1, 1)


if __name__ == "__main__":
    main()
