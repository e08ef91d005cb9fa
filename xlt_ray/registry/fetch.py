"""Bring a model to this machine, ready to be loaded: `python -m xlt_ray.registry.fetch SPEC` prints where it lies.

A process of its own, so that whoever serves the model loads neither MLflow nor torch for it. SPEC is a registered model
(models:/NAME@ALIAS, models:/NAME/VERSION), or the folder of an artefact, of a bundle, or of a run that holds one. What
is fetched or exported is kept under the cache by its content; a file lock lets one process make a thing while the
others wait, and it is made beside and renamed, so that a kill leaves nothing half.
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
from typing import Any, NoReturn

from xlt_ray.config.masking import masked
from xlt_ray.durable import locked
from xlt_ray.errors import InputError
from xlt_ray.inference import artefact
from xlt_ray.registry import versions

CACHE = Path("~/.cache/xlt_ray/serving")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("auto", "float32", "int8")
VOCABULARIES = ("exact", "trimmed")


@dataclass(frozen=True)
class Fetched:
    """Where a model lies: `model` is its address in the registry, or its folder; `version` its number, or digest."""

    folder: str
    model: str
    version: str


@dataclass(frozen=True)
class Form:
    """In which form a model is wanted: an artefact for the CPU, a bundle for a GPU (`device` cuda).

    `vocabulary` trimmed keeps what `languages` use.
    """

    device: str = "cpu"
    precision: str = "auto"
    vocabulary: str = "exact"
    languages: tuple[str, ...] = ()


def fetch(
    spec: str,
    tracking: str | None = None,
    form: Form = Form(),
    cache: Path | None = None,
) -> Fetched:
    """Make a model's folder available here, in the form that is wanted.

    A promoted version brings its artefact; of any other model one is exported, in float32 unless int8 is asked for,
    because nothing has shown that its int8 agrees. A trimmed vocabulary is always exported.
    Raises InputError for what cannot be meant and RegistryError where MLflow fails.
    """
    _check(form)
    cache = (cache or CACHE).expanduser().absolute()
    if spec.startswith("models:"):
        version = versions.resolve(spec, tracking or versions.default_uri())
        as_promoted = (form.device, form.vocabulary) == ("cpu", "exact")
        if as_promoted and (card := versions.listing(version, "serving")) is not None:
            folder = _kept(cache, f"artefacts/{_key(card)}", _sound, lambda to: _download(version, "serving", to, card))
            _offers(artefact.read(folder), form.precision, version.model)
        else:
            folder = _bundle_of(version, cache)
            folder = folder if form.device == "cuda" else _exported(folder, form, cache)
        return Fetched(str(folder), version.model, version.version)
    folder = bundle_in(Path(spec).expanduser().absolute())
    if (folder / artefact.FILE).is_file():
        if form.device == "cuda":
            raise InputError(f"{folder}: an artefact runs on the CPU; for a GPU give the bundle it was exported from")
        found = artefact.read(folder)
        _offers(found, form.precision, str(folder))
        return Fetched(str(folder), str(folder), found.digest)
    key = _key((folder / "bundle.json").read_bytes())
    if form.device == "cuda":
        _verified(folder)
        return Fetched(str(folder), str(folder), key)
    return Fetched(str(_exported(folder, form, cache)), str(folder), key)


def bundle_in(folder: Path) -> Path:
    """Give the bundle inside the folder of a run, or the folder itself where it is a bundle or an artefact.

    Raises InputError, which says what the folder is instead and what to name.
    """
    if (folder / "bundle" / "bundle.json").is_file():
        return folder / "bundle"
    if not any((folder / name).is_file() for name in (artefact.FILE, "bundle.json")):
        raise InputError(_no_model(folder))
    return folder


def _no_model(folder: Path) -> str:
    told = str(folder)
    strange = re.search(r"([a-z][a-z0-9+.-]*):/", told)
    if strange and not folder.exists():
        return f"{strange[1]}:/...: models are folders here or in MLflow; write a folder, or models:/NAME@ALIAS"
    if "@" in folder.name and not folder.exists():
        return f"{told}: no such folder; a registered model is written models:/{folder.name}"
    if not folder.exists():
        return f"{told}: no such folder; give that of a finished run, or models:/NAME@ALIAS"
    if not folder.is_dir():
        return f"{told}: a file; give the folder of a run, a bundle or an artefact"
    if (folder / "search.yaml").is_file():
        inside = sorted(folder.glob("retrained/*/bundle/bundle.json"))
        name = inside[0].parents[1] if inside else None
        way_out = (
            f"give one of its runs, such as {name}" if name else f"`xlt tune {folder}/search.yaml` goes on with it"
        )
        return f"{told}: a search; {way_out}"
    if (folder / "experiment.yaml").is_file():
        return (
            f"{told}: a run that is not finished; `xlt train {folder}/experiment.yaml` goes on with it, "
            "or give a finished run"
        )
    inside = sorted(folder.glob("*/bundle/bundle.json"))
    more = f"; give a run in it, such as {inside[0].parents[1]}" if inside else ""
    return (
        f"{told}: neither an artefact nor a bundle, nor a finished run that holds one{more or '; give such a folder'}"
    )


def _check(form: Form) -> None:
    for name, known in (("device", DEVICES), ("precision", PRECISIONS), ("vocabulary", VOCABULARIES)):
        if (value := getattr(form, name)) not in known:
            raise InputError(f"{name}: {value!r}; one of {', '.join(known)}")


def _key(listing: bytes) -> str:
    # the listing holds the digest of every other file, so its own digest names them all
    return hashlib.sha256(listing).hexdigest()[:16]


def _offers(found: artefact.Artefact, precision: str, place: str) -> None:
    if precision != "auto" and precision not in found.precisions:
        raise InputError(
            f"{place}: its artefact has no {precision} network, only {', '.join(found.precisions)}: one that did not "
            "agree with its original was dropped; ask for auto"
        )


def _sound(folder: Path) -> None:
    artefact.read(folder)


def _verified(folder: Path) -> None:
    """Hold a bundle against its own list, without loading torch as `bundle.verify` does."""
    for name, sha256 in versions.listed((folder / "bundle.json").read_bytes(), str(folder)).items():
        if not (folder / name).is_file() or artefact.digest(folder / name) != sha256:
            raise InputError(f"{folder / name}: missing or not the file that was saved; copy the bundle again")


def _download(version: versions.Version, what: versions.What, to: Path, card: bytes) -> None:
    versions.download(version, what, to, card)


def _bundle_of(version: versions.Version, cache: Path) -> Path:
    card = versions.listing(version, "bundle")
    if card is None:
        raise InputError(f"{version.model}: is not a model of xlt_ray; give one that `xlt train` registered")
    return _kept(cache, f"bundles/{_key(card)}", _verified, lambda to: _download(version, "bundle", to, card))


def _exported(bundle: Path, form: Form, cache: Path) -> Path:
    precision, languages = "float32" if form.precision == "auto" else form.precision, form.languages
    words = "-".join([form.vocabulary, *([_key(",".join(sorted(languages)).encode())] if languages else [])])
    name = f"exports/{_key((bundle / 'bundle.json').read_bytes())}-{precision}-{words}"

    def make(to: Path) -> None:
        from xlt_ray.export import export

        mode: Any = form.vocabulary
        export.export(bundle, to, precisions=(precision,), vocabulary=mode, languages=list(languages) or None)

    return _kept(cache, name, _sound, make)


def _kept(cache: Path, name: str, check: Callable[[Path], None], make: Callable[[Path], None]) -> Path:
    """Give a folder of the cache, made where it is not there or damaged; one process makes it, the others wait."""
    folder, draft = cache / name, cache / "drafts" / name.replace("/", "-")
    for parent in (folder.parent, draft.parent, cache / "locks"):
        parent.mkdir(parents=True, exist_ok=True)
    with locked(cache / "locks" / f"{draft.name}.lock"):
        if folder.is_dir():
            try:
                check(folder)
                return folder
            except InputError:
                shutil.rmtree(folder)  # by a power cut, or by a hand
        shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
        make(draft)
        draft.replace(folder)
    return folder


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a process: one JSON line on standard output, or one line `error: ...`; 2 bad input, 1 anything else."""
    parser = _Parser(prog="python -m xlt_ray.registry.fetch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("spec", metavar="SPEC", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder")
    parser.add_argument("--tracking", metavar="URI", help="default: MLFLOW_TRACKING_URI, else sqlite:///xlt.db")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--vocabulary", choices=VOCABULARIES, default="exact")
    parser.add_argument("--languages", default="", help="what a trimmed vocabulary is for, such as deu_Latn,swh_Latn")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help=f"default: {CACHE}")
    asked = vars(parser.parse_args(arguments))
    asked["languages"] = tuple(code for code in asked["languages"].split(",") if code)
    form = Form(**{name: asked.pop(name) for name in Form.__dataclass_fields__})
    warnings.simplefilter("ignore")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of transformers on standard error
    sys.stdout.flush()
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not come between the caller and its one line
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
