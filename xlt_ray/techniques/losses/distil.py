"""Distil translations into the encoder: a text as it stands learns the features that the encoder has of its meaning.

Reimers and Gurevych 2020 ("Making monolingual sentence embeddings multilingual using knowledge distillation") train a
student so that a sentence and its translation both have the features that a teacher has of the sentence; Heffernan et
al. 2022 ("Bitext mining using distilled sentence representations for low-resource languages") open languages so that no
encoder has seen. Here the teacher is the encoder before training, and the translation is either a parallel row of the
first source, the pivot, or what `translate_test` would read: the text as it stands and word by word in the pivot.

What the text itself is read as is moved onto the mean of the pivot, so that after training features of all languages
lie where those of the pivot do. Served texts need no lexicon, and are encoded once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import nn

from xlt_ray.config.experiment import Experiment
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.languages.lexicon import FEWEST_PAIRS
from xlt_ray.techniques.technique import Available, Embed, Material, Reads, Technique
from xlt_ray.translation import induced, readings
from xlt_ray.translation.lexicons import FromSources, shown
from xlt_ray.translation.translator import Lexicons, pack

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

PLACE = "techniques.distil"
MEASURED = 60  # rows a language by which the student is measured


class Distil(Technique):
    """Teach the encoder to give texts of every language the features that it has of their translations."""

    name: ClassVar[str] = "distil"
    paper: ClassVar[str] = "Reimers and Gurevych 2020, arXiv 2004.09813; Heffernan et al. 2022, arXiv 2205.12654"
    needs: ClassVar[str] = (
        "100 or more unlabelled train (else dev) rows of targets with the ids of rows of the first source, or for "
        "readings corpus.parallel, and any rows of targets"
    )
    cost: ClassVar[str] = "twice the rows an update, see training.unlabelled_rows; the teacher encodes all texts once"
    methods: ClassVar[tuple[str, ...]] = ("fine_tune",)
    reads: ClassVar[Reads] = "parallel"
    wants_unlabelled: ClassVar[bool] = True

    teacher: Literal["translations", "readings"] = Field(
        "translations",
        description="whose features are learned: those of the row's translation in the first source; or the mean of "
        "those of the text and of what translate_test reads instead of it",
    )
    scores: tuple[float, ...] = Field(
        (0.3, 0.1, 0.05), min_length=1, max_length=8, description="readings: least score of a translation, for each"
    )
    weight: float = Field(
        10.0,
        gt=0,
        description="of the squared distance, in variances of the first source's features, beside 1 for the task",
    )

    def reads_each(
        self, experiment: Experiment, targets: Collection[str], there: Collection[str]
    ) -> Mapping[str, Reads]:
        """Return what it reads of each target: of one without translations, texts alone."""
        found = dict(super().reads_each(experiment, targets, there))
        if isinstance(there, Mapping):
            faults = self._faults(experiment, there, found)
            found |= {code: "unlabelled" for code, fault in faults.items() if fault}
        return found

    def check(self, available: Available) -> None:
        """Refuse a run in which no target has translations, and warn of those that have none."""
        experiment = available.experiment
        if experiment.training.unlabelled_rows == 0:
            raise InputError(
                f"{PLACE}: learns from unlabelled rows, and training.unlabelled_rows is 0; leave it at its default"
            )
        targets = [code for code in available.targets if code in available.texts]
        self._tell(self._faults(experiment, self._rows(available), targets))

    def loss_term(
        self,
        network: Network,
        material: Material,
        embed: Embed,
        on_progress: OnProgress = lambda done, total: None,
    ) -> nn.Module:
        """Return the distance from the teacher's features, which are computed here, by the encoder as it begins."""
        texts, pivot = material.texts, material.experiment.sources[0]
        able = self._translated(material, on_progress)
        if self.teacher == "readings":
            features, shares = self._read(material, able, embed)
        else:
            alone = [code for code in texts if code not in able or _counterparts(texts, code, pivot).min() < 0]
            features, shares = embed({code: texts[code] for code in {pivot, *alone}}), {}
        origin = features[pivot].mean(0)
        scale = float(np.square(features[pivot] - origin).sum(1).mean())
        wanted: dict[str, np.ndarray] = {}
        for code in texts:
            keys = shares.get(code, {code: 1.0})
            own = [share * (features[key] - features[key].mean(0)) for key, share in keys.items() if key in features]
            wanted[code] = features[pivot] if code == pivot else np.sum(own, axis=0) + origin
            if code in able and self.teacher == "translations":
                places = _counterparts(texts, code, pivot)
                wanted[code] = np.where(places[:, None] < 0, wanted[code], features[pivot][places])
        term = Student({network.index(code): rows for code, rows in wanted.items()}, scale, self.weight)
        term.before = self._distance(network, embed, material, term)
        return term

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Measure how far the student's features are from the teacher's, before and after, and how many have one."""
        term = network.terms[self.name]
        assert isinstance(term, Student)
        after = self._distance(network, embed, material, term)
        return {"distance_before": term.before, "distance_after": after}

    def _distance(self, network: Network, embed: Embed, material: Material, term: Student) -> float:
        """Return the mean over languages, but the pivot, of the distance on some of the rows that are trained on."""
        pivot = material.experiment.sources[0]
        sample = {code: table.slice(0, MEASURED) for code, table in material.texts.items() if code != pivot}
        return float(np.mean([term.distance(network.index(code), rows) for code, rows in embed(sample).items()]))

    def _read(
        self, material: Material, able: Collection[str], embed: Embed
    ) -> tuple[Mapping[str, np.ndarray], dict[str, dict[str, float]]]:
        """Return the features of every reading, and the share of each in the mean of its language's, by key."""
        pivot, found = material.experiment.sources[0], self._lexicons(material.experiment, material.bitext)
        packed = {code: pack(found.lexicon((code, pivot))) for code in able}
        read = readings.by_lexicon(pivot, self.scores, True, Lexicons(packed))
        shares = {code: dict(zip(read.keys(code), read.shares(code).tolist(), strict=True)) for code in material.texts}
        return embed(read.tables(material.texts)), shares

    def _translated(self, material: Material, on_progress: OnProgress) -> list[str]:
        """Return the languages with rows that translate those of the pivot; warn of others, refuse where none has."""
        experiment, rows = material.experiment, self._rows(material)
        pivot, found = experiment.sources[0], self._lexicons(experiment, material.bitext)
        faults = self._faults(experiment, rows, [code for code in material.texts if code != pivot])
        able = [code for code, fault in faults.items() if fault is None]
        for number, code in enumerate(able, start=1):
            if found.fault((code, pivot)) is None:  # else it has no words to tell by
                faults[code] = found.unlike((code, pivot))
            on_progress(number, len(able))
        self._tell(faults)
        return [code for code in able if faults[code] is None]

    def _rows(self, found: Material | Available) -> Mapping[str, pa.Table]:
        """Return the rows that translations are looked for in: a student of translations learns those in the corpus."""
        return found.bitext if self.teacher == "readings" else found.texts

    def _lexicons(self, experiment: Experiment, rows: Mapping[str, pa.Table]) -> FromSources:
        settings = induced.Settings(min(self.scores), True, experiment.corpus.cache_dir)
        return FromSources(PLACE, "induced", tuple(rows), rows, settings)

    def _faults(
        self, experiment: Experiment, rows: Mapping[str, pa.Table], languages: Collection[str]
    ) -> dict[str, str | None]:
        """Return why a language has no translations, None where it has some."""
        pivot = experiment.sources[0]
        if self.teacher == "readings":
            found = self._lexicons(experiment, rows)
            return {code: found.fault((code, pivot)) for code in languages}
        pairs = {code: int((_counterparts(rows, code, pivot) >= 0).sum()) for code in languages}
        few = {code: f"{count} of its rows have the id of one of {pivot}" for code, count in pairs.items()}
        return {code: few[code] if pairs[code] < FEWEST_PAIRS else None for code in languages}

    def _tell(self, faults: Mapping[str, str | None]) -> None:
        lacking = {code: fault for code, fault in faults.items() if fault}
        if len(lacking) == len(faults):
            raise InputError(
                f"{PLACE}: no target has {FEWEST_PAIRS} rows that translate rows of the first source; give parallel "
                f"rows (equal ids, corpus.id), or put a source that has some first in sources{shown(lacking)}"
            )
        if lacking:
            warnings.warn(
                f"{PLACE}: {len(lacking)} of {len(faults)} languages have no translations, and learn to stay where the "
                f"encoder has them, about the mean of the first source{shown(lacking)}",
                stacklevel=3,
            )


def _counterparts(rows: Mapping[str, pa.Table], code: str, pivot: str) -> np.ndarray:
    """Return the place of each row's translation among the rows of the pivot, (rows,) int64, -1 where it has none."""
    if code not in rows or pivot not in rows:
        return np.full(rows[code].num_rows if code in rows else 0, -1)
    ids = rows[pivot]["id"].cast(pa.large_string()).combine_chunks()
    places = pc.index_in(rows[code]["id"].cast(pa.large_string()), value_set=ids)
    return np.asarray(pc.fill_null(places, -1).to_numpy()).astype(np.int64)


class Student(nn.Module):
    """The squared distance of features from those that are to be learned, in variances of the teacher's.

    `targets` (rows of all languages, width) float32 are no part of a checkpoint, as they are computed anew; `starts`
    (languages,) int64 are where those of a language begin.
    """

    targets: torch.Tensor
    starts: torch.Tensor

    def __init__(self, targets: Mapping[int, np.ndarray], scale: float, weight: float) -> None:
        """Hold the features to learn, (rows, width) by index of a language; distances are divided by `scale`."""
        super().__init__()
        self.scale, self.weight, self.before = scale, weight, math.nan
        sizes = np.zeros(max(targets) + 1, dtype=np.int64)
        for index, rows in targets.items():
            sizes[index] = len(rows)
        whole = np.concatenate([targets[index] for index in sorted(targets)]).astype(np.float32)
        self.register_buffer("targets", torch.from_numpy(whole), persistent=False)
        self.register_buffer("starts", torch.from_numpy(np.cumsum(sizes) - sizes), persistent=False)

    def forward(self, network: Network, batch: Mapping[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        """Return the weighted distance of every unlabelled row, (rows,), and 0 for labelled ones."""
        row = batch["row"]
        wanted = self.targets[self.starts[batch["language"]] + row.clamp(min=0)]
        distance = self.weight * (features - wanted).square().sum(1) / self.scale
        return torch.where(row < 0, 0.0, distance)

    def distance(self, language: int, features: np.ndarray) -> float:
        """Return the mean distance of the features (rows, width) of a language's first rows from those to learn."""
        start = int(self.starts[language])
        wanted = self.targets[start : start + len(features)].cpu().numpy()
        return float(np.square(features - wanted).sum(1).mean() / self.scale)
