"""Detect what a file is by its bytes, whatever its name, and the remedy for one that is not the text it should be."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from xlt_ray.errors import InputError

STDIN = "standard input"
HEAD = 4096  # bytes that show what a file is
POINTER = b"version https://git-lfs.github.com/spec/"

PACKED = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
}
# UTF-32 first, since its mark begins with that of UTF-16
MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
AS_CSV = "open it and save it as CSV UTF-8"
AS_JSONL = "read it with the library that wrote it and save it as jsonl"
OTHERS = {
    b"PAR1": ("a parquet file", AS_JSONL),
    b"ARROW1": ("an Arrow file", AS_JSONL),
    b"FEA1": ("a Feather file", AS_JSONL),
    b"ORC": ("an ORC file", AS_JSONL),
    b"Obj\x01": ("an Avro file", AS_JSONL),
    b"SQLite format 3\x00": ("an SQLite database", AS_JSONL),
    b"\x89HDF": ("an HDF5 file", AS_JSONL),
    b"\x93NUMPY": ("a NumPy array", AS_JSONL),
    b"\xd0\xcf\x11\xe0": ("an old Excel file", AS_CSV),
    b"{\\rtf": ("an RTF document", "open it and save it as plain text in UTF-8"),
    b"%PDF-": ("a PDF document", "find the data themselves"),
}
# Shown side by side, because a few bytes do not decide between them: a guesser took half of ten samples wrongly.
EIGHT_BIT = ("CP1252", "CP1250", "CP1251", "CP1253", "CP1254", "CP1256", "KOI8-U", "GB18030", "SHIFT_JIS", "EUC-KR")


def lfs_pointer(file: Path) -> str | None:
    """Describe the fault of a file that is a Git LFS pointer, with the remedy; None for any other, or none."""
    try:
        with file.open("rb") as stream:
            return pointer_fault(stream.read(HEAD), str(file))
    except (OSError, ValueError):
        return None


def pointer_fault(start: bytes, shown: str) -> str | None:
    """Describe the same fault from a file's first bytes; `shown` is its name for the message."""
    if not start.startswith(POINTER):
        return None
    size = re.search(rb"^size (\d+)$", start, re.MULTILINE)
    of = f" to {int(size[1]):,} bytes" if size else ""
    return f"{shown}: no data but a Git LFS pointer{of}; install git-lfs and run `git lfs pull` in its folder"


def in_place(command: str, shown: str) -> str:
    """Return the shell command that sends a file through another one and keeps the result under the same name."""
    if shown == STDIN:
        return f"`{command}` before it in the pipe"
    return f'`f={shlex.quote(shown)}; {command} < "$f" > "$f.new" && mv "$f.new" "$f"`'


def foreign(start: bytes, shown: str) -> str | None:
    """Describe what a file is instead of UTF-8 text by its first bytes, with the remedy; None where it may be text."""
    if fault := pointer_fault(start, shown):
        return fault
    for magic, (name, command) in PACKED.items():
        if start.startswith(magic):
            return f"{shown}: packed with {name}, not text; {in_place(command, shown)} unpacks it"
    if encoding := wide_encoding(start):
        return (
            f"{shown}: written in {encoding}, not UTF-8; {in_place(f'iconv -f {encoding} -t UTF-8', shown)} converts it"
        )
    if start.startswith(b"PK\x03\x04"):
        sheet = any(part in start for part in (b"xl/", b"[Content_Types]", b"opendocument.spreadsheet"))
        what, remedy = ("a spreadsheet", AS_CSV) if sheet else ("a zip archive", "unpack it with `unzip`")
        return f"{shown}: {what}, not text; {remedy}"
    for magic, (what, remedy) in OTHERS.items():
        if start.startswith(magic):
            return f"{shown}: {what}, not text; {remedy}"
    if re.match(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|\?xml|!--|head)\b", start, re.IGNORECASE):
        return (
            f"{shown}: a web page ({_excerpt(start)!r}), as a server sends instead of a file that it refuses or shows; "
            "download the raw file again"
        )
    return None


def wide_encoding(start: bytes) -> str | None:
    """Return the UTF-16 or UTF-32 encoding of bytes, by their mark or by where their zeros stand; None: neither."""
    for mark, encoding in MARKS.items():
        if start.startswith(mark):
            return encoding
    zeros = tuple(byte == 0 for byte in start[:8])
    patterns = {"UTF-32LE": (0, 1, 1, 1), "UTF-32BE": (1, 1, 1, 0), "UTF-16LE": (0, 1), "UTF-16BE": (1, 0)}
    return next((name for name, zero in patterns.items() if zeros == tuple(map(bool, zero * (8 // len(zero))))), None)


def _excerpt(start: bytes) -> str:
    return " ".join(start[:200].decode("utf-8", "replace").split())[:40]


def undecodable(place: str, line: bytes, error: UnicodeDecodeError, at: int, mixed: bool, shown: str) -> str:
    """Describe which byte of a line is not UTF-8, with the remedy.

    `at` is where the line starts in the file. `mixed`: other lines are UTF-8 beyond ASCII, so that converting the whole
    file would spoil them.
    """
    fault = f"{place}: byte {at + error.start} of the file (0x{line[error.start]:02x}) is not UTF-8"
    if mixed:
        seen = line[max(0, error.start - 20) : error.start + 20].decode("utf-8", "replace")
        return f"{fault}, other lines are: this one is damaged or in another encoding ({seen!r}); correct or remove it"
    convert = in_place("iconv -f ENCODING -t UTF-8", shown)
    return f"{fault}; {convert} converts it; for ENCODING write the one that reads right here: {_readings(line)}"


def _readings(line: bytes) -> str:
    names: dict[str, str] = {}
    for name in EIGHT_BIT:
        with contextlib.suppress(UnicodeDecodeError):
            text = line.decode(name)
            first = next((at for at, c in enumerate(text) if not c.isascii()), 0)
            part = text[max(0, first - 3) : first + 15].strip()
            if all(c.isascii() or c.isalpha() or c in "«»–—“”‘’…、。" for c in part):
                names.setdefault(part, name)
    return ", ".join(f"{name} {text!r}" for text, name in names.items()) or "ask who wrote it"


def elements(file: Path, name: str) -> Iterator[ElementTree.Element]:
    """Yield the elements of a name, in any namespace, of an XML file, and forget each; raise ParseError and OSError."""
    # outer entities are not fetched, and expat bounds what inner ones do
    above: list[ElementTree.Element] = []
    for event, element in ElementTree.iterparse(file, ("start", "end")):
        if event == "start":
            above.append(element)
            continue
        above.pop()
        if tag(element) == name:
            yield element
            for parent in above[-1:]:
                parent.clear()  # or the elements that are done would stay in memory


def tag(element: ElementTree.Element) -> str:
    """Return the name of an element without its namespace, "" for a comment."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def text_lines(file: str | Path, stream: io.BufferedReader | None = None) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, or of an open stream shown as `file`, without line ends and byte-order mark.

    Nothing is replaced or guessed: InputError, with line, byte and remedy, where a line is not UTF-8 and where the
    file is packed, a spreadsheet, a Git LFS pointer or the like. Lines end in LF or CR LF and are read one by one.
    """
    with contextlib.ExitStack() as stack:
        try:
            reader = stream or stack.enter_context(Path(file).open("rb"))
            start = reader.peek(HEAD)[:HEAD]
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); give a file of text in UTF-8") from None
        if fault := foreign(start, str(file)):
            raise InputError(fault)
        at, mixed = 0, False
        for number, line in enumerate(reader, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(undecodable(f"{file}, line {number}", line, error, at, mixed, str(file))) from None
            mixed = mixed or not line.isascii()
            at += len(line)
            yield text.removesuffix("\n").removesuffix("\r")
