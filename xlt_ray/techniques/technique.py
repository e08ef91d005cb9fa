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
    from torch import Tensor, nn

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
    replaces_encoder: ClassVar[bool] = False  # a bundle holds its state and no encoder, which must be at hand
    attaches_from_data: ClassVar[bool] = False  # what it attaches depends on the rows that are trained on
    adds_languages: ClassVar[bool] = False  # to a finished bundle, from unlabelled text
    # parameters for how many labelled rows a class of a target are taken, and which draw of them
    shots_and_draw: ClassVar[tuple[str, str] | None] = None
    # parameters that name local files, each with the values that do not
    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def check(self, experiment: Experiment, corpus: Corpus) -> None:
        """Raise InputError where the technique cannot work with this experiment on this corpus; before any work."""

    @property
    def second_stage(self) -> bool:
        """Whether no source row is trained on, so that the run goes on from one that did."""
        return False

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

    def attach(self, network: Network, tokenizer: Any, material: Material | None) -> None:
        """Put what the technique adds into the network, in place and before DDP.

        Without `material` a bundle is being loaded, so structure is enough: `load` fills it.
        """

    def state(self, network: Network) -> dict[str, Tensor]:
        """Return the tensors that a bundle keeps of the technique, by name; by default those of its step."""
        return dict(network.steps[self.name].state_dict()) if self.name in network.steps else {}

    def load(self, network: Network, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned; shapes may be others than at first, where languages were added."""
        from torch import nn

        for name, tensor in state.items():
            above, _, leaf = f"{self.name}.{name}".rpartition(".")
            holder = network.steps.get_submodule(above)
            trained = isinstance(getattr(holder, leaf), nn.Parameter)
            setattr(holder, leaf, nn.Parameter(tensor) if trained else tensor)

    def merge_into_encoder(self, network: Network) -> None:
        """Fold the technique into the encoder it was put beside, so that none of its layers are left there."""

    @property
    def merged_when_saved(self) -> bool:
        """Whether a bundle is to hold the merged encoder, which can be `network.init` of another run."""
        return False

    def add_language(self, network: Network, code: str, features: np.ndarray) -> None:
        """Take up a language of `network.languages` from features of its texts, (rows, width) float32.

        Called where the technique `adds_languages`; the language may be known or new, and new ones come in order.
        """
        raise NotImplementedError(self.name)

    def loss_term(self, network: Network, material: Material, embed: Embed) -> nn.Module | None:
        """Give a module whose `forward(network, batch, pooled)` is a loss per row, (rows,), added to the task's."""
        return None

    def texts(self, material: Material) -> Mapping[str, pa.Table]:
        """Return the unlabelled tables whose features `calibrate` asks `embed` for."""
        return {}

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Fit what depends on trained weights: once, after training, before measuring; return figures to record."""
        return {}
