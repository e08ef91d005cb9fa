"""Cache features of texts by content, so that no text is encoded twice by the same encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from xlt_ray import durable
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.arrow import column_digest
from xlt_ray.model import network
from xlt_ray.model.precision import BROKEN

Features = Mapping[str, np.ndarray]  # (rows, width) float32 by name of a table

CHUNK = 1024  # rows that are encoded at once: the unit of progress and of the cache


def cache_file(cache_dir: str, table: pa.Table, settings: Mapping[str, str | int]) -> Path:
    """Return the file of a table's features, named by what they depend on: encoder, settings and every byte of text."""
    key = hashlib.sha256(repr(sorted(settings.items())).encode())
    for column in ("text", "text_pair"):
        if column in table.column_names:
            key.update(column_digest(table[column]))
    return Path(cache_dir).expanduser() / "features" / f"{key.hexdigest()[:32]}.npy"


def read(file: Path) -> np.ndarray | None:
    """Open cached features, (rows, width) float32, mapped from disk; None where there are none."""
    return np.load(file, mmap_mode="r", allow_pickle=False) if file.is_file() else None


def write(file: Path, features: np.ndarray) -> None:
    """Write features whole or not at all, as other runs may be reading and writing the same file."""
    with durable.publishing(file) as draft, draft.open("wb") as stream:
        np.save(stream, features, allow_pickle=False)


def refuse_broken(found: np.ndarray, precision: str, init: str) -> None:
    """Raise FloatingPointError where features computed in a precision by the encoder `init` are no numbers."""
    if not np.isfinite(found).all():
        raise FloatingPointError(
            f"features computed in {precision} by {init!r} as it is are no numbers; "
            + (BROKEN if precision == "float32" else "set training.precision=float32")
        )


@dataclass(frozen=True)
class Pieces:
    """Tables cut into pieces: the `files` (name of table -> in order of its rows) and the piece that each is of."""

    files: dict[str, list[Path]]
    tables: dict[Path, pa.Table]

    @classmethod
    def of(cls, experiment: Experiment, tables: Mapping[str, pa.Table], encoder: str, precision: str) -> Pieces:
        """Cut tables whose features an encoder of this identity computes as an experiment has it, in a precision."""
        settings: dict[str, str | int] = {
            "encoder": encoder,
            "prefix": network.prefix(experiment.network),
            "pooling": experiment.network.pooling,
            "max_length": experiment.network.max_length,
            "precision": precision,
        }
        files: dict[str, list[Path]] = {}
        found: dict[Path, pa.Table] = {}
        for name, table in tables.items():
            files[name] = []
            for start in range(0, table.num_rows, CHUNK):
                piece = table.slice(start, CHUNK).select([c for c in ("text", "text_pair") if c in table.column_names])
                file = cache_file(experiment.corpus.cache_dir, piece, settings)
                files[name].append(file)
                found[file] = piece
        return cls(files, found)

    def missing(self) -> dict[Path, pa.Table]:
        """Return the pieces that are not cached."""
        return {file: piece for file, piece in self.tables.items() if not file.is_file()}

    def read(self) -> dict[str, np.ndarray]:
        """Return the features of all tables that have rows, once no piece is missing."""
        return {
            name: np.concatenate([np.asarray(read(file)) for file in files])
            for name, files in self.files.items()
            if files
        }
