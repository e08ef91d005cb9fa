"""Hold a network as a list of ONNX operators and their weights; write a small .onnx file with raw weights beside it.

Weights lie in files of their own, each at the start of a memory page, so that onnxruntime maps them instead of reading
them: what is never looked up, such as most rows of an embedding table, then takes no memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

OPSETS = {"": 21, "com.microsoft": 1}
INLINE = 1024  # bytes up to which a weight is in the .onnx file itself: shapes and constants, which are read early
KINDS = {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64, "token_type_ids": TensorProto.INT64}


@dataclass
class Graph:
    """Operators in the order they run, weights by name, and the names of the inputs; one output, `logits`."""

    inputs: tuple[str, ...]
    classes: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    opsets: Mapping[str, int] = field(default_factory=lambda: dict(OPSETS))

    def weight(self, name: str, values: Any, dtype: Any = None) -> str:
        """Add a weight and return its name."""
        self.weights[name] = np.asarray(values, dtype=dtype, order="C")
        return name

    def add(self, operator: str, inputs: Iterable[str], output: str | None = None, **attributes: Any) -> str:
        """Add an operator of one output and return the output's name; `domain` chooses another set of operators."""
        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output


def load(file: Path, inputs: tuple[str, ...], classes: int) -> Graph:
    """Read an ONNX file, weights included, as a graph."""
    model = onnx.load(str(file))
    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    opsets = {one.domain: one.version for one in model.opset_import}
    if model.functions:
        model = inliner.inline_local_functions(model)
    return Graph(inputs, classes, list(model.graph.node), weights, opsets)


def write(graph: Graph, file: Path, places: Mapping[str, str], rest: str) -> None:
    """Write a graph; weights named in `places` go to that file beside it, if it is not there yet, all others to `rest`.

    Equal graphs make equal bytes.
    """
    inline = [name for name, one in graph.weights.items() if one.nbytes <= INLINE and name not in places]
    tensors = [numpy_helper.from_array(graph.weights[name], name) for name in inline]
    outside: dict[str, list[str]] = {rest: []}
    for name in sorted(graph.weights.keys() - set(inline)):
        outside.setdefault(places.get(name, rest), []).append(name)
    for place, names in outside.items():
        tensors += _write_outside(file.parent / place, {name: graph.weights[name] for name in names})
    axes = ["rows", "tokens"]
    whole = helper.make_graph(
        graph.nodes,
        "network",
        [helper.make_tensor_value_info(name, KINDS[name], axes) for name in graph.inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", graph.classes])],
        sorted(tensors, key=lambda tensor: tensor.name),
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in sorted(graph.opsets.items())]
    model = helper.make_model(whole, opset_imports=opsets, ir_version=10, producer_name="xlt_ray")
    file.write_bytes(model.SerializeToString(deterministic=True))


def _write_outside(file: Path, weights: Mapping[str, np.ndarray]) -> list[TensorProto]:
    """Write raw weights, each at the start of a page, and return tensors that refer to them.

    A file that exists is taken to have the same content.
    """
    tensors, offsets, end = [], [], 0
    for name, values in weights.items():
        offsets.append(-(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY)
        end = offsets[-1] + values.nbytes
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=values.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", file.name), ("offset", offsets[-1]), ("length", values.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    if not file.exists():
        with file.open("wb") as stream:
            for offset, values in zip(offsets, weights.values(), strict=True):
                stream.seek(offset)
                values.tofile(stream)
    return tensors
