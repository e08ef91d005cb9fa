"""Print the plan of a run, and what can be named: the verbs catalogue and languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from xlt_ray.cli import progress
from xlt_ray.events import counting
from xlt_ray.supervision import FEW_SHOT, shown

if TYPE_CHECKING:
    from xlt_ray.config.experiment import Experiment
    from xlt_ray.techniques.technique import Technique
    from xlt_ray.training.setup import Setup

METHODS = {
    "fine_tune": "train the encoder and its head with Ray Train; minutes to hours",
    "adapt": "train the encoder alone, by losses of techniques that want no label; another run begins from its bundle",
    "probe": "logistic regression on frozen features; seconds once the features are there; the baseline of everything",
}
READS = {
    "nothing": "nothing",
    "unlabelled": "unlabelled text",
    "parallel": "parallel text or dictionaries",
    "labels": "some labelled rows",
}
ENCODERS = {
    "bundled:e5-small": "multilingual E5 small, about 100 languages, 118 M parameters; needs no network",
    "intfloat/multilingual-e5-small": "the same from the hub, not rounded to 4 bits",
    "xlm-roberta-base": "XLM-R base; any other AutoModel encoder of the hub goes as well",
    "microsoft/mdeberta-v3-base": "mDeBERTa v3",
    "google/mt5-small": "the encoder of an encoder-decoder",
    "run:FILE": "the bundle of the run of another configuration, which `xlt train` does first, or finds done",
    "a directory": "what `save_pretrained` writes of a model and its tokenizer, or a bundle of an earlier run",
}


def plan(experiment: Experiment) -> None:
    """Print an experiment, its mixture and what it needs of a cluster; raise InputError if it is unsound."""
    from xlt_ray import config
    from xlt_ray.runs import stages

    console = Console(highlight=False)
    with progress.shown(console) as on_event:
        planned = stages.plan(experiment)
        prepared = planned.check(counting(on_event, "prepare"))
    console.print(config.dump(experiment), markup=False)
    mixture = Table("language", "rows", "weight", "share", "draws an epoch", "repeats of a row", title="mixture")
    for share in prepared.mixture:
        cells = (share.rows, f"{share.weight:g}", f"{share.share:.3f}", f"{share.draws:.0f}", f"{share.repeats:.2f}")
        mixture.add_row(share.language, *map(str, cells))
    console.print(mixture)
    rungs = prepared.rungs.values()
    few = f" and {len(prepared.few_shot)} few-shot" if prepared.few_shot else ""
    if experiment.training.labelled:
        console.print(f"measured: {len(prepared.measured)} languages, {zero_shot(prepared)} of them zero-shot{few}")
    console.print(f"supervision: {'; '.join(dict.fromkeys(map(shown, rungs))) or 'sources alone'}")
    console.print(
        f"corpus: {len(prepared.corpus.labels)} labels, dropped as also in test: {prepared.dropped or 'none'}"
    )
    asked = experiment.resources
    if experiment.training.method != "probe":
        console.print(f"updates: {prepared.updates} of {experiment.training.batch_size} rows")
    console.print(
        f"resources: {asked.most} workers x {asked.cpus_per_worker:g} CPU, {asked.gpus_per_worker:g} GPU = "
        f"{asked.most * asked.cpus_per_worker:g} CPU, {asked.most * asked.gpus_per_worker:g} GPU"
        f"{'' if asked.fewest == asked.most else f'; {asked.fewest} workers are enough'}"
    )
    for stage in planned.before():
        done = "done" if stage.done else "to be done first, and what it reads is not counted above"
        console.print(f"begins from: {stage.experiment.storage}/{stage.key}, {done}", soft_wrap=True)
    console.print(f"run: {experiment.storage}/{planned.key}", soft_wrap=True)


def zero_shot(prepared: Setup) -> int:
    """Count the measured languages of which neither a run nor what it begins from or learns from has seen a label."""
    return sum(prepared.supervision[code] != FEW_SHOT for code in prepared.zero_shot)


def catalogue() -> None:
    """List what a configuration can name: tasks, corpora, training methods, encoders, every key with its default."""
    from serve.settings import ServeArgs
    from xlt_ray import tasks, techniques
    from xlt_ray.config.experiment import Experiment
    from xlt_ray.config.keys import describe
    from xlt_ray.config.search import SearchConfig
    from xlt_ray.corpora.loaders import LOADERS

    console, kinds = Console(highlight=False), [techniques.load(name) for name in techniques.CATALOGUE]
    for title, rows in {
        "tasks (task)": {name: _purpose(tasks.load(name)) for name in tasks.TASKS},
        "corpora (corpus.loader)": LOADERS,
        "methods (training.method)": METHODS,
        "encoders (network.init)": ENCODERS,
    }.items():
        table = Table(title=title, show_header=False, title_justify="left")
        for name, purpose in rows.items():
            table.add_row(name, purpose)
        console.print(table)
    console.print(_techniques(kinds))
    described_under = {
        "keys": describe(Experiment),
        "keys of techniques": [row for kind in kinds for row in describe(kind, f"techniques.{kind.name}.")],
        "keys of a search (xlt tune)": describe(SearchConfig, "search."),
        "keys of a server (xlt serve)": describe(ServeArgs),
    }
    for title, described in described_under.items():
        # a key that is cut cannot be copied
        keys = Table(Column("key", no_wrap=True), "default", "meaning", title=title, title_justify="left")
        for key, default, meaning in described:
            keys.add_row(key, str(default), meaning)
        console.print(keys)


def _techniques(kinds: Sequence[type[Technique]]) -> Table:
    table = Table(title="techniques (techniques)", show_header=False, title_justify="left", show_lines=True)
    for kind in kinds:
        facts = {
            "paper": kind.paper,
            "needs": kind.needs,
            "reads of targets": READS[str(kind().reads)],
            "cost": kind.cost,
            "methods": ", ".join(kind.methods),
        }
        table.add_row(kind.name, "\n".join([_purpose(kind), *(f"{name}: {fact}" for name, fact in facts.items())]))
    return table


def _purpose(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def languages(
    codes: Annotated[list[str] | None, typer.Argument(help="codes of any common kind; default: all")] = None,
) -> None:
    """Show how language codes are read, and what is known of each language."""
    from xlt_ray.languages import codes as known

    table = Table("code", "name", "script", "family", "in XLM-R", "also written")
    rows = [known.get(known.resolve(code)) for code in codes] if codes else list(known.all_languages())
    for asked, row in zip(codes or [""] * len(rows), rows, strict=True):
        if row is None:
            table.add_row(asked, "unknown: passed on as it is", "", "", "", "")
            continue
        seen = "yes" if row.in_xlmr else "no"
        table.add_row(row.code, row.name, row.script, row.family, seen, " ".join(row.aliases[:6]))
    Console(highlight=False).print(table)
