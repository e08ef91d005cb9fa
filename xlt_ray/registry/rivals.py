"""Collect what two registered versions predicted on the same test rows, measuring one anew where needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlt_ray import durable, tasks
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.evaluation.predictions import Predictions, load_predictions
from xlt_ray.events import OnEvent
from xlt_ray.registry import fetch, versions
from xlt_ray.registry.fetch import Form
from xlt_ray.registry.versions import Version


@dataclass(frozen=True)
class Sides:
    """Predictions and labels of both, and the main `metric` of their task.

    `served` are the languages that the champion's own run measured.
    """

    candidate: Mapping[str, Predictions]
    champion: Mapping[str, Predictions]
    labels: tuple[tuple[str, ...], tuple[str, ...]]
    served: tuple[str, ...]
    metric: str


def predictions(
    candidate: Version, champion: Version, served: Sequence[str], cache: Path | None, on_event: OnEvent
) -> Sides:
    """Fetch both versions' test predictions from MLflow.

    A language in which the champion predicted other rows than the candidate, or none, is measured anew: the champion's
    bundle on the corpus of the candidate's run. Raises InputError where one is not a bundle, their tasks differ or that
    corpus cannot be read.
    """
    cards = [_card(version) for version in (candidate, champion)]
    task, other = (card["experiment"].get("task", tasks.DEFAULT) for card in cards)
    if task != other:
        raise InputError(
            f"task: {candidate.model} learned {task}, and {champion.model} {other}, so its clients would find other "
            "answers; promote the folder of its run under another name (--name), or give another alias (--alias)"
        )
    labels = (tuple(cards[0]["labels"]), tuple(cards[1]["labels"]))
    first, second = _stored(candidate), _stored(champion)
    if first is None:
        first = _measured(candidate, cards[0], None, cache, on_event)
    known = tuple(sorted(second)) if second is not None else tuple(sorted(first))
    second = dict(second or {})
    stale = [code for code in served or known if code in first and not _same(first[code], second.get(code))]
    if stale and set(labels[0]) == set(labels[1]):
        second |= _measured(champion, cards[0], stale, cache, on_event)
    return Sides(first, second, labels, known, tasks.build(task, labels[0]).metrics[0])


def _card(version: Version) -> dict[str, Any]:
    content = versions.listing(version, "bundle")
    if content is None:
        raise InputError(f"{version.model}: holds no bundle of xlt_ray; use another alias, or --force")
    card: dict[str, Any] = json.loads(content)
    return card


def _stored(version: Version) -> dict[str, Predictions] | None:
    with durable.scratch() as scratch:
        file = versions.predictions(version, scratch)
        return load_predictions(file) if file is not None else None


def _same(one: Predictions, other: Predictions | None) -> bool:
    """Return whether two have the same rows: ids and gold answers, in any order."""
    if other is None or len(one.ids) != len(other.ids):
        return False
    ids = [np.asarray(rows.ids, dtype=np.str_) for rows in (one, other)]
    orders = [np.argsort(each, kind="stable") for each in ids]
    answers = [rows.golds(order) for rows, order in zip((one, other), orders, strict=True)]
    return np.array_equal(ids[0][orders[0]], ids[1][orders[1]]) and all(map(np.array_equal, *answers))


def _measured(
    version: Version, card: Mapping[str, Any], codes: Sequence[str] | None, cache: Path | None, on_event: OnEvent
) -> dict[str, Predictions]:
    """Predict the test rows of the corpus in a bundle's card, in some languages or all of them."""
    from xlt_ray.inference import bundle
    from xlt_ray.runs import measure

    experiment = build(card["experiment"], place=f"{version.model}: experiment")
    model = bundle.load(fetch.fetch(version.model, version.uri, Form(device="cuda"), cache).folder)
    experiment, tables = measure.rows(model, experiment, sources=experiment.sources)
    chosen = {code: table for code, table in tables.items() if codes is None or code in codes}
    for fault in measure.trained_on(model, chosen):
        on_event({"stage": "check", "note": f"{version.model} has an advantage: {fault.partition(';')[0]}"})
    return measure.predict(model, experiment, chosen, on_event)
