"""Cut rows into batches of similar length under a token budget; whole numbers only, no torch."""

from __future__ import annotations

from collections.abc import Sequence

MULTIPLE = 8  # lengths are padded to this, which keeps the number of matrix shapes small


def rounded(length: int, multiple: int = MULTIPLE) -> int:
    """Round a length up to a multiple.

    >>> [rounded(n) for n in (1, 8, 9)]
    [8, 8, 16]
    """
    return -(-length // multiple) * multiple


def steps(lengths: Sequence[int], tokens: int, multiple: int = MULTIPLE) -> list[list[int]]:
    """Cut positions into groups of at most `tokens` padded tokens (always at least one row), longest first.

    `lengths` are the tokens of each row. A large budget gives few large groups, a budget of 1 gives every row its own.

    >>> steps([3, 16, 9], tokens=32)
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    width = 0
    for index in order:
        if groups and (len(groups[-1]) + 1) * width <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
            width = rounded(lengths[index], multiple)
    return groups
