"""What a search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xlt_ray.selection import Judge, Tried
from xlt_ray.space import describe
from xlt_ray.train import OnEvent


class Shown:
    """Turn results into events for the live table: how many are done and running, and the best so far."""

    def __init__(self, stage: str, total: int, judge: Judge, done: Sequence[Tried], on_event: OnEvent) -> None:
        self.stage, self.total, self.judge, self.on_event = stage, total, judge, on_event
        self.count, self.running = len(done), 0
        self.best: Tried | None = next(iter(judge.ranked(done)), None)
        if done:
            self.tell()

    def __call__(self, tried: Tried) -> None:
        self.count += 1
        self.look(tried)
        self.tell()

    def look(self, tried: Tried) -> None:
        """Keep a result if it is the best."""
        value = self.judge.value(tried)
        if value is not None and (self.best is None or value > (self.judge.value(self.best) or 0.0)):
            self.best = tried

    def tell(self) -> None:
        """Send the event."""
        event: dict[str, Any] = {"stage": self.stage, "done": self.count, "total": self.total, "running": self.running}
        if self.best is not None:
            event |= {"best": self.judge.value(self.best), "mix": describe(self.best.point)}
        self.on_event(event | {"oracle": self.judge.search.oracle})
