"""Orders of which any part is found alone: each number once, none where it would be expected, no two alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlt_ray.corpora import permutation
from xlt_ray.corpora.permutation import Permutation


@given(count=st.integers(1, 3000), whole=st.sampled_from([0, permutation.WHOLE]), seed=st.integers(0, 9))
@settings(derandomize=True, deadline=None)
def test_every_number_comes_once(count: int, whole: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "WHOLE", whole)
        order = Permutation(count, [seed, 1])
        found = order(np.arange(count))
    assert sorted(found.tolist()) == list(range(count))
    places = np.random.default_rng(seed).integers(0, count, 20)
    assert np.array_equal(order(places), found[places])


def test_few_numbers_are_in_the_order_of_numpy() -> None:
    assert (
        Permutation(1000, [7, 3])(np.arange(1000)).tolist() == np.random.default_rng([7, 3]).permutation(1000).tolist()
    )


def test_orders_of_many_numbers_look_random() -> None:
    count = 1_000_003
    place = np.arange(count)
    one, other = (Permutation(count, [seed, 0])(place) for seed in (1, 2))
    assert np.array_equal(np.sort(one), place)
    for first, second in ((one, place), (one, other), (one[1:], one[:-1])):
        # four standard errors of a correlation and of the mean distance of two random numbers
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / count**0.5
        assert np.abs(first - second).mean() == pytest.approx(count / 3, rel=4 * 0.71 / count**0.5)
    # chi-square of 64 parts of the order against 64 parts of the numbers, of 63 * 63 degrees of freedom
    table = np.histogram2d(place, one, bins=64)[0]
    expected = count / 64**2
    chi_square, freedom = float(((table - expected) ** 2 / expected).sum()), 63 * 63
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_large_order_costs_no_memory_to_speak_of() -> None:
    order = Permutation(20_000_000_000, [0])
    found = order(np.arange(10_000_000_000, 10_000_100_000))
    assert len(set(found.tolist())) == 100_000 and found.min() >= 0 and found.max() < 20_000_000_000
    assert order.whole is None
