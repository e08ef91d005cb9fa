"""The cache of features: named by content, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xlt_ray.config.read import build
from xlt_ray.evaluation import features
from xlt_ray.evaluation.features import Pieces


def test_a_cache_key_changes_with_text_and_settings_and_not_with_chunks() -> None:
    texts = pa.array(["a", "bc", "", "d"])
    table, settings = pa.table({"text": texts}), {"encoder": "e@1", "prefix": "", "max_length": 128}
    file = features.cache_file("/cache", table, settings)
    assert file.parent == Path("/cache/features") and file.suffix == ".npy"
    in_chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    more_columns = table.append_column("label", pa.array([0, 1, 2, 3]))
    for same in (in_chunks, more_columns, pa.table({"text": texts.cast(pa.large_string())})):
        assert features.cache_file("/cache", same, dict(reversed(settings.items()))) == file
    others = [
        (pa.table({"text": ["a", "bc", "", "e"]}), settings),
        (pa.table({"text": ["ab", "c", "", "d"]}), settings),
        (pa.table({"text": ["bc", "a", "", "d"]}), settings),
        (table.slice(0, 3), settings),
        (table.append_column("text_pair", texts), settings),
        (table, settings | {"encoder": "e@2"}),
        (table, settings | {"prefix": "query: "}),
        (table, settings | {"max_length": 64}),
    ]
    assert len({file, *(features.cache_file("/cache", *other) for other in others)}) == 1 + len(others)


def test_features_are_kept_and_read_back(tmp_path: Path) -> None:
    file, rows = tmp_path / "deep" / "a.npy", np.arange(6, dtype=np.float32).reshape(2, 3)
    assert features.read(file) is None
    for _ in range(2):  # another run may have written the same
        features.write(file, rows)
        found = features.read(file)
        assert found is not None and np.array_equal(found, rows) and not found.flags.writeable
    assert [path.name for path in file.parent.iterdir()] == ["a.npy"]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.npy"
    features.write(file, np.ones((1, 2)))

    def half(stream: object, *rest: object, **more: object) -> None:
        stream.write(b"\x93NUMPY")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", half)
    for name in ("a.npy", "b.npy"):
        with pytest.raises(OSError, match="disk full"):
            features.write(tmp_path / name, np.zeros((1, 2)))
    found = features.read(file)
    assert found is not None and found.sum() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_torn_file_counts_as_missing_and_is_made_again(tmp_path: Path) -> None:
    experiment = build({"sources": ["eng_Latn"], "corpus": {"cache_dir": str(tmp_path)}})
    pieces = Pieces.of(experiment, {"a": pa.table({"text": ["x"] * 1500})}, "e", "float32")
    for file, piece in pieces.missing().items():
        pieces.keep(file, np.ones((piece.num_rows, 4), np.float32))
    whole, other = pieces.tables
    for size in (whole.stat().st_size // 2, 5, 0):
        os.truncate(whole, size)
        assert list(pieces.missing()) == [whole]
        pieces.keep(whole, np.ones((1024, 4), np.float32))
    assert not pieces.missing() and pieces.read()["a"].shape == (1500, 4) and other.is_file()


def test_machines_with_one_storage_compute_nothing_twice(tmp_path: Path) -> None:
    def machine(name: str, storage: str) -> Pieces:
        data = {"sources": ["eng_Latn"], "corpus": {"cache_dir": str(tmp_path / name)}, "storage": storage}
        return Pieces.of(build(data), {"a": pa.table({"text": ["x", "y"]})}, "e", "float32")

    storage, rows = f"memory://{tmp_path.name}/runs", np.arange(8, dtype=np.float32).reshape(2, 4)
    first, second, elsewhere = machine("1", storage), machine("2", storage + "/"), machine("3", str(tmp_path / "disk"))
    (file,) = first.missing()
    assert list(second.missing())[0].name == file.name
    first.keep(file, rows)
    assert not second.missing() and np.array_equal(second.read()["a"], rows)
    assert len(elsewhere.missing()) == 1 and elsewhere.shared is None


def test_a_storage_that_does_not_answer_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"sources": ["eng_Latn"], "corpus": {"cache_dir": str(tmp_path)}, "storage": "memory://away/runs"}
    pieces = Pieces.of(build(data), {"a": pa.table({"text": ["x"]})}, "e", "float32")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("throttled")

    for call in ("ls", "put_file", "makedirs"):
        monkeypatch.setattr(pieces.shared, call, refuse)
    (file,) = pieces.missing()
    pieces.keep(file, np.ones((1, 4), np.float32))
    assert not pieces.missing() and pieces.read()["a"].tolist() == [[1, 1, 1, 1]]
