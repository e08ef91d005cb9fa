"""One process at a time does the work of a folder, on disk and on object storage; others follow it, or take over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_storage import bucket
from ray_runs import until

from xlt_ray.errors import InputError, TrainingError
from xlt_ray.runs import lease
from xlt_ray.runs.storage import RunFolder, open_folder

# What a worker process does: it takes the lease of a folder, notes that it is inside, and leaves a result.
WORK = """
import json, os, sys, time
from pathlib import Path
from xlt_ray.runs import lease
from xlt_ray.runs.storage import open_folder
from xlt_ray.config.read import build

lease.BEAT, lease.DEAD, lease.POLL = 0.1, 5.0, 0.05
storage, cache, name, log, seconds = sys.argv[1:]
experiment = build({"sources": ["eng_Latn"], "storage": storage, "corpus": {"cache_dir": cache}})
folder = open_folder(experiment, name)
files = lease.Lease.of(folder).files

def finished():
    files.invalidate_cache()
    return files.cat_file("result.json").decode() if files.exists("result.json") else None

def note(what):
    with open(log, "a") as stream:
        stream.write(json.dumps([what, os.getpid()]) + "\\n")

note("ready")
with lease.held(folder, lambda event: note(event), finished) as held:
    if held.done is None:
        note("in")
        held.on_event({"stage": "train", "step": 1})
        limit = time.monotonic() + float(seconds)
        while time.monotonic() < limit and not Path(log).with_name("go").exists():
            time.sleep(0.02)
        note("out")
        files.pipe_file("result.json", str(os.getpid()).encode())
        print(os.getpid())
    else:
        print(held.done)
"""


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "storage")
        return
    with bucket(monkeypatch) as url:
        yield url


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BEAT": 0.1, "DEAD": 5.0, "POLL": 0.05}.items():
        monkeypatch.setattr(lease, name, value)


@pytest.fixture
def opened(storage: str, tmp_path: Path, tiny_experiment: Any) -> Callable[[], RunFolder]:
    experiment = tiny_experiment.model_copy(update={"storage": storage})
    return lambda: open_folder(experiment, "work")


def ignore(event: dict[str, Any]) -> None:
    pass


def nothing() -> None:
    return None


@pytest.fixture(autouse=True)
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of a test, which are killed at its end."""
    STARTED.clear()
    yield STARTED
    for process in STARTED:
        process.kill()
        process.communicate()


def start(storage: str, folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORK, storage, str(folder / "cache"), "work", str(folder / "log"), str(seconds)]
    STARTED.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return STARTED[-1]


def notes(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()] if (folder / "log").exists() else []


def wait_for(folder: Path, what: Any, times: int = 1) -> None:
    limit = time.monotonic() + 60
    while sum(one[0] == what for one in notes(folder)) < times:
        assert time.monotonic() < limit, (what, notes(folder))
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [2, 6])
def test_of_processes_that_begin_at_once_one_works_and_all_have_its_result(
    storage: str, tmp_path: Path, processes: int
) -> None:
    started = [start(storage, tmp_path, seconds=60.0) for _ in range(processes)]
    wait_for(tmp_path, "ready", times=processes)
    wait_for(tmp_path, "in")
    owner = next(pid for what, pid in notes(tmp_path) if what == "in")

    def told() -> int:  # so many say for whom they wait
        events = [(what, pid) for what, pid in notes(tmp_path) if isinstance(what, dict)]
        return len({pid for what, pid in events if f"process {owner} on " in what.get("note", "")})

    until(lambda: told() == processes - 1, "those who wait to say for whom")
    (tmp_path / "go").touch()
    answers = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * processes, answers
    work = [one for one in notes(tmp_path) if one[0] in ("in", "out")]
    assert work == [["in", owner], ["out", owner]]
    assert {out.strip() for out, _ in answers} == {str(owner)}, "all have the result of the one that worked"


def test_progress_of_the_owner_is_shown_to_those_who_follow(storage: str, tmp_path: Path) -> None:
    first = start(storage, tmp_path, seconds=60.0)
    wait_for(tmp_path, "in")
    second = start(storage, tmp_path, seconds=0.0)
    event = {"stage": "train", "step": 1}
    wait_for(tmp_path, event, times=2)
    (tmp_path / "go").touch()
    assert first.wait(60) == second.wait(60) == 0
    assert {pid for what, pid in notes(tmp_path) if what == event} == {first.pid, second.pid}


def test_the_work_of_a_killed_process_goes_to_another_at_once(storage: str, tmp_path: Path) -> None:
    first = start(storage, tmp_path, seconds=300.0)
    wait_for(tmp_path, "in")
    second = start(storage, tmp_path, seconds=0.0)
    wait_for(tmp_path, "ready", times=2)
    time.sleep(0.5)
    assert sum(one[0] == "in" for one in notes(tmp_path)) == 1, "the second waits"
    killed = time.monotonic()
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    wait_for(tmp_path, "in", times=2)
    assert time.monotonic() - killed < lease.DEAD, "a process of this machine need not be silent to be known as dead"
    out, _ = second.communicate(timeout=300)
    assert out.strip() == str(second.pid)


def test_one_that_only_stopped_is_not_robbed_by_a_process_of_its_machine(storage: str, tmp_path: Path) -> None:
    first = start(storage, tmp_path, seconds=1.0)
    wait_for(tmp_path, "in")
    first.send_signal(signal.SIGSTOP)
    second = start(storage, tmp_path, seconds=0.0)
    wait_for(tmp_path, "ready", times=2)
    time.sleep(6.0)  # longer than DEAD
    first.send_signal(signal.SIGCONT)
    out, _ = first.communicate(timeout=300)
    assert out.strip() == str(first.pid) == second.communicate(timeout=300)[0].strip()


def elsewhere(opened: Callable[[], RunFolder], number: int, **facts: Any) -> None:
    """Write the lease of a process of another machine."""
    files = lease.Lease.of(opened()).files
    files.makedirs("", exist_ok=True)
    owner = {"host": "elsewhere", "machine": "another", "pid": 1, "started": 1.0, **facts}
    files.pipe_file(f"lease-{number:06d}.json", json.dumps(owner).encode())


def leases(opened: Callable[[], RunFolder]) -> list[str]:
    files = lease.Lease.of(opened()).files
    files.invalidate_cache()
    return sorted(Path(one).name for one in files.glob("lease-*"))


def test_a_process_of_another_machine_is_dead_when_it_was_silent_for_long(opened: Callable[[], RunFolder]) -> None:
    elsewhere(opened, 3)
    told: list[dict[str, Any]] = []
    began = time.monotonic()
    with lease.held(opened(), told.append, nothing) as held:
        assert held.done is None and time.monotonic() - began >= lease.DEAD
        assert leases(opened) == ["lease-000004.json"], "a later number than that of the dead"
    assert leases(opened) == []
    assert any("nothing is heard of process 1 on elsewhere" in event.get("note", "") for event in told)


def test_a_process_of_another_machine_that_gives_signs_of_life_is_followed(opened: Callable[[], RunFolder]) -> None:
    over = threading.Event()

    def beat() -> None:
        for count in range(60):
            elsewhere(opened, 1, beat=count)
            time.sleep(0.1)
        over.set()
        elsewhere(opened, 1, ended="")

    elsewhere(opened, 1)
    thread = threading.Thread(target=beat)
    thread.start()
    with lease.held(opened(), ignore, nothing):
        assert over.is_set(), "waited for, though it took longer than DEAD"
    thread.join()


def test_who_followed_a_process_that_fails_ends_with_its_error_and_who_comes_later_does_not(
    opened: Callable[[], RunFolder],
) -> None:
    elsewhere(opened, 1)
    threading.Timer(0.5, lambda: elsewhere(opened, 1, ended="the loss is not a number")).start()
    failed = "process 1 on elsewhere, which did this work, failed: the loss is not a number"
    with pytest.raises(TrainingError, match=failed), lease.held(opened(), ignore, nothing):
        raise AssertionError
    with lease.held(opened(), ignore, nothing) as held:
        assert held.done is None


def test_who_was_taken_over_stops_and_says_by_whom(opened: Callable[[], RunFolder]) -> None:
    began = time.monotonic()
    taken = pytest.raises(TrainingError, match="process 1 on elsewhere has taken this work over")
    with taken, lease.held(opened(), ignore, nothing) as held:
        elsewhere(opened, 2)
        time.sleep(30)
    assert time.monotonic() - began < 20, "the work is interrupted, not only its end"
    assert held.lease is not None and held.lease.taken_over
    assert leases(opened) == ["lease-000002.json"], "the lease of the other stays"


def test_a_failure_is_told_and_the_same_command_goes_on(opened: Callable[[], RunFolder]) -> None:
    for error in (ValueError("broken"), KeyboardInterrupt()):
        with pytest.raises(type(error)), lease.held(opened(), ignore, nothing):
            raise error
        (name,) = leases(opened)
        files = lease.Lease.of(opened()).files
        assert json.loads(files.cat_file(name))["ended"] == str(error)
    with lease.held(opened(), ignore, nothing) as held:
        assert held.done is None and len(leases(opened)) == 1


def test_what_is_finished_needs_no_lease(opened: Callable[[], RunFolder]) -> None:
    elsewhere(opened, 1)
    with lease.held(opened(), ignore, lambda: "a result") as held:
        assert held.done == "a result" and held.lease is not None and held.lease.number == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_storage_that_takes_no_file_is_refused_by_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="storage: .* takes no file"), lease.held(RunFolder(tmp_path), ignore, nothing):
        raise AssertionError


def test_a_torn_lease_counts_as_a_sign_of_no_one(opened: Callable[[], RunFolder]) -> None:
    elsewhere(opened, 1)
    files = lease.Lease.of(opened()).files
    files.pipe_file("lease-000001.json", b'{"host": "els')
    with lease.held(opened(), ignore, nothing) as held:
        assert held.done is None


def test_who_looks_while_a_lease_is_being_written_tells_a_moment_later_whose_it_is(
    opened: Callable[[], RunFolder],
) -> None:
    elsewhere(opened, 1)
    told: list[dict[str, Any]] = []
    lease.Lease.of(opened()).files.pipe_file("lease-000001.json", b"")
    threading.Timer(0.2, lambda: elsewhere(opened, 1)).start()
    with lease.held(opened(), told.append, nothing) as held:
        assert held.done is None
    assert "process 1 on elsewhere does this work already" in told[0]["note"]
    assert "nothing is heard of process 1 on elsewhere" in told[1]["note"]


@pytest.mark.parametrize("facts", [{}, {"token": "another"}])
def test_an_owner_whose_lease_is_gone_or_another_s_stops(
    opened: Callable[[], RunFolder], facts: dict[str, str]
) -> None:
    taken = pytest.raises(TrainingError, match="has taken this work over.*or the folder was deleted")
    with taken, lease.held(opened(), ignore, nothing) as held:
        assert held.lease is not None
        if facts:  # numbers begin again when all have gone
            elsewhere(opened, held.lease.number, **facts)
        else:
            held.lease.files.rm_file("lease-000001.json")
        time.sleep(30)


def test_a_lease_that_this_process_could_not_give_back_holds_nobody_up(opened: Callable[[], RunFolder]) -> None:
    left = lease.Lease.of(opened())
    assert left.take(ignore, nothing) is None and leases(opened) == ["lease-000001.json"]
    waiting = threading.Timer(0.5, lambda: lease.HERE.discard(left.token))
    waiting.start()
    began = time.monotonic()
    with lease.held(opened(), ignore, nothing):
        assert 0.4 < time.monotonic() - began < lease.DEAD, "one that another thread holds is waited for"
    waiting.join()


def test_a_request_that_was_repeated_finds_its_own_lease(
    opened: Callable[[], RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = lease.Lease.of(opened())
    mine.files.makedirs("", exist_ok=True)
    usual = type(mine.files).pipe_file

    def twice(self: Any, path: str, *content: Any, **how: Any) -> None:
        usual(self, path, *content, **how)
        if how.get("mode") == "create":
            raise OSError("412 without a reason")

    monkeypatch.setattr(type(mine.files), "pipe_file", twice)
    assert mine.take(ignore, nothing) is None and mine.number == 1
    other = lease.Lease.of(opened())
    assert not other._create(1), "what another has made is not refused as a fault of the storage"


def test_a_storage_that_is_away_for_a_moment_ends_no_wait(
    opened: Callable[[], RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(opened, 1, ended="")
    waiting, away = lease.Lease.of(opened()), [True, True, False]
    usual = waiting.latest
    monkeypatch.setattr(waiting, "latest", lambda: 1 / 0 if away and away.pop(0) else usual())
    assert waiting.take(ignore, nothing) is None and waiting.number == 2
    monkeypatch.setattr(waiting, "latest", lambda: 1 / 0)
    monkeypatch.setattr(lease, "DEAD", 0.5)
    waiting.number = 0
    with pytest.raises(InputError, match="cannot be read .*; try again later"):
        waiting.take(ignore, nothing)
