"""A bundle as teacher: whether it can teach a run, and what it has of texts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open

from xlt_ray import tasks, techniques
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.model import bundles
from xlt_ray.model.network import HEAD, Network, fingerprint, is_whole, whole_again
from xlt_ray.techniques.technique import Available, Compute

NEEDED = {"encoder", "experiment", "labels", "max_length", "pooling", "prefix", "sha256"}  # in a bundle.json


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
        return bundles.verified(self.place, self.folder, NEEDED)

    def faults(self, available: Available, answers: bool) -> Iterator[str]:
        """Yield why it cannot teach a run its features, or what it answers; raises InputError as `content` does."""
        experiment, content = available.experiment, self.content
        if HEAD not in content["sha256"]:
            yield (
                f"{self.place}: the bundle {self.folder} learned no task (training.method: adapt); give one that did, "
                f"or go on from it, with network.init={self.folder}"
            )
            return
        learned = content["experiment"].get("corpus", {}).get("text_pair")
        own, pairs = ("pairs of texts" if one else "single texts" for one in (experiment.corpus.text_pair, learned))
        if own != pairs:
            yield (
                f"{self.place}: the bundle {self.folder} learned from {pairs}, and the run's corpus has {own} "
                f"(corpus.text_pair); give a bundle of {own}"
            )
        if answers:
            yield from self._other_answers(experiment.task, available.labels)
        if not is_whole(content):
            yield from self._without_encoder()

    def _other_answers(self, task: str, labels: Sequence[str]) -> Iterator[str]:
        """Yield why what it answers is not what a run with this task and these labels asks."""
        content = self.content
        learned, own = content["experiment"].get("task", tasks.DEFAULT), content["labels"]
        if learned != task:
            yield f"{self.place}: the bundle {self.folder} learned task: {learned}, not {task}; give one of {task}"
        elif own != list(labels):
            apart = sorted(set(own) ^ set(labels))
            shown = f"{', '.join(apart[:5])} only in one of the two" if apart else "the same in another order"
            remedy = "give one of the same" if apart else f"set corpus.labels to [{', '.join(own)}]"
            yield f"{self.place}: the bundle {self.folder} has other labels ({shown}); {remedy}, or learn features"
        if content.get("readings"):
            yield (
                f"{self.place}: the bundle {self.folder} reads a text in several ways, which are not made here; "
                "take one that reads texts as they stand, or learn features"
            )

    def _without_encoder(self) -> Iterator[str]:
        """Yield why the encoder that it holds changes to is not there."""
        config = build(self.content["experiment"], place=f"{self.folder / 'bundle.json'}: experiment").network
        remedy = f"bring that back, or train the teacher again with {whole_again(self.content)}"
        try:
            found = fingerprint(config)
        except InputError as error:
            yield f"{self.place}: the bundle {self.folder} holds changes to an encoder, and {error} ({remedy})"
            return
        if found != self.content["encoder"]:
            yield (
                f"{self.place}: the bundle {self.folder} holds changes to the encoder {self.content['encoder']}, but "
                f"{config.init} is now {found}; {remedy}"
            )

    def width(self) -> int | None:
        """Return how many numbers its features are; None where its head cannot be read, which `content` refuses."""
        with contextlib.suppress(OSError, SafetensorError), safe_open(self.folder / HEAD, "pt") as head:
            return int(head.get_slice("weight").get_shape()[1])
        return None

    def teach(self, compute: Compute, tables: Mapping[str, pa.Table], answers: bool) -> Mapping[str, np.ndarray]:
        """Return its features of texts by key, (rows, width) float32, or its logits, (rows, classes).

        To be called with the same on all workers, which compute together. Features are kept by content.
        """
        experiment, built = techniques.restore(self.folder, self.content)
        own = {"init": str(self.folder), "revision": None} if is_whole(self.content) else {}
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
