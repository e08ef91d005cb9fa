"""Write what techniques measured of themselves in each language, as a table beside what a run measured on test."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from xlt_ray.reports.page import terminal_table

FILE = "figures.tsv"
MEAN = "all"  # in place of a language: of all of them


def write(folder: Path, facts: Mapping[str, float], alone: bool) -> Path | None:
    """Write figures.tsv, a language a line, and return the file; None where there is nothing to write.

    `facts` are by `technique/figure/language`, and `technique/figure` of all languages; the latter are worth a file
    where they stand `alone`, without scores.
    """
    cells: dict[str, dict[str, float]] = {MEAN: {}}
    for key, value in facts.items():
        technique, figure, *of = key.split("/")
        cells.setdefault(of[0] if of else MEAN, {})[f"{technique} {figure}"] = value
    if not facts or (len(cells) == 1 and not alone):
        return None
    columns = list(dict.fromkeys(name for row in cells.values() for name in row))
    file = folder / FILE
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["language", *columns])
        for code in (MEAN, *sorted(cells.keys() - {MEAN})):
            writer.writerow([code, *(f"{cells[code][name]:.6g}" if name in cells[code] else "" for name in columns)])
    return file


def table(folder: Path, title: str) -> Table | None:
    """Lay out a run's figures.tsv for a terminal; None where there is none."""
    if not (folder / FILE).is_file():
        return None
    with (folder / FILE).open(encoding="utf-8", newline="") as stream:
        head, *lines = csv.reader(stream, delimiter="\t")
    found = terminal_table(title)
    rows = [[line[0], *(f"{float(cell):.4g}" if cell else "" for cell in line[1:])] for line in lines]
    for name, *cells in zip(head, *rows, strict=True):
        words = name.replace("_", " ").split()
        widest = max(map(len, (*words, *cells)))
        found.add_column(" ".join(words), justify="right" if found.columns else "left", min_width=widest)
    for row in rows:
        found.add_row(*row)
    return found
