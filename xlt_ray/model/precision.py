"""Choose the precision to compute in: bfloat16 where it is faster and the encoder works in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import distributed, nn

from xlt_ray.errors import InputError
from xlt_ray.model import cpu
from xlt_ray.model.network import Network

GAIN = 1.2  # by which bfloat16 must be measured faster on a CPU before it is used there
BROKEN = "its weights are no numbers or too large, so save it again or name another in network.init"
TRIED_TOKENS = 256  # more than the window of any encoder that looks at near tokens only


def choose_precision(
    asked: str, network: Network, max_length: int, on_note: Callable[[str], None] = lambda note: None
) -> str:
    """Resolve 'auto': bfloat16 on GPUs that have it and on CPUs where a product of this encoder's size is faster so.

    An encoder that cannot be computed in bfloat16 is computed in float32, and `on_note` receives the reason. Rank 0
    decides for all ranks, so that all compute alike. Raises InputError where bfloat16 is asked for and cannot be.
    """
    if asked == "float32":
        return asked
    device, name = next(network.parameters()).device, type(network.encoder).__name__
    if asked == "bfloat16":
        if found := fault(network, max_length):
            raise InputError(
                f"training.precision: bfloat16, but {name} cannot be computed in it ({found}); set "
                "training.precision=float32"
            )
        if device.type == "cpu" and (gain := _gain(network)) < 1 / GAIN:
            on_note(f"bfloat16 takes {1 / gain:.1f} times as long as float32 here; training.precision=auto is quicker")
        return asked
    faster = torch.cuda.is_bf16_supported() if device.type == "cuda" else _gain(network) >= GAIN
    if faster and (found := fault(network, max_length)):
        on_note(f"{name} cannot be computed in bfloat16 ({found}); computing in float32")
        faster = False
    verdict = torch.tensor([int(faster)], device=device)
    if distributed.is_initialized():
        distributed.broadcast(verdict, src=0)
    return "bfloat16" if verdict.item() else "float32"


def fault(network: Network, max_length: int) -> str | None:
    """Return why a network cannot be computed in bfloat16, None where it can, by one step on rows with padding.

    The step goes backwards too where anything is to be trained. Nothing is left changed.
    """
    device, settings, was_training = next(network.parameters()).device, network.encoder.config, network.training
    width = min(max_length, TRIED_TOKENS)
    mask = torch.ones(2, width, dtype=torch.long, device=device)
    mask[1, 2:] = 0
    ids = torch.arange(width, device=device) % network.encoder.get_input_embeddings().num_embeddings
    padding = getattr(settings, "pad_token_id", None) or 0
    batch = {"input_ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask}
    network.eval()  # draws no dropout
    try:
        with cpu.fast(network):
            with autocast(device, "bfloat16"):
                features = network.features(batch)
            finite = bool(features.isfinite().all())
            if features.requires_grad:
                features.square().sum().backward()
                gradients = [p.grad for p in network.parameters() if p.grad is not None]
                finite = finite and all(bool(gradient.isfinite().all()) for gradient in gradients)
        return None if finite else "its features or gradients are no numbers"
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    finally:
        network.zero_grad(set_to_none=True)
        network.train(was_training)


def _gain(network: Network) -> float:
    width = network.encoder.config.hidden_size
    layer, rows = nn.Linear(width, 4 * width), torch.randn(1024, width)

    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(20):  # by turns, of which the quickest counts: other work on the machine slows down either
        for precision, taken in times.items():
            start = time.perf_counter()
            with torch.no_grad(), autocast(torch.device("cpu"), precision):
                layer(rows)
            taken.append(time.perf_counter() - start)
        if len(taken) >= 5 and min(times["bfloat16"]) > 2 * min(times["float32"]):
            break  # where it is far slower, twenty would take long
    return min(times["float32"]) / min(times["bfloat16"])


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context that computes matrix products in `precision`; weights and head stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def token_budget(asked: int | None, device: torch.device) -> int:
    """Return the most padded tokens to forward at once: those asked for, else what suits the device.

    A CPU is fastest while activations stay in its cache, and small steps need less padding; a GPU wants large products.
    """
    return asked or (16384 if device.type == "cuda" else 1024)
