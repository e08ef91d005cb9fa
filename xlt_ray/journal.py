"""The journal of a search: every mix tried, on disk as soon as it is known, so that a kill loses nothing."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from xlt_ray.selection import Tried


class Journal:
    """Every mix tried, one line each, with the seconds of search that were behind it; read again after a kill."""

    def __init__(self, file: Path, since: float | None = None) -> None:
        """Read what is there; seconds count from `since`, a `time.monotonic()` (default: now)."""
        self.file = file
        self.tried: dict[str, Tried] = {}  # a fine-tuning that went further takes the place of its earlier rungs
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            file.write_bytes(b"".join(whole))  # the line that was being written
        for line in whole:
            record = json.loads(line)
            name = record.pop("name")
            self.tried[name] = Tried(**record)
        before = max((one.seconds for one in self.tried.values()), default=0.0)
        self._began = (time.monotonic() if since is None else since) - before

    def seconds(self) -> float:
        """Give the wall clock of the search, over all sessions, up to the last thing written in each."""
        return time.monotonic() - self._began

    def add(self, name: str, tried: Tried) -> Tried:
        """Write down a result."""
        tried = replace(tried, seconds=self.seconds())
        self.tried[name] = tried
        with self.file.open("ab") as stream:
            stream.write(json.dumps({"name": name, **tried.to_plain()}).encode() + b"\n")
        return tried

    def probes(self) -> list[Tried]:
        """List the mixes screened."""
        return [one for one in self.tried.values() if one.fidelity == "probe"]

    def tuned(self) -> dict[str, Tried]:
        """List the mixes fine-tuned so far by the name of their trial."""
        return {name: one for name, one in self.tried.items() if one.fidelity == "fine_tune"}
