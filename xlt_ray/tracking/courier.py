"""Send outboxes to MLflow: in the background of a run (`start`) or afterwards (`sync`).

Delivery is a process of its own at low priority. Importing mlflow and creating a fresh database cost seconds of
CPU, and a server that accepts a request and never answers cannot be interrupted in a thread; a process can be killed at
any moment, because all it does may be done again. `delivery.py` does the sending.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from xlt_ray import durable
from xlt_ray.config.masking import masked
from xlt_ray.errors import InputError
from xlt_ray.tracking import outbox as journal
from xlt_ray.tracking.delivery import Delivery, Unreachable
from xlt_ray.tracking.mlflow_run import Refused
from xlt_ray.tracking.outbox import Outbox
from xlt_ray.tracking.tracking_uri import absolute, whole

NICENESS = 10  # a tenth of a core that training wants too, for the few seconds that delivery needs
POLL_S = 2.0  # between two looks at a growing outbox
LONGEST_PAUSE_S = 60.0  # between two attempts at a server that does not answer
ATTEMPTS = 6  # of `sync` at one outbox, as long as its server answers


class Sender:
    """A background delivery. Nothing has to be done with it but `close`; if the driver dies it finishes by itself."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.process = _launch(outbox) if outbox.on else None

    def close(self, timeout_s: float) -> int:
        """Wait at most timeout_s until all is in MLflow, end the delivery, and return how many records are not."""
        deadline = time.monotonic() + timeout_s
        process, self.process = self.process, None
        crashed = process is not None and _finish(process, timeout_s)
        if crashed and self._outbox.pending() and time.monotonic() < deadline:
            process = _launch(self._outbox)  # it may have been killed for memory, which there is now more of
            if process is not None:
                _finish(process, deadline - time.monotonic())
        return self._outbox.pending()


def start(outbox: Outbox) -> Sender:
    """Deliver an outbox in the background from now on. Call it before Ray starts, while a core is idle."""
    return Sender(outbox)


def sync(
    folders: Iterable[Path],
    uri: str | None = None,
    report: Callable[[str], None] = print,
    experiment: str | None = None,
    give_up: bool = False,
) -> int:
    """Deliver what is pending in every outbox below these folders and return the number of records still left.

    With a `uri` everything ever recorded goes there, and stays addressed there; so it is with an `experiment`, for what
    is pending. What could not be delivered is reported with its reason and kept, or with `give_up` forgotten where the
    server refuses it.
    """
    uri = absolute(uri, "--uri") if uri else None
    if experiment is not None and not experiment.strip():
        raise InputError("--experiment: empty; name one, such as xlt")
    found = sorted({file.parent.absolute() for folder in folders for file in Path(folder).rglob(journal.FILE)})
    due = [folder for folder in found if journal.pending(folder, uri)]
    if not due:
        return 0
    command = [*_command(), *(["--uri", masked(uri)] if uri else []), *(["--give-up"] if give_up else [])]
    command += [*(["--experiment", experiment] if experiment else []), *map(str, due)]
    with (
        tempfile.TemporaryFile("w+") as noise,
        subprocess.Popen(
            command, env=_environment(uri), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=noise, text=True
        ) as process,
    ):
        for line in process.stdout or ():
            report(line.rstrip("\n"))
        if process.wait():
            noise.seek(0)
            report(masked(f"delivery stopped with status {process.returncode}:\n{noise.read()[-2000:]}"))
    return sum(journal.pending(folder, uri) for folder in due)


def _command() -> list[str]:
    return [sys.executable, "-P", "-m", "xlt_ray.tracking.courier"]


def _environment(uri: str | None) -> dict[str, str]:
    defaults = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    # MLflow's own retries could create a run twice; a model that is only tried out must not take a GPU
    forced = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    # the whole URI goes this way, as arguments can be read by anybody
    return defaults | os.environ | forced | ({"MLFLOW_TRACKING_URI": uri} if uri else {})


def _launch(outbox: Outbox) -> subprocess.Popen[bytes] | None:
    folder = outbox.folder
    try:
        with (folder / "outbox.log").open("ab") as log:
            return subprocess.Popen(
                [*_command(), "--follow", str(os.getpid()), str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(outbox.uri),
                cwd=folder,
                start_new_session=True,  # a Ctrl-C meant for the driver must not end the delivery of its last records
            )
    except OSError as error:
        warnings.warn(f"{folder}: results are kept but not sent ({error}); `xlt sync` sends them", stacklevel=3)
        return None


def _finish(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Let a delivery finish within a time, else kill it with all it started; return whether it had crashed."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # if it is gone, its exit status shows it
        pipe.write(f"{timeout_s}\n".encode())
    try:
        return process.wait(timeout_s) != 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


class Driver:
    """The driver, as a pipe shows it: it sends nothing while it runs, then the seconds left to finish in, or dies."""

    def __init__(self, pid: int, patience_s: float) -> None:
        self.pid = pid
        self.closing = threading.Event()
        self.died = False
        self._patience_s = patience_s
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        line = sys.stdin.readline()
        self.died = not line
        self.closing.set()
        _set_session_priority(0)  # the driver waits now
        time.sleep(float(line) if line else self._patience_s)
        os._exit(0)  # a request that never ends cannot be interrupted otherwise; what is unsent is kept


def follow(folder: Path, pid: int) -> None:
    """Deliver an outbox as it grows, until the driver with this `pid` closes it or dies and everything is delivered.

    One process at a time delivers an outbox; one left behind by a killed driver may have to finish first.
    """
    where = journal.address(folder)
    if where is None:
        raise FileNotFoundError(f"{folder / journal.FILE}: no such file")
    _lower_priority()
    driver = Driver(pid, where["flush_seconds"])
    with durable.locked(folder / journal.LOCK):
        _deliver(Delivery(folder, whole(where["uri"])), driver)


def _lower_priority() -> None:
    """Leave the CPU to the training."""
    os.nice(NICENESS)
    _set_session_priority(NICENESS)


def _set_session_priority(niceness: int) -> None:
    # a kernel that groups processes by session heeds the session's niceness alone, which may also be lowered again
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))


def _deliver(delivery: Delivery, driver: Driver) -> None:
    failures = 0
    while True:
        last = driver.closing.is_set()  # asked first: what was recorded before the closing is then in the file
        try:
            delivery.send()
            failures = 0
            if last and driver.died:
                delivery.mark_killed(driver.pid)
            if last:
                return
        except Exception as error:  # whatever it is, the records are kept, the reason is shown, and it is tried again
            failures += 1
            print(f"attempt {failures}: {delivery.note(error)}", flush=True)
            if last and isinstance(error, Refused):
                return
        pause = min(0.5 * 2 ** min(failures, 10), LONGEST_PAUSE_S) if failures else POLL_S
        if last:
            time.sleep(min(pause, 5.0))
        else:
            driver.closing.wait(pause)


def deliver_once(
    folder: Path,
    dead: dict[str, Exception],
    uri: str | None = None,
    experiment: str | None = None,
    give_up: bool = False,
) -> str:
    """Deliver one outbox now and return in a line how it went; servers in `dead`, which did not answer, are left alone.

    What is refused after that is forgotten with `give_up`.
    """
    where = journal.address(folder)
    if where is None:
        return f"{folder}: no outbox"
    with durable.locked(folder / journal.LOCK, wait=False) as free:
        before = journal.pending(folder, uri)
        if not free:
            return f"{folder}: its run is sending it at this moment; {before} records are left"
        if experiment is not None:
            journal.move(folder, experiment=experiment)
        try:
            target = whole(uri or str(where["uri"]))
        except InputError as error:
            return f"{folder}: 0 records sent, {before} left: {error}"
        delivery = Delivery(folder, target)
        _attempt(delivery, dead, moved=masked(target) != masked(where["uri"]))
        given_up = delivery.give_up() if give_up else 0
    left, why = journal.pending(folder, target), journal.reason(folder)
    line = f"{folder}: {before - left - given_up} records sent, {left} left"
    return line + (f", {given_up} given up" if given_up else "") + (f": {why}" if left and why else "")


def _attempt(delivery: Delivery, dead: dict[str, Exception], moved: bool) -> None:
    if delivery.uri in dead:
        delivery.note(dead[delivery.uri])
        return
    for attempt in range(ATTEMPTS):
        try:
            delivery.send(again=attempt == 0)
            if moved:
                journal.move(delivery.folder, uri=delivery.uri)
                delivery.send()
            return
        except Exception as error:
            delivery.note(error)
            if isinstance(error, Unreachable):
                dead[delivery.uri] = error
            if isinstance(error, Unreachable | Refused):
                return
            time.sleep(0.25 * 2**attempt)


def main() -> None:
    """Run as a process: follow one outbox, or deliver several once."""
    parser = argparse.ArgumentParser(prog="python -m xlt_ray.tracking.courier", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--follow", type=int, metavar="PID", help="until this driver, at the far end of stdin, is done")
    parser.add_argument("--uri", help="deliver to this server and not the recorded one")
    parser.add_argument("--experiment", help="deliver into this experiment and not the recorded one")
    parser.add_argument("--give-up", action="store_true", help="forget what is refused")
    asked = parser.parse_args()
    if asked.follow:
        follow(asked.folders[0], asked.follow)
        return
    dead: dict[str, Exception] = {}
    for folder in asked.folders:
        print(deliver_once(folder, dead, asked.uri, asked.experiment, asked.give_up), flush=True)


if __name__ == "__main__":
    main()
