"""Open the folder of a run: a local directory, or a local copy of one at any fsspec URL, which it keeps current."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from xlt_ray import durable, techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.errors import InputError
from xlt_ray.inference import artefact

RESULT = "result.json"  # of a run, written last


class WholeFiles(LocalFileSystem):
    """The local disk, on which a written file appears when it is whole; a kill leaves the one before, or none."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return Draft(Path(path)) if mode == "wb" else super()._open(path, mode, **options)


class Draft(io.BufferedWriter):
    """A file beside the one that it takes the place of when it is closed, unless writing failed."""

    def __init__(self, path: Path) -> None:
        self.path, self.draft, self.failed = path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}"), False
        super().__init__(io.FileIO(self.draft, "wb"))

    def write(self, data: Any) -> int:
        """Write all of the data."""
        try:
            return super().write(data)
        except BaseException:
            self.failed = True
            raise

    def __exit__(self, *error: Any) -> None:
        self.failed = self.failed or error[0] is not None
        self.close()

    def __del__(self) -> None:
        self.failed = True  # whoever wrote it did not come to the end
        with contextlib.suppress(ValueError):  # it was never opened
            self.close()

    def close(self) -> None:
        """Publish the file, or delete it where writing failed."""
        if self.closed:
            return
        try:
            super().close()
        except BaseException:
            self.failed = True
            raise
        finally:
            if self.failed:
                self.draft.unlink(missing_ok=True)
            else:
                os.replace(self.draft, self.path)


@dataclass(frozen=True)
class RunFolder:
    """Where one run writes: `local` always, and the folder `remote` where storage is a URL."""

    local: Path
    remote: DirFileSystem | None = None
    key: str = ""  # of the run or sweep, which is the folder's name wherever it is

    @property
    def shown(self) -> str:
        """The path or URL to print."""
        return str(self.remote.fs.unstrip_protocol(self.remote.path)) if self.remote else str(self.local)

    def checkpoints(self) -> tuple[str, Any]:
        """Return the storage path for Ray Train and Ray Tune, and the pyarrow file system to reach it by."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        path, files = (str(self.local), WholeFiles()) if self.remote is None else (self.remote.path, self.remote.fs)
        return path, PyFileSystem(FSSpecHandler(files))

    def upload(self) -> None:
        """Bring the remote folder up to date with the local one; do nothing where there is no remote."""
        if self.remote is None:
            return
        # in the order they were written, so that what marks the others as whole comes after them
        written = sorted((p.stat().st_mtime_ns, p) for p in self.local.rglob("*") if p.is_file() and p.name[0] != ".")
        for _, file in written:
            self._send(file)

    def _send(self, file: Path) -> None:
        if self.remote is not None:
            name = file.relative_to(self.local)
            self.remote.makedirs(str(name.parent), exist_ok=True)
            self.remote.put_file(str(file), str(name))

    def download(self, *names: str) -> None:
        """Fetch named files that exist remotely and not locally, as when another machine began the run.

        Of a journal, to which lines are only added, the longer one is the newer.
        """
        for name in names:
            file = self.local / name
            if self.remote is None or not self.remote.exists(name):
                continue
            longer = name.endswith(".jsonl") and file.exists() and self.remote.size(name) > file.stat().st_size
            if longer or not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                self.remote.get(name, str(file), recursive=True)

    def remove(self, name: str) -> None:
        """Delete a folder of the run locally and remotely, if it is there."""
        shutil.rmtree(self.local / name, ignore_errors=True)
        if self.remote is not None and self.remote.exists(name):
            self.remote.rm(name, recursive=True)

    def finished(self) -> bool:
        """Return whether the run has ended well; a folder that was made by asking is removed."""
        self.download(RESULT)
        if (self.local / RESULT).is_file():
            return True
        with contextlib.suppress(OSError):
            self.local.rmdir()  # an empty one: the run may be refused yet
        return False

    def identity(self) -> str:
        """Return an id, made at the first call; a run of the same key has another after its folder was deleted."""
        self.download("identity.txt")
        file = self.local / "identity.txt"
        if not file.is_file():
            durable.write(file, uuid.uuid4().hex[:12] + "\n")
            self._send(file)
        return file.read_text(encoding="utf-8").strip()


def open_run(experiment: Experiment, fingerprint: str) -> RunFolder:
    """Open, or make, the folder of an experiment's run on the corpus of that fingerprint; raise as `open_folder`."""
    return open_folder(experiment, key(experiment, fingerprint))


def key(experiment: Experiment, fingerprint: str) -> str:
    """Return the name of an experiment's run: it tells apart what rows, and what files of techniques, it has read."""
    return by_content(experiment).key(fingerprint + techniques.digest(experiment.techniques))


def by_content(experiment: Experiment) -> Experiment:
    """Return an experiment that names a bundle which it begins from, or is the encoder of, by what is in there."""
    if (folder := experiment.network.bundle) is None:
        return experiment
    part = "/encoder" if Path(experiment.network.init).name == "encoder" else ""
    return begun_from(experiment, f"bundle:{artefact.content_digest(folder)}{part}")


def begun_from(experiment: Experiment, init: str) -> Experiment:
    """Return an experiment with another `network.init`."""
    return experiment.model_copy(update={"network": experiment.network.model_copy(update={"init": init})})


def is_url(storage: str) -> bool:
    """Return whether a storage is no folder of this machine's."""
    return "://" in storage and not storage.startswith("file://")


def open_folder(experiment: Experiment, key: str) -> RunFolder:
    """Open, or make, the folder named `key` in an experiment's storage; raise InputError where that cannot be."""
    try:
        if is_url(experiment.storage):
            files, path = fsspec.core.url_to_fs(f"{experiment.storage.rstrip('/')}/{key}")
            # the key leaves storage out, and runs in two places are two runs
            where = hashlib.sha256(experiment.storage.rstrip("/").encode()).hexdigest()[:8]
            local = Path(experiment.corpus.cache_dir).expanduser().absolute() / "runs" / f"{key}-{where}"
            local.mkdir(parents=True, exist_ok=True)
            return RunFolder(local, DirFileSystem(path, files), key)
        local = Path(experiment.storage.removeprefix("file://")).expanduser().absolute() / key
        local.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"storage: {experiment.storage!r} cannot be used ({error}); give a directory or an fsspec URL"
        ) from None
    return RunFolder(local, key=key)
