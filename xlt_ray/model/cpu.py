"""Dropout and attention that train faster on a CPU, for as long as training lasts.

On a CPU torch draws dropout masks value by value, on one thread: a fifth of an update of the bundled encoder. And its
fused attention is slow backwards there. Here a mask is cut from whole random words, sixteen bits a value, and attention
is two matrix products around a softmax. The distributions are the same; `benchmarks/training.py` measures the gain.
"""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from xlt_ray.model.network import Network

ATTENTION = "xlt_ray_cpu"  # its name among the attention functions of transformers
LEVELS = 2**16  # of a random number of sixteen bits
# Added to a score it masks it in either precision. Float32's own lowest number is -inf in bfloat16, to which autocast
# takes it, and a row of -inf alone, as of padding far from any text, is nan.
LOWEST = torch.finfo(torch.bfloat16).min


@contextlib.contextmanager
def fast(network: Network) -> Iterator[None]:
    """Train a network that is on a CPU with the dropout and attention of this module; put back its own afterwards.

    On other devices nothing changes. Encoders whose attention transformers cannot exchange (T5, DeBERTa) keep theirs.
    """
    if next(network.parameters()).device.type != "cpu":
        yield
        return
    encoder = network.encoder
    own = encoder.config._attn_implementation
    dropouts = [module for module in network.modules() if type(module) is nn.Dropout]
    exchangeable = own == "sdpa" and getattr(encoder, "_supports_attention_backend", False)
    # on the instance, so that the module stays the one that others hold and hook
    for module in dropouts:
        module.forward = types.MethodType(_dropout, module)  # type: ignore[method-assign]
    if exchangeable:
        encoder.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        for module in dropouts:
            del module.forward
        if exchangeable:
            encoder.set_attn_implementation(own)


def keep_mask(shape: Sequence[int], probability: float) -> torch.Tensor:
    """Draw a float32 mask from torch's generator: 0 with `probability` (to 1/65536), else 1 / (1 - probability)."""
    size = math.prod(shape)
    words = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(probability * LEVELS), LEVELS - 1)
    numbers = words.view(torch.int16)[:size].view(*shape).to(torch.float32)
    return numbers.ge_(dropped - LEVELS // 2).mul_(LEVELS / (LEVELS - dropped))


def _dropout(module: nn.Dropout, inputs: torch.Tensor) -> torch.Tensor:
    if not module.training or module.p == 0:
        return inputs
    return inputs * keep_mask(inputs.shape, module.p).to(inputs.dtype)


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend (Vaswani et al. 2017, eq. 1): query, key, value (rows, heads, tokens, width), a mask that is added.

    Returns (rows, tokens, heads, width) and no weights, as transformers asks of an attention function.
    """
    rows, heads, tokens, width = query.shape
    if key.shape[1] != heads:  # grouped queries: several heads share a key
        key, value = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (key, value))
    scaling = width**-0.5 if scaling is None else scaling
    query, key = query.reshape(rows * heads, tokens, width), key.reshape(rows * heads, -1, width)
    if attention_mask is None:
        scores = torch.bmm(query, key.transpose(1, 2)) * scaling
    else:
        mask = attention_mask.clamp(min=LOWEST).to(query.dtype)
        mask = mask.expand(rows, heads, tokens, -1).reshape(rows * heads, tokens, -1)
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scaling)
    weights = torch.softmax(scores.view(rows, heads, tokens, -1), dim=-1, dtype=torch.float32)
    if dropout:
        weights = weights * keep_mask(weights.shape, dropout)
    return torch.matmul(weights.to(value.dtype), value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
