"""The training objective in one forward, so that DDP can wrap it: the task's loss and what is added to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from xlt_ray.corpora.streams import LABELLED, UNLABELLED, Stream
from xlt_ray.model.network import Network

# What a network and its losses see of rows, by name. The encoder's inputs are (rows, tokens) int64: `input_ids`,
# `attention_mask` and, of some encoders, `token_type_ids`. Of every row, (rows,), there are `language` (int64, its
# place in `Network.languages`, -1 unknown), and in training besides
#
#   label     int64, 0 where there is none
#   weight    float32, of its label: 1 on average over the mixture; 0 where there is none
#   stream    int64: 0 LABELLED, 1 UNLABELLED, then those of terms; -1 of a row that only keeps workers in step
#   row       int64, its place in the table of its language; -1 of a labelled row
#
# and, one for all, `counts`, (streams,) float32: rows of the whole update in each stream; `progress`, a number 0 to 1.
Batch = Mapping[str, torch.Tensor]


class Outputs(NamedTuple):
    """What a network computes of a batch."""

    hidden: torch.Tensor  # (rows, tokens, width) float32, of the encoder's last layer
    pooled: torch.Tensor  # (rows, width)
    features: torch.Tensor  # (rows, width), after the steps of techniques
    logits: torch.Tensor  # (rows, classes)


class Term(nn.Module):
    """A loss beside the task's, which a technique returns from `loss_term`.

    `streams` are those whose rows it is computed on, of LABELLED and UNLABELLED. One that needs other rows has a
    `stream` of its own instead, which joins every update under its technique's name.
    """

    streams: tuple[str, ...] = (LABELLED, UNLABELLED)
    stream: Stream | None = None

    def forward(self, network: Network, batch: Batch, outputs: Outputs, mine: torch.Tensor) -> torch.Tensor:
        """Return a finite number for every row, (rows,); only those of `mine`, (rows,) bool, its streams', count.

        The mean over the rows of its streams in an update is added to the mean of the task's loss.
        """
        raise NotImplementedError


def own_streams(network: Network) -> dict[str, Stream]:
    """Return the streams that terms of a network have, by name; a batch numbers them from 2 on, in this order."""
    found = {name: getattr(term, "stream", None) for name, term in network.terms.items()}
    return {name: stream for name, stream in found.items() if stream is not None}


class Objective(nn.Module):
    """Sum the losses of a batch's rows: cross-entropy by `weight`, and terms of techniques, each as much as the task.

    With `head_alone` the task trains the head and whatever stands behind the pooled features, and the encoder learns
    from the terms alone.
    """

    def __init__(self, network: Network, label_smoothing: float = 0.0, head_alone: bool = False) -> None:
        super().__init__()
        self.network, self.label_smoothing, self.head_alone = network, label_smoothing, head_alone

    def forward(self, batch: Batch) -> torch.Tensor:
        """Map a batch to a scalar: the sum over its rows, of which the sum over an update is divided by its draws."""
        network, language = self.network, batch.get("language")
        hidden = network.encode(batch)
        pooled = network.pool(hidden, batch)
        features = network.transform(pooled, language)
        held = network.transform(pooled.detach(), language) if self.head_alone else features
        outputs = Outputs(hidden, pooled, features, network.classify(held))
        losses = functional.cross_entropy(
            outputs.logits, batch["label"], reduction="none", label_smoothing=self.label_smoothing
        )
        total = (losses * batch["weight"]).sum()
        if self.head_alone:  # DDP wants a gradient of every parameter, also where no row is a term's
            total = total + 0.0 * features.sum()
        for name, term in network.terms.items():
            mine, factor = self._share(name, batch)
            total = total + (term(network, batch, outputs, mine) * (mine * factor)).sum()
        return total

    def _share(self, name: str, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which rows are a term's, (rows,), and their factor: over an update, of as many as are labelled."""
        names, term = (LABELLED, UNLABELLED, *own_streams(self.network)), self.network.terms[name]
        asked = (name,) if name in names else getattr(term, "streams", Term.streams)
        places = torch.tensor([names.index(one) for one in asked], device=batch["stream"].device)
        factor = batch["counts"][0] / batch["counts"][places].sum().clamp(min=1)
        return torch.isin(batch["stream"], places), factor
