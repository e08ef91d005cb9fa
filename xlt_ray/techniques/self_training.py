"""Self-training: unlabelled texts of the targets are labelled by the model as it is, and it learns from that.

Pseudo-labels (Lee 2013, "Pseudo-label: the simple and efficient semi-supervised learning method") are the best class of
the moment, once the model has learned something. Left alone they favour the classes that a language is mistaken for, so
the distribution of a language's predictions is first brought to that of the training labels (distribution alignment:
Berthelot et al. 2020, "ReMixMatch"), here by a bias per language and class: the cross-entropy of predictions with the
training labels' shares is least where their mean equals those shares, so the bias is learned like any other parameter.
That assumes that topics are about as frequent in every language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from xlt_ray.config import Experiment, InputError
from xlt_ray.corpus import Corpus
from xlt_ray.techniques import Embed, Material, Technique, known_languages

if TYPE_CHECKING:
    from xlt_ray.network import Network

SCALE = 100.0  # of the biases, which move a logit while an encoder's weights move by ten-thousandths


class SelfTraining(Technique):
    """Learn from unlabelled texts of the targets, by the labels that the model gives them as it trains."""

    name: ClassVar[str] = "self_training"
    paper: ClassVar[str] = "Lee 2013 (pseudo-labels); Berthelot et al. 2020, arXiv 1911.09785 (distribution alignment)"
    needs: ClassVar[str] = (
        "unlabelled train rows of the targets, which join every update; classes about as frequent there"
    )
    cost: ClassVar[str] = "twice the rows an update; see training.unlabelled_rows"
    methods: ClassVar[tuple[str, ...]] = ("fine_tune",)
    wants_unlabelled: ClassVar[bool] = True

    weight: float = Field(1.0, gt=0, description="of the loss on pseudo-labels, against 1 for the task")
    begin: float = Field(0.3, ge=0, lt=1, description="share of training after which pseudo-labels count")
    confidence: float = Field(0.0, ge=0, lt=1, description="probability under which a pseudo-label does not count")

    def check(self, experiment: Experiment, corpus: Corpus) -> None:
        """Refuse a run without unlabelled rows of a target."""
        there = corpus.unlabelled(known_languages(experiment, corpus))
        if not set(there) - set(experiment.sources) or experiment.training.unlabelled_rows == 0:
            raise InputError(
                "techniques.self_training: needs unlabelled rows of targets in every update; add train rows of "
                "targets, their labels are not looked at, and leave training.unlabelled_rows at its default"
            )

    def loss_term(self, network: Network, material: Material, embed: Embed) -> nn.Module:
        """Give the loss on pseudo-labels, which also learns the bias of every language."""
        return PseudoLabels(self, len(network.languages), material.label_shares)


class PseudoLabels(nn.Module):
    """The loss on pseudo-labels of rows without a label, and that of the bias (languages, classes) behind them."""

    shares: torch.Tensor

    def __init__(self, settings: SelfTraining, languages: int, shares: Sequence[float]) -> None:
        super().__init__()
        self.settings = settings
        self.bias = nn.Parameter(torch.zeros(languages, len(shares)))
        self.register_buffer("shares", torch.tensor(shares))

    def forward(self, network: Network, batch: Mapping[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        """Give the loss of every row, (rows,); 0 for a row with a label."""
        logits = network.classify(features)
        aligned = logits.detach() + SCALE * self.bias[batch["language"]]
        alignment = -(self.shares * functional.log_softmax(aligned, -1)).sum(-1)
        confidence, label = aligned.detach().softmax(-1).max(-1)
        counts = (confidence >= self.settings.confidence) & (batch["progress"] >= self.settings.begin)
        learned = functional.cross_entropy(logits, label, reduction="none") * counts
        return (alignment + self.settings.weight * learned) * (batch["weight"] == 0)
