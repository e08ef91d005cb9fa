"""Shuffle numbers so that any part of the order is found without the rest of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WHOLE = 1 << 16  # numbers up to which the whole order is drawn: a Feistel network over few is not random enough
ROUNDS = 8


class Permutation:
    """A random order of the numbers below `count`, seeded by an address, in memory that does not grow with them.

    Up to `WHOLE` it is numpy's. Above, it is a Feistel network over the pairs (i, j) with count <= width * height, of
    which numbers that are too large are mapped again until they are not (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains", methods 2 and 3), with splitmix64 as its round function. It is no cipher.
    """

    def __init__(self, count: int, address: Sequence[int]) -> None:
        rng = np.random.default_rng(address)
        self.count, self.whole = count, rng.permutation(count) if count <= WHOLE else None
        if self.whole is None:
            self.width = math.isqrt(count - 1) + 1
            self.height = -(-count // self.width)
            self.keys = rng.integers(0, 2**64, ROUNDS, dtype=np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers at some places of the order, int64, of the shape of `places`."""
        if self.whole is not None:
            return self.whole[places]
        found = self._mapped(places.astype(np.uint64))
        while (outside := found >= self.count).any():
            found[outside] = self._mapped(found[outside])
        return found.astype(np.int64)

    def _mapped(self, numbers: np.ndarray) -> np.ndarray:
        width, height = np.uint64(self.width), np.uint64(self.height)
        left, right = numbers % width, numbers // width
        for number, key in enumerate(self.keys):
            left, right = right, (left + _mixed(right ^ key)) % (height if number % 2 else width)
        return right * width + left  # after an even number of rounds `left` is again below width


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Mix the bits of each number, uint64, as splitmix64 does (Steele, Lea and Flood 2014), less one bit."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (numbers ^ (numbers >> np.uint64(31))) >> np.uint64(1)  # so that a sum with it fits
