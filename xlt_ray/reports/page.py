"""Fill the HTML templates of reports, and lay out tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.table import Column, Table


def render(template: str, page: Mapping[str, Any]) -> str:
    """Fill a template of this package; what the page holds is escaped, and a name that it lacks is an error."""
    places = PackageLoader("xlt_ray.reports")
    jinja = Environment(loader=places, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"pct": percent, "thousands": lambda number: f"{number:,}"}
    return jinja.get_template(template).render(page)


def percent(fraction: float | None) -> str:
    """Write a fraction in per cent with one decimal, and None as nothing."""
    return "" if fraction is None else f"{100 * fraction:.1f}"


def terminal_table(title: str, names: Sequence[str] = (), figures: Sequence[str] = ()) -> Table:
    """Return a table for 80 columns, `names` left and `figures` right in it; it prints as plain text into a pipe.

    Names of languages may wrap, so that a narrow terminal cuts these and not numbers.
    """
    columns = [Column(name, no_wrap=name != "language") for name in names]
    columns += [Column(name, no_wrap=True, justify="right") for name in figures]
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": 0, "pad_edge": False, "show_edge": False}
    return Table(*columns, title=title, title_justify="left", **look)
