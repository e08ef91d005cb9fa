"""Stages: a run that begins from the bundle of another, which `network.init: run:FILE` has done first.

Behind the file may stand what `xlt train` takes there: `run:jobs/configs/sib200_distil.yaml corpus.path=data/sib200`.
A stage is stored, cached and tracked where the run is that asks for it, and is a run like any other: the same command
finds it done, or goes on with it. There is no other notion of a pipeline.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xlt_ray.config import load
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.corpus import refuse
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.model.network import STAGE
from xlt_ray.runs import storage
from xlt_ray.runs.storage import RunFolder
from xlt_ray.training import checks
from xlt_ray.training.checks import Loaded
from xlt_ray.training.setup import Setup


@dataclass(frozen=True)
class Planned:
    """A run with its corpus and the stage that it begins from."""

    experiment: Experiment
    loaded: Loaded
    stage: Planned | None = None

    @property
    def fingerprint(self) -> str:
        """That of the corpus, which must have been loaded."""
        assert self.loaded.corpus is not None
        return self.loaded.corpus.fingerprint

    @property
    def named(self) -> Experiment:
        """The experiment as its key has it: with the key of its stage, so that the run tells what came before it."""
        return self.experiment if self.stage is None else _from(self.experiment, STAGE + self.stage.key)

    @property
    def key(self) -> str:
        """The key of the run."""
        return storage.key(self.named, self.fingerprint)

    def folder(self) -> RunFolder:
        """Open the folder of the run."""
        return storage.open_folder(self.experiment, self.key)

    def check(self, on_progress: OnProgress = lambda done, total: None) -> Setup:
        """Check this run and all before it; raise as `checks.prepare` what can be known before a stage is done."""
        if self.stage is None:
            return checks.prepare(self.experiment, self.loaded, on_progress)
        if "://" in self.experiment.storage and os.environ.get("RAY_ADDRESS"):
            raise InputError(
                f"network.init: {self.experiment.network.init!r} is done in {self.experiment.storage}, which workers "
                "cannot begin from; give a storage that all machines have as a folder, or the path of a bundle"
            )
        self.stage.check()
        first = next(iter(self.before())).experiment.network.init
        fresh = self.experiment.network.model_copy(update={"init": first, "head": "fresh"})
        return checks.prepare(self.experiment.model_copy(update={"network": fresh}), self.loaded, on_progress)

    def before(self) -> Iterator[Planned]:
        """Yield the runs before this one, in the order in which they are done."""
        if self.stage is not None:
            yield from self.stage.before()
            yield self.stage

    def begun(self, folder: RunFolder) -> Experiment:
        """Return the experiment as it begins from the bundle of its stage, whose run has ended in `folder`."""
        folder.download("bundle")
        return _from(self.experiment, str(folder.local / "bundle"))


def plan(experiment: Experiment, above: tuple[str, ...] = ()) -> Planned:
    """Return a run and all that it begins from, with their corpora; faults of the first are for `check` to tell.

    Raises InputError where a stage has a fault that keeps it from having a name, or would come before itself.
    """
    loaded, init = checks.load(experiment), experiment.network.init
    if not init.startswith(STAGE):
        return Planned(experiment, loaded)
    file, *changes = shlex.split(init.removeprefix(STAGE)) or [""]
    place = str(Path(file).absolute())
    if place in above:
        raise InputError(f"network.init: {init!r}: that run would come before itself; name another in {file}")
    try:
        read = load(file, changes)
    except InputError as error:
        raise InputError(f"network.init: {init!r}: {error}") from None
    tracking = experiment.tracking.model_copy(update={"register_as": read.tracking.register_as})
    corpus = read.corpus.model_copy(update={"cache_dir": experiment.corpus.cache_dir})
    there = {"storage": experiment.storage, "tracking": tracking, "corpus": corpus}
    stage = plan(read.model_copy(update=there), (*above, place))
    if stage.loaded.corpus is None:
        refuse(f"network.init: {init!r}", stage.loaded.faults)
    return Planned(experiment, loaded, stage)


def _from(experiment: Experiment, init: str) -> Experiment:
    return experiment.model_copy(update={"network": experiment.network.model_copy(update={"init": init})})
