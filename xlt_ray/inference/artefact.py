"""The folder a model is served from: network files, tokenizer.json, and artefact.json that says what they are.

Only JSON, ONNX, raw weights and SentencePiece's form of a vocabulary, never a pickle. artefact.json lists the size and
the SHA-256 of every other file; none is opened as a model before both were found right, and one that is not listed is
never opened at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xlt_ray.config.read import build
from xlt_ray.errors import InputError

FORMAT = 1
FILE = "artefact.json"
TOKENIZER = "tokenizer.json"
PRECISIONS = ("float32", "int8")
LISTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.(onnx|bin|json|model)")
# of `metrics.LanguageScore`: what a reader of an answer wants to know of its language
MEASURED = {
    "accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high", "macro_f1": "macro_f1",
    "support": "support", "role": "role", "seen": "seen", "calibration_error": "calibration_error",
    "reliability": "reliability",
}  # fmt: skip
LARGEST = 64 * 2**20  # bytes of artefact.json: labels and languages are kilobytes
AGAIN = "copy the folder again, or export the bundle again"


@dataclass(frozen=True)
class Artefact:
    """A folder ready to be served: what it answers, how, how good it was measured to be, and where it comes from.

    `precisions` names the network files there are, the one to serve by default first. Answers in int8 whose two best
    labels are nearer to each other than `margin`, in logits, are given again in float32. `vocabulary` holds mode
    ("exact" keeps every id, "trimmed" does not), pieces (of the encoder), kept, and the library that cuts texts.
    `languages` maps a code to what was measured there, fractions from 0 to 1. `checks` holds what `agreement.check`
    found, {} before. `offsets` maps a code to a number for every label, which is what a technique adds to the logits of
    texts known to be in that language; the networks answer as if it were unknown. Logits are divided by
    `temperature` before they become probabilities.
    """

    folder: Path
    labels: tuple[str, ...]
    prefix: str
    max_length: int
    pairs: bool
    pad_id: int
    digest: str
    encoder: str
    precisions: tuple[str, ...]
    margin: float
    vocabulary: Mapping[str, Any]
    languages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    offsets: Mapping[str, Sequence[float]] = field(default_factory=dict)
    temperature: float = 1.0

    def network(self, precision: str) -> Path:
        """Give the ONNX file of a precision; InputError names those there are."""
        if precision not in self.precisions:
            raise InputError(f"{self.folder}: has no {precision} network, only {', '.join(self.precisions)}; name one")
        return self.folder / network_file(precision)


def network_file(precision: str) -> str:
    """Name the ONNX file of a precision."""
    return f"model.{precision}.onnx"


def write(artefact: Artefact) -> None:
    """Write artefact.json, whole or not at all, over the network files and the tokenizer that lie in its folder."""
    folder = artefact.folder
    listed = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and LISTED.fullmatch(path.name) and path.name != FILE
    }
    _write(artefact, listed)


def record(folder: str | Path, checks: Mapping[str, Any]) -> Artefact:
    """Record what `agreement.check` found: a precision that passed stands before one that did not, int8 before float32.

    Nothing but artefact.json changes. Returns the artefact as it is from now on.
    """
    found = read(folder)
    passed = {name for name, one in checks.items() if isinstance(one, Mapping) and one.get("passed")}
    order = sorted(found.precisions, key=lambda name: (name not in passed, name != "int8"))
    # without any verdict float32 is what is safe to serve
    order = order if passed else sorted(order, key=lambda name: name != "float32")
    changed = replace(found, checks=dict(checks), precisions=tuple(order))
    _write(changed, _content(found.folder)["files"])
    return changed


def read(folder: str | Path) -> Artefact:
    """Read an artefact after verifying every file; InputError names the file that is missing, damaged or unlisted."""
    folder = Path(folder)
    content = _content(folder)
    files = content.pop("files")
    content.pop("format")
    for name, wanted in files.items():
        _verify(folder / name, wanted["bytes"], wanted["sha256"])
    found = Artefact(folder, **content | {key: tuple(content[key]) for key in ("labels", "precisions")})
    for name in (TOKENIZER, *map(network_file, found.precisions)):
        if name not in files:
            raise InputError(f"{folder / FILE}: does not list {name}; {AGAIN}")
    return found


def digest(file: Path) -> str:
    """Compute a file's SHA-256 in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def bundle_digest(folder: str | Path) -> str:
    """Name a bundle by its contents, 16 hex digits: bundle.json lists the SHA-256 of all its other files."""
    file = Path(folder) / "bundle.json"
    if not file.is_file():
        raise InputError(f"{folder}: not a bundle (no bundle.json); give the folder `bundle` of a finished run")
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def describe(bundle: str | Path, pad_id: int) -> Artefact:
    """Say of a bundle, which somebody verified, what artefact.json would: float32 alone, every piece, no files yet."""
    folder = Path(bundle)
    content = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    experiment = build(content["experiment"], place=f"{folder / 'bundle.json'}: experiment")
    scores = folder / "scores.json"
    languages = json.loads(scores.read_text(encoding="utf-8"))["languages"] if scores.is_file() else {}
    return Artefact(
        folder=folder,
        labels=tuple(content["labels"]),
        prefix=content["prefix"],
        max_length=content["max_length"],
        pairs=experiment.corpus.text_pair is not None,
        pad_id=pad_id,
        digest=bundle_digest(folder),
        encoder=content["encoder"],
        precisions=("float32",),
        margin=0.0,
        vocabulary={"mode": "exact"},
        languages={code: {key: one.get(name) for key, name in MEASURED.items()} for code, one in languages.items()},
        temperature=content.get("temperature", 1.0),
        provenance={
            "run": content.get("run") or experiment.key(),  # bundles of before do not have it
            "name": experiment.name,
            "sources": list(experiment.sources),
            "method": experiment.training.method,
            "techniques": list(experiment.techniques),
            "seed": experiment.seed,
            "oracle": experiment.oracle,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "xlt_ray": version("xlt-ray"),
        },
    )


def write_text(file: Path, text: str) -> None:
    """Write a text file whole or not at all: beside, then renamed."""
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, prefix=f".{file.name}-", delete=False, encoding="utf-8"
    ) as to:
        try:
            to.write(text)
            to.flush()
            os.fsync(to.fileno())
            os.chmod(to.name, 0o644)
            os.replace(to.name, file)
        except BaseException:
            Path(to.name).unlink(missing_ok=True)
            raise


def _write(artefact: Artefact, listed: Mapping[str, Any]) -> None:
    content = asdict(artefact)
    content.pop("folder")
    text = json.dumps({"format": FORMAT, **content, "files": listed}, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(artefact.folder / FILE, text + "\n")


def _content(folder: Path) -> dict[str, Any]:
    """Read artefact.json and check that every field is there and of its kind."""
    file = folder / FILE
    try:
        size = file.stat().st_size
        if size > LARGEST:
            raise InputError(f"{file}: {size} bytes, and {LARGEST} is the most that is read; {AGAIN}")
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not an artefact (no {FILE}); export a bundle to make one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: damaged or unreadable ({error}); {AGAIN}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{file}: format {found!r}, this version reads {FORMAT}; export the bundle again")
    content.setdefault("offsets", {})  # artefacts written before there were any
    content.setdefault("temperature", 1.0)
    wanted = {one.name for one in fields(Artefact)} - {"folder"} | {"format", "files"}
    if set(content) != wanted:
        raise InputError(f"{file}: has other keys than it should ({', '.join(sorted(wanted ^ set(content)))}); {AGAIN}")
    for key, sound in _SOUND.items():
        if not sound(content[key]):
            raise InputError(f"{file}: {key}: {str(content[key])[:80]!r} cannot be meant; {AGAIN}")
    for code, row in content["offsets"].items():
        if len(row) != len(content["labels"]):
            raise InputError(f"{file}: offsets: {code}: not a number for every label; {AGAIN}")
    return content


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**40


def _listed(files: Any) -> bool:
    return isinstance(files, dict) and all(
        LISTED.fullmatch(name) and isinstance(one, dict) and _whole(one.get("bytes"), 0)
        and isinstance(one.get("sha256"), str)
        for name, one in files.items()
    )  # fmt: skip


def _numbers(row: Any) -> bool:
    # the bound keeps out infinities, what is not a number, and whole numbers that no float holds
    return isinstance(row, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 2**40 for one in row
    )


_SOUND = {
    "labels": lambda value: _texts(value) and len(set(value)) == len(value),
    "prefix": lambda value: isinstance(value, str),
    "max_length": lambda value: _whole(value, 3),
    "pairs": lambda value: isinstance(value, bool),
    "pad_id": lambda value: _whole(value, 0),
    "digest": lambda value: isinstance(value, str),
    "encoder": lambda value: isinstance(value, str),
    "margin": lambda value: isinstance(value, int | float) and 0 <= value < float("inf"),
    "precisions": lambda value: (
        _texts(value) and "float32" in value and set(value) <= set(PRECISIONS) and len(set(value)) == len(value)
    ),
    "vocabulary": lambda value: isinstance(value, dict),
    "languages": lambda value: isinstance(value, dict) and all(isinstance(one, dict) for one in value.values()),
    "provenance": lambda value: isinstance(value, dict),
    "checks": lambda value: isinstance(value, dict),
    "temperature": lambda value: _numbers([value]) and value > 1e-9,
    "offsets": lambda value: isinstance(value, dict) and all(_numbers(row) for row in value.values()),
    "files": _listed,
}


def _verify(file: Path, size: int, sha256: str) -> None:
    try:
        found = file.stat().st_size
        if found != size:
            raise InputError(f"{file}: {found} bytes instead of {size}; {AGAIN}")
        if digest(file) != sha256:
            raise InputError(f"{file}: not the file that was exported (SHA-256 differs); {AGAIN}")
    except OSError as error:
        what = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(f"{file}: {what}; {AGAIN}") from None
