"""Ways to better transfer: each is one file here and one line in CATALOGUE, switched on under `techniques:`.

A technique has up to five hooks, each called at one place and each by default without effect. Those that a
configuration lists compose in the order of the list.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from xlt_ray import config_keys
from xlt_ray.config import Experiment, InputError, Section
from xlt_ray.corpus import Corpus
from xlt_ray.errors import joined

if TYPE_CHECKING:
    from torch import nn

    from xlt_ray.network import Network

CATALOGUE = {
    "few_shot": "xlt_ray.techniques.few_shot.FewShot",
    "code_switch": "xlt_ray.techniques.code_switch.CodeSwitch",
    "lora": "xlt_ray.techniques.lora.Lora",
    "adversarial": "xlt_ray.techniques.adversarial.Adversarial",
    "centre": "xlt_ray.techniques.centre.Centre",
}

# (rows' texts by language) -> pooled features by language, (rows, width) float32, of the network as it is then
Embed = Callable[[Mapping[str, pa.Table]], Mapping[str, np.ndarray]]
Tell = Callable[[int, int], None]


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


def changed(
    techniques: Sequence[Technique],
    texts: list[str],
    pairs: list[str] | None,
    language: str,
    address: tuple[int, int],
    places: np.ndarray,
) -> tuple[list[str], list[str] | None]:
    """Let techniques change the texts of a language's draws, one technique after another.

    `address` is the seed and the epoch, and `places` are those of the draws in it: every draw has an address of its
    own, so that a restart changes nothing.
    """
    if not techniques:
        return texts, pairs
    drawn = []
    for number, place in enumerate(places):
        example = Example(texts[number], pairs[number] if pairs else None, language)
        rng = np.random.default_rng([*address, 4, int(place)])
        for one in techniques:
            example = one.example(example, rng)
        drawn.append(example)
    return [one.text for one in drawn], pairs and [one.text_pair or "" for one in drawn]


def settle(techniques: Sequence[Technique], network: Network, embed: Embed, material: Material) -> dict[str, float]:
    """Let techniques compute what depends on trained weights; gives their figures as `technique/figure`."""
    figures: dict[str, float] = {}
    for one in techniques:
        found = one.settle(network, embed, material)
        figures |= {f"{one.name}/{key}": value for key, value in found.items()}
    return figures


def build(experiment: Experiment) -> tuple[Technique, ...]:
    """Make the techniques of an experiment, in their order; raise InputError listing every fault at once."""
    found, faults = [], []
    for name, parameters in experiment.techniques.items():
        if name not in CATALOGUE:
            faults.append(f"techniques.{name}: there is no such technique; there are {', '.join(CATALOGUE)}")
            continue
        kind = load(name)
        try:
            found.append(kind.model_validate(dict(parameters)))
        except ValidationError as error:
            faults += [
                f"techniques.{name}.{config_keys.explain(fault, kind)}" for fault in error.errors(include_url=False)
            ]
        if experiment.training.method not in kind.methods:
            faults.append(
                f"techniques.{name}: has no effect with training.method: {experiment.training.method}; set it to "
                f"{' or '.join(kind.methods)}, or take the technique out"
            )
    if faults:
        raise joined(faults)
    return tuple(found)


def check(techniques: Sequence[Technique], experiment: Experiment, corpus: Corpus) -> None:
    """Raise InputError where a technique cannot work with an experiment on its corpus, or there is nothing to train."""
    for one in techniques:
        one.check(experiment, corpus)
    if experiment.training.language_id and len(known_languages(experiment, corpus)) < 2:
        raise InputError("training.language_id: there is one language only; add sources or targets")


def known_languages(experiment: Experiment, corpus: Corpus) -> tuple[str, ...]:
    """List, sorted, the languages of a run, sources and targets: what a network's `language` indexes."""
    return tuple(sorted({*experiment.sources, *corpus.measured(experiment.sources, experiment.targets)}))


def scene(techniques: Sequence[Technique], experiment: Experiment, corpus: Corpus) -> tuple[Corpus, Material]:
    """Give what is trained on, and what techniques may look at, of a whole corpus.

    Labels of targets are in neither, unless a technique reads them or the run is an oracle.
    """
    codes = known_languages(experiment, corpus)
    targets = [code for code in codes if code not in experiment.sources and code in corpus.languages("train")]
    reading = any(one.reads_labels for one in techniques)
    shots = {code: corpus.table("train", code) for code in targets} if reading else {}
    wanted = techniques or experiment.training.language_id or experiment.training.unlabelled_rows
    material = Material(experiment, corpus.unlabelled(codes, ids=True) if wanted else {}, shots)
    visible = corpus.for_training(experiment.sources, targets_dev=experiment.oracle)
    for one in techniques:
        visible = one.corpus(visible, material)
    return visible, replace(material, trained=visible.languages("train"))


def network(
    techniques: Sequence[Technique],
    experiment: Experiment,
    classes: int,
    languages: Sequence[str],
    weights: bool = True,
) -> tuple[Network, Any, str]:
    """Build an experiment's network as techniques want it; return (network, tokenizer, identity of the encoder).

    Without `weights` the encoder has shapes alone, which is enough to see what does not fit.
    """
    from xlt_ray import network as networks

    net, tokenizer, identity = networks.build(experiment.network, classes, experiment.seed, languages, weights)
    for one in techniques:
        one.network(net, tokenizer)
    return net, tokenizer, identity


def load(name: str) -> type[Technique]:
    """Import the class of a technique of the catalogue."""
    module, _, kind = CATALOGUE[name].rpartition(".")
    return getattr(importlib.import_module(module), kind)
