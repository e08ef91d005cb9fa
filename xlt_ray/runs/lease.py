"""Let one process at a time do the work of a folder, wherever that lies, and let others follow it.

The same command given twice, in two shells or by two jobs, would else train twice in one folder. A lease is a file
`lease-NUMBER.json` in the folder, made by creating a file unless it is there. Its owner writes it anew every few
seconds, with its latest progress. Who takes over from a dead owner creates the file of the next number, which only one
can; an owner that was merely asleep finds that its own is no longer the latest, and stops. (Leases: Gray and Cheriton
1989. The number is the "sequencer" of Burrows 2006, "The Chubby lock service".) A disk and S3 create a file unless it
is there in one step; where a storage looks first and writes then, what is read back afterwards decides.

Death is seen at once where owner and observer are processes of one machine. On other machines an owner is dead that
wrote nothing for `DEAD` seconds of the observer's clock; clocks of two machines are never compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from xlt_ray import durable, interrupts
from xlt_ray.errors import InputError, TrainingError
from xlt_ray.events import Event, OnEvent
from xlt_ray.runs.storage import RunFolder

BEAT = 5.0  # seconds between signs of life
DEAD = 60.0  # seconds without one after which a process of another machine counts as dead
POLL = 1.0  # seconds between looks at another's lease
HERE: set[str] = set()  # tokens of the leases that this process holds

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
    try:
        done = lease.take(on_event, finished)
        if done is None:
            lease.keep()
            durable.sweep(folder.local)
        yield Held(done, on_event if done is not None else lease.telling(on_event), folder, lease)
        if done is None:
            durable.sweep(folder.local)  # of workers that were killed meanwhile
    except BaseException as error:
        lease.release(error)
        raise
    lease.release()


@dataclass
class Lease:
    """The lease of one folder, of which `number` is this process's once it was taken; 0 before."""

    files: Any  # a file system of fsspec, whose root is the folder
    shown: str  # the folder, to be named in messages
    number: int = 0
    taken_over: str = ""  # by whom
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _event: Event | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @classmethod
    def of(cls, folder: RunFolder) -> Lease:
        """Return the lease of a folder, which is not taken yet."""
        return cls(folder.remote or DirFileSystem(str(folder.local), LocalFileSystem()), folder.shown)

    def take(self, on_event: OnEvent, finished: Callable[[], T | None]) -> T | None:
        """Wait until the lease is this process's and return None, or until `finished` finds a result, and return it."""
        watched, reached = Watched(), time.monotonic()
        done = finished()
        while done is None and not self.number:
            try:
                latest = self.latest()
                owner = self._read(latest)
            except Exception as error:  # of any storage; one that is away for a moment ends no wait
                if time.monotonic() - reached > DEAD:
                    raise InputError(f"storage: {self.shown} cannot be read ({error}); try again later") from error
                time.sleep(POLL)
                continue
            reached = time.monotonic()
            if latest and not watched.gone(latest, owner, self.shown):
                watched.show(owner, self.shown, on_event)
                time.sleep(POLL)
            elif (done := finished()) is None and self._create(latest + 1):
                if (done := finished()) is None:  # it may have ended between the two looks
                    self._forget(latest)
            elif done is None:
                time.sleep(POLL / 10)  # another was first
        return done

    def keep(self) -> None:
        """Give signs of life in a thread, until `release`."""
        inside = interrupts.allow()
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

        Raises TrainingError where another process has taken over. Does nothing where the lease was not taken.
        """
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        HERE.discard(self.token)
        if not self.number:
            return
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        with contextlib.suppress(Exception):  # of any storage: the error that ended the work must not be lost
            if error is None or self.taken_over:
                self.files.rm_file(_name(self.number))
            else:
                self._write({"ended": "" if interrupted else f"{error}" or type(error).__name__})
        if self.taken_over:
            raise TrainingError(
                f"{self.shown}: {self.taken_over} has taken this work over, because nothing was heard of this process "
                f"for {DEAD:.0f} s, as when a machine sleeps or its network is away, or the folder was deleted"
            ) from None

    def _beat(self, in_main_thread: bool) -> None:
        count = 0
        while not self._stopped.wait(BEAT):
            count += 1
            with contextlib.suppress(Exception):  # a storage that is away for a moment; who waits is patient for longer
                latest = self.latest()
                owner = self._read(latest)
                if latest != self.number or owner.get("token") != self.token:
                    self.taken_over = _who(owner)
                    if in_main_thread:
                        interrupts.interrupt()
                    return
                self._write({"beat": count, "event": self._event})

    def latest(self) -> int:
        """Return the number of the latest lease, 0 where there is none."""
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
        HERE.add(self.token)
        content = json.dumps(self._facts()).encode()
        try:
            self.files.makedirs("", exist_ok=True)
            if isinstance(self.files.fs, LocalFileSystem):  # whose `pipe_file` looks first and writes then
                with self.files.open(_name(number), "xb") as stream:
                    stream.write(content)
            else:
                self.files.pipe_file(_name(number), content, mode="create")
        except FileExistsError:
            pass
        except Exception as error:  # of any storage; some have an error of their own for a file that is there
            if isinstance(error, FileNotFoundError) and isinstance(self.files.fs, LocalFileSystem):
                return False  # the folder was empty, and somebody who had only asked removed it
            if self.latest() < number:
                where = f"storage: {self.shown} takes no file ({error})"
                raise InputError(f"{where}; give a place that can be written") from None
        # read back, as a request whose answer was lost is repeated, and finds what it has made itself
        self.number = number if self._read(number).get("token") == self.token else 0
        return self.number > 0

    def _write(self, facts: Mapping[str, Any]) -> None:
        self.files.pipe_file(_name(self.number), json.dumps({**self._facts(), **facts}, default=str).encode())

    def _facts(self) -> dict[str, Any]:
        pid = os.getpid()
        who = {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}
        return {**who, "token": self.token}

    def _forget(self, latest: int) -> None:
        for number in range(max(1, latest - 5), latest + 1):
            with contextlib.suppress(Exception):
                self.files.rm_file(_name(number))


@dataclass
class Watched:
    """What an observer has seen of the lease of another process."""

    number: int = 0
    owner: Mapping[str, Any] = field(default_factory=dict)
    since: float = 0.0  # when the last sign of life came, by this process's own clock
    told: Any = None  # what was reported last

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
        """Report who has the lease, and how far it is, where that is news."""
        silent, event = time.monotonic() - self.since, owner.get("event")
        if silent > 3 * BEAT:
            note = f"nothing is heard of {_who(owner)}; if it stays so for {DEAD:.0f} s, this process goes on instead"
            news: Event | None = {"stage": "wait", "note": note}
        elif self.told is None:
            note = f"{shown}: {_who(owner)} does this work already; here is its progress"
            news = {"stage": "wait", "note": note} if owner else None  # a lease that is being written names nobody yet
        else:
            news = dict(event) if isinstance(event, dict) else self.told
        if news and news != self.told:
            on_event(news)
        self.told = news


def _name(number: int) -> str:
    return f"lease-{number:06d}.json"


def _machine() -> str:
    """Return what tells machines, and containers with process ids of their own, apart; empty where nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Return when a process of this machine began, in ticks since the machine did; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _alive(owner: Mapping[str, Any]) -> bool | None:
    """Return whether the owner lives, None where only its signs of life can tell."""
    if not owner.get("machine") or owner["machine"] != _machine():
        return None
    if owner["pid"] == os.getpid():  # a lease that this process could not give back counts for nothing
        return owner["token"] in HERE
    started = _started(int(owner["pid"]))
    return started is not None and started == owner["started"]  # ids of processes are used again


def _who(owner: Mapping[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}" if "pid" in owner else "another process"
