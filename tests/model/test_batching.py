"""Rows are cut under a token budget, each once, the longest first."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from xlt_ray.model import batching


def test_a_budget_that_fits_all_makes_one_step() -> None:
    assert [sorted(group) for group in batching.steps([3, 16, 9], 48)] == [[0, 1, 2]]
    assert len(batching.steps([3, 16, 9], 47)) == 2
    assert batching.steps([], 8) == []


@given(
    lengths=st.lists(st.integers(1, 512), max_size=60), tokens=st.integers(1, 2048), multiple=st.sampled_from([1, 4, 8])
)
@settings(derandomize=True, deadline=None)
def test_every_row_comes_once_and_the_budget_holds(lengths: list[int], tokens: int, multiple: int) -> None:
    groups = batching.steps(lengths, tokens, multiple)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        width = batching.rounded(max(lengths[i] for i in group), multiple)
        assert width * len(group) <= tokens or len(group) == 1
        assert width % multiple == 0
    longest = [max(lengths[i] for i in group) for group in groups]
    assert longest == sorted(longest, reverse=True)
