"""An artefact's folder is read only where every file is the one that was written, and says what is wrong otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xlt_ray.errors import InputError
from xlt_ray.inference import artefact
from xlt_ray.inference.artefact import Artefact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.float32.onnx", "model.int8.onnx", "embeddings.bin", "tokenizer.json"):
        (tmp_path / name).write_text(f"what is in {name}")
    artefact.write(
        Artefact(
            tmp_path, ("a", "b"), "query: ", 128, False, 1, "0123456789abcdef", "bundled:e5-small@x",
            ("float32", "int8"), 0.25, {"mode": "exact", "pieces": 9, "kept": 9},
            {"eng_Latn": {"accuracy": 0.5, "role": "source", "seen": None}}, {"run": "x", "seed": 0},
        )
    )  # fmt: skip
    return tmp_path


def rewrite(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / artefact.FILE).read_text())
    (folder / artefact.FILE).write_text(json.dumps(content | changes))


def test_what_was_written_is_read(folder: Path) -> None:
    found = artefact.read(folder)
    assert (found.labels, found.precisions, found.margin, found.pairs) == (("a", "b"), ("float32", "int8"), 0.25, False)
    assert found.languages["eng_Latn"] == {"accuracy": 0.5, "role": "source", "seen": None}
    assert found.network("int8") == folder / "model.int8.onnx"
    with pytest.raises(InputError, match="has no int4 network, only float32, int8"):
        found.network("int4")


def test_other_files_in_the_folder_are_neither_listed_nor_read(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    artefact.write(artefact.read(folder))
    files = json.loads((folder / artefact.FILE).read_text())["files"]
    assert set(files) == {"model.float32.onnx", "model.int8.onnx", "embeddings.bin", "tokenizer.json"}


def test_checks_decide_which_precision_is_served(folder: Path) -> None:
    assert artefact.record(folder, {"float32": {"passed": True}, "int8": {"passed": True}}).precisions[0] == "int8"
    assert artefact.read(folder).checks["int8"] == {"passed": True}
    assert artefact.record(folder, {"float32": {"passed": True}, "int8": {"passed": False}}).precisions[0] == "float32"
    assert artefact.record(folder, {"int8": {"passed": True}}).precisions[0] == "int8"
    assert artefact.record(folder, {}).precisions == artefact.read(folder).precisions == ("float32", "int8")


@pytest.mark.parametrize("name", ["model.int8.onnx", "embeddings.bin", "tokenizer.json"])
def test_a_changed_missing_or_longer_file_is_named(folder: Path, name: str) -> None:
    written = (folder / name).read_bytes()
    for content, fault in ((written[::-1], "SHA-256 differs"), (written + b" ", "bytes instead of")):
        (folder / name).write_bytes(content)
        with pytest.raises(
            InputError, match=rf"{name}: .*{fault}.*; copy the folder again, or export the bundle again"
        ):
            artefact.read(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: missing"):
        artefact.read(folder)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": 7}, "format 7, this version reads 1"),
        ({"labels": "ab"}, r"labels: 'ab' is not valid .*; copy the folder again"),
        ({"labels": ["a", "a"]}, "labels"),
        ({"max_length": True}, "max_length"),
        ({"max_length": 10**30}, "max_length"),
        ({"margin": float("nan")}, "margin"),
        ({"precisions": ["int8"]}, "precisions"),
        ({"precisions": ["float32", "int4"]}, "precisions"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}, "files"),
        ({"files": {"model.pkl": {"bytes": 1, "sha256": ""}}}, "files"),
        ({"files": {}}, "does not list tokenizer.json"),
        ({"surplus": 1}, "has other keys than it should .surplus."),
    ],
)
def test_an_invalid_value_is_refused_by_name(folder: Path, changes: dict[str, Any], fault: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(InputError, match=fault):
        artefact.read(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_description_is_refused(folder: Path, content: bytes) -> None:
    (folder / artefact.FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"artefact\.json: (damaged|format)"):
        artefact.read(folder)


def test_a_huge_description_is_not_read(folder: Path) -> None:
    with (folder / artefact.FILE).open("r+b") as file:
        file.truncate(artefact.LARGEST + 1)
    with pytest.raises(InputError, match="is the most that is read"):
        artefact.read(folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"not an artefact .no artefact.json.; export a bundle to make one"):
            artefact.read(place)


def test_importing_loads_nothing_slow() -> None:
    code = "import sys, xlt_ray.inference.artefact, xlt_ray.model.batching; print(HEAVY & set(sys.modules))"
    code = code.replace("HEAVY", "{'torch', 'numpy', 'scipy'}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "set()"
