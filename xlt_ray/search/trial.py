"""One trial of a search: a mix fine-tuned from rung to rung on one or more workers, measured on dev, never on test.

A trial gets a corpus in which there is no test split and no label of a language outside the pool (dev of the targets in
an oracle search alone), and beside it the targets' texts without labels, for techniques. Its workers live in the
placement group that Tune made for it, so Tune frees everything when it stops a trial; and they outlive it: the next
trial finds the encoder loaded and the rows tokenised.
"""

from __future__ import annotations

import copy
import os
import tempfile
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
from torch import distributed

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


class Remembered(Tokenize):
    """A tokenizer that keeps what it has encoded: trials share most of their rows."""

    def __init__(self, plain: Tokenize) -> None:
        super().__init__(plain.tokenizer, plain.prefix, plain.max_length)
        self.plain = plain  # encodes alike and keeps nothing
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
    """What a trial reads: a corpus without test rows or labels of targets, and the targets' texts without labels."""

    corpus: Corpus
    texts: Mapping[str, pa.Table] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerGroup:
    """The workers of a trial together: where they meet, how many they are, and what each of them may use."""

    address: str  # host:port of the store at which they find each other
    size: int
    cpus: float
    gpus: float


class Worker:
    """One worker of a trial, and of the trials after it."""

    net: network.Network
    tokenize: Remembered
    trainee: loop.TrainingState

    def __init__(self, data: TrialData, rank: int, group: WorkerGroup) -> None:
        self.corpus, self.texts = data.corpus, data.texts
        self.device = torch.device("cuda" if group.gpus else "cpu")
        torch.set_num_threads(max(1, int(group.cpus)))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if group.size > 1:
            backend = "nccl" if group.gpus else "gloo"
            host, _, port = group.address.rpartition(":")
            store = distributed.TCPStore(host, int(port), is_master=False)
            distributed.init_process_group(backend, store=store, rank=rank, world_size=group.size)
        self.built: Any = None
        self.initial: network.Weights = {}

    def begin(self, experiment: Experiment, restored: Path | None = None) -> None:
        """Take up a mix, from the encoder's own weights or from a checkpoint."""
        setup = Setup.of(experiment, self.corpus, self.texts)
        self._build(setup)
        self.net.languages = setup.languages
        self.net.terms.clear()  # of the trial before, which are no part of what this one begins with
        network.restore_weights(self.net, self.initial)
        self.net.zero_grad(set_to_none=True)
        # rows that are new in every epoch are not worth remembering
        fresh = any(one.changes_examples for one in setup.techniques)
        # dev is measured here, at rungs alone
        setup = replace(setup, visible=replace(setup.visible, splits={**setup.visible.splits, "dev": {}}))
        run = Run(setup, self.net, self.tokenize.plain if fresh else self.tokenize)
        self.trainee = loop.begin(run, restored)
        self.experiment = experiment

    def _build(self, setup: Setup) -> None:
        """Build the network, unless the one of the trial before is the same."""
        changing = [one for one in setup.techniques if type(one).attach is not Technique.attach]
        sources = setup.experiment.sources if any(one.attaches_from_data for one in changing) else ()
        wanted = (setup.experiment.network, changing, setup.languages if changing else (), sources)
        if self.built == wanted:
            return
        for old in ("net", "tokenize", "trainee"):  # held meanwhile, the old network would double the memory
            self.__dict__.pop(old, None)
        self.net, tokenize, _ = setup.build()
        self.net.to(self.device)
        self.tokenize = Remembered(tokenize)
        self.initial = {name: tensor.clone() for name, tensor in network.trained(self.net).items()}
        self.built = wanted

    def advance(self, epochs: int) -> dict[str, Predictions]:
        """Train until so many epochs are done, and predict every dev split there is."""
        self.trainee.advance(epochs)
        whole = epochs >= self.experiment.training.epochs
        if whole:
            self.trainee.finish()
            self.trainee.calibrate()
        return self._measure(calibrated=whole)

    def _measure(self, calibrated: bool) -> dict[str, Predictions]:
        """Predict dev with what techniques do to features as it is now.

        Before the end of training they are not calibrated. So that is done here, on a copy that is thrown away:
        training goes on, and is saved, as if nothing had been measured. Languages that the mix leaves out stand in for
        targets, and their unlabelled texts are as open; so on the copy they are taken up as `xlt adapt` does it.
        """
        net, progress = self.net, self.trainee.progress
        steps, languages, facts = net.steps, net.languages, dict(progress.facts)
        net.steps = copy.deepcopy(steps)
        try:
            if len(steps) and not calibrated:
                self.trainee.calibrate()
            self._take_up_left_out()
            tables = {code: self.corpus.table("dev", code) for code in self.corpus.languages("dev")}
            budget = self.experiment.evaluation.tokens_per_step
            return evaluate.predict(net, tables, Inputs(self.tokenize, progress.precision, budget))
        finally:
            net.steps, net.languages, progress.facts = steps, languages, facts

    def _take_up_left_out(self) -> None:
        """Let techniques take up the languages that the network does not know, where all that depend on it can."""
        net, run = self.net, self.trainee.run
        left = self.corpus.unlabelled([c for c in self.corpus.languages("dev") if net.index(c) < 0], ids=True)
        stepping = [one for one in run.setup.techniques if one.name in net.steps]
        if not left or not stepping or not all(one.adds_languages for one in stepping):
            return
        net.languages = (*net.languages, *left)
        for one in stepping:
            sample = one.texts(replace(run.setup.material, texts=left))
            features = run.embed(sample, self.trainee.progress.precision)
            for code in left:
                one.add_language(net, code, features[code])

    def begin_from(self, experiment: Experiment, saved: bytes | None) -> None:
        """Take up a mix as `begin` does, the checkpoint given as a file's content: workers may share no disk."""
        if saved is None:
            self.begin(experiment)
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / checkpoint.FILE).write_bytes(saved)
            self.begin(experiment, Path(folder))


def meeting_place(host: str) -> distributed.TCPStore:
    """Start the store at which the workers of a trial find each other, on a free port of this machine."""
    return distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False)


class Trial(tune.Trainable):
    """What Tune runs: the first worker, with the others as actors beside it."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], judge: Judge, data: TrialData, rungs: Sequence[int]
    ) -> None:
        """Start the workers and take up the first mix."""
        search = judge.search
        asked = search.base.resources
        self.judge, self.rungs, self.cost = judge, list(rungs), 0.0
        # the store takes a free port and keeps it: one chosen here for a worker could be gone when that listens
        self.store = meeting_place(ray.util.get_node_ip_address())
        address = f"{self.store.host}:{self.store.port}"
        workers = search.settings.fine_tuning.workers
        group = WorkerGroup(address, workers, cpus=asked.cpus_per_worker, gpus=asked.gpus_per_worker)
        remote: Any = ray.remote(Worker)
        bundles: Any = get_current_placement_group()
        self.peers = [
            remote.options(
                num_cpus=asked.cpus_per_worker,
                num_gpus=asked.gpus_per_worker,
                scheduling_strategy=PlacementGroupSchedulingStrategy(bundles, placement_group_bundle_index=rank),
            ).remote(data, rank, group)
            for rank in range(1, workers)
        ]
        self.worker = Worker(data, 0, group)
        self._take_up(config)

    def _take_up(self, config: dict[str, Any], saved: bytes | None = None) -> None:
        search = self.judge.search
        self.point = search.point(config)
        experiment = search.experiment(self.point)
        waiting = [peer.begin_from.remote(experiment, saved) for peer in self.peers]
        self.worker.begin_from(experiment, saved)
        ray.get(waiting)

    def step(self) -> dict[str, Any]:
        """Train to the next rung and measure; a mix that diverges ends with objectives of 0."""
        began = time.monotonic()
        done = self.worker.trainee.progress.epoch
        goal = next((rung for rung in self.rungs if rung > done), self.rungs[-1])  # a kill may hide from Tune an end
        waiting = [peer.advance.remote(goal) for peer in self.peers]
        try:
            predictions = self.worker.advance(goal)
            ray.get(waiting)
        except FloatingPointError as error:
            zero = {f"objective_{name}": 0.0 for name in self.judge.search.settings.selection.objectives}
            return zero | {"epoch": goal, "done": True, "diverged": str(error), "cost": self._spent(began)}
        accuracy = {code: one.accuracy for code, one in predictions.items()}
        tried = Tried(self.point, "fine_tune", epochs=goal, whole=False, accuracy=accuracy)
        low, high = self.judge.interval(predictions, tried)
        result = {"epoch": goal, "accuracy": accuracy, "low": low, "high": high, "done": goal == self.rungs[-1]}
        result |= {"point": dict(self.point), "key": tried.key}  # a scheduler is handed no nested values
        return result | objectives(self.judge, tried) | {"cost": self._spent(began)}

    def _spent(self, began: float) -> float:
        self.cost += time.monotonic() - began
        return self.cost

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write where the trial is; all workers are at the same place."""
        self.worker.trainee.save(Path(checkpoint_dir))
        (Path(checkpoint_dir) / "cost.txt").write_text(str(self.cost), encoding="utf-8")

    def restore(self, checkpoint_path: Any) -> None:
        """Go on where a trial was saved, or begin anew: a kill can come between a deletion and Tune's note of it."""
        try:
            super().restore(checkpoint_path)
        except (FileNotFoundError, ValueError) as error:  # the file is gone, the folder is
            if isinstance(error, InputError):
                raise
            self.reset_config(self.config)

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Go on where a trial was saved."""
        folder = Path(str(checkpoint_dir))
        self._take_up(self.config, (folder / checkpoint.FILE).read_bytes())
        self.cost = float((folder / "cost.txt").read_text(encoding="utf-8"))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another mix with the same workers."""
        self.cost = 0.0
        self._take_up(new_config)
        return True

    def cleanup(self) -> None:
        """End the other workers."""
        for peer in self.peers:
            ray.kill(peer)


def objectives(judge: Judge, tried: Tried) -> dict[str, float]:
    """Name what a searcher maximises, `objective_mean` and the like, for a mix measured on dev."""
    names = judge.search.settings.selection.objectives
    return {f"objective_{name}": judge.value(tried, name) or 0.0 for name in names}
