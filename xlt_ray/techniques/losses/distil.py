"""Distil translations into the encoder: a text learns the features that the encoder had of its translation.

Reimers and Gurevych 2020 ("Making monolingual sentence embeddings multilingual using knowledge distillation") train a
student to give a sentence and its translation the features that a teacher has of the sentence; Heffernan et al. 2022
("Bitext mining using distilled sentence representations for low-resource languages") open languages in this way that
no encoder has seen. Here the teacher is the encoder before training, with all of its layers where the student keeps
some (`network.layers`), as Sanh et al. 2019 begin a smaller student ("DistilBERT", arXiv 1910.01108); or with `of` the
model of a finished run, of any encoder. What it reads is a parallel row of the first source, the pivot, or the readings
of `translate_test`: the text as it stands, and word by word in the pivot.

After training, features of all languages lie about the mean of the pivot. Texts that are served need no lexicon, and
are encoded once. The task trains the head alone: rows without labels would not follow where it takes the features of
those with labels (measured: 51% on languages where English has 93%).

With `what: logits` a text learns the teacher's distribution over classes instead (Hinton et al. 2015, "Distilling the
knowledge in a neural network", section 2): KL(p || q) T^2, where p and q are softmaxes of the teacher's logits and of
its own, divided by the temperature T. There the task and the teacher ask for the same, the right class, so both train
head and encoder together, and nothing holds features where the teacher has them; its width and pieces may differ.
Logits are those before calibration, and those of several readings of a text are averaged, as where texts are served.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch.nn import functional

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.streams import UNLABELLED, counterparts
from xlt_ray.errors import InputError, joined
from xlt_ray.events import OnProgress
from xlt_ray.techniques.losses import translations
from xlt_ray.techniques.losses.teacher import Teacher, logits
from xlt_ray.techniques.losses.translations import Bitext, Faults
from xlt_ray.techniques.technique import Available, Compute, Embed, Material, Reads, Technique
from xlt_ray.techniques.term import Batch, Outputs, Term
from xlt_ray.techniques.translate_test import Scores
from xlt_ray.translation import induced, readings
from xlt_ray.translation.translator import Lexicons, pack

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

PLACE = "techniques.distil"
MEASURED = 20  # rows a language by which the student is measured
TEMPERATURE = 2.0


class Distil(Technique):
    """Teach the encoder to give texts of every language what it, or another model, has of their translations.

    What that model was trained on, and what its run read of targets, counts as read by this run.
    """

    name: ClassVar[str] = "distil"
    paper: ClassVar[str] = (
        "Reimers and Gurevych 2020, arXiv 2004.09813; Heffernan et al. 2022, arXiv 2205.12654; logits: Hinton et al. "
        "2015, arXiv 1503.02531"
    )
    needs: ClassVar[str] = (
        "100 or more unlabelled train (else dev) rows of targets with the ids of rows of the first source, or "
        "corpus.parallel; with teacher: readings, any rows of targets besides"
    )
    cost: ClassVar[str] = (
        "twice the rows an update, see training.unlabelled_rows; 1 s a language for lexicons, on every worker; the "
        "teacher, which is in memory until then, encodes texts once, and every worker holds their features (4 bytes x "
        "width a row) or logits"
    )
    methods: ClassVar[tuple[str, ...]] = ("fine_tune", "adapt")
    reads: ClassVar[Reads] = "parallel"
    wants_unlabelled: ClassVar[bool] = True
    wants_parallel: ClassVar[bool] = True
    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {"of": ()}

    of: str | None = Field(
        None,
        min_length=1,
        description="the bundle of a finished run that learned a task, as teacher; default: the encoder as it begins",
    )
    what: Literal["features", "logits"] = Field(
        "features", description="what a text learns of the teacher; logits: of one of the same task and labels"
    )
    temperature: float | None = Field(
        None,
        ge=0.01,
        le=1000,
        description=f"logits: what those of teacher and student are divided by; default: {TEMPERATURE:g}",
    )
    teacher: Literal["translations", "readings"] = Field(
        "translations",
        description="of which text they are: of its translation in the first source; or of itself and of its "
        "word-by-word readings in it, as translate_test makes them, the mean",
    )
    scores: Scores = Field(
        (0.3, 0.1, 0.05), min_length=1, max_length=8, description="readings: least score of a translation, for each"
    )
    weight: float = Field(
        1.0,
        gt=0,
        description="of the squared distance, in variances of the first source's features, or of the divergence of "
        "logits, beside other losses",
    )

    @field_validator("what")
    @classmethod
    def _answered(cls, what: str, info: ValidationInfo) -> str:
        if what == "logits" and "of" in info.data and info.data["of"] is None:
            raise ValueError(
                "logits, but the encoder as it begins answers nothing; name a bundle in techniques.distil.of"
            )
        return what

    @field_validator("temperature")
    @classmethod
    def _of_logits(cls, temperature: float | None, info: ValidationInfo) -> float | None:
        if temperature is not None and info.data.get("what") == "features":
            raise ValueError(f"{temperature:g}, but features have none; leave it out, or take what: logits")
        return temperature

    @property
    def holds_encoder(self) -> bool:
        """Whether the task trains the head alone: not where task and teacher ask for the same."""
        return self.what == "features"

    @property
    def bundles(self) -> Mapping[str, Path]:
        """The teacher, where it is a bundle."""
        return {} if self._teacher is None else {"of": self._teacher.folder}

    @property
    def _teacher(self) -> Teacher | None:
        return None if self.of is None else Teacher(f"{PLACE}.of", Path(self.of).expanduser())

    def reads_each(
        self, experiment: Experiment, targets: Collection[str], there: Collection[str]
    ) -> Mapping[str, Reads]:
        """Return what it reads of each target: of one without translations, texts alone."""
        found = dict(super().reads_each(experiment, targets, there))
        if isinstance(there, Mapping):
            faults = self._faults(there, found, experiment.sources[0])
            found |= {code: "unlabelled" for code, fault in faults.items() if fault}
        return found

    def check(self, available: Available) -> None:
        """Refuse a run that the teacher cannot teach, or without translations; warn of languages that have none."""
        if available.experiment.training.unlabelled_rows == 0:
            raise InputError(
                f"{PLACE}: learns from unlabelled rows, and training.unlabelled_rows is 0; leave it at its default"
            )
        answers = self.what == "logits"
        if answers and not available.experiment.training.labelled:
            raise InputError(
                f"{PLACE}.what: logits, but training.method: adapt learns no task; take features, or "
                "training.method=fine_tune"
            )
        if self._teacher is not None and (faults := [*self._teacher.faults(available, answers)]):
            raise joined(faults)
        pivot = available.experiment.sources[0]
        rows = available.bitext
        self._tell(self._faults(rows, [code for code in rows if code != pivot], pivot), pivot)

    def check_encoder(self, network: Network, tokenizer: Any) -> None:
        """Refuse a teacher whose features have another width, where these are learned."""
        teacher = self._teacher
        width = None if teacher is None or self.what == "logits" else teacher.width()
        if width is not None and width != (own := network.head.in_features):
            raise InputError(
                f"{PLACE}.of: the features of {self.of} have {width} numbers, and those of network.init {own}; take a "
                "teacher of equal width, or what: logits"
            )

    def loss_term(
        self,
        network: Network,
        material: Material,
        compute: Compute,
        on_progress: OnProgress = lambda done, total: None,
    ) -> Term:
        """Return the distance from what the teacher has, which is computed here."""
        texts, pivot = material.bitext, material.experiment.sources[0]
        read, places = self._read(material, on_progress), {}
        if self.teacher == "translations":
            places = {code: counterparts(texts[code], texts[pivot]) for code in read if code != pivot}
            alone = [code for code in texts if code not in places or places[code].min() < 0]
            read = {code: {code: texts[code]} for code in alone}
        tables = {key: table for each in read.values() for key, table in each.items()}
        # in one order on all workers, which compute the same pieces together
        if self._teacher is not None:
            teacher, found = None, self._teacher.teach(compute, tables, self.what == "logits")
        else:
            teacher = compute.whole()
            found = teacher(tables)
        origin = found[pivot].mean(0)
        wanted: dict[int, np.ndarray] = {}
        for code in texts:
            there = found[pivot] if code == pivot else found[pivot][places[code]] if code in places else None
            if code in read and code != pivot:
                own = self._own([found[key] for key in read[code]], origin)
                there = own if there is None else np.where(places[code][:, None] < 0, own, there)
            assert there is not None, "what has no translation is read as it stands"
            wanted[network.index(code)] = there
        if self.what == "logits":
            term: Student = Answering(wanted, len(network.languages), self.temperature or TEMPERATURE, self.weight)
        else:
            place = "network.init" if self.of is None else f"{PLACE}.of"
            scale = translations.spread(found[pivot], place, pivot)
            term = Student(wanted, len(network.languages), scale, self.weight)
        known = {code: found[code] for code in read} if teacher is compute else {}
        first = compute({code: table.slice(0, MEASURED) for code, table in texts.items() if code not in known})
        term.before = self._distance(network, {code: {**known, **first}[code] for code in texts}, pivot, term)
        return term

    def _own(self, found: list[np.ndarray], origin: np.ndarray) -> np.ndarray:
        """Return the mean of what the teacher has of a text's readings; of features each about its own mean."""
        if self.what == "logits":
            return np.mean(found, axis=0)
        return np.mean([rows - rows.mean(0) for rows in found], axis=0) + origin

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Measure how far features are from those that were to be learned, before training and after."""
        term = network.terms[self.name]
        assert isinstance(term, Student)
        features = embed({code: table.slice(0, MEASURED) for code, table in material.bitext.items()})
        after = self._distance(network, features, material.experiment.sources[0], term)
        return {"distance_before": term.before, "distance_after": after}

    def _distance(self, network: Network, features: Mapping[str, np.ndarray], pivot: str, term: Student) -> float:
        """Return the mean over languages, but the pivot, of the distance on some of the rows that are trained on."""
        others = {network.index(code): rows[:MEASURED] for code, rows in features.items() if code != pivot}
        return float(np.mean([term.distance(network, index, rows) for index, rows in others.items()]))

    def _read(self, material: Material, on_progress: OnProgress) -> dict[str, dict[str, pa.Table]]:
        """Return how the teacher reads texts: their tables by language and key of a reading, the original among them.

        Of `translations` only languages that have some are there. Warns of languages without, and raises InputError
        where none is left.
        """
        rows, pivot = material.bitext, material.experiment.sources[0]
        settings = induced.Settings(min(self.scores), True, material.experiment.corpus.cache_dir)
        faults = self._faults(rows, [code for code in rows if code != pivot], pivot)
        found = {code: {code: table} for code, table in rows.items()}
        for code in translations.judged(rows, faults, pivot, settings, on_progress):
            if self.teacher == "readings":
                lexicons = Lexicons({code: pack(induced.induce((code, pivot), (rows[code], rows[pivot]), settings))})
                found[code] = readings.by_lexicon(pivot, self.scores, True, lexicons).tables(found[code])
        self._tell(faults, pivot)
        if self.teacher == "translations":
            found = {code: tables for code, tables in found.items() if faults.get(code) is None}
        return found

    def _faults(self, rows: Bitext, languages: Collection[str], pivot: str) -> Faults:
        """Return why a language has no translations, None where it has some."""
        if self.teacher == "readings":
            return {code: induced.fault((code, pivot), rows) for code in languages}
        return translations.faults(rows, languages, pivot)

    def _tell(self, found: Faults, pivot: str) -> None:
        own = "stay where the encoder has them" if self.of is None else "have what the teacher has of themselves"
        without = f"learn to {own}" + (f", about the mean of {pivot}" if self.what == "features" else "")
        translations.tell(PLACE, found, pivot, without)


class Student(Term):
    """The squared distance of features from those that are to be learned, in variances of the teacher's.

    `targets` (rows of all languages, width) float32 are no part of a checkpoint, as they are computed anew; `starts`
    (languages,) int64 are where those of a language begin.
    """

    streams = (UNLABELLED,)
    targets: torch.Tensor
    starts: torch.Tensor

    def __init__(self, targets: Mapping[int, np.ndarray], languages: int, scale: float, weight: float) -> None:
        """Hold the features to learn, (rows, width) by index of a language; distances are divided by `scale`."""
        super().__init__()
        self.scale, self.weight, self.before = scale, weight, math.nan
        sizes = np.zeros(languages, dtype=np.int64)
        for index, rows in targets.items():
            sizes[index] = len(rows)
        whole = np.concatenate([targets[index] for index in sorted(targets)]).astype(np.float32, copy=False)
        self.register_buffer("targets", torch.from_numpy(whole), persistent=False)
        self.register_buffer("starts", torch.from_numpy(np.cumsum(sizes) - sizes), persistent=False)

    def forward(self, network: Network, batch: Batch, outputs: Outputs, mine: torch.Tensor) -> torch.Tensor:
        """Return the weighted distance of every unlabelled row, (rows,), and 0 for others."""
        row = batch["row"]
        wanted = self.targets[torch.where(mine, self.starts[batch["language"]] + row, 0)]
        return torch.where(mine, self.weight * self.apart(outputs, wanted), 0.0)

    def apart(self, outputs: Outputs, wanted: torch.Tensor) -> torch.Tensor:
        """Return the distance of every row, (rows,), from what it is to learn, (rows, width)."""
        return (outputs.features - wanted).square().sum(1) / self.scale

    def distance(self, network: Network, language: int, features: np.ndarray) -> float:
        """Return the mean distance of the features (rows, width) of a language's first rows from those to learn."""
        start = int(self.starts[language])
        wanted = self.targets[start : start + len(features)].cpu().numpy()
        return float(np.square(features - wanted).sum(1).mean() / self.scale)


class Answering(Student):
    """The divergence of the distribution over classes from the teacher's, at temperature T: KL(p || q) T^2.

    `targets` are the teacher's logits, (rows, classes); `scale` is T.
    """

    def apart(self, outputs: Outputs, wanted: torch.Tensor) -> torch.Tensor:
        """Return the divergence of every row, (rows,)."""
        return self._divergence(outputs.logits, wanted)

    def distance(self, network: Network, language: int, features: np.ndarray) -> float:
        """Return the mean divergence on a language's first rows, of which a network is given the features."""
        start = int(self.starts[language])
        found = torch.from_numpy(logits(network, features, language))
        return float(self._divergence(found, self.targets[start : start + len(features)].cpu()).mean())

    def _divergence(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        own, taught = (functional.log_softmax(one.float() / self.scale, dim=1) for one in (found, wanted))
        return functional.kl_div(own, taught, reduction="none", log_target=True).sum(1) * self.scale**2
