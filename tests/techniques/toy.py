"""A technique with state of every kind that no other file of the project knows.

Features are scaled by a trained vector and moved by one vector a language, which is estimated after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import nn

from xlt_ray.techniques import CATALOGUE
from xlt_ray.techniques.technique import Embed, Material, Reads, Technique


def enrol() -> None:
    """Put the toy into the catalogue of this process."""
    CATALOGUE["toy"] = "tests.techniques.toy.Toy"


class Toy(Technique):
    """Scale features by a trained vector, and move them by an estimated one."""

    name: ClassVar[str] = "toy"
    paper: ClassVar[str] = "none"
    needs: ClassVar[str] = "unlabelled texts of the targets"
    cost: ClassVar[str] = "nothing to speak of"
    reads: ClassVar[Reads] = "unlabelled"
    adds_languages: ClassVar[bool] = True

    strength: float = Field(0.1, ge=0, description="how far a language is moved along its mean")

    def attach(self, network: Any, tokenizer: Any, material: Material | None) -> None:
        """Begin with what changes nothing."""
        network.steps[self.name] = ScaleAndMove(len(network.languages), network.head.in_features)

    def texts(self, material: Material) -> Mapping[str, pa.Table]:
        """Return all texts."""
        return material.texts

    def calibrate(self, network: Any, embed: Embed, material: Material) -> dict[str, float]:
        """Estimate how far each language is moved."""
        for code, features in embed(self.texts(material)).items():
            self.add_language(network, code, features)
        return {"languages": float(len(material.texts))}

    def add_language(self, network: Any, code: str, features: np.ndarray) -> None:
        """Move a language along its mean."""
        step, index = network.steps[self.name], network.index(code)
        row = torch.from_numpy(self.strength * features.mean(0))[None]
        known = index < len(step.move) - 1  # the last row stays that of unknown languages
        step.move = torch.cat([step.move[:index], row, step.move[index + 1 if known else -1 :]])


class ScaleAndMove(nn.Module):
    """`scale` is (width,) and trained; `move` is (languages + 1, width), its last row for unknown languages."""

    move: torch.Tensor

    def __init__(self, languages: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.register_buffer("move", torch.zeros(languages + 1, width))

    def forward(self, features: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
        """Map features (rows, width) of languages (rows,) to features of the same shape."""
        return features * self.scale + self.move[language]
