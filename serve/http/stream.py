"""Answer a stream of JSON lines while it arrives: for bulk work, which waits where a request would be refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serve.replica.model import Question, Wanted
from serve.replica.refusals import Refusal, unfit
from serve.replica.service import Service, shown
from xlt_ray.languages import codes as language_codes

KEYS = {"text", "pair", "language", "id"}
WINDOW_BYTES = 8192  # of lines asked at once: a second or two of work, behind which others' requests may have to wait


@dataclass(frozen=True)
class Line:
    """One line asked: what to answer, or why not."""

    number: int
    text: str = ""
    pair: str | None = None
    language: str | None = None
    id: Any = None
    fault: str = ""


async def answer_lines(
    service: Service,
    body: AsyncIterator[bytes],
    spend: Callable[[int], None],
    wanted: Wanted,
) -> AsyncIterator[bytes]:
    """Yield a line of JSON for every line of the body, in order, several at once, as soon as they are answered.

    `spend` takes lines from the client's allowance; where it is used up, the stream waits until it is not.
    """
    number = 0
    async for lines in _pieces(body, service.args.limits.line_bytes):
        for window in _windows(lines, service):
            read = [parse(raw, number + i, service) for i, raw in enumerate(window, 1) if raw.strip()]
            number += len(window)
            answers = await _answered(service, read, spend, wanted)
            if answers:
                yield "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers).encode()
            await asyncio.sleep(0)  # a turn for others: nothing above waits where all lines are at fault


async def _pieces(body: AsyncIterator[bytes], limit: int) -> AsyncIterator[list[bytes]]:
    """Cut a body into whole lines; of a line over the limit only its first bytes are kept, which is one too many."""
    rest = b""
    async for piece in body:
        *whole, rest = (rest + piece).split(b"\n")
        if whole:
            yield whole
        rest = rest[: limit + 1]
    if rest.strip():
        yield [rest]


def _windows(lines: Sequence[bytes], service: Service) -> Iterator[Sequence[bytes]]:
    most, bytes_ = service.args.limits.texts, WINDOW_BYTES // service.rows_a_text
    start = size = 0
    for i, line in enumerate(lines):
        if i > start and (i - start == most or size + len(line) > bytes_):
            yield lines[start:i]
            start, size = i, 0
        size += len(line)
    yield lines[start:]


def parse(raw: bytes, number: int, service: Service) -> Line:
    """Read one line; whatever is wrong with it comes back as `fault`."""
    limits = service.args.limits
    if len(raw) > limits.line_bytes:
        return Line(number, fault=f"longer than {limits.line_bytes} bytes")
    try:
        found = json.loads(raw.decode("utf-8-sig"))  # of bytes, json would read UTF-16 as well
        data = {"text": found} if isinstance(found, str) else found
        json.dumps(data, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return Line(number, fault="not JSON in UTF-8")
    if not isinstance(data, dict) or not isinstance(data.get("text"), str):
        return Line(number, fault='neither a string nor {"text": "..."}')
    id_ = data.get("id")
    if not isinstance(id_, str | int | float | None) or len(str(id_)) > 1000:
        return Line(number, fault="id is a string or a number, of at most 1000 characters")
    if strange := sorted(set(data) - KEYS):
        return Line(number, id=id_, fault=f"unknown key {strange[0]!a}; known are {', '.join(sorted(KEYS))}")
    pair, code = data.get("pair"), data.get("language")
    if any(value is not None and not isinstance(value, str) for value in (pair, code)):
        return Line(number, id=id_, fault="pair and language are strings")
    if max(len(data["text"]), len(pair or "")) > limits.characters:
        return Line(number, id=id_, fault=f"a text longer than {limits.characters} characters")
    # cut, since reading takes time by the square of the length
    language = None if code is None else language_codes.read(code[:41])
    if code is not None and (language is None or len(code) > 40):
        return Line(number, id=id_, fault=f"{code[:41]!a} is not a language code")
    if service.ready().engine.words is not None and not data["text"].strip():
        return Line(number, id=id_, fault="empty: there is no word to tag")
    return Line(number, data["text"], pair, language, id_)


async def _answered(
    service: Service, lines: Sequence[Line], spend: Callable[[int], None], wanted: Wanted
) -> list[dict[str, Any]]:
    results: dict[int, dict[str, Any]] = {line.number: {"error": line.fault} for line in lines if line.fault}
    sound = [line for line in lines if not line.fault]
    for paired in (False, True):
        mine = [line for line in sound if (line.pair is not None) is paired]
        if not mine:
            continue
        texts, pairs = [line.text for line in mine], [line.pair or "" for line in mine] if paired else None
        try:
            _refuse_other_kind(service, paired)
            await _spent(spend, len(mine))
            question = Question(texts, pairs, [line.language for line in mine])
            answer = await service.classify(question, min_confidence=wanted.min_confidence, patient=True)
        except Refusal as refusal:
            results |= {line.number: {"error": refusal.message} for line in mine}
            continue
        service.follow_up(answer)
        for line, result in zip(mine, shown(answer, wanted.top_k, wanted.readings), strict=True):
            results[line.number] = result | {"model_version": answer.model.version}
    ids = {line.number: {"id": line.id} for line in lines if line.id is not None}
    return [{"line": line.number, **ids.get(line.number, {}), **results[line.number]} for line in lines]


def _refuse_other_kind(service: Service, paired: bool) -> None:
    wanted = service.ready().artefact.pairs
    if paired is not wanted:
        kind = 'pairs of texts; a line is {"text": "...", "pair": "..."}' if wanted else 'one text; leave out "pair"'
        raise unfit("pair", f"this model classifies {kind}")


async def _spent(spend: Callable[[int], None], texts: int) -> None:
    while True:
        try:
            spend(texts)
            return
        except Refusal as refusal:
            if refusal.retry_after is None:
                raise
            await asyncio.sleep(refusal.retry_after)
