"""MLflow's tracking server and PostgreSQL below it, on 127.0.0.1, for tests that kill them and start them again."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ray_runs import free_ports, offspring, until


def healthy(url: str) -> bool:
    """Return whether a tracking server answers at an address."""
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"{url}/health", timeout=5).read() == b"OK")
    return False


@dataclass
class TrackingServer:
    """A tracking server that keeps its port from one start to the next; `url` is its address."""

    folder: Path
    store: str
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.store, "--artifacts-destination", str(self.folder / "files")]
        command += ["--workers", "1", *self.options]
        log = self.folder / "server.log"
        with log.open("a") as out:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                # seven processes more for jobs of MLflow's own, which nobody here gives it
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        until(self._up, "the tracking server", 120)

    def _up(self) -> bool:
        assert self.process and self.process.poll() is None, (self.folder / "server.log").read_text()
        return healthy(self.url)

    def kill(self) -> None:
        """Kill it and its workers with -9."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @contextlib.contextmanager
    def running(self) -> Iterator[TrackingServer]:
        try:
            self.start()
            yield self
        finally:
            self.kill()


PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)  # as Debian installs it


@dataclass
class Postgres:
    """A PostgreSQL with a database of its own; `uri` is what MLflow wants of it."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    user: str = "postgres"  # PostgreSQL refuses to run as root

    @property
    def uri(self) -> str:
        return self._uri("xlt")

    def _uri(self, name: str) -> str:
        return f"postgresql://xlt@127.0.0.1:{self.port}/{name}"

    def _call(self, program: str, *arguments: str) -> None:
        assert PROGRAMS
        command = [str(PROGRAMS / program), *arguments]
        other = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid} if os.getuid() == 0 else {}
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=300, **other)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr

    def make(self) -> None:
        """Make the database, in a folder of its own, and start it."""
        self.folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(self.folder, self.user, self.user)
        self._call("initdb", "--pgdata", str(self.folder), "--username=xlt", "--auth=trust", "--no-sync")
        self.start()
        self.create("xlt")

    def create(self, name: str) -> str:
        """Create an empty database, and return what MLflow wants of it."""
        self._call("createdb", "--host=127.0.0.1", f"--port={self.port}", "--username=xlt", name)
        return self._uri(name)

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        log = str(self.folder / "log")
        self._call("pg_ctl", "--pgdata", str(self.folder), "--log", log, "-o", options, "-w", "start")

    def kill(self) -> None:
        """Kill it with -9, every process of it."""
        pid = int((self.folder / "postmaster.pid").read_text().split()[0])
        family = offspring(pid)
        os.kill(pid, signal.SIGKILL)
        for process in family:
            process.kill()
        until(lambda: not any(one.now() for one in family), "the end of PostgreSQL")

    def stop(self) -> None:
        with contextlib.suppress(AssertionError):  # it was killed already
            self._call("pg_ctl", "--pgdata", str(self.folder), "-m", "immediate", "-w", "stop")

    @contextlib.contextmanager
    def running(self) -> Iterator[Postgres]:
        try:
            self.make()
            yield self
        finally:
            self.stop()
