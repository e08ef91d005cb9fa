"""What is trained again after a search: the choice, and baselines that are other mixes than it and than each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pytest

from xlt_ray.corpora.corpus import Corpus
from xlt_ray.search import retraining, space
from xlt_ray.search.selection import CHOSEN, Judge, Tried
from xlt_ray.search.space import Point

POOL = ("deu_Latn", "eng_Latn", "swh_Latn")
DEU, ENG, SWH = POOL
SIZES = {DEU: 40, ENG: 160, SWH: 10}
ALL = {"sources": list(POOL), "mixture.weights": {}}
BY_SIZE: dict[str, Point] = {"all sources, alpha 1": {**ALL, "mixture.alpha": 1.0}}
EVENED: dict[str, Point] = {"all sources, alpha 0.3": {**ALL, "mixture.alpha": 0.3}}


def corpus(sizes: Mapping[str, int] = SIZES) -> Corpus:
    def table(rows: int) -> pa.Table:
        return pa.table({"text": ["x"] * rows, "label": pa.array([0] * rows, pa.int32()), "id": ["y"] * rows})

    return Corpus("made up", ("a", "b"), {"train": {code: table(rows) for code, rows in sizes.items()}})


def judge(rule: str = "held_out_sources", ranges: Mapping[str, Any] | None = None, **retrained: Any) -> Judge:
    asked = {"space": ranges or {"sources": {"at_most": 2}}, "selection": {"languages": rule}, "retraining": retrained}
    return Judge(space.build({"sources": list(POOL), "search": asked}))


def tried(
    sources: Sequence[str], value: float, fidelity: Literal["probe", "fine_tune"] = "probe", whole: bool = True
) -> Tried:
    accuracy = dict.fromkeys(POOL, value)
    return Tried({"sources": list(sources)}, fidelity, whole=whole, accuracy=accuracy, cost=1.0)


SINGLES = [tried([DEU], 0.6), tried([ENG], 0.7), tried([SWH], 0.5)]
PAIR = tried([DEU, SWH], 0.8)


def test_the_choice_comes_first_and_then_every_baseline() -> None:
    planned, notes = retraining.plan(judge(), [*SINGLES, PAIR], PAIR, corpus())
    single = {"best single source": {"sources": [ENG], "mixture.weights": {}}}
    assert list(planned.items()) == list({CHOSEN: PAIR.point, **single, **BY_SIZE, **EVENED}.items()) and notes == []


def test_only_the_baselines_asked_for_are_planned() -> None:
    planned, notes = retraining.plan(judge(baselines=["all_alpha_0.3"]), [PAIR], PAIR, corpus())
    assert planned == {CHOSEN: PAIR.point, **EVENED} and notes == []


def test_no_seeds_means_no_retraining_and_says_so() -> None:
    planned, (note,) = retraining.plan(judge(seeds=0), [*SINGLES, PAIR], PAIR, corpus())
    assert planned == {} and "search.retraining.seeds=0" in note and "test" in note


def test_the_best_single_source_is_by_fine_tuning_where_one_was_fine_tuned() -> None:
    tuned = tried([SWH], 0.4, "fine_tune")
    stopped = tried([DEU], 0.95, "fine_tune", whole=False)
    planned, _ = retraining.plan(judge(), [*SINGLES, tuned, stopped, PAIR], PAIR, corpus())
    assert planned["best single source"]["sources"] == [SWH]


def test_without_a_single_source_there_is_a_note_and_no_baseline() -> None:
    planned, (note,) = retraining.plan(judge(), [PAIR], PAIR, corpus())
    assert planned == {CHOSEN: PAIR.point, **BY_SIZE, **EVENED}
    assert "No single source was tried" in note and "best single source" in note


def test_a_choice_that_is_a_baseline_is_not_trained_twice() -> None:
    planned, (note,) = retraining.plan(judge(), [*SINGLES, PAIR], SINGLES[1], corpus())
    assert list(planned) == [CHOSEN, *BY_SIZE, *EVENED]
    assert note == "Baseline 'best single source' is the same mix as 'chosen' and was not trained twice."


def test_a_choice_of_all_languages_is_a_baseline_whatever_it_is_written_as() -> None:
    # alpha 0.3 of all, written as rounded weights at alpha 0
    written = {"sources": list(POOL), "mixture.alpha": 0.0}
    total = sum(rows**0.3 for rows in SIZES.values())
    chosen = Tried(
        {**written, "mixture.weights": {code: round(rows**0.3 / total, 4) for code, rows in SIZES.items()}},
        "probe",
        accuracy=dict.fromkeys(POOL, 0.9),
        cost=1.0,
    )
    planned, (note,) = retraining.plan(judge("sources"), [*SINGLES, chosen], chosen, corpus())
    assert list(planned) == [CHOSEN, "best single source", *BY_SIZE]
    assert "'all sources, alpha 0.3' is the same mix as 'chosen'" in note


def test_baselines_that_are_one_mix_are_trained_once() -> None:
    planned, (note,) = retraining.plan(judge(), [*SINGLES, PAIR], PAIR, corpus(dict.fromkeys(POOL, 20)))
    assert list(planned) == [CHOSEN, "best single source", *BY_SIZE]
    assert "'all sources, alpha 0.3' is the same mix as 'all sources, alpha 1'" in note


def test_baselines_keep_the_settings_of_the_choice_and_not_its_mix() -> None:
    settings = {"training.learning_rate": 1e-4, "network.dropout": 0.2}
    mix = {"sources": [DEU, SWH], "mixture.alpha": 0.9, "mixture.weights": {DEU: 0.1, SWH: 0.9}}
    chosen = Tried({**mix, **settings}, "fine_tune", epochs=3, accuracy={ENG: 0.8}, cost=1.0)
    planned, _ = retraining.plan(judge(), [*SINGLES, chosen], chosen, corpus())
    baselines: dict[str, Point] = {"best single source": {"sources": [ENG], "mixture.weights": {}}, **BY_SIZE, **EVENED}
    assert planned == {CHOSEN: chosen.point} | {name: {**point, **settings} for name, point in baselines.items()}


@pytest.mark.parametrize("weights", [{}, {ENG: 5.0}])
def test_baselines_are_plain_whatever_weights_the_file_gives(weights: dict[str, float]) -> None:
    search = space.build(
        {"sources": list(POOL), "mixture": {"weights": weights}, "search": {"space": {"sources": {"at_most": 2}}}}
    )
    planned, _ = retraining.plan(Judge(search), [*SINGLES, PAIR], PAIR, corpus())
    del planned[CHOSEN]
    assert [search.experiment(point).mixture.weights for point in planned.values()] == [{}, {}, {}]
