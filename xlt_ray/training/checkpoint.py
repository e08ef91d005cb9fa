"""Save and load checkpoints, from which a run resumes bit by bit as if it had not been stopped.

Frozen weights are left out: they are loaded again, unchanged, from `network.init`. Generators are left out too, because
none carries state: draws are seeded by (seed, epoch) and dropout by (seed, update, rank), so that the progress alone
brings back every random number (see docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xlt_ray.model.network import Weights, restore_weights, trained

FILE = "training.pt"


@dataclass
class Progress:
    """How far a run is, and the sums behind the losses it has still to report; equal on all ranks when saved."""

    epoch: int = 0  # epochs finished
    update: int = 0  # updates finished in the current epoch
    step: int = 0  # updates finished in all
    precision: str = ""
    window_loss: float = 0.0  # summed over the rows since the last reported loss
    window_rows: float = 0.0
    epoch_loss: float = 0.0
    epoch_rows: float = 0.0
    best_score: float = -1.0
    reported: list[dict[str, float]] = field(default_factory=list)  # losses during epochs
    history: list[dict[str, float]] = field(default_factory=list)  # one row an epoch
    facts: dict[str, float] = field(default_factory=dict)  # technique/figure, of `calibrate`


def save(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: Weights,
    best: Weights,
) -> None:
    """Write one checkpoint file into `folder`."""
    content = {
        "network": trained(network),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "average": average,
        "best": best,
    }
    torch.save(content, folder / FILE)


def load(folder: Path) -> dict[str, Any]:
    """Read a checkpoint, for `restore`, into the memory of the CPU, since of a sharded optimiser a part is wanted."""
    content: dict[str, Any] = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    return content | {"progress": Progress(**content["progress"])}


def restore(content: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Weights, Weights]:
    """Restore network and optimiser, in place, from what was loaded; return (average, best)."""
    restore_weights(network, content.pop("network"))  # they need not be held twice
    optimizer.load_state_dict(content["optimizer"])
    device = next(network.parameters()).device
    average, best = ({name: one.to(device) for name, one in content[key].items()} for key in ("average", "best"))
    return average, best
