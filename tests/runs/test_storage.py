"""The folder of a run: local, or a mirror of any fsspec URL from which another machine can resume."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.runs import storage


def experiment(where: object, cache: Path, *overrides: str) -> Experiment:
    data = {"name": "trial", "sources": ["eng_Latn"], "storage": str(where), "corpus": {"cache_dir": str(cache)}}
    return build(data, overrides)


@pytest.fixture
def url() -> Iterator[str]:
    """A place in fsspec's memory, as another machine would see a bucket."""
    name = f"bucket-{uuid.uuid4().hex}"
    yield f"memory://{name}"
    files = fsspec.filesystem("memory")
    if files.exists(name):
        files.rm(name, recursive=True)


def contents(url: str) -> set[str]:
    files = fsspec.filesystem("memory")
    root = "/" + url.removeprefix("memory://")
    return {name.removeprefix(root + "/") for name in files.find(root)}


# local


def test_a_local_run_has_a_folder_of_its_key_and_nothing_elsewhere(tmp_path: Path) -> None:
    made = experiment(tmp_path / "runs", tmp_path / "cache")
    folder = storage.open_run(made, "")
    assert folder.local == tmp_path / "runs" / made.key() and folder.local.is_dir()
    assert folder.remote is None and folder.shown == str(folder.local)
    path, files = folder.checkpoints()
    assert path == str(folder.local) and isinstance(files.handler.fs, storage.WholeFiles)
    folder.upload()
    folder.download("result.json")
    assert list(folder.local.iterdir()) == [] and not (tmp_path / "cache").exists()


def test_local_storage_may_be_relative_in_the_home_or_a_file_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for where, folder in (("runs", "runs"), ("~/r", "home/r"), (f"file://{tmp_path}/url", "url")):
        made = experiment(where, tmp_path / "cache")
        assert storage.open_run(made, "").local == tmp_path / folder / made.key()


def test_an_identity_stays_until_the_folder_is_deleted(tmp_path: Path) -> None:
    made = experiment(tmp_path / "runs", tmp_path / "cache")
    first = storage.open_run(made, "").identity()
    assert first and first == storage.open_run(made, "").identity() == storage.open_run(made, "").identity()
    (tmp_path / "runs" / made.key() / "identity.txt").unlink()
    assert storage.open_run(made, "").identity() != first


# remote


def test_what_one_machine_uploads_another_downloads(tmp_path: Path, url: str) -> None:
    here = storage.open_run(experiment(url, tmp_path / "here"), "")
    there = storage.open_run(experiment(url, tmp_path / "there"), "")
    assert here.local != there.local
    assert here.shown.startswith("memory://")
    assert here.shown.endswith(f"{url.removeprefix('memory://')}/{experiment(url, tmp_path).key()}")
    (here.local / "bundle" / "encoder").mkdir(parents=True)
    (here.local / "bundle" / "encoder" / "config.json").write_text("{}")
    (here.local / "result.json").write_text("done")
    here.upload()
    there.download("result.json", "bundle/encoder/config.json", "absent.json")
    assert (there.local / "result.json").read_text() == "done"
    assert (there.local / "bundle" / "encoder" / "config.json").read_text() == "{}"
    assert not (there.local / "absent.json").exists()
    key = experiment(url, tmp_path).key()
    assert contents(url) == {f"{key}/result.json", f"{key}/bundle/encoder/config.json"}


def test_an_upload_brings_changes_and_a_download_overwrites_nothing(tmp_path: Path, url: str) -> None:
    here = storage.open_run(experiment(url, tmp_path / "here"), "")
    there = storage.open_run(experiment(url, tmp_path / "there"), "")
    for text in ("one", "two"):
        (here.local / "a.txt").write_text(text)
        here.upload()
        there.download("a.txt")
    assert fsspec.filesystem("memory").cat(f"{here.remote.path}/a.txt") == b"two"
    assert (there.local / "a.txt").read_text() == "one"


def test_files_are_uploaded_in_the_order_they_were_written(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = storage.open_run(experiment(url, tmp_path), "")
    for age, name in enumerate(["scores.json", "bundle/z.json", "bundle/bundle.json", "result.json", "a.json"]):
        (here.local / name).parent.mkdir(exist_ok=True)
        (here.local / name).write_text("")
        os.utime(here.local / name, (1000 + age, 1000 + age))
    sent: list[str] = []
    assert here.remote is not None
    monkeypatch.setattr(here.remote.fs, "put_file", lambda local, remote: sent.append(Path(local).name), raising=True)
    here.upload()
    # so a result that another machine sees has its scores, and a bundle.json its files
    assert sent == ["scores.json", "z.json", "bundle.json", "result.json", "a.json"]


def test_what_is_removed_is_gone_from_both_places(tmp_path: Path, url: str) -> None:
    folder = storage.open_run(experiment(url, tmp_path), "")
    (folder.local / "bundle").mkdir()
    for name in ("bundle/head.safetensors", "result.json"):
        (folder.local / name).write_text("")
    folder.upload()
    for _ in range(2):  # also where there is nothing left
        folder.remove("bundle")
    assert [file.name for file in folder.local.iterdir()] == ["result.json"]
    assert contents(url) == {f"{experiment(url, tmp_path).key()}/result.json"}


def test_machines_that_share_storage_share_the_identity(tmp_path: Path, url: str) -> None:
    first = storage.open_run(experiment(url, tmp_path / "here"), "").identity()
    assert storage.open_run(experiment(url, tmp_path / "there"), "").identity() == first
    assert storage.open_run(experiment(f"{url}/", tmp_path / "here"), "").identity() == first


def test_a_run_in_one_place_says_nothing_about_another(tmp_path: Path, url: str) -> None:
    one, other = (storage.open_run(experiment(f"{url}/{part}", tmp_path), "") for part in ("a", "b"))
    assert experiment(f"{url}/a", tmp_path).key() == experiment(f"{url}/b", tmp_path).key()
    (one.local / "result.json").write_text("done")
    assert one.identity() != other.identity()
    assert not (other.local / "result.json").exists()


def test_checkpoints_go_to_the_remote_place_through_pyarrow(tmp_path: Path, url: str) -> None:
    folder = storage.open_run(experiment(url, tmp_path), "")
    path, files = folder.checkpoints()
    files.create_dir(f"{path}/ray", recursive=True)
    with files.open_output_stream(f"{path}/ray/training.pt") as stream:
        stream.write(b"weights")
    assert contents(url) == {f"{experiment(url, tmp_path).key()}/ray/training.pt"}


# what is refused


def test_storage_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    remedy = "give a directory or an fsspec URL"

    def absent(url: str, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    for where in (tmp_path / "file", tmp_path / "file" / "below", "nothing://x", "a\0b"):
        with pytest.raises(InputError, match=f"^storage: .* cannot be used .*{remedy}"):
            storage.open_run(experiment(where, tmp_path / "cache"), "")
    with pytest.raises(InputError, match="^storage: 'memory://x' cannot be used"):
        storage.open_run(experiment("memory://x", tmp_path / "file"), "")
    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(InputError, match="'s3://bucket' cannot be used .Install s3fs"):
        storage.open_run(experiment("s3://bucket", tmp_path), "")


@pytest.mark.parametrize("where", ["words", "words/{source}-{language}.index", "words/{source}-{language}.tsv"])
def test_another_dictionary_is_another_run(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    for name in ("eng_Latn-swh_Latn.index", "eng_Latn-swh_Latn.dict", "eng_Latn-swh_Latn.tsv"):
        (folder / name).write_text("house\tnyumba\n")

    def key(**parameters: str) -> str:
        chosen = [{"code_switch": parameters}]
        return storage.key(build({"sources": ["eng_Latn"], "techniques": chosen}), "rows")

    written = key(lexicons=str(tmp_path / where))
    assert key(lexicons=str(tmp_path / where)) == written
    induced = build({"sources": ["eng_Latn"], "techniques": [{"code_switch": {}}]})
    assert storage.key(induced, "rows") == induced.key("rows"), "nothing is read but the corpus"
    # the articles of a dictionary lie beside its index
    changed = folder / ("eng_Latn-swh_Latn.tsv" if where.endswith(".tsv") else "eng_Latn-swh_Latn.dict")
    changed.write_text("house\tnyumbani\n")
    assert key(lexicons=str(tmp_path / where)) != written


def test_a_file_of_ray_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    _, files = storage.RunFolder(tmp_path).checkpoints()
    file = tmp_path / "state.json"
    file.write_text("old")
    stream = pickle.loads(pickle.dumps(files)).open_output_stream(str(file))
    stream.write(b"new" * 100_000)
    assert file.read_text() == "old", "a kill now leaves the file as it was"
    stream.close()
    assert file.read_text() == "new" * 100_000 and list(tmp_path.iterdir()) == [file]
    with files.open_input_stream(str(file)) as opened:
        assert opened.read(3) == b"new"


def test_a_file_of_ray_for_which_the_disk_has_no_room_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text("old")
    draft = storage.Draft(file)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a signal, where a full disk is an error
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]))
    try:
        with pytest.raises(OSError):
            draft.write(b"new" * 100_000)
        with contextlib.suppress(OSError):
            draft.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_file_of_ray_that_was_not_written_to_its_end_is_not_published(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text("old")
    draft = storage.Draft(file)
    draft.write(b"half")
    del draft
    with pytest.raises(RuntimeError), storage.Draft(file) as opened:
        opened.write(b"half")
        raise RuntimeError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_of_a_journal_the_longer_one_is_taken(url: str, tmp_path: Path) -> None:
    folder = storage.open_run(experiment(url, tmp_path), "")
    for name in ("journal.jsonl", "other.json"):
        (folder.local / name).write_text("one line\n")
        folder.upload()
        folder.remote.pipe_file(name, b"one line\nand another\n")  # type: ignore[union-attr]
        folder.download(name)
    assert (folder.local / "journal.jsonl").read_text().endswith("and another\n")
    assert (folder.local / "other.json").read_text() == "one line\n"
    (folder.local / "journal.jsonl").write_text("one line\nand another\nand a third\n")
    folder.download("journal.jsonl")
    assert (folder.local / "journal.jsonl").read_text().endswith("third\n")
