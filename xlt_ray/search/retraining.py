"""Train the chosen mix and plain baselines again, with seeds that the search has not used, and measure them on test.

The best of many search scores is biased upwards by selection; only these runs show how good the choice is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlt_ray.config.dimensions import MIX
from xlt_ray.corpora import mixture
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.evaluation import groups
from xlt_ray.evaluation.comparison import Comparison, compare_seeds
from xlt_ray.evaluation.predictions import load_predictions
from xlt_ray.events import OnEvent
from xlt_ray.runs import run
from xlt_ray.runs.storage import RunFolder
from xlt_ray.search.findings import Retrained
from xlt_ray.search.selection import CHOSEN, Judge, Tried
from xlt_ray.search.space import Point, Search

FIRST_SEED = 1000  # added to the search's own
BASELINES = {
    "best_single": "best single source",
    "all_alpha_1": "all sources, alpha 1",
    "all_alpha_0.3": "all sources, alpha 0.3",
}


@dataclass(frozen=True)
class Planned:
    """A mix to train again under a name."""

    name: str
    point: Point


def plan(judge: Judge, tried: Sequence[Tried], chosen: Tried, corpus: Corpus) -> tuple[list[Planned], list[str]]:
    """Return what to train again, the choice first, then baselines that are other mixes; and notes on those left out.

    Baselines keep the choice's settings apart from the mix, so that the mix alone is compared.
    """
    search = judge.search
    if not search.settings.retraining.seeds:
        return [], ["Nothing was retrained (search.retraining.seeds=0), so nothing here was measured on test."]
    settings = {key: value for key, value in chosen.point.items() if key not in MIX}
    whole = {"sources": sorted(search.pool), "mixture.weights": {}}
    points: dict[str, Point | None] = {
        "best_single": _best_single(judge, tried),
        "all_alpha_1": {**whole, "mixture.alpha": 1.0},
        "all_alpha_0.3": {**whole, "mixture.alpha": 0.3},
    }
    planned, notes = [Planned(CHOSEN, chosen.point)], []
    shares = {_shares(search, chosen.point, corpus): CHOSEN}
    for key in search.settings.retraining.baselines:
        point, name = points[key], BASELINES[key]
        if point is None:
            notes.append(f"No single source was tried, so there is no baseline of the {name}.")
            continue
        same = shares.setdefault(_shares(search, point, corpus), name)
        if same == name:
            planned.append(Planned(name, {**settings, **point}))
        else:
            notes.append(f"Baseline '{name}' is the same mix as '{same}' and was not trained twice.")
    return planned, notes


def _best_single(judge: Judge, tried: Sequence[Tried]) -> Point | None:
    single = [one for one in tried if len(one.point.get("sources", judge.search.pool)) == 1]
    best = judge.best(single)
    return {"sources": list(best.point.get("sources", judge.search.pool)), "mixture.weights": {}} if best else None


def _shares(search: Search, point: Point, corpus: Corpus) -> tuple[tuple[str, float], ...]:
    experiment = search.experiment(point)
    sizes = {code: corpus.table("train", code).num_rows for code in experiment.sources}
    found = mixture.shares(sizes, experiment.mixture.alpha, experiment.mixture.weights)
    return tuple(sorted((code, round(share, 3)) for code, share in found.items() if share))


def retrain(
    search: Search,
    planned: Sequence[Planned],
    folder: RunFolder,
    run_key: str,
    on_event: OnEvent,
    begin: Callable[[], None],
) -> tuple[tuple[Retrained, ...], dict[str, dict[str, Comparison]]]:
    """Train what is planned with every new seed, and compare the choice with each baseline on the same test rows."""
    seeds = [search.base.seed + FIRST_SEED + number for number in range(search.settings.retraining.seeds)]
    total, found, predictions = len(planned) * len(seeds), [], {}
    rule = "oracle" if search.oracle else search.settings.selection.languages
    for index, one in enumerate(planned):
        outcomes = []
        tags = {"xlt.selection": rule, "xlt.search_role": one.name}
        for number, seed in enumerate(seeds):
            # shown in every table and picture of the run
            name = f"{search.base.name}{'-oracle' if search.oracle else ''}-{_slug(one.name)}"
            experiment = search.experiment(one.point, seed, name)
            tracking = experiment.tracking
            if one.name != CHOSEN or number:
                tracking = tracking.model_copy(update={"register_as": None, "alias": None})
            place = {"storage": f"{folder.shown}/retrained", "tracking": tracking}
            experiment = experiment.model_copy(update=place)
            at = index * len(seeds) + number
            show = _inner(on_event, at, total, one.name)
            show({"stage": "check"})
            outcome = run.finished(experiment, search.fingerprint)  # the corpus was read once, for the search
            if outcome is None:
                begin()
                outcome = run.run(experiment, show, run_key, tags)
            outcomes.append(outcome)
        found.append(
            Retrained(
                one.name,
                one.point,
                tuple(f"retrained/{o.folder.local.name}" for o in outcomes),
                tuple(o.scores for o in outcomes),
            )
        )
        predictions[one.name] = [load_predictions(o.folder.local / "predictions.npz") for o in outcomes]
    chosen = found[0] if found else None
    others = [one for one in found if one is not chosen]
    return tuple(found), {
        other.name: _compare(search, chosen, predictions[CHOSEN], predictions[other.name])
        for other in others
        if chosen is not None
    }


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
        # measuring on test comes after training and takes about as long where targets are many
        share = 0.5 * event["step"] / event["steps"] if "steps" in event else 0.0
        if event["stage"] == "evaluate" and event.get("total"):
            share = 0.5 + 0.4 * event["done"] / event["total"]
        done = max(done, at + share)
        on_event({"stage": "retrain", "done": round(done, 2), "total": total, "mix": name})

    return show


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")
