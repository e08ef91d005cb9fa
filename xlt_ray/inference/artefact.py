"""Read and write an artefact, the folder a model is served from: networks, tokenizer.json, and their artefact.json.

Only JSON, ONNX, raw weights and SentencePiece's form of a vocabulary, never a pickle. artefact.json lists the size and
the SHA-256 of every other file; none is opened as a model before both were checked, and one that is not listed is never
opened at all. What can be read of a bundle without torch is here as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from xlt_ray import durable, sniff
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.supervision import highest

FORMAT = 1
FORMAT_OF_WORDS = 2  # of a bundle whose task asks of words, which earlier versions would read wrongly
FORMAT_OF_HEADS = 2  # of an artefact whose networks have `heads`, which earlier versions would read wrongly
FILE = "artefact.json"
BUNDLE_FILE = "bundle.json"
HEAD = "head.safetensors"  # in a bundle: of its network
TEACHER = "teacher"  # in the lineage of a bundle: the role of one that it did not begin from
TOKENIZER = "tokenizer.json"
PRECISIONS = ("float32", "int8")
LISTED = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*\.(onnx|bin|json|model)$")
# of `scores.LanguageScore`: what a reader of an answer wants to know of its language
MEASURED = {
    "accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high", "macro_f1": "macro_f1",
    "support": "support", "role": "role", "seen": "seen", "calibration_error": "calibration_error",
    "reliability": "reliability", "supervision": "supervision",
}  # fmt: skip
LARGEST = 64 * 2**20  # bytes of artefact.json or bundle.json: labels and languages are kilobytes
AGAIN = "copy the folder again, or export the bundle again"
NO_BUNDLE = "not a bundle (no bundle.json); give the folder `bundle` of a finished run"
NO_ARTEFACT = "not an artefact (no artefact.json); export a bundle to make one"


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError("holds one of them twice")
    return values


def _precisions(values: tuple[str, ...]) -> tuple[str, ...]:
    if "float32" not in values or not set(values) <= set(PRECISIONS):
        raise ValueError(f"must be float32, and may be others of {', '.join(PRECISIONS)}")
    return _distinct(values)


# strict, because JSON's true is no number; the bounds keep out infinities and whole numbers that no float holds
_Whole = Annotated[int, Field(strict=True, ge=0, lt=2**40)]
_Number = Annotated[float, Field(strict=True, gt=-(2.0**40), lt=2.0**40, allow_inf_nan=False)]


@dataclass(frozen=True)
class Listed:
    """Size and SHA-256 of a file, as artefact.json lists them."""

    bytes: _Whole
    sha256: str


@dataclass(frozen=True)
class Artefact:
    """A folder ready to be served: what it answers, how, how good it was measured to be, and where it comes from.

    `precisions` names the network files there are, the one to serve by default first. Texts whose two best labels in
    int8 are nearer to each other than `margin`, in logits, are answered again in float32. `vocabulary` holds mode
    ("exact" keeps every id, "trimmed" does not), pieces (of the encoder), kept, and the library that cuts texts.
    `languages` maps a code to what was measured there, fractions from 0 to 1. `checks` holds what `agreement.check`
    found, {} before. `offsets` maps a code, or the key of a language's reading, to a number for every label, which is
    what a technique adds to the logits of texts known to be in that language; the networks answer as if it were
    unknown. Languages in `heads` have logits of their own instead: a network scores all labels as for an unknown
    language, then all labels again for each of `heads`. Logits are divided by `temperature` before they become
    probabilities. `files` are all others of the folder, empty before it is written.
    """

    folder: Path
    labels: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)]
    prefix: str
    max_length: Annotated[_Whole, Field(ge=3)]
    pairs: Annotated[bool, Field(strict=True)]
    pad_id: _Whole
    digest: str
    encoder: str
    precisions: Annotated[tuple[str, ...], AfterValidator(_precisions)]
    margin: Annotated[_Number, Field(ge=0)]
    vocabulary: Mapping[str, Any]
    languages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    offsets: Mapping[str, Sequence[_Number]] = field(default_factory=dict)
    heads: Annotated[tuple[str, ...], AfterValidator(_distinct)] = ()
    temperature: Annotated[_Number, Field(gt=1e-9)] = 1.0
    files: Mapping[Annotated[str, Field(pattern=LISTED.pattern)], Listed] = field(default_factory=dict)

    def network(self, precision: str) -> Path:
        """Return the ONNX file of a precision; InputError names those there are."""
        if precision not in self.precisions:
            raise InputError(f"{self.folder}: has no {precision} network, only {', '.join(self.precisions)}; name one")
        return self.folder / network_file(precision)


_ARTEFACT = TypeAdapter(Artefact)


def network_file(precision: str) -> str:
    """Return the name of the ONNX file of a precision."""
    return f"model.{precision}.onnx"


def write(artefact: Artefact) -> Artefact:
    """Write artefact.json for the network files and the tokenizer in its folder; return the artefact with its files."""
    files = {
        path.name: Listed(path.stat().st_size, durable.digest(path))
        for path in sorted(artefact.folder.iterdir())
        if path.is_file() and LISTED.fullmatch(path.name) and path.name != FILE
    }
    return _write(replace(artefact, files=files))


def record(folder: str | Path, checks: Mapping[str, Any]) -> Artefact:
    """Record what `agreement.check` found in artefact.json alone, and return the changed artefact.

    The precision to serve by default stands first: one that passed before one that did not, int8 before float32.
    """
    found = read(folder)
    passed = {name for name, one in checks.items() if isinstance(one, Mapping) and one.get("passed")}
    order = sorted(found.precisions, key=lambda name: (name not in passed, name != "int8"))
    # without any verdict float32 is what is safe to serve
    order = order if passed else sorted(order, key=lambda name: name != "float32")
    return _write(replace(found, checks=dict(checks), precisions=tuple(order)))


def read(folder: str | Path) -> Artefact:
    """Read an artefact after verifying every file; InputError names the file that is missing, damaged or unlisted."""
    found = _described(Path(folder))
    for name, one in found.files.items():
        check_file(found.folder / name, one.sha256, AGAIN, one.bytes)
    for name in (TOKENIZER, *map(network_file, found.precisions)):
        if name not in found.files:
            raise InputError(f"{found.folder / FILE}: does not list {name}; {AGAIN}")
    return found


def check_file(file: Path, sha256: str, again: str, size: int | None = None) -> None:
    """Raise InputError where a file is missing, or not the one of this SHA-256 and size; `again` is the remedy."""
    if pointer := sniff.lfs_pointer(file):
        raise InputError(pointer)
    try:
        found = file.stat().st_size
        if size is not None and found != size:
            raise InputError(f"{file}: {found} bytes instead of {size}; {again}")
        if durable.digest(file) != sha256:
            raise InputError(f"{file}: not the file that was saved (SHA-256 differs); {again}")
    except OSError as error:
        what = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(f"{file}: {what}; {again}") from None


def read_bundle(folder: Path) -> dict[str, Any]:
    """Return the content of bundle.json; no other file is looked at."""
    known = (FORMAT, FORMAT_OF_WORDS)
    content = _content(folder / BUNDLE_FILE, NO_BUNDLE, "copy the bundle again", "train again", known)
    if not isinstance(content.get("sha256"), dict):
        raise InputError(f"{folder / BUNDLE_FILE}: damaged (sha256: no list of files); copy the bundle again")
    return content


def begun_from(folders: Sequence[Path]) -> list[int | None]:
    """Return for each bundle the place here of the nearest that it descends from; None where none is known.

    Of one that is not there, or cannot be read, nothing is known.
    """
    contents: list[dict[str, Any]] = [{} for _ in folders]
    for content, folder in zip(contents, folders, strict=True):
        if (folder / BUNDLE_FILE).is_file():
            with contextlib.suppress(InputError):
                content.update(read_bundle(folder))
    places = {one["run"]: place for place, one in enumerate(contents) if one.get("run")}
    begun = [[before for before in one.get("lineage", ()) if before.get("role") != TEACHER] for one in contents]
    lines = [[places.get(before["run"]) for before in line] for line in begun]
    return [next((place for place in reversed(line) if place is not None), None) for line in lines]


def verify_bundle(folder: Path) -> dict[str, Any]:
    """Check a bundle's files against their recorded SHA-256 and return the content of bundle.json.

    Raises InputError too for a bundle that answers nothing.
    """
    content = read_bundle(folder)
    if HEAD not in content["sha256"]:
        raise InputError(
            f"{folder}: holds an encoder that learned no task (training.method: adapt), so it answers nothing; train a "
            f"run that begins from it, with network.init={folder}"
        )
    for name, sha256 in content["sha256"].items():
        check_file(folder / name, sha256, "copy the bundle again")
    return content


def of_words(folder: Path) -> bool:
    """Return whether the task of a bundle asks of words."""
    return bool(read_bundle(folder)["format"] == FORMAT_OF_WORDS)


def bundle_digest(folder: str | Path) -> str:
    """Return the digest of a bundle, 16 hex digits: bundle.json lists the SHA-256 of all its other files."""
    file = Path(folder) / BUNDLE_FILE
    if not file.is_file():
        raise InputError(f"{folder}: {NO_BUNDLE}")
    return durable.digest(file)[:16]


def content_digest(folder: str | Path) -> str:
    """Return a digest of what a run takes from a bundle it begins from: encoder, head, what was read of targets."""
    content = read_bundle(Path(folder))
    begins = ("encoder/", "head.", "changes.")
    files = {name: sha256 for name, sha256 in content["sha256"].items() if name.startswith(begins)}
    kept = {name: content.get(name) for name in ("labels", "prefix", "pooling", "supervision")}
    return hashlib.sha256(json.dumps([files, kept], sort_keys=True).encode()).hexdigest()[:16]


def describe(bundle: str | Path, pad_id: int) -> Artefact:
    """Describe a bundle that was verified as its artefact.json would: float32 alone, every piece, no files yet."""
    folder = Path(bundle)
    content = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    experiment = build(content["experiment"], place=f"{folder / BUNDLE_FILE}: experiment")
    scores = folder / "scores.json"
    languages = _measured(scores, content.get("format") == FORMAT_OF_WORDS) if scores.is_file() else {}
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
        languages=languages,
        temperature=content.get("temperature", 1.0),
        provenance={
            "run": content.get("run") or experiment.key(),  # bundles of before do not have it
            "name": experiment.name,
            "sources": list(experiment.sources),
            "method": experiment.training.method,
            "techniques": list(experiment.techniques),
            "seed": experiment.seed,
            "oracle": experiment.oracle,
            "supervision": highest(one.get("supervision") for one in languages.values()) or "not recorded",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "xlt_ray": version("xlt-ray"),
        },
    )


def _measured(scores: Path, words: bool) -> dict[str, dict[str, Any]]:
    """Read what was measured in each language; of words the main metric as well, its name as `metric`."""
    found = json.loads(scores.read_text(encoding="utf-8"))
    names, metric = MEASURED, {}
    if words:
        main = found["metrics"][0]
        names, metric = MEASURED | {"value": main, "low": f"{main}_low", "high": f"{main}_high"}, {"metric": main}
    return {
        code: metric | {key: one.get(name) for key, name in names.items()} for code, one in found["languages"].items()
    }


def _write(artefact: Artefact) -> Artefact:
    content = asdict(artefact)
    content.pop("folder")
    if not artefact.heads:
        content.pop("heads")  # which earlier versions do not know
    number = FORMAT_OF_HEADS if artefact.heads else FORMAT
    text = json.dumps({"format": number, **content}, indent=1, ensure_ascii=False, allow_nan=False)
    durable.write(artefact.folder / FILE, text + "\n")
    return artefact


def _content(file: Path, absent: str, again: str, outdated: str, formats: Sequence[int] = (FORMAT,)) -> dict[str, Any]:
    """Read artefact.json or bundle.json; InputError ends in one of three remedies where there is no sound one."""
    try:
        size = file.stat().st_size
        content = json.loads(file.read_bytes()) if size <= LARGEST else {}
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{file.parent}: {absent}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: damaged or unreadable ({error}); {again}") from None
    if size > LARGEST:
        raise InputError(f"{file}: {size} bytes, and {LARGEST} is the most that is read; {again}")
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found not in formats:
        known = " and ".join(map(str, formats))
        raise InputError(f"{file}: format {found}, this version reads {known}; {outdated}")
    return dict(content)


def _described(folder: Path) -> Artefact:
    """Read artefact.json and check that every field is there and of its kind; no other file is looked at."""
    file = folder / FILE
    content = _content(file, NO_ARTEFACT, AGAIN, "export the bundle again", (FORMAT, FORMAT_OF_HEADS))
    content = {"offsets": {}, "temperature": 1.0, "heads": []} | content  # artefacts written without
    wanted = {one.name for one in fields(Artefact)} - {"folder"} | {"format"}
    if set(content) != wanted:
        raise InputError(f"{file}: has other keys than it should ({', '.join(sorted(wanted ^ set(content)))}); {AGAIN}")
    try:
        artefact = _ARTEFACT.validate_python(content | {"folder": folder})
    except ValidationError as error:
        fault = error.errors()[0]
        key, reason = str(fault["loc"][0]), fault["msg"].removeprefix("Value error, ")
        raise InputError(f"{file}: {key}: {str(content[key])[:80]!r} is not valid ({reason}); {AGAIN}") from None
    for code, row in artefact.offsets.items():
        if len(row) != len(artefact.labels):
            raise InputError(f"{file}: offsets: {code}: not a number for every label; {AGAIN}")
    return artefact
