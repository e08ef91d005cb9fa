"""Define the types that pass through a replica: a model, a question, rows for one batch, an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from serve.replica.measured import zero_shot
from xlt_ray.evaluation.calibration import Reliability
from xlt_ray.inference import tagging
from xlt_ray.inference.artefact import Artefact
from xlt_ray.inference.engine import Engine, Row
from xlt_ray.languages import words as splitting
from xlt_ray.languages.identify import Guess
from xlt_ray.translation.readings import ORIGINAL, Asked

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

    `codes` are the languages of the rows, or keys of their readings, None where one is unknown; empty where all are.
    `parts` say what part of its text's rows each row is; empty where each is a text.
    """

    model: Model
    rows: Sequence[Row]
    until: float
    codes: Sequence[str | None] = ()
    parts: Sequence[float] = ()

    @property
    def texts(self) -> float:
        """How many texts the rows are."""
        return float(sum(self.parts)) if self.parts else float(len(self.rows))

    @cached_property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row) for row in self.rows)

    @property
    def answers(self) -> int:
        """How many answers the rows want: one each, or one for each of their words."""
        return len(self.rows) if self.model.engine.words is None else int(tagging.sizes(self.rows).sum())


@dataclass(frozen=True)
class Question:
    """The texts of one request; `pairs` are their second texts, `languages` their codes, None where to guess."""

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    languages: Sequence[str | None] | None = None


@dataclass(frozen=True)
class Wanted:
    """What a client wants of answers: labels a text, the least confidence of one, and the texts as they were read.

    Without `min_confidence` the server's own holds.
    """

    top_k: int = 1
    min_confidence: float | None = None
    readings: bool = False


Infer = Callable[[Chunk], Awaitable[np.ndarray]]


@dataclass(frozen=True)
class Answer:
    """The answer to a question: (texts, labels) probabilities, and for each text its language, guessed or named.

    `asked` are the texts as the model read them. Texts answered with less confidence than `least` get no label. A model
    of words has probabilities (words, tags), those of the words of a text together, and a tag for each.
    """

    question: Question
    model: Model
    probabilities: np.ndarray
    guesses: Sequence[Guess]
    asked: Asked
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

    @cached_property
    def words(self) -> list[list[tagging.Word]]:
        """Of a model of words the words of every text, with their places, tags and probabilities."""
        places = [splitting.split(text) for text in self.question.texts]
        return tagging.tagged(self.model.artefact.labels, places, self.probabilities)

    @property
    def read(self) -> list[str]:
        """How every text was read, in words."""
        readings = self.model.engine.readings
        return [ORIGINAL if readings is None else readings.describe(guess.code) for guess in self.guesses]

    @property
    def readings(self) -> list[list[dict[str, Any]]]:
        """Every text as it was read: the name, the weight and the text of each reading, and its pair where it has one.

        The weights of a text's readings sum to 1.
        """
        readings, asked = self.model.engine.readings, self.asked
        names = [[ORIGINAL] if readings is None else readings.named(guess.code) for guess in self.guesses]
        found: list[list[dict[str, Any]]] = [[] for _ in self.guesses]
        for i, owner in enumerate(asked.owners.tolist()):
            one = {"name": names[owner][len(found[owner])], "weight": round(float(asked.shares[i]), DIGITS)}
            pair = {} if asked.pairs is None else {"pair": asked.pairs[i]}
            found[owner].append(one | {"text": asked.texts[i]} | pair)
        return found
