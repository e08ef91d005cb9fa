"""Few-shot transfer: train on some labelled rows of targets as well, whose results are zero-shot no more.

Lauscher et al. 2020 ("From zero to hero") find that a few rows help most where zero-shot transfer is worst. Zhao et al.
2021 ("A closer look at few-shot crosslingual transfer: the choice of shots matters") find differences of more than ten
points between draws of the shots, so a result needs several draws, numbered by `draw`.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.languages import codes
from xlt_ray.techniques.technique import Available, Material, Reads, Technique


class FewShot(Technique):
    """Train on a few labelled rows a class of targets, beside the sources or, as a second stage, on them alone."""

    name: ClassVar[str] = "few_shot"
    paper: ClassVar[str] = "Lauscher et al. 2020, arXiv 2005.00633; Zhao et al. 2021, arXiv 2012.15682"
    needs: ClassVar[str] = "labelled train rows of the targets; the run is labelled few-shot everywhere"
    cost: ClassVar[str] = "that of training on so many more rows"
    reads: ClassVar[Reads] = "labels"
    shots_and_draw: ClassVar[tuple[str, str] | None] = ("shots", "draw")

    shots: int = Field(10, ge=1, description="rows a class and language; all, where there are fewer")
    languages: tuple[str, ...] | Literal["targets"] = Field("targets", description="targets whose rows are taken")
    draw: int = Field(0, ge=0, description="which draw of the shots; a larger number of shots keeps those of a smaller")
    alone: bool = Field(
        False, description="leave the sources' rows out: a second stage, from the bundle in network.init with its head"
    )

    @field_validator("languages")
    @classmethod
    def _canonical(cls, languages: tuple[str, ...] | str) -> tuple[str, ...] | str:
        return languages if isinstance(languages, str) else tuple(codes.resolve(code) for code in languages)

    def check(self, available: Available) -> None:
        """Refuse languages that are sources or lack train rows, and a second stage that begins with a fresh head."""
        experiment, there, targets = available.experiment, available.labelled, available.targets
        for code in self.languages if not isinstance(self.languages, str) else ():
            if code in experiment.sources:
                raise InputError(
                    f"techniques.few_shot.languages: {code} is a source, whose rows are all used; leave it out"
                )
            if code not in targets:
                raise InputError(f"techniques.few_shot.languages: {code} is no target; add it to targets")
            if code not in there:
                raise InputError(f"techniques.few_shot.languages: {code} has no train rows to take shots of; add some")
        if not any(code in there for code in targets):
            raise InputError("techniques.few_shot: no target has train rows to take shots of; add some, or take it out")
        if self.alone and experiment.training.method == "fine_tune" and experiment.network.head == "fresh":
            raise InputError(
                "techniques.few_shot.alone: a second stage goes on with a head that was trained; set network.init to "
                "the bundle of a zero-shot run and network.head=bundle"
            )

    @property
    def second_stage(self) -> bool:
        """Whether the sources' rows are left out."""
        return self.alone

    def reads_of(self, targets: Collection[str], there: Collection[str]) -> tuple[str, ...]:
        """Return the targets that shots are taken of."""
        return super().reads_of(targets, there) if isinstance(self.languages, str) else self.languages

    def corpus(self, corpus: Corpus, material: Material, on_progress: OnProgress = lambda done, total: None) -> Corpus:
        """Add the shots to train."""
        wanted = material.shots if isinstance(self.languages, str) else self.languages
        shots = {code: self.of(material.shots[code], code) for code in wanted}
        rest = replace(corpus, splits={**corpus.splits, "train": {}}) if self.alone else corpus
        return rest.adding("train", shots)

    def of(self, table: pa.Table, code: str) -> pa.Table:
        """Draw the shots of a language: the first `shots` rows of each class in a seeded order."""
        order = np.random.default_rng([self.draw, zlib.crc32(code.encode())]).permutation(table.num_rows)
        labels = table["label"].to_numpy()[order]
        rows = [order[labels == label][: self.shots] for label in np.unique(labels)]
        return table.take(np.sort(np.concatenate(rows)))
