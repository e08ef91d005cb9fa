"""The interface of a task: what is asked of a text, how it is learned, and how answers are scored.

A row has one answer, or, where `sizes` says so, several, such as one for each of its words. Arrays of answers hold
those of all rows one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.streams import Encoded
from xlt_ray.model.collate import Tokenize

if TYPE_CHECKING:
    from torch import Tensor

# Maps encoded rows to what a network answers to each, all in one array: (answers, labels) float32.
Answer = Callable[[Sequence[Encoded]], np.ndarray]


class Span(NamedTuple):
    """A run of answers of one type, from the answer `start` to the one before `end`."""

    type: str
    start: int
    end: int


@dataclass(frozen=True)
class Task:
    """A task on a set of labels, of which every answer is one.

    Scores are functions of counts that are summed over rows, so a score does not depend on how rows were sharded, and
    one bootstrap serves every task. The first line of a subclass's docstring is what it asks.
    """

    name: ClassVar[str]  # in TASKS
    data: ClassVar[str]  # what corpus it wants
    methods: ClassVar[tuple[str, ...]] = ("fine_tune",)  # of training.method, those that can learn it
    tagged: ClassVar[bool] = False  # whether rows are tagged words, see `Corpus.tagged`
    biased: ClassVar[tuple[str, ...]] = ()  # metrics that resampling pulls down, whose intervals are centred again

    labels: tuple[str, ...] = ()

    @property
    def lead(self) -> str:
        """What a model of it is called at the head of a report."""
        raise NotImplementedError(self.name)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics by name, the main one first: fractions from 0 to 1 of which more is better."""
        raise NotImplementedError(self.name)

    def faults(self, experiment: Experiment, corpus: Corpus) -> Iterator[str]:
        """Yield why an experiment cannot learn it from a corpus, each with a remedy."""
        return iter(())

    def sizes(self, table: pa.Table) -> np.ndarray | None:
        """Return how many answers every row of a table wants, (rows,) int64; None where it is one each."""
        return None

    def gold(self, table: pa.Table) -> np.ndarray:
        """Return the right answers of a table's rows, (answers,) int64."""
        return np.asarray(table["label"].to_numpy().astype(np.int64))

    def encode(
        self,
        tokenize: Tokenize,
        table: pa.Table,
        texts: tuple[list[str], list[str] | None],
        address: tuple[int, int],
        places: np.ndarray,
    ) -> list[Encoded]:
        """Encode rows to be trained on, one each; `texts` are those of `table` as techniques changed them.

        `address` is (seed, epoch), and `places` (rows,) are the positions of the draws in the epoch, which seed what is
        drawn of a row.
        """
        return tokenize(*texts)

    def answers(self, answer: Answer, tokenize: Tokenize, table: pa.Table) -> np.ndarray:
        """Score every label for every answer that a table's rows want: (answers, labels) float32 logits."""
        return answer(tokenize.rows(table))

    def windows(
        self, tokenize: Tokenize, texts: Sequence[str], places: Sequence[Sequence[tuple[int, int]]]
    ) -> list[list[Encoded]]:
        """Encode texts whose words are asked for, each in as many windows as it takes.

        `places` are (start, end) of the words of each text. Every window marks those that it answers, see
        `Network.answers`; all windows of a text together answer each word once, in order.
        """
        raise NotImplementedError(self.name)

    def loss(self, logits: Tensor, batch: Any, label_smoothing: float) -> Tensor:
        """Return the loss of every row of a batch, (rows,), from what the network answered to it."""
        raise NotImplementedError(self.name)

    @property
    def types(self) -> tuple[str, ...]:
        """The types of the spans that answers make, sorted."""
        return ()

    def spans(self, answers: Sequence[int]) -> list[Span]:
        """Return the spans that the answers to a row make, where they make any."""
        return []

    def ratios(self, gold: np.ndarray, predicted: np.ndarray, sizes: np.ndarray | None) -> np.ndarray | None:
        """Return of which two sums over rows the main metric is the ratio: (rows, 2) whole numbers.

        None where it is the share of rows whose one answer is right.
        """
        return None

    def cells(self, gold: np.ndarray, predicted: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
        """Encode what `measure` counts of every row: (rows,) or (rows, counts) whole numbers."""
        raise NotImplementedError(self.name)

    def measure(self, kinds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the metrics of rows given as distinct cells, (kinds, ...), and how often each occurs.

        `counts` is (kinds,) or (kinds, resamples); the result is (metrics,) or (metrics, resamples).
        """
        raise NotImplementedError(self.name)
