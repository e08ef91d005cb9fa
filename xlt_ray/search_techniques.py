"""Techniques in a search: refused before Ray starts where they cannot be, and what texts they may look at."""

from __future__ import annotations

import pyarrow as pa

from xlt_ray import techniques
from xlt_ray.config import InputError
from xlt_ray.corpus import Corpus
from xlt_ray.space import Search


def check(search: Search, corpus: Corpus) -> None:
    """Raise InputError where a technique, or what the space makes of it, cannot be in a mix of the pool."""
    alone = any(one.kind == "subset" and one.low == 1 for one in search.dimensions)
    alone |= bool(search.settings.retraining.seeds) and "best_single" in search.settings.retraining.baselines
    mixes = [search.pool, *([(code,) for code in search.pool] if alone and len(search.pool) > 1 else [])]
    varied = [(f"search.space.{key}: ", point) for key, point in search.extremes() if key.startswith("techniques.")]
    for place, point in [("", {}), *varied]:
        for sources in mixes:
            experiment = search.experiment({**point, "sources": list(sources)})
            try:
                chosen = techniques.build(experiment)
                if reading := [one.name for one in chosen if one.reads_labels]:
                    raise InputError(
                        f"techniques.{reading[0]}: reads labels of targets, and a search ranks mixes by transfer "
                        "without any; take it out, and go on from the chosen mix with `xlt few-shot`"
                    )
                techniques.check(chosen, experiment, corpus)
            except InputError as error:
                if sources == search.pool:
                    raise InputError(f"{place}{error}") from None
                raise InputError(
                    f"{place}{error}\n(in the mix of {sources[0]} alone; take it out of `sources`, or set "
                    "search.space.sources.at_least to 2 and leave best_single out of search.retraining.baselines)"
                ) from None


def texts(search: Search, corpus: Corpus) -> dict[str, pa.Table]:
    """Give the texts of pool and targets without labels, where something may look at them."""
    training = search.base.training
    varied = any(one.key.startswith("techniques.") for one in search.dimensions)
    wanted = varied or search.base.techniques or training.language_id or training.unlabelled_rows
    return corpus.unlabelled((*search.pool, *search.base.targets), ids=True) if wanted else {}
