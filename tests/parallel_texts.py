"""Texts in two invented languages, one a translation of the other."""

from __future__ import annotations

import numpy as np


def parallel(rows: int, seed: int = 0) -> tuple[list[str], list[str], dict[str, str]]:
    """Make texts in an invented language and their translation: other words, some lost, some strange, others moved."""
    rng = np.random.default_rng(seed)
    words, shares = 50, 1 / np.arange(2, 52)
    dictionary = {f"w{i}": f"t{other}" for i, other in enumerate(rng.permutation(words))}
    sources, targets = [], []
    for _ in range(rows):
        mine = [f"w{i}" for i in rng.choice(words, size=int(rng.integers(6, 14)), p=shares / shares.sum())]
        theirs = [dictionary[word] if rng.random() > 0.1 else f"t{rng.integers(words)}" for word in mine]
        at = int(rng.integers(len(mine) - 1))
        theirs[at], theirs[at + 1] = theirs[at + 1], theirs[at]
        sources.append(" ".join(mine).capitalize() + ".")
        targets.append(" ".join(theirs) + "!")
    return sources, targets, dictionary
