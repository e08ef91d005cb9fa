"""Which texts a model has been trained on: digests that a bundle keeps, so that no later run is measured on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from xlt_ray.corpora.corpus import Corpus, first_of
from xlt_ray.corpora.overlap import pieces, texts_as_seen
from xlt_ray.errors import InputError

FILE = "seen.npy"


def digests(tables: Iterable[pa.Table]) -> np.ndarray:
    """Return the digests of all rows' texts as encoders see them, (texts,) uint64, sorted, each once."""
    found = [np.unique(_digests(piece)) for table in tables for piece in pieces(table)]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))


def _digests(table: pa.Table) -> np.ndarray:
    from pandas.util import hash_array

    texts = texts_as_seen(table).to_numpy(zero_copy_only=False) if table.num_rows else np.empty(0, object)
    return np.asarray(hash_array(texts.astype(object), categorize=False))


def together(*parts: np.ndarray | None) -> np.ndarray:
    """Return digests of several models, or of what they read, as those of one."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(part for part in parts if part is not None)]))


def of(init: str) -> np.ndarray | None:
    """Return what the bundle that `network.init` is, or is the encoder of, was trained on; None where it is not known.

    Raises InputError where the file cannot be read.
    """
    folder = Path(init).parent if Path(init).name == "encoder" else Path(init)
    return load(folder) if (folder / "bundle.json").is_file() else None


def load(folder: Path) -> np.ndarray | None:
    """Return the digests that a bundle keeps, None for one of before they were kept."""
    if not (folder / FILE).is_file():
        return None
    try:
        return np.asarray(np.load(folder / FILE, allow_pickle=False), np.uint64)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / FILE}: cannot be read ({error}); copy the bundle again") from None


def faults(corpus: Corpus, tested: Collection[str], known: np.ndarray, model: str) -> Iterator[str]:
    """Yield the faults of test rows, of each of some languages, whose texts a model was trained on."""
    for code in sorted(tested):
        table = corpus.table("test", code)
        parts = [pa.array(np.isin(_digests(piece), known)) for piece in pieces(table)]
        yield from first_of(
            corpus,
            "test",
            code,
            pa.chunked_array(parts, pa.bool_()),
            f"the model that {model} was trained on this text",
            "measure on other rows; or train that model again without them (corpus.overlap: drop_train leaves out what "
            "stands in test of its own corpus)",
        )
