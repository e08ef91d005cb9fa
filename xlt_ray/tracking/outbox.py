"""A run's journal of what MLflow is to be told, so that a server that is slow or down delays and loses nothing.

The run appends to `outbox.jsonl`, one JSON record a line, and never waits for a network. `outbox.sent` says how far
delivery got at every tracking server, and whoever delivers holds `outbox.lock`; `delivery.py` sends. Nothing here
imports mlflow or opens a connection.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from xlt_ray.config.experiment import TrackingConfig
from xlt_ray.config.masking import masked, public
from xlt_ray.errors import InputError
from xlt_ray.tracking.tracking_uri import absolute

FILE = "outbox.jsonl"
NAME_LIMIT = 250  # characters MLflow allows in the name of a metric or parameter
Scalar = str | int | float | bool | None
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Outbox:
    """The writing end, held by the driver of a run; `Outbox.open` makes one.

    Every call appends at most one line to a local file and returns. What is in the file already is not written again:
    a (metric, step), a parameter, a tag with the same value, a dataset, a model. So a run that repeats the steps after
    its last checkpoint leaves no repeated step behind. Lines survive kill -9 of the driver; surviving a power cut is
    the deliverer's care, which puts the file on disk before it tells a server anything in it.
    """

    def __init__(self, folder: Path, stream: IO[bytes] | None, uri: str = "off") -> None:
        self.folder, self.uri = folder, uri
        self._stream = stream  # None: tracking is off
        self._known: set[tuple[Any, ...]] = set()
        self._tags: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, folder: Path, config: TrackingConfig, run_key: str, run_name: str, parent_key: str | None = None
    ) -> Outbox:
        """Start or take up the journal in a run's folder; raise InputError when it belongs to another run.

        A relative database path in `config.uri` is meant from the current directory, so it is fixed here, before Ray
        changes the directory of its workers. Its secrets stay in this process and the delivery's; none is written.
        """
        folder = Path(folder).absolute()
        if config.uri == "off":
            return cls(folder, None)
        uri = absolute(config.uri)
        if {"'", '"', "`"} & set(run_key):
            raise InputError(f"run key {run_key!r}: MLflow cannot search for quotes; leave them out of the name")
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / FILE
        _repair(file)
        known = address(folder)
        if known is not None and known["run_key"] != run_key:
            raise InputError(f"{file}: belongs to run {known['run_key']}, not {run_key}; give each run its own folder")
        box = cls(folder, file.open("ab", buffering=0), uri)
        for _, record in records(folder, 0):
            box._remember(record)
        box._append(
            "open",
            uri=masked(uri),
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
        return self._stream is not None

    def params(self, values: Mapping[str, Scalar]) -> None:
        """Record parameters; the first value of each stays."""
        given = {clean(key): masked(str(value)) for key, value in values.items()}
        self._append("params", values={key: text for key, text in given.items() if ("param", key) not in self._known})

    def metrics(self, values: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        """Record what was measured at a step; a metric that already has this step is left as it is.

        NaN and infinities are recorded; MLflow's databases keep an infinity as the largest double of its sign.
        """
        step = int(step)
        given = {clean(key): float(value) for key, value in values.items()}
        fresh = {key: value for key, value in given.items() if ("metric", key, step) not in self._known}
        self._append("metrics", time_ms, step=step, values=fresh)

    def tags(self, values: Mapping[str, Scalar]) -> None:
        """Record tags; a later value replaces an earlier one."""
        given = {clean(key): masked(str(value)) for key, value in values.items()}
        self._append("tags", values={key: text for key, text in given.items() if self._tags.get(key) != text})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or directory to be uploaded below `folder`, as it is at the time it is sent."""
        self._append("artifact", path=self._inside(path), folder=folder)

    def dataset(
        self,
        name: str,
        source: str,
        digest: str,
        profile: Mapping[str, Any],
        context: str,
        schema: Mapping[str, str] | None = None,
    ) -> None:
        """Record an input: which corpus, where from, its fingerprint, its sizes, and the use made of it.

        `schema` maps columns to MLflow types. MLflow tells inputs apart by name and digest and drops a second context.
        """
        names = {"name": name[:500], "digest": digest[:36], "context": context}
        self._append("dataset", source=masked(source), schema=dict(schema or {}), profile=dict(profile), **names)

    def model(
        self,
        path: Path,
        name: str | None = None,
        alias: str | None = None,
        *,
        pairs: bool = False,
        loader: str = "xlt_ray.bundle",
    ) -> None:
        """Record a bundle to be logged as the run's model and, once it answers, registered as `name` with an `alias`.

        `pairs` says that inputs are two texts. `loader` is the module whose `_load_pyfunc` opens the bundle; its top
        package travels with the model.
        """
        if alias and not name:
            raise InputError(f"tracking.alias: {alias!r} needs a registered model; set tracking.register_as")
        self._append("model", path=self._inside(path), name=name, alias=alias, pairs=pairs, loader=loader)

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

    def _append(self, kind: str, time_ms: int | None = None, /, **content: Any) -> None:
        if self._stream is None or content.get("values") == {}:
            return
        record = {"kind": kind, "time": time_ms if time_ms is not None else time.time_ns() // 1_000_000, **content}
        with self._lock:
            if kind in ("dataset", "model") and _once(record) in self._known:
                return
            _write(self._stream, record)
            self._remember(record)

    def _remember(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind == "params":
            self._known.update(("param", key) for key in record["values"])
        elif kind == "metrics":
            self._known.update(("metric", key, record["step"]) for key in record["values"])
        elif kind == "tags":
            self._tags.update(record["values"])
        elif kind in ("dataset", "model"):
            self._known.add(_once(record))


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
        """Write the state in one step, so that a kill leaves the old or the new one."""
        draft = folder / f"outbox.sent.{os.getpid()}"
        draft.write_text(json.dumps(_states(folder) | {masked(uri): asdict(self)}, indent=1), encoding="utf-8")
        draft.replace(folder / "outbox.sent")


def records(folder: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset of the next line, record) from a byte offset on, up to a line that is still being written.

    A line damaged by a power cut comes out as {"kind": "damaged"}.
    """
    with (folder / FILE).open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, _parse(line)


def address(folder: Path) -> dict[str, Any] | None:
    """Say where the outbox of a folder goes: its latest `open` record, with `since`, the time of its first.

    None when there is no outbox. A `moved` record, left by a delivery to another place, changes only what it names.
    """
    if not (folder / FILE).is_file():
        return None
    latest: dict[str, Any] | None = None
    for _, record in records(folder, 0):
        if record["kind"] == "open":
            latest = record | {"since": latest["since"] if latest else record["time"]}
        elif record["kind"] == "moved" and latest is not None:
            latest |= {key: record[key] for key in ("uri", "experiment") if key in record}
    return latest


def move(folder: Path, **place: str) -> None:
    """Address an outbox to another `uri`, or another `experiment`, from now on; the caller holds its lock."""
    with (folder / FILE).open("ab", buffering=0) as stream:
        _write(stream, {"kind": "moved", "time": time.time_ns() // 1_000_000} | public(place))


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
    """Say why the records that are left are left: what held delivery up last, else what was refused; '' if unknown."""
    where = address(folder)
    sent = Sent.load(folder, where["uri"]) if where else Sent()
    return "; ".join(filter(None, (sent.error, *sent.failed.values())))


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file against other processes and yield whether it was had; it is freed when a process dies."""
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


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


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    return record if isinstance(record, dict) and "kind" in record else {"kind": "damaged"}


def _once(record: Mapping[str, Any]) -> tuple[Any, ...]:
    fields = ("name", "digest") if record["kind"] == "dataset" else ("path", "name", "alias")
    return (record["kind"], *(record[key] for key in fields))


def _write(stream: IO[bytes], record: Mapping[str, Any]) -> None:
    line = json.dumps(record, default=str).encode() + b"\n"
    before = os.fstat(stream.fileno()).st_size
    if stream.write(line) != len(line):
        os.ftruncate(stream.fileno(), before)
        raise OSError(f"{getattr(stream, 'name', FILE)}: the disk is full; free space and run the same command again")


def _repair(file: Path) -> None:
    """Cut off the unfinished last line that kill -9 of the writer leaves."""
    if not file.is_file():
        return
    with file.open("r+b") as stream:
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            stream.truncate(whole)


def _states(folder: Path) -> dict[str, Any]:
    try:
        states = json.loads((folder / "outbox.sent").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    # under a whole URI in files of before secrets were left out
    return {masked(uri): state for uri, state in states.items()} if isinstance(states, dict) else {}
