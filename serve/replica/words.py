"""Show the answers of a model of words: the spans of every text, the tag of every word; keep its routes its own."""

from __future__ import annotations

from typing import Any

from serve.replica.measured import expected, language
from serve.replica.model import DIGITS, Answer, Model
from xlt_ray.errors import InputError
from xlt_ray.inference import tagging


def shown(answer: Answer) -> list[dict[str, Any]]:
    """Write an answer as the list of results that a response holds, one a text.

    Places are of Unicode code points in the text as it was asked, from `start` to the one before `end`.
    """
    words, measured = answer.model.engine.words, answer.model.artefact.languages
    assert words is not None, "of a model of words"
    results = []
    for text, own, guess in zip(answer.question.texts, answer.words, answer.guesses, strict=True):
        spans = [
            {"type": one.type, **_place(text, one.start, one.end), "score": round(one.score, DIGITS)}
            for one in tagging.spans(words.task, own)
        ]
        tags = [{**_place(text, *place), "tag": tag, "score": round(score, DIGITS)} for *place, tag, score in own]
        results.append(
            {
                "spans": spans,
                "words": tags,
                "language": language(guess),
                "expected_quality": expected(measured.get(guess.code or "")),
            }
        )
    return results


def _place(text: str, start: int, end: int) -> dict[str, Any]:
    return {"text": text[start:end], "start": start, "end": end}


def refuse_other_kind(model: Model, before: Model | None, challenger: Model | None) -> None:
    """Raise InputError where a model would answer clients of another kind of model, or challenge one of words."""
    if before is not None and (before.engine.words is None) is not (model.engine.words is None):
        raise InputError(
            f"{model.name}: one of it and {before.name}, which answers, is a model of words and has other routes; "
            "start another server for it"
        )
    for one in (model, challenger):
        if challenger is not None and one is not None and one.engine.words is not None:
            raise InputError(
                f"challenger: {one.name} is a model of words, whose answers are not compared; leave it out"
            )
