"""Fine-tune one mix of a search, rung by rung on one or more workers, and measure it on dev, never on test.

The corpus of a trial has no test split and no label of a language outside the pool (but dev of the targets in an oracle
search); the targets' texts without labels come beside it, for techniques. The workers live in the placement group that
Tune made for the trial, so Tune frees everything when it stops one. They are reused: the next trial finds the encoder
loaded and the rows tokenised.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from ray import tune
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from xlt_ray import durable
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.evaluate import Inputs
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.model import network
from xlt_ray.model.collate import Tokenize
from xlt_ray.search.selection import Judge, Tried
from xlt_ray.techniques.technique import Technique
from xlt_ray.training import checkpoint, loop
from xlt_ray.training.setup import Run, Setup
from xlt_ray.training.workers import process_group


class Remembered(Tokenize):
    """A tokenizer that caches what it has encoded: trials share most of their rows."""

    def __init__(self, plain: Tokenize) -> None:
        super().__init__(plain.tokenizer, plain.prefix, plain.max_length)
        self.plain = plain  # without the cache
        self._known: dict[Any, dict[str, list[int]]] = {}

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, list[int]]]:
        """Encode texts as `Tokenize` does."""
        keys = list(texts if pairs is None else zip(texts, pairs, strict=True))
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            found = super().__call__([texts[i] for i in new], None if pairs is None else [pairs[i] for i in new])
            self._known |= {keys[i]: row for i, row in zip(new, found, strict=True)}
        return [self._known[key] for key in keys]


@dataclass(frozen=True)
class TrialData:
    """What a trial reads: a corpus without test rows or labels of targets, and the targets' unlabelled texts."""

    corpus: Corpus
    texts: Mapping[str, pa.Table] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerGroup:
    """The workers of a trial: the address of their store, how many they are, and what each of them may use."""

    address: str  # host:port
    size: int
    cpus: float
    gpus: float


class Worker:
    """One worker of a trial, and of the trials after it."""

    net: network.Network
    tokenize: Remembered
    training_state: loop.TrainingState

    def __init__(self, data: TrialData, rank: int, group: WorkerGroup) -> None:
        self.corpus, self.texts = data.corpus, data.texts
        self.device = torch.device("cuda" if group.gpus else "cpu")
        torch.set_num_threads(max(1, int(group.cpus)))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if group.size > 1:
            host, _, port = group.address.rpartition(":")
            process_group.join(host, int(port), rank, group.size, group.gpus > 0)
        self.built: Any = None
        self.initial: network.Weights = {}

    def begin(self, experiment: Experiment, saved: bytes | None = None) -> None:
        """Start a mix from the encoder's own weights, or resume it from a checkpoint.

        `saved` is the content of the checkpoint's file, because workers may share no disk.
        """
        # Tune asks one worker alone to save a trial, who could not collect what others keep; the weights are the same
        whole = experiment.resources.model_copy(update={"shard_optimizer": False})
        experiment = experiment.model_copy(update={"resources": whole})
        setup = Setup.of(experiment, self.corpus, self.texts)
        self._build(setup)
        self.net.languages = setup.languages
        self.net.terms.clear()  # those of the previous trial
        network.restore_weights(self.net, self.initial)
        self.net.zero_grad(set_to_none=True)
        # rows that are new in every epoch are not worth caching
        new = any(one.changes_examples for one in setup.techniques)
        # dev is measured here, at rungs alone
        setup = replace(setup, visible=replace(setup.visible, splits={**setup.visible.splits, "dev": {}}))
        run = Run(setup, self.net, self.tokenize.plain if new else self.tokenize)
        with durable.scratch() as folder:
            if saved is not None:
                (folder / checkpoint.FILE).write_bytes(saved)
            self.training_state = loop.begin(run, None if saved is None else folder)
        self.experiment = experiment

    def _build(self, setup: Setup) -> None:
        """Build the network, unless that of the previous trial is the same."""
        changing = [one for one in setup.techniques if type(one).attach is not Technique.attach]
        sources = setup.experiment.sources if any(one.attaches_from_data for one in changing) else ()
        wanted = (setup.experiment.network, changing, setup.languages if changing else (), sources)
        if self.built == wanted:
            return
        for old in ("net", "tokenize", "training_state"):  # held meanwhile, the old network would double the memory
            self.__dict__.pop(old, None)
        self.net, tokenize, _ = setup.build()
        self.net.to(self.device)
        self.tokenize = Remembered(tokenize)
        self.initial = {name: tensor.clone() for name, tensor in network.trained(self.net).items()}
        self.built = wanted

    def advance(self, epochs: int) -> dict[str, Predictions]:
        """Train until so many epochs are done, and predict every dev split there is."""
        self.training_state.advance(epochs)
        whole = epochs >= self.experiment.training.epochs
        if whole:
            self.training_state.finish()
            self.training_state.calibrate()
        return self._measure(calibrated=whole)

    def _measure(self, calibrated: bool) -> dict[str, Predictions]:
        """Predict dev with techniques calibrated, and leave the network as it was.

        Before the end of training techniques are not calibrated, so a copy of their steps is, and then thrown away:
        training continues, and is saved, as if nothing had been measured. Languages that the mix leaves out stand in
        for targets, whose unlabelled texts may be read; so the copy gains them as a network does in `xlt adapt`.
        """
        net, progress = self.net, self.training_state.progress
        steps, languages, facts = net.steps, net.languages, dict(progress.facts)
        net.steps = copy.deepcopy(steps)
        try:
            if len(steps) and not calibrated:
                self.training_state.calibrate()
            self._add_left_out()
            tables = {code: self.corpus.table("dev", code) for code in self.corpus.languages("dev")}
            budget = self.experiment.evaluation.tokens_per_step
            task = self.training_state.run.setup.task
            return evaluate.predict(net, task, tables, Inputs(self.tokenize, progress.precision, budget))
        finally:
            net.steps, net.languages, progress.facts = steps, languages, facts

    def _add_left_out(self) -> None:
        """Add the languages that the network does not know to techniques, where all those with steps support that."""
        net, run = self.net, self.training_state.run
        left = self.corpus.unlabelled([c for c in self.corpus.languages("dev") if net.index(c) < 0], ids=True)
        stepping = [one for one in run.setup.techniques if one.name in net.steps]
        if not left or not stepping or not all(one.adds_languages for one in stepping):
            return
        net.languages = (*net.languages, *left)
        for one in stepping:
            sample = one.texts(replace(run.setup.material, texts=left))
            features = run.embed(sample, self.training_state.progress.precision)
            for code in left:
                one.add_language(net, code, features[code])


class Trial(tune.Trainable):
    """The trainable of Tune: the first worker runs in it, the others are actors beside it."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], judge: Judge, data: TrialData, rungs: Sequence[int]
    ) -> None:
        """Start the workers and the first mix."""
        search = judge.search
        resources = search.base.resources
        self.judge, self.rungs, self.cost = judge, list(rungs), 0.0
        self.store = process_group.meeting_place(ray.util.get_node_ip_address())
        address = f"{self.store.host}:{self.store.port}"
        workers = search.settings.fine_tuning.workers
        group = WorkerGroup(address, workers, cpus=resources.cpus_per_worker, gpus=resources.gpus_per_worker)
        remote: Any = ray.remote(Worker)
        bundles: Any = get_current_placement_group()
        self.peers = [
            remote.options(
                num_cpus=resources.cpus_per_worker,
                num_gpus=resources.gpus_per_worker,
                scheduling_strategy=PlacementGroupSchedulingStrategy(bundles, placement_group_bundle_index=rank),
            ).remote(data, rank, group)
            for rank in range(1, workers)
        ]
        self.worker = Worker(data, 0, group)
        self._begin(config)

    def _begin(self, config: dict[str, Any], saved: bytes | None = None) -> None:
        search = self.judge.search
        self.point = search.decode(config)
        experiment = search.experiment(self.point)
        waiting = [peer.begin.remote(experiment, saved) for peer in self.peers]
        self.worker.begin(experiment, saved)
        ray.get(waiting)

    def step(self) -> dict[str, Any]:
        """Train to the next rung and measure; a mix that diverges ends with objectives of 0."""
        began, objectives = time.monotonic(), self.judge.search.settings.selection.objectives
        done = self.worker.training_state.progress.epoch
        goal = next((rung for rung in self.rungs if rung > done), self.rungs[-1])  # Tune may not have saved an end
        waiting = [peer.advance.remote(goal) for peer in self.peers]
        try:
            predictions = self.worker.advance(goal)
            ray.get(waiting)
        except FloatingPointError as error:
            zero = dict.fromkeys((f"objective_{name}" for name in objectives), 0.0)
            return zero | {"epoch": goal, "done": True, "diverged": str(error), "cost": self._spent(began)}
        accuracy = {code: one.score for code, one in predictions.items()}
        tried = Tried(self.point, "fine_tune", epochs=goal, whole=False, accuracy=accuracy)
        low, high = self.judge.interval(predictions, tried)
        result = {"epoch": goal, "accuracy": accuracy, "low": low, "high": high, "done": goal == self.rungs[-1]}
        result |= {"point": dict(self.point), "key": tried.key}  # a scheduler gets no nested values
        result |= {f"objective_{name}": self.judge.value(tried, name) or 0.0 for name in objectives}
        return result | {"cost": self._spent(began)}

    def _spent(self, began: float) -> float:
        self.cost += time.monotonic() - began
        return self.cost

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Save as Tune does, by way of a folder that goes also where that fails, as on a disk that is full."""
        if checkpoint_dir is not None:
            return super().save(checkpoint_dir)
        with durable.scratch() as folder:
            return super().save(str(folder))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save the state of training, which is the same on all workers, and the seconds of work behind it."""
        self.worker.training_state.save(Path(checkpoint_dir))
        (Path(checkpoint_dir) / "cost.txt").write_text(str(self.cost), encoding="utf-8")

    def restore(self, checkpoint_path: Any) -> None:
        """Resume a saved trial, or start it again: a kill can come between a deletion and Tune's record of it."""
        try:
            super().restore(checkpoint_path)
        except (FileNotFoundError, ValueError) as error:  # the file is gone, the folder is
            if isinstance(error, InputError):
                raise
            self.reset_config(self.config)

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Resume a saved trial."""
        folder = Path(str(checkpoint_dir))
        self._begin(self.config, (folder / checkpoint.FILE).read_bytes())
        self.cost = float((folder / "cost.txt").read_text(encoding="utf-8"))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another mix with the same workers."""
        self.cost = 0.0
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Kill the other workers."""
        for peer in self.peers:
            ray.kill(peer)
