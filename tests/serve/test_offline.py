"""`xlt predict`: its input is read as a corpus is, and invalid input is refused with a remedy."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from serve import offline
from tests import local_server
from xlt_ray import cli

Predict = Callable[..., Any]
NO_MODEL = "no/such/model"  # what is refused before any model is looked for


@pytest.fixture(scope="module")
def single(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_server.artefact_of(tiny_encoder, tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def paired(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_server.artefact_of(tiny_encoder, tmp_path_factory.mktemp("paired"), pairs=True)


def predict(model: Path | str, file: Path | str, *options: str, stdin: Path | None = None) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if stdin:  # the runner's own is no buffered reader, as a pipe is
            patch.setattr(offline, "sys", SimpleNamespace(stdin=SimpleNamespace(buffer=stdin.open("rb"))))
        return CliRunner().invoke(cli.app, ["predict", str(model), str(file), *options])


def rows(done: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def refused(done: Any, *parts: str) -> str:
    assert done.exit_code == 2 and not done.stdout, done.output
    assert done.stderr.count("\n") == 1
    assert all(part in done.stderr for part in parts), done.stderr
    return str(done.stderr)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("größe\n".encode("utf-16"), ("written in UTF-16",)),
        ("first\nsecond\n".encode("utf-16-le"), ("written in UTF-16LE",)),
        ("ok\n" * 400 + "größe\n", ("line 401: byte 1202 of the file (0xf6) is not UTF-8", "CP1252")),
        (gzip.compress(b"a text\n"), ("packed with gzip", "gzip -dc")),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", ("Git LFS pointer", "git lfs pull")),
        (b"", ("empty; give one text a line",)),
        ('{"text": "a text", "language": "sw"}\n', ("line 1: a JSON object", "add --jsonl")),
    ],
    ids=["utf-16", "no mark", "latin-1", "gzip", "pointer", "empty", "jsonl"],
)
@pytest.mark.parametrize("way", ["file", "stdin"])
def test_what_is_no_text_is_refused_before_any_model_is_loaded(
    tmp_path: Path, content: bytes | str, parts: tuple[str, ...], way: str
) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("latin-1"))
    if way == "file":
        refused(predict(NO_MODEL, file), *parts)
    elif "line 401" not in parts[0]:  # a pipe is read once, as it comes
        message = refused(predict(NO_MODEL, "-", stdin=file), *parts)
        assert message.startswith("error: standard input") and "<" not in message


def test_a_file_that_is_not_there_and_a_directory_are_refused(tmp_path: Path) -> None:
    refused(predict(NO_MODEL, tmp_path / "none.txt"), "none.txt: cannot be read (No such file or directory)")
    refused(predict(NO_MODEL, tmp_path), "cannot be read (Is a directory)")


def test_texts_are_taken_as_they_stand_and_blank_ones_get_no_label(single: Path, tmp_path: Path) -> None:
    texts = ["eng1 eng2", " deu3\t", "", "\u1230\u2028\u120b \x85", " \u3000"]
    file = tmp_path / "texts.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode())
    done = predict(single, file)
    assert done.exit_code == 1 and "2 lines could not be answered" in done.stderr
    found = rows(done)
    assert [row["text"] for row in found] == texts
    assert [row["line"] for row in found] == [1, 2, 3, 4, 5]
    assert ["label" in row for row in found] == [True, True, False, True, False]
    assert found[2]["error"] == "empty: there is nothing to classify"


def test_a_pipe_is_answered_up_to_what_cannot_be_read(single: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes(b"eng1 eng2\n" * 300 + b"gr\xf6\xdfe\neng3\n")
    done = predict(single, "-", stdin=file)
    assert done.exit_code == 2 and "standard input, line 301: byte 3002" in done.stderr
    assert len(rows(done)) == 300


def test_a_model_of_pairs_says_how_to_ask_it(paired: Path, tmp_path: Path) -> None:
    file = tmp_path / "two columns.tsv"
    file.write_text("eng1 eng2\tdeu1\neng3\t“deu4”\n", encoding="utf-8")
    message = refused(predict(paired, file), "classifies pairs of texts", "--jsonl")
    subprocess.run(re.findall("`(.*)`", message)[0], shell=True, check=True)
    done = predict(paired, f"{file}.jsonl", "--jsonl")
    assert done.exit_code == 0 and all(row["label"] for row in rows(done)) and len(rows(done)) == 2
    command = re.findall("`(.*)`", refused(predict(paired, "-", stdin=file), "standard input"))[0]
    piped = subprocess.run(command, shell=True, check=True, input=file.read_bytes(), capture_output=True).stdout
    assert [json.loads(line)["pair"] for line in piped.splitlines()] == ["deu1", "“deu4”"]


def test_lines_of_the_other_kind_are_told_what_a_line_is(single: Path, paired: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('"eng1"\n{"text": "eng1", "pair": "deu1"}\n', encoding="utf-8")
    first, second = rows(predict(paired, file, "--jsonl"))
    assert '{"text": "...", "pair": "..."}' in first["error"] and "label" in second
    first, second = rows(predict(single, file, "--jsonl"))
    assert 'leave out "pair"' in second["error"] and "label" in first
