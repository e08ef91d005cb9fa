"""The gate: refuses what is really worse in a served language, and does not take luck for a fall."""

from __future__ import annotations

import numpy as np
import pytest

from xlt_ray.errors import InputError
from xlt_ray.evaluation.paired import gate
from xlt_ray.evaluation.paired.gate import Rules
from xlt_ray.evaluation.predictions import Predictions

LABELS = (("off", "on"), ("off", "on"))
Side = dict[str, Predictions]


def predicted(right: np.ndarray, ids: list[str] | None = None) -> Predictions:
    """Rows of which these are right, gold being 0 and 1 in turn."""
    gold = np.arange(len(right)) % 2
    return Predictions(gold, np.where(right, gold, 1 - gold), ids or [f"row{i}" for i in range(len(right))])


def fixed(rows: int, champion: int, candidate: int) -> tuple[Predictions, Predictions]:
    """A candidate and a champion, each right on so many of the first rows."""
    return predicted(np.arange(rows) < candidate), predicted(np.arange(rows) < champion)


def sides(**languages: tuple[Predictions, Predictions]) -> tuple[Side, Side]:
    return {code: pair[0] for code, pair in languages.items()}, {code: pair[1] for code, pair in languages.items()}


def verdicts(found: gate.Gate) -> dict[str, str]:
    return {row.code: row.verdict for row in found.rows}


def simulated(seed: int, falls: dict[int, float], languages: int = 48, rows: int = 100) -> tuple[Side, Side]:
    """Two models that differ on a tenth of the rows either way by luck, the candidate worse where `falls` says so.

    Half of the languages are parallel: they share row ids, and what is hard is hard in all of them.
    """
    rng = np.random.default_rng(seed)
    hard = np.clip(rng.beta(1, 2, rows) * 0.6, 0, 1)
    one, other = {}, {}
    for number in range(languages):
        code = f"l{number:02}"
        ids = [f"{'shared' if number % 2 else code}-{i}" for i in range(rows)]
        differs = rng.random(rows) < hard
        right = rng.random(rows) < 0.8
        swap = np.where(differs, rng.random(rows) < 0.5, right)
        other[code] = predicted(np.where(differs, ~swap, right), ids)
        lost = rng.random(rows) < falls.get(number, 0.0)
        one[code] = predicted(np.where(lost, False, swap), ids)
    return one, other


# the rule


def test_a_better_candidate_passes_with_every_figure() -> None:
    found = gate.judge(*sides(deu_Latn=fixed(100, 80, 90), swh_Latn=fixed(50, 30, 30)), LABELS)
    assert found.passed and found.reasons == ()
    assert found.difference == pytest.approx(0.05)
    assert found.low <= found.difference <= found.high
    german, swahili = found.rows
    assert (german.rows, german.champion, german.candidate) == (100, 0.8, 0.9)
    assert german.difference == pytest.approx(0.1) and 0 < (german.low or 0) < 0.1 < (german.high or 0)
    assert (swahili.difference, swahili.verdict) == (0, "holds")


def test_a_mean_that_falls_by_a_row_or_two_may_be_chance() -> None:
    pair = sides(deu_Latn=fixed(1000, 800, 799), swh_Latn=fixed(100, 30, 30))
    found = gate.judge(*pair, LABELS)
    assert found.passed and found.unclear and found.difference == pytest.approx(-0.0005)
    assert verdicts(found) == {"deu_Latn": "holds", "swh_Latn": "holds"}
    why = "the mean over the served languages falls by 0.05 points [-0.15, 0.00]"
    strict = gate.judge(*pair, LABELS, Rules(strict=True))
    assert strict.reasons == (f"{why}, which may be chance, but --strict",)
    none = gate.judge(*pair, LABELS, Rules(tolerance=0.0))
    assert none.reasons == (f"{why}; 0 at most is let pass, where chance explains it",)


def test_a_mean_that_falls_by_more_is_refused_whether_or_not_chance_explains_it() -> None:
    by_chance = gate.judge(*sides(deu_Latn=fixed(400, 320, 319), swh_Latn=fixed(100, 31, 30)), LABELS)
    assert by_chance.high == pytest.approx(0) and not by_chance.passed and not by_chance.unclear
    assert "falls by 0.62 points" in by_chance.reasons[0] and "0.2 at most is let pass" in by_chance.reasons[0]
    small = gate.judge(*sides(deu_Latn=fixed(10_000, 8000, 7985)), LABELS)  # 0.15 points, and no chance
    assert small.high < 0 and not small.passed and "falls by 0.15 points" in small.reasons[0]


def test_a_mean_of_equally_good_models_passes_more_often_than_a_coin_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model trained again with another seed is no worse where its mean is below by less than the rows can tell."""
    monkeypatch.setattr(gate, "RESAMPLES", 200)
    found = [gate.judge(*simulated(seed, {}, rows=400), LABELS) for seed in range(30)]
    assert sum(one.passed for one in found) > sum(one.difference >= 0 for one in found)
    assert all(
        one.passed or one.difference < -gate.MEAN or one.high < 0 or "falls" in verdicts(one).values() for one in found
    )


def test_a_language_that_falls_is_refused_though_the_mean_rises() -> None:
    pair = sides(deu_Latn=fixed(100, 60, 90), swh_Latn=fixed(100, 80, 62))
    found = gate.judge(*pair, LABELS)
    assert found.difference > 0
    assert found.reasons == ("swh_Latn: falls by 18.0 points, more than 2",)
    assert verdicts(found) == {"deu_Latn": "holds", "swh_Latn": "falls"}
    assert gate.judge(*pair, LABELS, Rules(tolerance=0.18)).passed  # exactly the tolerance is allowed
    assert gate.judge(*pair, LABELS, Rules(("deu_Latn",))).passed


def test_a_fall_that_may_be_chance_is_marked_and_refuses_only_when_strict() -> None:
    pair = sides(deu_Latn=fixed(100, 60, 90), swh_Latn=fixed(30, 20, 18))
    found = gate.judge(*pair, LABELS)
    assert found.passed and verdicts(found)["swh_Latn"] == "unclear"
    strict = gate.judge(*pair, LABELS, Rules(strict=True))
    assert strict.reasons == ("swh_Latn: falls by 6.7 points, more than 2, which may be chance, but --strict",)


def test_where_every_row_falls_it_is_no_chance() -> None:
    found = gate.judge(*sides(deu_Latn=fixed(20, 20, 0)), LABELS)
    assert verdicts(found) == {"deu_Latn": "falls"}


def test_a_served_language_that_the_candidate_lacks_is_lost_and_one_the_champion_lacks_is_new() -> None:
    candidate, champion = sides(deu_Latn=fixed(100, 60, 90), swh_Latn=fixed(100, 60, 90), hau_Latn=fixed(100, 60, 90))
    del candidate["swh_Latn"], champion["hau_Latn"]
    found = gate.judge(candidate, champion, LABELS, Rules(("deu_Latn", "swh_Latn", "hau_Latn", "yor_Latn")))
    assert verdicts(found) == {"deu_Latn": "holds", "swh_Latn": "lost", "hau_Latn": "new", "yor_Latn": "lost"}
    assert found.reasons == tuple(
        f"{c}: served, but the candidate was not measured in it" for c in ("swh_Latn", "yor_Latn")
    )
    assert found.difference == pytest.approx(0.3)
    assert [row.code for row in gate.judge(candidate, champion, LABELS).rows] == ["deu_Latn", "swh_Latn"]


def test_rows_that_only_one_of_them_predicted_do_not_count() -> None:
    right = np.arange(60) < 30
    first = predicted(right[:40], [f"row{i}" for i in range(40)])
    found = gate.judge({"deu_Latn": first}, {"deu_Latn": predicted(right)}, LABELS)
    assert (found.rows[0].rows, found.rows[0].champion, found.rows[0].candidate) == (40, 0.75, 0.75)
    apart = {"deu_Latn": predicted(right, [f"other{i}" for i in range(60)]), "swh_Latn": first}
    found = gate.judge(apart, {"deu_Latn": predicted(right), "swh_Latn": first}, LABELS)
    assert found.reasons == ("deu_Latn: served, but no test row in common",)


# what cannot be compared


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((("off", "on"), ("off", "dim", "on")), "dim only in one of the two"),
        ((("off", "on"), ("on", "off")), "the same names in another order"),
    ],
)
def test_other_labels_are_refused_by_name(labels: tuple[tuple[str, ...], tuple[str, ...]], message: str) -> None:
    with pytest.raises(InputError, match=f"labels: the candidate's differ from the champion's: {message}"):
        gate.judge(*sides(deu_Latn=fixed(10, 5, 5)), labels)


def test_other_gold_labels_or_nothing_in_common_are_refused() -> None:
    candidate, champion = sides(deu_Latn=fixed(10, 5, 5))
    changed = Predictions(1 - champion["deu_Latn"].gold, champion["deu_Latn"].predicted, champion["deu_Latn"].ids)
    with pytest.raises(InputError, match="deu_Latn: id 'row0' has different gold labels"):
        gate.judge(candidate, {"deu_Latn": changed}, LABELS)
    with pytest.raises(InputError, match="swh_Latn: none was measured for both models on a common test row"):
        gate.judge(candidate, {"swh_Latn": champion["deu_Latn"]}, LABELS)


# luck and real falls, over many languages


def test_languages_of_equally_good_models_are_called_fallen_at_the_promised_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "RESAMPLES", 400)
    found = [gate.judge(*simulated(seed, {}), LABELS, Rules(tolerance=0.0)) for seed in range(60)]
    fallen = sum("falls" in verdicts(one).values() for one in found)
    assert fallen <= 8  # 5% of 60 is 3; more than 8 has a chance of 1 in 300 at that rate
    # the naive rule would refuse nearly all of them
    assert sum(any((row.difference or 0) < -0.02 for row in one.rows) for one in found) >= 55


def test_real_falls_are_found_among_many_languages_and_only_they(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "RESAMPLES", 400)
    wrong = right = 0
    for seed in range(20):
        found = verdicts(gate.judge(*simulated(seed, {3: 0.5, 10: 0.5}), LABELS))
        right += sum(found[code] == "falls" for code in ("l03", "l10"))
        wrong += any(verdict == "falls" for code, verdict in found.items() if code not in ("l03", "l10"))
    assert right >= 38
    assert wrong <= 4


def test_the_same_question_has_the_same_answer() -> None:
    pair = simulated(0, {1: 0.1}, languages=5)
    assert gate.judge(*pair, LABELS) == gate.judge(*pair, LABELS)
