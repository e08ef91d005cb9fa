"""Measure a bundle on the test rows of a corpus."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch

from xlt_ray import config, techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora import seen, soundness
from xlt_ray.corpora.corpus import Corpus, refuse
from xlt_ray.corpora.loaders import load_corpus
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate as evaluation
from xlt_ray.evaluation import groups, metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.evaluation.scores import Scores, load_scores
from xlt_ray.events import OnEvent
from xlt_ray.inference import artefact, bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model import encoders
from xlt_ray.model.precision import choose_precision
from xlt_ray.training.checks import absolute
from xlt_ray.translation.readings import is_first


def kept(folder: Path, wanted: Sequence[str]) -> Scores | None:
    """Return what a bundle's run measured on its own corpus, None where that may not hold for the bundle as it is now.

    That is where it was saved without scores, or where its techniques keep languages: `xlt adapt` may have changed
    those since. Raises InputError where the bundle is damaged or a `wanted` language was not measured.
    """
    content = artefact.verify_bundle(folder)
    if content.get("steps") or "scores.json" not in content["sha256"]:
        return None
    scores = load_scores(folder)
    _refuse_unmeasured(wanted, scores.languages)
    return scores


def of_texts(place: Path, overrides: Sequence[str]) -> tuple[Bundle, Experiment, Corpus]:
    """Load a bundle whose task asks of whole texts, and the corpus of its experiment with `overrides` of that.

    Raises InputError for another task.
    """
    model = bundle.load(place)
    if model.task.tagged:
        raise InputError(f"{place}: task: {model.task.name}: it answers for words, and this is of whole texts")
    return model, *corpus_for(model, changed(model.experiment, overrides, str(place)))


def changed(own: Experiment, overrides: Sequence[str], place: str) -> Experiment:
    """Return a finished model's experiment with overrides; raise InputError for one that would make another model."""
    made = config.build(own.model_dump(mode="json"), list(overrides), place=place)
    if fixed := [name for name in ("task", "network", "techniques") if getattr(made, name) != getattr(own, name)]:
        raise InputError(
            f"{', '.join(overrides)}: {place} is measured as it was trained, and {fixed[0]} is part of that; take the "
            "change out, or train with it"
        )
    return made


def measure(
    model: Bundle,
    experiment: Experiment,
    on_event: OnEvent,
    wanted: Sequence[str] = (),
    alone: bool = False,
) -> Scores:
    """Predict and score every measured language of an experiment's corpus, as a model's sources and targets are.

    With `alone` none but the `wanted` languages are measured. The corpus must have the bundle's labels; raises
    InputError naming those it lacks or adds, and wanted languages that would not be measured.
    """
    on_event({"stage": "check"})
    experiment, tables = rows(model, experiment, wanted)
    tables = {code: table for code, table in tables.items() if not alone or code in wanted}
    if faults := trained_on(model, tables):
        refuse(f"corpus {experiment.corpus.path or experiment.corpus.loader}", faults)
    predictions = predict(model, experiment, tables, on_event)
    seen = encoders.seen_languages(model.network.encoder, model.tokenize.tokenizer)
    roles = Roles(model.experiment.sources, _few_shot(model, tables), seen, model.supervision)
    config, task = experiment.evaluation, model.experiment.task
    scores = metrics.score(predictions, model.labels, roles, config.resamples, experiment.seed, task)
    return replace(scores, temperature=model.network.temperature)


def _few_shot(model: Bundle, codes: Collection[str]) -> tuple[str, ...]:
    """Return the languages of which a bundle was trained on shots.

    The scores of its run have them, because a run measures all its targets; a language added since had no label. For a
    bundle saved without scores its techniques decide, which may name a target that had no row to take.
    """
    if model.scores:
        return tuple(code for code, one in model.scores.languages.items() if one.role == groups.FEW_SHOT)
    named = model.experiment.targets
    known = tuple(filter(is_first, model.network.languages))
    targets = (known or tuple(codes)) if isinstance(named, str) else named
    reading = (one for one in techniques.build(model.experiment) if one.reads == "labels")
    asked = {code for one in reading for code in one.reads_of(targets, targets)}
    return tuple(code for code in codes if code in asked)


def rows(
    model: Bundle, experiment: Experiment, wanted: Sequence[str] = (), sources: Sequence[str] | None = None
) -> tuple[Experiment, dict[str, pa.Table]]:
    """Load the test rows of an experiment's corpus on which a bundle is measured: language -> table.

    These are rows of the experiment's targets and the `sources`, by default the bundle's. Errors as for `measure`.
    """
    experiment, corpus = corpus_for(model, experiment)
    measured = corpus.measured(model.experiment.sources if sources is None else sources, experiment.targets)
    _refuse_unmeasured(wanted, measured)
    test = corpus.for_testing()
    soundness.check(test, (), experiment.targets)
    return experiment, {code: test.table("test", code) for code in measured}


def trained_on(model: Bundle, tables: Mapping[str, pa.Table]) -> list[str]:
    """List the languages among whose rows a bundle was trained on some."""
    test = Corpus("test", model.labels, {"test": dict(tables)})
    return [] if model.seen is None else list(seen.faults(test, tables, model.seen, "is to be measured"))


def _refuse_unmeasured(wanted: Sequence[str], measured: Collection[str]) -> None:
    if missing := [code for code in wanted if code not in measured]:
        raise InputError(f"--report {missing[0]}: not measured; measured are {', '.join(sorted(measured))}")


def corpus_for(model: Bundle, experiment: Experiment) -> tuple[Experiment, Corpus]:
    """Load the corpus of an experiment with a bundle's labels; InputError names those it lacks or adds."""
    data = experiment.model_dump(mode="json")
    data["corpus"]["labels"] = list(model.labels)  # indices must mean what they meant in training
    experiment = absolute(config.build(data))
    corpus, _ = load_corpus(experiment)
    if corpus.tagged is not model.task.tagged:
        raise InputError(
            f"corpus {corpus.name}: the model's task: {model.task.name} wants {model.task.data}; take another corpus"
        )
    if corpus.labels != model.labels:
        strange = sorted({*corpus.labels} ^ {*model.labels})
        raise InputError(
            f"corpus {corpus.name}: labels {', '.join(strange[:5])} differ from the bundle's; map them first"
        )
    return experiment, corpus


def predict(
    model: Bundle, experiment: Experiment, tables: Mapping[str, pa.Table], on_event: OnEvent
) -> dict[str, Predictions]:
    """Predict all rows of all languages, on a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.network.to(device)

    def report(done: int, total: int) -> None:
        on_event({"stage": "evaluate", "done": done, "total": total})

    precision = choose_precision(experiment.training.precision, model.network, experiment.network.max_length)
    budget = experiment.evaluation.tokens_per_step
    inputs = evaluation.Inputs(model.tokenize, precision, budget)
    return evaluation.predict(model.network, model.task, tables, inputs, report, model.readings)
