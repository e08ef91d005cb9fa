"""Let one process at a time do the work of a folder, wherever that lies, and let others follow it.

The same command given twice, in two shells or by two jobs, would else train twice in one folder. A lease is a file
`lease-NUMBER.json` in the folder, made by what every storage can do: create a file unless it is there. Its owner writes
it anew every few seconds, with its latest progress. Who takes over from a dead owner creates the file of the next
number, which only one can; so an owner that was merely asleep finds a higher number than its own, and stops. (Leases:
Gray and Cheriton 1989. The number is the "sequencer" of Burrows 2006, "The Chubby lock service".)

Death is seen at once where owner and observer are processes of one machine. On other machines an owner is dead that
wrote nothing for `DEAD` seconds of the observer's clock; clocks of two machines are never compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from xlt_ray.errors import InputError, TrainingError
from xlt_ray.events import Event, OnEvent
from xlt_ray.runs.storage import RunFolder

BEAT = 5.0  # seconds between signs of life
DEAD = 60.0  # seconds without one after which a process of another machine counts as dead
POLL = 1.0  # seconds between looks at another's lease

T = TypeVar("T")


@dataclass
class Held(Generic[T]):
    """What `held` yields: what others have `done` already, else None, and where to report progress of the work."""

    done: T | None
    on_event: OnEvent
    folder: RunFolder
    lease: Lease | None = None

    def upload(self) -> None:
        """Bring a remote folder up to date, unless another process has taken it over."""
        if self.lease is None or not self.lease.taken_over:
            self.folder.upload()


@contextlib.contextmanager
def held(folder: RunFolder, on_event: OnEvent, finished: Callable[[], T | None]) -> Iterator[Held[T]]:
    """Hold the lease of a folder while the block runs; where another process has it, show its progress and wait.

    Nothing is held where `finished` finds a result, before or after waiting. The block is interrupted, and
    TrainingError raised, where another process has taken over, as after a sleep of this machine. Raises TrainingError
    where the process that was followed failed, and InputError where the storage takes no file.
    """
    lease = Lease.of(folder)
    if (done := lease.take(on_event, finished)) is not None:
        yield Held(done, on_event, folder)
        return
    lease.keep()
    try:
        yield Held(None, lease.telling(on_event), folder, lease)
    except BaseException as error:
        lease.release(error)
        raise
    lease.release()


@dataclass
class Lease:
    """The lease of one folder, of which `number` is this process's once it was taken."""

    files: Any  # a file system of fsspec, whose root is the folder
    shown: str  # the folder, to be named in messages
    number: int = 0
    taken_over: str = ""  # by whom
    _event: Event | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @classmethod
    def of(cls, folder: RunFolder) -> Lease:
        """Return the lease of a folder, which is not taken yet."""
        return cls(folder.remote or DirFileSystem(str(folder.local), LocalFileSystem()), folder.shown)

    def take(self, on_event: OnEvent, finished: Callable[[], T | None]) -> T | None:
        """Wait until the lease is this process's and return None, or until `finished` finds a result, and return it."""
        watched = Watched()
        while (done := finished()) is None:
            latest = self._latest()
            owner = self._read(latest)
            if latest == 0 or watched.gone(latest, owner, self.shown):
                if self._create(latest + 1):
                    if (done := finished()) is None:  # it may have ended between the two looks
                        self._forget(latest)
                        return None
                    self._remove(self.number)
                    return done
                continue
            watched.show(owner, self.shown, on_event)
            time.sleep(POLL)
        return done

    def keep(self) -> None:
        """Give signs of life in a thread, until `release`."""
        inside = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._beat, args=(inside,), daemon=True)
        self._thread.start()

    def telling(self, on_event: OnEvent) -> OnEvent:
        """Return `on_event` that keeps what it is told for those who follow."""
        worker = threading.current_thread()

        def tell(event: Event) -> None:
            self._event = {key: value for key, value in event.items() if key != "note"}
            on_event(event)
            if self.taken_over and threading.current_thread() is worker:
                raise KeyboardInterrupt  # `release` says why

        return tell

    def release(self, error: BaseException | None = None) -> None:
        """End the lease: without a trace where the work is done, else with how it ended, for those who follow.

        Raises TrainingError where another process has taken over.
        """
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        if self.taken_over:
            with contextlib.suppress(OSError):
                self._remove(self.number)
            raise TrainingError(
                f"{self.shown}: {self.taken_over} has taken this work over, because nothing was heard of this process "
                f"for {DEAD:.0f} s, as when a machine sleeps or its network is away; it goes on there"
            ) from None
        with contextlib.suppress(OSError):
            if error is None:
                self._remove(self.number)
            else:
                interrupted = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
                self._write(self.number, {"ended": "" if interrupted else f"{error}" or type(error).__name__})

    def _beat(self, in_main_thread: bool) -> None:
        count = 0
        while not self._stopped.wait(BEAT):
            count += 1
            try:
                if (latest := self._latest()) > self.number:
                    self.taken_over = _who(self._read(latest))
                    if in_main_thread:  # wakes it from waiting, which `interrupt_main` does not
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                self._write(self.number, {"beat": count, "event": self._event})
            except OSError:
                continue  # a storage that is away for a moment; those who wait are patient for longer

    def _latest(self) -> int:
        self.files.invalidate_cache()
        try:
            names = [Path(name).name for name in self.files.ls("", detail=False)]
        except FileNotFoundError:
            return 0
        numbers = [name.removeprefix("lease-").removesuffix(".json") for name in names if name.startswith("lease-")]
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def _read(self, number: int) -> Mapping[str, Any]:
        """Return what a lease says, {} where it is gone or being written."""
        try:
            found = json.loads(self.files.cat_file(_name(number)))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _create(self, number: int) -> bool:
        """Create the lease of that number, and return False where another process was first."""
        content = json.dumps(_myself()).encode()
        try:
            self.files.makedirs("", exist_ok=True)
            if isinstance(self.files.fs, LocalFileSystem):  # whose `pipe_file` looks first and writes then
                with self.files.open(_name(number), "xb") as stream:
                    stream.write(content)
            else:
                self.files.pipe_file(_name(number), content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            raise InputError(
                f"storage: {self.shown} takes no file ({error}); give a place that can be written"
            ) from None
        self.number = number
        return True

    def _write(self, number: int, facts: Mapping[str, Any]) -> None:
        self.files.pipe_file(_name(number), json.dumps({**_myself(), **facts}, default=float).encode())

    def _forget(self, latest: int) -> None:
        for number in range(max(1, latest - 5), latest + 1):
            with contextlib.suppress(OSError):
                self._remove(number)

    def _remove(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(_name(number))


@dataclass
class Watched:
    """What an observer has seen of the lease of another process."""

    number: int = 0
    owner: Mapping[str, Any] = field(default_factory=dict)
    since: float = 0.0  # when the last sign of life came, by this process's own clock

    def gone(self, number: int, owner: Mapping[str, Any], shown: str) -> bool:
        """Return whether the owner of a lease is dead, or has ended; raise TrainingError where it failed meanwhile."""
        followed = number == self.number
        if not followed or owner != self.owner:
            self.number, self.owner, self.since = number, owner, time.monotonic()
        if "ended" in owner:
            if followed and owner["ended"]:
                raise TrainingError(
                    f"{shown}: {_who(owner)}, which did this work, failed: {owner['ended']}. "
                    "The same command goes on from where it stopped"
                )
            return True
        alive = _alive(owner)
        return alive is False or (alive is None and time.monotonic() - self.since > DEAD)

    def show(self, owner: Mapping[str, Any], shown: str, on_event: OnEvent) -> None:
        """Report who has the lease, and how far it is."""
        note = f"{shown}: {_who(owner)} does this work already; here is its progress"
        on_event({"stage": "wait", "note": note})
        silent = time.monotonic() - self.since
        if silent > 3 * BEAT:
            note = f"nothing is heard of {_who(owner)}; if it stays so for {DEAD:.0f} s, this process goes on instead"
            on_event({"stage": "wait", "note": note})
        elif isinstance(owner.get("event"), dict):
            on_event(dict(owner["event"]))


def _name(number: int) -> str:
    return f"lease-{number:06d}.json"


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}


def _machine() -> str:
    """Return what tells machines, and containers with process ids of their own, apart; empty where nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> float | None:
    """Return when a process of this machine began, None where there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _alive(owner: Mapping[str, Any]) -> bool | None:
    """Return whether the owner lives, None where only its signs of life can tell."""
    if not owner.get("machine") or owner["machine"] != _machine():
        return None
    started = _started(int(owner["pid"]))
    return started is not None and abs(started - owner["started"]) < 1.0  # seconds; ids of processes are used again


def _who(owner: Mapping[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}" if "pid" in owner else "another process"
