"""What a file is by its bytes: the remedies are followed here, and the plain reader refuses what it cannot read."""

from __future__ import annotations

import bz2
import gzip
import re
import subprocess
from pathlib import Path

import pytest

from xlt_ray import config, sniff
from xlt_ray.errors import InputError

ROWS = "text\tlabel\nsi vizuri, ĉu ne\tneg\nsafi sana\tpos\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"


def refused(file: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(sniff.text_lines(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (ROWS.encode("utf-16"), "written in UTF-16, not"),
        (b"\xfe\xff" + ROWS.encode("utf-16-be"), "written in UTF-16, not"),
        (ROWS.encode("utf-16-le"), "written in UTF-16LE"),
        (ROWS.encode("utf-32"), "written in UTF-32, not"),
        (gzip.compress(ROWS.encode()), "packed with gzip"),
        (bz2.compress(ROWS.encode()), "packed with bzip2"),
    ],
)
def test_the_command_of_a_remedy_makes_the_file_readable(tmp_path: Path, content: bytes, named: str) -> None:
    file = tmp_path / "what's in it?.tsv"
    file.write_bytes(content)
    message = refused(file)
    assert named in message
    subprocess.run(re.findall("`(.*)`", message)[0], shell=True, check=True)
    assert list(sniff.text_lines(file)) == ROWS.splitlines()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("еда была вкусна", "CP1251"),
        ("größe", "CP1252"),
        ("这个酒店 非常好", "GB18030"),
        ("食べ物は 最高", "SHIFT_JIS"),
    ],
)
def test_one_of_the_encodings_offered_reads_right_and_converts(tmp_path: Path, text: str, encoding: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(f"text\n{text}\n".encode(encoding))
    message = refused(file)
    assert "a.txt, line 2: byte " in message and f"{encoding} {text!r}" in message
    command = re.findall("`(.*?)`", message)[0].replace("ENCODING", encoding)
    subprocess.run(command, shell=True, check=True)
    assert list(sniff.text_lines(file)) == ["text", text]


def test_a_broken_line_among_utf8_is_not_to_be_converted_with_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("été\n".encode() + b"caf\xe9\n")
    assert "line 2: byte 9 of the file (0xe9)" in refused(file)
    assert "iconv" not in refused(file) and "correct or remove it" in refused(file)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (POINTER, "a Git LFS pointer to 12,345 bytes; install git-lfs and run `git lfs pull`"),
        (b"PK\x03\x04....xl/workbook.xml", "a spreadsheet, not text; open it and save it as CSV UTF-8"),
        (b"PAR1....", "a parquet file, not text; read it with"),
        (b"\n<!DOCTYPE html><html>404", "a web page ('<!DOCTYPE html><html>404')"),
        (b"SQLite format 3\x00", "an SQLite database"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert expected in refused(tmp_path / "a.txt")


def test_lines_come_as_they_are_from_a_file_and_a_stream(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\r\n<b>two</b>\nx\x0by\xe2\x80\xa8z")
    expected = ["one", "", "<b>two</b>", "x\x0by\u2028z"]
    assert list(sniff.text_lines(file)) == expected
    with file.open("rb") as stream:
        assert list(sniff.text_lines("-", stream)) == expected
        assert not stream.closed
    assert "no/such: cannot be read" in refused(Path("no/such"))


def test_a_configuration_that_is_a_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(POINTER)
    assert sniff.lfs_pointer(tmp_path / "no such") is None
    with pytest.raises(InputError, match=r"c.yaml: no data but a Git LFS pointer"):
        config.load(tmp_path / "c.yaml")
