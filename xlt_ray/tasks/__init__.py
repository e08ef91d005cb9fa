"""List the tasks: each is one file here and one line in TASKS; a configuration names one under `task:`.

No module outside this package names one of them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Sequence

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError, joined
from xlt_ray.tasks.task import Task

TASKS = {
    "classification": "xlt_ray.tasks.classification.Classification",
    "tag": "xlt_ray.tasks.tag.Tag",
}
DEFAULT = "classification"


def load(name: str) -> type[Task]:
    """Import and return the class of a task; raise InputError for a name that is none."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"task: {name!r}: there is no such task; {meant}there are {', '.join(TASKS)}")
    module, _, kind = TASKS[name].rpartition(".")
    found: type[Task] = getattr(importlib.import_module(module), kind)
    return found


def build(name: str, labels: Sequence[str] = ()) -> Task:
    """Return a task on some labels; raise InputError for a name that is none."""
    return load(name)(tuple(labels))


def of_words(name: str) -> bool:
    """Return whether a task asks of words; False for a name that is none, which `check` refuses."""
    return name in TASKS and load(name).tagged


def check(experiment: Experiment, corpus: Corpus) -> None:
    """Raise InputError with all that keeps an experiment from learning its task from a corpus."""
    task, method = build(experiment.task, corpus.labels), experiment.training.method
    if not experiment.training.labelled:
        return
    faults = [*unfit(task, corpus)] or [*task.faults(experiment, corpus)]
    if method not in task.methods:
        faults.append(
            f"training.method: {method} cannot learn task: {task.name}; set it to {' or '.join(task.methods)}"
        )
    if faults:
        raise joined(faults)


def unfit(task: Task, corpus: Corpus) -> Iterator[str]:
    """Yield why a corpus is not of the kind that a task is about."""
    if corpus.tagged is not task.tagged:
        able = [one for one in TASKS if load(one).tagged is corpus.tagged]
        there = "tagged words" if corpus.tagged else "a label a row"
        yield (
            f"task: {task.name} wants {task.data}, and the corpus {corpus.name} has {there}; set task: "
            f"{' or '.join(able)}, or take another corpus"
        )
