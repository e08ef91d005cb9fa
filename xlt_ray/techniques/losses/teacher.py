"""A bundle as teacher: whether it can teach a run, and what it has of texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open

from xlt_ray import tasks, techniques
from xlt_ray.errors import InputError
from xlt_ray.model.network import HEAD, Network
from xlt_ray.techniques.technique import Available, Compute


@dataclass(frozen=True)
class Teacher:
    """The bundle in a folder, which `place`, a key of the configuration, names."""

    place: str
    folder: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        """What its bundle.json holds; raises InputError where there is none, or it is damaged."""
        file = self.folder / "bundle.json"
        if not file.is_file():
            raise InputError(
                f"{self.place}: {self.folder} is no bundle (no bundle.json); give the folder `bundle` of a finished run"
            )
        try:
            content = dict(json.loads(file.read_text(encoding="utf-8")))
            content["sha256"], content["labels"], content["experiment"], content["pooling"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.place}: {file} is damaged ({error}); copy the bundle again") from None
        return content

    def faults(self, available: Available, answers: bool) -> Iterator[str]:
        """Yield why it cannot teach a run its features, or what it answers; raises InputError as `content` does."""
        experiment, content = available.experiment, self.content
        if HEAD not in content["sha256"]:
            yield (
                f"{self.place}: the bundle {self.folder} learned no task (training.method: adapt); give one that did, "
                f"or go on from it, with network.init={self.folder}"
            )
        elif answers:
            task, labels = content["experiment"].get("task", tasks.DEFAULT), content["labels"]
            if (task, labels) != (experiment.task, list(available.labels)):
                yield (
                    f"{self.place}: the bundle {self.folder}, whose task: {task} has the labels "
                    f"{', '.join(labels[:5])}, answers nothing that the run asks, whose task: {experiment.task} has "
                    f"{', '.join(available.labels[:5])}; take one of the same in the same order, or learn features"
                )
            if content.get("readings"):
                yield (
                    f"{self.place}: the bundle {self.folder} reads a text in several ways, which are not made here; "
                    "take one that reads texts as they stand, or learn features"
                )

    def width(self) -> int | None:
        """Return how many numbers its features are; None where `faults` has something to say of its head."""
        if not (self.folder / HEAD).is_file():
            return None
        with safe_open(self.folder / HEAD, "pt") as head:
            return int(head.get_slice("weight").get_shape()[1])

    def teach(self, compute: Compute, tables: Mapping[str, pa.Table], answers: bool) -> Mapping[str, np.ndarray]:
        """Return its features of texts by key, (rows, width) float32, or its logits, (rows, classes).

        To be called with the same on all workers, which compute together. Features are kept by content.
        """
        experiment, built = techniques.restore(self.folder, self.content)
        whole = (self.folder / "encoder").is_dir()  # else it holds changes to the encoder that its run began with
        own = {"init": str(self.folder), "revision": None} if whole else {}
        features = compute.by(experiment.network.model_copy(update=own), built)(tables)
        if not answers:
            return features
        return {key: logits(built.network, rows, built.network.index(key)) for key, rows in features.items()}


@torch.no_grad()
def logits(network: Network, features: np.ndarray, language: int) -> np.ndarray:
    """Return what a network answers to texts of a language by their features, (rows, width): (rows, classes) float32.

    Without dropout, so that no random number is drawn, whether the network is being trained or not.
    """
    rows = torch.from_numpy(np.asarray(features, dtype=np.float32)).to(network.head.weight.device)
    known = torch.full((len(rows),), language, device=rows.device)
    return np.asarray(network.head(network.transform(rows, known)).cpu().numpy())
