"""Cache features of texts by content, so that no text is encoded twice by the same encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.implementations.dirfs import DirFileSystem

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
    """Open cached features, (rows, width) float32, mapped from disk; None where there are none, or a part of them."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):  # torn, by a full disk or a lost power supply; writing takes its place
        return None


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


def _shared(storage: str) -> DirFileSystem | None:
    """Open the folder of features beside the runs of a storage; None where that is a directory."""
    if "://" not in storage or storage.startswith("file://"):
        return None
    files, path = fsspec.core.url_to_fs(f"{storage.rstrip('/')}/features")
    return DirFileSystem(path, files)


@dataclass(frozen=True)
class Pieces:
    """Tables cut into pieces: the `files` (name of table -> in order of its rows) and the piece that each is of.

    Where runs are stored at a URL, features are there too, in `shared`, so that no machine computes what another has
    for a run of the same storage.
    """

    files: dict[str, list[Path]]
    tables: dict[Path, pa.Table]
    shared: DirFileSystem | None = None

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
        return cls(files, found, _shared(experiment.storage))

    def missing(self) -> dict[Path, pa.Table]:
        """Return the pieces that are not cached, neither here nor where they are shared; those are fetched."""
        lacking = [file for file in self.tables if read(file) is None]
        if self.shared is not None and lacking:
            with suppress(Exception):  # of whatever file system; what is not fetched is computed
                self._fetch(self.shared, lacking)
            lacking = [file for file in lacking if read(file) is None]
        return {file: self.tables[file] for file in lacking}

    @staticmethod
    def _fetch(shared: DirFileSystem, lacking: Sequence[Path]) -> None:
        shared.fs.invalidate_cache()  # others may have added some
        there = {Path(name).name for name in shared.ls("", detail=False)}
        files = [file for file in lacking if file.name in there]
        with ExitStack() as stack:  # all at once, since each is a request
            drafts = [str(stack.enter_context(durable.publishing(file))) for file in files]
            shared.get([file.name for file in files], drafts)

    def keep(self, file: Path, found: np.ndarray) -> None:
        """Write the features of a piece, and share them."""
        write(file, found)
        if self.shared is not None:
            with suppress(Exception):  # of whatever file system; others compute it again
                self.shared.makedirs("", exist_ok=True)
                self.shared.put_file(str(file), file.name)

    def read(self) -> dict[str, np.ndarray]:
        """Return the features of all tables that have rows, once no piece is missing."""
        return {
            name: np.concatenate([np.asarray(read(file)) for file in files])
            for name, files in self.files.items()
            if files
        }
