"""Answer with a model of words: the tag of every word of a text, where it stands, and the spans that tags make."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.inference.bundle import Bundle
from xlt_ray.languages import words as splitting
from xlt_ray.tasks.task import Task

PIECE = 256  # lines that are answered together


class Word(NamedTuple):
    """A word of a text: the characters from `start` to the one before `end`, its tag, and the probability of that."""

    start: int
    end: int
    tag: str
    score: float


class Found(NamedTuple):
    """A span of a text, as `Word` has it: of one type, and as probable as the least of its words.

    Its words are those from the number `first` to the one before `last`.
    """

    start: int
    end: int
    type: str
    score: float
    first: int
    last: int


def tag(model: Bundle, texts: Sequence[str], words: Sequence[Sequence[str] | None] | None = None) -> list[list[Word]]:
    """Tag the words of texts, a list a text; where none are given, those that `languages.words.split` finds.

    Raises InputError where the model is none of words, or given words do not stand in their text in order.
    """
    task = task_of(model)
    places = [
        _places(text, own) for text, own in zip(texts, [None] * len(texts) if words is None else words, strict=True)
    ]
    asked = [number for number, own in enumerate(places) if own]
    named = [[texts[number][start:end] for start, end in places[number]] for number in asked]
    table = pa.table({
        "text": pa.array([texts[number] for number in asked], pa.string()),
        "words": pa.array(named, pa.list_(pa.string())),
    })  # fmt: skip
    scores = _probabilities(model, task, table)
    found = zip((model.labels[best] for best in scores.argmax(1)), scores.max(1).tolist(), strict=True)
    return [[Word(*place, *next(found)) for place in own] for own in places]


def _places(text: str, words: Sequence[str] | None) -> list[tuple[int, int]]:
    if words is None:
        return splitting.split(text)
    found = splitting.spans(text, words)
    if len(found) < len(words) or not all(words):
        what = f"{words[len(found)]!r} does not follow" if all(words) else "one is empty"
        raise InputError(f"words: {what} in the text {text[:40]!r}; give the words of the text in their order")
    return found


def _probabilities(model: Bundle, task: Task, table: pa.Table) -> np.ndarray:
    """Return the calibrated probability of every tag for every word of a table's rows, (words, tags) float32."""
    if not table.num_rows:
        return np.zeros((0, len(model.labels)), dtype=np.float32)
    inputs = evaluate.Inputs(model.tokenize, model.precision, model.experiment.evaluation.tokens_per_step)
    device = next(model.network.parameters()).device
    rows = np.arange(table.num_rows)
    logits = evaluate.outputs(model.network, device, table, rows, inputs, evaluate.Asked(task=task))
    return (torch.from_numpy(logits) / model.network.temperature).softmax(-1).numpy()


def task_of(model: Bundle) -> Task:
    """Return the task of a model of words; raise InputError for another model."""
    task = model.task
    if not task.tagged:
        raise InputError(f"task: {task.name}: the model answers for whole texts, and words were asked for; use predict")
    return task


def spans(model: Bundle, words: Sequence[Word]) -> list[Found]:
    """Return the spans that the tags of a text's words make; [] where tags are not of spans."""
    found = task_of(model).spans([model.labels.index(one.tag) for one in words])
    least = [min(word.score for word in words[one.start : one.end]) for one in found]
    return [
        Found(words[one.start].start, words[one.end - 1].end, one.type, score, one.start, one.end)
        for one, score in zip(found, least, strict=True)
    ]


def tag_lines(model: Bundle, lines: Iterable[str], jsonl: bool, out: IO[str]) -> int:
    """Write a JSON object for every line, in order: `text`, `words` and `spans`; return how many have an error.

    `lines` are texts, or with `jsonl` strings or objects with `text` and perhaps `words` and `id`.
    """
    faults, held = 0, []
    for number, line in enumerate(lines, 1):
        held.append((number, line))
        if len(held) == PIECE:
            faults += _piece(model, held, jsonl, out)
            held = []
    return faults + _piece(model, held, jsonl, out)


def _piece(model: Bundle, lines: Sequence[tuple[int, str]], jsonl: bool, out: IO[str]) -> int:
    asked: list[dict[str, Any]] = [_asked(number, line, jsonl) for number, line in lines]
    good = [one for one in asked if "error" not in one]
    answers = iter(tag(model, [one["text"] for one in good], [one.get("words") for one in good]))
    for one in asked:
        if "error" not in one:
            found = next(answers)
            one["words"] = [word._asdict() | {"score": round(word.score, 4)} for word in found]
            one["spans"] = [
                {"start": a, "end": b, "type": kind, "score": round(score, 4), "text": one["text"][a:b]}
                for a, b, kind, score, *_ in spans(model, found)
            ]
        out.write(json.dumps(one, ensure_ascii=False) + "\n")
    return len(asked) - len(good)


def _asked(number: int, line: str, jsonl: bool) -> dict[str, Any]:
    """Return what a line asks, or why it cannot be answered."""
    if not jsonl:
        plain = line.rstrip("\r\n")
        return {"text": plain} if plain.strip() else {"line": number, "error": "the text is empty; leave the line out"}
    try:
        found = json.loads(line)
    except ValueError as error:
        return {"line": number, "error": f"no JSON ({error}); write a string or an object with text"}
    found = {"text": found} if isinstance(found, str) else found
    text: Any = found.get("text") if isinstance(found, dict) else None
    if not isinstance(text, str) or not text.strip():
        return {"line": number, "error": "no text; write a string or an object with text"}
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return {"line": number, "error": "half a character, such as of an emoji; write it whole"}
    asked = {name: found[name] for name in ("id", "text", "words") if name in found}
    own = asked.get("words")
    try:
        if own is not None:
            if not isinstance(own, list) or not all(isinstance(word, str) for word in own):
                raise InputError("words: no list of strings; leave them out, or give the words of the text in order")
            _places(text, own)
    except InputError as error:
        return {"line": number, "error": str(error)}
    return asked
