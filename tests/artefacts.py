"""Bundles of untrained networks, to be exported and answered from in tests."""

from __future__ import annotations

from pathlib import Path

import torch

from xlt_ray.config.read import build
from xlt_ray.inference import bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model import collate, network

LABELS = ("sport", "food", "travel")
TEXTS = ["eng1 eng2 eng3", "eng40 eng41", "swh22", "unknown words", "", "deu1 " * 100, "hin3 eng7 [PAD] eng9"]


def bundled(folder: Path, encoder: Path | str, *overrides: str, types: bool = False) -> Path:
    """Save a bundle of an untrained network whose answers differ from text to text; `types` is for token_type_ids."""
    settings = {"name": "tiny", "sources": ["eng_Latn"], "network": {"init": str(encoder), "max_length": 32}}
    experiment = build(settings, overrides)
    net, tokenize, identity = network.build(experiment.network, len(LABELS), 0)
    if types:
        tokenizer = tokenize.tokenizer
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = [
            "input_ids",
            "token_type_ids",
            "attention_mask",
        ]
    with torch.no_grad():
        net.head.weight *= 100
        batch = collate.pad(tokenize(TEXTS), tokenize.tokenizer.pad_token_id)
        net.head.bias -= net.head.weight @ net.eval().features(batch).mean(0)
    bundle.save(folder, Bundle(net.eval(), tokenize, LABELS, experiment, None), identity)
    return folder
