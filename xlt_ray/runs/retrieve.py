"""Measure whether an encoder finds the translations of texts: retrieval between all pairs of languages, no training.

Pairs are rows of a split with equal ids, or parallel text beside the corpus, as Tatoeba's files (Artetxe and Schwenk
2019, "Massively multilingual sentence embeddings") are. Features of every text are computed once, on all of Ray, and
kept by content; a pair of languages is compared some rows at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits

from xlt_ray import config
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora import loaders, streams
from xlt_ray.corpora.corpus import SPLITS, Corpus
from xlt_ray.errors import InputError
from xlt_ray.events import OnEvent, OnProgress, counting
from xlt_ray.model import encoders, network
from xlt_ray.reports import plots
from xlt_ray.training import cluster, embedding
from xlt_ray.training.checks import absolute, check_resources
from xlt_ray.translation.retrieval import by_scale, retrieval

PARALLEL = "parallel"  # in place of a split: parallel text beside the corpus
FEWEST = 10  # pairs of two languages below which they are not compared


@dataclass(frozen=True)
class Compared:
    """Two languages: how many pairs of texts, and the shares of them found, see `translation.retrieval`."""

    first: str
    second: str
    pairs: int
    forward: float  # from the first language to the second, by cosine about the mean of each side
    backward: float
    csls_forward: float
    csls_backward: float
    xsim: float

    @property
    def turned(self) -> Compared:
        """The same with the other language first; the margin is looked at from one side, so there is no xsim."""
        ways = (self.backward, self.forward, self.csls_backward, self.csls_forward)
        return Compared(self.second, self.first, self.pairs, *ways, xsim=float("nan"))

    @property
    def mean(self) -> float:
        """The mean of both directions by CSLS."""
        return (self.csls_forward + self.csls_backward) / 2


@dataclass(frozen=True)
class Found:
    """What was compared for an experiment, and the languages its encoder saw in pre-training, None where not known."""

    experiment: Experiment
    compared: tuple[Compared, ...]
    seen: frozenset[str] | None

    def into(self, pivot: str) -> dict[str, Compared]:
        """Return the comparisons with a language, each the other language's first, by that."""
        turned = [one if one.second == pivot else one.turned for one in self.compared]
        return {one.first: one for one in turned if one.second == pivot}

    def groups(self, codes: Iterable[str]) -> dict[str, list[str]]:
        """Tell languages that the encoder saw in pre-training from others, where that is known."""
        if self.seen is None:
            return {"all": [*codes]}
        both = {"seen in pre-training": True, "unseen": False}
        return {name: [code for code in codes if (code in self.seen) is known] for name, known in both.items()}


def of_file(path: str, overrides: Iterable[str], split: str, pivot: str | None, on_event: OnEvent) -> Found:
    """Compare the languages of an experiment's file, sources and targets; starts Ray.

    Texts are those of `split`, or parallel text beside the corpus where it is "parallel". With a `pivot` every language
    is compared with that one alone. Raises InputError where there is nothing to compare.
    """
    if split not in (*SPLITS, PARALLEL):
        raise InputError(f"--split: {split!r}; give one of {', '.join((*SPLITS, PARALLEL))}")
    on_event({"stage": "check"})
    experiment = absolute(config.load(path, list(overrides)))
    check_resources(experiment)
    encoder = network.load_encoder(experiment.network, weights=False)
    tables = texts(experiment, loaders.load(experiment.corpus), split)
    places = pairs(tables, pivot, counting(on_event, "prepare"))
    used = {code: tables[code] for code in sorted({code for both in places for code in both})}
    on_event({"stage": "start"})
    with cluster.plain_errors(), cluster.ray_cluster(experiment):
        features, _ = embedding.features(experiment, used, on_event)
    seen = encoders.seen_languages(encoder.model, encoder.tokenizer)
    return Found(experiment, tuple(compare(features, places, counting(on_event, "compare"))), seen)


def texts(experiment: Experiment, corpus: Corpus, split: str) -> dict[str, pa.Table]:
    """Return the texts of sources and targets that are compared, by language; labels are not among them."""
    there: Mapping[str, pa.Table] = corpus.parallel if split == PARALLEL else corpus.splits.get(split, {})
    named = there if experiment.targets == "all" else {*experiment.sources, *experiment.targets}
    columns = ("id", "text", "text_pair")
    return {
        code: table.select([name for name in columns if name in table.column_names])
        for code, table in sorted(there.items())
        if code in named and table.num_rows
    }


def pairs(
    tables: Mapping[str, pa.Table], pivot: str | None = None, on_progress: OnProgress = lambda done, total: None
) -> dict[tuple[str, str], np.ndarray]:
    """Return the places of translations in the tables of two languages, (pairs, 2), of those that have FEWEST or more.

    With a `pivot` that language is the second of each two. Raises InputError where no two have enough.
    """
    if pivot is not None and pivot not in tables:
        raise InputError(f"--pivot: {pivot}: has no texts there; there are {', '.join(sorted(tables)[:10])}")
    both = [(code, pivot) for code in tables if code != pivot] if pivot else [*itertools.combinations(tables, 2)]
    found = {}
    for number, (first, second) in enumerate(both, start=1):
        places = streams.pairs(tables[first], tables[second])
        if len(places) >= FEWEST:
            found[first, second] = places
        on_progress(number, len(both))
    if not found:
        raise InputError(
            f"no two languages have {FEWEST} texts with the same ids; set corpus.id to a column that translations "
            f"share, or give corpus.parallel and --split {PARALLEL}"
        )
    return found


def compare(
    features: Mapping[str, np.ndarray],
    places: Mapping[tuple[str, str], np.ndarray],
    on_progress: OnProgress = lambda done, total: None,
) -> list[Compared]:
    """Compare languages by features (rows, width) of all texts of each, and the places of their pairs among these."""
    found = []
    # products this small are slower by several threads, thirty times where other work keeps some of them waiting
    with threadpool_limits(1):
        for number, ((first, second), rows) in enumerate(places.items(), start=1):
            sides = features[first][rows[:, 0]], features[second][rows[:, 1]]
            by_cosine, scaled = retrieval(*sides), by_scale(*sides)
            shares = (by_cosine.forward, by_cosine.backward, *scaled, by_cosine.xsim)
            found.append(Compared(first, second, len(rows), *shares))
            on_progress(number, len(places))
    return found


def means(found: Sequence[Compared]) -> dict[str, float]:
    """Return how well each language is found from and among all it was compared with, the best first."""
    codes = {code for one in found for code in (one.first, one.second)}
    mean = {code: float(np.mean([one.mean for one in found if code in (one.first, one.second)])) for code in codes}
    return {code: mean[code] for code in sorted(mean, key=lambda code: (-mean[code], code))}


def write(folder: Path, found: Sequence[Compared]) -> list[Path]:
    """Write retrieval.tsv, two languages a line, and a heat map of all; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(map(asdict, found))
    table.to_csv(folder / "retrieval.tsv", sep="\t", index=False, float_format="%.4f", lineterminator="\n")
    codes = list(means(found))
    values = np.full((len(codes), len(codes)), np.nan)
    for one in found:
        row, column = codes.index(one.first), codes.index(one.second)
        values[row, column], values[column, row] = one.csls_forward, one.csls_backward
    figure = plots.heat_map(codes, values, "found by CSLS, %: of rows in columns")
    figure.savefig(folder / "retrieval.png", dpi=150)
    return [folder / "retrieval.tsv", folder / "retrieval.png"]
