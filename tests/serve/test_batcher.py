"""What is answered together: all that waits, in order, within the limit, and nobody's fault is another's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from serve.replica.batcher import LINGER, Batcher, Found
from serve.replica.model import Chunk


@dataclass(frozen=True)
class Piece:
    """As much of a chunk as a batcher looks at."""

    name: str
    tokens: int = 1


class Engine:
    """Answers with the length of a name, after it was let go; a name of `bad...` raises."""

    def __init__(self, free: bool = True) -> None:
        self.batches: list[list[str]] = []
        self.noted: list[tuple[int, float]] = []
        self.go = threading.Event()
        if free:
            self.go.set()

    def run(self, chunks: Sequence[Chunk]) -> Found:
        names = [cast(Any, one).name for one in chunks]
        self.batches.append(names)
        assert self.go.wait(10)
        if "broken" in names:
            raise OSError("broken")
        return [ArithmeticError(name) if name.startswith("bad") else np.array([len(name)]) for name in names]

    def note(self, chunks: Sequence[Chunk], results: Found, seconds: float) -> None:
        self.noted.append((len(chunks), seconds))

    def batcher(self, most: int = 100) -> Batcher:
        return Batcher(self.run, self.note, most)


def ask(batcher: Batcher, name: str, tokens: int = 1) -> asyncio.Task[np.ndarray]:
    return asyncio.get_running_loop().create_task(cast(Any, batcher(cast(Any, Piece(name, tokens)))))


async def begun(engine: Engine) -> None:
    while not engine.batches:
        await asyncio.sleep(0.001)


def test_whatever_came_during_a_batch_is_the_next_one() -> None:
    engine = Engine(free=False)

    async def play() -> list[np.ndarray]:
        batcher = engine.batcher()
        tasks = [ask(batcher, "first")]
        await begun(engine)
        for i in range(20):  # one by one, as under a steady load, which Ray's own batches make batches of one of
            tasks.append(ask(batcher, "x" * (i + 1)))
            await asyncio.sleep(0.001)
        engine.go.set()
        return await asyncio.gather(*tasks)

    found = asyncio.run(play())
    assert engine.batches == [["first"], ["x" * (i + 1) for i in range(20)]]
    assert [int(one[0]) for one in found] == [5, *range(1, 21)]
    assert [count for count, _ in engine.noted] == [1, 20]


def test_a_batch_is_cut_where_the_tokens_end_and_a_large_chunk_goes_alone() -> None:
    engine = Engine(free=False)

    async def play() -> None:
        batcher = engine.batcher(most=10)
        tasks = [ask(batcher, "first")]
        await begun(engine)
        tasks += [ask(batcher, name, tokens) for name, tokens in (("a", 6), ("b", 4), ("c", 5), ("d", 99), ("e", 1))]
        await asyncio.sleep(0.01)
        engine.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(play())
    assert engine.batches == [["first"], ["a", "b"], ["c"], ["d"], ["e"]]


def test_a_fault_is_told_to_those_it_concerns_and_the_next_batch_runs() -> None:
    engine = Engine()

    async def play() -> list[Any]:
        batcher = engine.batcher()
        several = await asyncio.gather(*(ask(batcher, n) for n in ("good", "bad1", "fine")), return_exceptions=True)
        broken = await asyncio.gather(*(ask(batcher, n) for n in ("one", "broken")), return_exceptions=True)
        return [*several, *broken, await ask(batcher, "after")]

    good, bad, fine, *broken, after = asyncio.run(play())
    assert (int(good[0]), int(fine[0]), int(after[0])) == (4, 4, 5)
    assert isinstance(bad, ArithmeticError) and all(isinstance(one, OSError) for one in broken)


def test_who_has_gone_is_not_computed_for() -> None:
    engine = Engine(free=False)

    async def play() -> None:
        batcher = engine.batcher()
        first = ask(batcher, "first")
        await begun(engine)
        gone, here = ask(batcher, "gone"), ask(batcher, "here")
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        first.cancel()  # and one that goes while it is computed leaves the others their answers
        engine.go.set()
        await here
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(play())
    assert engine.batches == [["first"], ["here"]]


@pytest.mark.parametrize(("pause", "waits"), [(0.0, True), (0.3, False)])
def test_a_request_waits_for_others_after_a_batch_and_for_nobody_when_all_is_quiet(pause: float, waits: bool) -> None:
    engine = Engine(free=False)

    async def play() -> float:
        batcher = engine.batcher()
        tasks = [ask(batcher, name) for name in ("a", "b")]
        await begun(engine)
        await asyncio.sleep(2)  # so a tenth of it is long beside what all else takes
        engine.go.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(pause)
        began = time.perf_counter()
        await ask(batcher, "later")
        return time.perf_counter() - began

    took = asyncio.run(play())
    assert engine.batches == [["a", "b"], ["later"]]
    assert (took > 0.5 * LINGER * engine.noted[0][1]) is waits


def test_nobody_waits_where_a_full_batch_is_there() -> None:
    engine = Engine(free=False)

    async def play() -> float:
        batcher = engine.batcher(most=2)
        tasks = [ask(batcher, name) for name in "abcd"]
        await begun(engine)
        await asyncio.sleep(2)
        began = time.perf_counter()
        engine.go.set()
        await asyncio.gather(*tasks)
        return time.perf_counter() - began

    took = asyncio.run(play())
    assert engine.batches == [["a", "b"], ["c", "d"]]
    assert took < 0.5 * LINGER * engine.noted[0][1]


def test_what_cannot_be_counted_is_answered_and_so_is_who_waits() -> None:
    engine = Engine(free=False)

    def note(chunks: Sequence[Chunk], results: Found, seconds: float) -> None:
        raise OSError("no telemetry")

    async def play() -> list[np.ndarray]:
        batcher = Batcher(engine.run, note, 100)
        tasks = [ask(batcher, "first")]
        await begun(engine)
        tasks.append(ask(batcher, "second"))
        await asyncio.sleep(0.01)
        engine.go.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), 5)

    assert [int(one[0]) for one in asyncio.run(play())] == [5, 6]
