"""Keep what a model predicted on the rows of each language, as npz files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xlt_ray.errors import InputError


@dataclass(frozen=True)
class Predictions:
    """One language's rows: gold and predicted are integer arrays (n,) indexing the labels, ids name the rows.

    `confidence` is the calibrated probability of the predicted label, (n,) float32; None where it was not kept. Where
    rows have several answers, such as one a word, `sizes`, (rows,), tells how many, and gold, predicted and confidence
    hold those of all rows one after the other. `ratios`, (rows, 2) whole numbers, are given where the main metric of
    the task is a ratio of two sums over rows.
    """

    gold: np.ndarray
    predicted: np.ndarray
    ids: Sequence[str] | np.ndarray
    confidence: np.ndarray | None = None
    sizes: np.ndarray | None = None
    ratios: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.ids)

    @property
    def answer_ids(self) -> np.ndarray:
        """The id of every answer's row, (n,)."""
        ids = np.asarray(self.ids, dtype=np.str_)
        return ids if self.sizes is None else np.repeat(ids, self.sizes)

    @property
    def score(self) -> float:
        """The main metric of the task: the share of rows predicted right, or the ratio of sums, 0 of none."""
        if self.ratios is None:
            return float(self.values().mean())
        a, b = np.asarray(self.ratios, dtype=np.int64).sum(axis=0).tolist()
        return a / b if b else 0.0

    def values(self, kept: np.ndarray | None = None) -> np.ndarray:
        """Return a number for every row, or for every row in `kept` (places), whose mean is the main metric of these.

        Where an answer is right or wrong that is 1 or 0, (rows,) int64. A ratio of sums R = sum(a) / sum(b) is made
        linear in its rows, R + (a - R b) / mean(b): the first terms of its Taylor series (Woodruff 1971, "A simple
        method for approximating the variance of a complicated estimate"), so that means and their bootstrap do for
        ratios what they do for shares.
        """
        if self.ratios is None:
            assert self.sizes is None, "where rows have several answers, the task gives ratios"
            right = (np.asarray(self.gold) == np.asarray(self.predicted)).astype(np.int64)
            return right if kept is None else right[kept]
        a, b = np.asarray(self.ratios if kept is None else self.ratios[kept], dtype=np.float64).T
        if not b.sum():
            return np.zeros(len(b))
        ratio = a.sum() / b.sum()
        return ratio + (a - ratio * b) / b.mean()

    def golds(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the row of every gold answer of the rows in `kept`, numbered by their place there, and the answers."""
        gold = np.asarray(self.gold)
        if self.sizes is None:
            return np.arange(len(kept)), gold[kept]
        return np.repeat(np.arange(len(kept)), self.sizes[kept]), gold[answers_of(kept, self.sizes)]


def answers_of(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the places of the answers of some rows, (rows,), among those of all, of which each has `sizes`.

    >>> answers_of(np.array([2, 0]), np.array([2, 1, 3])).tolist()
    [3, 4, 5, 0, 1]
    """
    ends = np.cumsum(sizes)
    return np.concatenate([np.empty(0, np.int64), *(np.arange(ends[row] - sizes[row], ends[row]) for row in rows)])


def save_predictions(path: str | Path, predictions: Mapping[str, Predictions]) -> None:
    """Write all languages' rows as one compressed npz file: arrays `<language>/gold`, `/predicted`, `/ids`.

    Besides, `/confidence`, `/sizes` and `/ratios` where there are any.
    """
    arrays: dict[str, np.ndarray] = {}
    for code, rows in predictions.items():
        arrays[f"{code}/gold"] = np.asarray(rows.gold, np.int32)
        arrays[f"{code}/predicted"] = np.asarray(rows.predicted, np.int32)
        arrays[f"{code}/ids"] = np.asarray(rows.ids, dtype=np.str_)
        if rows.confidence is not None:
            arrays[f"{code}/confidence"] = np.asarray(rows.confidence, np.float32)
        for name, more in (("sizes", rows.sizes), ("ratios", rows.ratios)):
            if more is not None:
                arrays[f"{code}/{name}"] = np.asarray(more, np.int32)
    with Path(path).open("wb") as file:  # an open file, because numpy appends .npz to other names
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_predictions(path: str | Path) -> dict[str, Predictions]:
    """Read what `save_predictions` wrote; nothing in the file can run code.

    Raises InputError when the file is absent or is not one of predictions.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            codes = dict.fromkeys(name.rpartition("/")[0] for name in arrays.files)
            return {code: _of_language(arrays, code) for code in codes}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; predictions are written beside the scores of a run") from None
    except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a file of predictions ({error}); give one written by save_predictions") from None


def _of_language(arrays: Mapping[str, np.ndarray], code: str) -> Predictions:
    gold, predicted, ids = (arrays[f"{code}/{part}"] for part in ("gold", "predicted", "ids"))
    more = [arrays.get(f"{code}/{part}") for part in ("confidence", "sizes", "ratios")]
    return Predictions(gold, predicted, ids, *more)
