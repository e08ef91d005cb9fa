"""Measure how a finished run's encoder lays out translations, and hold what its head makes of them against its scores.

Texts are parallel rows, read without labels: the same ids in all languages where these have them. What is measured of
them, layer by layer, asks for no label of a target, and disagreement does not either: how often the run answers a text
and its translation differently. On the same rows, |accuracy of one - accuracy of the other| cannot exceed it, because
where both answers are the same both are right or both wrong. From these rows to the test rows that the run was scored
on it is no theorem, and is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.arrow import take
from xlt_ray.corpora.corpus import SPLITS, Corpus
from xlt_ray.errors import InputError
from xlt_ray.evaluation import bootstrap, evaluate, geometry, groups
from xlt_ray.evaluation.predictions import load_predictions
from xlt_ray.events import OnEvent, OnProgress, counting
from xlt_ray.inference.bundle import Bundle
from xlt_ray.inference.layers import Reader
from xlt_ray.model import encoders
from xlt_ray.model.network import Network
from xlt_ray.reports import geometry as plots
from xlt_ray.reports.page import percent
from xlt_ray.runs import measure, retrieve
from xlt_ray.supervision import ZERO_SHOT
from xlt_ray.translation.retrieval import retrieval

FEWEST = 20  # pairs with the pivot: with fewer a language is left out, since half of them are held out
DRAWN = 8  # languages on the map
UNLABELLED = "unlabelled"  # in place of a split: train, else dev
LAYERS = "language layer rows cka forward backward information information_most language_probe cosine dimensions"
LANGUAGES = (
    "language role seen rows disagreement disagreement_low disagreement_high gap gap_low gap_high excess excess_low "
    "excess_high test_rows test_disagreement estimated estimated_low estimated_high"
)


@dataclass(frozen=True)
class Asked:
    """Which texts are looked at: of which split, the most rows a language, translations of which, in which layers."""

    split: str = UNLABELLED
    rows: int = 300
    pivot: str | None = None  # the first source
    layers: tuple[int, ...] = ()  # the embeddings, the last block and two between, evenly; the last always is one


class Transfer(NamedTuple):
    """Whether gap <= disagreement in the zero-shot languages, and which figures rank these as their gaps do."""

    languages: int
    held: int
    surely: int  # where the interval of the excess is below 0
    broken: int  # where it is above 0
    means: Mapping[Any, float]  # of the columns of `Geometry.languages`
    ranks: Mapping[str, geometry.Ranked]  # Spearman's with the gap, by figure; of layers, the last


@dataclass(frozen=True, eq=False)
class Geometry:
    """What was measured of a run.

    `layers` has a line a layer and language: `rows`; beside the translations in the pivot, and so nan of the pivot
    itself, `cka`, `forward` and `backward` (`retrieval`, from the language and from the pivot), `information` and
    `information_most`; `language_probe`, `cosine` and `dimensions`, see `evaluation.geometry`.

    `languages` has a line for all but the pivot: `role`, `seen`, `rows`, and `disagreement`, the share of these
    that are answered otherwise than their translations. `gap` is the accuracy of the pivot less that of the language
    on the `test_rows` that both have, `test_disagreement` is of the same; nan where the run did not measure them. `low`
    and `high` bound 95% intervals by a bootstrap of rows, also of the excess, |gap| less disagreement,
    where the rows are not those of test. `estimated`, of languages that the run did not measure, is its accuracy on
    test in the pivot less disagreement, or 0: what accuracy there is expected to be, or more.
    """

    experiment: Experiment
    pivot: str
    layers: pd.DataFrame
    languages: pd.DataFrame
    cloud: plots.Cloud = field(repr=False)

    @property
    def transfer(self) -> Transfer:
        """Compare disagreement, and the figures of the last layer, with the gaps of zero-shot languages."""
        last = self.layers[self.layers["layer"] == self.layers["layer"].max()]
        table = self.languages.merge(last.drop(columns="rows"), on="language")
        known = table[(table["role"] == groups.ZERO_SHOT) & table["gap"].notna()]
        draws, seed = self.experiment.evaluation.resamples, self.experiment.seed
        gap = known["gap"].to_numpy()
        ranks = {
            name: geometry.spearman(known[name].to_numpy(), gap, draws, seed)
            for name in ("disagreement", *plots.MEASURES)
        }
        held, surely = (int((known[one] <= 0).sum()) for one in ("excess", "excess_high"))
        broken = int((known["excess_low"] > 0).sum())
        return Transfer(len(known), held, surely, broken, known.mean(numeric_only=True).to_dict(), ranks)

    def sentences(self) -> list[str]:
        """Say what disagreement tells of the accuracy lost on test, with what is exact and what was checked."""
        told, guessed = self.transfer, self.languages.dropna(subset="estimated").sort_values("estimated")
        estimates = [
            f"estimated, from disagreement on {one['rows']} parallel rows: accuracy in {one['language']} about "
            f"{percent(one['estimated'])} or more [{percent(one['estimated_low'])}, {percent(one['estimated_high'])}]"
            for one in guessed.to_dict("records")
        ]
        if not told.languages:
            nothing = "no zero-shot language of these was measured on test, so there is nothing to hold this against"
            return [nothing, *estimates]
        here, lost, there = (100 * told.means[name] for name in ("disagreement", "gap", "test_disagreement"))
        exact = f" ({there:.1f}% of test rows, where no gap can exceed it)" if np.isfinite(there) else ""
        ranks = [
            f"{name} {one.value:+.2f}" + (f" [{one.low:+.2f}, {one.high:+.2f}]" if np.isfinite(one.low) else "")
            for name, one in told.ranks.items()
            if np.isfinite(one.value)  # which it is not of fewer than three languages, or where all have the same
        ]
        sure = f" (surely in {told.surely}; surely not in {told.broken})" if pd.notna(told.means["excess_low"]) else ""
        return [
            f"{told.languages} zero-shot: {here:.1f}% of rows answered otherwise than in {self.pivot}{exact}, "
            f"{lost:.1f} points lost on test",
            f"|gap on test| <= disagreement here in {told.held}{sure}",
            *([f"Spearman with the gap on test, figures of the last layer: {', '.join(ranks)}"] if ranks else []),
            *estimates,
        ]

    def means(self) -> pd.DataFrame:
        """Return the means over languages but the pivot, by layer and group: seen and unseen where that is known."""
        seen = dict(zip(self.languages["language"], self.languages["seen"], strict=True))
        named = {code: name for name, codes in groups.by_pretraining(seen, seen).items() for code in codes}
        table = self.layers[self.layers["language"] != self.pivot]
        by = table.groupby(["layer", [named.get(code, groups.ALL) for code in table["language"]]])
        found = by.mean(numeric_only=True).rename_axis(["layer", "group"])
        found.insert(0, "languages", by.size().to_numpy())
        return found


class Pairs(NamedTuple):
    """Texts of the pivot and of languages that have translations of them, (rows,) each, and their place there.

    `fit` tells the rows that a critic or a probe may be fitted on; an id is on the same side in all languages.
    """

    tables: dict[str, pa.Table]
    places: dict[str, np.ndarray]
    fit: dict[str, np.ndarray]


def of_bundle(place: Path, overrides: Sequence[str], asked: Asked, on_event: OnEvent) -> Geometry:
    """Measure the bundle in a folder on the corpus of its experiment, with `overrides` of that.

    The scores are those of the run whose folder the bundle is in; where it stands alone, its own, without intervals.
    Raises InputError where texts, layers or a head are missing, before anything is computed.
    """
    if asked.split not in (UNLABELLED, *SPLITS, retrieve.PARALLEL):
        offered = ", ".join((UNLABELLED, *SPLITS, retrieve.PARALLEL))
        raise InputError(f"--split: {asked.split!r}; give one of {offered}, the first being train, else dev")
    on_event({"stage": "check"})
    model, experiment, corpus = measure.of_texts(place, overrides)
    layers = chosen(model.network, asked.layers)
    pivot = asked.pivot or experiment.sources[0]
    pairs = select(texts(experiment, corpus, asked.split), pivot, asked.rows, experiment.seed, on_event)
    for note in _notes(model, experiment, asked.split, pairs):
        on_event({"stage": "check", "note": note})
    reader, embedding = Reader.of(model, experiment), counting(on_event, "embed")
    laid = reader.features(pairs.tables, layers, embedding)
    found = compared(laid, pairs, pivot, layers, counting(on_event, "compare"))
    read = evaluate.read(pairs.tables, model.readings)
    last = {key: one[layers[-1]] for key, one in reader.features(read, layers[-1:], embedding).items()}
    answers = answered(model, last, pairs.tables)
    languages = disagreements(model, experiment, pairs, pivot, answers, place.parent / "predictions.npz")
    top = {code: one[layers[-1]] for code, one in laid.items()}
    return Geometry(experiment, pivot, found, languages, _cloud(model, top, languages, pivot, answers))


def _notes(model: Bundle, experiment: Experiment, split: str, pairs: Pairs) -> Iterator[str]:
    """Yield what to beware of in the rows that are looked at."""
    read = [code for code in pairs.places if model.supervision.get(code, ZERO_SHOT) != ZERO_SHOT]
    if read and split in (UNLABELLED, "train"):
        yield (
            f"the run read texts of {len(read)} of these languages, and these rows may be among them, so they flatter "
            "it; --split dev or test has others"
        )
    named = experiment.targets if isinstance(experiment.targets, tuple) else ()
    if absent := [code for code in named if code not in pairs.tables]:
        shown = f"{', '.join(absent[:5])}{' and others' if len(absent) > 5 else ''}"
        yield f"left out, as they have no such rows here: {shown}; --split test may have some"
    if len({len(places) for places in pairs.places.values()}) > 1:
        yield "languages differ in rows (geometry.tsv), on which retrieval, nats and dimensions depend"


def chosen(network: Network, asked: Sequence[int]) -> tuple[int, ...]:
    """Return the layers to look at, ascending; raise InputError for one that the encoder does not have.

    Where the first token is what is pooled there is no layer of embeddings: it is the same for every text.
    """
    blocks, first = len(encoders.layers(network.encoder)), int(network.pooling == "first")
    if strange := [layer for layer in asked if not first <= layer <= blocks]:
        least = "1, the first block" if first else "0, the embeddings"
        raise InputError(f"--layers: {strange[0]}: give numbers from {least}, to {blocks}, the last block")
    return tuple(sorted({*(asked or (max(first, round(blocks * part / 3)) for part in range(4))), blocks}))


def texts(experiment: Experiment, corpus: Corpus, split: str) -> dict[str, pa.Table]:
    """Return the texts of sources and targets, by language, without their labels."""
    if split != UNLABELLED:
        return retrieve.texts(experiment, corpus, split)
    names = {*corpus.languages("train"), *corpus.languages("dev")}
    named = names if experiment.targets == "all" else {*experiment.sources, *experiment.targets}
    return corpus.unlabelled(sorted(names & named), ids=True)


def select(tables: Mapping[str, pa.Table], pivot: str, rows: int, seed: int, on_event: OnEvent) -> Pairs:
    """Choose the rows of every language that translate some of the pivot's, by chance, the same ones in all.

    A language with fewer than FEWEST is left out, and named. Raises InputError where none is left.
    """
    whole = {first: places for (first, _), places in retrieve.pairs(tables, pivot).items()}
    enough = {code: places for code, places in whole.items() if len(places) >= FEWEST}
    if few := sorted(tables.keys() - enough.keys() - {pivot}):
        shown = f"{', '.join(few[:5])}{' and others' if len(few) > 5 else ''}"
        note = f"languages with fewer than {FEWEST} translations of rows of {pivot} ({len(few)}): {shown}"
        if not enough:
            raise InputError(f"{note}; give --split or --pivot with more, or corpus.parallel and --split parallel")
        on_event({"stage": "check", "note": f"left out: {note}"})
    order = np.random.default_rng(seed).permutation(tables[pivot].num_rows)
    rank = np.argsort(order)
    kept = {code: places[np.argsort(rank[places[:, 1]])][:rows] for code, places in enough.items()}
    used = np.unique(np.concatenate([places[:, 1] for places in kept.values()]))
    found = {pivot: take(tables[pivot], used)} | {code: take(tables[code], one[:, 0]) for code, one in kept.items()}
    fit = {pivot: rank[used] % 2 == 0} | {code: rank[places[:, 1]] % 2 == 0 for code, places in kept.items()}
    return Pairs(found, {code: np.searchsorted(used, places[:, 1]) for code, places in kept.items()}, fit)


def compared(
    laid: Mapping[str, Mapping[int, np.ndarray]],
    pairs: Pairs,
    pivot: str,
    layers: Sequence[int],
    on_progress: OnProgress = lambda done, total: None,
) -> pd.DataFrame:
    """Measure features (rows, width) by language and layer, every language beside the pivot: `Geometry.layers`."""
    found: list[dict[str, Any]] = []
    for layer in layers:
        rows = {code: one[layer] for code, one in laid.items()}
        known = geometry.language_probe(rows, pairs.fit)
        with threadpool_limits(1):  # as in `retrieve.compare`
            for code, mine in rows.items():
                line: dict[str, Any] = {"language": code, "layer": layer, "rows": len(mine)}
                if code != pivot:
                    theirs = rows[pivot][pairs.places[code]]
                    ways, bound = retrieval(mine, theirs), geometry.information(mine, theirs, pairs.fit[code])
                    line |= {"cka": geometry.cka(mine, theirs), "forward": ways.forward, "backward": ways.backward}
                    line |= {"information": bound.bound, "information_most": bound.most}
                alone = {"cosine": geometry.mean_cosine(mine), "dimensions": geometry.dimensions(mine)}
                found.append(line | {"language_probe": known[code]} | alone)
                on_progress(len(found), len(rows) * len(layers))
    return pd.DataFrame(found, columns=LAYERS.split())


def answered(model: Bundle, last: Mapping[str, np.ndarray], tables: Mapping[str, pa.Table]) -> dict[str, np.ndarray]:
    """Return the label that a run gives each row, (rows,), from features of the last layer by key of a reading."""
    with torch.inference_mode():
        scored = {key: model.network.classify(_moved(model, key, rows)).cpu().numpy() for key, rows in last.items()}
    return {code: evaluate.averaged(scored, code, model.readings).argmax(1) for code in tables}


@torch.inference_mode()
def _moved(model: Bundle, key: str, rows: np.ndarray) -> torch.Tensor:
    """Return features (rows, width) as the head sees them, after the steps of techniques."""
    device = next(model.network.parameters()).device
    language = torch.full((len(rows),), model.network.index(key), device=device)
    return model.network.transform(torch.from_numpy(np.array(rows)).to(device), language)


def disagreements(
    model: Bundle, experiment: Experiment, pairs: Pairs, pivot: str, answers: Mapping[str, np.ndarray], file: Path
) -> pd.DataFrame:
    """Hold answers to parallel rows against a file of predictions, or a bundle's scores: `Geometry.languages`."""
    draws, seed = experiment.evaluation.resamples, experiment.seed
    apart = {code: (answers[code] != answers[pivot][at]).astype(np.int64) for code, at in pairs.places.items()}
    ids = {code: np.asarray(pairs.tables[code]["id"].to_pylist(), dtype=np.str_) for code in apart}
    drawn = bootstrap.for_means(apart, ids, draws, seed)
    predictions = load_predictions(file) if file.is_file() else {}
    tested = geometry.gaps({code: one for code, one in predictions.items() if code in answers}, pivot)
    lost, test_ids = ({code: getattr(one, name) for code, one in tested.items()} for name in ("lost", "ids"))
    lost_drawn = bootstrap.for_means(lost, test_ids, draws, seed + 1) if tested else {}
    right = {code: one.values() for code, one in predictions.items() if code == pivot}
    right_ids = {code: np.asarray(predictions[code].ids) for code in right}
    right_drawn = bootstrap.for_means(right, right_ids, draws, seed + 1) if right else {}
    scores = model.scores.languages if model.scores else {}
    seen = encoders.seen_languages(model.network.encoder, model.tokenize.tokenizer)
    roles, found = groups.Roles(model.experiment.sources, seen=seen), []
    for code, rows in apart.items():
        role = scores[code].role if code in scores else roles.role(code)
        line: dict[str, Any] = {"language": code, "role": role, "seen": roles.was_seen(code), "rows": len(rows)}
        line |= {"disagreement": rows.mean(), **_ends("disagreement", drawn[code])}
        if test := tested.get(code):
            line |= {"gap": test.lost.mean(), "test_rows": len(test.ids), "test_disagreement": test.apart.mean()}
            line |= _ends("gap", lost_drawn[code])
            if not np.isin(ids[code], test.ids).any():  # on rows of test it is a theorem, and no two drawings
                line |= _ends("excess", np.abs(lost_drawn[code]) - drawn[code])
        elif {code, pivot} <= scores.keys():
            line["gap"] = scores[pivot].accuracy - scores[code].accuracy
        elif right and code not in scores and code not in predictions:
            line["estimated"] = max(0.0, right[pivot].mean() - rows.mean())
            line |= _ends("estimated", np.maximum(0, right_drawn[pivot] - drawn[code]))
        found.append(line | {"excess": abs(line.get("gap", np.nan)) - line["disagreement"]})
    return pd.DataFrame(found, columns=LANGUAGES.split())


def _ends(name: str, draws: np.ndarray) -> dict[str, float]:
    low, high = np.nanquantile(draws, bootstrap.TAILS)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def _cloud(
    model: Bundle,
    last: Mapping[str, np.ndarray],
    languages: pd.DataFrame,
    pivot: str,
    answers: Mapping[str, np.ndarray],
) -> plots.Cloud:
    """Lay the pivot, and languages evenly from the least to the most disagreeing, out as the head sees them."""
    ranked = languages.sort_values(["disagreement", "language"])["language"].to_numpy()
    places = np.unique(np.linspace(0, len(ranked) - 1, min(DRAWN - 1, len(ranked))).round().astype(int))
    codes = [pivot, *map(str, ranked[places])]
    rows = [_moved(model, code, last[code]).cpu().numpy() for code in codes]
    given = np.concatenate([answers[code] for code in codes])
    points = geometry.plane(np.concatenate(rows))
    return plots.Cloud(points, np.repeat(codes, list(map(len, rows))), np.array(model.labels)[given])


def write(folder: Path, found: Geometry) -> list[Path]:
    """Write geometry.tsv, a language and layer a line, disagreement.tsv, and three plots; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, table in (("geometry", found.layers), ("disagreement", found.languages)):
        files.append(folder / f"{name}.tsv")
        table.to_csv(files[-1], sep="\t", index=False, float_format="%.4f", lineterminator="\n")
    return files + plots.write(folder, found.means(), found.languages, found.cloud)
