"""What happens before any work starts: load and check the corpus, lay out the mixture, count what will be asked for."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora import mixture, soundness
from xlt_ray.corpora.corpus import Corpus, known_languages, refuse
from xlt_ray.corpora.loaders import load_corpus
from xlt_ray.corpora.mixture import Share
from xlt_ray.errors import InputError, collecting, joined
from xlt_ray.evaluation import evaluate
from xlt_ray.model.collate import Tokenize
from xlt_ray.model.network import Network
from xlt_ray.techniques.technique import Embed, Example, Material, Technique
from xlt_ray.tracking import preflight
from xlt_ray.training import encoder_check

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

Save = Callable[[Path], None]

Report = Callable[[dict[str, float], Save | None], None]


@dataclass(frozen=True)
class Prepared:
    """A corpus found fit for an experiment, the languages to be measured on it and the mixture of its sources."""

    experiment: Experiment
    corpus: Corpus
    measured: tuple[str, ...]
    mixture: list[Share]
    dropped: dict[str, dict[str, int]]  # split -> language -> rows that also stood in test
    techniques: tuple[Technique, ...]
    visible: Corpus  # what is trained on: no label of a target, unless a technique reads some
    material: Material

    @property
    def few_shot(self) -> tuple[str, ...]:
        """The languages besides the sources that some rows are trained on."""
        return tuple(code for code in self.visible.languages("train") if code not in self.experiment.sources)

    @property
    def zero_shot(self) -> tuple[str, ...]:
        """The measured languages that training sees no label of."""
        return tuple(code for code in self.measured if code not in (*self.experiment.sources, *self.few_shot))

    @property
    def updates(self) -> int:
        """How many times fine-tuning will change the weights."""
        draws = sum(share.draws for share in self.mixture)
        return self.experiment.training.epochs * -(-round(draws) // self.experiment.training.batch_size)


def absolute(experiment: Experiment) -> Experiment:
    """Make local paths absolute, because Ray's workers have working folders of their own."""

    def fixed(path: str | None) -> str | None:
        local = (
            path is not None
            and "://" not in path
            and not path.startswith("bundled:")
            and Path(path).expanduser().exists()
        )
        return str(Path(path).expanduser().resolve()) if path is not None and local else path

    init = fixed(experiment.network.init)
    # a pattern such as data/{language}/{split}.tsv does not exist as such: its fixed part decides
    path = experiment.corpus.path
    if path is not None and experiment.corpus.loader == "files" and "://" not in path:
        path = str(Path(path).expanduser().absolute())
    elif experiment.corpus.loader == "hub":
        path = fixed(path)
    cache = experiment.corpus.cache_dir  # one that begins with ~ is meant for whatever home a worker has
    cache = cache if cache.startswith("~") else str(Path(cache).absolute())
    return experiment.model_copy(
        update={
            "techniques": _absolute_lexicons(experiment.techniques),
            "network": experiment.network.model_copy(update={"init": init}),
            "corpus": experiment.corpus.model_copy(update={"path": path, "cache_dir": cache}),
        }
    )


def _absolute_lexicons(chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    fixed = {name: dict(parameters) for name, parameters in chosen.items()}
    place = fixed.get("code_switch", {}).get("lexicons", "induced")
    if place != "induced":
        fixed["code_switch"]["lexicons"] = str(Path(place).expanduser().absolute())
    return fixed


def prepare(experiment: Experiment) -> Prepared:
    """Load and check everything that can be known without Ray; raise one InputError that lists all faults found.

    This is the one place where a run is refused before it begins: what `train` refuses then, `check` lists.
    """
    experiment, corpus = absolute(experiment), None
    chosen: tuple[Technique, ...] = ()
    dropped: dict[str, dict[str, int]] = {}
    faults: list[str] = []
    with collecting(faults):
        chosen = techniques.build(experiment)
    with collecting(faults):
        corpus, dropped = load_corpus(experiment)
        for note in corpus.notes:
            warnings.warn(note, stacklevel=2)
    if corpus is not None:
        with collecting(faults):
            soundness.check(corpus, experiment.sources, experiment.targets, dev=_dev_needed(experiment, corpus))
        with collecting(faults):
            check(chosen, experiment, corpus)
    faults += encoder_check.faults(experiment, chosen, corpus)
    with collecting(faults):
        check_resources(experiment)
    faults += preflight.faults(experiment.tracking)
    if len(faults) == 1:
        raise InputError(faults[0])  # needs no list
    if faults or corpus is None:
        refuse(f"experiment {experiment.name}", faults)
    return laid_out(chosen, experiment, corpus, dropped)


def check_resources(experiment: Experiment) -> None:
    """Raise InputError with the arithmetic where Ray will be local and workers ask for more than there is."""
    ray = sys.modules.get("ray")  # not imported to ask whether it is in use
    if os.environ.get("RAY_ADDRESS") or (ray is not None and ray.is_initialized()):
        return
    asked, larger = experiment.resources, "or give RAY_ADDRESS of a larger cluster"
    there = [("CPU", asked.cpus_per_worker, os.cpu_count() or 1)]
    if asked.gpus_per_worker:
        there.append(("GPU", asked.gpus_per_worker, torch.cuda.device_count()))
    faults = []
    for kind, each, have in there:
        if asked.workers * each > have:
            fewer = (
                f"workers={int(have / each)}" if have >= each else f"workers=1 and {kind.lower()}s_per_worker={have}"
            )
            faults.append(
                f"resources: {asked.workers} workers x {each:g} {kind}s = {asked.workers * each:g} {kind}s, but this "
                f"machine has {have}; set resources.{fewer} {larger}"
            )
    if faults:
        raise joined(faults)


def laid_out(
    chosen: tuple[Technique, ...], experiment: Experiment, corpus: Corpus, dropped: dict[str, dict[str, int]]
) -> Prepared:
    """Give what an experiment with these techniques makes of a corpus; nothing is read or checked."""
    visible, material = scene(chosen, experiment, corpus)
    measured = corpus.measured(experiment.sources, experiment.targets)
    sizes = visible.sizes("train")
    sizes = {code: sizes[code] for code in (*experiment.sources, *sizes) if code in sizes}  # sources come first
    shares = mixture.table(sizes, experiment.mixture)
    return Prepared(experiment, corpus, measured, shares, dropped, chosen, visible, material)


def _dev_needed(experiment: Experiment, corpus: Corpus) -> tuple[str, ...]:
    training = experiment.training
    if training.method == "probe":
        return experiment.sources if len(training.probe_strengths) > 1 else ()
    if training.select == "last":
        return ()
    if training.select == "source_dev":
        return experiment.sources
    others = tuple(code for code in corpus.measured((), experiment.targets) if code not in experiment.sources)
    if not others:
        raise InputError(
            "training.select: target_dev, but every target is a source; name another, or select source_dev"
        )
    return others


@dataclass
class Run:
    """What the loop works on. `corpus` is what may be trained on, `material` what techniques may look at.

    `report(metrics, save)` is called on every rank at the same places, with `save` at checkpoints: it writes one into a
    folder. `emit(metrics)` shows progress and promises nothing.
    """

    experiment: Experiment
    corpus: Corpus
    network: Network
    tokenize: Tokenize
    report: Report
    emit: Callable[[dict[str, Any]], None] = lambda metrics: None
    techniques: tuple[Technique, ...] = ()
    material: Material | None = None

    def embed(self, tables: Mapping[str, pa.Table], precision: str) -> dict[str, np.ndarray]:
        """Compute pooled features of unlabelled texts, (rows, width) a language, with the network as it is now."""
        budget = self.experiment.evaluation.tokens_per_step
        return evaluate.embed(self.network, tables, self.tokenize, precision, budget)


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


def check(techniques: Sequence[Technique], experiment: Experiment, corpus: Corpus) -> None:
    """Raise InputError where a technique cannot work with an experiment on its corpus, or there is nothing to train."""
    for one in techniques:
        one.check(experiment, corpus)
    if experiment.training.language_id and len(known_languages(experiment, corpus)) < 2:
        raise InputError("training.language_id: there is one language only; add sources or targets")


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
