"""What a search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xlt_ray.journal import Journal
from xlt_ray.selection import Judge, Tried, whole_fine_tunings
from xlt_ray.space import describe, point_key
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


class Trials:
    """Listen to Tune: write results into the journal, and tell how many trials are done, those of a killed session too.

    `notes` are sentences for the report.
    """

    def __init__(self, judge: Judge, journal: Journal, on_event: OnEvent) -> None:
        self.judge, self.journal, self.notes = judge, journal, list[str]()
        self.ended, self.running = set[str](), set[str]()
        # by their points, as Tune may name a trial anew after a kill; one that goes on is no longer among them
        self.earlier = {one.key for one in journal.tuned().values()}
        self.show = Shown("tune", judge.search.settings.fine_tuning.trials, judge, [], on_event)
        for one in whole_fine_tunings(list(journal.tried.values())):
            self.show.look(one)
        self._tell()

    def __call__(self, what: str, trial: str, told: Mapping[str, Any]) -> None:
        """Take note of a trial's `start` (told its parameters), `result` (told what it measured) or end."""
        if what == "start":
            self.running.add(trial)
            self.earlier.discard(point_key(self.judge.search.point(told)))
        elif what == "result" and "diverged" in told:
            self.notes.append(f"a trial diverged and counts as the worst: {told['diverged']}")
        elif what == "result":
            self._result(told)
        elif what in ("complete", "error"):
            self.running.discard(trial)
            self.ended.add(trial)
        self._tell()

    def _result(self, told: Mapping[str, Any]) -> None:
        epoch, point = int(told["epoch"]), told["point"]
        whole = epoch == self.judge.search.base.training.epochs
        measured = (told["accuracy"], told["low"], told["high"], 0.0, told["cost"])
        tried = Tried(point, "fine_tune", epoch, whole, *measured)
        # what is known is not written twice
        known = self.journal.tried.get(name := f"tune-{tried.key}")
        tried = known if known and known.epochs >= epoch else self.journal.add(name, tried)
        if tried.whole:
            self.show.look(tried)

    def _tell(self) -> None:
        # a trial that Tune had no time to note before a kill counts twice when another takes its place
        self.show.count = min(len(self.ended) + len(self.earlier), self.show.total)
        self.show.running = len(self.running)
        self.show.tell()
