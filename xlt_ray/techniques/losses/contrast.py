"""Contrastive alignment: a text is to be nearer to its translation than to those of other texts.

Feng et al. 2022 ("Language-agnostic BERT sentence embedding"), equations 1 and 2: softmax over the translations of a
batch, both ways, with a margin that the right one has to have. Here a batch is an atomic group of one language, see
`corpora.streams`: its texts are all different, none of them is a translation of another, and it is the same whatever
the number of workers and the token budget.

Cosines are of features less the mean of the pivot's, the first source: features of an encoder share a large part that
tells nothing. With `anchor: frozen` the translations are encoded once, by the encoder as it begins, and the pivot's own
texts learn to stay near them, so that what a task knows of the pivot is not lost; otherwise both sides move. The task
trains the head alone, as beside `distil`, and for its reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch.nn import functional

from xlt_ray.corpora.arrow import take
from xlt_ray.corpora.streams import Groups, held_out, pairs
from xlt_ray.events import OnProgress
from xlt_ray.languages.lexicon import FEWEST_PAIRS
from xlt_ray.techniques.losses import translations
from xlt_ray.techniques.losses.translations import OfTranslations
from xlt_ray.techniques.technique import Compute, Embed, Material
from xlt_ray.techniques.term import Batch, Outputs, Term
from xlt_ray.translation.retrieval import retrieval

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

PLACE = "techniques.contrast"
SAMPLE = 1000  # translations by whose mean the origin is estimated where they are not frozen
HELD = 50  # pairs a language that are not learned from, by which retrieval is measured


class Contrast(OfTranslations):
    """Teach the encoder to place a text nearer to its translation than to those of other texts."""

    name: ClassVar[str] = "contrast"
    paper: ClassVar[str] = "Feng et al. 2022, arXiv 2007.01852; with a frozen anchor Reimers and Gurevych 2020"
    needs: ClassVar[str] = (
        "100 or more unlabelled train (else dev) rows of targets with the ids of rows of the first source, or "
        "corpus.parallel"
    )
    cost: ClassVar[str] = (
        "2 x group x groups rows an update besides the labelled ones; 1 s a language to judge its rows, on every "
        "worker; with anchor: frozen all translations are encoded once, and every worker holds their features"
    )
    holds_encoder: ClassVar[bool] = True

    temperature: float = Field(
        0.05, ge=0.001, le=100, description="cosines are divided by it; a small one looks at the nearest"
    )
    margin: float = Field(0.1, ge=0, lt=2, description="taken from the cosine of a translation, which has to make up")
    group: int = Field(16, ge=2, le=FEWEST_PAIRS - HELD, description="pairs among which a text has to find its own")
    groups: int = Field(4, ge=1, description="such groups an update, each of one language")
    anchor: Literal["frozen", "trained"] = Field(
        "frozen", description="the features of the pivot: those of the encoder as it begins, all layers, or as it is"
    )
    weight: float = Field(1.0, gt=0, description="beside other losses")

    def loss_term(
        self,
        network: Network,
        material: Material,
        compute: Compute,
        on_progress: OnProgress = lambda done, total: None,
    ) -> Term:
        """Return the loss with its groups, after measuring retrieval; frozen anchors are computed here."""
        texts, pivot = material.bitext, material.experiment.sources[0]
        judged, faults = translations.translated(material.experiment, texts, on_progress)
        found = {code: pairs(texts[code], texts[pivot]) for code in judged}
        held = {code: own[held_out(take(texts[pivot], own[:, 1]), HELD)] for code, own in found.items()}
        apart = np.concatenate([np.empty(0, np.int64), *(own[:, 1] for own in held.values())])
        learned = {code: own[~np.isin(own[:, 1], apart)] for code, own in found.items()}
        few = {code: len(own) for code, own in learned.items() if len(own) < self.group or len(held[code]) < HELD}
        faults |= {
            code: f"{count} pairs are left to learn from, without texts that stand twice and those that are held out"
            for code, count in few.items()
        }
        self.tell(faults, pivot)
        held, learned = ({code: own for code, own in kept.items() if code not in few} for kept in (held, learned))
        measured = {code: (take(texts[code], own[:, 0]), take(texts[pivot], own[:, 1])) for code, own in held.items()}
        used = np.unique(np.concatenate([own[:, 1] for own in learned.values()]))
        learned = {code: np.stack([own[:, 0], np.searchsorted(used, own[:, 1])], 1) for code, own in learned.items()}
        translated = take(texts[pivot], used)
        # in one order on all workers, which compute the same pieces together
        if self.anchor == "frozen":
            anchors = compute.whole()({pivot: translated})[pivot]
        else:
            anchors = compute({pivot: translated.slice(0, SAMPLE)})[pivot]
        translations.spread(anchors, "network.init", pivot)
        stream = Groups(
            {**{code: texts[code] for code in learned}, pivot: translated}, pivot, learned, self.group, self.groups
        )
        term = Alignment(self, stream, anchors, measured)
        term.before = _retrieval(compute(_tables(measured)), measured)
        return term

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Measure retrieval of pairs that were not learned from, before training and after, a mean over languages."""
        term = network.terms[self.name]
        assert isinstance(term, Alignment)
        after = _retrieval(embed(_tables(term.measured)), term.measured)
        both = {"before": term.before, "after": after}
        return {f"{figure}_{when}": value for when, found in both.items() for figure, value in found.items()}


Measured = Mapping[str, tuple[pa.Table, pa.Table]]  # texts and their translations, in the same order


def _tables(measured: Measured) -> dict[str, pa.Table]:
    """Return the tables whose features show retrieval, by a name for each."""
    names = {f"{code}, held out": rows for code, (rows, _) in measured.items()}
    return names | {f"{code}, translated": others for code, (_, others) in measured.items()}


def _retrieval(features: Mapping[str, np.ndarray], measured: Measured) -> dict[str, float]:
    found = [retrieval(features[f"{code}, held out"], features[f"{code}, translated"]) for code in measured]
    both = [(one.forward + one.backward) / 2 for one in found]
    return {"retrieval": float(np.mean(both)), "xsim": float(np.mean([one.xsim for one in found]))}


class Alignment(Term):
    """Softmax over the translations of a group, both ways.

    `anchors`, (rows of the stream's pivot, width), are no part of a checkpoint, as they are computed anew.
    """

    anchors: torch.Tensor
    origin: torch.Tensor

    def __init__(self, asked: Contrast, stream: Groups, anchors: np.ndarray, measured: Measured) -> None:
        """Hold the features of the pivot's texts, or of a sample, as the encoder has them at the beginning."""
        super().__init__()
        self.asked, self.stream, self.measured = asked, stream, measured
        self.before: dict[str, float] = {"retrieval": math.nan, "xsim": math.nan}
        whole = torch.from_numpy(np.ascontiguousarray(anchors, dtype=np.float32))
        self.register_buffer("anchors", whole, persistent=False)
        self.register_buffer("origin", whole.mean(0), persistent=False)

    def forward(self, network: Network, batch: Batch, outputs: Outputs, mine: torch.Tensor) -> torch.Tensor:
        """Return the loss of each text of a group, (rows,), and 0 for the rows of a batch without groups."""
        if not mine.any():  # groups have batches of their own
            return outputs.features.new_zeros(len(mine))
        sides = functional.normalize(outputs.features - self.origin, dim=1).unflatten(0, (-1, 2, self.asked.group))
        rows, own = sides[:, 0], sides[:, 1]
        if self.asked.anchor == "trained":
            found = self._both_ways(rows, own)
            losses = torch.stack([found, found], dim=1)
        else:
            places = batch["row"].unflatten(0, (-1, 2, self.asked.group))[:, 1]
            anchors = functional.normalize(self.anchors[places] - self.origin, dim=2)
            losses = torch.stack([self._both_ways(rows, anchors), self._both_ways(own, anchors)], dim=1)
        return self.asked.weight * losses.flatten()

    def _both_ways(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return the mean of the losses from the rows to the others and back, (groups, group), of unit vectors."""
        with torch.autocast(rows.device.type, enabled=False):  # what is divided by the temperature needs its digits
            cosines = rows.float() @ others.float().transpose(1, 2)
        right = torch.eye(self.asked.group, dtype=cosines.dtype, device=cosines.device)
        scores = (cosines - self.asked.margin * right) / self.asked.temperature
        there, back = (-functional.log_softmax(one, dim=2).diagonal(dim1=1, dim2=2) for one in (scores, scores.mT))
        return (there + back) / 2
