"""Assemble a run: what an experiment makes of a corpus, and the network that is trained on it.

Driver, workers, probes, trials of a search, sweeps and benchmarks all begin with `Setup.of`; nothing else knows in
which order techniques, languages, rows and network come together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xlt_ray import supervision, tasks, techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import NetworkConfig
from xlt_ray.corpora import mixture, overlap, seen
from xlt_ray.corpora.corpus import Corpus, end_to_end, known_languages
from xlt_ray.corpora.mixture import Share
from xlt_ray.evaluation import evaluate, features
from xlt_ray.evaluation.evaluate import Inputs
from xlt_ray.evaluation.features import Pieces
from xlt_ray.events import OnProgress, counting
from xlt_ray.model import network
from xlt_ray.model.collate import Tokenize
from xlt_ray.model.network import Built, Network
from xlt_ray.tasks.task import Task
from xlt_ray.techniques.technique import Each, Embed, Material, Score, Technique
from xlt_ray.translation.readings import Readings, is_first

Save = Callable[[Path], None]  # writes a checkpoint into a folder
Report = Callable[[dict[str, float], Save | None], None]
Dropped = Mapping[str, Mapping[str, int]]  # split -> language -> rows that also stood in test


@dataclass(frozen=True)
class Setup:
    """What is trained on what, before there is a network; pure and cheap, so that every process makes its own."""

    experiment: Experiment
    corpus: Corpus  # whole: `visible` is what may be trained on
    techniques: tuple[Technique, ...]
    languages: tuple[str, ...]  # sources and targets, sorted: what a network's `language` indexes
    visible: Corpus  # train and dev; no label of a target, unless a technique reads some or the run is an oracle
    material: Material  # what techniques may look at
    dropped: Dropped = field(default_factory=dict)
    added: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # technique -> language -> rows of train

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        corpus: Corpus,
        texts: Mapping[str, pa.Table] | None = None,
        dropped: Dropped | None = None,
        on_progress: OnProgress = lambda done, total: None,
    ) -> Setup:
        """Apply the techniques of an experiment to a corpus; nothing is checked.

        `texts`, by language, are unlabelled rows that stand in for those of the corpus, of which they may be no part.
        Techniques that add rows may take minutes the first time, of which `on_progress` is told, and then read a cache.
        """
        chosen, codes = techniques.build(experiment), known_languages(experiment, corpus)
        targets = [code for code in codes if code not in experiment.sources and code in corpus.languages("train")]
        reading = any(one.reads == "labels" for one in chosen)
        shots = {code: corpus.table("train", code) for code in targets} if reading else {}
        unlabelled: Mapping[str, pa.Table] = {}
        if chosen or experiment.training.unlabelled_rows:
            unlabelled = corpus.unlabelled(codes, ids=True) | {c: t for c, t in (texts or {}).items() if c in codes}
        texts = {code: unlabelled[code] for code in codes if code in unlabelled}
        material = Material(experiment, texts, shots, languages=codes, parallel=corpus.parallel, plain=corpus.plain)
        visible = corpus.for_training(experiment.sources, targets_dev=experiment.oracle)
        lost: Dropped = dropped or {}
        added: dict[str, Mapping[str, int]] = {}
        test = {code: corpus.table("test", code) for code in codes if code in corpus.languages("test")}
        for one in chosen:
            before, changed = visible.sizes("train"), one.corpus(visible, material, on_progress)
            if changed is not visible:
                visible, more = _apart(changed, test)
                both = {**lost, **more}
                lost = {split: Counter(lost.get(split, {})) + Counter(more.get(split, {})) for split in both}
            added[one.name] = Counter(visible.sizes("train")) - Counter(before)
        material = replace(material, trained=visible.languages("train"))
        return cls(experiment, corpus, chosen, codes, visible, material, lost, added)

    def read(self, each: Each = map, on_progress: OnProgress = lambda done, total: None) -> Setup:
        """Return the setup with how texts are read where they are measured, which may take minutes; once is enough.

        `each` spreads the work, see `Each`. To be called before a network is built.
        """
        for one in self.techniques:
            if one.changes_readings and self.readings is None:
                found = one.readings(self.material, each, on_progress)
                return replace(self, material=replace(self.material, readings=found))
        return self

    def weigh(self, score: Callable[[Technique], Score]) -> Setup:
        """Return the setup with readings weighed by a probe's scores of unlabelled texts.

        `score` returns the `Score` of a technique, whose features were computed before and are looked up.
        """
        for one in self.techniques:
            if one.weighs_readings and self.readings is not None:
                return replace(self, material=replace(self.material, readings=one.weigh(self.material, score(one))))
        return self

    @property
    def readings(self) -> Readings | None:
        """How texts are read where they are measured; None is as they stand."""
        return self.material.readings

    def build(self) -> Built:
        """Build the network with what techniques attach to it."""
        classes, codes = len(self.corpus.labels), self.languages
        if self.readings is not None:
            further = [key for code in codes for key in self.readings.keys(code) if not is_first(key)]
            codes = (*codes, *further)  # to techniques a further reading is a language of its own
        built = techniques.network(self.techniques, self.experiment, classes, codes, self.material)
        built.network.head.requires_grad_(self.experiment.training.labelled)
        return built

    @cached_property
    def task(self) -> Task:
        """What is asked of a text."""
        return tasks.build(self.experiment.task, self.corpus.labels)

    def tables(self, split: str) -> dict[str, pa.Table]:
        """Return a split's rows by language: of train and dev those that training may see, of test those measured."""
        if split == "test":
            test = self.corpus.for_testing()
            return {code: test.table(split, code) for code in self.measured}
        return {code: self.visible.table(split, code) for code in self.visible.languages(split)}

    def prepare_techniques(self, on_progress: OnProgress) -> list[Technique]:
        """Return the techniques that change examples, each with what it needs to do so; this may take minutes."""
        return [one.prepare(self.material, on_progress) for one in self.techniques if one.changes_examples]

    @property
    def unlabelled(self) -> Mapping[str, pa.Table]:
        """The rows that join updates where a loss wants any, by language."""
        parallel = any(one.wants_parallel for one in self.techniques)
        return self.material.bitext if parallel else self.material.texts

    def read_texts(self) -> np.ndarray:
        """Return the digests, see `seen.digests`, of all texts that the run is trained on, labelled or not."""
        labelled = [table for _, _, table in self.visible.tables()]
        return seen.digests([*labelled, *self.joining.values()])

    @cached_property
    def joining(self) -> Mapping[str, pa.Table]:
        """The rows without labels that join updates, by language; {} where none do."""
        join = any(one.wants_unlabelled or one.wants_parallel for one in self.techniques)
        found = self.unlabelled if join or self.experiment.training.unlabelled_rows else {}
        if not any(one.wants_texts for one in self.techniques):
            return found
        rows = {code: one.select([c for c in one.column_names if c != "beside"]) for code, one in found.items()}
        return end_to_end({**self.material.texts, **rows}, self.material.plain, self.languages)

    @property
    def measured(self) -> tuple[str, ...]:
        """The languages whose test rows are predicted, or kept from what is learned without labels."""
        return tested(self.experiment, self.corpus)

    @cached_property
    def mixture(self) -> list[Share]:
        """How the rows of each language are drawn, sources first; without labels, how its texts are."""
        if not self.experiment.training.labelled:
            return mixture.table({code: one.num_rows for code, one in self.joining.items()}, self.experiment.mixture)
        sizes = self.visible.sizes("train")
        sizes = {code: sizes[code] for code in (*self.experiment.sources, *sizes) if code in sizes}
        return mixture.table(sizes, self.experiment.mixture)

    @property
    def shots(self) -> dict[str, int]:
        """How many labelled rows are trained on of each language besides the sources.

        They are what techniques that read labels added; rows that others added there, such as translations, have labels
        of the sources.
        """
        found: Counter[str] = Counter()
        for one in self.techniques:
            found.update(self.added.get(one.name, {}) if one.reads == "labels" else {})
        return {code: found[code] for code in sorted(found) if code not in self.experiment.sources}

    @property
    def few_shot(self) -> tuple[str, ...]:
        """The languages besides the sources of which labelled rows are trained on."""
        return tuple(self.shots)

    @property
    def zero_shot(self) -> tuple[str, ...]:
        """The measured languages that training sees no label of."""
        return tuple(code for code in self.measured if code not in (*self.experiment.sources, *self.few_shot))

    @cached_property
    def supervision(self) -> Mapping[str, str]:
        """The rung of `supervision.LADDER` of every language that is no source, as `techniques.supervised` has it."""
        readings = self.readings
        stand = () if readings is None else [code for code in self.languages if not readings.several(code)]
        whole = any(one.wants_texts for one in self.techniques)
        texts = self.material.all_texts if whole else self.material.texts
        shots, both = self.material.shots, self.material.bitext
        return techniques.supervised(self.experiment, self.languages, texts, shots, both, stand)

    @property
    def rungs(self) -> dict[str, str]:
        """The highest rung of all measured languages that are no source, and that of the zero-shot ones, as tags."""
        each = {code: self.supervision[code] for code in self.measured if code in self.supervision}
        zero_shot = supervision.highest(each[code] for code in self.zero_shot)
        found = {"xlt.supervision": supervision.highest(each.values()), "xlt.supervision.zero_shot": zero_shot}
        return {tag: rung for tag, rung in found.items() if rung is not None}

    @property
    def updates(self) -> int:
        """How many times training will change the weights: an epoch draws as many rows as there are."""
        draws = sum(share.draws for share in self.mixture)
        return self.experiment.training.epochs * -(-round(draws) // self.experiment.training.batch_size)


def tested(experiment: Experiment, corpus: Corpus) -> tuple[str, ...]:
    """List the languages whose test rows a run looks at; of one without labels a target may have none."""
    found = corpus.measured(experiment.sources, experiment.targets)
    there = corpus.languages("test")
    return found if experiment.training.labelled else tuple(code for code in found if code in there)


def _apart(visible: Corpus, test: Mapping[str, pa.Table]) -> tuple[Corpus, Dropped]:
    """Drop and count the rows of train and dev that also stand in `test`; what is beside was compared when loaded."""
    if not test:
        return visible, {}
    kept, dropped = overlap.drop_overlap(
        replace(visible, splits={**visible.splits, "test": test}, parallel={}, plain={})
    )
    return replace(visible, splits={**kept.splits, "test": {}}), dropped


@dataclass
class Run:
    """What the loop works on: a setup, and the network and tokenizer that were built for it.

    `report(metrics, save)` is called on every rank after the same updates, with `save` at checkpoints: a function that
    writes one into a folder. `emit(event)` shows progress, and nothing depends on what becomes of it.
    """

    setup: Setup
    network: Network
    tokenize: Tokenize
    report: Report = lambda metrics, save: None
    emit: Callable[[dict[str, Any]], None] = lambda metrics: None

    @property
    def experiment(self) -> Experiment:
        """The experiment of the setup."""
        return self.setup.experiment

    def embed(self, tables: Mapping[str, pa.Table], precision: str) -> dict[str, np.ndarray]:
        """Compute pooled features of unlabelled texts, (rows, width) a language, with the network as it is now."""
        return evaluate.embed(self.network, tables, self.inputs(precision), counting(self.emit, "embed"))

    def embed_once(self, tables: Mapping[str, pa.Table], precision: str) -> dict[str, np.ndarray]:
        """Return what `embed` would, from `corpus.cache_dir` where the same weights have computed it before.

        What is missing there is computed by all workers together, a piece at a time, so that a call after a kill
        computes only the rest; they must ask for the same tables in the same order. Meant for an encoder as training
        begins, since later its weights are new at each call.
        Raises FloatingPointError where features are no numbers.
        """
        config = self.experiment.network
        # of tokenizer and configuration, and of weights
        encoder = f"{network.fingerprint(config)} {network.digest(self.network.encoder)}"
        pieces = Pieces.of(self.experiment, tables, encoder, precision)
        device = next(self.network.parameters()).device
        absent = pieces.missing()
        lacking = evaluate.on_any_worker([file in absent for file in pieces.tables], device)
        missing = [item for item, lacks in zip(pieces.tables.items(), lacking, strict=True) if lacks]
        report, total = counting(self.emit, "embed"), sum(piece.num_rows for piece in pieces.tables.values())
        done = total - sum(piece.num_rows for _, piece in missing)
        for file, piece in missing:
            found = evaluate.embed(self.network, {"": piece}, self.inputs(precision))[""]
            features.refuse_broken(found, precision, config.init)
            if features.read(file) is None:  # workers that share a disk write the same
                pieces.keep(file, found)
            done += piece.num_rows
            report(done, total)
        return pieces.read()

    def computing(self, precision: str) -> Computing:
        """Return what losses compute with as training begins."""
        return Computing(self, precision)

    def inputs(self, precision: str) -> Inputs:
        """Return how rows become batches where nothing is trained."""
        return Inputs(self.tokenize, precision, self.experiment.evaluation.tokens_per_step)


@dataclass(frozen=True)
class Computing:
    """What a loss computes with as training begins, as `technique.Compute` has it."""

    run: Run
    precision: str

    @property
    def tokenize(self) -> Tokenize:
        """How texts become pieces."""
        return self.run.tokenize

    def whole(self) -> Computing:
        """Return the same with the encoder as it is before `network.layers` leaves some out; self where none are."""
        experiment = self.run.experiment
        if experiment.network.layers is None:
            return self
        config = experiment.network.model_copy(update={"layers": None, "head": "fresh", "freeze": ()})
        return self.by(config, network.build(config, 1, seed=0))

    def by(self, config: NetworkConfig, built: Built) -> Computing:
        """Return the same with another network, built as `config` has it."""
        net = built.network.to(next(self.run.network.parameters()).device).eval().requires_grad_(False)
        experiment = self.run.experiment.model_copy(update={"network": config})
        setup = replace(self.run.setup, experiment=experiment)
        return replace(self, run=replace(self.run, setup=setup, network=net, tokenize=built.tokenize))

    def __call__(self, tables: Mapping[str, pa.Table]) -> Mapping[str, np.ndarray]:
        """Compute features, or look them up, see `Run.embed_once`."""
        return self.run.embed_once(tables, self.precision)

    def rows(self, call: Callable[..., Any], encoded: Sequence[Mapping[str, Sequence[int]]], width: int) -> np.ndarray:
        """Apply `call` to encoded rows, see `evaluate.compute`."""
        progress, inputs = counting(self.run.emit, "measure"), self.run.inputs(self.precision)
        return evaluate.compute(self.run.network, call, encoded, inputs, width, progress)


def calibrate(setup: Setup, network: Network, embed: Callable[[Technique], Embed]) -> dict[str, float]:
    """Let techniques fit what depends on the final weights; return their figures as `technique/figure`.

    `embed` returns the `Embed` of a technique, where features were computed before and are looked up.
    """
    figures = {f"{name}/rows": float(sum(rows.values())) for name, rows in setup.added.items() if rows}
    for one in setup.techniques:
        found = one.calibrate(network, embed(one), setup.material)
        figures |= {f"{one.name}/{key}": value for key, value in found.items()}
    return figures
