"""Screening: probes on frozen features that touch nothing they may not, and proposals that waste none of them."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from xlt_ray.search import space
from xlt_ray.search.proposals import Proposals
from xlt_ray.search.screening import FOLDS, Screening, predict_left_out, try_mix
from xlt_ray.search.selection import Judge, Tried
from xlt_ray.search.space import Point, point_key
from xlt_ray.training.frozen import Frozen, fit, predict, refit

POOL = ("eng_Latn", "deu_Latn", "swh_Latn", "hin_Deva")
ENG, DEU, SWH, HIN = POOL
TRAIN = {ENG: 90, DEU: 40, SWH: 30, HIN: 20}
WIDTH = 5
ALPHA = {"mixture.alpha": {"uniform": [0, 1]}}


def judge(ranges: dict[str, Any] | None = None, trials: int = 1000, seed: int = 0, **asked: Any) -> Judge:
    return Judge(
        space.build(
            {
                "sources": list(POOL),
                "seed": seed,
                "search": {"space": ranges or {"sources": {"at_most": 2}}, "screening": {"trials": trials}, **asked},
            }
        )
    )


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    """Features of three classes in four languages, each turned a little away from the others."""
    features, labels, ids = {}, {}, {}
    places = np.random.default_rng(5).normal(0, 1, (3, WIDTH))
    for number, code in enumerate(POOL):
        for split, rows in (("train", TRAIN[code]), ("dev", 60)):
            rng = np.random.default_rng([number, rows])
            gold = np.arange(rows) % 3
            moved = places[gold] + 0.4 * number * np.roll(places[gold], 1, axis=1) + rng.normal(0, 1.2, (rows, WIDTH))
            features[f"{split}/{code}"] = moved.astype(np.float32)
            labels[f"{split}/{code}"] = gold.astype(np.int64)
            ids[f"{split}/{code}"] = np.array([f"{split}{row}" for row in range(rows)])
    return Frozen(features, labels, ids, 3)


# one mix


def test_a_mix_scores_what_scikit_learn_says(frozen: Frozen) -> None:
    # a row counts by the share of its language, which is in proportion to weight * rows ** alpha
    weight = {ENG: 1.0 * 90**0.5 / 90, SWH: 3.0 * 30**0.5 / 30}
    x = np.concatenate([frozen.features[f"train/{code}"] for code in weight]).astype(np.float64)
    y = np.concatenate([frozen.labels[f"train/{code}"] for code in weight])
    each = np.concatenate([np.full(TRAIN[code], value) for code, value in weight.items()])
    model = LogisticRegression(C=0.01 * 1000 / 120, max_iter=500)
    model.fit((x - x.mean(0)) / x.std(0), y, sample_weight=each * 120 / each.sum())
    point = {"sources": [ENG, SWH], "mixture.alpha": 0.5, "mixture.weights": {ENG: 1.0, SWH: 3.0}}
    found = try_mix(judge(), frozen, point)
    wanted = {
        code: model.score((frozen.features[f"dev/{code}"] - x.mean(0)) / x.std(0), frozen.labels[f"dev/{code}"])
        for code in POOL
    }
    assert {code: found.accuracy[code] for code in weight} == pytest.approx({code: wanted[code] for code in weight})
    found = try_mix(judge(), frozen, point, dev_alone=True)
    assert found.accuracy == pytest.approx(wanted)
    assert len(set(wanted.values())) == 4, "a weak test: the languages are alike"
    assert (found.point, found.fidelity, found.epochs, found.whole) == (point, "probe", 0, True)
    value = judge().value(found)
    assert value is not None and found.low < value < found.high
    assert value == pytest.approx((wanted[DEU] + wanted[HIN]) / 2)
    assert found.cost > 0


def test_a_mix_is_a_different_one_with_other_languages_or_weights(frozen: Frozen) -> None:
    points: list[Point] = [{"sources": [ENG]}, {"sources": [HIN]}, {"sources": [ENG, HIN]}]
    points += [{"sources": [ENG, HIN], "mixture.weights": {ENG: 0.01, HIN: 0.99}}]
    assert len({tuple(try_mix(judge(), frozen, point).accuracy.values()) for point in points}) == 4


def test_a_left_out_language_is_measured_on_all_its_rows_none_seen_in_another_language(frozen: Frozen) -> None:
    point = {"sources": [ENG, DEU]}
    experiment = judge().search.experiment(point)
    fitted = fit(frozen, experiment, (0.01,), experiment.sources)
    found = predict_left_out(frozen, experiment, fitted, POOL)
    assert set(found) == {SWH, HIN}
    for code, one in found.items():
        name = f"train/{code}"
        assert one.ids.tolist() == frozen.ids[name].tolist() and (one.gold == frozen.labels[name]).all()
        for row in (0, 7, 19):
            # what is taught about the row, and about others of its part, in the mix's languages does not reach it
            here = zlib.crc32(frozen.ids[name][row].encode()) % FOLDS
            taught = dict(frozen.labels)
            for source in (ENG, DEU):
                parts = np.array([zlib.crc32(each.encode()) % FOLDS for each in frozen.ids[f"train/{source}"]])
                wrong = (taught[f"train/{source}"] + 1) % 3
                taught[f"train/{source}"] = np.where(parts == here, wrong, taught[f"train/{source}"])
            again = predict_left_out(replace(frozen, labels=taught), experiment, fitted, POOL)[code]
            assert again.predicted[row] == one.predicted[row]
    tried, dev = try_mix(judge(), frozen, point), try_mix(judge(), frozen, point, dev_alone=True)
    for code, one in found.items():
        rows = TRAIN[code] + 60
        right = 60 * dev.accuracy[code] + (one.gold == one.predicted).sum()
        assert tried.accuracy[code] == pytest.approx(right / rows)
    assert tried.high - tried.low < dev.high - dev.low


def test_rows_of_their_own_are_predicted_by_the_whole_fit(frozen: Frozen) -> None:
    apart = replace(frozen, ids={name: np.char.add(name, ids) for name, ids in frozen.ids.items()})
    experiment = judge().search.experiment({"sources": [ENG]})
    fitted = fit(apart, experiment, (0.01,), experiment.sources)
    found = predict_left_out(apart, experiment, fitted, POOL)
    usual = predict(apart, fitted, "train", [DEU, SWH, HIN])
    assert {code: one.predicted.tolist() for code, one in found.items()} == {
        code: one.predicted.tolist() for code, one in usual.items()
    }
    folded = predict_left_out(frozen, experiment, fitted, POOL)
    assert any((folded[code].predicted != usual[code].predicted).any() for code in usual), "a weak test"


def test_other_rules_measure_dev_alone(frozen: Frozen) -> None:
    point = {"sources": [ENG, DEU]}
    found = try_mix(judge(selection={"languages": "sources"}), frozen, point)
    assert found.accuracy == try_mix(judge(), frozen, point, dev_alone=True).accuracy


def test_train_rows_of_other_languages_are_out_of_reach(frozen: Frozen) -> None:
    point = {"sources": [ENG, DEU]}
    usual = try_mix(judge(), frozen, point)
    wrong = {name: (one + 1) % 3 for name, one in frozen.labels.items()}
    mislabelled = try_mix(
        judge(), replace(frozen, labels={**frozen.labels, f"train/{SWH}": wrong[f"train/{SWH}"]}), point
    )
    assert mislabelled.accuracy[SWH] < usual.accuracy[SWH], "labels of languages left out measure"
    assert mislabelled.accuracy == {**usual.accuracy, SWH: mislabelled.accuracy[SWH]}, "and never teach"
    own = {f"train/{ENG}": wrong[f"train/{ENG}"]}
    changed = try_mix(judge(), replace(frozen, labels={**frozen.labels, **own}), point)
    assert changed.accuracy != usual.accuracy, "the test could not have seen a difference"


def test_dev_labels_measure_and_never_teach(frozen: Frozen) -> None:
    point = {"sources": [ENG, DEU]}
    wrong = {f"dev/{code}": (frozen.labels[f"dev/{code}"] + 1) % 3 for code in (ENG, SWH)}
    usual = try_mix(judge(), frozen, point)
    found = try_mix(judge(), replace(frozen, labels={**frozen.labels, **wrong}), point)
    assert (found.accuracy[DEU], found.accuracy[HIN]) == (usual.accuracy[DEU], usual.accuracy[HIN])
    assert found.accuracy[ENG] < usual.accuracy[ENG] and found.accuracy[SWH] < usual.accuracy[SWH]


def test_a_refit_is_for_the_runs_after_a_search_and_no_mix_is_taught_the_dev_rows_that_judge_it(frozen: Frozen) -> None:
    ranges = {"sources": {"at_most": 2}}
    data = {"sources": list(POOL), "training": {"method": "probe", "refit": "source_dev"}, "search": {"space": ranges}}
    search, point = space.build(data), {"sources": [ENG, DEU]}
    found, usual = try_mix(Judge(search), frozen, point), try_mix(judge(), frozen, point)
    assert replace(found, cost=0) == replace(usual, cost=0)
    experiment, strengths = search.experiment(point), search.settings.screening.strengths
    assert experiment.training.refit == "source_dev", "a mix that is trained again is refitted"
    again = refit(frozen, experiment, fit(frozen, experiment, strengths, experiment.sources))
    accuracy = {code: one.score for code, one in predict(frozen, again, "dev").items()}
    assert accuracy[ENG] != found.accuracy[ENG], "the test could not have seen a difference"


def test_a_mix_that_leaves_nothing_to_measure_is_still_tried(frozen: Frozen) -> None:
    found = try_mix(judge(), frozen, {"sources": list(POOL), "mixture.alpha": 1.0})
    assert set(found.accuracy) == set(POOL) and (found.low, found.high) == (0.0, 1.0)


def test_settings_that_features_cannot_tell_are_left_aside(frozen: Frozen) -> None:
    plain, other = {"sources": [ENG]}, {"sources": [ENG], "training.learning_rate": 1.0, "network.dropout": 0.5}
    assert try_mix(judge(), frozen, plain).accuracy == try_mix(judge(), frozen, other).accuracy


# proposals


def made_up(point: Point, value: float = 0.5) -> Tried:
    return Tried(point, "probe", accuracy=dict.fromkeys(POOL, value), cost=1.0)


def worth(point: Point) -> float:
    """An objective with one best place: the mix of Swahili and Hindi at alpha 0.8."""
    return 0.3 + 0.2 * len({SWH, HIN} & set(point["sources"])) - 0.3 * abs(point.get("mixture.alpha", 0.3) - 0.8)


def asked(
    judged: Judge, trials: int, starts: Sequence[Point] = (), done: Sequence[Tried] = (), most: int | None = None
) -> list[Tried]:
    """Try what is proposed, or only the first few of it, and report the worth of each."""
    proposals, found = Proposals(judged, starts, done, trials), []
    for proposal in proposals:
        found.append(made_up(proposal.point, worth(proposal.point)))
        proposals.learn(proposal, found[-1])
        if len(found) == most:
            break
    return found


def points(found: Sequence[Tried]) -> list[Point]:
    return [one.point for one in found]


SMALL = [[code] for code in POOL] + [sorted(p) for p in ((ENG, DEU), (ENG, SWH), (ENG, HIN), (DEU, SWH), (DEU, HIN))]
SMALL += [sorted((SWH, HIN))]
WHOLE_POOL: list[Point] = [{"sources": sorted(POOL), "mixture.alpha": alpha} for alpha in (1.0, 0.3)]


def test_a_small_space_is_tried_once_each_with_the_given_first() -> None:
    starts: list[Point] = [{"sources": [HIN]}, {"sources": [DEU]}, {"sources": [HIN]}]
    found = points(asked(judge(), 1000, starts))
    assert found[:2] == starts[:2]
    assert sorted(point["sources"] for point in found) == sorted(SMALL)


def test_a_baseline_outside_a_small_space_takes_no_place_of_a_mix_inside() -> None:
    exact = points(asked(judge(trials=10), 10, WHOLE_POOL))
    assert sorted(point["sources"] for point in exact) == sorted(SMALL)
    more = points(asked(judge(trials=12), 12, WHOLE_POOL))
    assert len(more) == 12 and all(point in more for point in WHOLE_POOL)


def test_an_interrupted_small_space_goes_on_with_what_is_left() -> None:
    first = asked(judge(), 1000, most=4)
    rest = asked(judge(), 1000, done=first)
    assert sorted(one.point["sources"] for one in first + rest) == sorted(SMALL)
    assert asked(judge(), 1000, done=first + rest) == []


@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_a_large_space_is_drawn_from_within_its_bounds_and_without_repeats(searcher: str) -> None:
    judged = judge({"sources": {"at_least": 2, "at_most": 3}, **ALPHA}, searcher=searcher)
    found = points(asked(judged, 80))
    assert len(found) == 80 and len({point_key(point) for point in found}) == 80
    assert all(set(point) == {"sources", "mixture.alpha"} for point in found)
    assert {len(point["sources"]) for point in found} == {2, 3}
    assert all(0 <= point["mixture.alpha"] <= 1 for point in found)


def test_no_more_mixes_than_trials_are_proposed_over_all_sessions() -> None:
    judged = judge({"sources": {"at_most": 2}, **ALPHA})
    starts: list[Point] = [{"sources": [code]} for code in POOL]
    first = asked(judged, 20, starts, most=7)
    rest = asked(judged, 20, starts, done=first)
    assert len(first) == 7 and len(rest) == 13
    assert len({point_key(one.point) for one in first + rest}) == 20
    assert len(asked(judged, 3, starts)) == 3


def test_a_given_mix_has_the_name_of_the_point_it_is_in_the_space() -> None:
    # else its probe and its fine-tuning, which names everything, would count as two mixes
    judged = judge({"sources": {"at_most": 2}, **ALPHA, "mixture.weights": "simplex"})
    (found,) = asked(judged, 1, [{"sources": [DEU, ENG]}])
    assert found.point == {
        "sources": [DEU, ENG],
        "mixture.alpha": 0.3,
        "mixture.weights": {DEU: 0.5, ENG: 0.5},
    }
    search = judged.search
    assert search.decode(search.encode(found.point)) == found.point
    assert points(asked(judged, 2, WHOLE_POOL)) == WHOLE_POOL, "a baseline outside the space stays what it is"


def test_what_is_outside_the_space_teaches_the_sampler_nothing() -> None:
    lone = judge(ALPHA, selection={"languages": "sources"})
    for judged in (lone, judge({"sources": {"at_most": 2}, **ALPHA})):
        outside: list[Point] = [{"sources": sorted(POOL)[:3], "mixture.alpha": 0.1}]
        proposals = Proposals(judged, outside, [made_up({**outside[0], "mixture.alpha": 0.2})], 5)
        proposal = next(iter(proposals))
        proposals.learn(proposal, made_up(proposal.point))
        assert proposal.point == outside[0] and not proposals.study.trials


def test_the_sampler_receives_given_mixes_of_this_session_and_an_earlier_one() -> None:
    judged = judge({"sources": {"at_most": 2}, **ALPHA})
    earlier = made_up({"sources": [DEU, ENG], "mixture.alpha": 0.25}, 0.4)
    proposals = Proposals(judged, [{"sources": [HIN]}], [earlier], 5)
    proposal = next(iter(proposals))
    proposals.learn(proposal, made_up(proposal.point, 0.6))
    received = [(judged.search.decode(trial.params), trial.value) for trial in proposals.study.trials]
    assert received == [(earlier.point, 0.4), ({"sources": [HIN]}, 0.6)]


def test_the_same_search_proposes_the_same_and_another_seed_does_not() -> None:
    ranges = {"sources": {"at_most": 2}, **ALPHA}
    assert asked(judge(ranges), 60) == asked(judge(ranges), 60)
    assert asked(judge(ranges), 5) != asked(judge(ranges, seed=1), 5)


def test_the_sampler_learns_where_the_good_mixes_are() -> None:
    ranges = {"sources": {"at_least": 2, "at_most": 2}, **ALPHA}
    late = [worth(one.point) for one in asked(judge(ranges), 120)[60:]]
    blind = [worth(one.point) for one in asked(judge(ranges, searcher="random"), 120)[60:]]
    # six pairs at any alpha: the good pair comes up once in six at random
    assert np.mean(blind) < 0.5 and np.mean(late) > np.mean(blind) + 0.08


def test_a_sampler_that_repeats_itself_does_not_end_a_search_of_subsets() -> None:
    pool = [f"{code}_Latn" for code in ("eng", "deu", "swh", "fra", "ind", "tur", "yor", "hau", "zul", "spa", "fin")]
    asked_for = {"space": {"sources": {"at_most": 5}}, "screening": {"trials": 300}}
    judged = Judge(space.build({"sources": pool, "search": asked_for}))
    proposals, found = Proposals(judged, [], [], 300), []
    for proposal in proposals:
        found.append(proposal.point)
        # one language is worth so much that the sampler names few mixes without it
        value = 0.5 + 0.3 * ("yor_Latn" in proposal.point["sources"])
        accuracy = dict.fromkeys(pool, value)
        proposals.learn(proposal, Tried(proposal.point, "probe", accuracy=accuracy, cost=1.0))
    assert len({point_key(point) for point in found}) == len(found) == 300


def test_several_objectives_are_searched_together() -> None:
    judged = judge({"sources": {"at_most": 2}, **ALPHA}, selection={"objectives": ["mean", "worst"]})
    assert len({point_key(one.point) for one in asked(judged, 60)}) == 60


# on Ray: seconds


def screen(judged: Judge, frozen: Frozen, more: int = 1000) -> list[Tried]:
    """Screen a small space, and stop after so many results."""
    found: list[Tried] = []

    def record(tried: Tried) -> Tried:
        found.append(tried)
        return tried

    Screening(judged, frozen).run(Proposals(judged, [], [], 1000), record, lambda: len(found) < more)
    return found


def costless(found: Sequence[Tried]) -> list[Tried]:
    return sorted((replace(one, cost=0.0) for one in found), key=lambda one: one.key)


def test_workers_find_what_this_process_does(local_ray: None, frozen: Frozen) -> None:
    here = [try_mix(judge(), frozen, {"sources": sources}) for sources in SMALL]
    assert costless(screen(judge(), frozen)) == costless(here)


def test_no_mix_is_begun_once_the_time_is_up_and_what_was_begun_is_kept(local_ray: None, frozen: Frozen) -> None:
    judged = judge()
    found = screen(judged, frozen, more=1)
    # as many are on the way as workers have in hand; their results count
    assert len(found) == min(2 * Screening(judged, frozen).slots, len(SMALL))
    assert screen(judged, frozen, more=0) == []


def test_difficulty_is_how_a_probe_on_the_rest_does_less_the_mean(local_ray: None, frozen: Frozen) -> None:
    both = Screening(judge(), frozen).measure_difficulty().difficulty
    assert set(both) == {"probe", "fine_tune"} and both["probe"] != both["fine_tune"]
    found = both["fine_tune"]
    alone = {
        code: try_mix(judge(), frozen, {"sources": [c for c in POOL if c != code]}, dev_alone=True).accuracy[code]
        for code in POOL
    }
    mean = sum(alone.values()) / 4
    assert found == pytest.approx({code: value - mean for code, value in alone.items()})
    assert max(found.values()) > 0.05, "a weak test: the languages are alike"


def test_a_worker_that_dies_costs_no_result(local_ray: None, frozen: Frozen, tmp_path: Path) -> None:
    marker, driver = tmp_path / "died", os.getpid()

    class Deadly(dict[str, np.ndarray]):
        """Features that kill the first worker that reads them."""

        def __getitem__(self, name: str) -> np.ndarray:
            if os.getpid() != driver and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(name)

    wanted = costless(screen(judge(), frozen))
    assert costless(screen(judge(), replace(frozen, features=Deadly(frozen.features)))) == wanted
    assert marker.exists(), "no worker died"
