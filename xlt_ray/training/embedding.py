"""Compute features of the frozen encoder on Ray actors, and cache them by content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from xlt_ray import durable
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.arrow import column_digest
from xlt_ray.evaluation import evaluate
from xlt_ray.events import OnEvent, counting
from xlt_ray.model import encoders, network
from xlt_ray.model.precision import BROKEN, choose_precision

Features = Mapping[str, np.ndarray]

CHUNK = 1024  # rows an actor embeds at once: the unit of progress and of the cache


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


class Embedder:
    """A Ray actor that computes features with a frozen encoder."""

    def __init__(self, experiment: dict[str, Any]) -> None:
        self.experiment = Experiment.model_validate(experiment)
        torch.set_num_threads(max(1, int(self.experiment.resources.cpus_per_worker)))
        self.net, self.tokenize, _ = network.build(self.experiment.network, 1, seed=0)
        self.device = torch.device("cuda" if self.experiment.resources.gpus_per_worker else "cpu")
        self.net.to(self.device).eval().requires_grad_(False)

    def precision(self) -> tuple[str, list[str]]:
        """Return the precision to compute in on this machine, not the driver's, and notes on why it is not bfloat16."""
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
    """Embed the rows of tables in parallel; return ((rows, width) float32 features by name of table, precision).

    What an earlier run of the same encoder and settings computed is read from `corpus.cache_dir`, and what is computed
    is written there piece by piece, so that a call after a kill computes only the rest.
    """
    actors: list[Any] = []
    workers = experiment.resources.workers
    report = counting(on_event, "embed")
    encoder = encoders.fingerprint(network.encoder_source(experiment.network), experiment.network.revision)
    kept = _precision_file(experiment, encoder)
    precision = "float32" if experiment.training.precision == "float32" else ""
    if not precision and kept.is_file():
        precision = kept.read_text(encoding="utf-8").strip()
    if not precision:
        actors.append(_actor(experiment))
        precision, notes = ray.get(actors[0].precision.remote())
        for note in notes:
            on_event({"stage": "embed", "note": note})
        durable.write(kept, precision)
    files, missing = _pieces(experiment, tables, encoder, precision)
    done = total = sum(table.num_rows for table in tables.values())
    done -= sum(piece.num_rows for _, piece in missing)
    report(done, total)
    actors += [_actor(experiment) for _ in range(min(workers, len(missing)) - len(actors))]
    waiting: dict[Any, tuple[Path, int]] = {}
    for number, (file, piece) in enumerate(missing):
        done += _collect(waiting, limit=2 * workers - 1)
        waiting[actors[number % workers].embed.remote(piece.combine_chunks(), precision)] = (file, piece.num_rows)
        report(done, total)
    while waiting:
        done += _collect(waiting, limit=len(waiting) - 1)
        report(done, total)
    for actor in actors:
        ray.kill(actor)
    return {name: np.concatenate([read(file) for file in parts]) for name, parts in files.items()}, precision


def _actor(experiment: Experiment) -> Any:
    asked = experiment.resources
    remote: Any = ray.remote(Embedder)
    options = remote.options(
        num_cpus=asked.cpus_per_worker,
        num_gpus=asked.gpus_per_worker,
        max_restarts=asked.max_failures,
        max_task_retries=asked.max_failures,
    )
    return options.remote(experiment.model_dump(mode="json", exclude={"tracking"}))


def _collect(waiting: dict[Any, tuple[Path, int]], limit: int) -> int:
    """Write what actors have finished until at most `limit` pieces, which memory holds, remain; return rows written."""
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
    """Cut tables into pieces; return (cache files by name of table, the pieces that are not cached)."""
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


def _precision_file(experiment: Experiment, encoder: str) -> Path:
    """Return the file that keeps the precision: measured anew it might differ, and no cached feature would be found."""
    kind = "gpu" if experiment.resources.gpus_per_worker else "cpu"
    digest = hashlib.sha256(encoder.encode()).hexdigest()[:16]
    name = f"precision-{experiment.training.precision}-{kind}-{digest}.txt"
    return Path(experiment.corpus.cache_dir).expanduser() / "features" / name
