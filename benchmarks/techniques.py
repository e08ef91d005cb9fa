"""What each technique does to zero-shot transfer on SIB-200, from English: alone and in pairs, against a baseline.

    python benchmarks/techniques.py                                  all of it: hours on 2 cores, minutes on a GPU
    python benchmarks/techniques.py --methods probe                  the probes alone
    python benchmarks/techniques.py --arms baseline centre --seeds 1

Half of the targets were seen by XLM-R in pre-training, whose vocabulary and text the bundled encoder has too, half were
not; both halves are taken at even distances from the list of languages in alphabetical order. Every arm makes the same
number of updates of the same number of labelled draws. Differences from the baseline come with a 95% interval of the
paired bootstrap over test rows, seeds averaged first. Nothing is chosen on test: of the pairs, the one that is best on
dev of the targets is named, which is an oracle's choice and marked as such.

Fine-tuning is the training loop of the product, `loop.fit`, in this process on a GPU and else in a process of its own
for each run, whose largest resident memory is reported. Probes share the features of texts, which are computed once and
left out of their minutes. Runs that are done are kept in `--work` and not repeated; they may be of several machines,
which the column of devices shows.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from xlt_ray import config
from xlt_ray.config.experiment import Experiment
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.paired.comparison import compare_seeds
from xlt_ray.evaluation.predictions import Predictions, load_predictions, save_predictions
from xlt_ray.model import collate
from xlt_ray.model.precision import choose_precision
from xlt_ray.training import frozen, loop
from xlt_ray.training.checks import prepare
from xlt_ray.training.setup import Run, Setup

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
SHARED = Path(__file__).parents[2] / "shared"
Techniques = dict[str, dict[str, Any]]
Runs = dict[int, dict[str, Any]]  # seed -> what a run left
KNOWN: dict[str, np.ndarray] = {}  # features of texts, of the encoder that all probes share
ARMS: dict[str, Techniques] = {
    "baseline": {},
    "centre": {"centre": {}},
    "centre, 8 directions removed": {"centre": {"remove": 8}},
    "code_switch": {"code_switch": {}},
    "lora": {"lora": {}},
    "distil": {"distil": {}},
    "distil, readings": {"distil": {"teacher": "readings"}},
    "adversarial": {"adversarial": {}},
    "language_id": {"language_id": {}},
    "few_shot, 1 a class": {"few_shot": {"shots": 1}},
    "few_shot, 10 a class": {"few_shot": {"shots": 10}},
    "few_shot, 100 a class": {"few_shot": {"shots": 100}},
    "code_switch + centre": {"code_switch": {}, "centre": {}},
    "adversarial + centre": {"adversarial": {}, "centre": {}},
    "lora + centre": {"lora": {}, "centre": {}},
    "code_switch + adversarial": {"code_switch": {}, "adversarial": {}},
    "translate_test": {"translate_test": {}},
    "translate_test + centre": {"translate_test": {}, "centre": {}},
    "score 0.1 alone": {"translate_test": {"scores": [0.1], "keep_original": False}, "centre": {}},
    "original and score 0.1": {"translate_test": {"scores": [0.1]}, "centre": {}},
    "weighed by agreement": {"translate_test": {"weights": "agreement"}, "centre": {}},
    "translate_train": {"translate_train": {}},
    "translate_train + centre": {"translate_train": {}, "centre": {}},
    "centre, cross-validated": {"centre": {}},
    "translate_train + centre, cross-validated": {"translate_train": {}, "centre": {}},
    "translate_test + centre, cross-validated": {"translate_test": {}, "centre": {}},
    "weighed by agreement, cross-validated": {"translate_test": {"weights": "agreement"}, "centre": {}},
}
TRAINING = {"batch_size": 16, "learning_rate": 5e-5, "average_last": 3}
CHOSEN = {
    "probe_select": "cross_validation",
    "refit": "source_dev",
}  # how the penalty is, and what is fitted in the end
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 5e-4},
    **{name: CHOSEN for name in ARMS if name.endswith("cross-validated")},
}
# a head that was fine-tuned with directions removed would fail; of the others it would be one long training each
PROBES_ALONE = {"centre, 8 directions removed", "score 0.1 alone", "original and score 0.1", "weighed by agreement"}
PROBES_ALONE |= {name for name in ARMS if name.endswith("cross-validated")}
PROBED = [name for name, one in ARMS.items() if {"lora", "distil", "adversarial", "language_id"}.isdisjoint(one)]


def main() -> None:
    """Do every run that is not done yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "sib200")
    parser.add_argument("--published", type=Path, default=SHARED / "facts" / "sib200_published.csv")
    parser.add_argument("--languages", type=int, default=24, help="targets, half of them seen")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["probe", "fine_tune"], choices=["probe", "fine_tune"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so long")
    parser.add_argument("--work", type=Path, default=Path("runs/techniques"), help="where finished runs are kept")
    parser.add_argument("--out", type=Path, help="folder to write the table to")
    args = parser.parse_args()
    with args.published.open(encoding="utf-8") as file:
        seen = {row["code"]: row["in_xlmr"] == "1" for row in csv.DictReader(file)}
    targets = chosen_targets(args.data, seen, args.languages)
    print(f"targets: {', '.join(targets)}", flush=True)
    began = time.monotonic()
    for method in args.methods:
        arms = [name for name in args.arms if (name in PROBED if method == "probe" else name not in PROBES_ALONE)]
        found: dict[str, Runs] = {name: {} for name in arms}
        for seed in range(args.seeds):
            for name in arms:
                experiment = _experiment(args, method, name, seed, targets)
                folder = args.work / _key(experiment)
                if (folder / "facts.json").is_file() or time.monotonic() - began < 60 * args.minutes:
                    found[name][seed] = _kept(experiment, folder, name)
        _print(method, found, {code: seen[code] for code in targets}, args)


def chosen_targets(data: Path, seen: Mapping[str, bool], count: int) -> list[str]:
    """Take half of the targets from each group, at even distances in alphabetical order; English is the source."""
    there = sorted(folder.name for folder in data.iterdir() if folder.name in seen and folder.name != "eng_Latn")
    groups = [[code for code in there if seen[code] is known] for known in (True, False)]
    return sorted(one[i] for one in groups for i in np.linspace(0, len(one) - 1, count // 2).round().astype(int))


def _kept(experiment: Experiment, folder: Path, name: str) -> dict[str, Any]:
    method, seed = experiment.training.method, experiment.seed
    if not (folder / "facts.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if method == "fine_tune" and not torch.cuda.is_available():  # alone, so that its memory can be measured
            process = multiprocessing.get_context("spawn").Process(target=_run, args=(experiment, str(folder)))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name}, seed {seed}: the run failed; see above")
        else:
            _run(experiment, str(folder))
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    splits = {split: load_predictions(folder / f"{split}.npz") for split in ("dev", "test")}
    mean = np.mean([one.score for code, one in splits["test"].items() if code != "eng_Latn"])
    print(f"{method} {name} seed {seed}: {100 * mean:.1f} {json.dumps(facts)}", flush=True)
    return facts | splits


def _key(experiment: Experiment) -> str:
    """Name a run by what decides its result, wherever the corpus lies."""
    return experiment.model_copy(update={"corpus": experiment.corpus.model_copy(update={"path": "sib200"})}).key()


def _experiment(args: argparse.Namespace, method: str, name: str, seed: int, targets: Sequence[str]) -> Experiment:
    training = {"method": method, "epochs": args.epochs, **TRAINING}
    options = OPTIONS.get("lora", {}) if "lora" in ARMS[name] else OPTIONS.get(name, {})
    corpus = {"loader": "files", "path": str(args.data), "label": "category", "id": "index_id", "overlap": "drop_train"}
    switched = {one: dict(parameters) for one, parameters in ARMS[name].items()}
    if "few_shot" in switched:
        switched["few_shot"]["draw"] = seed
    return config.build(
        {
            "name": "techniques",
            "seed": seed,
            "corpus": corpus | {"languages": ["eng_Latn", *targets]},
            "sources": ["eng_Latn"],
            "mixture": {"draws_per_epoch": 701},
            "training": training | options,
            "techniques": switched,
            "tracking": {"uri": "off"},
        }
    )


def _run(experiment: Experiment, folder: str, splits: Sequence[str] = ("dev", "test")) -> None:
    """Train, predict dev and test of all languages, or one of them, and write these with what it cost."""
    setup = prepare(experiment).read()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    net, tokenize, _ = setup.build()
    net.to(device)
    measured = {split: {code: setup.corpus.table(split, code) for code in setup.languages} for split in splits}
    began = time.monotonic()
    if experiment.training.method == "probe":
        figures, precision, seconds, predictions = _probe(setup, net, tokenize, measured)
    else:
        progress = loop.fit(Run(setup, net, tokenize))
        figures, precision, seconds = progress.facts, progress.precision, time.monotonic() - began
        inputs = evaluate.Inputs(tokenize, precision)
        predictions = {
            split: evaluate.predict(net, setup.task, each, inputs, readings=setup.readings)
            for split, each in measured.items()
        }
    for split, each in predictions.items():
        save_predictions(Path(folder) / f"{split}.npz", each)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * _resident()
    facts = {"minutes": seconds / 60, "gigabytes": memory / 2**30, "device": device.type, "precision": precision}
    (Path(folder) / "facts.json").write_text(json.dumps(facts | {"figures": figures}), encoding="utf-8")


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes


def _probe(
    setup: Setup, net: Any, tokenize: collate.Tokenize, measured: Mapping[str, Mapping[str, pa.Table]]
) -> tuple[dict[str, float], str, float, dict[str, dict[str, Predictions]]]:
    """Fit a probe; return its figures, the precision of features, seconds without these, and predictions by split."""
    precision = choose_precision("auto", net, tokenize.max_length)
    tables = frozen.training_tables(setup)
    read = {split: setup.readings.tables(each) if setup.readings else each for split, each in measured.items()}
    wanted = {f"{split}/{key}": table for split, each in read.items() for key, table in each.items()}
    found = _features(net, {**wanted, **tables, **frozen.texts(setup)}, tokenize, precision)
    net.to("cpu")
    began = time.monotonic()
    figures = frozen.calibrate(setup, net, found)
    experiment, classes = setup.experiment, len(setup.corpus.labels)
    taught = frozen.Frozen.of(tables, found, classes, net)
    fitted = frozen.refit(taught, experiment, frozen.choose(taught, experiment))
    readings = frozen.weigh(setup, net, taught, found, fitted).readings
    seconds = time.monotonic() - began
    predictions = {}
    for split, each in measured.items():
        there = {key.removeprefix(f"{split}/"): rows for key, rows in found.items() if key.startswith(f"{split}/")}
        scored = frozen.score_rows(net, there, fitted)
        predictions[split] = evaluate.predictions(setup.task, scored, each, fitted.temperature, readings)
    return figures, precision, seconds, predictions


def _features(
    net: Any, tables: Mapping[str, pa.Table], tokenize: collate.Tokenize, precision: str
) -> dict[str, np.ndarray]:
    """Embed what no earlier probe of this process has embedded."""
    texts = {name: table["text"].to_pylist() for name, table in tables.items()}
    new = sorted({text for each in texts.values() for text in each} - KNOWN.keys())
    if new:
        found = evaluate.embed(net, {"new": pa.table({"text": new})}, evaluate.Inputs(tokenize, precision))
        KNOWN.update(zip(new, found["new"], strict=True))
    return {name: np.stack([KNOWN[text] for text in each]) for name, each in texts.items()}


def _print(method: str, found: Mapping[str, Runs], seen: Mapping[str, bool], args: argparse.Namespace) -> None:
    groups = {"seen": [c for c in seen if seen[c]], "unseen": [c for c in seen if not seen[c]]}
    print(f"\n{method}: accuracy x 100 on test, mean over languages and seeds; difference from the baseline [95%]\n")
    print("| arm | seeds | seen | unseen | seen, difference | unseen, difference | English | minutes | GB | runs on |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name, each in found.items():
        base = [found["baseline"][seed] for seed in each if seed in found.get("baseline", {})]
        runs = [each[seed] for seed in each if seed in found.get("baseline", {})]
        if not runs:
            continue
        means = {group: _mean(runs, "test", codes) for group, codes in groups.items()}
        against = {group: "" if name == "baseline" else _against(runs, base, codes) for group, codes in groups.items()}
        costly = [one for one in runs if one["device"] == "cpu"] or runs  # what a machine without a GPU takes, if known
        cost = [float(np.median([one[key] for one in costly])) for key in ("minutes", "gigabytes")]
        devices = ", ".join(f"{count} {device}" for device, count in Counter(one["device"] for one in runs).items())
        cells = [name, str(len(runs)), *(f"{means[group]:.1f}" for group in groups), *against.values()]
        cells += [f"{_mean(runs, 'test', ['eng_Latn']):.1f}", f"{cost[0]:.2f}", f"{cost[1]:.1f}", devices]
        rows.append([method, *cells, f"{_mean(runs, 'dev', list(seen)):.1f}", _figures(runs)])
        print("| " + " | ".join(cells) + " |", flush=True)
    pairs = {row[1]: float(row[-2]) for row in rows if " + " in row[1]}
    if pairs:
        best = max(pairs, key=lambda name: pairs[name])
        print(f"\nbest pair on dev of the targets, an oracle's choice: {best}")
    for row in rows:
        if row[-1] != "{}":
            print(f"{row[1]}: {row[-1]}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        with (args.out / f"techniques_{method}.tsv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            heads = "method arm seeds seen unseen seen_difference unseen_difference english minutes gigabytes device"
            writer.writerow([*heads.split(), "targets_dev", "figures"])
            writer.writerows(rows)


def _mean(runs: Sequence[Mapping[str, Any]], split: str, codes: Sequence[str]) -> float:
    return 100 * float(np.mean([one[split][code].score for one in runs for code in codes]))


def _against(runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], codes: Sequence[str]) -> str:
    sides: list[list[dict[str, Predictions]]] = [
        [{code: one["test"][code] for code in codes} for one in side] for side in (runs, base)
    ]
    found = compare_seeds(*sides)
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _figures(runs: Sequence[Mapping[str, Any]]) -> str:
    names = runs[0]["figures"]
    return json.dumps({name: round(float(np.mean([one["figures"][name] for one in runs])), 3) for name in names})


if __name__ == "__main__":
    main()
