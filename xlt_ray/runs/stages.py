"""Stages: a run that begins from the bundle of another, which `network.init: run:FILE` has done first.

Behind the file may stand what `xlt train` takes there: `run:jobs/configs/sib200_distil.yaml corpus.path=data/sib200`.
A stage is stored, cached and tracked where the run is that asks for it, and is a run like any other: the same command
finds it done, or goes on with it. There is no other notion of a pipeline.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xlt_ray import techniques
from xlt_ray.config import load
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora import seen
from xlt_ray.corpora.corpus import refuse
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.model.network import STAGE
from xlt_ray.runs import storage
from xlt_ray.runs.storage import RunFolder, begun_from
from xlt_ray.training import checks
from xlt_ray.training.checks import Loaded
from xlt_ray.training.setup import Setup, tested


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
        return self.experiment if self.stage is None else begun_from(self.experiment, STAGE + self.stage.key)

    @property
    def key(self) -> str:
        """The key of the run."""
        return storage.key(self.named, self.fingerprint)

    def folder(self) -> RunFolder:
        """Open the folder of the run."""
        return storage.open_folder(self.experiment, self.key)

    @property
    def done(self) -> bool:
        """Whether the run has ended well."""
        return self.folder().finished()

    def check(self, on_progress: OnProgress = lambda done, total: None) -> Setup:
        """Check this run and all before it that is not done; raise InputError with the faults found.

        Where the stage is done, that is by what it has made, else by what can be known before. The setup of a run whose
        stage is not done is no more than a plan.
        """
        if self.stage is None:
            return checks.prepare(self.experiment, self.loaded, on_progress)
        if storage.is_url(self.experiment.storage) and checks.on_a_cluster():
            raise InputError(
                f"network.init: {self.experiment.network.init!r} is done in {self.experiment.storage}, which workers "
                "cannot begin from; give a storage that all machines have as a folder, or the path of a bundle"
            )
        if self.stage.done:
            return checks.prepare(self._begun(), self.loaded, on_progress)
        before = self.stage.check()
        first = next(self.before()).experiment.network
        own: dict[str, object] = {"init": first.init, "revision": first.revision, "head": "fresh"}
        faults, asked = self._unfit(before), self.experiment.network.layers
        if left := next((cut for one in [*self.before()][::-1] if (cut := one.experiment.network.layers)), None):
            own["layers"] = min(asked or left, left)
            if asked and asked > left:
                init = self.experiment.network.init
                faults.append(f"network.layers: {asked}, but {init!r} leaves {left} of the encoder; give 1 to {left}")
        network = self.experiment.network.model_copy(update=own)
        return checks.prepare(self.experiment, self.loaded, on_progress, checks.Beginning(network, faults))

    def _unfit(self, before: Setup) -> list[str]:
        """List why this run will not be able to begin from its stage."""
        init, faults = self.experiment.network.init, []
        if changed := [one.name for one in before.techniques if one.replaces_encoder and not one.merged_when_saved]:
            faults.append(
                f"network.init: {init!r} will make a bundle that holds changes to an encoder alone; put techniques."
                f"{changed[0]}.merge=true behind it"
            )
        if self.loaded.corpus is None:
            return faults
        own, stage = self.loaded.corpus, (before.experiment.task, before.corpus.labels)
        if self.experiment.network.head == "bundle" and not before.experiment.training.labelled:
            faults.append(f"network.head: bundle, but {init!r} learns no task (training.method: adapt); leave it out")
        elif self.experiment.network.head == "bundle":
            faults += checks.other_answers(init, stage, (self.experiment.task, own.labels))
        measured = tested(self.experiment, own)
        ancestors = techniques.bundles(before.techniques, before.experiment).values()
        known = seen.together(before.read_texts(), *map(seen.load, ancestors))
        return faults + list(seen.faults(own, measured, known, f"network.init names ({init})"))

    def before(self) -> Iterator[Planned]:
        """Yield the runs before this one, in the order in which they are done."""
        if self.stage is not None:
            yield from self.stage.before()
            yield self.stage

    def _begun(self) -> Experiment:
        """Return the experiment as it begins from the bundle that its stage has made."""
        assert self.stage is not None
        folder = self.stage.folder()
        folder.download("bundle")
        begun = begun_from(self.experiment, str(folder.local / "bundle"))
        if begun.network.bundle is None:
            remedy = f"delete {f'{folder.local} and ' if folder.remote else ''}{folder.shown}"
            raise InputError(
                f"network.init: {folder.shown} has no whole bundle; {remedy}; the same command makes it anew"
            )
        return begun


def plan(experiment: Experiment, above: tuple[str, ...] = ()) -> Planned:
    """Return a run and all that it begins from, with their corpora; faults of the first are for `check` to tell.

    Raises InputError where a stage has a fault that keeps it from having a name, or would come before itself.
    """
    loaded, init = checks.load(experiment), experiment.network.init
    if not init.startswith(STAGE):
        return Planned(experiment, loaded)
    try:
        file, *changes = shlex.split(init.removeprefix(STAGE)) or [""]
        read = load(file, changes)
    except (InputError, ValueError) as error:
        raise InputError(f"network.init: {init!r}: {error}") from None
    place = " ".join((str(Path(file).absolute()), *changes))
    if place in above:
        raise InputError(f"network.init: {init!r}: that run would come before itself; name another in {file}")
    own = {name: getattr(read.tracking, name) for name in ("register_as", "alias")}
    tracking = experiment.tracking.model_copy(update=own)
    corpus = read.corpus.model_copy(update={"cache_dir": experiment.corpus.cache_dir})
    there = {"storage": experiment.storage, "tracking": tracking, "corpus": corpus}
    stage = plan(read.model_copy(update=there), (*above, place))
    if stage.loaded.corpus is None:
        refuse(f"network.init: {init!r}", stage.loaded.faults)
    return Planned(experiment, loaded, stage)
