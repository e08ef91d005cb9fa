"""Replace the matrix products of a graph by products of 8-bit integers.

Weights are rounded once, with one scale a column. Activations are rounded at run time, with one scale a token, so that
neither an outlier in one token nor the other rows of a batch change how a text is rounded, and no text is needed to
calibrate anything. Attention, norms and the head stay in float32.

Scales of weights are such that two neighbouring products, up to 255 times a weight each, cannot exceed 16 bits: AVX2
adds them in 16 bits and would cut them (VPMADDUBSW). So processors with and without VNNI give the same answer. A bound
on pairs of weights costs a quarter of a bit; halving every weight, the usual remedy, costs a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from xlt_ray.export.onnx_graph import Graph

LOWEST = 0.17  # GELU is never below -0.17: shifted by that it needs no sign, which doubles the resolution
SHIFTED = {"BiasGelu", "Gelu"}


def quantised(graph: Graph) -> Graph:
    """Return a new graph whose products with a matrix of weights are in 8 bits."""
    out = Graph(graph.inputs, graph.classes, [], dict(graph.weights), graph.opsets)
    for name, value in (("one", 1), ("least", 1e-8), ("signed", 1 / 127), ("shifted", 1 / 255), ("lowest", LOWEST)):
        out.weight(f"int8.{name}", value, np.float32)
    out.weight("int8.middle", 128, np.uint8)
    out.weight("int8.zero", 0, np.uint8)
    out.weight("int8.last", [-1], np.int64)
    makers = {output: node.op_type for node in graph.nodes for output in node.output}
    biases = _biases(graph)
    rounded: dict[tuple[str, bool], tuple[str, str]] = {}
    for node in graph.nodes:
        if not _fits(node, graph.weights):
            out.nodes.append(node)
            continue
        (source, weight), product = node.input, node.output[0]
        values, scales = _rounded_weights(out.weights[weight].astype(np.float32))
        bias = biases.get(product)
        shift = makers.get(source) in SHIFTED and bias is not None
        if bias is not None and shift:
            out.weights[bias] = out.weights[bias] - LOWEST * (values.astype(np.float32) * scales).sum(0)
        if (source, shift) not in rounded:
            rounded[source, shift] = _rounded_tokens(out, source, shift)
        tokens, scale = rounded[source, shift]
        out.weight(weight, values)
        out.weight(f"{weight}.scales", scales)
        inputs = [tokens, weight, "int8.one", f"{weight}.scales", "int8.zero" if shift else "int8.middle"]
        whole = out.add("MatMulIntegerToFloat", inputs, f"{product}.whole", domain="com.microsoft")
        out.add("Mul", [whole, scale], product)
    return out


def _fits(node: onnx.NodeProto, weights: Mapping[str, np.ndarray]) -> bool:
    found = weights.get(node.input[1]) if node.op_type == "MatMul" else None
    return found is not None and found.ndim == 2 and found.shape[0] % 2 == 0 and found.dtype == np.float32


def _biases(graph: Graph) -> dict[str, str]:
    """Find products whose only reader adds a vector of weights that nothing else reads: product -> vector."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for product, by in readers.items():
        if len(by) == 1 and by[0].op_type == "Add":
            other = next((name for name in by[0].input if name != product), "")
            if other in graph.weights and graph.weights[other].ndim == 1 and len(readers[other]) == 1:
                found[product] = other
    return found


def _rounded_weights(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round an (inputs, outputs) matrix to 8-bit integers; return them and the scale of every column."""
    # 255 * 128 + 255 * 0.5 fits 16 bits: a pair of one sign may add up to 128, of which rounding may take a half each
    pairs = [np.maximum(part, 0).reshape(-1, 2, values.shape[1]).sum(1).max(0) for part in (values, -values)]
    scales = np.maximum(np.maximum(*pairs), np.abs(values).max(0)) / 127
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.rint(values / scales).astype(np.int8), scales


def _rounded_tokens(out: Graph, source: str, shift: bool) -> tuple[str, str]:
    """Round every token by its own largest value; return the names of the integers and of the scales (..., 1)."""
    if shift:
        raised = out.add("Add", [source, "int8.lowest"], f"{source}.raised")
        largest = out.add("ReduceMax", [raised, "int8.last"], f"{source}.largest", keepdims=1)
        scale = out.add("Mul", [largest, "int8.shifted"], f"{source}.scale")
    else:
        raised = source
        sizes = out.add("Abs", [source], f"{source}.sizes")
        largest = out.add("ReduceMax", [sizes, "int8.last"], f"{source}.largest", keepdims=1)
        bounded = out.add("Max", [largest, "int8.least"], f"{source}.bounded")
        scale = out.add("Mul", [bounded, "int8.signed"], f"{source}.scale")
    steps = out.add("Div", [raised, scale], f"{source}.steps")
    zero = "int8.zero" if shift else "int8.middle"
    return out.add("QuantizeLinear", [steps, "int8.one", zero], f"{source}.rounded"), scale
