"""Check a run before it begins, and list all that is wrong: techniques, corpus, encoder, resources and tracking.

Of the encoder no weight is read, only names and shapes.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from xlt_ray import tasks, techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import NetworkConfig
from xlt_ray.corpora import seen, soundness
from xlt_ray.corpora.arrow import take
from xlt_ray.corpora.corpus import Corpus, known_languages, refuse
from xlt_ray.corpora.loaders import load_corpus
from xlt_ray.errors import InputError, collecting, joined
from xlt_ray.events import OnProgress
from xlt_ray.model import collate
from xlt_ray.techniques.technique import Available, Technique
from xlt_ray.tracking import preflight
from xlt_ray.training.setup import Dropped, Setup, tested

SAMPLE, LONGEST = 50, 500  # rows a language, and characters of each, that are cut into pieces
MOSTLY, PARTLY = 0.5, 0.25  # shares of unknown characters above which a source is refused and any language warned of


def absolute(experiment: Experiment) -> Experiment:
    """Make local paths absolute, because Ray's workers have working folders of their own."""

    def resolved(path: str) -> str:
        local = "://" not in path and not path.startswith("bundled:") and Path(path).expanduser().exists()
        return str(Path(path).expanduser().resolve()) if local else path

    path = experiment.corpus.path
    if path is not None and experiment.corpus.loader == "files" and "://" not in path:
        path = str(Path(path).expanduser().absolute())  # not resolved: a pattern with {language} exists nowhere
    elif path is not None and experiment.corpus.loader == "hub":
        path = resolved(path)
    beside = {name: getattr(experiment.corpus, name) for name in ("parallel", "unlabelled")}
    beside = {
        name: found if found is None or "://" in found else str(Path(found).expanduser().absolute())
        for name, found in beside.items()
    }
    cache = experiment.corpus.cache_dir  # one that begins with ~ is meant for whatever home a worker has
    cache = cache if cache.startswith("~") else str(Path(cache).absolute())
    return experiment.model_copy(
        update={
            "techniques": _absolute(experiment.techniques),
            "network": experiment.network.model_copy(update={"init": resolved(experiment.network.init)}),
            "corpus": experiment.corpus.model_copy(update={"path": path, **beside, "cache_dir": cache}),
        }
    )


def _absolute(chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    fixed = {name: dict(parameters) for name, parameters in chosen.items()}
    for name, parameter, path in techniques.paths(chosen):
        fixed[name][parameter] = str(Path(path).expanduser().absolute())
    return fixed


@dataclass(frozen=True)
class Loaded:
    """An experiment's corpus without rows that also stand in test, or why it cannot be read."""

    corpus: Corpus | None
    dropped: Dropped
    faults: list[str]


def load(experiment: Experiment) -> Loaded:
    """Load the corpus of an experiment; faults of its files are returned, for `prepare` to list with the rest."""
    faults: list[str] = []
    with collecting(faults):
        return Loaded(*load_corpus(absolute(experiment)), faults)
    return Loaded(None, {}, faults)


@dataclass(frozen=True)
class Beginning:
    """What stands for `network` where its bundle is yet to be made, and why that one will not do."""

    network: NetworkConfig
    faults: list[str]


def prepare(
    experiment: Experiment,
    loaded: Loaded | None = None,
    on_progress: OnProgress = lambda done, total: None,
    begins: Beginning | None = None,
) -> Setup:
    """Load and check everything that can be known without Ray; raise one InputError that lists all faults found.

    This is the one place where a run is refused before it begins, by `xlt train` and `xlt check` alike. `loaded` is its
    corpus, where that is loaded already; `on_progress` is for `Setup.of`.
    """
    experiment = absolute(experiment)
    chosen: tuple[Technique, ...] = ()
    faults: list[str] = []
    with collecting(faults):
        chosen = techniques.build(experiment)
    loaded = loaded or load(experiment)
    corpus, faults = loaded.corpus, faults + loaded.faults + (begins.faults if begins else [])
    if corpus is not None:
        for note in corpus.notes:
            warnings.warn(note, stacklevel=2)
        with collecting(faults):
            dev, kept = _dev_needed(experiment, corpus), experiment.corpus.cache_dir
            soundness.check(corpus, experiment.sources, _scored(experiment, corpus), dev, kept)
        with collecting(faults):
            tasks.check(experiment, corpus)
        with collecting(faults):
            check(chosen, experiment, corpus)
        with collecting(faults):
            bundles = techniques.bundles(chosen, experiment)
            there = {key: path for key, path in bundles.items() if (path / "bundle.json").is_file()}
            faults += trained_on(corpus, tested(experiment, corpus), there)  # others are faults of their keys
    begun = experiment.model_copy(update={"network": begins.network}) if begins else experiment
    faults += _encoder(absolute(begun), chosen, corpus)
    with collecting(faults):
        check_resources(experiment)
    faults += preflight.faults(experiment.tracking)
    if len(faults) == 1:
        raise InputError(faults[0])  # needs no list
    if faults or corpus is None:
        refuse(f"experiment {experiment.name}", faults)
    made = Setup.of(experiment, corpus, dropped=loaded.dropped, on_progress=on_progress)
    if made.joining and (leaks := _joined_and_tested(made)):
        refuse(f"experiment {experiment.name}", leaks)
    return made


def _scored(experiment: Experiment, corpus: Corpus) -> tuple[str, ...] | Literal["all"]:
    """Return the targets that must have test rows; warn of plain text that no run of these languages reads."""
    known = known_languages(experiment, corpus)
    if unread := sorted(corpus.plain.keys() - {*known}):
        warnings.warn(
            f"corpus.unlabelled: {', '.join(unread[:8])}{' ...' if len(unread) > 8 else ''}: not read, as these are "
            "neither sources nor targets; name them in targets, or take the files away",
            stacklevel=3,
        )
    if experiment.training.labelled or experiment.targets == "all":
        return experiment.targets
    return tuple(code for code in experiment.targets if code in corpus.languages("test") or code not in corpus.plain)


def trained_on(corpus: Corpus, tested: Sequence[str], bundles: Mapping[str, Path]) -> list[str]:
    """List the languages whose test rows a bundle that an experiment is made from was trained on, or its ancestors.

    `bundles` are as `techniques.bundles` has them.
    """
    found: list[str] = []
    for place, folder in bundles.items():
        if (known := seen.load(folder)) is not None:
            found += seen.faults(corpus, tested, known, f"{place} names ({folder})")
        else:
            warnings.warn(
                f"{place}: {folder} was made before bundles kept what they were trained on, so test rows among that "
                "are not found; train it again to have them looked for",
                stacklevel=3,
            )
    return found


def _joined_and_tested(setup: Setup) -> list[str]:
    """List the languages in whose test stand rows without labels that join updates; `soundness` looks at others."""
    known, corpus = seen.digests(setup.joining.values()), setup.corpus
    remedy = "set corpus.overlap: drop_train, or remove the rows from either"
    return list(seen.faults(corpus, setup.measured, known, "techniques train without labels", remedy))


def check_resources(experiment: Experiment) -> None:
    """Raise InputError with the arithmetic where Ray will be local and workers ask for more than there is."""
    if on_a_cluster():
        return
    asked, larger = experiment.resources, "or give RAY_ADDRESS of a larger cluster"
    there = [("CPU", asked.cpus_per_worker, os.cpu_count() or 1)]
    if asked.gpus_per_worker:
        there.append(("GPU", asked.gpus_per_worker, torch.cuda.device_count()))
    faults = []
    for kind, each, have in there:
        if asked.fewest * each > have:
            fewer = (
                f"workers={int(have / each)}" if have >= each else f"workers=1 and {kind.lower()}s_per_worker={have}"
            )
            faults.append(
                f"resources: {asked.fewest} workers x {each:g} {kind}s = {asked.fewest * each:g} {kind}s, but this "
                f"machine has {have}; set resources.{fewer} {larger}"
            )
    if faults:
        raise joined(faults)


def on_a_cluster() -> bool:
    """Return whether Ray will be one that is there already, and may have other machines."""
    ray = sys.modules.get("ray")  # not imported to ask whether it is in use
    return bool(os.environ.get("RAY_ADDRESS") or (ray is not None and ray.is_initialized()))


def _dev_needed(experiment: Experiment, corpus: Corpus) -> tuple[str, ...]:
    """Return the languages that must have dev rows, because something is selected by them or fitted to them."""
    training = experiment.training
    if training.method == "probe":
        chosen = len(training.probe_strengths) > 1 or training.refit != "none"
        return experiment.sources if chosen else ()
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


def check(techniques: Sequence[Technique], experiment: Experiment, corpus: Corpus) -> None:
    """Raise InputError where a technique cannot work with an experiment on its corpus."""
    if experiment.training.refit != "none" and (later := [one.name for one in techniques if one.second_stage]):
        raise InputError(
            f"training.refit: {experiment.training.refit} adds dev rows of the sources, but techniques.{later[0]} "
            "as it is set leaves their rows out; set training.refit to none"
        )
    available = Available.of(experiment, corpus)
    for one in techniques:
        one.check(available)


def _encoder(experiment: Experiment, chosen: Sequence[Technique], corpus: Corpus | None) -> list[str]:
    """List why an encoder, with its head and techniques, cannot be used for an experiment; [] where it can.

    Without a corpus, which may have faults of its own, what depends on its labels and texts is not checked. Warns of
    languages that are only measured and whose script the tokenizer does not know.
    """
    found: list[str] = []
    config = experiment.network if corpus else experiment.network.model_copy(update={"head": "fresh"})
    asked = experiment.model_copy(update={"network": config})
    with collecting(found):
        known = known_languages(experiment, corpus) if corpus else ()
        classes = len(corpus.labels) if corpus else 1
        built = techniques.network(chosen, asked, classes, known, weights=False)
        found += _head(asked, corpus.labels) if corpus else []
        if not (experiment.training.labelled or any(one.requires_grad for one in built.network.encoder.parameters())):
            found.append("network.freeze: leaves nothing of the encoder to learn (training.method: adapt); freeze less")
        if corpus:
            found += _unreadable(experiment, corpus, known, built.tokenize.tokenizer)
    return found


def _head(experiment: Experiment, labels: Sequence[str]) -> list[str]:
    """List why the head of a bundle means something else than an experiment asks; it has as many labels."""
    folder = experiment.network.bundle
    if experiment.network.head != "bundle" or folder is None:
        return []
    content = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    task = content["experiment"].get("task", tasks.DEFAULT)
    return other_answers(f"the bundle {folder}", (task, tuple(content["labels"])), (experiment.task, tuple(labels)))


def other_answers(of: str, *heads: tuple[str, tuple[str, ...]]) -> list[str]:
    """List why a head means something else than a run asks; both are a task and its labels."""
    has, asks = (f"task: {task} with the labels {', '.join(labels[:5])}" for task, labels in heads)
    same = "take one of the same, or network.head=fresh"
    return [] if heads[0] == heads[1] else [f"network.head: bundle, but {of} has {has}, and the run {asks}; {same}"]


def _unreadable(experiment: Experiment, corpus: Corpus, codes: Sequence[str], tokenizer: Any) -> list[str]:
    """List sources that are mostly unknown to a tokenizer, and warn of other languages of which much is unknown."""
    tables = {code: table for code in codes if (table := _texts(corpus, code)) is not None}
    shares = {code: unknown_share(tokenizer, table) for code, table in tables.items()}
    lost = [code for code in experiment.sources if shares.get(code, 0.0) > MOSTLY]
    bad = [code for code in codes if code not in lost and shares.get(code, 0.0) > PARTLY]
    init = experiment.network.init
    if bad:
        warnings.warn(
            f"network.init: to the tokenizer of {init!r} much of these languages is unknown: {_shown(bad, shares)}; "
            "expect little of them, or take an encoder that knows their scripts",
            stacklevel=2,
        )
    if not lost:
        return []
    return [
        f"network.init: to the tokenizer of {init!r} most of these sources is unknown: {_shown(lost, shares)}; save "
        "the tokenizer that belongs to the model beside its weights, or take an encoder that knows their scripts"
    ]


def _texts(corpus: Corpus, code: str) -> pa.Table | None:
    there = (corpus.splits.get(split, {}).get(code) for split in ("train", "dev", "test"))
    return next((table for table in there if table is not None and table.num_rows), None)


def _shown(codes: Sequence[str], shares: Mapping[str, float]) -> str:
    worst = sorted(codes, key=lambda code: -shares[code])
    more = f" and {len(worst) - 8} more" if len(worst) > 8 else ""
    return ", ".join(f"{code} ({100 * shares[code]:.0f}% of its characters)" for code in worst[:8]) + more


def unknown_share(tokenizer: Any, table: pa.Table) -> float:
    """Measure the share, 0 to 1, of a sample's characters, spaces aside, that are in no piece the tokenizer knows.

    A tokenizer of bytes knows everything, and BERT's [UNK] stands for all characters of its word.
    """
    rows = np.unique(np.linspace(0, table.num_rows - 1, min(SAMPLE, table.num_rows)).astype(np.int64))
    firsts, seconds = collate.texts_of(take(table, rows))
    texts = [text[:LONGEST] for text in (*firsts, *(seconds or [])) if text]
    cut = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True) if texts else {"input_ids": []}
    characters = unknown = 0
    for number, text in enumerate(texts):
        known = bytearray(len(text))
        for piece, (start, end) in zip(cut["input_ids"][number], cut["offset_mapping"][number], strict=True):
            if piece != tokenizer.unk_token_id:
                known[start:end] = b"\1" * (end - start)
        written = [at for at, character in enumerate(text) if not character.isspace()]
        characters += len(written)
        unknown += sum(not known[at] for at in written)
    return unknown / max(characters, 1)
