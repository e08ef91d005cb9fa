"""Compute features of the frozen encoder on Ray actors, and keep them by content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.arrow import column_digest
from xlt_ray.evaluation import evaluate
from xlt_ray.events import OnEvent
from xlt_ray.model import encoders, network
from xlt_ray.model.precision import BROKEN, choose_precision

Features = Mapping[str, np.ndarray]

CHUNK = 1024  # rows an actor embeds at once: the unit of progress and of the cache


def cache_file(cache_dir: str, table: pa.Table, settings: Mapping[str, str | int]) -> Path:
    """Name the file of a table's features by what they depend on: encoder, its settings, and every byte of text."""
    key = hashlib.sha256(repr(sorted(settings.items())).encode())
    for column in ("text", "text_pair"):
        if column in table.column_names:
            key.update(column_digest(table[column]))
    return Path(cache_dir).expanduser() / "features" / f"{key.hexdigest()[:32]}.npy"


def read(file: Path) -> np.ndarray | None:
    """Open cached features, (rows, width) float32, mapped from disk; None where there are none."""
    return np.load(file, mmap_mode="r", allow_pickle=False) if file.is_file() else None


def write(file: Path, features: np.ndarray) -> None:
    """Keep features; whole or not at all, as other runs may be reading and writing the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, features, allow_pickle=False)
        os.replace(name, file)
    finally:
        Path(name).unlink(missing_ok=True)


class Embedder:
    """An actor that keeps a frozen encoder and turns rows into features."""

    def __init__(self, experiment: dict[str, Any]) -> None:
        self.experiment = Experiment.model_validate(experiment)
        torch.set_num_threads(max(1, int(self.experiment.resources.cpus_per_worker)))
        self.net, self.tokenize, _ = network.build(self.experiment.network, 1, seed=0)
        self.device = torch.device("cuda" if self.experiment.resources.gpus_per_worker else "cpu")
        self.net.to(self.device).eval().requires_grad_(False)

    def precision(self) -> tuple[str, list[str]]:
        """Resolve the precision where the work is done, and say why not bfloat16; the driver may be another machine."""
        notes: list[str] = []
        asked, longest = self.experiment.training.precision, self.experiment.network.max_length
        return choose_precision(asked, self.net, longest, notes.append), notes

    def embed(self, table: pa.Table, precision: str) -> np.ndarray:
        """Compute the features of a table's rows, (rows, width) float32."""
        rows, budget = np.arange(table.num_rows), self.experiment.evaluation.tokens_per_step
        inputs = evaluate.Inputs(self.tokenize, precision, budget)
        found = evaluate.outputs(self.net.features, self.device, table, rows, inputs)
        if not np.isfinite(found).all():
            raise FloatingPointError(
                f"features computed in {precision} by {self.experiment.network.init!r} as it is are no numbers; "
                + (BROKEN if precision == "float32" else "set training.precision=float32")
            )
        return found


def features(
    experiment: Experiment, tables: Mapping[str, pa.Table], on_event: OnEvent
) -> tuple[dict[str, np.ndarray], str]:
    """Embed the rows of tables, in parallel and each text only ever once; return (features by name, precision).

    What an earlier run of the same encoder and settings computed is read from `corpus.cache_dir`.
    """
    actors: list[Any] = []
    asked = experiment.resources

    def actor(index: int) -> Any:
        while len(actors) <= index:
            remote: Any = ray.remote(Embedder)
            remote = remote.options(
                num_cpus=asked.cpus_per_worker,
                num_gpus=asked.gpus_per_worker,
                max_restarts=asked.max_failures,
                max_task_retries=asked.max_failures,
            )
            actors.append(remote.remote(experiment.model_dump(mode="json", exclude={"tracking"})))
        return actors[index]

    encoder = encoders.fingerprint(network.encoder_source(experiment.network), experiment.network.revision)
    precision = _known_precision(experiment, encoder)
    if not precision:
        precision, notes = ray.get(actor(0).precision.remote())
        for note in notes:
            on_event({"stage": "embed", "note": note})
        kept = _precision_note(experiment, encoder)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(precision, encoding="utf-8")
    files, missing = _pieces(experiment, tables, encoder, precision)
    done = total = sum(table.num_rows for table in tables.values())
    done -= sum(piece.num_rows for _, piece in missing)
    on_event({"stage": "embed", "done": done, "total": total})
    waiting: dict[Any, tuple[Path, int]] = {}
    for number, (file, piece) in enumerate(missing):
        done += _collect(waiting, limit=2 * asked.workers - 1)
        waiting[actor(number % asked.workers).embed.remote(piece.combine_chunks(), precision)] = (file, piece.num_rows)
        on_event({"stage": "embed", "done": done, "total": total})
    while waiting:
        done += _collect(waiting, limit=len(waiting) - 1)
        on_event({"stage": "embed", "done": done, "total": total})
    for handle in actors:
        ray.kill(handle)
    return {name: np.concatenate([read(file) for file in parts]) for name, parts in files.items()}, precision


def _collect(waiting: dict[Any, tuple[Path, int]], limit: int) -> int:
    # keep what actors have finished until at most `limit` pieces are under way: memory holds no more than that
    rows = 0
    while len(waiting) > limit:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        file, count = waiting.pop(ready[0])
        write(file, ray.get(ready[0]))
        rows += count
    return rows


def _pieces(
    experiment: Experiment, tables: Mapping[str, pa.Table], encoder: str, precision: str
) -> tuple[dict[str, list[Path]], list[tuple[Path, pa.Table]]]:
    settings: dict[str, str | int] = {
        "encoder": encoder,
        "prefix": network.prefix(experiment.network),
        "pooling": experiment.network.pooling,
        "max_length": experiment.network.max_length,
        "precision": precision,
    }
    files: dict[str, list[Path]] = {}
    missing: dict[Path, pa.Table] = {}
    for name, table in tables.items():
        for start in range(0, table.num_rows, CHUNK):
            piece = table.slice(start, CHUNK).select([c for c in ("text", "text_pair") if c in table.column_names])
            file = cache_file(experiment.corpus.cache_dir, piece, settings)
            files.setdefault(name, []).append(file)
            if not file.is_file():
                missing[file] = piece
    return files, list(missing.items())


def _precision_note(experiment: Experiment, encoder: str) -> Path:
    # a measurement could come out otherwise next time and then no cached feature would be found again
    kind = "gpu" if experiment.resources.gpus_per_worker else "cpu"
    digest = hashlib.sha256(encoder.encode()).hexdigest()[:16]
    name = f"precision-{experiment.training.precision}-{kind}-{digest}.txt"
    return Path(experiment.corpus.cache_dir).expanduser() / "features" / name


def _known_precision(experiment: Experiment, encoder: str) -> str:
    if experiment.training.precision == "float32":
        return "float32"
    note = _precision_note(experiment, encoder)
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""
