"""Centring: subtract from features the mean of their language, so that a head learned in one language fits the others.

Much of the difference between the features of a sentence and of its translation is common to all of a language.
Libovicky et al. 2020 ("On the language neutrality of pre-trained multilingual representations") subtract the mean of
each language; Zhao et al. 2021 ("Inducing language-agnostic multilingual representations") align and normalise
likewise. The means are estimated on unlabelled train text, after training, and are buffers of the network.

Where classes are more or less frequent from language to language, means differ by that too, and centring does harm.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import nn

from xlt_ray.corpora import mixture
from xlt_ray.errors import InputError
from xlt_ray.techniques.technique import Available, Embed, Material, Reads, Technique
from xlt_ray.translation.readings import is_first, language_of

if TYPE_CHECKING:
    from xlt_ray.model.network import Network


class Centre(Technique):
    """Subtract from the features of a text the mean of its language, estimated on unlabelled text."""

    name: ClassVar[str] = "centre"
    paper: ClassVar[str] = "Libovicky et al. 2020, arXiv 2004.05160; Zhao et al. 2021, arXiv 2008.09112"
    needs: ClassVar[str] = (
        "some hundred unlabelled train (else dev) texts of every target, classes about as frequent as in the sources"
    )
    cost: ClassVar[str] = "one pass of the encoder over those texts"
    reads: ClassVar[Reads] = "unlabelled"
    adds_languages: ClassVar[bool] = True

    rows: int = Field(500, ge=1, description="texts a language from which its mean is estimated; all, where fewer")
    remove: int = Field(
        0,
        ge=0,
        description="directions to project out along which the means of languages differ most; for a probe only",
    )

    def check(self, available: Available) -> None:
        """Refuse a corpus without text to estimate a target's mean from, and more directions than languages."""
        codes = available.measured
        there = [code for code in codes if code in available.texts]
        if not set(there) & set(available.targets):
            raise InputError(
                f"techniques.centre: none of the targets ({', '.join(codes[:5])} ...) has train or dev rows to "
                "estimate its mean from; add some, their labels are not looked at"
            )
        if self.remove and available.experiment.training.method != "probe":
            raise InputError(
                f"techniques.centre.remove: {self.remove}: directions cannot be taken from a head that was fine-tuned "
                "with them; set remove to 0, or training.method to probe"
            )
        if self.remove and self.remove >= len(there):
            raise InputError(
                f"techniques.centre.remove: {self.remove} directions of {len(there)} languages; give less than that"
            )

    def attach(self, network: Network, tokenizer: Any, material: Material | None) -> None:
        """Add the subtraction as a step behind the pooling; until `calibrate` it subtracts nothing."""
        network.steps[self.name] = Shift(len(network.languages), network.head.in_features, self.remove)

    def texts(self, material: Material) -> Mapping[str, pa.Table]:
        """Return a sample of the texts of every language, in each of its readings."""
        read = [material.to_estimate(code, table) for code, table in material.texts.items()]
        return {key: self._sample(language_of(key), table) for one in read for key, table in one.items()}

    def _sample(self, code: str, table: pa.Table) -> pa.Table:
        if table.num_rows <= self.rows:
            return table
        order = np.random.default_rng(zlib.crc32(code.encode())).permutation(table.num_rows)
        return table.take(np.sort(order[: self.rows]))

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Estimate the means with the trained encoder.

        Languages are moved onto the mean of the sources, each counted by its share of the mixture. The sources of a
        fine-tuned head stay, as it has learned them where they are; a probe is fitted after this, and all move.
        """
        features = embed(self.texts(material))
        means: dict[str, Any] = {c: rows.mean(0, dtype=np.float64) for c, rows in features.items() if len(rows)}
        experiment = material.experiment
        sizes = {code: material.texts[code].num_rows for code in experiment.sources if code in means}
        if not sizes:
            raise InputError("techniques.centre: no source has text to estimate its mean from; add train rows")
        share = mixture.shares(sizes, experiment.mixture.alpha, experiment.mixture.weights)
        origin = sum(share[code] * means[code] for code in share)
        fixed = material.trained if experiment.training.method == "fine_tune" else ()
        step = network.steps[self.name]
        assert isinstance(step, Shift)
        step.estimate(network.languages, means, origin, fixed)
        within = np.mean([float(rows.std(0).mean()) for rows in features.values()])
        as_they_stand = {code: mean for code, mean in means.items() if is_first(code)}
        apart = [float(np.abs(mean - origin).mean()) for code, mean in as_they_stand.items() if code not in sizes]
        return {"languages": float(len(as_they_stand)), "shift_in_deviations": float(np.mean(apart or [0.0]) / within)}

    def add_language(self, network: Network, code: str, features: np.ndarray) -> None:
        """Estimate the mean of one more language, or anew that of a known one."""
        step = network.steps[self.name]
        assert isinstance(step, Shift)
        step.add(network.index(code), features.mean(0, dtype=np.float64))


class Shift(nn.Module):
    """Subtract a vector that depends on the language, then project out directions common to all.

    `shift` is (languages + 1, width); its last row is for every other language and for an unknown one.
    """

    shift: torch.Tensor
    origin: torch.Tensor
    directions: torch.Tensor

    def __init__(self, languages: int, width: int, remove: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(languages + 1, width))
        self.register_buffer("origin", torch.zeros(width))
        self.register_buffer("directions", torch.zeros(remove, width))

    def forward(self, features: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
        """Map features (rows, width) of languages (rows,), -1 where unknown, to features of the same shape."""
        features = features - self.shift[language]
        if len(self.directions):
            features = features - ((features - self.origin) @ self.directions.T) @ self.directions
        return features

    def estimate(
        self, languages: Sequence[str], means: Mapping[str, np.ndarray], origin: np.ndarray, fixed: Sequence[str]
    ) -> None:
        """Set the buffers from the means (width,) of languages; those in `fixed` are not shifted."""
        shifts: dict[str, np.ndarray] = {code: mean - origin for code, mean in means.items()}
        everywhere: np.ndarray = np.mean([shift for code, shift in shifts.items() if is_first(code)], axis=0)
        rows: list[np.ndarray] = [
            np.zeros_like(origin) if code in fixed else shifts.get(code, everywhere) for code in languages
        ]
        self.shift.copy_(torch.from_numpy(np.stack([*rows, everywhere])))
        self.origin.copy_(torch.from_numpy(np.asarray(origin)))
        if len(self.directions):
            spread = np.stack([shift for code, shift in shifts.items() if is_first(code)]) - everywhere
            self.directions.copy_(
                torch.from_numpy(np.linalg.svd(spread, full_matrices=False)[2][: len(self.directions)])
            )

    def add(self, index: int, mean: np.ndarray) -> None:
        """Set the shift of one language from its mean (width,); an `index` that is new is put before the last row."""
        row = torch.from_numpy(mean).to(self.shift) - self.origin
        if index < len(self.shift) - 1:
            self.shift[index] = row
        else:
            self.shift = torch.cat([self.shift[:-1], row[None], self.shift[-1:]])
