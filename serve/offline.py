"""Classify a file without a server: the same answers as a stream's, from an engine in this process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from serve.service import Chunk, Model, Service, answer_all
from serve.settings import Limits, ServeArgs
from serve.stream import answer_lines
from xlt_ray import engine, fetch
from xlt_ray.config import InputError

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


def classify_lines(
    model: Model, lines: Iterable[str], top_k: int, jsonl: bool, out: IO[str], min_confidence: float = 0.0
) -> int:
    """Write a JSON object for every line, in order and as soon as it is known; gives the number of lines with an error.

    `lines` are texts, or with `jsonl` what a stream's lines are. An answer repeats its text, and less confident than
    `min_confidence` it gives no label.
    """
    limits = Limits(characters=HUGE, line_bytes=HUGE, waiting_texts=HUGE, deadline_s=FOREVER, texts=PIECE)

    async def infer(chunk: Chunk) -> np.ndarray:
        (found,) = await asyncio.to_thread(answer_all, [chunk])
        if isinstance(found, Exception):
            raise found
        return found

    service = Service(ServeArgs(model=model.name, limits=limits, min_confidence=min_confidence), infer)
    service.model = model
    return asyncio.run(_work(service, lines, top_k, jsonl, out))


async def _work(service: Service, lines: Iterable[str], top_k: int, jsonl: bool, out: IO[str]) -> int:
    asked: dict[int, str] = {}
    faults = 0

    async def body() -> AsyncIterator[bytes]:
        piece: list[bytes] = []
        for number, line in enumerate(lines, 1):
            raw = line.rstrip("\r\n")
            if not jsonl:
                asked[number] = raw
                raw = json.dumps(raw)
            piece.append(raw.encode("utf-8") + b"\n")
            if len(piece) == PIECE:
                yield b"".join(piece)
                piece = []
        yield b"".join(piece)

    async for answers in answer_lines(service, body(), top_k, lambda texts: None):
        for answer in answers.splitlines():
            found: dict[str, Any] = json.loads(answer)
            faults += "error" in found
            text = {} if jsonl else {"text": asked.pop(found["line"])}
            out.write(json.dumps(text | found, ensure_ascii=False) + "\n")
    return faults


def lines_of(file: str) -> Iterable[str]:
    """Open a file of lines in UTF-8, `-` for standard input; what is not UTF-8 becomes a replacement character."""
    if file == "-":
        return sys.stdin
    try:
        return open(file, encoding="utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give a file of lines, or - for stdin") from None
