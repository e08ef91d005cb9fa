"""Trace encoders that `bert_graph` does not build, to an ONNX graph, with torch."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xlt_ray.errors import InputError
from xlt_ray.export import onnx_graph
from xlt_ray.export.onnx_graph import Graph


class _Positional(nn.Module):
    """A network that takes its batch as positional tensors, as torch.onnx requires."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Score every label."""
        return self.network(dict(zip(self.names, tensors, strict=True)))


def traced(network: Any, types: bool, folder: Path) -> Graph:
    """Trace a `network.Network` with torch.onnx, for any number of rows and tokens; `folder` is made and deleted.

    Raises InputError naming the encoder where torch.onnx fails.
    """
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if types else []))
    ids = torch.arange(4, 4 + 2 * 9).reshape(2, 9) % len(network.encoder.get_input_embeddings().weight)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    example = (ids, mask, *([torch.zeros_like(ids)] if types else []))
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    folder.mkdir()
    file = folder / "network.onnx"
    try:
        with _quiet(), torch.inference_mode():
            torch.onnx.export(
                _Positional(network, names).eval(),
                example,
                str(file),
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(tuple(axes for _ in names),),
                opset_version=onnx_graph.OPSETS[""],
                dynamo=True,
                external_data=True,
                verbose=False,
            )
        return onnx_graph.load(file, names, len(network.head.weight))
    except Exception as error:  # torch.onnx raises whatever its parts raise
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kind = type(network.encoder).__name__
        raise InputError(f"{kind}: torch.onnx cannot export it ({cause[:200]}); serve the bundle with torch") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Any:
    # torch.onnx's progress, advice and deprecation warnings are for people who export by hand
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
