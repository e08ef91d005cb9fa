"""Answer what waits in batches, one at a time."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from serve.replica.model import Chunk

# Share of a batch's time that the next one waits for more: whoever was answered asks again right away, and would else
# come too late for it. A request that was alone, or comes when all is quiet, waits for nobody.
LINGER = 0.1
logger = logging.getLogger("ray.serve")
Found = Sequence[np.ndarray | Exception]  # for each chunk its rows' probabilities, or what is raised to who asked


class Batcher:
    """Answers a chunk together with whatever else waits when the batch before it ends, in the order they came.

    Ray Serve's own batches are made up as requests come, not when there is room for one, so that under a steady load
    each request becomes a batch. `run` blocks, in a thread; `note` is told the chunks of a batch, what was found and
    the seconds it took. A batch has at most `most` tokens, or one chunk with more. Used from one event loop.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Chunk]], Found],
        note: Callable[[Sequence[Chunk], Found, float], None],
        most: int,
    ) -> None:
        self.most, self._run, self._note = most, run, note
        self._waiting: deque[tuple[Chunk, asyncio.Future[np.ndarray]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._quiet = 0.0  # until when the next batch waits for more

    async def __call__(self, chunk: Chunk) -> np.ndarray:
        """Return a chunk's probabilities, (rows, labels), or raise what `run` has for it."""
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((chunk, future))
        if self._task is None or self._task.done():
            # without the context of who happened to come first, whose request Ray would name in every log line
            self._task = asyncio.get_running_loop().create_task(self._work(), context=contextvars.Context())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            if sum(chunk.tokens for chunk, _ in self._waiting) < self.most:
                await asyncio.sleep(max(0.0, self._quiet - time.perf_counter()))
            batch = self._next()
            if not batch:
                continue
            chunks, began = [chunk for chunk, _ in batch], time.perf_counter()
            try:
                results = await asyncio.to_thread(self._run, chunks)
            except Exception as error:
                results = [error] * len(batch)
            now = time.perf_counter()
            self._quiet = now + LINGER * (now - began) if len(batch) > 1 else 0.0
            for (_, future), found in zip(batch, results, strict=True):
                if future.done():  # whoever asked has gone
                    continue
                future.set_exception(found) if isinstance(found, Exception) else future.set_result(found)
            try:
                self._note(chunks, results, now - began)
            except Exception:  # what is counted must not keep those who wait
                logger.exception("a batch could not be counted")

    def _next(self) -> list[tuple[Chunk, asyncio.Future[np.ndarray]]]:
        """Take the first that wait, as many as fit; those whose asker has gone are dropped."""
        batch: list[tuple[Chunk, asyncio.Future[np.ndarray]]] = []
        tokens = 0
        while self._waiting and (not batch or tokens + self._waiting[0][0].tokens <= self.most):
            one = self._waiting.popleft()
            if not one[1].done():
                batch.append(one)
                tokens += one[0].tokens
        return batch
