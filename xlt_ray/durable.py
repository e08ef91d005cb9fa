"""What a kill leaves whole: files published in one step, appended to by line, locked; and what it leaves behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")


def cache_folder(*parts: str) -> Path:
    """Return the folder of what can be made again: `~/.cache/xlt_ray` on Linux, unless XDG_CACHE_HOME is set."""
    return platformdirs.user_cache_path("xlt_ray").joinpath(*parts)


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """Yield a free path beside `path`; the file or folder made there takes the place of `path` when the block ends.

    Readers see the old content or the new, never a part, and a block that raises changes nothing. A folder that is
    there already stays: folders are named by what is in them, so another process that was first made the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        yield draft
        try:
            draft.replace(path)
        except OSError:
            if not (draft.is_dir() and path.is_dir()):
                raise
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def write(file: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: after a kill or a power cut the old content is there, or the new."""
    with publishing(file) as draft, draft.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files and their names, in hexadecimal digits."""
    if not path.is_dir():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(path).as_posix()}\0{digest(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def drafts(folder: Path) -> list[Path]:
    """List files and folders that were being written, by `publishing` or through `runs.storage.WholeFiles`."""
    return [path for path in folder.rglob(".*") if DRAFT.fullmatch(path.name)]


def sweep(folder: Path) -> None:
    """Remove the drafts of processes that have died from a folder in which nobody else writes.

    Not those of an outbox, whose courier outlives the process that it sends for.
    """
    for draft in drafts(folder):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        elif not draft.name.startswith(".outbox"):
            draft.unlink(missing_ok=True)


def seal(file: Path) -> None:
    """Note the digest of a finished file of a cache beside it, for `sealed`."""
    write(file.with_name(f"{file.name}.sha256"), digest(file))


def sealed(file: Path) -> bool:
    """Return whether a file is there as `seal` found it: a part of a table of words would be another, shorter table."""
    try:
        return file.with_name(f"{file.name}.sha256").read_text(encoding="utf-8") == digest(file)
    except (FileNotFoundError, ValueError):
        return False


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file against other processes and yield whether it was free; a process that dies frees its locks."""
    lock = FileLock(file, fallback_to_soft=False)  # a file system without locks is an error, not a guess
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary folder and remove it at the end; first remove what killed processes have left of theirs.

    Beside each lies a file that its process holds locked. Where the lock is free nobody is there any more.
    """
    place = Path(tempfile.gettempdir())
    for lock in place.glob(f"xlt-{'[0-9a-f]' * 8}.lock"):
        # what somebody else put there says nothing; OSError: the other was quicker
        with suppress(OSError):
            if lock.lstat().st_uid == os.geteuid() and not lock.is_symlink():
                with locked(lock, wait=False) as free:
                    if free:
                        _remove(lock)
    lock = place / f"xlt-{uuid.uuid4().hex[:8]}.lock"
    with ExitStack() as stack:
        with suppress(OSError):  # no locks there: nobody removes it but its own process
            stack.enter_context(locked(lock))
        try:
            lock.with_suffix("").mkdir(mode=0o700)
            yield lock.with_suffix("")
        finally:
            _remove(lock)


def _remove(lock: Path) -> None:
    folder = lock.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():  # else the next one tries again
        lock.unlink(missing_ok=True)


class JsonLines:
    """A journal: one JSON record a line, appended in one write, so that a kill loses at most the line being written."""

    def __init__(self, file: Path, repair: bool = True) -> None:
        """Open a journal to append to it; `repair` cuts off the unfinished line that a killed writer left."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._stream = file.open("ab", buffering=0)
        content = file.read_bytes() if repair else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # a whole file is not touched: another process may append to it at this moment
            self._stream.truncate(whole)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record; raise OSError, with the journal as it was, where the disk is full."""
        line = json.dumps(record, default=str).encode() + b"\n"
        before = os.fstat(self._stream.fileno()).st_size
        if self._stream.write(line) != len(line):
            os.ftruncate(self._stream.fileno(), before)
            raise OSError(errno.ENOSPC, "the disk is full; free space and run the same command again", str(self.file))

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def records(file: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (offset of the next line, record) of a journal from a byte offset on; nothing where there is no file.

    A line still being written ends it. A line that a power cut damaged comes out as None.
    """
    if not file.is_file():
        return
    with file.open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, _parse(line)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
