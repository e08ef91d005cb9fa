"""Slots of voice commands, learned from English and German: zero-shot F1 in every other language, and a gazetteer's.

    python benchmarks/tagging.py                    three seeds: some twenty minutes on 2 cores
    python benchmarks/tagging.py --seeds 1

The gazetteer knows the slots of the same train rows by heart: the longest run of words that is one of them, in any
case, is a span of the type that it most often has there. It finds names and numbers that languages share.

Scores are F1 of spans x 100; differences are paired by test sentence, seeds averaged first, with the 95% interval of
the bootstrap. Finished runs are kept in `--work`, and one that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

import xlt_ray
from xlt_ray import config, tasks
from xlt_ray.corpora import loaders
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.paired.comparison import compare_seeds
from xlt_ray.evaluation.predictions import Predictions, load_predictions
from xlt_ray.tasks.task import Task

CONFIG = Path(__file__).parents[1] / "jobs" / "configs" / "slots.yaml"
Gazetteer = Mapping[tuple[str, ...], str]  # words in lower case -> the type of a span


def main() -> None:
    """Do every run that is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/tagging"), help="where finished runs are kept")
    parser.add_argument("--out", type=Path, help="write the figures of every language into this folder")
    args = parser.parse_args()
    experiment = config.load(CONFIG, [])
    corpus, _ = loaders.load_corpus(experiment)
    runs = [_train(seed, args) for seed in range(args.seeds)]
    found = [load_predictions(run.folder / "predictions.npz") for run in runs]
    known = _by_heart(corpus, experiment.sources, tasks.build(experiment.task, corpus.labels))
    by_heart = {code: known[code] for code in found[0]}
    roles = {code: one.role for code, one in runs[0].scores.languages.items()}
    seen = {code: one.seen for code, one in runs[0].scores.languages.items()}
    zero_shot = [code for code, role in roles.items() if role == "zero-shot"]
    groups = {"sources": list(experiment.sources), "zero-shot": zero_shot}
    groups |= {
        name: [c for c in zero_shot if seen[c] is is_seen] for name, is_seen in (("seen", True), ("unseen", False))
    }
    print(
        "| languages | | F1 [95%], seed 0 | mean of seeds | gazetteer | difference [95%] |\n|---|---|---|---|---|---|"
    )
    for name, codes in groups.items():
        if codes:
            print(f"| {name} | {len(codes)} | {_row(codes, found, by_heart, corpus, experiment.sources)} |")
    table = pd.DataFrame({
        "role": roles,
        "seen": seen,
        "f1": {code: np.mean([one[code].score for one in found]) for code in roles},
        "gazetteer": {code: by_heart[code].score for code in roles},
    }).sort_values("f1", ascending=False)  # fmt: skip
    print("\n" + table.to_string(float_format=lambda value: f"{100 * value:.1f}"))
    if args.out is not None:
        table.to_csv(args.out / "slots.tsv", sep="\t", index_label="language", float_format="%.4f", lineterminator="\n")


def _train(seed: int, args: argparse.Namespace) -> xlt_ray.Run:
    began = time.monotonic()
    made = xlt_ray.train(
        CONFIG,
        {
            "name": f"slots-{seed}",
            "seed": seed,
            "storage": str(args.work),
            "resources.workers": args.workers,
            "tracking.uri": "off",
        },
        progress=False,
    )
    print(f"seed {seed}: {(time.monotonic() - began) / 60:.1f} min, {made.folder.name}", flush=True)
    return made


def _row(
    codes: Sequence[str],
    found: Sequence[Mapping[str, Predictions]],
    by_heart: Mapping[str, Predictions],
    corpus: Corpus,
    sources: Sequence[str],
) -> str:
    first = metrics.score({code: found[0][code] for code in codes}, corpus.labels, Roles(tuple(sources)), task="tag")
    summary = [100 * first.summary[f"f1/mean{end}"] for end in ("", "_low", "_high")]
    means = [100 * np.mean([one[code].score for code in codes for one in runs]) for runs in (found, [by_heart])]
    sides = [[{code: one[code] for code in codes} for one in runs] for runs in (found, [by_heart] * len(found))]
    gain = compare_seeds(*sides)
    interval = f"{100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    return f"{summary[0]:.1f} [{summary[1]:.1f}, {summary[2]:.1f}] | {means[0]:.1f} | {means[1]:.1f} | {interval}"


def _by_heart(corpus: Corpus, sources: Sequence[str], task: Task) -> dict[str, Predictions]:
    """Return what a gazetteer of the sources' train rows answers to test."""
    types: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for code in sources:
        for row in corpus.table("train", code).to_pylist():
            for span in task.spans(row["label"]):
                types[tuple(word.casefold() for word in row["words"][span.start : span.end])][span.type] += 1
    known = {words: counts.most_common(1)[0][0] for words, counts in types.items()}
    return {code: _answers(corpus.table("test", code), known, task) for code in corpus.languages("test")}


def _answers(table: pa.Table, known: Gazetteer, task: Task) -> Predictions:
    place, longest = {label: number for number, label in enumerate(task.labels)}, max(map(len, known))
    predicted: list[int] = []
    for words in table["words"].to_pylist():
        folded, at = [word.casefold() for word in words], 0
        while at < len(folded):
            sizes = range(min(longest, len(folded) - at), 0, -1)
            size = next((size for size in sizes if tuple(folded[at : at + size]) in known), 0)
            kind = known.get(tuple(folded[at : at + size]))
            inside = place.get(f"I-{kind}", place["O"])
            predicted += [place["O"]] if kind is None else [place[f"B-{kind}"], *[inside] * (size - 1)]
            at += max(size, 1)
    gold, sizes_of, answers = task.gold(table), task.sizes(table), np.array(predicted)
    ids = np.asarray(table["id"].to_pylist(), dtype=np.str_)
    return Predictions(gold, answers, ids, sizes=sizes_of, ratios=task.ratios(gold, answers, sizes_of))


if __name__ == "__main__":
    main()
