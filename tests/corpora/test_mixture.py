"""The mixture: shares as the formula says, and draws that depend on seed and epoch alone, none of them unfair."""

from __future__ import annotations

import doctest
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlt_ray.config.sections import MixtureConfig
from xlt_ray.corpora import mixture
from xlt_ray.errors import InputError

SIZES = {"eng_Latn": 900, "swh_Latn": 100, "hau_Latn": 37}

sizes_strategy = st.dictionaries(
    st.sampled_from(["eng_Latn", "swh_Latn", "hau_Latn", "hin_Deva", "zho_Hans"]), st.integers(1, 60), min_size=1
)
configs = st.builds(MixtureConfig, alpha=st.floats(0, 5), draws_per_epoch=st.none() | st.integers(1, 200))


def epoch(sizes: dict[str, int], config: MixtureConfig, seed: int, number: int) -> mixture.Draws:
    return mixture.epoch(sizes, config, seed, number).draws()


def counts(draws: mixture.Draws) -> dict[str, int]:
    return {name: int((draws.language == index).sum()) for index, name in enumerate(draws.languages)}


def rows_of(draws: mixture.Draws, name: str) -> list[int]:
    return draws.row[draws.language == draws.languages.index(name)].tolist()


# shares


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(mixture)
    assert result.failed == 0 and result.attempted >= 3


def test_alpha_of_one_keeps_the_sizes_and_of_zero_equalises() -> None:
    assert mixture.shares(SIZES, 1) == pytest.approx({code: rows / 1037 for code, rows in SIZES.items()})
    assert mixture.shares(SIZES, 0) == pytest.approx(dict.fromkeys(SIZES, 1 / 3))
    assert mixture.shares(SIZES, 5)["eng_Latn"] > 0.9999


@given(sizes=sizes_strategy, alpha=st.floats(0, 5), weight=st.floats(0.01, 100))
@settings(derandomize=True)
def test_shares_follow_the_formula(sizes: dict[str, int], alpha: float, weight: float) -> None:
    weights = {sorted(sizes)[0]: weight}
    share = mixture.shares(sizes, alpha, weights)
    raw = {code: weights.get(code, 1) * rows**alpha for code, rows in sizes.items()}
    assert share == pytest.approx({code: value / sum(raw.values()) for code, value in raw.items()})
    assert sum(share.values()) == pytest.approx(1)


def test_zero_weight_and_zero_rows_mean_no_share() -> None:
    assert mixture.shares({"a": 10, "b": 10, "c": 0}, 0, {"b": 0}) == {"a": 1.0, "b": 0.0, "c": 0.0}


@pytest.mark.parametrize(
    ("sizes", "weights"), [({"a": 0}, {}), ({"a": 5}, {"a": 0}), ({"a": 9}, {"a": 1e308}), ({}, {})], ids=str
)
def test_shares_of_nothing_are_refused(sizes: dict[str, int], weights: dict[str, float]) -> None:
    with pytest.raises(InputError, match="^mixture: .* give a source that has rows a positive weight"):
        mixture.shares(sizes, 5, weights)


def test_the_table_shows_what_an_epoch_draws_and_how_often_each_row_comes() -> None:
    config = MixtureConfig(alpha=0, weights={"hau_Latn": 0}, draws_per_epoch=None)
    by_code = {share.language: share for share in mixture.table(SIZES, config)}
    # the rows of a language left out count for no draws
    assert by_code["eng_Latn"] == mixture.Share("eng_Latn", 900, 1.0, 0.5, 500.0, 500 / 900)
    assert by_code["swh_Latn"].repeats == 5.0
    assert by_code["hau_Latn"] == mixture.Share("hau_Latn", 37, 0.0, 0.0, 0.0, 0.0)
    assert sum(share.draws for share in mixture.table(SIZES, MixtureConfig(draws_per_epoch=64))) == pytest.approx(64)


# draws


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    config = MixtureConfig(alpha=0.3, draws_per_epoch=200)
    first = epoch(SIZES, config, 7, 3)
    np.random.seed(1)
    for number in (0, 5):
        epoch(SIZES, config, 7, number)
    again = epoch(dict(reversed(SIZES.items())), config, 7, 3)
    assert first.languages == again.languages == ("eng_Latn", "hau_Latn", "swh_Latn")
    assert np.array_equal(first.row, again.row) and np.array_equal(first.language, again.language)
    for seed, number in ((8, 3), (7, 4)):
        other = epoch(SIZES, config, seed, number)
        assert not np.array_equal(first.row, other.row)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()
    epoch(SIZES, MixtureConfig(), 0, 2)
    after = np.random.get_state()
    assert np.array_equal(before[1], after[1]) and before[2] == after[2]


@pytest.mark.parametrize("number", [0, 1, 5])
def test_alpha_of_one_draws_every_row_once_in_every_epoch(number: int) -> None:
    draws = epoch(SIZES, MixtureConfig(alpha=1), 0, number)
    assert len(draws) == sum(SIZES.values())
    for name, rows in SIZES.items():
        assert sorted(rows_of(draws, name)) == list(range(rows))


def test_the_order_is_new_in_every_epoch_and_mixes_the_languages() -> None:
    config = MixtureConfig(alpha=1)
    orders = [epoch(SIZES, config, 0, number) for number in range(3)]
    assert not np.array_equal(rows_of(orders[0], "eng_Latn"), rows_of(orders[1], "eng_Latn"))
    assert not np.array_equal(orders[0].language, orders[1].language)
    halves = np.array_split(orders[0].language, 2)
    assert all(0.7 < (half == 0).mean() < 1 for half in halves)


@given(sizes=sizes_strategy, config=configs, seed=st.integers(0, 2**63 - 1), epochs=st.integers(1, 6))
@settings(derandomize=True, deadline=None)
def test_no_row_of_a_language_is_drawn_more_than_once_more_often_than_another(
    sizes: dict[str, int], config: MixtureConfig, seed: int, epochs: int
) -> None:
    drawn: dict[str, Counter[int]] = {name: Counter(dict.fromkeys(range(rows), 0)) for name, rows in sizes.items()}
    for number in range(epochs):
        draws = epoch(sizes, config, seed, number)
        for name in sizes:
            drawn[name].update(rows_of(draws, name))
            assert set(drawn[name]) == set(range(sizes[name]))
            assert max(drawn[name].values()) - min(drawn[name].values()) <= 1


@given(sizes=sizes_strategy, config=configs, seed=st.integers(0, 99), number=st.integers(0, 5))
@settings(derandomize=True, deadline=None)
def test_counts_sum_to_the_draws_and_are_the_expectation_rounded(
    sizes: dict[str, int], config: MixtureConfig, seed: int, number: int
) -> None:
    draws = epoch(sizes, config, seed, number)
    assert len(draws) == (config.draws_per_epoch or sum(sizes.values()))
    found = counts(draws)
    for share in mixture.table(sizes, config):
        assert share.draws - 1 - 1e-6 < found[share.language] < share.draws + 1 + 1e-6


def test_counts_are_unbiased_over_epochs() -> None:
    config = MixtureConfig(alpha=0.3, draws_per_epoch=10)
    epochs = 2000
    totals: Counter[str] = Counter()
    for number in range(epochs):
        totals.update(dict(zip(sorted(SIZES), mixture._counts(SIZES, config, 0, number).tolist(), strict=True)))
    for share in mixture.table(SIZES, config):
        # a count is off by less than one, so a mean over 2000 is within 4 standard errors of 0.5 / sqrt(2000)
        assert totals[share.language] / epochs == pytest.approx(share.draws, abs=4 * 0.5 / epochs**0.5)


def test_a_language_too_small_for_a_draw_in_every_epoch_gets_one_now_and_then() -> None:
    config = MixtureConfig(alpha=1, draws_per_epoch=10)
    sizes = {"a": 990, "b": 10}
    found = [counts(epoch(sizes, config, 0, number))["b"] for number in range(100)]
    assert set(found) == {0, 1} and 2 <= sum(found) <= 22


@pytest.mark.parametrize("left_out", sorted(SIZES))
def test_a_language_of_weight_zero_is_never_drawn(left_out: str) -> None:
    config = MixtureConfig(alpha=0.3, weights={left_out: 0}, draws_per_epoch=11)
    found = [counts(epoch(SIZES, config, seed, 0)) for seed in range(200)]
    assert all(one[left_out] == 0 and sum(one.values()) == 11 for one in found)


def test_small_languages_repeat_whole_rounds_before_any_row_comes_again() -> None:
    draws = epoch({"a": 1000, "b": 7}, MixtureConfig(alpha=0, draws_per_epoch=42), 0, 0)
    assert Counter(rows_of(draws, "b")) == dict.fromkeys(range(7), 3)
    assert len(set(rows_of(draws, "a"))) == 21


@pytest.mark.parametrize("rows", [{"a": 300_000, "b": 5}, {"a": 70_000, "b": 90_000}], ids=str)
def test_any_part_of_an_epoch_is_found_alone(rows: dict[str, int]) -> None:
    whole = mixture.epoch(rows, MixtureConfig(alpha=0.5), 0, 3)
    draws = whole.draws()
    for start, stop in ((0, 1), (4095, 70_001), (len(whole) - 3, len(whole) + 9)):
        part = whole.draws(start, stop)
        assert part.place.tolist() == list(range(start, min(stop, len(whole))))
        for name in ("language", "row", "place"):
            assert np.array_equal(getattr(part, name), getattr(draws, name)[start:stop])


# labels


def test_label_balance_of_one_gives_every_label_the_same_part_and_of_zero_changes_nothing() -> None:
    labels = {"eng_Latn": np.repeat([0, 1, 2], [60, 30, 10]), "swh_Latn": np.repeat([0, 2], [9, 1])}
    even = MixtureConfig(alpha=1, label_balance=1)
    share = np.bincount(np.concatenate(list(labels.values())), minlength=4) / 110
    say = mixture.label_weights(labels, 4, even) * share
    assert say == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert mixture.label_weights(labels, 4, even)[3] == 1  # a label that no row has
    assert mixture.label_weights(labels, 4, MixtureConfig(alpha=1)).tolist() == [1, 1, 1, 1]


def test_label_weights_follow_the_mixture_and_not_the_sizes() -> None:
    labels = {"eng_Latn": np.zeros(900, dtype=int), "swh_Latn": np.ones(100, dtype=int)}
    weights = mixture.label_weights(labels, 2, MixtureConfig(alpha=0, label_balance=1))
    assert weights == pytest.approx([1, 1])  # alpha has evened out what they would have to
