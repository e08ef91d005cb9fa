"""Look up what was measured on test: how often a model is right in a language, and when it is this confident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlt_ray.evaluation import calibration, groups
from xlt_ray.evaluation.calibration import Reliability
from xlt_ray.languages import codes
from xlt_ray.languages.identify import Guess


def zero_shot(measured: Mapping[str, Mapping[str, Any]]) -> Reliability:
    """Add up the tables of reliability of all zero-shot languages."""
    rows = [row.get("reliability") for row in measured.values() if not groups.trained_on(row["role"])]
    return calibration.pooled(filter(None, rows))


def reliability(
    measured: Mapping[str, Mapping[str, Any]], others: Reliability, code: str | None, confidence: float
) -> dict[str, Any] | None:
    """Return how often answers as confident as this were right on test rows, in the language where it was measured.

    Else in `others`, all zero-shot languages together; None where nothing was counted.
    """
    own = measured.get(code or "", {}).get("reliability")
    found = calibration.like(others if own is None else own, confidence)
    return found and found | {"language": code if own is not None else None}


def language(guess: Guess) -> dict[str, Any]:
    """Return a text's language as an answer has it."""
    return {"code": guess.code, "name": guess.code and codes.name(guess.code), "confidence": guess.confidence}


def expected(measured: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what was measured in a language, as fractions with the 95% interval; None where nothing was.

    Of a model of words it is the `value` of a `metric`, of others the accuracy.
    """
    if measured is None:
        return None
    error = measured.get("calibration_error")
    main = "value" if "metric" in measured else "accuracy"
    return {
        **({"metric": measured["metric"]} if "metric" in measured else {}),
        main: round(measured[main], 4),
        "low": round(measured["low"], 4),
        "high": round(measured["high"], 4),
        "rows": measured["support"],
        "trained_on": groups.trained_on(measured["role"]),
        "supervision": measured.get("supervision"),
        "calibration_error": None if error is None else round(error, 4),
    }
