"""Fill the HTML templates of reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, page: Mapping[str, Any]) -> str:
    """Fill a template of this package; what the page holds is escaped, and a name that it lacks is an error."""
    places = PackageLoader("xlt_ray.reports")
    jinja = Environment(loader=places, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"pct": percent, "thousands": lambda number: f"{number:,}"}
    return jinja.get_template(template).render(page)


def percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"
