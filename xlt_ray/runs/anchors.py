"""Measure what a run loses in other languages where anchors are taken out of the texts that it is tested on.

Anchors are what a text shares with texts of the pivot as it stands: punctuation, numbers, and words that occur in train
texts of the pivot. As a control as many other words are taken out, by chance, and the punctuation too. Languages that
are written without spaces are left out. Labels of test rows are measured on, and nothing is chosen by them.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import regex

from xlt_ray.corpora.arrow import with_texts
from xlt_ray.corpora.corpus import refuse
from xlt_ray.errors import InputError
from xlt_ray.evaluation import bootstrap
from xlt_ray.events import OnEvent
from xlt_ray.languages.words import WORD, fold, unsegmented, words
from xlt_ray.runs import measure

NUMBER = regex.compile(r"\p{N}+")
MEAN = "mean"  # in place of a language
READ = ("original", "removed", "control")


def without(text: str, shared: Collection[str], rng: np.random.Generator) -> tuple[str, str, int]:
    """Return a text without its anchors, without as many other words instead, and how many words that is.

    >>> without("Mji wa London, 2019!", {"london"}, np.random.default_rng(0))
    ('Mji wa', 'London 2019', 2)
    """
    found = words(text)
    anchors = [place for place, word in enumerate(found) if fold(word) in shared or NUMBER.fullmatch(word)]
    others = np.setdiff1d(np.arange(len(found)), anchors)
    drawn = rng.choice(others, min(len(anchors), len(others)), replace=False)
    kept = (" ".join(np.delete(found, np.asarray(out, dtype=np.int64))) for out in (anchors, drawn))
    return next(kept), next(kept), len(anchors)


def removed(table: pa.Table, shared: Collection[str], address: Sequence[int]) -> tuple[pa.Table, pa.Table, float]:
    """Return a table's rows without anchors, the control, and the share of words that are anchors; seeded by row id."""
    seeds = [np.random.default_rng([*address, zlib.crc32(one.encode())]) for one in table["id"].to_pylist()]
    both: list[dict[str, list[str]]] = [{}, {}]
    anchors = total = 0
    for name in ("text", "text_pair"):
        if name in table.column_names:
            texts = table[name].to_pylist()
            made = [without(text, shared, rng) for text, rng in zip(texts, seeds, strict=True)]
            both[0][name], both[1][name] = [one[0] for one in made], [one[1] for one in made]
            anchors += sum(one[2] for one in made)
            total += sum(len(WORD.findall(text)) for text in texts)
    return with_texts(table, both[0]), with_texts(table, both[1]), anchors / max(total, 1)


def of_bundle(place: Path, overrides: Sequence[str], pivot: str | None, on_event: OnEvent) -> pd.DataFrame:
    """Return a line a language, and their mean: accuracy on test texts, without anchors, and on the control.

    `anchors` is the share of words taken out; `loss` is accuracy on the control less accuracy without anchors, with its
    95% interval by a bootstrap of rows, the same in all languages where these share ids.
    """
    model, experiment, corpus = measure.of_texts(place, overrides)
    pivot = pivot or experiment.sources[0]
    shared = {fold(word) for text in corpus.table("train", pivot)["text"].to_pylist() for word in words(text)}
    codes = [code for code in corpus.measured((), experiment.targets) if code != pivot and not unsegmented(code)]
    tables = {code: corpus.table("test", code) for code in codes}
    if not tables:
        raise InputError(f"--anchors: no target but {pivot} is written with spaces; name some in targets")
    if faults := measure.trained_on(model, tables):
        refuse(f"corpus {experiment.corpus.path or experiment.corpus.loader}", faults)
    made = {
        code: removed(table, shared, (experiment.seed, zlib.crc32(code.encode()))) for code, table in tables.items()
    }
    asked = {"original": tables} | {
        name: {code: one[place] for code, one in made.items()} for place, name in enumerate(READ[1:])
    }
    found = {name: measure.predict(model, experiment, rows, on_event) for name, rows in asked.items()}
    right = {name: {code: one.gold == one.predicted for code, one in rows.items()} for name, rows in found.items()}
    lost = {code: right["control"][code].astype(np.int64) - right["removed"][code] for code in codes}
    ids = {code: np.asarray(found["original"][code].ids) for code in codes}
    drawn = bootstrap.for_means(lost, ids, experiment.evaluation.resamples, experiment.seed)
    drawn[MEAN] = bootstrap.mean(np.stack([drawn[code] for code in codes]))
    columns = {"anchors": {code: one[2] for code, one in made.items()}}
    columns |= {name: {code: float(rows.mean()) for code, rows in right[name].items()} for name in READ}
    table = pd.DataFrame(columns)
    table["loss"] = table["control"] - table["removed"]
    table.loc[MEAN] = table.mean()
    table[["low", "high"]] = [np.quantile(drawn[code], bootstrap.TAILS) for code in table.index]
    return table.rename_axis("language")
