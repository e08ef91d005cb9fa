"""Train the chosen mix and plain baselines again, with seeds that the search has not used, and measure them on test.

The best of many search scores is biased upwards by selection; only these runs show how good the choice is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xlt_ray.config.dimensions import MIX
from xlt_ray.corpora import mixture
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.evaluation import groups
from xlt_ray.evaluation.paired.comparison import Comparison, compare_seeds
from xlt_ray.evaluation.predictions import load_predictions
from xlt_ray.events import OnEvent
from xlt_ray.runs import run
from xlt_ray.runs.storage import RunFolder, open_run
from xlt_ray.search.findings import Retrained
from xlt_ray.search.selection import CHOSEN, Judge, Tried
from xlt_ray.search.space import Point, Search
from xlt_ray.supervision import ORACLE

FIRST_SEED = 1000  # added to the search's own
BASELINES = {
    "best_single": "best single source",
    "all_alpha_1": "all sources, alpha 1",
    "all_alpha_0.3": "all sources, alpha 0.3",
}


def plan(judge: Judge, tried: Sequence[Tried], chosen: Tried, corpus: Corpus) -> tuple[dict[str, Point], list[str]]:
    """Return the mixes to train again by name, the choice and baselines that are others, and notes on those left out.

    Baselines keep the choice's settings apart from the mix, so that the mix alone is compared.
    """
    search = judge.search
    if not search.settings.retraining.seeds:
        return {}, ["Nothing was retrained (search.retraining.seeds=0), so nothing here was measured on test."]
    settings = {key: value for key, value in chosen.point.items() if key not in MIX}
    whole = {"sources": sorted(search.pool), "mixture.weights": {}}
    points: dict[str, Point | None] = {
        "best_single": _best_single(judge, tried),
        "all_alpha_1": {**whole, "mixture.alpha": 1.0},
        "all_alpha_0.3": {**whole, "mixture.alpha": 0.3},
    }
    planned, notes = {CHOSEN: chosen.point}, []
    shares = {_shares(search, chosen.point, corpus): CHOSEN}
    for key in search.settings.retraining.baselines:
        point, name = points[key], BASELINES[key]
        if point is None:
            notes.append(f"No single source was tried, so there is no baseline of the {name}.")
            continue
        same = shares.setdefault(_shares(search, point, corpus), name)
        if same == name:
            planned[name] = {**settings, **point}
        else:
            notes.append(f"Baseline '{name}' is the same mix as '{same}' and was not trained twice.")
    return planned, notes


def _best_single(judge: Judge, tried: Sequence[Tried]) -> Point | None:
    sources = judge.search.sources
    best = judge.best([one for one in tried if len(sources(one.point)) == 1])
    return {"sources": list(sources(best.point)), "mixture.weights": {}} if best else None


def _shares(search: Search, point: Point, corpus: Corpus) -> tuple[tuple[str, float], ...]:
    experiment = search.experiment(point)
    sizes = {code: corpus.table("train", code).num_rows for code in experiment.sources}
    found = mixture.shares(sizes, experiment.mixture.alpha, experiment.mixture.weights)
    return tuple(sorted((code, round(share, 3)) for code, share in found.items() if share))


def retrain(
    search: Search,
    planned: Mapping[str, Point],
    folder: RunFolder,
    run_key: str,
    on_event: OnEvent,
    begin: Callable[[], None],
) -> tuple[tuple[Retrained, ...], dict[str, dict[str, Comparison]]]:
    """Train what is planned with every new seed, and compare the choice with each baseline on the same test rows."""
    seeds = [search.base.seed + FIRST_SEED + number for number in range(search.settings.retraining.seeds)]
    total, found, predictions = len(planned) * len(seeds), [], {}
    rule = "oracle" if search.oracle else search.settings.selection.languages
    for index, (name, point) in enumerate(planned.items()):
        outcomes = []
        for number, seed in enumerate(seeds):
            # shown in every table and picture of the run
            title = f"{search.base.name}{'-oracle' if search.oracle else ''}-{_slug(name)}"
            experiment = search.experiment(point, seed, title)
            tracking = experiment.tracking
            if name != CHOSEN or number:
                tracking = tracking.model_copy(update={"register_as": None, "alias": None})
            place = {"storage": f"{folder.shown}/retrained", "tracking": tracking}
            experiment = experiment.model_copy(update=place)
            show = _inner(on_event, index * len(seeds) + number, total, name)
            show({"stage": "check"})
            # the corpus was read once, for the search
            outcome = run.finished(experiment, open_run(experiment, search.fingerprint))
            if outcome is None:
                begin()
                tags = {"xlt.selection": rule, "xlt.search_role": name}
                if search.oracle:  # target labels chose the mix, whatever the run itself read
                    tags |= {"xlt.supervision": ORACLE, "xlt.supervision.zero_shot": ORACLE}
                outcome = run.run(experiment, show, run_key, tags)
            outcomes.append(outcome)
        folders = tuple(f"retrained/{one.folder.local.name}" for one in outcomes)
        found.append(Retrained(name, point, folders, tuple(one.scores for one in outcomes)))
        predictions[name] = [load_predictions(one.folder.local / "predictions.npz") for one in outcomes]
    mine = predictions.pop(CHOSEN, [])
    compared = {name: _compare(search, found[0], mine, theirs) for name, theirs in predictions.items()}
    return tuple(found), compared


def _compare(search: Search, chosen: Retrained, mine: Any, theirs: Any) -> dict[str, Comparison]:
    known = chosen.scores[0].languages
    targets = groups.of({code: known[code] for code in search.base.targets if code in known})
    return {
        name: compare_seeds([{code: one[code] for code in codes} for one in mine], theirs)
        for name, codes in targets.items()
        if name in groups.OF_TARGETS
    }


def _inner(on_event: OnEvent, at: int, total: int, name: str) -> OnEvent:
    done = float(at)

    def show(event: Mapping[str, Any]) -> None:
        nonlocal done
        if "note" in event:
            on_event({"stage": "retrain", "note": event["note"]})
            return
        # measuring on test comes after training and takes about as long where targets are many
        share = 0.5 * event["step"] / event["steps"] if "steps" in event else 0.0
        if event["stage"] == "evaluate" and event.get("total"):
            share = 0.5 + 0.4 * event["done"] / event["total"]
        done = max(done, at + share)
        on_event({"stage": "retrain", "done": round(done, 2), "total": total, "mix": name})

    return show


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")
