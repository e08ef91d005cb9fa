"""Ranking mixes on dev: what each rule and objective makes of a mix, and how far the ranking can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.search import findings, selection, space
from xlt_ray.search.selection import Judge, Tried

POOL = ("eng_Latn", "deu_Latn", "swh_Latn", "hin_Deva")
ENG, DEU, SWH, HIN = POOL
EWE = "ewe_Latn"  # a target
ACCURACY = {ENG: 0.9, DEU: 0.8, SWH: 0.5, HIN: 0.6, EWE: 0.4}


def judge(
    rule: str = "held_out_sources",
    objectives: Sequence[str] = ("mean",),
    difficulty: Mapping[str, float] | None = None,
    ranges: Mapping[str, Any] | None = None,
) -> Judge:
    asked = space.build(
        {
            "sources": list(POOL),
            "targets": [EWE],
            "search": {
                "space": ranges or {"sources": {"at_most": 3}, "mixture.alpha": {"uniform": [0, 1]}},
                "selection": {"languages": rule, "objectives": list(objectives)},
            },
        }
    )
    return Judge(asked, {"probe": difficulty, "fine_tune": {}} if difficulty else {})


def tried(
    sources: Sequence[str] = (ENG, DEU),
    accuracy: Mapping[str, float] = ACCURACY,
    fidelity: Literal["probe", "fine_tune"] = "probe",
    whole: bool = True,
    **settings: Any,
) -> Tried:
    point = {"sources": list(sources), **settings}
    epochs = 0 if fidelity == "probe" else 3
    return Tried(point, fidelity, epochs=epochs, whole=whole, accuracy=accuracy, cost=1.0)


def valued(value: float, sources: Sequence[str] = (ENG,), **kind: Any) -> Tried:
    """Make a mix up that every rule gives this value."""
    return tried(sources, dict.fromkeys((*POOL, EWE), value), **kind)


# what a mix is worth


@pytest.mark.parametrize(
    ("rule", "objective", "value"),
    [
        ("sources", "mean", (0.9 + 0.8) / 2),
        ("sources", "worst", 0.8),
        ("held_out_sources", "mean", (0.5 + 0.6) / 2),
        ("held_out_sources", "worst", 0.5),
        ("targets", "mean", 0.4),
        ("targets", "worst", 0.4),
    ],
)
def test_a_rule_measures_its_own_languages_alone(rule: Any, objective: Any, value: float) -> None:
    assert judge(rule, [objective]).value(tried()) == pytest.approx(value)
    assert judge().value(tried(), objective, rule) == pytest.approx(value)


def test_the_first_objective_is_the_usual_one() -> None:
    assert judge(objectives=["worst", "mean"]).value(tried()) == pytest.approx(0.5)


def test_difficulty_is_taken_off_held_out_languages_and_nowhere_else() -> None:
    ease = {ENG: 0.3, DEU: 0.2, SWH: -0.2, HIN: 0.1, EWE: 0.5}
    strict = judge(difficulty=ease)
    assert strict.value(tried(), "mean") == pytest.approx((0.5 + 0.2 + 0.6 - 0.1) / 2)
    assert strict.value(tried(), "worst") == pytest.approx(0.6 - 0.1)
    for rule in ("sources", "targets"):
        assert strict.value(tried(), rule=rule) == judge().value(tried(), rule=rule)  # type: ignore[arg-type]


def test_difficulty_keeps_a_mix_from_winning_by_what_it_is_asked() -> None:
    hard = tried([SWH], {ENG: 0.8, DEU: 0.8, HIN: 0.8})  # is asked the easy ones
    easy = tried([ENG], {DEU: 0.8, HIN: 0.8, SWH: 0.6})
    ease = {ENG: 0.1, DEU: 0.1, HIN: 0.1, SWH: -0.3}
    assert judge().ranked([easy, hard]) == [hard, easy]
    assert judge(difficulty=ease).ranked([easy, hard]) == [easy, hard]


def test_no_rule_but_the_oracle_looks_at_a_language_outside_the_pool() -> None:
    assert judge().languages(tried(), "sources") == [DEU, ENG]
    assert judge().languages(tried(), "held_out_sources") == [HIN, SWH]
    assert judge().languages(tried(), "targets") == [EWE]


def test_a_mix_that_names_no_sources_uses_the_whole_pool() -> None:
    found = Tried({"mixture.alpha": 0.5}, "probe", accuracy=ACCURACY, cost=1.0)
    assert judge().languages(found, "sources") == sorted(POOL)
    assert judge().value(found, rule="held_out_sources") is None


def test_a_mix_without_the_measured_languages_has_no_value_and_no_rank() -> None:
    unmeasured = tried(accuracy={ENG: 0.9})
    assert judge().value(unmeasured) is None
    assert judge().ranked([unmeasured]) == [] and judge().choose([unmeasured]) is None


# intervals


def predictions(rows: int, right: float, names: str = "") -> Predictions:
    gold = np.zeros(rows, int)
    ids = np.array([f"{names}{row}" for row in range(rows)])
    return Predictions(gold, (np.arange(rows) >= right * rows).astype(int), ids)


@pytest.mark.parametrize("names", ["alike", "apart"])
@pytest.mark.parametrize("difficulty", [{}, {SWH: 0.3, HIN: 0.1}])
def test_an_interval_holds_the_value_and_shrinks_with_rows(names: str, difficulty: dict[str, float]) -> None:
    strict, widths = judge(difficulty=difficulty), []
    for rows in (20, 80, 320):
        measured = {ENG: 0.9, SWH: 0.5, HIN: 0.7}
        rights = {c: predictions(rows, right, c if names == "apart" else "") for c, right in measured.items()}
        low, high = strict.interval(rights, tried(accuracy=measured))
        value = strict.value(tried(accuracy=measured))
        assert value is not None and low < value < high
        widths.append(high - low)
    # four times the rows, half the width
    assert widths[1] / widths[0] == pytest.approx(0.5, abs=0.12)
    assert widths[2] / widths[1] == pytest.approx(0.5, abs=0.12)


def test_an_interval_is_of_the_languages_that_the_rule_measures() -> None:
    rights = {ENG: predictions(50, 1.0), DEU: predictions(50, 1.0), SWH: predictions(50, 0.5), EWE: predictions(50, 0)}
    mix = tried(accuracy=dict.fromkeys(rights, 0.5))
    assert judge("sources").interval(rights, mix) == (1.0, 1.0)
    assert judge("targets").interval(rights, mix) == (0.0, 0.0)
    low, high = judge().interval(rights, mix)
    assert 0.3 < low < 0.5 < high < 0.7


def test_an_interval_of_rows_shared_by_languages_is_wider_than_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "RESAMPLES", 4000)

    # equal rows are drawn together, so that averaging two languages that fail alike gains nothing
    def width(name: str) -> float:
        rights = {SWH: predictions(100, 0.5), HIN: predictions(100, 0.5, name)}
        low, high = judge().interval(rights, tried(accuracy=dict.fromkeys(rights, 0.5)))
        return high - low

    assert width("other") / width("") == pytest.approx(2**-0.5, abs=0.06)


def test_the_interval_of_the_worst_language_is_below_that_of_the_mean() -> None:
    rights = {SWH: predictions(100, 0.3), HIN: predictions(100, 0.9)}
    mix = tried(accuracy=dict.fromkeys(rights, 0.5))
    low, high = judge(objectives=["worst"]).interval(rights, mix)
    assert low < 0.3 < high < judge().interval(rights, mix)[0]


# ranking and choosing


def test_mixes_are_ranked_from_best_to_worst_and_the_last_word_on_a_mix_counts() -> None:
    first, better, last = valued(0.9, [ENG]), valued(0.7, [DEU]), valued(0.5, [ENG])
    assert judge().ranked([first, better, valued(0.6, [SWH]), last]) == [better, valued(0.6, [SWH]), last]


def test_a_whole_fine_tuning_is_chosen_before_a_better_probe_or_stopped_one() -> None:
    probe, stopped = valued(0.9, [ENG]), valued(0.8, [DEU], fidelity="fine_tune", whole=False)
    modest, good = valued(0.5, [SWH], fidelity="fine_tune"), valued(0.6, [HIN], fidelity="fine_tune")
    assert judge().choose([probe, stopped, modest, good]) == good
    assert judge().choose([stopped, valued(0.3, [SWH]), probe]) == probe
    assert judge().choose([stopped]) is None and judge().choose([]) is None


def test_the_rule_asked_for_chooses() -> None:
    far = tried([ENG], {ENG: 0.5, DEU: 0.9, EWE: 0.5})
    near = tried([DEU], {ENG: 0.5, DEU: 0.9, EWE: 0.6})
    assert judge().choose([far, near]) == far
    assert judge().best([far, near]) == far
    assert judge().best([far, near], "sources") == judge("sources").choose([far, near]) == near
    assert judge().best([far, near], "targets") == judge("targets").choose([far, near]) == near


NEARNESS = {ENG: {EWE: 0.2}, DEU: {EWE: 0.4}, SWH: {EWE: 0.9}, HIN: {EWE: 0.9}}


def test_similarity_decides_among_scores_within_a_standard_error_of_the_best() -> None:
    def of(value: float, sources: Sequence[str]) -> Tried:
        # 3.92 standard errors wide: one is a hundredth
        return replace(valued(value, sources), low=value - 0.0196, high=value + 0.0196)

    best, close, far = of(0.80, [ENG]), of(0.7901, [DEU]), of(0.7899, [SWH])
    mixes = [far, close, best]
    informed = replace(judge(), nearness=NEARNESS)
    assert informed.near(mixes) == [best, close] and informed.choose(mixes) == close and informed.best(mixes) == best
    # of two as similar, the better; and a fine-tuning before any probe
    assert informed.choose([of(0.80, [SWH]), of(0.799, [HIN])]) == of(0.80, [SWH])
    tuned = valued(0.3, [ENG], fidelity="fine_tune")
    assert informed.choose([*mixes, tuned]) == tuned
    # what is asked of labels, or knows no similarity, takes the best score
    for other in (judge(), *(replace(judge(rule), nearness=NEARNESS) for rule in ("sources", "targets"))):
        assert other.choose(mixes) == other.best(mixes)
    exact = judge().search.settings.selection.model_copy(update={"standard_errors": 0.0})
    search = judge().search
    strict = Judge(replace(search, settings=search.settings.model_copy(update={"selection": exact})), {}, NEARNESS)
    assert strict.near(mixes) == [best] and strict.choose(mixes) == best


def test_the_front_is_of_mixes_that_none_beats_in_both() -> None:
    def pair(low: float, high: float, alpha: float) -> Tried:
        return tried([ENG, DEU], {SWH: low, HIN: high}, **{"mixture.alpha": alpha})

    spread, even = pair(0.2, 1.0, 0.1), pair(0.5, 0.6, 0.2)  # means .6 and .55
    twin = pair(0.6, 0.5, 0.3)  # equal to `even`
    beaten, worse = pair(0.2, 0.9, 0.4), pair(0.4, 0.5, 0.5)
    both = judge(objectives=["mean", "worst"])
    front = both.pareto([worse, even, beaten, spread, twin])
    assert front[0] == spread and set(map(id, front[1:])) == {id(even), id(twin)}
    assert judge().pareto([worse, even, beaten, spread]) == [spread]
    assert both.pareto([]) == []


def test_every_rule_says_what_it_would_have_chosen_and_all_score_it() -> None:
    far = tried([ENG], {ENG: 0.5, DEU: 0.9, EWE: 0.3})
    near = tried([DEU], {ENG: 0.6, DEU: 0.95, EWE: 0.7})
    found = {one.rule: one for one in findings.rule_choices(judge(), [far, near])}
    assert [one.choice for one in found.values()] == [near, far, near]
    assert list(found) == ["sources", "held_out_sources", "targets"]
    assert found["held_out_sources"].values == pytest.approx({"sources": 0.5, "held_out_sources": 0.9, "targets": 0.3})
    assert found["targets"].values == pytest.approx({"sources": 0.95, "held_out_sources": 0.6, "targets": 0.7})


def test_a_rule_whose_languages_were_not_measured_chooses_nothing() -> None:
    found = findings.rule_choices(judge(), [tried([ENG], {ENG: 0.5, DEU: 0.9})])
    assert [(one.rule, one.values["targets"]) for one in found] == [("sources", None), ("held_out_sources", None)]


# what probes say of fine-tuning


def both_ways(probed: Sequence[float], tuned: Sequence[float]) -> list[Tried]:
    mixes = [[ENG], [DEU], [SWH], [HIN], [ENG, DEU], [ENG, SWH], [ENG, HIN], [DEU, SWH]]
    probes = [valued(value, mix) for value, mix in zip(probed, mixes, strict=False)]
    rate = {"training.learning_rate": 1e-4}  # a probe has none
    each = zip(tuned, mixes, strict=False)
    return probes + [valued(value, mix, fidelity="fine_tune", **rate) for value, mix in each]


def test_probes_are_correlated_with_the_fine_tunings_of_their_mixes() -> None:
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * (1 + 1 + 1 + 1) / (5 * 24) = 0.8
    found = findings.correlation(judge(), both_ways([0.1, 0.2, 0.3, 0.4, 0.5], [0.62, 0.6, 0.8, 0.7, 0.9]))
    assert found is not None and found.rho == pytest.approx(0.8) and found.mixes == 5
    assert found.low < 0.8 <= found.high


def test_probes_that_rank_as_fine_tuning_does_do_not_mislead_and_others_do() -> None:
    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    same = findings.correlation(judge(), both_ways(rising, rising))
    assert same is not None and (same.rho, same.low, same.high) == pytest.approx((1, 1, 1)) and not same.misleads
    turned = findings.correlation(judge(), both_ways(rising, rising[::-1]))
    assert turned is not None and turned.rho == pytest.approx(-1) and turned.misleads


def test_fewer_than_four_mixes_that_had_both_say_nothing() -> None:
    rising = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert findings.correlation(judge(), both_ways(rising, rising[:3])) is None
    assert findings.correlation(judge(), both_ways(rising[:3], rising)) is None
    assert findings.correlation(judge(), both_ways(rising, rising[:4])) is not None
    stopped = [valued(0.9, [ENG, DEU], fidelity="fine_tune", whole=False)]
    assert findings.correlation(judge(), both_ways(rising, rising[:3]) + stopped) is None


def test_a_mix_keeps_its_name_where_a_fine_tuning_has_settings_of_its_own() -> None:
    probe, tuned = valued(0.5, [ENG]), valued(0.5, [ENG], fidelity="fine_tune", **{"training.clip": 2.0})
    assert probe.mix == tuned.mix and probe.key != tuned.key
    assert probe.mix != valued(0.5, [ENG], **{"mixture.alpha": 0.1}).mix
