"""Measure how near two languages are by family, script and place, whatever text there is of them.

Families and places come from the package qwanqwa (Glottolog's tree and coordinates; its data are under CC BY-SA 4.0 and
not copied into this package), and where it knows no family, families and scripts from our own `languages.tsv`.
Every comparison is of a source with a target, and nan where something is unknown.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlt_ray.languages import codes

EARTH_RADIUS_KM = 6371.0
CODE = re.compile(r"[a-z]{3}(_[A-Z][a-z]{3})?")  # other names of languages would be looked up as something else
NO_ANCESTORS = {"Artificial Language", "Pidgin", "Mixed Language", "Unclassifiable", "Unattested", "Sign Language"}

# Of the tree's 5 to 20 levels these are the branches that people speak of, and no level holds them all: Romance is the
# seventh, Slavic the fourth, Turkic the first.
BRANCHES = {
    "Albanian", "Balto-Slavic", "Benue-Congo", "Berber", "Celtic", "Chadic", "Cushitic", "Ethiosemitic", "Finnic",
    "Germanic", "Greek", "Indo-Aryan", "Indo-Iranian", "Iranian", "Italic", "Kipchak", "Lolo-Burmese", "Malayic",
    "Malayo-Polynesian", "Mongolic", "Oghuz", "Romance", "Semitic", "Sinitic", "Slavic", "Tupi-Guarani",
}  # fmt: skip
RENAMED = {
    "Armenic": "Armenian",
    "Central-Southwestern Tai": "Tai",
    "Eastern Baltic": "Baltic",
    "Narrow Bantu": "Bantu",
}


def kinship(source: str, target: str) -> float:
    """Return the share of the target's line of descent, from the root of its family to itself, that the source shares.

    1 is the same language, 0 another family. Sources that part from the target at the same ancestor are equally close,
    however finely the tree divides what comes after.
    """
    line = lineage(target)
    return shared(lineage(source), line) / len(line) if line and lineage(source) else np.nan


def shared(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the ancestors that two lineages have in common.

    >>> shared(("Turkic", "Oghuz", "Turkish"), ("Turkic", "Kipchak", "Kazakh"))
    1
    """
    return next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def branch(line: Sequence[str]) -> str:
    """Name the nearest branch on a line of descent that people know by name; its family where there is none nearer.

    >>> branch(("Indo-European", "Classical Indo-European", "Italic", "Latino-Faliscan", "Romance", "Gallo-Rhaetian"))
    'Romance'
    >>> branch(("Indo-European", "Classical Indo-European"))
    'Indo-European'
    """
    nearest = next((name for name in reversed(line) if name in BRANCHES or name in RENAMED), line[0])
    return RENAMED.get(nearest, nearest)


@functools.cache
def lineage(code: str) -> tuple[str, ...]:
    """Name a language's ancestors from the root of its family down to itself; empty where nothing is known.

    Where qwanqwa knows no ancestors, as of a macrolanguage, the family in our own table stands for them.
    """
    for found in _languoids(code):
        line = [found.name, *(ancestor.name for ancestor in found.family_tree)][::-1]
        if len(line) > 1 and line[0] not in NO_ANCESTORS:
            return tuple(line)
    known = codes.get(code)
    return (known.family, known.name) if known and known.family else ()


def same_script(source: str, target: str) -> float:
    """Return 1 where two languages are written in one script, else 0; nan where a script is not known."""
    first, second = codes.get(source), codes.get(target)
    return float(first.script == second.script) if first and second else np.nan


def distance_km(source: str, target: str) -> float:
    """Measure the great circle between two languages' places (one point each) in km; nan where one is unknown."""
    if (first := _place(source)) is None or (second := _place(target)) is None:
        return np.nan
    (lat_1, lon_1), (lat_2, lon_2) = np.radians(first), np.radians(second)
    # the haversine formula: the plain arc cosine is inexact for neighbours
    half = np.sin((lat_2 - lat_1) / 2) ** 2 + np.cos(lat_1) * np.cos(lat_2) * np.sin((lon_2 - lon_1) / 2) ** 2
    return float(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(min(1.0, half))))


@functools.cache
def _place(code: str) -> tuple[float, float] | None:
    return next(
        ((one.latitude, one.longitude) for one in _languoids(code) if None not in (one.latitude, one.longitude)), None
    )


@functools.cache
def _languoids(code: str) -> tuple[Any, ...]:
    # est and zho are macrolanguages without ancestors or place; their aliases ekk and cmn have both
    known = codes.get(code)
    names = [code, *(known.aliases if known else ())] if CODE.fullmatch(code) else []
    found = (_database().resolve_tag(name).languoid for name in names)
    return tuple(one for one in found if one is not None)


@functools.cache
def _database() -> Any:
    import qq  # its data take seconds to read, and most commands do without

    return qq.Database.load()
