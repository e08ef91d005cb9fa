"""Fine-tune the mixes of a search on Ray Tune, stop bad ones early, and resume after a kill."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from pyarrow.fs import FileSelector, LocalFileSystem
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from xlt_ray.errors import TrainingError
from xlt_ray.search import proposals
from xlt_ray.search.selection import Judge, Tried
from xlt_ray.search.space import Search, point_key
from xlt_ray.search.trial import Trial, TrialData
from xlt_ray.training import checkpoint, cluster

# least seconds between two saves of Tune's state; a result younger than that is measured again after a kill
TUNE_SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C then does what kill does, and both are resumed alike
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
STARTUP = 10  # fine-tunings drawn at random before TPE proposes, but at most half of all; probes count as well
WARM = 100  # probes the searcher receives before it proposes
ATTEMPTS = 50  # proposals of known mixes in a row after which a space counts as used up

Listener = Callable[[str, str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Session:
    """What the callbacks of Tune need in the process that runs it: who listens, and when the time is up."""

    listener: Listener
    deadline: float  # a `time.monotonic()`; infinite where the search has no limit


# Tune pickles its callbacks, and a live display cannot be pickled; so callbacks hold a search's key to find it here
SESSIONS: dict[str, Session] = {}


class Follow(tune.Callback):
    """Report `start`, `result`, `complete`, `recover` and `error` of every trial to the listener of its search."""

    def __init__(self, key: str) -> None:
        self.key = key

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report a trial that starts or resumes."""
        self._report("start", trial, trial.config)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        """Report a rung that was reached."""
        self._report("result", trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report a trial's end and delete its checkpoint, as large as the optimiser, which is no longer needed."""
        self._report("complete", trial, {})
        if trial.checkpoint is not None:
            with contextlib.suppress(OSError):  # it may be gone after a kill, and costs no more than room
                trial.checkpoint.filesystem.delete_file(f"{trial.checkpoint.path}/{checkpoint.FILE}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report a trial that failed for good."""
        self._report("error", trial, {})

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report a trial that failed and is tried again."""
        self._report("recover", trial, {"why": _why(trial)})

    def _report(self, what: str, trial: Any, result: Mapping[str, Any]) -> None:
        if self.key in SESSIONS:
            SESSIONS[self.key].listener(what, trial.trial_id, result)


def _why(trial: Any) -> str:
    """Return the last line of what a trial failed of, "" where it was not written, as on a disk that is full."""
    with contextlib.suppress(OSError, TypeError):
        return Path(trial.error_file).read_text(encoding="utf-8").strip().rpartition("\n")[2][:200]
    return ""


class Deadline(tune.Stopper):
    """Stop all trials when the time of a search is up, of which a resumed one has less left."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no trial is stopped by its own result."""
        return False

    def stop_all(self) -> bool:
        """Return whether the time is up."""
        return self.key in SESSIONS and time.monotonic() > SESSIONS[self.key].deadline


class Halving(AsyncHyperBandScheduler):
    """ASHA (Li et al. 2020) that lets one mix run to its end: the choice of the probes, which is the one to beat.

    At the first rung a head has often learned little yet, of mixes of many languages the least; so that rung may stop
    by chance the mix that hundreds of probes point to.
    """

    exempt_key: str | None = None  # of the point that is not stopped

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether a trial continues after a rung."""
        action = super().on_trial_result(tune_controller, trial, result)
        exempt = result.get("key") == self.exempt_key and result["epoch"] < self._max_t  # one that diverged has no key
        return self.CONTINUE if exempt else action


class NonRepeatingSearch(OptunaSearch):
    """Optuna's proposals, each mix once: the same mix with the same seed would have the same score."""

    known: set[str]
    search: Search

    def suggest(self, trial_id: str) -> Any:
        """Return parameters of a new mix, or FINISHED where there seems to be none."""
        study: Any = self._ot_study
        learned = study.sampler
        try:
            for attempt in range(ATTEMPTS):
                if attempt == ATTEMPTS // 2:  # a sampler that prefers a few subsets proposes no other
                    study.sampler = optuna.samplers.RandomSampler(seed=len(self.known))
                found = super().suggest(trial_id)
                if found is None:
                    return None
                key = point_key(self.search.decode(found))
                if key not in self.known:
                    self.known.add(key)
                    return found
                study.tell(self._ot_trials.pop(trial_id), state=optuna.trial.TrialState.FAIL)
        finally:
            study.sampler = learned
        return Searcher.FINISHED


def rungs(search: Search) -> list[int]:
    """List the epochs after which a trial is measured and may be stopped; the last is its end."""
    settings, epochs = search.settings.fine_tuning, search.base.training.epochs
    found = []
    rung = settings.grace_epochs
    while stops_early(search) and rung < epochs:
        found.append(rung)
        rung *= settings.reduction
    return [*found, epochs]


def stops_early(search: Search) -> bool:
    """Return whether bad mixes are stopped: by ASHA (Li et al. 2020), which compares by a single objective only."""
    settings = search.settings
    return settings.fine_tuning.scheduler == "asha" and len(settings.selection.objectives) == 1


def concurrent(search: Search) -> int:
    """Return how many trials run at once; raise InputError with the arithmetic where not even one fits."""
    resources, settings = search.base.resources, search.settings.fine_tuning
    trial = (settings.workers, resources.cpus_per_worker, resources.gpus_per_worker)
    cluster.check_trials(*trial)
    fit = cluster.slots(*trial)
    return min(fit, settings.concurrent or fit, settings.trials)


def fine_tune(
    judge: Judge,
    data: TrialData,
    tried: Sequence[Tried],
    storage: tuple[str, Any],
    listener: Listener,
    seconds: float,
) -> list[str]:
    """Fine-tune mixes, or resume it, report every rung to `listener`, and return failures as sentences.

    The searcher begins with the best probes of `tried`; all trials end after `seconds`. Tune resumes from its own
    state; where that is not whole, those of `tried` that were fine-tuned count as done, and the rest is begun anew.
    Raises TrainingError where every trial failed.
    """
    search = judge.search
    os.environ.update(TUNE_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that fails is told of by `Follow`, in a line
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    resources, key = search.base.resources, search.key()
    gpus = {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    bundle = {"CPU": resources.cpus_per_worker, **gpus}
    group = tune.PlacementGroupFactory([bundle] * search.settings.fine_tuning.workers)
    # what is common to all trials is put into the object store once
    common = {"judge": judge, "data": data, "rungs": rungs(search)}
    trainable = tune.with_resources(tune.with_parameters(Trial, **common), group)
    path = f"{storage[0]}/tune"
    SESSIONS[key] = Session(listener, deadline=time.monotonic() + seconds)
    try:
        tuner: tune.Tuner | None = None
        if resumable(path, storage[1]):
            tuner = tune.Tuner.restore(
                path, trainable, resume_unfinished=True, resume_errored=True, storage_filesystem=storage[1]
            )
        elif left := Left.of(search, tried):
            tuner = _new(judge, trainable, left, storage)
        if tuner is None:
            return []
        grid = tuner.fit()
        # Tune may have saved a rung that a kill kept out of the journal
        for result in map(grid.__getitem__, range(len(grid))):
            if result.metrics and "accuracy" in result.metrics:
                listener("result", str(result.metrics["trial_id"]), result.metrics)
    finally:
        del SESSIONS[key]
    failures = [f"a trial failed: {str(error).strip().splitlines()[-1]}" for error in grid.errors]
    if failures and len(failures) == len(grid):
        raise TrainingError(f"every trial failed; the last: {failures[-1]}")
    return failures


def resumable(path: str, filesystem: Any) -> bool:
    """Return whether Tune can go on from the state that it saved; state that is torn is deleted, trials stay.

    A kill between two of its files leaves a searcher that does not know a trial, and would propose it again.
    """
    files = filesystem or LocalFileSystem()
    found = files.get_file_info(FileSelector(path, allow_not_found=True))
    state = sorted((one for one in found if one.is_file), key=lambda one: str(one.path))

    def newest(prefix: str) -> bytes:
        with files.open_input_stream([one.path for one in state if one.base_name.startswith(prefix)][-1]) as stream:
            return bytes(stream.readall())

    with contextlib.suppress(Exception):  # whatever unpickling raises
        trials = len(json.loads(newest("experiment_state-"))["trial_data"])
        searcher = pickle.loads(newest("search_gen_state-"))
        if "counter" not in searcher:  # of a grid, which is all drawn in the beginning
            return True
        pickle.loads(newest("searcher-state-"))
        if searcher["counter"] == trials:
            return True
    for one in state:
        files.delete_file(one.path)
    return False


@dataclass(frozen=True)
class Left:
    """What a search that Tune has no state of has still to fine-tune, which is all of it in the beginning."""

    trials: int
    probes: Sequence[Tried]
    ended: Sequence[Tried]
    begun: Sequence[Tried]  # may not have come to their ends, and are begun again

    @classmethod
    def of(cls, search: Search, tried: Sequence[Tried]) -> Left | None:
        """Return what is left after those of `tried`, None where nothing is.

        Of mixes that are not whole, the last measured may have been running when the search was killed, as many as run
        at once; others had been stopped.
        """
        tuned = sorted((one for one in tried if one.fidelity == "fine_tune"), key=lambda one: one.seconds)
        begun = [one for one in tuned if not one.whole][-concurrent(search) :]
        ended = [one for one in tuned if one not in begun]
        trials = search.settings.fine_tuning.trials - len(ended)
        return cls(trials, [one for one in tried if one.fidelity == "probe"], ended, begun) if trials > 0 else None


def _new(judge: Judge, trainable: Any, left: Left, storage: tuple[str, Any]) -> tune.Tuner | None:
    search, settings = judge.search, judge.search.settings
    first = f"objective_{settings.selection.objectives[0]}"
    ended = {one.key for one in left.ended}
    chosen = [search.encode(point) for point in proposals.starts(judge, left.probes)]
    begin = [search.encode(one.point) for one in left.begun]
    begin += [parameters for parameters in chosen if point_key(search.decode(parameters)) not in ended]
    scheduler: Any = FIFOScheduler()
    if stops_early(search):
        fine = settings.fine_tuning
        scheduler = Halving("epoch", first, "max", search.base.training.epochs, fine.grace_epochs, fine.reduction)
        scheduler.exempt_key = point_key(search.decode(chosen[0])) if chosen else None
    grid = settings.searcher == "grid"
    points = search.grid()[: settings.fine_tuning.trials] if grid else []
    points = [point for point in points if point_key(point) not in ended]
    if grid and not points:
        return None
    return tune.Tuner(
        trainable,
        param_space={"point": tune.grid_search(points)} if grid else {},
        tune_config=tune.TuneConfig(
            num_samples=1 if grid else left.trials,
            max_concurrent_trials=concurrent(search),
            search_alg=None if grid else _searcher(judge, left, begin),
            scheduler=scheduler,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage[0],
            storage_filesystem=storage[1],
            callbacks=[Follow(search.key())],
            stop=Deadline(search.key()),
            failure_config=tune.FailureConfig(max_failures=search.base.resources.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
            verbose=0,
        ),
    )


def _searcher(judge: Judge, left: Left, begin: list[dict[str, Any]]) -> NonRepeatingSearch:
    search = judge.search
    objectives = [f"objective_{name}" for name in search.settings.selection.objectives]
    space = proposals.distributions(search)
    single = len(objectives) == 1
    found = NonRepeatingSearch(
        space,
        metric=objectives[0] if single else objectives,
        mode="max" if single else ["max"] * len(objectives),
        points_to_evaluate=begin,
        sampler=proposals.sampler(search, 0, startup=min(STARTUP, max(1, search.settings.fine_tuning.trials // 2))),
    )
    found.search, found.known = search, {one.key for one in left.ended}
    if search.settings.searcher == "tpe" and single:
        ranked = judge.ranked(proposals.candidates(search, left.probes))
        step = max(1, len(ranked) // WARM)
        for one in (*ranked[::step], *judge.ranked([one for one in left.ended if one.whole])):
            found.add_evaluated_point(search.encode(one.point), judge.value(one) or 0.0)
    return found


def _name(trial: Any) -> str:  # kept with a search by its module and name, like `Follow` and `Deadline`
    return str(trial.trial_id)
