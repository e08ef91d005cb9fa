"""What an encoder gains in a stage before the task: SIB-200, then a probe on English, with readings or without.

    python benchmarks/stages.py                                     all: some two hours on 2 cores
    python benchmarks/stages.py --stages distil --seeds 1
    python benchmarks/stages.py --stages contrast --seeds 3 --disjoint
    python benchmarks/stages.py --stages tlm tlm_restarted --seeds 1 --unseen
    python benchmarks/stages.py --stages mlm --epochs 1 --without-readings --fine-tune

Stages, the first four of 64 unlabelled rows an update: `distil`, rows of all targets learn the features of their
English translations as the encoder had them; `distil_readings`, or those of their word-by-word readings; `contrast`,
rows learn to be nearer to their translations, whose features are frozen, than to 15 others; `contrast_trained`, both
sides move. `distil_6_layers` is `distil` with every other layer of the encoder left out of the student; its texts a
second beside those of the whole encoder stand below the table.
Without any label, and so without a head of their own: `mlm`, words are masked in texts and filled in; `tlm`, in texts
with their translations behind them, `tlm_restarted` with positions that begin anew there. What these measure of
themselves is printed below the table.
After a stage come the probes of benchmarks/readings.py: centred, and with readings besides, which
`--without-readings` leaves out; with `--fine-tune` also fine-tuning on English, from the stage and from the encoder as
it is, seed by seed. The first three arms have no stage; one has a ridge map in place of a mean, but not
with `--disjoint`, where pairs stand beside the corpus. A probe on English is the same for every seed, so what a seed
changes is the stage: its draws and its dropout.

`--disjoint` labels 350 English rows, and all parallel text is of the other 351, so that no row is both labelled and
translated; a student meets texts of targets only beside their translations.

Targets are those of benchmarks/techniques.py, with `--unseen` that half alone which XLM-R has not seen, so that
`tlm` takes half of the time. Differences are paired by test sentence, seeds averaged first, with the
95% interval of the bootstrap. Finished runs are kept in `--work`, and one that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import readings
import techniques as others

import xlt_ray
from xlt_ray.config.sections import NetworkConfig
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.paired.comparison import compare_seeds
from xlt_ray.evaluation.predictions import Predictions, load_predictions
from xlt_ray.model import network

STAGE = {
    "epochs": 8,
    "batch_size": 16,
    "learning_rate": 1e-4,
    "head_learning_rate": 1e-2,  # of the head, which learns the task alone, on features that change less and less
    "average_last": 3,
}
DISTIL = {**STAGE, "unlabelled_rows": 64}
ADAPT = {"method": "adapt", "epochs": 3, "batch_size": 32, "learning_rate": 1e-4}
# translations are looked at only after many updates, and at a rate above that of ADAPT
TLM = {"method": "adapt", "epochs": 4, "batch_size": 16, "learning_rate": 4e-4, "head_learning_rate": 1e-3}
STAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "distil": (DISTIL, {"distil": {"teacher": "translations"}}),
    "distil_readings": (DISTIL, {"distil": {"teacher": "readings"}}),
    "distil_6_layers": (DISTIL, {"distil": {"teacher": "translations"}}),
    "contrast": (STAGE, {"contrast": {"groups": 2}}),
    "contrast_trained": (STAGE, {"contrast": {"groups": 2, "anchor": "trained"}}),
    "mlm": (ADAPT, {"mlm": {}}),
    "tlm": (TLM, {"tlm": {}}),
    "tlm_restarted": (TLM, {"tlm": {"positions": "restarted"}}),
}
LAYERS = {"distil_6_layers": 6}
FIGURES: dict[str, tuple[str, ...]] = {
    "mlm": ("perplexity_before", "perplexity_after", "top10_before", "top10_after"),
    **dict.fromkeys(
        ("tlm", "tlm_restarted"),
        (
            "top10_unrelated_before",
            "gain_before",
            "top10_unrelated_after",
            "gain_after",
            "gain_low_after",
            "gain_high_after",
        ),
    ),
}
PROBE = {"method": "probe", **others.CHOSEN}
FINE_TUNE = {"method": "fine_tune", "epochs": 8, **others.TRAINING}
ROUNDS = 5
PLAIN, MAP, READ, TUNED = "centre", "map", "readings", "fine-tuned"
Runs = dict[str, list[Mapping[str, Predictions]]]  # by arm, one a seed


def main() -> None:
    """Do every run that is not done yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=others.SHARED / "data" / "sib200")
    parser.add_argument("--published", type=Path, default=others.SHARED / "facts" / "sib200_published.csv")
    parser.add_argument("--languages", type=int, default=24, help="targets, half of them seen")
    parser.add_argument("--unseen", action="store_true", help="of these the half that is not seen, alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stages", nargs="+", choices=[*STAGES], default=["distil", "distil_readings", "contrast"])
    parser.add_argument("--disjoint", action="store_true", help="translate no row that is labelled")
    parser.add_argument("--epochs", type=int, help="of a stage without labels")
    parser.add_argument("--without-readings", action="store_true", help="no probe with readings after a stage")
    parser.add_argument("--fine-tune", action="store_true", help="fine-tune after each stage, and without one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/stages"), help="where finished runs are kept")
    args = parser.parse_args()
    with args.published.open(encoding="utf-8") as file:
        seen = {row["code"]: row["in_xlmr"] == "1" for row in csv.DictReader(file)}
    targets = [
        code for code in others.chosen_targets(args.data, seen, args.languages) if not (args.unseen and seen[code])
    ]
    stage, probe = _corpora(args, targets)
    found: Runs = {}
    folders: dict[str, list[Path]] = {}
    mapped = {"centre": {"rows": 500, "map": "ridge"}}
    arms = [(PLAIN, readings.CENTRE), (MAP, mapped), (READ, readings.READ)]
    for arm, chosen in [one for one in arms if one[0] != MAP or not args.disjoint]:  # maps want pairs of the corpus
        found[arm] = [_run(args, probe, targets, arm, 0, PROBE, chosen)[0]]
    after = [(PLAIN, PROBE, readings.CENTRE), (READ, PROBE, readings.READ)][: 1 if args.without_readings else 2]
    if args.fine_tune:
        after.append((TUNED, FINE_TUNE, {}))
        found[TUNED] = [_run(args, probe, targets, TUNED, seed, FINE_TUNE, {})[0] for seed in range(args.seeds)]
    for name in args.stages:
        training, chosen = STAGES[name]
        if args.epochs and training.get("method") == "adapt":
            training = {**training, "epochs": args.epochs}
        for seed in range(args.seeds):
            own, folder = _run(args, stage, targets, name, seed, training, chosen, {"layers": LAYERS.get(name)})
            folders.setdefault(name, []).append(folder)
            if own:
                found.setdefault(f"{name}, its own head", []).append(own)
            for kind, how, read in after:
                arm = f"{name}, {kind}"
                made, _ = _run(args, probe, targets, arm, seed, how, read, {"init": str(folder / "bundle")})
                found.setdefault(arm, []).append(made)
    for base in (one for one in (PLAIN, MAP, READ) if one in found):
        _print(found, base, {code: seen[code] for code in targets})
    if args.fine_tune:
        tuned = {arm: runs for arm, runs in found.items() if arm.endswith(TUNED)}
        _print(tuned, TUNED, {code: seen[code] for code in targets})
    for name, made_in in folders.items():
        if name in FIGURES:
            _print_figures(name, made_in, {code: seen[code] for code in targets})
        if name in LAYERS:
            _print_speed(name, made_in[0] / "bundle", args.data, targets)


def _corpora(args: argparse.Namespace, targets: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the corpora of the stage and of the probes; of the disjoint protocol they are written first."""
    if not args.disjoint:
        return {"path": str(args.data)}, {"path": str(args.data)}
    probe, stage = (args.work / "data" / name for name in ("disjoint", "disjoint_stage"))
    readings._write(args.data, probe, (readings.ENGLISH, *targets), "disjoint centre", 0)
    for code in (readings.ENGLISH, *targets):
        (stage / code).mkdir(parents=True, exist_ok=True)
        for split in ("train", "dev", "test") if code == readings.ENGLISH else ("test",):
            shutil.copy(probe / code / f"{split}.tsv", stage / code)
    beside = str(probe / "beside.tsv")
    return {"path": str(stage), "parallel": beside}, {"path": str(probe), "parallel": beside}


def _run(
    args: argparse.Namespace,
    corpus: Mapping[str, Any],
    targets: Sequence[str],
    arm: str,
    seed: int,
    training: Mapping[str, Any],
    chosen: Mapping[str, Any],
    encoder: Mapping[str, Any] | None = None,
) -> tuple[Mapping[str, Predictions], Path]:
    began = time.monotonic()
    made = xlt_ray.train(
        {
            "name": f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}",
            "seed": seed,
            "corpus": {
                "loader": "files",
                **corpus,
                "label": "category",
                "id": "index_id",
                "overlap": "drop_train",
            },
            "sources": [readings.ENGLISH],
            "targets": list(targets),
            "training": dict(training),
            "network": dict(encoder or {}),
            "techniques": dict(chosen),
            "resources": {"workers": args.workers},
            "storage": str(args.work),
            "tracking": {"uri": "off"},
        },
        progress=False,
    )
    print(f"{arm}, seed {seed}: {(time.monotonic() - began) / 60:.1f} min, {made.folder.name}", flush=True)
    file = made.folder / "predictions.npz"
    return load_predictions(file) if file.is_file() else {}, made.folder


def _print(found: Runs, base: str, seen: Mapping[str, bool]) -> None:
    groups = {name: [c for c in seen if seen[c] is known] for name, known in (("seen", True), ("unseen", False))}
    groups = {name: codes for name, codes in groups.items() if codes}
    print(f"\naccuracy x 100 on test; difference from {base} [95%]\n")
    columns = ["arm", "seeds", *groups, *(f"{name}, difference" for name in groups), "English"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for arm, runs in found.items():
        cells = [arm, str(len(runs))]
        cells += [f"{100 * np.mean([one[c].score for one in runs for c in codes]):.1f}" for codes in groups.values()]
        for codes in groups.values():
            bases = found[base] * (len(runs) // len(found[base]))  # one run, or one a seed
            sides = [[{code: one[code] for code in codes} for one in side] for side in (runs, bases)]
            gain = compare_seeds(*sides)
            shown = f"{100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            cells.append("" if arm == base else shown)
        cells.append(f"{100 * np.mean([one[readings.ENGLISH].score for one in runs]):.1f}")
        print("| " + " | ".join(cells) + " |")


def _print_figures(name: str, folders: Sequence[Path], seen: Mapping[str, bool]) -> None:
    """Print what a stage measured of itself in each language, a mean over seeds."""
    technique, figures = name.partition("_")[0], FIGURES[name]
    tables = [pd.read_csv(folder / "figures.tsv", sep="\t", index_col="language") for folder in folders]
    mean = pd.concat(tables).groupby(level=0).mean()
    print(
        f"\n{name}, {len(tables)} seeds\n\n| language | seen | {' | '.join(figures)} |\n"
        f"|---|---|{'---|' * len(figures)}"
    )
    for code in (code for code in ("all", readings.ENGLISH, *seen) if code in mean.index):
        cells = [f"{mean.loc[code, f'{technique} {figure}']:.3g}" for figure in figures]
        print(f"| {code} | {'' if code not in seen else 'yes' if seen[code] else 'no'} | {' | '.join(cells)} |")


def _print_speed(name: str, bundle: Path, data: Path, targets: Sequence[str]) -> None:
    """Print how fast texts are encoded by a stage's bundle and by the encoder that it began from, in turns."""
    texts = [
        text
        for code in targets
        for text in pd.read_csv(data / code / "test.tsv", sep="\t", quoting=csv.QUOTE_NONE)["text"].head(10)
    ]
    sides = {"whole": NetworkConfig(), name: NetworkConfig(init=str(bundle))}
    built = {side: network.build(config, 1, 0) for side, config in sides.items()}
    table = pa.table({"text": texts})
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS + 1):  # the first warms up
        for side, one in built.items():
            began = time.perf_counter()
            evaluate.embed(one.network.eval(), {"": table}, evaluate.Inputs(one.tokenize, "float32", 1024))
            seconds[side].append(time.perf_counter() - began)
    ratios = [whole / cut for whole, cut in zip(seconds["whole"][1:], seconds[name][1:], strict=True)]
    shown = ", ".join(f"{side} {len(texts) / np.median(spent[1:]):.0f}" for side, spent in seconds.items())
    print(
        f"\n{name}: texts a second, float32, medians of {ROUNDS}: {shown}; ratio {np.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
