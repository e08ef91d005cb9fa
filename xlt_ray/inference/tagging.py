"""Answer with a model of words: the tag of every word of a text, where it stands, and the spans that tags make."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xlt_ray.errors import InputError
from xlt_ray.languages import words as splitting

if TYPE_CHECKING:  # a server imports this, and torch only where it answers with it
    from xlt_ray.corpora.streams import Encoded
    from xlt_ray.inference.bundle import Bundle
    from xlt_ray.model.collate import Tokenize
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
    windows = task.windows(model.tokenize, texts, places)
    return tagged(model.labels, places, model.answer([one for each in windows for one in each], None))


def tagged(
    labels: Sequence[str], places: Sequence[Sequence[tuple[int, int]]], probabilities: np.ndarray
) -> list[list[Word]]:
    """Return the words at some places of texts with their likeliest tags, from the (words, tags) `probabilities`."""
    best = zip(probabilities.argmax(1).tolist(), probabilities.max(1).tolist(), strict=True)
    found = ((labels[tag], score) for tag, score in best)
    return [[Word(*place, *next(found)) for place in own] for own in places]


@dataclass(frozen=True)
class Words:
    """What an engine knows of the words of texts: how they are encoded, and what their tags mean.

    A row is a window, (tokens, 3) int64: ids, token types, and how many words are scored at each token. Two words may
    share one, and they stand in the order of the text, so these counts say it all.
    """

    task: Task
    tokenize: Tokenize

    def rows(self, texts: Sequence[str]) -> list[list[np.ndarray]]:
        """Encode texts in windows, whose words are those that `languages.words.split` finds."""
        windows = self.task.windows(self.tokenize, texts, [splitting.split(text) for text in texts])
        return [[_row(one) for one in each] for each in windows]


def _row(window: Encoded) -> np.ndarray:
    ids = window["input_ids"]
    counts = np.bincount(np.asarray(window["word"], dtype=np.int64) - 1, minlength=len(ids))
    return np.stack([ids, window.get("token_type_ids") or np.zeros_like(ids), counts], axis=1).astype(np.int64)


def marks(row: np.ndarray) -> np.ndarray:
    """Return for every word that a row answers 1 and the place of its token, (words,) int64."""
    return 1 + np.repeat(np.arange(len(row)), row[:, 2])


def sizes(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return how many words each of some rows answers, (rows,) int64."""
    return np.array([row[:, 2].sum() for row in rows], dtype=np.int64)


def _places(text: str, words: Sequence[str] | None) -> list[tuple[int, int]]:
    if words is None:
        return splitting.split(text)
    found = splitting.spans(text, words)
    if len(found) < len(words) or not all(words):
        what = f"{words[len(found)]!r} does not follow" if all(words) else "one is empty"
        raise InputError(f"words: {what} in the text {text[:40]!r}; give the words of the text in their order")
    return found


def task_of(model: Bundle) -> Task:
    """Return the task of a model of words; raise InputError for another model."""
    task = model.task
    if not task.tagged:
        raise InputError(f"task: {task.name}: the model answers for whole texts, and words were asked for; use predict")
    return task


def spans(task: Task, words: Sequence[Word]) -> list[Found]:
    """Return the spans that the tags of a text's words make; [] where tags are not of spans."""
    found = task.spans([task.labels.index(one.tag) for one in words])
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
                for a, b, kind, score, *_ in spans(model.task, found)
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
