"""Cut texts into pieces and guess their languages, beside the event loop and together for all requests that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from xlt_ray.inference.engine import Engine, Row
from xlt_ray.languages.identify import UNKNOWN, Guess, Identifier

THREADS = 2  # so that a long request's tokenising does not hold up a short one's
TOGETHER = 64  # texts that one of them takes at once

Prepared = tuple[Sequence[Row], list[Guess]]


@dataclass(frozen=True, eq=False)
class Unprepared:
    """Texts of one request before they are cut; `given` are their languages where known."""

    engine: Engine
    texts: Sequence[str]
    pairs: Sequence[str] | None
    given: Sequence[str | None] | None


class Preparing:
    """Prepares requests, each thread all those that wait when it is free; used like a function, from one event loop.

    Under load the event loop and a thread so change over once for several requests, which costs as much as the work.
    """

    def __init__(self, identifier: Identifier | None) -> None:
        self._identifier = identifier
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenise")
        self._busy = 0
        self._waiting: list[tuple[Unprepared, asyncio.Future[Prepared]]] = []

    async def __call__(self, one: Unprepared) -> Prepared:
        """Wait until a request is prepared; raises what went wrong with it."""
        future: asyncio.Future[Prepared] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, future))
        self._begin()
        return await future

    def _begin(self) -> None:
        if self._busy == THREADS or not self._waiting:
            return
        texts, taken = 0, 0
        while taken < len(self._waiting) and (not taken or texts < TOGETHER):
            texts += len(self._waiting[taken][0].texts)
            taken += 1
        group, self._waiting = self._waiting[:taken], self._waiting[taken:]
        self._busy += 1
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._threads, self._prepare, [one for one, future in group if not future.done()])
        job.add_done_callback(lambda done: self._hand_over(group, done.result()))

    def _hand_over(
        self,
        group: Sequence[tuple[Unprepared, asyncio.Future[Prepared]]],
        results: Mapping[Unprepared, Prepared | Exception],
    ) -> None:
        self._busy -= 1
        self._begin()
        for one, future in group:
            if future.done():  # given up meanwhile
                continue
            result = results[one]
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _prepare(self, group: Sequence[Unprepared]) -> Mapping[Unprepared, Prepared | Exception]:
        results: dict[Unprepared, Prepared | Exception] = {}
        for one in group:
            try:
                rows = one.engine.encode(one.texts, one.pairs)
                results[one] = rows, self._guesses(one)
            except Exception as error:
                results[one] = error
        return results

    def _guesses(self, one: Unprepared) -> list[Guess]:
        given = one.given or [None] * len(one.texts)
        guess = self._identifier.guess if self._identifier else lambda text: UNKNOWN
        return [guess(text) if code is None else Guess(code, 1.0) for text, code in zip(one.texts, given, strict=True)]
