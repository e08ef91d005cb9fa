"""A checkpoint: all that training changes and nothing else, read without unpickling code, for its own network alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from xlt_ray.errors import InputError
from xlt_ray.model.network import restore_weights, trained
from xlt_ray.training import checkpoint
from xlt_ray.training.checkpoint import Progress


class Small(nn.Module):
    """One frozen and one trained layer, a buffer that is saved and one that is not."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.frozen, self.trained = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, width)
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def stepped(network: Small) -> torch.optim.Optimizer:
    """Make an optimiser that has taken two steps, so that it has a state to lose."""
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        network.trained(torch.ones(2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_what_is_trained_is_taken_and_what_is_frozen_is_not() -> None:
    assert set(trained(Small())) == {"trained.weight", "trained.bias", "kept"}


def test_saved_and_loaded_is_the_same_network_optimiser_and_place(tmp_path: Path) -> None:
    network = Small()
    optimizer = stepped(network)
    network.get_buffer("kept").add_(1)
    progress = Progress(
        epoch=1, update=3, step=9, precision="bfloat16", window_loss=0.1, history=[{"dev/accuracy": 0.5}]
    )
    average, best = {"trained.bias": torch.ones(3)}, {"kept": torch.full((2,), 7.0)}
    checkpoint.save(tmp_path, network, optimizer, progress, average, best)
    assert [file.name for file in tmp_path.iterdir()] == ["training.pt"]

    other = Small()
    frozen = other.frozen.weight.clone()
    other_optimizer = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=9.0)
    content = checkpoint.load(tmp_path)
    assert content["progress"] == progress
    found = checkpoint.restore(content, other, other_optimizer)
    assert torch.equal(found[0]["trained.bias"], average["trained.bias"])
    assert torch.equal(found[1]["kept"], best["kept"])
    assert torch.equal(other.frozen.weight, frozen)
    assert all(torch.equal(a, b) for a, b in zip(network.trained.parameters(), other.trained.parameters(), strict=True))
    assert torch.equal(other.kept, network.kept)
    for one, two in ((network, optimizer), (other, other_optimizer)):
        one.trained(torch.ones(2)).sum().backward()
        two.step()
    assert torch.equal(network.trained.weight, other.trained.weight)


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"network": Small()}, tmp_path / "training.pt")
    with pytest.raises(Exception, match="weights_only"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "broadcastable"])
def test_weights_of_another_network_are_refused_before_any_is_changed(change: str) -> None:
    network = Small()
    weights = {name: torch.ones_like(tensor) for name, tensor in trained(network).items()}
    if change == "missing":
        del weights["trained.bias"]
    elif change == "unknown":
        weights["trained.extra"] = torch.ones(1)
    else:
        weights["trained.bias"] = torch.ones(4 if change == "shape" else 1)
    before = network.trained.weight.clone()
    with pytest.raises(
        InputError, match=r"checkpoint: its weights are not this network's \(trained.(bias|extra) ...\)"
    ):
        restore_weights(network, weights)
    assert torch.equal(network.trained.weight, before)


def test_restoring_copies_and_does_not_share() -> None:
    network = Small()
    weights = {name: torch.ones_like(tensor) for name, tensor in trained(network).items()}
    restore_weights(network, weights)
    weights["trained.bias"] += 1
    assert torch.equal(network.trained.bias, torch.ones(3))
    assert network.trained.weight.requires_grad
