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
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.features import Pieces, refuse_broken
from xlt_ray.events import OnEvent, counting
from xlt_ray.model import network
from xlt_ray.model.precision import choose_precision
from xlt_ray.training import cluster


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
        refuse_broken(found, precision, self.experiment.network.init)
        return found


def features(
    experiment: Experiment, tables: Mapping[str, pa.Table], on_event: OnEvent
) -> tuple[dict[str, np.ndarray], str]:
    """Embed the rows of tables in parallel; return ((rows, width) float32 features by name of table, precision).

    What an earlier run of the same encoder and settings computed is read from `corpus.cache_dir`, or from the folder
    `features` of a `storage` at a URL, and what is computed is written there piece by piece, so that a call after a
    kill computes only the rest.
    """
    actors: list[Any] = []
    asked = experiment.resources
    room = cluster.slots(1, asked.cpus_per_worker, asked.gpus_per_worker)
    workers = min(asked.most, max(asked.fewest, room))
    report = counting(on_event, "embed")
    encoder = network.fingerprint(experiment.network)
    kept = _precision_file(experiment, encoder)
    precision = "float32" if experiment.training.precision == "float32" else ""
    if not precision and durable.sealed(kept):
        precision = kept.read_text(encoding="utf-8").strip()
    if not precision:
        actors.append(_actor(experiment))
        precision, notes = ray.get(actors[0].precision.remote())
        for note in notes:
            on_event({"stage": "embed", "note": note})
        durable.write(kept, precision)
        durable.seal(kept)
    pieces = Pieces.of(experiment, tables, encoder, precision)
    missing = pieces.missing()
    done = total = sum(table.num_rows for table in tables.values())
    done -= sum(piece.num_rows for piece in missing.values())
    report(done, total)
    actors += [_actor(experiment) for _ in range(min(workers, len(missing)) - len(actors))]
    waiting: dict[Any, tuple[Path, int]] = {}
    for number, (file, piece) in enumerate(missing.items()):
        done += _collect(pieces, waiting, limit=2 * workers - 1)
        waiting[actors[number % workers].embed.remote(piece.combine_chunks(), precision)] = (file, piece.num_rows)
        report(done, total)
    while waiting:
        done += _collect(pieces, waiting, limit=len(waiting) - 1)
        report(done, total)
    for actor in actors:
        ray.kill(actor)
    return pieces.read(), precision


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


def _collect(pieces: Pieces, waiting: dict[Any, tuple[Path, int]], limit: int) -> int:
    """Write what actors have finished until at most `limit` pieces, which memory holds, remain; return rows written."""
    rows = 0
    while len(waiting) > limit:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        file, count = waiting.pop(ready[0])
        pieces.keep(file, ray.get(ready[0]))
        rows += count
    return rows


def _precision_file(experiment: Experiment, encoder: str) -> Path:
    """Return the file that keeps the precision: measured anew it might differ, and no cached feature would be found."""
    kind = "gpu" if experiment.resources.gpus_per_worker else "cpu"
    digest = hashlib.sha256(encoder.encode()).hexdigest()[:16]
    name = f"precision-{experiment.training.precision}-{kind}-{digest}.txt"
    return Path(experiment.corpus.cache_dir).expanduser() / "features" / name
