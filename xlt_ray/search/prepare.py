"""Check a search against its corpus before Ray starts, and complete it with paths, targets and draws."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pyarrow as pa

from xlt_ray import tasks, techniques
from xlt_ray.config import plain_yaml
from xlt_ray.config.masking import public
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError, joined
from xlt_ray.events import OnProgress
from xlt_ray.search.space import Search
from xlt_ray.training import checks
from xlt_ray.training.checks import prepare


def check(search: Search, corpus: Corpus) -> None:
    """Raise InputError where a technique, or what the space makes of it, cannot be used in a mix of the pool.

    The whole pool is tried, each language alone, and each as the first of a smallest mix with those after it.
    """
    _check_probes(search)
    alone = 1 in search.sizes
    alone |= bool(search.settings.retraining.seeds) and "best_single" in search.settings.retraining.baselines
    mixes = [search.pool, *([(code,) for code in search.pool] if alone and len(search.pool) > 1 else [])]
    if some := [size for size in search.sizes if 1 < size < len(search.pool)]:  # techniques may need the first of a mix
        ordered = tuple(sorted(search.pool))
        mixes += [ordered[start : start + some[0]] for start in range(len(ordered) - some[0] + 1)]
    varied = [(f"search.space.{key}: ", point) for key, point in search.extremes() if key.startswith("techniques.")]
    for place, point in [("", {}), *varied]:
        for sources in mixes:
            experiment = search.experiment({**point, "sources": list(sources)})
            try:
                chosen = techniques.build(experiment)
                if reading := [one.name for one in chosen if one.reads == "labels"]:
                    raise InputError(
                        f"techniques.{reading[0]}: reads labels of targets, and a search ranks mixes by transfer "
                        "without any; take it out, and go on from the chosen mix with `xlt few-shot`"
                    )
                if reading := [one.name for one in chosen if one.changes_readings]:
                    raise InputError(
                        f"techniques.{reading[0]}: a search compares mixes on texts as they stand; take it out, and "
                        "add it to the chosen mix for `xlt train`"
                    )
                with warnings.catch_warnings():
                    if sources != search.pool:  # they would say of every mix what they say of the pool
                        warnings.simplefilter("ignore")
                    checks.check(chosen, experiment, corpus)
            except InputError as error:
                if sources == search.pool:
                    raise InputError(f"{place}{error}") from None
                what = " + ".join(sources) if len(sources) > 1 else f"{sources[0]} alone"
                more = ", or set search.space.sources.at_least to 2 and leave best_single out of "
                more = "" if len(sources) > 1 else f"{more}search.retraining.baselines"
                raise InputError(
                    f"{place}{error}\n(in the mix of {what}; take {sources[0]} out of `sources`{more})"
                ) from None


def _check_probes(search: Search) -> None:
    """Refuse what asks for probes of a task that they do not learn, all of it at once."""
    settings, task = search.settings, search.base.task
    if "probe" in tasks.load(task).methods:
        return
    faults = []
    if settings.screening.trials:
        faults.append("search.screening.trials: mixes are screened by probes; set it to 0")
    if settings.selection.languages == "held_out_sources":
        faults.append(
            "search.selection.languages: held_out_sources compares languages by how hard they are for probes; "
            "rank by sources"
        )
    if settings.selection.compare_oracle:
        faults.append("search.selection.compare_oracle: compares probes; set it to false")
    if faults:
        raise joined([f"{fault} (task: {task} is learned by fine-tuning alone)" for fault in faults])


def texts(search: Search, corpus: Corpus) -> dict[str, pa.Table]:
    """Return the texts of pool and targets without labels, by language; empty where nothing reads them."""
    training = search.base.training
    varied = any(one.key.startswith("techniques.") for one in search.dimensions)
    wanted = varied or search.base.techniques or training.unlabelled_rows
    return corpus.unlabelled((*search.pool, *search.base.targets), ids=True) if wanted else {}


def prepared(search: Search, on_progress: OnProgress = lambda done, total: None) -> tuple[Search, Corpus]:
    """Return a checked search with paths, targets and draws made explicit, and its corpus without test rows."""
    found = prepare(search.base, on_progress=on_progress)
    base, corpus = found.experiment, found.corpus
    targets = tuple(code for code in corpus.measured((), base.targets) if code not in base.sources)
    if not targets:
        raise InputError("targets: every one is in `sources`, the pool, so there is nothing to transfer to; add others")
    rule = search.settings.selection.languages
    missing = [c for c in (targets if rule == "targets" else base.sources) if c not in corpus.languages("dev")]
    if missing:
        raise InputError(
            f"search.selection.languages: {rule} ranks mixes on dev rows, and {', '.join(missing[:8])} have none; add "
            "dev rows or leave these languages out"
        )
    # equal for all mixes, so that none wins by training longer
    most = max(corpus.table("train", code).num_rows for code in base.sources)
    mixture = base.mixture.model_copy(update={"draws_per_epoch": base.mixture.draws_per_epoch or most})
    base = base.model_copy(update={"targets": targets, "mixture": mixture})
    metric = tasks.build(base.task, corpus.labels).metrics[0]
    search = replace(search, base=base, fingerprint=corpus.fingerprint, metric=metric)
    check(search, corpus)
    return search, replace(corpus, splits={**corpus.splits, "test": {}})  # so that nothing can read a row of it


def to_yaml(search: Search) -> str:
    """Return a search as the YAML file that `xlt tune` reads, without secrets."""
    data = public(search.base.model_dump(mode="json")) | {"search": search.settings.model_dump(mode="json")}
    return plain_yaml.dumps(data)
