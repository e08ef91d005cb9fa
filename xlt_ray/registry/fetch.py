"""Fetch a model to this machine, ready to be loaded: `python -m xlt_ray.registry.fetch SPEC` prints its folder.

It runs as a process of its own, so that a server of the model loads neither MLflow nor torch for it. SPEC is a
registered model (models:/NAME@ALIAS, models:/NAME/VERSION), or the folder of an artefact, of a bundle, or of a run that
holds one. What is fetched or exported is kept in the cache, named by its content: one process makes a folder while the
others wait for it, and a kill leaves none half made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from xlt_ray import durable
from xlt_ray.config.masking import masked
from xlt_ray.errors import InputError
from xlt_ray.inference import artefact
from xlt_ray.registry import versions

CACHE = durable.cache_folder("serving")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("auto", "float32", "int8")
VOCABULARIES = ("exact", "trimmed")
T = TypeVar("T")


@dataclass(frozen=True)
class Fetched:
    """A model's folder, `model` (its address in the registry, or its folder) and `version` (its number, or digest)."""

    folder: str
    model: str
    version: str


@dataclass(frozen=True)
class Form:
    """The form a model is wanted in: an artefact for the CPU, a bundle for a GPU (`device` cuda) and of words.

    `vocabulary` trimmed keeps what `languages` use, by default those that were measured.
    """

    device: str = "cpu"
    precision: str = "auto"
    vocabulary: str = "exact"
    languages: tuple[str, ...] = ()


def fetch(spec: str, tracking: str | None = None, form: Form = Form(), cache: Path | None = None) -> Fetched:
    """Make a model's folder available on this machine, in the form that is wanted.

    A promoted version brings its artefact; of any other model one is exported, in float32 unless int8 is asked for,
    because nothing has shown that its int8 agrees. A trimmed vocabulary is always exported, and a model of words never.
    Raises InputError for an invalid request and RegistryError where MLflow fails.
    """
    _check(form)
    cache = (cache or CACHE).expanduser().absolute()
    if spec.startswith("models:"):
        version = versions.resolve(spec, tracking or versions.default_uri())
        as_promoted = (form.device, form.vocabulary) == ("cpu", "exact")
        if as_promoted and (card := versions.listing(version, "serving")) is not None:
            folder = cache / "artefacts" / _key(card)
            found = _kept(folder, artefact.read, lambda draft: versions.download(version, "serving", draft, card))
            _check_precision(found, form.precision, version.model)
        else:
            folder = _bundle_of(version, cache)
            folder = _formed(folder, form, cache)
        return Fetched(str(folder), version.model, version.version)
    folder = bundle_in(Path(spec).expanduser().absolute())
    if (folder / artefact.FILE).is_file():
        if form.device == "cuda":
            raise InputError(f"{folder}: an artefact runs on the CPU; for a GPU give the bundle it was exported from")
        found = artefact.read(folder)
        _check_precision(found, form.precision, str(folder))
        return Fetched(str(folder), str(folder), found.digest)
    return Fetched(str(_formed(folder, form, cache)), str(folder), artefact.bundle_digest(folder))


def _formed(bundle: Path, form: Form, cache: Path) -> Path:
    """Return the folder to answer from: the bundle itself on a GPU, or where it is of words, else an artefact of it."""
    words = artefact.of_words(bundle)
    if words and (form.precision == "int8" or form.vocabulary == "trimmed"):
        fault = "precision: int8" if form.precision == "int8" else "vocabulary: trimmed"
        raise InputError(
            f"{fault} is of exported models, and {bundle}, a model of words, is not exported; leave it out"
        )
    if form.device != "cuda" and not words:
        return _exported(bundle, form, cache)
    artefact.verify_bundle(bundle)
    return bundle


def bundle_in(folder: Path) -> Path:
    """Return the bundle inside the folder of a run, or the folder itself where it is a bundle or an artefact.

    Raises InputError that names what the folder is instead, and the remedy.
    """
    if (folder / "bundle" / "bundle.json").is_file():
        return folder / "bundle"
    if not any((folder / name).is_file() for name in (artefact.FILE, "bundle.json")):
        raise InputError(_no_model(folder))
    return folder


def _no_model(folder: Path) -> str:
    place = str(folder)
    scheme = re.search(r"([a-z][a-z0-9+.-]*):/", place)
    if scheme and not folder.exists():
        return f"{scheme[1]}:/...: models are folders here or in MLflow; write a folder, or models:/NAME@ALIAS"
    if "@" in folder.name and not folder.exists():
        return f"{place}: no such folder; a registered model is written models:/{folder.name}"
    if not folder.exists():
        return f"{place}: no such folder; give that of a finished run, or models:/NAME@ALIAS"
    if not folder.is_dir():
        return f"{place}: a file; give the folder of a run, a bundle or an artefact"
    if (folder / "search.yaml").is_file():
        inside = sorted(folder.glob("retrained/*/bundle/bundle.json"))
        resume = f"`xlt tune {folder}/search.yaml` resumes it"
        return f"{place}: a search; " + (f"give one of its runs, such as {inside[0].parents[1]}" if inside else resume)
    if (folder / "experiment.yaml").is_file():
        resume = f"`xlt train {folder}/experiment.yaml` resumes it"
        return f"{place}: a run that is not finished; {resume}, or give a finished run"
    inside = sorted(folder.glob("*/bundle/bundle.json"))
    remedy = f"give a run in it, such as {inside[0].parents[1]}" if inside else "give such a folder"
    return f"{place}: neither an artefact nor a bundle, nor a finished run that holds one; {remedy}"


def _check(form: Form) -> None:
    for name, known in (("device", DEVICES), ("precision", PRECISIONS), ("vocabulary", VOCABULARIES)):
        if (value := getattr(form, name)) not in known:
            raise InputError(f"{name}: {value!r}; one of {', '.join(known)}")


def _check_precision(found: artefact.Artefact, precision: str, place: str) -> None:
    if precision != "auto" and precision not in found.precisions:
        raise InputError(
            f"{place}: its artefact has no {precision} network, only {', '.join(found.precisions)}: one that did not "
            "agree with its original was dropped; ask for auto"
        )


def _key(listing: bytes) -> str:
    # the listing holds the digest of every other file, so its own digest names them all
    return hashlib.sha256(listing).hexdigest()[:16]


def _bundle_of(version: versions.Version, cache: Path) -> Path:
    card = versions.listing(version, "bundle")
    if card is None:
        raise InputError(f"{version.model}: is not a model of xlt_ray; give one that `xlt train` registered")
    folder = cache / "bundles" / _key(card)
    _kept(folder, artefact.verify_bundle, lambda draft: versions.download(version, "bundle", draft, card))
    return folder


def _exported(bundle: Path, form: Form, cache: Path) -> Path:
    precision = "float32" if form.precision == "auto" else form.precision
    languages = [_key(",".join(sorted(form.languages)).encode())] if form.languages else []
    folder = cache / "exports" / "-".join([artefact.bundle_digest(bundle), precision, form.vocabulary, *languages])

    def make(draft: Path) -> None:
        from xlt_ray.export import export

        vocabulary: Any = form.vocabulary
        export.export(bundle, draft, precisions=(precision,), vocabulary=vocabulary, languages=form.languages)

    _kept(folder, artefact.read, make)
    return folder


def _kept(folder: Path, read: Callable[[Path], T], make: Callable[[Path], Any]) -> T:
    """Read a folder of the cache; where it is missing or damaged one process makes it while the others wait."""
    locks = folder.parents[1] / "locks"
    for parent in (folder.parent, locks):
        parent.mkdir(parents=True, exist_ok=True)
    with durable.locked(locks / f"{folder.parent.name}-{folder.name}.lock"):
        if folder.is_dir():
            try:
                return read(folder)
            except InputError:
                shutil.rmtree(folder)  # damaged by a power cut, or by hand
        for left in folder.parent.glob(f".*{folder.name}.*"):  # of a process that was killed: this one has the lock
            shutil.rmtree(left, ignore_errors=True)
        with durable.publishing(folder) as draft:
            make(draft)
        return read(folder)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Report what is wrong in one line."""
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a process: one JSON line on standard output, or one line `error: ...`; 2 bad input, 1 anything else."""
    parser = _Parser(prog="python -m xlt_ray.registry.fetch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("spec", metavar="SPEC", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder")
    parser.add_argument("--tracking", metavar="URI", help="default: MLFLOW_TRACKING_URI, else sqlite:///xlt.db")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--vocabulary", choices=VOCABULARIES, default="exact")
    parser.add_argument("--languages", default="", help="those a trimmed vocabulary keeps, such as deu_Latn,swh_Latn")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help=f"default: {CACHE}")
    asked = vars(parser.parse_args(arguments))
    asked["languages"] = tuple(code for code in asked["languages"].split(",") if code)
    form = Form(**{name: asked.pop(name) for name in Form.__dataclass_fields__})
    warnings.simplefilter("ignore")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of transformers on standard error
    sys.stdout.flush()
    answer = os.dup(1)
    os.dup2(2, 1)  # so that nothing that libraries print gets into the one line
    try:
        line = json.dumps(asdict(fetch(**asked, form=form)))
    except Exception as error:
        print(masked(f"error: {' '.join(str(error).split()) or type(error).__name__}"), file=sys.stderr, flush=True)
        return 2 if isinstance(error, InputError) else 1
    finally:
        sys.stdout.flush()
        os.dup2(answer, 1)
        os.close(answer)
    print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
