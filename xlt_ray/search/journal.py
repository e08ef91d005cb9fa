"""Keep every mix that a search tried in a journal on disk, so that a kill loses nothing, and report progress."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from xlt_ray.durable import JsonLines, records
from xlt_ray.events import OnEvent
from xlt_ray.search.selection import Judge, Tried, whole_fine_tunings
from xlt_ray.search.space import describe, point_key


class Journal:
    """Every mix tried, one line each, with the seconds of search that were behind it; read again after a kill."""

    def __init__(self, file: Path, since: float | None = None) -> None:
        """Read what is there; seconds count from `since`, a `time.monotonic()` (default: now)."""
        self.file = file
        self.tried: dict[str, Tried] = {}  # a fine-tuning that went further takes the place of its earlier rungs
        for _, record in records(file):
            if record is not None:  # a mix whose line is damaged is tried again
                name = record.pop("name")
                self.tried[name] = Tried(**record)
        before = max((one.seconds for one in self.tried.values()), default=0.0)
        self._began = (time.monotonic() if since is None else since) - before

    @cached_property
    def _lines(self) -> JsonLines:
        return JsonLines(self.file)  # opened with the first result: a search that is refused leaves no journal

    def close(self) -> None:
        """Close the file, which the next result opens again."""
        if "_lines" in self.__dict__:
            self._lines.close()
            del self._lines

    def seconds(self) -> float:
        """Return the wall clock of the search, over all sessions, up to the last thing written in each."""
        return time.monotonic() - self._began

    def add(self, name: str, tried: Tried) -> Tried:
        """Append a result under a name, and return it with the seconds of search behind it."""
        tried = replace(tried, seconds=self.seconds())
        self._lines.append({"name": name, **asdict(tried)})
        self.tried[name] = tried
        return tried

    def probes(self) -> list[Tried]:
        """List the mixes screened."""
        return [one for one in self.tried.values() if one.fidelity == "probe"]

    def tuned(self) -> dict[str, Tried]:
        """List the mixes fine-tuned so far by the name of their trial."""
        return {name: one for name, one in self.tried.items() if one.fidelity == "fine_tune"}


class Progress:
    """Turn results into events for the live table: how many are done and running, and the best so far."""

    def __init__(self, stage: str, total: int, judge: Judge, done: Sequence[Tried], on_event: OnEvent) -> None:
        self.stage, self.total, self.judge, self.on_event = stage, total, judge, on_event
        self.count, self.running = len(done), 0
        self.best: Tried | None = next(iter(judge.ranked(done)), None)
        if done:
            self.report()

    def __call__(self, tried: Tried) -> None:
        self.count += 1
        self.consider(tried)
        self.report()

    def consider(self, tried: Tried) -> None:
        """Keep a result if it is the best so far."""
        value = self.judge.value(tried)
        if value is not None and (self.best is None or value > (self.judge.value(self.best) or 0.0)):
            self.best = tried

    def report(self) -> None:
        """Send the event."""
        event: dict[str, Any] = {"stage": self.stage, "done": self.count, "total": self.total, "running": self.running}
        if self.best is not None:
            event |= {"best": self.judge.value(self.best), "mix": describe(self.best.point)}
        self.on_event(event | {"oracle": self.judge.search.oracle})


class Trials:
    """Write results of Tune into the journal, and report how many trials are done, those before a kill included.

    `notes` are sentences for the report.
    """

    def __init__(self, judge: Judge, journal: Journal, on_event: OnEvent) -> None:
        self.judge, self.journal, self.notes = judge, journal, list[str]()
        self.ended, self.running = set[str](), set[str]()
        # by their points, as Tune may rename a trial after a kill; one that is resumed is no longer among them
        self.earlier = {one.key for one in journal.tuned().values()}
        self.progress = Progress("tune", judge.search.settings.fine_tuning.trials, judge, [], on_event)
        for one in whole_fine_tunings(list(journal.tried.values())):
            self.progress.consider(one)
        self._report()

    def __call__(self, what: str, trial: str, facts: Mapping[str, Any]) -> None:
        """Receive a trial's `start` (with parameters), `result` (measures), `complete`, `recover` (why) or `error`."""
        if what == "start":
            self.running.add(trial)
            self.earlier.discard(point_key(self.judge.search.decode(facts)))
        elif what == "result" and "diverged" in facts:
            self.notes.append(f"a trial diverged and counts as the worst: {facts['diverged']}")
        elif what == "result":
            self._result(facts)
        elif what == "recover":
            why = f" ({facts['why']})" if facts["why"] else ""
            again = f"a trial failed{why} and goes on from its last checkpoint"
            self.progress.on_event({"stage": "tune", "note": again})
        elif what in ("complete", "error"):
            self.running.discard(trial)
            self.ended.add(trial)
        self._report()

    def _result(self, facts: Mapping[str, Any]) -> None:
        epoch, point = int(facts["epoch"]), facts["point"]
        whole = epoch == self.judge.search.base.training.epochs
        measured = {name: facts[name] for name in ("accuracy", "low", "high", "cost")}
        tried = Tried(point, "fine_tune", epochs=epoch, whole=whole, **measured)
        # a resumed trial reports again what the journal has
        known = self.journal.tried.get(name := f"tune-{tried.key}")
        tried = known if known and known.epochs >= epoch else self.journal.add(name, tried)
        if tried.whole:
            self.progress.consider(tried)

    def _report(self) -> None:
        # a trial that Tune had no time to save before a kill counts twice when another takes its place
        self.progress.count = min(len(self.ended) + len(self.earlier), self.progress.total)
        self.progress.running = len(self.running)
        self.progress.report()
