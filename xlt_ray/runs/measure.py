"""Measure a finished bundle on a corpus, and write a finished run's report again."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from xlt_ray import config, techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora import soundness
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.loaders import load_corpus
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate as evaluation
from xlt_ray.evaluation import groups, metrics
from xlt_ray.evaluation.comparison import Comparison, compare
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.metrics import Scores
from xlt_ray.evaluation.predictions import Predictions, load_predictions
from xlt_ray.events import OnEvent
from xlt_ray.inference import bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model import encoders
from xlt_ray.model.precision import choose_precision
from xlt_ray.reports import report
from xlt_ray.training.setup import absolute


def kept(folder: Path, wanted: Sequence[str]) -> Scores | None:
    """Give what a bundle's run measured on its own corpus, None where that is not known to be what it answers now.

    That is a bundle saved without scores, or one whose techniques know languages: `xlt adapt` may have changed those
    since. Raises InputError where the bundle is damaged or a `wanted` language was not measured.
    """
    content = bundle.verify(folder)
    if content.get("steps") or "scores.json" not in content["sha256"]:
        return None
    scores = _scores(folder)
    _refuse_unmeasured(wanted, scores.languages)
    return scores


def measure(
    model: Bundle,
    experiment: Experiment,
    on_event: OnEvent,
    wanted: Sequence[str] = (),
    alone: bool = False,
) -> Scores:
    """Predict and score every measured language of an experiment's corpus, as a model's sources and targets are.

    With `alone` only the `wanted` languages are measured. The corpus must have the model's labels; InputError names
    those it lacks or adds, and wanted languages that would not be measured.
    """
    on_event({"stage": "check"})
    experiment, tables = rows(model, experiment, wanted)
    tables = {code: table for code, table in tables.items() if not alone or code in wanted}
    predictions = predict(model, experiment, tables, on_event)
    seen = encoders.seen_languages(model.network.encoder, model.tokenize.tokenizer)
    roles = Roles(model.experiment.sources, _few_shot(model, tables), seen)
    scores = metrics.score(predictions, model.labels, roles, experiment.evaluation.resamples, experiment.seed)
    return replace(scores, temperature=model.network.temperature)


def _few_shot(model: Bundle, codes: Collection[str]) -> tuple[str, ...]:
    """Return the languages whose shots a bundle was trained on.

    Its run measured all its targets, so its scores know them; a language that was added since had no label. Of a bundle
    saved without scores the techniques of its experiment decide, which may name a target that had no row to take.
    """
    if model.scores:
        return tuple(code for code, one in model.scores.languages.items() if one.role == groups.FEW_SHOT)
    named = model.experiment.targets
    targets = (model.network.languages or tuple(codes)) if isinstance(named, str) else named
    asked = {code for one in techniques.build(model.experiment) for code in one.trained_on(targets)}
    return tuple(code for code in codes if code in asked)


def rows(
    model: Bundle, experiment: Experiment, wanted: Sequence[str] = (), sources: Sequence[str] | None = None
) -> tuple[Experiment, dict[str, pa.Table]]:
    """Load the test rows of an experiment's corpus, language -> table, as a bundle is measured on them.

    Measured are the experiment's targets and the `sources`, by default the bundle's. Errors as for `measure`.
    """
    experiment, corpus = corpus_for(model, experiment)
    measured = corpus.measured(model.experiment.sources if sources is None else sources, experiment.targets)
    _refuse_unmeasured(wanted, measured)
    test = corpus.for_testing()
    soundness.check(test, (), experiment.targets)
    return experiment, {code: test.table("test", code) for code in measured}


def _refuse_unmeasured(wanted: Sequence[str], measured: Collection[str]) -> None:
    if missing := [code for code in wanted if code not in measured]:
        raise InputError(f"--report {missing[0]}: not measured; measured are {', '.join(sorted(measured))}")


def corpus_for(model: Bundle, experiment: Experiment) -> tuple[Experiment, Corpus]:
    """Load the corpus of an experiment with a bundle's labels; InputError names those it lacks or adds."""
    data = experiment.model_dump(mode="json")
    data["corpus"]["labels"] = list(model.labels)  # indices must mean what they meant in training
    experiment = absolute(config.build(data))
    corpus, _ = load_corpus(experiment)
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

    def tell(done: int, total: int) -> None:
        on_event({"stage": "evaluate", "done": done, "total": total})

    precision = choose_precision(experiment.training.precision, model.network, experiment.network.max_length)
    budget = experiment.evaluation.tokens_per_step
    return evaluation.predict(model.network, tables, evaluation.Inputs(model.tokenize, precision, budget), tell)


def compare_runs(first: Path, second: Path) -> dict[str, Comparison]:
    """Compare two finished runs, first less second, in each group of languages; a role counts where both have it."""
    scores, others = _scores(first), _scores(second)
    a, b = (load_predictions(folder / "predictions.npz") for folder in (first, second))
    common: dict[str, list[str]] = {groups.ALL: []} | groups.of(groups.in_both(scores.languages, others.languages))
    return {name: compare({code: a[code] for code in codes}, b) for name, codes in common.items()}


def _scores(folder: Path) -> Scores:
    file = folder / "scores.json"
    if not file.is_file():
        raise InputError(f"{folder}: no scores.json; give the folder of a finished run, such as runs/quickstart-...")
    return Scores.from_json(file.read_text(encoding="utf-8"))


def report_again(folder: Path) -> tuple[Scores, Experiment, dict[str, Path]]:
    """Render tables, plots and page from what a finished run kept; raise InputError where it is not finished."""
    kept: dict[str, Any] = {}
    for name in ("scores.json", "history.json", "corpus.json", "environment.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; give the folder of a finished run, such as runs/quickstart-...")
        kept[name] = json.loads((folder / name).read_text(encoding="utf-8"))
    scores = _scores(folder)
    experiment = config.load(folder / "experiment.yaml")
    files = report.write(
        folder, scores, experiment, kept["corpus.json"], kept["history.json"], kept["environment.json"]
    )
    return scores, experiment, files
