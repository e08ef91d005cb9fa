"""Bundles of untrained networks, to be exported and answered from in tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.inference import bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.languages.lexicon import Lexicon
from xlt_ray.model import collate, network
from xlt_ray.techniques.centre import Shift
from xlt_ray.translation import readings as reading
from xlt_ray.translation.readings import Readings
from xlt_ray.translation.translator import Lexicons, pack

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


def changed(
    folder: Path, encoder: Path, chosen: Sequence[Any], known: Sequence[str], kept: Readings | None = None
) -> Path:
    """Save a bundle of an untrained network whose techniques changed it: nothing is zero that training would move.

    `kept` are its readings; a network that knows a language knows all of that language's.
    """
    known = [key for code in known for key in (kept.keys(code) if kept else [code])]
    settings = {"name": "tiny", "sources": ["eng_Latn"], "network": {"init": str(encoder), "max_length": 32}}
    experiment = build({**settings, "techniques": list(chosen)})
    net, tokenize, identity = techniques.network(techniques.build(experiment), experiment, len(LABELS), known)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=generator)
        net.head.weight *= 100
        batch = collate.pad(tokenize(TEXTS), tokenize.tokenizer.pad_token_id)
        features = net.eval().features(batch)
        net.head.bias -= net.head.weight @ features.mean(0)
    step = dict(net.steps.items()).get("centre")
    if isinstance(step, Shift):
        rng = np.random.default_rng(0)
        means = {code: rng.normal(scale=float(features.std(0).mean()), size=net.head.in_features) for code in known}
        step.estimate(known, means, means["eng_Latn"], ["eng_Latn"])
        if experiment.techniques["centre"].get("map", "none") != "none":
            mapped = [place for place, code in enumerate(known) if reading.is_first(code) and code != "eng_Latn"]
            step.set_maps(mapped, list(rng.normal(scale=0.1, size=(len(mapped), *[net.head.in_features] * 2))))
    bundle.save(folder, Bundle(net.eval(), tokenize, LABELS, experiment, None, readings=kept), identity)
    return folder


def word_by_word(scores: Sequence[float] = (0.3, 0.05), original: bool = True) -> Readings:
    """Make readings into English: of every Swahili word of the tiny vocabulary, and of two German words.

    Swahili words of odd numbers are translated at the lower score alone; the weights of German are its own.
    """
    swahili = {f"swh{i}": ((f"eng{i * 7 % 60}", 0.1 if i % 2 else 0.9),) for i in range(60)}
    german = {"licht": (("eng5", 0.9),), "küche": (("eng7", 0.1),)}
    packed = {
        code: pack(Lexicon(code, "eng_Latn", entries))
        for code, entries in (("swh_Latn", swahili), ("deu_Latn", german))
    }
    found = reading.by_lexicon("eng_Latn", scores, original, Lexicons(packed))
    weights = tuple(float(i + 1) for i in range(len(found.translators)))
    return replace(found, by_language={"deu_Latn": weights})
