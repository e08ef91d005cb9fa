"""Classification: a text has one of some labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse

from xlt_ray.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor


class Classification(Task):
    """Say which of some labels a text, or a pair of texts, has."""

    name: ClassVar[str] = "classification"
    data: ClassVar[str] = "a label a row"
    methods: ClassVar[tuple[str, ...]] = ("fine_tune", "probe")
    biased: ClassVar[tuple[str, ...]] = ("macro_f1",)

    @property
    def lead(self) -> str:
        """What a model of it is called at the head of a report."""
        return f"A classifier of text into {len(self.labels)} labels"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Accuracy, and the mean F1 over labels."""
        return ("accuracy", "macro_f1")

    def loss(self, logits: Tensor, batch: Any, label_smoothing: float) -> Tensor:
        """Return the cross-entropy of every row, (rows,), of logits (rows, labels)."""
        from torch.nn import functional

        return functional.cross_entropy(logits, batch["label"], reduction="none", label_smoothing=label_smoothing)

    def cells(self, gold: np.ndarray, predicted: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
        """Encode the gold and the predicted label of every row as one number, (rows,) int64."""
        return np.int64(len(self.labels)) * gold + predicted

    def measure(self, kinds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return accuracy and macro-F1, see `macro`."""
        classes = len(self.labels)
        gold, predicted = np.divmod(kinds, classes)
        each = np.arange(len(kinds))
        ones = np.ones(len(kinds), counts.dtype)
        marginal = sparse.csr_array((ones, (gold, each)), shape=(classes, len(kinds)))
        marginal = marginal + sparse.csr_array((ones, (predicted, each)), shape=(classes, len(kinds)))
        hits = gold == predicted
        right = np.zeros((classes, *counts.shape[1:]), counts.dtype)
        right[gold[hits]] = counts[hits]
        rows = counts.sum(axis=0)
        return np.stack([share(right.sum(axis=0), rows), macro(right, marginal @ counts)])


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide sums, NaN where the second is 0."""
    part, whole = np.asarray(part), np.asarray(whole)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def macro(right: np.ndarray, either: np.ndarray) -> np.ndarray:
    """Return the mean F1 over labels, the first axis, from right answers and gold plus predicted ones.

    Every label that occurs in gold or predictions counts the same: one that is never right 0, one that occurs in
    neither is left out. That is scikit-learn's `f1_score(gold, predicted, average="macro", zero_division=0)` with its
    default labels.
    """
    occurs = either > 0
    f1 = np.divide(2.0 * right, either, out=np.zeros(either.shape), where=occurs)
    return share(f1.sum(axis=0), occurs.sum(axis=0))
