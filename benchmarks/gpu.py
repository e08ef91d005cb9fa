"""What a GPU makes of training and serving: rows a second in float32, bfloat16 and compiled, and how long NCCL starts.

    python benchmarks/gpu.py                      # under five minutes on one GPU
    python benchmarks/gpu.py --device cpu --rows 8 --updates 2 --encoders bundled     # whether the script works

Training is what the loop does with an update, of rows of one length drawn at random, without tokenising: forward,
backward, the gradient's norm, AdamW. Encoders are the bundled one and one of XLM-R large's shape with random weights,
which are as fast as trained ones. Each arm comes in turn, several times; the figure is the median over updates.
Serving is `TorchEngine` on random words, tokenising included, with the bundled encoder and a head of no training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import distributed, nn

from xlt_ray import config, tasks
from xlt_ray.config.sections import TrainingConfig
from xlt_ray.inference import bundle, engine
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model import network
from xlt_ray.model.network import Network
from xlt_ray.model.precision import autocast
from xlt_ray.training.loop import Objective

CLASSES, WARM = 7, 5  # updates that are not timed
ARMS = ("float32", "bfloat16", "bfloat16, compiled")
LENGTHS = (32, 128)


EXPERIMENT = {"name": "gpu", "sources": ["eng_Latn"], "network": {"freeze": []}}


def network_of(name: str) -> Network:
    """Return a network that begins with the bundled encoder, or with random weights of XLM-R large's shape."""
    if name == "large":
        shape = transformers.XLMRobertaConfig(
            vocab_size=250_002, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
            max_position_embeddings=514, type_vocab_size=1,
        )  # fmt: skip
        return Network(transformers.XLMRobertaModel(shape, add_pooling_layer=False), CLASSES, "mean")
    return network.build(config.build(EXPERIMENT).network, CLASSES, seed=0).network


def batches(device: str, rows: int, length: int, vocabulary: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield rows of random pieces without end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        made = {
            "input_ids": torch.randint(5, vocabulary, (rows, length), generator=generator),
            "attention_mask": torch.ones(rows, length, dtype=torch.long),
            "label": torch.randint(CLASSES, (rows,), generator=generator),
            "weight": torch.ones(rows),
        }
        yield {name: tensor.to(device) for name, tensor in made.items()}


def train(args: argparse.Namespace, objective: Objective, arm: str, length: int) -> dict[str, float]:
    """Do updates; return rows a second, GB at the most, and the seconds of the first update, with the compiling."""
    precision, net = arm.partition(",")[0], objective.network
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True, weight_decay=TrainingConfig().weight_decay)
    vocabulary = net.encoder.get_input_embeddings().num_embeddings
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = []
    net.train()
    for _, batch in zip(range(WARM + args.updates), batches(args.device, args.rows, length, vocabulary), strict=False):
        began = time.perf_counter()
        with autocast(torch.device(args.device), precision):
            loss = objective(batch)
        (loss / args.rows).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the GPU
        taken.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 1e9 if args.device == "cuda" else float("nan")
    return {"rows": args.rows / statistics.median(taken[WARM:]), "peak": peak, "first": taken[0]}


def training(args: argparse.Namespace) -> None:
    """Measure every arm in turn, and print the table."""
    print("| encoder | tokens a row | precision | rows/s | x float32 | peak, GB | first update, s |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for name in args.encoders:
        net = network_of(name).to(args.device)
        objectives = {arm: Objective(net, tasks.build(tasks.DEFAULT)) for arm in ARMS}
        objectives[ARMS[-1]].compile(dynamic=True)
        found: dict[tuple[int, str], list[dict[str, float]]] = {(n, arm): [] for n in LENGTHS for arm in ARMS}
        for _ in range(args.rounds):
            for (length, arm), ones in found.items():
                ones.append(train(args, objectives[arm], arm, length))
        for (length, arm), ones in found.items():
            rate, plain = (statistics.median(one["rows"] for one in found[length, a]) for a in (arm, ARMS[0]))
            cells = [name, length, arm, f"{rate:.0f}", f"{rate / plain:.2f}", f"{ones[0]['peak']:.1f}"]
            print("| " + " | ".join(map(str, [*cells, f"{ones[0]['first']:.1f}"])) + " |", flush=True)
        del net, objectives
        if args.device == "cuda":
            torch.cuda.empty_cache()


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def group(args: argparse.Namespace) -> None:
    """Measure how long a group of one worker takes to start, and the first and the next average of gradients."""
    backend = "nccl" if args.device == "cuda" else "gloo"
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    start = timed(lambda: distributed.init_process_group(backend, store=store, rank=0, world_size=1))
    buffer = torch.zeros(25_000_000, device=args.device)

    def average() -> None:
        distributed.all_reduce(buffer)
        buffer[:1].item()

    first, later = timed(average), statistics.median(timed(average) for _ in range(5))
    distributed.destroy_process_group()
    print(f"\n{backend}: {start:.2f} s to start, {first:.2f} s for the first 100 MB, {later:.4f} s for the next")


def serving(args: argparse.Namespace) -> None:
    """Measure `TorchEngine`: texts a second by how many come at once, and milliseconds of a single one."""
    experiment = config.build(EXPERIMENT)
    net, tokenize, identity = network.build(experiment.network, CLASSES, seed=0)
    made = Bundle(net.eval(), tokenize, tuple(map(str, range(CLASSES))), experiment, None)
    rng = np.random.default_rng(0)
    words = [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{i % 7}" for i in range(2000)]
    texts = [" ".join(words[i] for i in rng.integers(0, 2000, 12)) for _ in range(args.texts)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        bundle.save(place, made, identity)
        print("\n| texts at once | texts/s | ms a call, p50 | p95 |\n|---:|---:|---:|---:|")
        model = engine.TorchEngine(place, device=args.device)
        for size in (1, 8, 64, 512):
            parts = [texts[start : start + size] for start in range(0, min(len(texts), 200 * size), size)]
            model.probabilities(model.encode(parts[0]))
            taken = [timed(lambda part=part: model.probabilities(model.encode(part))) for part in parts]  # type: ignore[misc]
            low, high = np.quantile(taken, [0.5, 0.95]) * 1000
            print(f"| {size} | {sum(map(len, parts)) / sum(taken):.0f} | {low:.1f} | {high:.1f} |", flush=True)


def main() -> None:
    """Measure all, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--encoders", nargs="+", default=["bundled", "large"], choices=["bundled", "large"])
    parser.add_argument("--rows", type=int, default=128, help="an update")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--texts", type=int, default=20_000)
    args = parser.parse_args()
    if args.device == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
        torch.backends.cuda.matmul.allow_tf32 = False  # as in the loop: float32 is float32
    training(args)
    group(args)
    serving(args)


if __name__ == "__main__":
    main()
