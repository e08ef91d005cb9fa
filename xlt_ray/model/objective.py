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
    the task whatever rows it is computed on.
    """

    def __init__(self, network: Network, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Map a batch with `label` (rows,) int64 and `weight`, `share` (rows,) float32 to a scalar."""
        features = self.network.transform(self.network.features(batch), batch.get("language"))
        losses = functional.cross_entropy(
            self.network.classify(features), batch["label"], reduction="none", label_smoothing=self.label_smoothing
        )
        total = (losses * batch["weight"]).sum()
        for term in self.network.terms.values():
            total = total + (term(self.network, batch, features) * batch["share"]).sum()
        return total
