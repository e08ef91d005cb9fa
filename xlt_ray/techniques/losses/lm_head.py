"""A head that fills in masked pieces: the encoder's own where its checkpoint has one, else one in closed form.

Encoders of sentences are saved without such a head, and a random one would first have to be learned, while the encoder
is pulled about. Yet the features at a mask tell much: a ridge regression from them onto the embedding of the piece that
stood there, by whose cosines pieces are scored beside their frequency, finds more than frequencies alone, and is what
training begins from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional

from xlt_ray.model import bundled, encoders

STRENGTHS = (0.003, 0.03, 0.3)  # of the ridge, in mean eigenvalues
SCALES = (8.0, 16.0, 32.0)  # of cosines
JUDGED = 1000  # pieces by which these are chosen


@dataclass(frozen=True, eq=False)
class PredictionHead:
    """Scores every piece at a mask: `weight` (pieces, width) times what `transform` makes of features, plus `bias`."""

    transform: nn.Module
    weight: torch.Tensor
    bias: torch.Tensor


def prediction_head(init: str, revision: str | None = None) -> PredictionHead | None:
    """Return the head of a checkpoint for masked pieces; None where it has none, as encoders of sentences have not.

    Known are heads as BERT, XLM-R and ModernBERT have them; those of other families are not taken.
    """
    if init == bundled.BUNDLED:
        return None
    folder = Path(init).expanduser()
    source, commit = (
        (str(folder), None) if folder.is_dir() else (init, encoders.fingerprint(init, revision).rpartition("@")[2])
    )
    try:
        with encoders.quiet():
            model, report = transformers.AutoModelForMaskedLM.from_pretrained(
                source, revision=commit, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
    except ValueError:
        return None  # there is no such class for this encoder
    head = next((found for name in ("lm_head", "cls", "head") if (found := getattr(model, name, None))), None)
    decoder = model.get_output_embeddings()
    if report["missing_keys"] or head is None or not isinstance(decoder, nn.Linear):
        return None
    for module in head.modules():
        for name, inner in module.named_children():
            if inner is decoder:
                setattr(module, name, nn.Identity())
    bias = torch.zeros(len(decoder.weight)) if decoder.bias is None else decoder.bias.detach()
    return PredictionHead(head, decoder.weight.detach(), bias)


class Head(nn.Module):
    """Scores the pieces of a vocabulary: (rows, width) features to (rows, pieces).

    Where there is a `scale`, by the cosine with a piece's embedding times that, else by the product with it; a number
    for every piece is added. Embeddings are those of the encoder, unless `own` ones, (pieces, width), are given.
    """

    pieces: torch.Tensor
    own: torch.Tensor | None

    def __init__(
        self,
        pieces: np.ndarray,
        transform: nn.Module,
        bias: torch.Tensor,
        scale: float = 0.0,
        own: torch.Tensor | None = None,
    ) -> None:
        """Score by cosines where a `scale` is given."""
        super().__init__()
        self.register_buffer("pieces", torch.from_numpy(pieces), persistent=False)
        self.transform, self.bias = transform, nn.Parameter(bias)
        self.scale = nn.Parameter(torch.tensor(scale).log()) if scale else None
        self.register_buffer("own", own, persistent=False)

    def forward(self, hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Score pieces, by the encoder's embeddings (all pieces, width)."""
        found = self.transform(hidden)
        vectors = embeddings[self.pieces] if self.own is None else self.own
        if self.scale is None:
            return (found @ vectors.T).float() + self.bias
        cosines = functional.normalize(found, dim=1) @ functional.normalize(vectors, dim=1).T
        return self.scale.exp() * cosines.float() + self.bias


@dataclass(frozen=True, eq=False)
class Examples:
    """Features at masks, (rows, width) float32, and the places in a vocabulary of what stood there, (rows,) int64."""

    hidden: np.ndarray
    answers: np.ndarray


def closed_form(examples: Examples, pieces: np.ndarray, embeddings: np.ndarray, counts: np.ndarray) -> Head:
    """Return a head by ridge regression, its strength and the scale chosen by the loss on a part of the examples.

    `embeddings` (pieces, width) are those of the vocabulary, and `counts` (pieces,) how often each stands in the texts.
    """
    vectors = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
    bias = np.log((counts + 0.5) / (counts.sum() + 0.5 * len(counts))).astype(np.float32)
    judged = np.arange(len(examples.answers)) % 5 == 0
    few = Examples(examples.hidden[judged][:JUDGED], examples.answers[judged][:JUDGED])
    rest = Examples(examples.hidden[~judged], examples.answers[~judged])
    losses = {}
    for strength in STRENGTHS:
        weight, offset = _ridge(rest, vectors, strength)
        found = few.hidden @ weight.T + offset
        cosines = torch.from_numpy(found / np.linalg.norm(found, axis=1, keepdims=True) @ vectors.T)
        for scale in SCALES:
            scores = scale * cosines + torch.from_numpy(bias)
            losses[strength, scale] = float(functional.cross_entropy(scores, torch.from_numpy(few.answers)))
    strength, scale = min(losses, key=lambda one: losses[one])
    weight, offset = _ridge(examples, vectors, strength)
    layer = nn.utils.skip_init(nn.Linear, *weight.shape[::-1])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(offset))
    return Head(pieces, layer, torch.from_numpy(bias), scale)


def _ridge(examples: Examples, vectors: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight (width, width) and the offset (width,) of a ridge regression onto unit vectors, float32."""
    inputs, wanted = examples.hidden.astype(np.float64), vectors[examples.answers].astype(np.float64)
    middle, mean = inputs.mean(0), wanted.mean(0)
    gram = (inputs - middle).T @ (inputs - middle)
    penalty = strength * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(gram + penalty, (inputs - middle).T @ (wanted - mean)).T
    return weight.astype(np.float32), (mean - weight @ middle).astype(np.float32)
