"""What a technique is: hyperparameters and hooks, each called at one place and each by default without effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from xlt_ray.config.experiment import Experiment, Section
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.events import Tell

if TYPE_CHECKING:
    from torch import nn

    from xlt_ray.model.network import Network

# (rows' texts by language) -> pooled features by language, (rows, width) float32, of the network as it is then
Embed = Callable[[Mapping[str, pa.Table]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Example:
    """One training row as text, before it is tokenised."""

    text: str
    text_pair: str | None
    language: str


@dataclass(frozen=True, eq=False)
class Material:
    """What a technique may look at: an experiment, and texts without labels, of train (else dev) and never of test.

    `texts[language]` has the columns `text`, `id` and, in pair tasks, `text_pair`; sources and targets are among them.
    `shots[language]` are labelled train rows of the targets: empty unless a technique says that it `reads_labels`, and
    with it nothing of the run is called zero-shot any more in those languages.
    """

    experiment: Experiment
    texts: Mapping[str, pa.Table]
    shots: Mapping[str, pa.Table]
    trained: tuple[str, ...] = ()  # languages with labelled rows to train on, known once techniques made the corpus


class Technique(Section):
    """Hyperparameters of a technique, as fields with a description each, and its hooks.

    The first line of a subclass's docstring is its purpose. Randomness comes from what a hook is given, or from
    `np.random.default_rng([seed, ...])`, so that every worker and a resumed run do the same.
    """

    name: ClassVar[str]  # in CATALOGUE
    paper: ClassVar[str]
    needs: ClassVar[str]  # what data
    cost: ClassVar[str]  # time and memory, as measured
    methods: ClassVar[tuple[str, ...]] = ("fine_tune", "probe")  # of training.method, those it has an effect on
    reads_labels: ClassVar[bool] = False  # of targets
    wants_unlabelled: ClassVar[bool] = False  # rows of sources and targets in every update

    def check(self, experiment: Experiment, corpus: Corpus) -> None:
        """Raise InputError where the technique cannot work with this experiment on this corpus; before any work."""

    def trained_on(self, targets: Collection[str]) -> tuple[str, ...]:
        """Return which of a run's targets have labels that are trained on: none, unless it `reads_labels`."""
        return tuple(sorted(targets)) if self.reads_labels else ()

    @property
    def changes_examples(self) -> bool:
        """Whether there is anything to call `example` for."""
        return type(self).example is not Technique.example

    def corpus(self, corpus: Corpus, material: Material) -> Corpus:
        """Change what is trained on: once, before sampling. `corpus` holds train and dev of the sources alone."""
        return corpus

    def prepare(self, material: Material, tell: Tell = lambda done, total: None) -> Technique:
        """Give the technique with what its `example` needs, such as a lexicon; once a worker, before training.

        What takes long calls `tell(done, total)`.
        """
        return self

    def example(self, example: Example, rng: np.random.Generator) -> Example:
        """Change a row each time it is drawn; `rng` is seeded by the draw's place in the run."""
        return example

    def network(self, network: Network, tokenizer: Any) -> None:
        """Change the network in place: once, before DDP, and when a bundle is loaded."""

    def loss_term(self, network: Network, material: Material, embed: Embed) -> nn.Module | None:
        """Give a module whose `forward(network, batch, pooled)` is a loss per row, (rows,), added to the task's."""
        return None

    def texts(self, material: Material) -> Mapping[str, pa.Table]:
        """Give the unlabelled tables whose features `settle` asks `embed` for."""
        return {}

    def settle(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Compute what depends on trained weights: once, after training, before measuring; gives figures to record."""
        return {}
