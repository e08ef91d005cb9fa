"""Make of a bundle the folder it is served from: ONNX networks in float32 and int8, and the tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from xlt_ray import artefact, bert_graph, onnx_graph
from xlt_ray import bundle as bundles
from xlt_ray.artefact import Artefact
from xlt_ray.bundle import Bundle
from xlt_ray.config import InputError
from xlt_ray.onnx_graph import Graph

EMBEDDINGS = "embeddings.bin"


def bundle_digest(folder: str | Path) -> str:
    """Name a bundle by its contents, 16 hex digits: bundle.json lists the SHA-256 of all its other files."""
    file = Path(folder) / "bundle.json"
    if not file.is_file():
        raise InputError(f"{folder}: not a bundle (no bundle.json); give the folder `bundle` of a finished run")
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def export(
    bundle: str | Path,
    out: str | Path,
    *,
    precisions: Sequence[str] = ("int8", "float32"),
    vocabulary: Literal["exact", "trimmed"] = "exact",
    languages: Sequence[str] | None = None,
    texts: Iterable[str] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> Artefact:
    """Export a bundle into the folder `out`, which appears whole or not at all and replaces an artefact there.

    `precisions` are those to make; float32 is the one served by default until `artefact.record` tells of a check that
    int8 passed. `vocabulary` "exact" keeps every id; "trimmed" keeps what the scripts of `languages` (default: those
    that were measured) and the unlabelled `texts` need. `progress` is told what is being done.
    Raises InputError where the bundle is damaged, `out` holds something else or the encoder cannot be exported.
    """
    bundle, out = Path(bundle), Path(out)
    for one in precisions:
        if one not in artefact.PRECISIONS:
            raise InputError(f"precisions: {one!r}; give some of {', '.join(artefact.PRECISIONS)}")
    progress("reading the bundle")
    name, found = bundle_digest(bundle), bundles.load(bundle)
    with _beside(out) as folder:
        tokenizer = found.tokenize.tokenizer.backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.save(str(folder / artefact.TOKENIZER), pretty=False)
        kept = {"mode": vocabulary, "pieces": tokenizer.get_vocab_size(), "kept": tokenizer.get_vocab_size()}
        progress("writing the float32 network")
        graph = _graph(found, folder)
        _write(graph, folder, "float32")
        made = _describe(found, folder, name, json.loads((bundle / "bundle.json").read_text(encoding="utf-8")), kept)
        artefact.write(made)
    return artefact.read(out)


def _graph(found: Bundle, folder: Path) -> Graph:
    types = "token_type_ids" in found.tokenize.tokenizer.model_input_names
    if bert_graph.fits(found.network.encoder.config):
        return bert_graph.build(found.network, types)
    raise InputError("not yet")


def _write(graph: Graph, folder: Path, precision: str) -> None:
    places = {bert_graph.WORDS: EMBEDDINGS}
    onnx_graph.write(graph, folder / artefact.network_file(precision), places, f"weights.{precision}.bin")


def _describe(
    found: Bundle, folder: Path, digest: str, content: Mapping[str, Any], vocabulary: Mapping[str, Any]
) -> Artefact:
    experiment = found.experiment
    measured = {
        code: {
            "accuracy": one.accuracy, "low": one.accuracy_low, "high": one.accuracy_high, "macro_f1": one.macro_f1,
            "support": one.support, "role": one.role, "seen": one.seen,
        }
        for code, one in (found.scores.languages.items() if found.scores else ())
    }  # fmt: skip
    return Artefact(
        folder=folder,
        labels=found.labels,
        prefix=found.tokenize.prefix,
        max_length=found.tokenize.max_length,
        pairs=experiment.corpus.text_pair is not None,
        pad_id=found.tokenize.tokenizer.pad_token_id,
        digest=digest,
        encoder=content["encoder"],
        precisions=("float32",),
        vocabulary=vocabulary,
        languages=measured,
        provenance={
            "run": experiment.key(), "name": experiment.name, "sources": list(experiment.sources),
            "method": experiment.training.method, "seed": experiment.seed, "oracle": experiment.oracle,
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "xlt_ray": version("xlt-ray"),
        },
    )  # fmt: skip


class _beside:  # noqa: N801  used like a function
    """A folder beside `out` that takes its place when the block ends well, and goes when it does not."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.folder = self.out.parent / f".{self.out.name}.{os.getpid()}.part"

    def __enter__(self) -> Path:
        if (
            self.out.exists()
            and not (self.out / artefact.FILE).is_file()
            and (not self.out.is_dir() or any(self.out.iterdir()))
        ):
            raise InputError(f"{self.out}: holds something that is not an artefact; name another folder")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for left in self.out.parent.glob(f".{self.out.name}.*.part"):  # of exports that were killed
            if not _running(left.name.split(".")[-2]):
                shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self.folder

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        old = self.folder.with_suffix(".old")
        try:
            if kind is None:
                if self.out.exists():
                    self.out.rename(old)
                self.folder.rename(self.out)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _running(pid: str) -> bool:
    with suppress(ValueError, ProcessLookupError, PermissionError):
        os.kill(int(pid), 0)
        return True
    return False
