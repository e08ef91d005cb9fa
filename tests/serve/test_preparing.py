"""Requests that wait are prepared together, and what goes wrong with one is that one's alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from serve.replica.preparing import THREADS, TOGETHER, Prepared, Preparing, Unprepared
from xlt_ray.languages.identify import UNKNOWN


class Engine:
    """Cuts a text into its letters, once the gate is open; fails at a text "bad"."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def encode(self, texts: Sequence[str], pairs: Any = None) -> list[np.ndarray]:
        assert self.gate.wait(10)
        if "bad" in texts:
            raise ValueError("bad")
        return [np.array([ord(letter) for letter in text]) for text in texts]


class Watched(Preparing):
    def __init__(self) -> None:
        super().__init__(None)
        self.groups: list[list[Sequence[str]]] = []

    def _prepare(self, group: Sequence[Unprepared]) -> Any:
        self.groups.append([one.texts for one in group])
        return super()._prepare(group)


def run(*requests: Sequence[str], cancel: int | None = None) -> tuple[list[Prepared | BaseException], Watched]:
    """Prepare requests that all come while the first THREADS of them hold every thread."""

    async def ask() -> tuple[list[Prepared | BaseException], Watched]:
        engine: Any = Engine()
        preparing = Watched()
        tasks = [asyncio.create_task(preparing(Unprepared(engine, texts, None, None))) for texts in requests]
        await asyncio.sleep(0.05)
        if cancel is not None:
            tasks[cancel].cancel()
        engine.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True), preparing

    return asyncio.run(ask())


def test_what_waits_is_prepared_together_and_in_order() -> None:
    requests = [[f"first {i}"] for i in range(THREADS)] + [[f"later {i}", "x"] for i in range(5)]
    found, preparing = run(*requests)
    for texts, one in zip(requests, found, strict=True):
        assert isinstance(one, tuple)
        assert ["".join(map(chr, row)) for row in one[0]] == texts and one[1] == [UNKNOWN] * len(texts)
    assert preparing.groups == [[texts] for texts in requests[:THREADS]] + [requests[THREADS:]]


def test_a_thread_takes_only_so_much_at_once() -> None:
    requests = [["x"]] * THREADS + [["y"] * (TOGETHER - 1), ["z"], ["w"] * (3 * TOGETHER), ["v"]]
    _, preparing = run(*requests)
    assert sorted(sum(map(len, group)) for group in preparing.groups) == [1, 1, 1, TOGETHER, 3 * TOGETHER]


def test_one_that_fails_or_is_given_up_leaves_the_others_alone() -> None:
    found, preparing = run(["a"], ["b"], ["bad"], ["gone"], ["c"], cancel=3)
    assert [type(one) for one in found] == [tuple, tuple, ValueError, asyncio.CancelledError, tuple]
    assert ["gone"] not in [texts for group in preparing.groups for texts in group]


@pytest.mark.parametrize("given", [None, ["deu_Latn", None]])
def test_a_language_that_is_given_is_not_guessed(given: Any) -> None:
    class Identifier:
        def guess(self, text: str) -> Any:
            return f"guess of {text}"

    async def ask() -> Prepared:
        engine, identifier = Engine(), Identifier()
        engine.gate.set()
        asked: Any = (engine, ["a", "b"], None, given)
        preparing: Any = Preparing(identifier)  # type: ignore[arg-type]
        found: Prepared = await preparing(Unprepared(*asked))
        return found

    guesses: Any = asyncio.run(ask())[1]
    assert guesses[1] == "guess of b"
    assert guesses[0] == "guess of a" if given is None else (guesses[0].code, guesses[0].confidence) == ("deu_Latn", 1)
