"""Keep a run's journal of what MLflow should receive, so that a slow or dead server delays it and nothing is lost.

The run appends to `outbox.jsonl`, one JSON record a line, and never waits for a network. `outbox.sent` holds how far
delivery got at every tracking server, and whoever delivers holds `outbox.lock`; `delivery.py` sends. Nothing here
imports mlflow or opens a connection.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from xlt_ray import durable
from xlt_ray.config.masking import masked, public
from xlt_ray.config.sections import TrackingConfig
from xlt_ray.durable import JsonLines
from xlt_ray.errors import InputError
from xlt_ray.tracking.tracking_uri import absolute

FILE = "outbox.jsonl"
LOCK = "outbox.lock"
NAME_LIMIT = 250  # characters MLflow allows in the name of a metric or parameter
ONCE = {"dataset": ("name", "digest"), "model": ("path", "name", "alias")}  # what tells two records of a kind apart
REPEATED = ("open", "artifact", "finish")  # recorded again however often that is asked
Scalar = str | int | float | bool | None
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Outbox:
    """The writing end, held by the driver of a run; `Outbox.open` makes one.

    Every call appends at most one line to a local file and returns. Secrets of URIs are masked in that line, and what
    the file has already is left out of it: a (metric, step), a parameter, a tag with the same value, a dataset, a
    model. So a run that repeats the steps after its last checkpoint leaves no repeated step behind. Lines survive
    kill -9 of the driver; against a power cut, delivery puts the file on disk before it sends anything in it.
    """

    def __init__(self, folder: Path, journal: JsonLines | None, uri: str = "off") -> None:
        self.folder, self.uri = folder, uri
        self._journal = journal  # None: tracking is off
        self._known: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, folder: Path, config: TrackingConfig, run_key: str, run_name: str, parent_key: str | None = None
    ) -> Outbox:
        """Open the journal in a run's folder, new or half-written; raise InputError when it belongs to another run.

        A relative database path in `config.uri` is resolved from the current directory here, before Ray changes the
        directory of its workers. Its secrets stay in this process and the delivery's; none is written.
        """
        folder = Path(folder).absolute()
        if config.uri == "off":
            return cls(folder, None)
        uri = absolute(config.uri)
        if {"'", '"', "`"} & set(run_key):
            raise InputError(f"run key {run_key!r}: MLflow cannot search for quotes; leave them out of the name")
        file, known = folder / FILE, address(folder)
        if known is not None and known["run_key"] != run_key:
            raise InputError(f"{file}: belongs to run {known['run_key']}, not {run_key}; give each run its own folder")
        box = cls(folder, JsonLines(file), uri)
        for _, record in records(folder):
            box._known |= _facts(record)
        box._append(
            "open",
            uri=uri,
            experiment=config.experiment,
            run_key=run_key,
            run_name=run_name,
            parent_key=parent_key,
            pid=os.getpid(),
            flush_seconds=config.flush_seconds,
        )
        return box

    @property
    def on(self) -> bool:
        """Whether anything is recorded at all; False with `tracking.uri: off`."""
        return self._journal is not None

    def params(self, values: Mapping[str, Scalar]) -> None:
        """Record parameters; the first value of each stays."""
        self._append("params", values={clean(key): str(value) for key, value in values.items()})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record what was measured at a step; a metric that already has this step is left as it is.

        NaN and infinities are recorded; MLflow's databases keep an infinity as the largest double of its sign.
        """
        self._append("metrics", step=int(step), values={clean(key): float(value) for key, value in values.items()})

    def tags(self, values: Mapping[str, Scalar]) -> None:
        """Record tags; a later value replaces an earlier one."""
        self._append("tags", values={clean(key): str(value) for key, value in values.items()})

    def artifact(self, path: Path) -> None:
        """Record a file or directory to be uploaded as it is at the time it is sent."""
        self._append("artifact", path=self._inside(path))

    def dataset(self, name: str, source: str, digest: str, profile: Mapping[str, Any], context: str) -> None:
        """Record an input: which corpus, where from, its fingerprint, its sizes, and the use made of it.

        MLflow tells inputs apart by name and digest and drops a second context.
        """
        names = {"name": name[:500], "digest": digest[:36], "context": context}
        self._append("dataset", source=source, profile=dict(profile), **names)

    def model(self, path: Path, name: str, alias: str | None = None, *, pairs: bool = False) -> None:
        """Record a bundle to be logged as the run's model and, once it answers, registered as `name` with an `alias`.

        `pairs` says that inputs are two texts.
        """
        self._append("model", path=self._inside(path), name=name, alias=alias, pairs=pairs)

    def finish(self, status: Status = "FINISHED") -> None:
        """Record how the run ended."""
        self._append("finish", status=status)

    def pending(self) -> int:
        """Count the records not yet in MLflow, those that it refused included."""
        return pending(self.folder) if self.on else 0

    def _inside(self, path: Path) -> str:
        # relative, so that a run folder may be moved to another machine before it is synchronised
        full = Path(path).resolve()
        home = self.folder.resolve()
        return str(full.relative_to(home) if full.is_relative_to(home) else full)

    def _append(self, kind: str, **content: Any) -> None:
        if self._journal is None:
            return
        record = _record(kind, content)
        with self._lock:
            new = {fact: value for fact, value in _facts(record).items() if self._known.get(fact) != value}
            if not new and kind not in REPEATED:
                return
            if "values" in record:
                record["values"] = {key: value for key, value in record["values"].items() if _fact(record, key) in new}
            self._journal.append(record)
            self._known |= new


@dataclass
class Sent:
    """How far delivery of one outbox to one server got: `offset` bytes, but for the records at `failed` (with why)."""

    run_id: str | None = None
    offset: int = 0
    adopted: bool = False  # the MLflow run was there before this outbox, so its steps have to be asked for
    failed: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def load(cls, folder: Path, uri: str) -> Sent:
        """Read the state for one server; unreadable means nothing was sent, which is safe because sending repeats."""
        return cls(**_states(folder).get(masked(uri), {}))

    def save(self, folder: Path, uri: str) -> None:
        """Write the state in one step, so that a kill leaves the old or the new; a deleted run is not made again."""
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        durable.write(folder / "outbox.sent", json.dumps(_states(folder) | {masked(uri): asdict(self)}, indent=1))


def records(folder: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset of the next line, record) from a byte offset on, up to a line that is still being written.

    A line damaged by a power cut comes out as {"kind": "damaged"}.
    """
    for end, record in durable.records(folder / FILE, offset):
        yield end, record if record and "kind" in record else {"kind": "damaged"}


def address(folder: Path) -> dict[str, Any] | None:
    """Return where the outbox of a folder goes: its latest `open` record, with `since`, the time of its first.

    None when there is no outbox. A `moved` record, left by a delivery to another place, changes only what it names.
    """
    latest: dict[str, Any] | None = None
    for _, record in records(folder):
        if record["kind"] == "open":
            latest = record | {"since": latest["since"] if latest else record["time"]}
        elif record["kind"] == "moved" and latest is not None:
            latest |= {key: record[key] for key in ("uri", "experiment") if key in record}
    return latest


def move(folder: Path, **place: str) -> None:
    """Address an outbox to another `uri`, or another `experiment`, from now on; the caller holds its lock."""
    journal = JsonLines(folder / FILE, repair=False)  # a driver may be writing a line
    journal.append(_record("moved", place))
    journal.close()


def waiting(folder: Path, uri: str) -> int:
    """Count the records that no delivery to this server has reached yet."""
    return sum(1 for _ in records(folder, Sent.load(folder, uri).offset))


def pending(folder: Path, uri: str | None = None) -> int:
    """Count the records that are not at a server (default: where the outbox is addressed), refused ones included."""
    where = address(folder)
    if where is None:
        return 0
    uri = uri or str(where["uri"])
    return waiting(folder, uri) + len(Sent.load(folder, uri).failed)


def reason(folder: Path) -> str:
    """Return why records are left: what held delivery up last, and what was refused; '' if unknown."""
    where = address(folder)
    sent = Sent.load(folder, where["uri"]) if where else Sent()
    return "; ".join(filter(None, (sent.error, *sent.failed.values())))


def clean(name: str) -> str:
    """Turn a name into one that MLflow takes for a metric or parameter.

    >>> clean("test/accuracy/swh_Latn"), clean("/F1@5 (mean)//x")
    ('test/accuracy/swh_Latn', 'F1_5 _mean_/x')
    """
    parts = re.sub(r"[^\w./: -]", "_", name).split("/")
    path = "/".join(part for part in parts if part not in ("", ".", "..")) or "_"
    if len(path) <= NAME_LIMIT:
        return path
    return f"{path[: NAME_LIMIT - 11]}-{hashlib.sha256(path.encode()).hexdigest()[:10]}"


def _record(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "time": time.time_ns() // 1_000_000, **public(content)}


def _facts(record: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """Map each fact of a record to what must differ for it to be recorded again: a tag's value, nothing of others."""
    kind = record["kind"]
    if "values" in record:
        return {_fact(record, key): kind != "tags" or value for key, value in record["values"].items()}
    return {(kind, *(record[name] for name in ONCE[kind])): True} if kind in ONCE else {}


def _fact(record: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    return record["kind"], record.get("step"), key


def _states(folder: Path) -> dict[str, Any]:
    try:
        states = json.loads((folder / "outbox.sent").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    # under a whole URI in files of before secrets were left out
    return {masked(uri): state for uri, state in states.items()} if isinstance(states, dict) else {}
