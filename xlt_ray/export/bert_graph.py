"""Build the ONNX graph of BERT and related encoders operator by operator, with onnxruntime's fused operators.

Tracing takes a minute and makes some hundred small operators a block; these are eight, the same on every machine and
with every version of torch. Other encoders go through `torch.onnx` (see `tracing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlt_ray.export.onnx_graph import Graph

FUSED = "com.microsoft"
BERT = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "out": "attention.output.dense", "norm": "attention.output.LayerNorm",
    "up": "intermediate.dense", "down": "output.dense", "last": "output.LayerNorm",
}  # fmt: skip
DISTILBERT = {
    "q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin",
    "out": "attention.out_lin", "norm": "sa_layer_norm",
    "up": "ffn.lin1", "down": "ffn.lin2", "last": "output_layer_norm",
}  # fmt: skip
BLOCKS = {
    "bert": ("encoder.layer", BERT),
    "xlm-roberta": ("encoder.layer", BERT),
    "roberta": ("encoder.layer", BERT),
    "camembert": ("encoder.layer", BERT),
    "distilbert": ("transformer.layer", DISTILBERT),
}
WORDS = "words"  # the name of the word-embedding table among a graph's weights


def fits(config: Any) -> bool:
    """Return whether an encoder's configuration is of this family: absolute positions, GELU, attention both ways."""
    activation = getattr(config, "hidden_act", getattr(config, "activation", None))
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    causal = getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False)
    return config.model_type in BLOCKS and activation == "gelu" and positions == "absolute" and not causal


def build(network: Any, types: bool) -> Graph:
    """Build the graph of a `network.Network`; with `types` it has an input token_type_ids, else all are of type 0."""
    config = network.encoder.config
    state = {name: one.detach().cpu().float().numpy() for name, one in network.encoder.state_dict().items()}
    path, names = BLOCKS[config.model_type]
    inputs = ("input_ids", "attention_mask", *(["token_type_ids"] if types else []))
    graph = Graph(inputs, len(network.head.weight))
    graph.add("Cast", ["attention_mask"], "mask", to=6)  # int32
    encoder = EncoderGraph(graph, state, config)
    hidden = encoder.embeddings(types)
    for number in range(config.num_hidden_layers):
        block = {key: f"{path}.{number}.{name}" for key, name in names.items()}
        hidden = encoder.block(block, f"b{number}", hidden)
    _head(graph, network, hidden)
    return graph


@dataclass(frozen=True)
class EncoderGraph:
    """The part of a graph that is the encoder: its methods add operators and return the name of their output."""

    graph: Graph
    state: Mapping[str, np.ndarray]  # the encoder's weights by their names in transformers
    config: Any  # of transformers

    def embeddings(self, types: bool) -> str:
        """Add up the embeddings of words, positions and, with `types`, of token types, and normalise them."""
        graph, state = self.graph, self.state
        words = graph.weight(WORDS, state["embeddings.word_embeddings.weight"])
        table = state["embeddings.position_embeddings.weight"]
        kinds = state.get("embeddings.token_type_embeddings.weight")
        if kinds is not None and not types:
            table = table + kinds[0]  # a text of one type has it at every position
        parts = [graph.add("Gather", [words, "input_ids"])]
        parts.append(self._positions(graph.weight("positions", table)))
        if kinds is not None and types:
            parts.append(graph.add("Gather", [graph.weight("kinds", kinds), "token_type_ids"]))
        total = parts[0]
        for part in parts[1:]:
            total = graph.add("Add", [total, part])
        return self._norm("embeddings.LayerNorm", "embedded", [total])

    def _positions(self, table: str) -> str:
        """Look up the tokens' positions: BERT's from 0; RoBERTa's from beyond the padding id, not counting padding."""
        graph, config = self.graph, self.config
        if config.model_type in ("bert", "distilbert"):
            start, axis = graph.weight("start", [0], np.int64), graph.weight("axis", [1], np.int64)
            tokens = graph.add("Gather", [graph.add("Shape", ["input_ids"]), axis], axis=0)
            return graph.add("Slice", [table, start, tokens])
        axis, padding = graph.weight("axis", 1, np.int64), graph.weight("padding", config.pad_token_id, np.int64)
        real = graph.add("Cast", [graph.add("Not", [graph.add("Equal", ["input_ids", padding])])], to=7)
        counted = graph.add("Mul", [graph.add("CumSum", [real, axis]), real])
        return graph.add("Gather", [table, graph.add("Add", [counted, padding])])

    def block(self, names: Mapping[str, str], at: str, hidden: str) -> str:
        """Add one transformer block; `names` are its layers' in the encoder, `at` begins its operators' names."""
        graph, state = self.graph, self.state
        heads = getattr(self.config, "num_attention_heads", None) or self.config.n_heads
        parts = [self._product(names[key], f"{at}.{key}", hidden) for key in "qkv"]
        bias = graph.weight(f"{at}.qkv.bias", np.concatenate([state[f"{names[key]}.bias"] for key in "qkv"]))
        mixed = graph.add("MultiHeadAttention", [*parts, bias, "mask"], f"{at}.mixed", domain=FUSED, num_heads=heads)
        out = self._product(names["out"], f"{at}.out", mixed)
        hidden = self._norm(names["norm"], f"{at}.attended", [out, hidden], names["out"])
        up = self._product(names["up"], f"{at}.up", hidden)
        bias = graph.weight(f"{at}.up.bias", state[f"{names['up']}.bias"])
        grown = graph.add("BiasGelu", [up, bias], f"{at}.grown", domain=FUSED)
        down = self._product(names["down"], f"{at}.down", grown)
        return self._norm(names["last"], f"{at}.hidden", [down, hidden], names["down"])

    def _product(self, name: str, at: str, hidden: str) -> str:
        """Multiply by a layer's matrix, its bias left to the operator that follows."""
        weight = self.graph.weight(f"{at}.weight", self.state[f"{name}.weight"].T)
        return self.graph.add("MatMul", [hidden, weight], at)

    def _norm(self, name: str, at: str, inputs: list[str], bias: str = "") -> str:
        """Normalise the sum of one or two inputs by a LayerNorm; `bias` names the layer whose bias the first lacks."""
        graph, state = self.graph, self.state
        scale, shift = (graph.weight(f"{at}.{part}", state[f"{name}.{part}"]) for part in ("weight", "bias"))
        epsilon = getattr(self.config, "layer_norm_eps", 1e-12)  # DistilBERT's is fixed
        if bias:
            added = graph.weight(f"{at}.added", state[f"{bias}.bias"])
            inputs = [graph.add("Add", [inputs[0], added], f"{at}.biased"), *inputs[1:]]
        # onnxruntime's SkipLayerNormalization takes four times as long as these on a CPU
        total = graph.add("Add", inputs, f"{at}.total") if len(inputs) == 2 else inputs[0]
        return graph.add("LayerNormalization", [total, scale, shift], at, epsilon=epsilon, axis=-1)


def _head(graph: Graph, network: Any, hidden: str) -> None:
    if network.pooling == "first":
        pooled = graph.add("Gather", [hidden, graph.weight("first", 0, np.int64)], axis=1)
    else:
        mask = graph.add("Cast", ["attention_mask"], to=1)  # float32
        middle, end = graph.weight("middle", [1], np.int64), graph.weight("end", [2], np.int64)
        spread = graph.add("Unsqueeze", [mask, end])
        total = graph.add("ReduceSum", [graph.add("Mul", [hidden, spread]), middle], keepdims=0)
        count = graph.add("Max", [graph.add("ReduceSum", [mask, middle]), graph.weight("least", 1, np.float32)])
        pooled = graph.add("Div", [total, count])
    weight = graph.weight("head.weight", network.head.weight.detach().float().cpu().numpy().T)
    bias = graph.weight("head.bias", network.head.bias.detach().float().cpu().numpy())
    graph.add("Gemm", [pooled, weight, bias], "logits")
