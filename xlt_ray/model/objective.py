"""The training objective in one forward, so that DDP can wrap it: the task's loss and what is added to it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from xlt_ray.model.network import Network


class Objective(nn.Module):
    """Sum the losses of a batch's rows: cross-entropy by `weight`, terms of techniques by `share`.

    `weight` is that of a labelled row's label, 1 on average over the mixture, and 0 for a row that has none or only
    keeps workers in step; `share` sums over an update to its number of labelled rows, so that a term counts as much as
    the task whatever rows it is computed on. With `head_alone` the task trains the head and whatever stands behind the
    pooled features, and the encoder learns from the terms alone.
    """

    def __init__(self, network: Network, label_smoothing: float = 0.0, head_alone: bool = False) -> None:
        super().__init__()
        self.network, self.label_smoothing, self.head_alone = network, label_smoothing, head_alone

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Map a batch with `label` (rows,) int64 and `weight`, `share` (rows,) float32 to a scalar."""
        pooled = self.network.features(batch)
        features = self.network.transform(pooled, batch.get("language"))
        held = self.network.transform(pooled.detach(), batch.get("language")) if self.head_alone else features
        losses = functional.cross_entropy(
            self.network.classify(held), batch["label"], reduction="none", label_smoothing=self.label_smoothing
        )
        total = (losses * batch["weight"]).sum()
        for term in self.network.terms.values():
            total = total + (term(self.network, batch, features) * batch["share"]).sum()
        return total
