"""Rank candidate source languages for targets by what is known without labels: text, family, script and place.

The measures are those that LangRank (Lin et al. 2019, "Choosing Transfer Languages for Cross-Lingual Learning",
arXiv 1905.12688) found to predict transfer, but they are averaged as ranks: nothing is learned, so nothing has to be
known of other tasks. A pair of languages that a measure has no value for is left out of it, never counted as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Group
from rich.table import Table
from rich.text import Text
from scipy.stats import rankdata

from xlt_ray import config
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora import loaders
from xlt_ray.corpora.arrow import take
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.events import OnEvent
from xlt_ray.languages import codes as language_codes
from xlt_ray.languages import typology
from xlt_ray.model import encoders, network
from xlt_ray.model.collate import Tokenize
from xlt_ray.reports.page import terminal_table
from xlt_ray.training import cluster, embedding
from xlt_ray.training.checks import absolute, check_resources

Values = dict[str, np.ndarray]  # measure -> (sources, targets) float64, nan where unknown

MEASURES = ("text", "tokens", "family", "script", "geography")
SAMPLE = 100  # rows a language: a mean over more hardly moves


@dataclass(frozen=True)
class Ranked:
    """One candidate: its score, 1 where every measure puts it first for every target and 0 where last.

    `measures` are means over the targets for which a measure is known (None: for none): text a cosine, tokens and
    family shares of the target's tokens and line of descent, script a share of targets, geography in km. `best_for` are
    the targets that no other candidate is nearer to; candidates that tie share a target.
    """

    code: str
    score: float
    measures: Mapping[str, float | None]
    best_for: tuple[str, ...]
    reasons: str

    @property
    def nearest(self) -> int:
        """For how many targets it ranks first."""
        return len(self.best_for)


@dataclass(frozen=True)
class Ranking:
    """Candidates, the best first, and source -> target -> score in the same order; an unknown score is absent."""

    rows: tuple[Ranked, ...]
    scores: Mapping[str, Mapping[str, float]]
    targets: tuple[str, ...]


def rank_file(path: str, overrides: Iterable[str], on_event: OnEvent) -> Ranking:
    """Rank the sources of an experiment's file, or of a search's file, for its targets; starts Ray."""
    data = config.read(path, overrides)
    data.pop("search", None)
    experiment = absolute(config.build(data, place=path))
    check_resources(experiment)
    on_event({"stage": "check"})
    network.load_encoder(experiment.network, weights=False)
    corpus = loaders.load(experiment.corpus)  # whole: to drop the rows also in test would let test decide
    on_event({"stage": "start"})
    with cluster.plain_errors(), cluster.ray_cluster(experiment):
        return rank(experiment, corpus, on_event)


def rank(experiment: Experiment, corpus: Corpus, on_event: OnEvent) -> Ranking:
    """Rank `experiment.sources` for the languages to measure that are not among them, on a connected Ray cluster.

    Of the corpus only texts of train and dev are read: no label, no row of test. A language without such texts is
    judged by typology alone. Raises InputError where there are no targets or nothing at all is known of a language.
    """
    sources = experiment.sources
    targets = tuple(code for code in corpus.measured((), experiment.targets) if code not in sources)
    if not targets:
        raise InputError("targets: every one of them is among sources, the candidates; name another language")
    texts = samples(corpus, (*sources, *targets))
    values = {
        "family": _pairs(sources, targets, typology.kinship),
        "script": _pairs(sources, targets, typology.same_script),
        "geography": _pairs(sources, targets, typology.distance_km),
    }
    if any(code in texts for code in sources) and any(code in texts for code in targets):
        features, _ = embedding.features(experiment, texts, on_event)
        values["text"] = _pairs(sources, targets, cosines(features))
        values["tokens"] = _pairs(sources, targets, overlap(_tokens(experiment, texts)))
    return ranked(sources, targets, values)


def samples(corpus: Corpus, codes: Iterable[str]) -> dict[str, pa.Table]:
    """Draw the unlabelled texts of train and dev that `rank` compares, at most `SAMPLE` rows of a language."""
    drawn = {code: _sample(table) for code, table in corpus.unlabelled(codes).items()}
    return {code: table for code, table in drawn.items() if table.num_rows}


def _sample(table: pa.Table) -> pa.Table:
    whole = table.drop_null()
    rows = np.unique(np.linspace(0, whole.num_rows - 1, min(SAMPLE, whole.num_rows)).astype(np.int64))
    return take(whole, rows)


def _pairs(sources: Sequence[str], targets: Sequence[str], value: Callable[[str, str], float]) -> np.ndarray:
    return np.array([[value(source, target) for target in targets] for source in sources], dtype=np.float64)


# the measures: each returns a function of (source, target), nan where unknown


def cosines(features: Mapping[str, np.ndarray]) -> Callable[[str, str], float]:
    """Compare the mean features of languages, (rows, width) each, by cosine after centring.

    Without centring, on the mean of all languages alike, an encoder's means are nearly parallel and all cosines near 1.
    """
    means = {code: rows.mean(axis=0, dtype=np.float64) for code, rows in features.items()}
    centre = np.mean(list(means.values()), axis=0)
    lengths = {code: float(np.linalg.norm(mean - centre)) for code, mean in means.items()}

    def cosine(source: str, target: str) -> float:
        product = lengths.get(source, 0.0) * lengths.get(target, 0.0)
        return float((means[source] - centre) @ (means[target] - centre)) / product if product else np.nan

    return cosine


def overlap(tokens: Mapping[str, np.ndarray]) -> Callable[[str, str], float]:
    """Return the share of the target's tokens, counted as often as they occur, that the source has as well."""
    counts = {code: np.unique(ids, return_counts=True) for code, ids in tokens.items() if len(ids)}

    def share(source: str, target: str) -> float:
        if source not in counts or target not in counts:
            return np.nan
        kinds, times = counts[target]
        return float(times[np.isin(kinds, counts[source][0], assume_unique=True)].sum() / times.sum())

    return share


def _tokens(experiment: Experiment, texts: Mapping[str, pa.Table]) -> dict[str, np.ndarray]:
    settings = experiment.network
    tokenizer = encoders.load(network.encoder_source(settings), settings.revision).tokenizer
    tokenize, special = Tokenize(tokenizer, "", settings.max_length), np.array(tokenizer.all_special_ids)
    found = {}
    for code, table in texts.items():
        rows = tokenize.rows(table)
        ids = np.concatenate([np.array(row["input_ids"], dtype=np.int64) for row in rows])
        found[code] = ids[~np.isin(ids, special)]  # every language has those
    return found


# from measures to a ranking


def ranked(sources: Sequence[str], targets: Sequence[str], values: Values) -> Ranking:
    """Rank sources by the mean over targets of their mean normalised rank over measures.

    `values` holds (sources, targets) a measure, nan where unknown; geography in km, of everything else more is closer.
    Raises InputError naming the languages of which no measure knows anything.
    """
    per_pair = mean_known([normalised_ranks(-v if name == "geography" else v) for name, v in values.items()], axis=0)
    _refuse_unknown("sources", sources, np.isnan(per_pair).all(axis=1))
    _refuse_unknown("targets", targets, np.isnan(per_pair).all(axis=0))
    scores, best = mean_known(per_pair, axis=1), np.nanmax(per_pair, axis=0)
    order = sorted(range(len(sources)), key=lambda i: (-scores[i], sources[i]))
    means = {name: mean_known(of, axis=1).tolist() for name, of in values.items()}
    rows = [
        Ranked(
            sources[i],
            float(scores[i]),
            {name: None if name not in means or np.isnan(means[name][i]) else means[name][i] for name in MEASURES},
            tuple(target for target, near in zip(targets, per_pair[i] >= best - 1e-9, strict=True) if near),
            _reasons(i, sources, targets, values),
        )
        for i in order
    ]
    table = {
        sources[i]: {t: float(per_pair[i, j]) for j, t in enumerate(targets) if not np.isnan(per_pair[i, j])}
        for i in order
    }
    return Ranking(tuple(rows), table, tuple(targets))


def normalised_ranks(values: np.ndarray) -> np.ndarray:
    """Rank every column among its known values: 1 for the largest, 0 for the smallest, the mean place for equals.

    >>> normalised_ranks(np.array([[3.0], [1.0], [np.nan], [1.0], [9.0]])).ravel()
    array([0.66666667, 0.16666667,        nan, 0.16666667, 1.        ])
    """
    known = np.count_nonzero(~np.isnan(values), axis=0)
    places = rankdata(values, method="average", axis=0, nan_policy="omit") - 1
    return np.where(known > 1, places / np.maximum(known - 1, 1), places + 0.5)  # a rank of one value is no measure


def mean_known(values: Any, axis: int) -> np.ndarray:
    """Average along an axis what is not nan; nan where nothing is left."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    return np.where(count > 0, np.where(there, values, 0.0).sum(axis=axis) / np.maximum(count, 1), np.nan)


def _refuse_unknown(key: str, codes: Sequence[str], unknown: np.ndarray) -> None:
    if unknown.any():
        named = ", ".join(code for code, one in zip(codes, unknown, strict=True) if one)
        raise InputError(
            f"{key}: {named}: neither text nor family, script or place is known, so nothing can be compared; give it "
            f"rows of train or dev (their labels are not read), write its FLORES code, or leave it out of {key}"
        )


def _reasons(at: int, sources: Sequence[str], targets: Sequence[str], values: Values) -> str:
    """Explain in a line why the source at an index ranks where it does."""
    parts, row = [], {name: of[at] for name, of in values.items()}
    known = {name: int(np.count_nonzero(~np.isnan(of))) for name, of in row.items()}
    if known.get("script"):
        parts.append(f"same script as {int(np.nansum(row['script'])) or 'none'} of {known['script']} targets")
    if known.get("family"):
        parts.append(_kin(sources[at], [t for t, share in zip(targets, row["family"], strict=True) if share > 0]))
    for name, what in {"text": "closest text", "tokens": "most tokens shared"}.items():
        if known.get(name):
            first = np.count_nonzero(row[name] >= np.fmax.reduce(values[name], axis=0))
            parts += [f"{what} for {first}"] if first else []
    away = f"{np.nanmean(row['geography']):,.0f} km away on average" if known.get("geography") else ""
    return "; ".join(filter(None, [", ".join(parts), away]))


def _kin(source: str, related: Sequence[str]) -> str:
    if not related:
        return "same family as none"
    line = typology.lineage(source)
    depth = {target: typology.shared(line, typology.lineage(target)) for target in related}
    near = typology.branch(line[: max(depth.values())])
    # as near as the branch says, the nearest first; sorting keeps the order of equals
    there = [code for code in sorted(related, key=lambda t: -depth[t]) if typology.branch(line[: depth[code]]) == near]
    names = [language_codes.name(code) for code in there]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    family = f"{line[0]}; " if near != line[0] and len(there) < len(related) else ""
    return f"same family as {len(related)} ({family}{near}: {', '.join(names[:3])}{more})"


# mixes


def greedy(scores: Mapping[str, Mapping[str, float]], k: int) -> tuple[str, ...]:
    """Choose k sources one by one, each time the one that raises the coverage most; of equals the first in `scores`.

    Coverage is a facility-location function, so the choice reaches at least 1 - 1/e of the best possible (Nemhauser,
    Wolsey and Fisher 1978). Raises InputError where there are fewer sources than k.

    >>> greedy({"a": {"x": 0.8, "y": 0.8}, "b": {"x": 0.7, "y": 0.8}, "c": {"x": 1.0}}, 2)
    ('a', 'c')
    """
    if not 1 <= k <= len(scores):
        raise InputError(f"mix: {k} sources asked for, but there are {len(scores)} candidates; give 1 to {len(scores)}")
    chosen: tuple[str, ...] = ()
    for _ in range(k):
        left = [code for code in scores if code not in chosen]
        gains = [coverage(scores, (*chosen, code)) for code in left]
        chosen = (*chosen, left[int(np.argmax(gains))])
    return chosen


def coverage(scores: Mapping[str, Mapping[str, float]], codes: Iterable[str]) -> float:
    """Average over all targets the best score that one of the sources `codes` has; 0 where none has any."""
    targets = {target: 0.0 for of in scores.values() for target in of}
    for code in codes:
        targets |= {target: max(targets[target], score) for target, score in scores[code].items()}
    return float(np.mean(list(targets.values())))


def table(ranking: Ranking) -> Group:
    """Return a ranking as a table for a terminal at least 80 columns wide, with the reasons below."""
    title = f"candidate sources: {len(ranking.rows)}, targets: {len(ranking.targets)}; no label was used"
    heads = ("score", "nearest", "text", "tokens", "family", "script", "km")
    grid = terminal_table(title, ("", "language", "code"), heads)
    why = Table.grid(padding=(0, 1))
    for place, row in enumerate(ranking.rows, 1):
        numbers = [f"{row.score:.3f}", str(row.nearest), *(_cell(name, row.measures[name]) for name in MEASURES)]
        name = Text(language_codes.name(row.code), no_wrap=True, overflow="ellipsis")
        grid.add_row(f"{place:>2}", name, row.code, *numbers)
        why.add_row(f"{place:>2}", Text(language_codes.name(row.code)), Text(row.reasons))
    return Group(grid, Text(), why)


def _cell(name: str, value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if name == "geography" else f"{value:.2f}"


def mix_lines(ranking: Ranking, k: int) -> str:
    """Return k sources that suit the targets together, as an override, and compare them with the k ranked highest."""
    chosen, top = greedy(ranking.scores, k), [row.code for row in ranking.rows[:k]]
    return (
        f"mix of {k} that covers the targets best, chosen greedily:\n  'sources=[{','.join(chosen)}]'\n"
        f"best score among them, mean over targets: {coverage(ranking.scores, chosen):.3f}; "
        f"among the {k} ranked highest: {coverage(ranking.scores, top):.3f}"
    )
