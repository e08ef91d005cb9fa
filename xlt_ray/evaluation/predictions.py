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

    `confidence` is the calibrated probability of the predicted label, (n,) float32; None where it was not kept.
    """

    gold: np.ndarray
    predicted: np.ndarray
    ids: Sequence[str] | np.ndarray
    confidence: np.ndarray | None = None

    @property
    def accuracy(self) -> float:
        """The share of rows predicted right."""
        return float((self.gold == self.predicted).mean())


def save_predictions(path: str | Path, predictions: Mapping[str, Predictions]) -> None:
    """Write all languages' rows as one compressed npz file: arrays `<language>/gold`, `/predicted`, `/ids`.

    Besides, `/confidence` where there is one.
    """
    arrays: dict[str, np.ndarray] = {}
    for code, rows in predictions.items():
        arrays[f"{code}/gold"] = np.asarray(rows.gold, np.int32)
        arrays[f"{code}/predicted"] = np.asarray(rows.predicted, np.int32)
        arrays[f"{code}/ids"] = np.asarray(rows.ids, dtype=np.str_)
        if rows.confidence is not None:
            arrays[f"{code}/confidence"] = np.asarray(rows.confidence, np.float32)
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
    return Predictions(gold, predicted, ids, arrays.get(f"{code}/confidence"))
