"""Files that a kill leaves whole."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from xlt_ray import durable

HOLD = """
import sys, time
from pathlib import Path
from xlt_ray.durable import locked
with locked(Path(sys.argv[1]), wait=False) as free:
    print(free, flush=True)
    time.sleep(60)
"""


LEFT = """
import sys, time
from xlt_ray.durable import scratch
with scratch() as folder:
    (folder / "large").write_bytes(b"0" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_published_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    durable.write(file, "é")
    assert file.read_text(encoding="utf-8") == "é" and file.stat().st_mode & 0o777 == 0o666 & ~_umask()
    with pytest.raises(ZeroDivisionError), durable.publishing(file) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert file.read_bytes() == "é".encode() and names(file.parent) == ["file"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_folder_is_published_whole_and_the_first_of_two_stays(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with durable.publishing(tmp_path / "folder") as draft:
            draft.mkdir()
            (draft / "file").write_text(content)
    assert (tmp_path / "folder" / "file").read_text() == "first" and names(tmp_path) == ["folder"]
    with pytest.raises(OSError), durable.publishing(tmp_path / "folder") as draft:  # noqa: PT011 - a file is no folder
        draft.write_text("file")
    with pytest.raises(FileNotFoundError), durable.publishing(tmp_path / "nothing"):
        pass
    assert names(tmp_path) == ["folder"]


def test_a_digest_depends_on_every_byte_and_every_name(tmp_path: Path) -> None:
    def made(name: str, inner: str, content: str) -> str:
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / inner).write_text(content)
        return durable.digest(tmp_path / name)

    one = made("one", "a", "x")
    assert one == made("two", "a", "x")
    assert len({one, made("three", "b", "x"), made("four", "a", "y")}) == 3
    assert durable.digest(tmp_path / "one/sub/a") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_a_lock_is_held_against_other_processes_until_its_holder_dies(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        with durable.locked(file, wait=False) as free:
            assert not free
        other.send_signal(signal.SIGKILL)
        with durable.locked(file) as free:  # waits for the holder
            assert free
            with durable.locked(file, wait=False) as again:  # not even by the same process
                assert not again
    with durable.locked(file, wait=False) as free:
        assert free


def test_a_journal_loses_at_most_the_line_that_was_being_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "journal.jsonl"
    assert list(durable.records(file)) == []
    journal = durable.JsonLines(file)
    journal.append({"one": 1})
    journal.append({"two": Path("x")})
    journal.close()
    with file.open("ab") as stream:
        stream.write(b'{"three": ')
    found = list(durable.records(file))
    assert [record for _, record in found] == [{"one": 1}, {"two": "x"}]
    assert list(durable.records(file, found[0][0])) == found[1:]
    journal = durable.JsonLines(file)
    journal.append({"three": 3})
    journal.close()
    assert [json.loads(line) for line in file.read_text().splitlines()][2] == {"three": 3}
    with file.open("ab") as stream:
        stream.write(b'{"four": ')
    durable.JsonLines(file, repair=False).close()
    assert file.read_bytes().endswith(b'{"four": '), "its writer may be at it"
    file.write_bytes(b"\0\0\0\n[1]\n" + file.read_bytes())
    assert [record for _, record in durable.records(file)][:3] == [None, None, {"one": 1}]


def test_opening_a_whole_journal_takes_no_line_that_another_process_appends_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "journal.jsonl"
    writer = durable.JsonLines(file)
    writer.append({"one": 1})
    read = Path.read_bytes

    def meanwhile(path: Path) -> bytes:
        content = read(path)
        writer.append({"two": 2})
        return content

    monkeypatch.setattr(Path, "read_bytes", meanwhile)
    durable.JsonLines(file).close()
    assert [record for _, record in durable.records(file)] == [{"one": 1}, {"two": 2}]


def test_a_full_disk_is_reported_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = durable.JsonLines(tmp_path / "journal.jsonl")
    journal.append({"one": 1})

    class Full:
        """A file whose disk takes five bytes more; a real full disk cannot be had without being root."""

        def __init__(self, stream: object) -> None:
            self.stream = stream

        def write(self, line: bytes) -> int:
            return self.stream.write(line[:5])  # type: ignore[attr-defined]

        def fileno(self) -> int:
            return self.stream.fileno()  # type: ignore[attr-defined]

    monkeypatch.setattr(journal, "_stream", Full(journal._stream))
    with pytest.raises(OSError, match="the disk is full; free space and run the same command again") as caught:
        journal.append({"two": 2})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "journal.jsonl")
    assert (tmp_path / "journal.jsonl").read_text() == '{"one": 1}\n'


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert durable.cache_folder("a", "b") == tmp_path / "xlt_ray" / "a" / "b"


def test_a_temporary_folder_goes_with_its_process_or_with_the_next(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command, variables = [sys.executable, "-c", LEFT], os.environ | {"TMPDIR": str(tmp_path)}
    others = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (Path(one.stdout.readline().strip()) for one in others if one.stdout)
    others[0].kill()
    others[0].wait()
    assert (first / "large").is_file(), "what a killed process leaves"
    with durable.scratch() as own:
        assert not first.exists() and (second / "large").is_file()
        (own / "here").mkdir()
    assert names(tmp_path) == [second.name, f"{second.name}.lock"]
    others[1].terminate()
    others[1].wait()
    with durable.scratch():
        pass
    assert names(tmp_path) == []


def test_temporary_folders_made_at_once_do_not_remove_one_another(tmp_path: Path) -> None:
    code = """
from xlt_ray.durable import scratch
for _ in range(60):
    with scratch() as folder:
        (folder / "file").touch()
        assert (folder / "file").exists()
"""
    command, variables = [sys.executable, "-c", code], os.environ | {"TMPDIR": str(tmp_path)}
    started = [subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [one.communicate()[1] for one in started] == ["", "", ""]
    assert names(tmp_path) == []


def test_what_only_looks_like_one_of_ours_stays(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "precious").write_text("a file of the user's")
    for name in ("xlt-foo", "xlt-0123456789", "xlt-01234567"):
        (tmp_path / name).mkdir()
    (tmp_path / "xlt-foo.lock").touch()
    (tmp_path / "xlt-0123456789.lock").touch()
    (tmp_path / "xlt-01234567.lock").symlink_to(tmp_path / "precious")
    before = names(tmp_path)
    with durable.scratch():
        pass
    assert names(tmp_path) == before


def test_a_temporary_folder_needs_no_locks(tmp_path: Path, monkeypatch: Any) -> None:
    def none(*arguments: Any, **options: Any) -> Any:
        raise OSError("Function not implemented")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(durable.FileLock, "acquire", none)
    with durable.scratch() as folder:
        assert folder.is_dir()
    assert names(tmp_path) == []


def test_what_was_being_written_is_swept_and_nothing_else(tmp_path: Path) -> None:
    inside = tmp_path / "ray" / "checkpoint_1"
    (inside / ".folder.77.0123abcd").mkdir(parents=True)
    (inside / ".folder.77.0123abcd" / "part").write_text("half")
    for name in (".training.pt.992e00b4", ".a.json.123.deadbeef"):
        (inside / name).write_text("half")
    kept = ["training.pt", ".validate_storage_marker", ".hidden", ".outbox.sent.9.00c0ffee", "lease.deadbeef"]
    for name in kept:
        (inside / name).write_text("whole")
    assert len(durable.drafts(tmp_path)) == 4
    durable.sweep(tmp_path)
    assert sorted(path.name for path in inside.iterdir()) == sorted(kept)
    durable.sweep(tmp_path / "nowhere")


def test_a_sealed_file_is_known_to_be_whole(tmp_path: Path) -> None:
    file = tmp_path / "table.tsv"
    assert not durable.sealed(file)
    durable.write(file, "one\ttwo\n" * 9)
    assert not durable.sealed(file)
    durable.seal(file)
    assert durable.sealed(file)
    os.truncate(file, 36)
    assert not durable.sealed(file)
    durable.write(file, "one\ttwo\n" * 9)
    os.truncate(tmp_path / "table.tsv.sha256", 7)
    assert not durable.sealed(file)
    durable.seal(file)
    file.unlink()
    assert not durable.sealed(file)
