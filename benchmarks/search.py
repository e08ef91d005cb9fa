"""Search for a mix of sources on SIB-200 in four ways, on the same wall clock, and retrain what each of them chose.

    python benchmarks/search.py             about two hours on 2 cores; resumes after an interruption
    python benchmarks/search.py --only ours

The pool of 12 languages, the 45 targets, the recipe and the rule (labelled rows of languages that a mix leaves out) are
those of jobs/configs/search_sib200.yaml. No label of a target is read before the retrained models are measured on test.

    grid      every single source fine-tuned to the end; the time it takes is everybody's budget
    random    mixes of up to six sources drawn at random, fine-tuned to the end
    tpe+asha  the same mixes proposed by TPE, fine-tuned, bad ones stopped by ASHA
    ours      400 mixes probed on frozen features, the best fine-tuned, bad ones stopped by ASHA

Peers get the features that the rule needs (how easy a language is) for nothing, computed before the clock starts, and
choose the best score. Ours starts with an empty cache and chooses, among the scores within one standard error of the
best, the mix most similar to the targets. `ours, early` is what ours would have answered in a tenth of the budget.
`likeness` is the six sources that `xlt rank-sources --mix 6` names, without any training; `English alone` is what most
people do, and `all twelve` what those do who would not choose.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlt_ray.evaluation import predictions
from xlt_ray.evaluation.paired.comparison import compare_seeds
from xlt_ray.runs import run
from xlt_ray.search import prepare, screening, search, similarity, space
from xlt_ray.search.search import Found
from xlt_ray.search.selection import Tried
from xlt_ray.search.space import Search, describe, point_key
from xlt_ray.training import cluster

CONFIG = Path(__file__).parents[1] / "jobs" / "configs" / "search_sib200.yaml"
SHARED = Path(__file__).parents[2] / "shared"
MANY = 200  # trials that no budget here allows
PEER = ["search.screening.trials=0", "search.selection.standard_errors=0"]  # the best score, as is usual
ARMS = {
    "grid": ["search.space={sources: {at_most: 1}}", "search.searcher=grid", "search.fine_tuning.scheduler=none",
             "search.fine_tuning.trials=12", *PEER],
    "random": ["search.searcher=random", "search.fine_tuning.scheduler=none", *PEER],
    "tpe+asha": PEER,
    "ours": ["search.fine_tuning.trials=12"],
}  # fmt: skip
EARLY = "ours, early"
ENGLISH = "English alone"
WHOLE = "all twelve"
LIKENESS = "likeness"
SEEDS = 1000  # added to the search's seed, as retraining does


def main() -> None:
    """Run the arms one after another, retrain their choices, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "sib200")
    parser.add_argument("--storage", type=Path, default=Path("runs/benchmark-search"))
    parser.add_argument("--only", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder to write the tables to")
    args = parser.parse_args()
    args.storage.mkdir(parents=True, exist_ok=True)
    found: dict[str, Found] = {}
    for arm in args.only:
        seconds = None if arm == "grid" or "grid" not in found else found["grid"].findings.seconds
        found[arm] = _search(args, arm, seconds)
    budget = found["grid"].findings.seconds if "grid" in found else 0.0
    _print_searches(found, budget, args)
    choices = {ENGLISH: {"sources": ["eng_Latn"]}}
    choices |= {arm: dict(one.findings.chosen.point) for arm, one in found.items()}
    if "ours" in found and budget:
        early = found["ours"].findings.judge.choose(_until(found["ours"], budget / 10))
        choices |= {EARLY: dict(early.point)} if early else {}
    searched = next(iter(found.values())).findings.search
    choices |= {LIKENESS: _alike(_load(args, "random", None)), WHOLE: {"sources": list(searched.pool)}}
    _print_choices(args, searched, choices)


def _load(args: argparse.Namespace, arm: str, seconds: float | None) -> Search:
    overrides = [
        f"corpus.path={args.data}", f"storage={args.storage}", "tracking.uri=off",
        f"name=benchmark-{arm.replace('+', '-')}",
        f"corpus.cache_dir={args.storage / ('cache-ours' if arm == 'ours' else 'cache')}",
        f"search.fine_tuning.trials={MANY}", "search.retraining.seeds=0", *ARMS[arm],
    ]  # fmt: skip
    if seconds is not None:
        overrides.append(f"search.minutes={seconds / 60:.4f}")
    return space.load(CONFIG, overrides)


def _search(args: argparse.Namespace, arm: str, seconds: float | None) -> Found:
    loaded = _load(args, arm, seconds)
    began = time.monotonic()
    if arm == "ours":
        if not list(args.storage.glob("benchmark-ours-search-*/journal.jsonl")):
            shutil.rmtree(args.storage / "cache-ours", ignore_errors=True)
    else:
        _warm(loaded)
    print(f"{arm}: begins, {time.monotonic() - began:.0f} s for features not counted", flush=True)
    began = time.monotonic()

    def show(event: dict[str, Any]) -> None:
        if event["stage"] == "tune":
            progress = f"{event['done']} done, {event['running']} running, best {100 * event.get('best', 0):.1f}"
            print(f"  {time.monotonic() - began:6.0f} s  {progress}", flush=True)

    return search.run(loaded, show)


def _warm(loaded: Search) -> None:
    """Compute the features of the pool, unless they are in the cache."""
    prepared, corpus = prepare.prepared(loaded)
    with cluster.ray_cluster(prepared.base):
        screening.embed(prepared.base, corpus.for_training(prepared.pool), lambda event: None)


def _alike(loaded: Search) -> dict[str, Any]:
    prepared, corpus = prepare.prepared(loaded)
    with cluster.ray_cluster(prepared.base):
        ranking = similarity.rank(prepared.base, corpus, lambda event: None)
    return {"sources": sorted(similarity.greedy(ranking.scores, 6))}


def _until(found: Found, seconds: float) -> list[Tried]:
    return [one for one in found.findings.tried if one.seconds <= seconds]


def _print_searches(found: dict[str, Found], budget: float, args: argparse.Namespace) -> None:
    print("\narm         minutes  probes  fine-tuned  whole  busy  dev of the choice, and the choice")
    for arm, one in found.items():
        facts = one.findings
        fine = [tried for tried in facts.tried if tried.fidelity == "fine_tune"]
        busy = f"{100 * facts.busy:4.0f}" if facts.busy is not None else "   –"
        print(
            f"{arm:<12}{facts.seconds / 60:7.1f}{len(facts.tried) - len(fine):8d}{len(fine):12d}"
            f"{sum(tried.whole for tried in fine):7d}{busy:>6}  {100 * (facts.judge.value(facts.chosen) or 0):.1f} "
            f"{describe(facts.chosen.point)}"
        )
        probes = [tried.seconds for tried in facts.tried if tried.fidelity == "probe"]
        if probes:
            print(f"            last probe after {max(probes):.0f} s of {budget:.0f} s; {_correlation(facts)}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        with (args.out / "search_trials.tsv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(["arm", "mix", "fidelity", "epochs", "whole", "objective", "low", "high", "seconds"])
            for arm, one in found.items():
                for tried in one.findings.tried:
                    value = one.findings.judge.value(tried)
                    shown = [f"{number:.4f}" for number in (value or np.nan, tried.low, tried.high)]
                    row = [arm, describe(tried.point), tried.fidelity, tried.epochs, tried.whole, *shown]
                    writer.writerow([*row, f"{tried.seconds:.1f}"])


def _correlation(facts: Any) -> str:
    one = facts.correlation
    return "no rank correlation" if one is None else (
        f"rank correlation with fine-tuning {one.rho:.2f} [{one.low:.2f}, {one.high:.2f}] over {one.mixes} mixes"
    )  # fmt: skip


def _print_choices(args: argparse.Namespace, searched: Search, choices: dict[str, Any]) -> None:
    """Train every choice with fresh seeds in full and compare them on the targets' test rows."""
    done: dict[str, Any] = {}
    for name, point in choices.items():
        key = point_key({"sources": point["sources"]})
        if key not in done:
            done[key] = [_retrain(args, searched, point, seed) for seed in range(args.seeds)]
            print(f"  retrained {name}: {describe(point)}", flush=True)
    rows = []
    known = next(iter(done.values()))[0][0].languages
    groups = {
        "all": list(searched.base.targets),
        "seen": [code for code in searched.base.targets if known[code].seen],
        "unseen": [code for code in searched.base.targets if not known[code].seen],
    }
    english = done[point_key(choices[ENGLISH])]
    means = {name: _mean(done[point_key({"sources": p["sources"]})], groups["all"]) for name, p in choices.items()}
    best = max(choices, key=lambda name: means[name])
    print(f"\n{'choice':<14} targets   seen unseen   less English, unseen   less the best, all     mix")
    for name, point in choices.items():
        mine = done[point_key({"sources": point["sources"]})]
        against = _compare(mine, english, groups["unseen"])
        least = _compare(mine, done[point_key({"sources": choices[best]["sources"]})], groups["all"])
        shown = [_mean(mine, codes) for codes in groups.values()]
        print(
            f"{name:<14}{100 * shown[0]:8.1f}{100 * shown[1]:7.1f}{100 * shown[2]:7.1f}   {_signed(against)}   "
            f"{_signed(least)}   {describe(point)}"
        )
        rows.append([name, describe(point), *(f"{value:.4f}" for value in shown), _signed(against), _signed(least)])
    if args.out:
        with (args.out / "search_choices.tsv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(["choice", "mix", "all", "seen", "unseen", "less_english_unseen", "less_best_all"])
            writer.writerows(rows)


def _retrain(args: argparse.Namespace, searched: Search, point: Any, seed: int) -> tuple[Any, Any]:
    experiment = searched.experiment(point, searched.base.seed + SEEDS + seed, "benchmark-choice")
    corpus = experiment.corpus.model_copy(update={"cache_dir": str(args.storage.absolute() / "cache")})
    experiment = experiment.model_copy(update={"corpus": corpus})
    outcome = run.run(experiment)
    return outcome.scores, predictions.load_predictions(outcome.folder.local / "predictions.npz")


def _mean(runs: list[tuple[Any, Any]], codes: Sequence[str]) -> float:
    return float(np.mean([scores.languages[code].accuracy for scores, _ in runs for code in codes]))


def _compare(mine: list[tuple[Any, Any]], theirs: list[tuple[Any, Any]], codes: Sequence[str]) -> Any:
    kept = [[{code: one[code] for code in codes} for _, one in runs] for runs in (mine, theirs)]
    return compare_seeds(*kept)


def _signed(one: Any) -> str:
    return f"{100 * one.difference:+5.1f} [{100 * one.low:+5.1f}, {100 * one.high:+5.1f}]"


if __name__ == "__main__":
    main()
