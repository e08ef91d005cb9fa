"""Define the types that pass through a replica: a model, a question, rows for one batch, an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from serve.replica.measured import zero_shot
from xlt_ray.evaluation.calibration import Reliability
from xlt_ray.inference.artefact import Artefact
from xlt_ray.inference.engine import Engine, Row
from xlt_ray.languages.identify import Guess

DIGITS = 4  # of a probability that is shown


@dataclass(frozen=True)
class Model:
    """A model that answers: `name` is what was asked for without an alias, `version` the registry's or a digest."""

    engine: Engine
    artefact: Artefact
    name: str
    version: str

    @cached_property
    def zero_shot(self) -> Reliability:
        """How reliable its confidences are in all zero-shot languages together."""
        return zero_shot(self.artefact.languages)

    @property
    def shown(self) -> dict[str, str]:
        """The model as every answer names it."""
        return {"name": self.name, "version": self.version, "precision": self.engine.precision}


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of one request that go into one batch; `until` is a time of `time.monotonic` after which nobody waits.

    `codes` are the languages of the rows, None where one is unknown; empty where all are.
    """

    model: Model
    rows: Sequence[Row]
    until: float
    codes: Sequence[str | None] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row) for row in self.rows)


@dataclass(frozen=True)
class Question:
    """The texts of one request; `pairs` are their second texts, `languages` their codes, None where to guess."""

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    languages: Sequence[str | None] | None = None


Infer = Callable[[Chunk], Awaitable[np.ndarray]]


@dataclass(frozen=True)
class Answer:
    """The answer to a question: (texts, labels) probabilities, and for each text its language, guessed or named.

    Texts answered with less confidence than `least` get no label.
    """

    question: Question
    model: Model
    probabilities: np.ndarray
    guesses: Sequence[Guess]
    least: float = 0.0

    @cached_property
    def labels(self) -> np.ndarray:
        """The most probable label of every text."""
        return np.asarray(self.model.artefact.labels)[self.probabilities.argmax(1)]

    @cached_property
    def returned(self) -> list[str | None]:
        """The label that the client gets for every text, None where the answer abstains."""
        sure = self.probabilities.max(1).round(DIGITS) >= self.least  # by what is shown
        return [label if one else None for label, one in zip(self.labels.tolist(), sure, strict=True)]
