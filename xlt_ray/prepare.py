"""What happens before any work starts: load and check the corpus, lay out the mixture, count what will be asked for."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xlt_ray import corpora, encoder_check, mixture, overlap, soundness, techniques, tracking_check
from xlt_ray.config import Experiment, InputError
from xlt_ray.corpus import Corpus, refuse
from xlt_ray.errors import collecting, joined
from xlt_ray.mixture import Share
from xlt_ray.techniques import Material, Technique


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


def load_corpus(experiment: Experiment) -> tuple[Corpus, dict[str, dict[str, int]]]:
    """Load an experiment's corpus as training sees it: with the overlap with test dropped where that is asked for."""
    corpus = corpora.load(experiment.corpus)
    return overlap.drop_overlap(corpus) if experiment.corpus.overlap == "drop_train" else (corpus, {})


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
            techniques.check(chosen, experiment, corpus)
    faults += encoder_check.faults(experiment, chosen, corpus)
    with collecting(faults):
        check_resources(experiment)
    faults += tracking_check.faults(experiment.tracking)
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
    visible, material = techniques.scene(chosen, experiment, corpus)
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
