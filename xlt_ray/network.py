"""The network: an encoder, a pooling of its token features, and a linear head over labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xlt_ray import encoders
from xlt_ray.batching import MULTIPLE
from xlt_ray.config import InputError, NetworkConfig


class Network(nn.Module):
    """Classify texts: encode tokens, pool them to one vector, map it linearly to a score per label."""

    def __init__(self, encoder: Any, classes: int, pooling: str, seed: int = 0) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        settings = encoder.config
        self.dropout = nn.Dropout(getattr(settings, "hidden_dropout_prob", getattr(settings, "dropout_rate", 0.1)))
        # a generator of its own and none of nn.Linear's own numbers, so that building a network disturbs nothing
        self.head = nn.utils.skip_init(nn.Linear, settings.hidden_size, classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 0.02, generator=generator)
            self.head.bias.zero_()

    def features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Pool the encoder's last hidden states: (rows, tokens) token ids to (rows, width) float32."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
        hidden = self.encoder(**inputs).last_hidden_state.float()
        if self.pooling == "first":
            return hidden[:, 0]
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Score every label: a batch of (rows, tokens) tensors to (rows, classes) float32 logits."""
        pooled = self.dropout(self.features(batch))
        with torch.autocast(pooled.device.type, enabled=False):  # the head decides; it costs nothing in float32
            return self.head(pooled)


def prefix(config: NetworkConfig) -> str:
    """Say what is put before every text: as the configuration or the bundle states, else 'query: ' for E5 encoders."""
    if config.prefix is not None:
        return config.prefix
    if (bundle := Path(config.init) / "bundle.json").is_file():
        try:
            return str(json.loads(bundle.read_text(encoding="utf-8"))["prefix"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"network.init: {bundle} is damaged ({error}); copy the bundle again") from None
    # the name alone, as the folders above a local encoder say nothing about it
    return "query: " if "e5-" in Path(config.init).name.lower() else ""


def encoder_source(config: NetworkConfig) -> str:
    """Name what `encoders.load` is to load: a bundle written by an earlier run stands for the encoder inside it."""
    return str(Path(config.init) / "encoder") if (Path(config.init) / "bundle.json").is_file() else config.init


def build(config: NetworkConfig, classes: int, seed: int) -> tuple[Network, Any, str]:
    """Load a configuration's encoder and put a fresh head on it; return (network, tokenizer, encoder identity)."""
    encoder = encoders.load(encoder_source(config), config.revision)
    _check_length(encoder.model, config.max_length)
    network = Network(encoder.model, classes, config.pooling, seed)
    if config.dropout is not None:
        _set_dropout(network, config.dropout)
    freeze(network, config.freeze)
    return network, encoder.tokenizer, encoder.identity


def _check_length(encoder: nn.Module, asked: int) -> None:
    # encoders with relative positions have no such table and no such limit
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        room = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        room -= room % MULTIPLE  # batches are padded to multiples
        if asked > room:
            raise InputError(
                f"network.max_length: {asked} tokens, but the encoder has room for {room}; give {room} or less"
            )


def _set_dropout(network: Network, probability: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout", "attention_dropout"):  # T5 and ModernBERT keep that of their attention as a number
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def freeze(network: Network, parts: tuple[str | int, ...]) -> None:
    """Stop training of parts of the encoder: 'embeddings' (word embeddings), a number n (everything up to block n).

    Raises InputError where n is more blocks than the encoder has.
    """
    blocks = encoders.layers(network.encoder)
    for part in parts:
        if part == "embeddings":
            network.encoder.get_input_embeddings().requires_grad_(False)
        elif not 0 <= int(part) <= len(blocks):
            raise InputError(
                f"network.freeze: {part} blocks, but the encoder has {len(blocks)}; give 0 to {len(blocks)}"
            )
        else:
            trained = {id(p) for block in blocks[int(part) :] for p in block.parameters()}
            for parameter in network.encoder.parameters():
                if id(parameter) not in trained:
                    parameter.requires_grad_(False)
