"""Small searches on real Ray, for the tests of them: settings, the call of the command, and what it left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from ray_runs import Settings, settings
from typer.testing import CliRunner

from xlt_ray import cli
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.model import network
from xlt_ray.training import loop
from xlt_ray.training.setup import Run, Setup

POOL = ("eng_Latn", "deu_Latn", "swh_Latn")
TARGET = "hin_Deva"
TRIAL_ACTOR = ("ray::Trial", "ray::ResourceTrainable")  # how the title of its process begins, idle and at work
TABLE = "tiny: "  # what the first line of the printed table begins with


def search_settings(encoder: Path, corpus: Path, folder: Path, **sections: Any) -> Settings:
    """Plain data of a search over mixes of one or two of three languages; `search` is merged section by section."""
    asked = sections.pop("search", {})
    training = {"epochs": 3} | sections.pop("training", {})
    found = settings(encoder, corpus, folder, sources=list(POOL), targets=[TARGET], training=training, **sections)
    search: Settings = {
        "space": {"sources": {"at_most": 2}},
        "screening": {"trials": 20},
        "fine_tuning": {"trials": 4, "concurrent": 1},
        "retraining": {"seeds": 0},
    }
    for name, value in asked.items():
        known = search.get(name)
        merged = isinstance(value, Mapping) and isinstance(known, Mapping) and name != "space"
        search[name] = {**known, **value} if merged else value  # type: ignore[dict-item]
    return found | {"search": search}


def write(data: Settings, file: Path) -> Path:
    """Write settings as the file that `xlt tune` reads."""
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


@dataclass(frozen=True)
class Called:
    """What a call of `xlt tune` printed and left."""

    config: Path
    printed: str

    @property
    def folder(self) -> Path:
        (found,) = (self.config.parent / "runs").glob("tiny-search-*/")
        return found

    @property
    def table(self) -> str:
        """What was printed after the last line of progress."""
        lines = self.printed.splitlines()
        return "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith(TABLE)) :])

    @property
    def journal(self) -> list[dict[str, Any]]:
        return journal(self.folder)

    def tuned(self) -> dict[str, dict[str, Any]]:
        """Return the last line of every fine-tuning by the name of its trial."""
        return {line["name"]: line for line in self.journal if line["fidelity"] == "fine_tune"}


def tune(config: Path, *overrides: str) -> Called:
    """Call `xlt tune` in this process."""
    done = CliRunner().invoke(cli.app, ["tune", str(config), *overrides])
    assert done.exit_code == 0, f"{done.output}\n{done.exc_info}"
    return Called(config, done.stdout)


def journal(folder: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a search's journal."""
    file = folder / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def stamps(files: Iterable[Path]) -> dict[Path, tuple[int, bytes]]:
    """Return what every file holds and when it was written last, to see whether it was written again."""
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@dataclass(frozen=True)
class Plain:
    """An experiment fitted by the loop alone: its weights, and its predictions on dev of the languages it was given."""

    weights: network.Weights
    dev: Mapping[str, Predictions]

    @property
    def accuracy(self) -> dict[str, float]:
        return {code: one.score for code, one in self.dev.items()}


def fit_plainly(experiment: Experiment, corpus: Corpus) -> Plain:
    """Fit an experiment in this process, on one thread as a worker of one CPU does, without Ray and without Tune.

    `corpus` is a whole one where there are techniques, which may look at texts of targets.
    """
    setup = Setup.of(experiment, corpus)
    net, tokenize, _ = setup.build()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        progress = loop.fit(Run(setup, net, tokenize))
        net.terms.clear()
        tables = {code: corpus.table("dev", code) for code in corpus.languages("dev")}
        inputs = evaluate.Inputs(tokenize, progress.precision, experiment.evaluation.tokens_per_step)
        dev = evaluate.predict(net, setup.task, tables, inputs)
    finally:
        torch.set_num_threads(threads)
    return Plain(network.trained(net), dev)
