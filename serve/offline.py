"""Classify a file without a server: the same answers as a stream's, from an engine in this process."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import shlex
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from serve.http.stream import answer_lines
from serve.replica.model import Chunk, Model, Wanted
from serve.replica.service import Service, answer_all
from serve.settings import Limits, ServeArgs
from xlt_ray import sniff
from xlt_ray.errors import InputError
from xlt_ray.inference import engine
from xlt_ray.registry import fetch

# what makes JSON lines of two columns with a tab between
TO_PAIRS = (
    "import json,sys; [print(json.dumps(dict(zip(('text', 'pair'), l.rstrip('\\n').split('\\t'))))) for l in sys.stdin]"
)
PIECE = 256  # lines read before they are answered
FOREVER = 1e9  # seconds; nobody waits here
HUGE = 10**12  # characters or bytes: a file of one's own may hold what it likes


def open_model(spec: str, tracking_uri: str | None = None) -> Model:
    """Load a model as a server would; a bundle or a run's folder as it is, without exporting it first."""
    if not spec.startswith("models:"):
        folder = fetch.bundle_in(Path(spec).expanduser().absolute())
        running = engine.load(folder)
        return Model(running, running.artefact, str(folder), running.artefact.digest)
    found = fetch.fetch(spec, tracking_uri)
    running = engine.load(found.folder)
    return Model(running, running.artefact, found.model, found.version)


def classify_lines(model: Model, lines: Iterable[str], jsonl: bool, out: IO[str], wanted: Wanted) -> int:
    """Write a JSON object for every line, in order and as soon as it is known; return how many have an error.

    `lines` are texts, or with `jsonl` what a stream's lines are. An answer repeats its text.
    """
    limits = Limits(characters=HUGE, line_bytes=HUGE, waiting_texts=HUGE, deadline_s=FOREVER, texts=PIECE)

    async def infer(chunk: Chunk) -> np.ndarray:
        (found,) = await asyncio.to_thread(answer_all, [chunk])
        if isinstance(found, Exception):
            raise found
        return found

    service = Service(ServeArgs(model=model.name, limits=limits), infer)
    service.model = model
    return asyncio.run(_work(service, lines, jsonl, out, wanted))


def refuse_single_texts(model: Model, file: str) -> None:
    """Raise InputError where a model classifies pairs of texts, which the lines of a plain file cannot hold."""
    if model.artefact.pairs:
        made = "" if file == "-" else f" < {shlex.quote(file)} > {shlex.quote(file + '.jsonl')}"
        raise InputError(
            f'{_shown(file)}: this model classifies pairs of texts; write lines {{"text": "...", "pair": "..."}} and '
            f'add --jsonl; of two columns with a tab between, `python3 -c "{TO_PAIRS}"{made}` makes such lines'
        )


async def _work(service: Service, lines: Iterable[str], jsonl: bool, out: IO[str], wanted: Wanted) -> int:
    asked: dict[int, str] = {}
    faults = 0

    async def body() -> AsyncIterator[bytes]:
        for piece in _pieces(enumerate(lines, 1)):
            if not jsonl:
                asked.update(piece)
            # null is refused as a line, where an empty text would get some label
            raws = (line if jsonl else json.dumps(line if line.strip() else None) for _, line in piece)
            yield "".join(raw + "\n" for raw in raws).encode()

    async for answers in answer_lines(service, body(), lambda texts: None, wanted):
        for answer in answers.splitlines():
            found: dict[str, Any] = json.loads(answer)
            text = {} if jsonl else {"text": asked.pop(found["line"])}
            if text and not text["text"].strip():
                found["error"] = "empty: there is nothing to classify"
            faults += "error" in found
            out.write(json.dumps(text | found, ensure_ascii=False) + "\n")
    return faults


def _pieces(lines: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    piece: list[tuple[int, str]] = []
    try:
        for line in lines:
            piece.append(line)
            if len(piece) == PIECE:
                yield piece
                piece = []
    except InputError:
        yield piece  # what stands before a line that cannot be read is answered first
        raise
    yield piece


def lines_of(file: str, jsonl: bool) -> Iterator[str]:
    """Open a file of lines in UTF-8, `-` for standard input.

    Raises InputError, with line and remedy, for anything else: at once where it can be known, since a regular file is
    read to its end, and from the iterator where it cannot.
    """
    if Path(file).is_file():
        collections.deque(sniff.text_lines(file), maxlen=0)
    stream: Any = sys.stdin.buffer if file == "-" else None
    lines = sniff.text_lines(_shown(file), stream)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{_shown(file)}: empty; give one text a line")
    if not jsonl and _is_object(first):
        raise InputError(f"{_shown(file)}, line 1: a JSON object, of which its text alone is meant; add --jsonl")
    return itertools.chain([first], lines)


def _shown(file: str) -> str:
    return sniff.STDIN if file == "-" else file


def _is_object(line: str) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        return isinstance(found, dict) and "text" in found
    return False
