"""Response of zero-shot accuracy to alpha (p ~ n^alpha) on an unbalanced corpus: SIB-200 cut to sizes of 701 to 1.

    python benchmarks/alpha.py                                 the probe: about ten minutes on 2 cores
    python benchmarks/alpha.py --fine-tune 0 0.3 0.5 0.7 1     fine-tuning at these alphas: two minutes a run

The twelve languages of jobs/configs/search_sib200.yaml get train sizes in a geometric series, 701 rows (all there are)
for the first and one row for the last. Which language gets which size, and which rows, is drawn anew for every draw, so
that size and language are not confounded. Measured on the test rows of the 45 targets, on no label of which anything is
trained, and of the six smallest sources. Nothing is chosen here. Intervals are Student's t over draws of the corpus, of
the difference from alpha = 1 within a draw; fine-tuning changes its seed with the draw.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from scipy import stats

from xlt_ray.reports import plots
from xlt_ray.runs import run
from xlt_ray.search import prepare as search_prepare
from xlt_ray.search import screening, space
from xlt_ray.search.space import Search
from xlt_ray.training import cluster
from xlt_ray.training.checks import prepare
from xlt_ray.training.frozen import Frozen, fit, predict

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
CONFIG = Path(__file__).parents[1] / "jobs" / "configs" / "search_sib200.yaml"
SHARED = Path(__file__).parents[2] / "shared"
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
SMALL = 6  # sources counted as small
GROUPS = ("targets", "seen", "unseen", "small sources")
Row = dict[str, float]  # of one run: group -> mean accuracy


def main() -> None:
    """Measure the curve by one method and print, write and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "sib200")
    parser.add_argument("--storage", type=Path, default=Path("runs/benchmark-alpha"))
    parser.add_argument("--draws", type=int, help="of the corpus; default: 20, and 3 for fine-tuning")
    parser.add_argument(
        "--fine-tune", type=float, nargs="+", metavar="ALPHA", help="fine-tune at these; default: probe"
    )
    parser.add_argument("--out", type=Path, help="folder to write the table and the picture to")
    args = parser.parse_args()
    overrides = [f"corpus.path={args.data.absolute()}", f"storage={args.storage}", "tracking.uri=off"]
    found = space.load(CONFIG, [*overrides, f"corpus.cache_dir={args.storage / 'cache'}"])
    method = "fine_tune" if args.fine_tune else "probe"
    if args.fine_tune:
        curve = _fine_tuned(args, found, tuple(args.fine_tune), args.draws or 3)
    else:
        curve = _probed(found, args.draws or 20)
    _print(curve)
    if args.out:
        _write(args.out, method, curve)


def sizes(pool: Sequence[str], most: int, draw: int) -> dict[str, int]:
    """Deal a geometric series of sizes from `most` to 1 out to the languages of a pool."""
    series = np.round(most ** np.linspace(1, 0, len(pool))).astype(int)
    order = np.random.default_rng([draw, 0]).permutation(len(pool))
    return {pool[language]: int(size) for language, size in zip(order, series, strict=True)}


def kept(rows: int, size: int, draw: int, language: int) -> np.ndarray:
    """Draw which rows of a language stay."""
    return np.sort(np.random.default_rng([draw, 1, language]).permutation(rows)[:size])


def _probed(found: Search, draws: int) -> dict[float, list[Row]]:
    prepared = prepare(found.base)
    base, whole = prepared.experiment, prepared.corpus
    pool, targets = base.sources, [code for code in whole.measured((), base.targets) if code not in base.sources]
    test = {code: whole.table("test", code) for code in (*pool, *targets)}
    corpus = replace(whole, splits={"train": whole.for_training(pool).splits["train"], "dev": {}, "test": test})
    curve: dict[float, list[Row]] = {alpha: [] for alpha in ALPHAS}
    with cluster.ray_cluster(base):
        frozen = screening.embed(base, corpus, lambda event: None)
        shared, task = ray.put(frozen), ray.remote(num_cpus=1)(_probe)
        waiting = [
            (alpha, task.remote(shared, base, alpha, draw, targets)) for draw in range(draws) for alpha in ALPHAS
        ]
        for number, (alpha, one) in enumerate(waiting, 1):
            curve[alpha].append(ray.get(one))
            if number % len(ALPHAS) == 0:
                print(f"  draw {number // len(ALPHAS)} of {draws}", flush=True)
    return curve


def _probe(frozen: Frozen, base: Any, alpha: float, draw: int, targets: Sequence[str]) -> Row:
    pool = base.sources
    most = max(len(frozen.labels[f"train/{code}"]) for code in pool)
    dealt = sizes(pool, most, draw)
    rows = {code: kept(len(frozen.labels[f"train/{code}"]), dealt[code], draw, i) for i, code in enumerate(pool)}
    cut = replace(
        frozen,
        features={f"train/{code}": frozen.features[f"train/{code}"][rows[code]] for code in pool},
        labels={f"train/{code}": frozen.labels[f"train/{code}"][rows[code]] for code in pool},
    )
    mixture = base.mixture.model_copy(update={"alpha": alpha})
    fitted = fit(cut, base.model_copy(update={"mixture": mixture}), (0.01,))
    predicted = predict(frozen, fitted, "test", (*pool, *targets))
    return _groups({code: one.score for code, one in predicted.items()}, dealt, targets)


def _groups(accuracy: Mapping[str, float], dealt: Mapping[str, int], targets: Sequence[str]) -> Row:
    from xlt_ray.languages.codes import get

    seen = {code for code in targets if (known := get(code)) and known.in_xlmr}
    small = sorted(dealt, key=lambda code: dealt[code])[:SMALL]
    members = (targets, [c for c in targets if c in seen], [c for c in targets if c not in seen], small)
    return {name: float(np.mean([accuracy[c] for c in codes])) for name, codes in zip(GROUPS, members, strict=True)}


def _fine_tuned(args: argparse.Namespace, found: Search, alphas: Sequence[float], draws: int) -> dict[float, list[Row]]:
    searched, corpus = search_prepare.prepared(found)
    pool, targets = searched.pool, list(searched.base.targets)
    most = max(corpus.table("train", code).num_rows for code in pool)
    curve: dict[float, list[Row]] = {alpha: [] for alpha in alphas}
    for draw in range(draws):
        dealt = sizes(pool, most, draw)
        folder = _cut(args.data, args.storage.absolute() / f"corpus-{draw}", pool, targets, dealt, draw)
        for alpha in alphas:
            point = {"sources": list(pool), "mixture.alpha": alpha}
            experiment = searched.experiment(point, draw, "alpha")
            experiment = experiment.model_copy(
                update={"corpus": experiment.corpus.model_copy(update={"path": str(folder)})}
            )
            scores = run.run(experiment).scores
            accuracy = {code: one.accuracy for code, one in scores.languages.items()}
            curve[alpha].append(_groups(accuracy, dealt, targets))
            print(f"  draw {draw}, alpha {alpha:g}: targets {100 * curve[alpha][-1]['targets']:.1f}", flush=True)
    return curve


def _cut(
    data: Path, folder: Path, pool: Sequence[str], targets: Sequence[str], dealt: Mapping[str, int], draw: int
) -> Path:
    """Write the corpus of a draw: train of the pool cut to size, dev of the pool, test of everything."""
    for number, code in enumerate(pool):
        lines = (data / code / "train.tsv").read_text(encoding="utf-8").splitlines()
        rows = kept(len(lines) - 1, dealt[code], draw, number)
        (folder / code).mkdir(parents=True, exist_ok=True)
        text = "\n".join([lines[0], *(lines[1 + row] for row in rows)]) + "\n"
        (folder / code / "train.tsv").write_text(text, encoding="utf-8")
        (folder / code / "dev.tsv").write_bytes((data / code / "dev.tsv").read_bytes())
    for code in (*pool, *targets):
        (folder / code).mkdir(parents=True, exist_ok=True)
        (folder / code / "test.tsv").write_bytes((data / code / "test.tsv").read_bytes())
    return folder


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and 95% interval of values that are independent; NaN bounds for a single one."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, float("nan"), float("nan")
    reach = float(stats.t.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / count**0.5
    return mean, mean - reach, mean + reach


def _rows(curve: dict[float, list[Row]]) -> list[list[Any]]:
    """List (alpha, group, mean accuracy, difference from alpha 1, its bounds)."""
    last = max(curve)
    found = []
    for alpha, runs in curve.items():
        for group in GROUPS:
            gains = [one[group] - other[group] for one, other in zip(runs, curve[last], strict=True)]
            found.append([alpha, group, float(np.mean([one[group] for one in runs])), *_interval(gains)])
    return found


def _print(curve: dict[float, list[Row]]) -> None:
    runs, last = len(next(iter(curve.values()))), max(curve)
    print(f"\nmean test accuracy in %, and points more than at alpha {last:g} [95% over {runs} draws of the corpus]\n")
    print("alpha  " + "".join(f"{group:<28}" for group in GROUPS))
    table = {(alpha, group): rest for alpha, group, *rest in _rows(curve)}
    for alpha in curve:
        cells = []
        for group in GROUPS:
            mean, gain, low, high = (100 * value for value in table[alpha, group])
            cells.append(f"{mean:.1f}  {gain:+.1f} [{low:+.1f}, {high:+.1f}]".ljust(28))
        print(f"{alpha:5.2f}  " + "".join(cells))


def _write(folder: Path, method: str, curve: dict[float, list[Row]]) -> None:
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"alpha_{method}.tsv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["alpha", "group", "accuracy", "less_alpha_1", "low", "high"])
        writer.writerows([[a, g, *(f"{v:.4f}" for v in rest)] for a, g, *rest in _rows(curve)])
    rows = _rows(curve)
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.6))
        for group in GROUPS:
            mine = [row for row in rows if row[1] == group]
            alphas = [row[0] for row in mine]
            (line,) = axes.plot(alphas, [100 * row[3] for row in mine], marker="o", markersize=3, label=group)
            low, high = ([100 * row[i] for row in mine] for i in (4, 5))
            axes.fill_between(alphas, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set_xlabel("alpha")
        axes.set_ylabel(f"points more than at alpha {max(curve):g}")
        axes.legend(fontsize="small")
        figure.savefig(folder / f"alpha_{method}.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
