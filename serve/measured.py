"""Say beside an answer what was measured on test: how often a model is right in a language, and when this confident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlt_ray import calibration, languages


def reliability(
    measured: Mapping[str, Mapping[str, Any]], code: str | None, confidence: float
) -> dict[str, Any] | None:
    """Say how often answers as confident as this were right on test rows, in the text's language where it was measured.

    Else in all zero-shot languages together; None where nothing was counted.
    """
    own = measured.get(code or "", {}).get("reliability")
    if own is not None:
        found = calibration.like(own, confidence)
    else:
        rows = [
            row["reliability"] for row in measured.values() if row["role"] == "zero-shot" and row.get("reliability")
        ]
        found = calibration.like(calibration.pooled(rows), confidence)
    return found and found | {"language": code if own is not None else None}


def expected(measured: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Say what was measured in a language, as fractions with the 95% interval; None where nothing was."""
    if measured is None:
        return None
    return {
        "accuracy": round(measured["accuracy"], 4),
        "low": round(measured["low"], 4),
        "high": round(measured["high"], 4),
        "rows": measured["support"],
        "trained_on": measured["role"] == "source",
        "calibration_error": _rounded(measured.get("calibration_error")),
    }


def _rounded(fraction: float | None) -> float | None:
    return None if fraction is None else round(fraction, 4)


def name(code: str | None) -> str | None:
    """Name a language in English; the code itself where it is not known."""
    if code is None:
        return None
    known = languages.get(code)
    return known.name if known else code
