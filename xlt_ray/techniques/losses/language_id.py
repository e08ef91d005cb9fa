"""Language identification as a second task: the opposite of adversarial training.

Caruana 1997 ("Multitask learning"). A linear head names a text's language from its features, and its cross-entropy is
added to the task's, on labelled and unlabelled rows alike. A negative result, kept to be compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.techniques.technique import Available, Compute, Material, Reads, Technique
from xlt_ray.techniques.term import Batch, Outputs, Term
from xlt_ray.translation.readings import is_first

if TYPE_CHECKING:
    from xlt_ray.model.network import Network


class LanguageId(Technique):
    """Classify texts by language as a second task, from the features of the first."""

    name: ClassVar[str] = "language_id"
    paper: ClassVar[str] = "Caruana 1997, Machine Learning 28"
    needs: ClassVar[str] = "unlabelled train rows of sources and targets, which join every update"
    cost: ClassVar[str] = "twice the rows an update; see training.unlabelled_rows"
    methods: ClassVar[tuple[str, ...]] = ("fine_tune",)
    reads: ClassVar[Reads] = "unlabelled"
    wants_unlabelled: ClassVar[bool] = True

    weight: float = Field(0.1, gt=0, description="of its cross-entropy, beside 1 for that of the task")

    def check(self, available: Available) -> None:
        """Refuse a run of one language."""
        if len(available.languages) < 2:
            raise InputError("techniques.language_id: there is one language only; add sources or targets")

    def loss_term(
        self,
        network: Network,
        material: Material,
        compute: Compute,
        on_progress: OnProgress = lambda done, total: None,
    ) -> Term:
        """Return the second head."""
        languages = sum(map(is_first, network.languages))
        return LanguageHead(network.head.in_features, languages, self.weight, network.seed)


class LanguageHead(Term):
    """A linear layer from features to languages."""

    def __init__(self, width: int, languages: int, weight: float, seed: int) -> None:
        super().__init__()
        self.weight = weight
        self.layer = nn.utils.skip_init(nn.Linear, width, languages)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.layer.weight.normal_(0.0, 0.02, generator=generator)
            self.layer.bias.zero_()

    def forward(self, network: Network, batch: Batch, outputs: Outputs, mine: torch.Tensor) -> torch.Tensor:
        """Return the weighted cross-entropy of every row's language, (rows,)."""
        return self.weight * functional.cross_entropy(self.layer(outputs.features), batch["language"], reduction="none")
