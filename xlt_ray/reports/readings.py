"""Write what each reading of a language is worth by itself, as a table beside the report of a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xlt_ray.translation.readings import Readings

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("language", "reading", "weight", "words_translated", "accuracy", "match_rate")


def write(folder: Path, readings: Readings, texts: Mapping[str, pa.Table], apart: Mapping[str, float]) -> Path:
    """Write readings.tsv, one line a language and reading, and return the file.

    `texts` are all unlabelled rows by language, of which those that lexicons have not seen show what share of words is
    translated; `apart` is the accuracy of each reading by itself on test, by key. The match rate is of the language,
    see `induced.match_rate`, and nan where its lexicon was not induced.
    """
    file = folder / "readings.tsv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for code in sorted(filter(readings.several, texts)):
            columns = (readings.keys(code), readings.named(code), readings.shares(code))
            for (key, name, share), words in zip(
                zip(*columns, strict=True), readings.coverage(code, texts[code]), strict=True
            ):
                figures = (share, words, apart.get(key, np.nan), readings.match_rates.get(code, np.nan))
                writer.writerow([code, name, *(f"{figure:.4f}" for figure in figures)])
    return file
