"""Adversarial training: a discriminator learns to classify features by language, and the encoder to prevent it.

Ganin et al. 2016 ("Domain-adversarial training of neural networks"), section 4: between the two is a layer that
multiplies gradients by -lambda, with lambda_p = 2 / (1 + exp(-gamma p)) - 1 where p goes from 0 to 1 over training.
A new linear probe for the language on the encoder's features, before and after training, measures whether it worked:
a discriminator that has lost is no evidence, as the encoder may have learned to deceive this one alone (Elazar and
Goldberg 2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.techniques.technique import Available, Compute, Embed, Material, Reads, Technique
from xlt_ray.techniques.term import Batch, Outputs, Term
from xlt_ray.translation.readings import is_first

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

PROBED = 60  # rows a language, half to fit the probe for the language and half to measure it


class Adversarial(Technique):
    """Train the encoder so that a discriminator cannot recognise languages by their features."""

    name: ClassVar[str] = "adversarial"
    paper: ClassVar[str] = "Ganin et al. 2016, arXiv 1505.07818"
    needs: ClassVar[str] = "unlabelled train rows of sources and targets, which join every update"
    cost: ClassVar[str] = "twice the rows an update; see training.unlabelled_rows"
    methods: ClassVar[tuple[str, ...]] = ("fine_tune",)
    reads: ClassVar[Reads] = "unlabelled"
    wants_unlabelled: ClassVar[bool] = True

    weight: float = Field(0.1, gt=0, description="lambda at the end of training, how hard the encoder works against it")
    gamma: float = Field(10.0, gt=0, description="how fast lambda rises")
    hidden: int = Field(256, ge=1, description="width of the discriminator's one hidden layer")

    def check(self, available: Available) -> None:
        """Refuse a run without unlabelled rows of two languages."""
        experiment = available.experiment
        if len([code for code in available.languages if code in available.texts]) < 2:
            raise InputError("techniques.adversarial: needs rows of two languages or more; add train rows of targets")
        if experiment.training.unlabelled_rows == 0 and len(experiment.sources) < 2:
            raise InputError(
                "techniques.adversarial: with one source and training.unlabelled_rows: 0 there is one language only; "
                "leave unlabelled_rows at its default"
            )

    def loss_term(
        self,
        network: Network,
        material: Material,
        compute: Compute,
        on_progress: OnProgress = lambda done, total: None,
    ) -> Term:
        """Return the discriminator, after measuring language separability before training with a linear probe."""
        width, languages = network.head.in_features, sum(map(is_first, network.languages))
        term = Discriminator(width, self.hidden, languages, self.weight, self.gamma, network.seed)
        term.before = language_accuracy(compute(_sample(material)))
        return term

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Measure language separability after training with a linear probe; return it beside that before and chance."""
        term = network.terms[self.name]
        assert isinstance(term, Discriminator)
        sample = _sample(material)
        return {
            "language_probe_before": term.before,
            "language_probe_after": language_accuracy(embed(sample)),
            "language_probe_chance": 1 / len(sample),
        }


class Discriminator(Term):
    """Classify features by language with one hidden layer, and reverse the gradients that reach the features."""

    def __init__(self, width: int, hidden: int, languages: int, weight: float, gamma: float, seed: int) -> None:
        super().__init__()
        self.weight, self.gamma, self.before = weight, gamma, math.nan
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, languages))

    def forward(self, network: Network, batch: Batch, outputs: Outputs, mine: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of every row's language, (rows,)."""
        factor = self.weight * (2 / (1 + math.exp(-self.gamma * float(batch["progress"]))) - 1)
        scores = self.layers(_Reversed.apply(outputs.features, factor))
        return functional.cross_entropy(scores, batch["language"], reduction="none")


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: torch.Tensor, factor: float) -> torch.Tensor:
        context.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -context.factor * gradients[0], None


def _sample(material: Material) -> dict[str, pa.Table]:
    return {code: table.slice(0, PROBED) for code, table in material.texts.items() if table.num_rows >= 2}


def language_accuracy(features: Mapping[str, np.ndarray]) -> float:
    """Measure the accuracy of a linear probe for the language of features (rows, width): 1 / languages is chance.

    It is fitted on every other row and measured on the rest, as a mean over languages, so that each counts the same.
    """
    fit = [(rows[::2], code) for code, rows in features.items()]
    scale = StandardScaler().fit(np.concatenate([rows for rows, _ in fit]))
    probe = LogisticRegression(C=0.1, max_iter=200)
    labels = np.concatenate([np.full(len(rows), code) for rows, code in fit])
    probe.fit(scale.transform(np.concatenate([rows for rows, _ in fit])), labels)
    asked = {code: rows[1::2] for code, rows in features.items() if len(rows) > 1}
    return float(np.mean([(probe.predict(scale.transform(rows)) == code).mean() for code, rows in asked.items()]))
