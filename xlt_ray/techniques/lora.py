"""LoRA: train matrices of low rank beside the encoder's instead of the encoder; merge them into it to serve.

Hu et al. 2021 ("LoRA: low-rank adaptation of large language models"): W + (alpha / rank) B A with B = 0 at the start.
The layers are peft's. A bundle holds these matrices and the name of the encoder they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from xlt_ray.errors import InputError
from xlt_ray.techniques.technique import Material, Reads, Technique

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

# kind of encoder (config.model_type) -> the linear layers of its attention that make queries and values
ATTENTION = {
    **dict.fromkeys(("bert", "xlm-roberta", "roberta", "electra", "camembert"), ("query", "value")),
    **dict.fromkeys(("deberta", "deberta-v2"), ("query_proj", "value_proj")),
    "distilbert": ("q_lin", "v_lin"),
    **dict.fromkeys(("t5", "mt5", "umt5"), ("q", "v")),
    "modernbert": ("Wqkv",),
}


class Lora(Technique):
    """Train matrices of low rank beside the encoder's instead of the encoder: bundles of a megabyte."""

    name: ClassVar[str] = "lora"
    of_words: ClassVar[bool] = True
    paper: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"
    needs: ClassVar[str] = "nothing more; the encoder must be available where the bundle is loaded"
    cost: ClassVar[str] = "as fine-tuning; no optimiser state for the encoder"
    methods: ClassVar[tuple[str, ...]] = ("fine_tune",)
    reads: ClassVar[Reads] = "nothing"
    replaces_encoder: ClassVar[bool] = True

    rank: int = Field(8, ge=1, description="of the matrices")
    alpha: int = Field(16, gt=0, description="what is added is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into the matrices")
    layers: Literal["attention", "all-linear"] | tuple[str, ...] = Field(
        "attention", description="attention: queries and values; all-linear: every linear layer; or names of layers"
    )
    merge: bool = Field(
        False, description="write a whole bundle, merged, which can be network.init of another run, and not the change"
    )

    def attach(self, network: Network, tokenizer: Any, material: Material | None) -> None:
        """Add matrices to layers of the encoder, and freeze the rest of it; raise InputError where no layer fits."""
        from peft import LoraConfig, inject_adapter_in_model

        kind = network.encoder.config.model_type
        layers: Any = list(self.layers) if isinstance(self.layers, tuple) else self.layers
        if layers == "attention":
            if kind not in ATTENTION:
                raise InputError(
                    f"techniques.lora.layers: attention of a {kind} encoder is not known; give the names of layers, "
                    "such as [query, value], or all-linear"
                )
            layers = list(ATTENTION[kind])
        elif layers == "all-linear":
            layers = sorted(
                {n.rpartition(".")[2] for n, m in network.encoder.named_modules() if isinstance(m, nn.Linear)}
            )
        settings = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(network.seed)
            try:
                inject_adapter_in_model(settings, network.encoder, adapter_name=self.name)
            except ValueError as error:
                raise InputError(f"techniques.lora.layers: {layers}: {error}; give names of layers of {kind}") from None

    def state(self, network: Network) -> dict[str, torch.Tensor]:
        """Return the matrices, by the names that they have in the encoder; none where they were merged."""
        return {name: matrix for name, matrix in network.encoder.named_parameters() if "lora_" in name}

    def load(self, network: Network, state: Mapping[str, torch.Tensor]) -> None:
        """Put the matrices back into the encoder."""
        network.encoder.load_state_dict(state, strict=False)

    @property
    def merged_when_saved(self) -> bool:
        """Whether a bundle is to hold the merged encoder."""
        return self.merge

    def merge_into_encoder(self, network: Network) -> None:
        """Add the matrices to the layers that they stand beside, in place, and leave plain layers."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        encoder = network.encoder
        for name, layer in list(encoder.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
                above, _, leaf = name.rpartition(".")
                setattr(encoder.get_submodule(above), leaf, layer.get_base_layer())
        if hasattr(encoder, "peft_config"):
            del encoder.peft_config
