"""The interface of a technique: its hyperparameters and its hooks, each of which has no effect by default."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import NetworkConfig, Section
from xlt_ray.corpora.corpus import Corpus, end_to_end, known_languages
from xlt_ray.events import OnProgress

if TYPE_CHECKING:
    from torch import Tensor

    from xlt_ray.model.collate import Tokenize
    from xlt_ray.model.network import Built, Network
    from xlt_ray.techniques.term import Term
    from xlt_ray.translation.readings import Readings

# Maps tables of texts by language to their pooled features by language, (rows, width) float32, before any step: in
# fine-tuning computed with the network as it is then, on all workers together; for a probe looked up.
Embed = Callable[[Mapping[str, pa.Table]], Mapping[str, np.ndarray]]


class Compute(Protocol):
    """What a loss computes with as training begins, on all workers together, which must ask for the same in one order.

    Called, it is an `Embed` that keeps what it has computed. `tokenize` is how the run's texts become pieces.
    """

    @property
    def tokenize(self) -> Tokenize: ...

    def whole(self) -> Compute:
        """Return the same with the encoder as it is before `network.layers` leaves some out; self where none are."""
        ...

    def by(self, config: NetworkConfig, built: Built, /) -> Compute:
        """Return the same with another network, which is not trained, built as `config` has it."""
        ...

    def __call__(self, tables: Mapping[str, pa.Table], /) -> Mapping[str, np.ndarray]: ...

    def rows(
        self, call: Callable[..., Tensor], encoded: Sequence[Mapping[str, Sequence[int]]], width: int, /
    ) -> np.ndarray:
        """Apply `call`, which maps a batch of encoded rows to (rows, width), to all: (rows, width) float32."""
        ...


# Maps tables of texts by key of their reading to a probe's logits by key, (rows, classes) float32.
Score = Callable[[Mapping[str, pa.Table]], Mapping[str, np.ndarray]]

# Maps a function that stands in a module over picklable arguments, and yields results in their order: `map` itself, or
# the same on all of a cluster's CPUs.
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

# what is read of a target: texts, texts with their translations (or a dictionary), or labelled rows
Reads = Literal["nothing", "unlabelled", "parallel", "labels"]


@dataclass(frozen=True)
class Example:
    """One training row as text, before it is tokenised."""

    text: str
    text_pair: str | None
    language: str


@dataclass(frozen=True, eq=False)
class Available:
    """What a corpus has for an experiment, by which techniques check before any work whether they can be used.

    `texts[language]`, of every language of the corpus, are rows of train, else of dev, without labels but with ids.
    """

    experiment: Experiment
    languages: tuple[str, ...]  # sources and targets
    measured: tuple[str, ...]  # of these the ones whose test rows are predicted
    labelled: tuple[str, ...]  # languages with train rows
    texts: Mapping[str, pa.Table]
    parallel: Mapping[str, pa.Table] = field(default_factory=dict)  # as of `Corpus`
    plain: Mapping[str, pa.Table] = field(default_factory=dict)  # likewise
    labels: tuple[str, ...] = ()  # of the corpus

    @classmethod
    def of(cls, experiment: Experiment, corpus: Corpus) -> Available:
        """Look up what a whole corpus has."""
        measured, labelled = corpus.measured(experiment.sources, experiment.targets), corpus.languages("train")
        texts = corpus.unlabelled({*labelled, *corpus.languages("dev")}, ids=True)
        codes = known_languages(experiment, corpus)
        return cls(experiment, codes, measured, labelled, texts, corpus.parallel, corpus.plain, corpus.labels)

    @property
    def targets(self) -> tuple[str, ...]:
        """The languages to measure that are no sources."""
        return tuple(code for code in self.measured if code not in self.experiment.sources)

    @property
    def bitext(self) -> dict[str, pa.Table]:
        """What `Material.bitext` will be."""
        return end_to_end(self.texts, self.parallel, self.languages)

    @property
    def all_texts(self) -> dict[str, pa.Table]:
        """What `Material.all_texts` will be."""
        return end_to_end(self.texts, self.plain, self.languages)


@dataclass(frozen=True, eq=False)
class Material:
    """What a technique may look at: an experiment, and texts without labels, of train (else dev) and never of test.

    `texts[language]` has the columns `text`, `id` and, in pair tasks, `text_pair`; sources and targets are among them.
    `shots[language]` are labelled train rows of the targets: empty unless a technique of the run `reads` labels, which
    makes the run few-shot in those languages.
    """

    experiment: Experiment
    texts: Mapping[str, pa.Table]
    shots: Mapping[str, pa.Table]
    trained: tuple[str, ...] = ()  # languages with rows to train on, known once techniques made the corpus
    readings: Readings | None = None  # how texts are read where they are measured or served, once that is known
    languages: tuple[str, ...] = ()  # sources and targets, also those without texts
    parallel: Mapping[str, pa.Table] = field(default_factory=dict)  # as of `Corpus`
    plain: Mapping[str, pa.Table] = field(default_factory=dict)  # likewise

    @property
    def bitext(self) -> dict[str, pa.Table]:
        """Unlabelled rows of sources and targets, of `texts` and of `parallel`: those of equal ids are translations."""
        return end_to_end(self.texts, self.parallel, self.languages)

    @property
    def all_texts(self) -> dict[str, pa.Table]:
        """Unlabelled rows of sources and targets, of `texts` and of `plain`."""
        return end_to_end(self.texts, self.plain, self.languages)

    def to_estimate(self, code: str, table: pa.Table) -> dict[str, pa.Table]:
        """Return rows of a language's `texts` as its texts are read: by key of each reading, see `Readings`."""
        return {code: table} if self.readings is None else self.readings.to_estimate(code, table)


class Technique(Section):
    """Hyperparameters of a technique, as fields with a description each, and its hooks in the order they are called.

    The first line of a subclass's docstring is its purpose. An instance is made anew in the driver and in each worker.
    Random numbers come from the hook's arguments or from `np.random.default_rng([seed, ...])`, so that every worker and
    a resumed run draw the same.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    name: ClassVar[str]  # in CATALOGUE
    paper: ClassVar[str]
    needs: ClassVar[str]  # what data
    cost: ClassVar[str]  # time and memory, as measured
    methods: ClassVar[tuple[str, ...]] = ("fine_tune", "probe")  # of training.method, those it has an effect on
    wants_unlabelled: ClassVar[bool] = False  # rows of sources and targets in every update, of `Material.texts`
    wants_texts: ClassVar[bool] = False  # these and plain text, `Material.all_texts`, for a term's own stream
    wants_parallel: ClassVar[bool] = False  # and of parallel text, of `Material.bitext`; by itself, for a term's stream
    of_words: ClassVar[bool] = False  # whether it also suits a task that asks of words, see `tasks.task.Task.tagged`
    replaces_encoder: ClassVar[bool] = False  # a bundle holds its state and no encoder, which must be available
    adds_languages: ClassVar[bool] = False  # to a finished bundle, from unlabelled text
    # parameters for how many labelled rows a class of a target are taken, and which draw of them
    shots_and_draw: ClassVar[tuple[str, str] | None] = None
    # parameters that name local files, each with the values that do not
    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @property
    def reads(self) -> Reads:
        """What is read of targets, which decides what figures of the run are called (`supervision.LADDER`).

        The most that it uses with its parameters as they are; every technique says it, also where it is nothing.
        """
        raise NotImplementedError(f"{self.name}: say what it reads of targets: one of {get_args(Reads)}")

    def reads_of(self, targets: Collection[str], there: Collection[str]) -> tuple[str, ...]:
        """Return the targets of which it reads what `reads` says; by default all that are `there`.

        That are the languages with train rows for one that reads labels, and for others those with train or dev rows.
        """
        return () if self.reads == "nothing" else tuple(sorted({*targets} & {*there}))

    def reads_each(
        self, experiment: Experiment, targets: Collection[str], there: Collection[str]
    ) -> Mapping[str, Reads]:
        """Return what it reads of each target that it reads of, by default what `reads` says of all in `reads_of`.

        For one that reads less of some. `there` is `Material.texts` where that is known.
        """
        return dict.fromkeys(self.reads_of(targets, there), self.reads)

    @property
    def bundles(self) -> Mapping[str, Path]:
        """The folders of bundles that it learns from, by parameter: what these were made from, the run is made from."""
        return {}

    @property
    def holds_encoder(self) -> bool:
        """Whether the encoder learns from loss terms alone, and the task trains the head."""
        return False

    @property
    def attaches_from_data(self) -> bool:
        """Whether what it attaches depends on the rows that are trained on."""
        return False

    @property
    def second_stage(self) -> bool:
        """Whether no source row is trained on, so that the run continues from one that did."""
        return False

    @property
    def changes_examples(self) -> bool:
        """Whether there is anything to call `example` for."""
        return type(self).example is not Technique.example

    @property
    def changes_readings(self) -> bool:
        """Whether texts are read otherwise than as they stand where they are measured or served."""
        return type(self).readings is not Technique.readings

    @property
    def weighs_readings(self) -> bool:
        """Whether there is anything to call `weigh` for."""
        return False

    @property
    def merged_when_saved(self) -> bool:
        """Whether a bundle is to hold the merged encoder, which can be `network.init` of another run."""
        return False

    def check(self, available: Available) -> None:
        """Raise InputError where the technique cannot work with what is available; called in the driver, before Ray."""

    def corpus(self, corpus: Corpus, material: Material, on_progress: OnProgress = lambda done, total: None) -> Corpus:
        """Return what is trained on, made of train and dev of the sources, as the techniques before it left them.

        Called wherever a `Setup` is made, in the driver and in every worker, before rows are drawn: cache what takes
        seconds. Rows that it adds in a target make that language few-shot where it `reads` labels, and leave it
        zero-shot where it does not; those that also stand in test are dropped.
        """
        return corpus

    def readings(
        self, material: Material, each: Each = map, on_progress: OnProgress = lambda done, total: None
    ) -> Readings | None:
        """Return how texts are read wherever they are measured or served; never for training draws.

        Called where `changes_readings`, once in the driver, where `each` spreads work over the cluster, and in every
        worker, before a network is built. One technique of a run may. The scores of a text's readings are averaged;
        bundles and artefacts keep them.
        """
        return None

    def weigh(self, material: Material, score: Score) -> Readings | None:
        """Return `material.readings` with the weights that suit a probe, fitted on texts without labels.

        Called in the driver where it `weighs_readings`, after a probe is fitted. `score` knows no other tables than
        those of `texts`, and asks a probe that was fitted without the rows of `Readings.unseen`.
        """
        return material.readings

    def check_encoder(self, network: Network, tokenizer: Any) -> None:
        """Raise InputError where it cannot work with an encoder, which may have shapes alone; before `attach`."""

    def attach(self, network: Network, tokenizer: Any, material: Material | None) -> None:
        """Add to a network what the technique needs there, in place: steps, layers of the encoder, frozen parts.

        Called wherever a network is built, in the driver and in every worker, before DDP wraps it. `material` is None
        where structure is enough: a bundle is being loaded, and `load` follows, or a configuration is being checked,
        and the encoder has shapes alone.
        """

    def prepare(self, material: Material, on_progress: OnProgress = lambda done, total: None) -> Technique:
        """Return the technique with what its `example` needs, such as a lexicon; `on_progress` receives (done, total).

        Called once before training where `changes_examples`: in every worker, or for a probe in the driver.
        """
        return self

    def example(self, example: Example, rng: np.random.Generator) -> Example:
        """Return a train row as it is to be this time; called where `prepare` was, each time a row is drawn.

        `rng` is seeded by the experiment's seed, the epoch and the place of the draw, and shared with the techniques
        after this one.
        """
        return example

    def loss_term(
        self,
        network: Network,
        material: Material,
        compute: Compute,
        on_progress: OnProgress = lambda done, total: None,
    ) -> Term | None:
        """Return a `techniques.term.Term`: a loss per row, (rows,), added to the task's.

        Called in every worker as training begins or resumes, each time with the weights that it begins with.
        Parameters of the term are trained and are in checkpoints, and are in no bundle.
        """
        return None

    def texts(self, material: Material) -> Mapping[str, pa.Table]:
        """Return the tables by language whose features `calibrate` and `weigh` need, for a probe; in the driver."""
        return {}

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Fit, in place, what depends on the final weights; return figures to record, by name.

        Called once after training and before anything is measured: in every worker, all of which must ask `embed` for
        the same, or for a probe in the driver, before it is fitted. A search calls it at every rung, on a copy.
        """
        return {}

    def state(self, network: Network) -> dict[str, Tensor]:
        """Return the tensors that a bundle keeps of the technique, by name; by default those of its step."""
        return dict(network.steps[self.name].state_dict()) if self.name in network.steps else {}

    def load(self, network: Network, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned, after `attach`; shapes may differ, where languages were added."""
        from torch import nn

        for name, tensor in state.items():
            above, _, leaf = f"{self.name}.{name}".rpartition(".")
            holder = network.steps.get_submodule(above)
            trained = isinstance(getattr(holder, leaf), nn.Parameter)
            setattr(holder, leaf, nn.Parameter(tensor) if trained else tensor)

    def merge_into_encoder(self, network: Network) -> None:
        """Fold what the technique put beside layers of the encoder into them, in place, and leave plain layers.

        Called where a bundle is `merged_when_saved`, and before a fast artefact is made.
        """

    def add_language(self, network: Network, code: str, features: np.ndarray) -> None:
        """Fit what depends on a language of `network.languages` from features of its texts, (rows, width) float32.

        A further reading of a language is a language of its own here, see `translation.readings.key`.
        Called where the technique `adds_languages`; the language may be known or new, and new ones come in order.
        """
        raise NotImplementedError(self.name)
