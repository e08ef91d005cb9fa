"""Which texts a model has been trained on: digests that a bundle keeps, so that no later run is measured on them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.corpora.corpus import Corpus, first_of
from xlt_ray.corpora.overlap import as_seen, pieces
from xlt_ray.errors import InputError

FILE = "seen.npy"
REMEDY = (
    "measure on other rows; or train that model again without them (corpus.overlap: drop_train leaves out what stands "
    "in test of its own corpus)"
)


def digests(tables: Iterable[pa.Table]) -> np.ndarray:
    """Return the digests of all rows' texts as encoders see them, (texts,) uint64, sorted, each once.

    A row of two texts has one for both together; one whose second text is empty counts as a single text.
    """
    found = [np.unique(_digests(piece)[0]) for table in tables for piece in pieces(table)]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))


def _digests(table: pa.Table) -> list[np.ndarray]:
    """Return digests of rows, (rows,) each: of the whole row, and where there are pairs of either text too."""
    columns = [as_seen(table[name]) for name in ("text", "text_pair") if name in table.column_names]
    alone = [_hashed(column) for column in columns]
    if len(columns) == 1:
        return alone
    joined = _hashed(pc.binary_join_element_wise(*columns, pa.scalar("\x1f", pa.large_string())))
    single = pc.equal(columns[1], "").to_numpy(zero_copy_only=False) if table.num_rows else np.empty(0, bool)
    return [np.where(single, alone[0], joined), *alone]


def _hashed(texts: pa.ChunkedArray) -> np.ndarray:
    from pandas.util import hash_array

    return np.asarray(hash_array(np.array(texts.to_pylist(), dtype=object), categorize=False), np.uint64)


def _among(found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return which of some digests are among sorted ones, (digests,) bool."""
    if not len(known):
        return np.zeros(len(found), dtype=bool)
    places = np.searchsorted(known, found).clip(max=len(known) - 1)
    return np.asarray(known[places] == found)


def together(*parts: np.ndarray | None) -> np.ndarray:
    """Return digests of several models, or of what they read, as those of one."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(part for part in parts if part is not None)]))


def load(folder: Path) -> np.ndarray | None:
    """Return the digests that a bundle keeps, None for one of before they were kept.

    Raises InputError where the bundle names a file that is not there or cannot be read.
    """
    try:
        if FILE not in json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["sha256"]:
            return None
        return np.asarray(np.load(folder / FILE, allow_pickle=False), np.uint64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / FILE}: cannot be read ({error}); copy the bundle again") from None


def faults(
    corpus: Corpus, tested: Collection[str], known: np.ndarray, model: str, remedy: str = REMEDY
) -> Iterator[str]:
    """Yield the faults of test rows, of each of some languages, whose texts a model is trained on."""
    for code in sorted(tested):
        table = corpus.table("test", code)
        parts = [pa.array(np.logical_or.reduce([_among(one, known) for one in _digests(p)])) for p in pieces(table)]
        yield from first_of(
            corpus,
            "test",
            code,
            pa.chunked_array(parts, pa.bool_()),
            f"the model that {model} is trained on this text",
            remedy,
        )
