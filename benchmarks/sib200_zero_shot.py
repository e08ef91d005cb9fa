"""Zero-shot SIB-200 from English with the bundled encoder, beside published XLM-R large, language by language.

    python benchmarks/sib200_zero_shot.py                 about 25 minutes on 2 cores; resumes after an interruption
    python benchmarks/sib200_zero_shot.py --seeds 1 --methods probe        a few minutes

Reads SIB-200 as LANGUAGE/{train,dev,test}.tsv and the published results as CSV (arXiv 2309.07445, Table 7). Both sides
are averaged over the same languages: those that have files here and a row in the paper, English left out on both sides
of the zero-shot mean. Nothing is chosen on any language's test or on any target's dev.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from xlt_ray import config
from xlt_ray.evaluation.predictions import Predictions, load_predictions
from xlt_ray.runs import run

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"
SHARED = Path(__file__).parents[2] / "shared"
PUBLISHED = "XLM-R large, published"


def main() -> None:
    """Do every run, average over seeds, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "sib200")
    parser.add_argument("--published", type=Path, default=SHARED / "facts" / "sib200_published.csv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["probe", "fine_tune"], choices=["probe", "fine_tune"])
    parser.add_argument("--sources", nargs="+", default=["eng_Latn"], help="each alone, one run after another")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--out", type=Path, help="folder to write the per-language table to")
    args = parser.parse_args()
    with args.published.open(encoding="utf-8") as file:
        published = {row["code"]: row for row in csv.DictReader(file) if row["zs_eng"]}
    found: dict[str, dict[str, Any]] = {}
    for source in args.sources:
        for method in args.methods:
            seeds = range(1 if method == "probe" else args.seeds)  # a probe has no random part
            found[f"{method}, {source}"] = _average([_one(args, method, source, seed) for seed in seeds])
    _print(found, published, args)


def _one(args: argparse.Namespace, method: str, source: str, seed: int) -> dict[str, Any]:
    overrides = [
        f"corpus.path={args.data}", f"sources=[{source}]", f"seed={seed}", f"storage={args.storage}",
        "tracking.uri=off",
    ]  # fmt: skip
    experiment = config.load(CONFIGS / f"sib200_{method}.yaml", overrides)
    marks: dict[str, float] = {}

    def on_event(event: dict[str, Any]) -> None:
        marks.setdefault(event["stage"], time.monotonic())
        if "epoch" in event or "strength" in event:
            print(f"  {method} {source} seed {seed}: {json.dumps(event)}", flush=True)

    started = time.monotonic()
    outcome = run.run(experiment, on_event)
    file = outcome.folder.local / "benchmark_seconds.json"
    if not outcome.repeated:
        train = marks.get("evaluate", marks.get("score", 0.0)) - marks.get("train", marks.get("embed", 0.0))
        file.write_text(json.dumps({"training": train, "all": time.monotonic() - started}), encoding="utf-8")
    predictions = load_predictions(outcome.folder.local / "predictions.npz")
    print(f"{method} {source} seed {seed}: {outcome.scores.summary['accuracy/mean_zero_shot']:.4f}", flush=True)
    return {"predictions": predictions, "seconds": json.loads(file.read_text(encoding="utf-8"))}


def _average(runs: list[dict[str, Any]]) -> dict[str, Any]:
    right: dict[str, np.ndarray] = {}
    for code in runs[0]["predictions"]:
        parts: list[Predictions] = [one["predictions"][code] for one in runs]
        order = [np.argsort(part.ids) for part in parts]
        right[code] = np.stack([(p.gold == p.predicted)[o] for p, o in zip(parts, order, strict=True)])
    return {"right": right, "seconds": [one["seconds"] for one in runs]}


def _groups(found: dict[str, Any], published: dict[str, Any], source: str) -> dict[str, list[str]]:
    both = sorted(set(published) & set(next(iter(found.values()))["right"]) - {source, "eng_Latn"})
    return {
        "all": both,
        "seen": [code for code in both if published[code]["in_xlmr"] == "1"],
        "unseen": [code for code in both if published[code]["in_xlmr"] == "0"],
    }


def _print(found: dict[str, dict[str, Any]], published: dict[str, Any], args: argparse.Namespace) -> None:
    groups = _groups(found, published, "eng_Latn")
    heads = " | ".join(f"{name} ({len(codes)})" for name, codes in groups.items())
    print(f"\n| model | {heads} | over seeds | training, min |\n|---|---|---|---|---|---|")
    cells = [f"{np.mean([float(published[c]['zs_eng']) for c in codes]):.1f}" for codes in groups.values()]
    print(f"| {PUBLISHED}, from English | " + " | ".join(cells) + " | | |")
    for name, one in found.items():
        groups = _groups(found, published, name.rpartition(" ")[2])
        cells = [_interval(one["right"], codes) for codes in groups.values()]
        means = [
            100 * np.mean([one["right"][c][seed].mean() for c in groups["all"]]) for seed in range(len(one["seconds"]))
        ]
        spread = f"{min(means):.1f} to {max(means):.1f}" if len(means) > 1 else "one run, no random part"
        minutes = np.median([s["training"] for s in one["seconds"]]) / 60
        print(f"| {name} | " + " | ".join(cells) + f" | {spread} | {minutes:.1f} |")
    if args.out:
        _write(found, published, groups, args.out)


def _interval(right: dict[str, np.ndarray], codes: list[str]) -> str:
    # rows are parallel: items are drawn jointly for all languages; the mean over seeds is taken first
    table = np.stack([right[code].mean(0) for code in codes])
    draws = np.random.default_rng(0).integers(table.shape[1], size=(2000, table.shape[1]))
    low, high = np.percentile(100 * table.mean(0)[draws].mean(1), [2.5, 97.5])
    return f"{100 * table.mean():.1f} [{low:.1f}, {high:.1f}]"


def _write(
    found: dict[str, dict[str, Any]], published: dict[str, Any], groups: dict[str, list[str]], out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "sib200_zero_shot.tsv").open("w", encoding="utf-8") as file:
        file.write("\t".join(["code", "in_xlmr", PUBLISHED, *found]) + "\n")
        for code in groups["all"]:
            values = [f"{100 * one['right'][code].mean():.1f}" for one in found.values()]
            file.write("\t".join([code, published[code]["in_xlmr"], published[code]["zs_eng"], *values]) + "\n")


if __name__ == "__main__":
    main()
