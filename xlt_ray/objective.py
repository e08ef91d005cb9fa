"""The training objective in one forward, so that DDP can wrap it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from xlt_ray.network import Network


class Objective(nn.Module):
    """Sum the cross-entropy of a batch's rows, each times its `weight` (0: a row that only keeps workers in step)."""

    def __init__(self, network: Network, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Map a batch with `label` (rows,) int64 and `weight` (rows,) float32 to its summed loss, a scalar."""
        losses = functional.cross_entropy(
            self.network(batch), batch["label"], reduction="none", label_smoothing=self.label_smoothing
        )
        return (losses * batch["weight"]).sum()
