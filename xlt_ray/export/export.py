"""Export a bundle to the folder it is served from: ONNX networks in float32 and int8, and the tokenizer."""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xlt_ray import durable, techniques
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.export import agreement, bert_graph, onnx_graph, quantising, tracing, trimming
from xlt_ray.export.onnx_graph import Graph
from xlt_ray.inference import artefact, pieces
from xlt_ray.inference import bundle as bundles
from xlt_ray.inference.artefact import Artefact
from xlt_ray.inference.bundle import Bundle
from xlt_ray.inference.engine import OnnxEngine
from xlt_ray.model import network as networks
from xlt_ray.model.network import Network, Plain
from xlt_ray.translation import readings

EMBEDDINGS = "embeddings.bin"
ALIKE = 1e-4  # probabilities of torch and of onnxruntime in float32 differ by a tenth of this
CALIBRATING = 1500  # texts cut by both libraries, and answered in both precisions to find the margin
OTHERWISE = 0.001  # share of texts that another library may cut differently; usually it is fifty times less


def export(
    bundle: str | Path,
    out: str | Path,
    *,
    precisions: Sequence[str] = ("int8", "float32"),
    vocabulary: Literal["exact", "trimmed"] = "exact",
    languages: Sequence[str] = (),
    texts: Iterable[str] = (),
) -> Artefact:
    """Export a bundle into the folder `out`, which appears whole or not at all and replaces an artefact there.

    float32 is always made, int8 where `precisions` names it, and float32 is served by default until `artefact.record`
    records a check that int8 passed. `vocabulary` "exact" keeps every id; "trimmed" keeps what the scripts of
    `languages` need (default: those that were measured). The margin below which int8 asks float32 is found with the
    unlabelled `texts`, a few hundred of the kind to be served and none of test; without any, with sentences of the
    embedded corpus.
    Raises InputError where the bundle is damaged, `out` holds something else or the encoder cannot be exported.
    """
    bundle, out = Path(bundle), Path(out).absolute()
    for one in precisions:
        if one not in artefact.PRECISIONS:
            raise InputError(f"precisions: {one!r}; give some of {', '.join(artefact.PRECISIONS)}")
    if vocabulary not in ("exact", "trimmed"):
        raise InputError(f"vocabulary: {vocabulary!r}; give exact or trimmed")
    if artefact.of_words(bundle):
        raise InputError(
            f"{bundle}: a model of words, which is not exported; serve the bundle itself: `xlt serve {bundle}`"
        )
    found = bundles.load(bundle)
    net, offsets, heads = _plain(found)
    described = artefact.describe(bundle, found.tokenize.tokenizer.pad_token_id)
    described = replace(described, offsets=offsets, heads=heads)
    with _replacing(out) as folder:
        graph, words = _graph(net, "token_type_ids" in found.tokenize.tokenizer.model_input_names, folder)
        keep, kept = _vocabulary(found, folder, vocabulary, languages)
        for table in words if keep is not None else ():
            graph.weights[table] = graph.weights[table][keep]
        texts = list(texts)
        kept |= _library(found, folder, texts)
        made = replace(described, folder=folder, vocabulary=kept)
        _write(graph, made, "float32", words)
        if found.readings is not None:
            durable.write(folder / readings.FILE, readings.to_json(found.readings))
        if "int8" in precisions:
            made = replace(made, precisions=("float32", "int8"))
            _write(quantising.quantised(graph), made, "int8", words)
        _compare(found, made)
        if "int8" in precisions:
            made = replace(made, margin=_margin(made, texts))
        artefact.write(made)
    return artefact.read(out)


def _plain(found: Bundle) -> Plain:
    """Return a bundle's network without anything of techniques, with what depends on languages (`offsets`, `heads`).

    What techniques can merge into the bundle's encoder is merged, in memory: the answers stay the same.
    """
    for one in techniques.build(found.experiment):
        one.merge_into_encoder(found.network)
    return networks.plain(found.network)


def _graph(network: Network, types: bool, folder: Path) -> tuple[Graph, list[str]]:
    """Return the float32 graph and the names of its word-embedding tables, usually one."""
    if bert_graph.fits(network.encoder.config):
        return bert_graph.build(network, types), [bert_graph.WORDS]
    graph = tracing.traced(network, types, folder / "traced")
    shape = tuple(network.encoder.get_input_embeddings().weight.shape)
    tables = {node.input[0] for node in graph.nodes if node.op_type == "Gather"}
    return graph, sorted(name for name in tables & set(graph.weights) if graph.weights[name].shape == shape)


def _vocabulary(
    found: Bundle, folder: Path, mode: str, languages: Sequence[str]
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Write tokenizer.json; return the ids that stay, None for all, and how `Artefact.vocabulary` describes them."""
    tokenizer = found.tokenize.tokenizer.backend_tokenizer
    tokenizer.no_truncation(), tokenizer.no_padding()
    text, pieces = tokenizer.to_str(), tokenizer.get_vocab_size()
    keep = None
    if mode == "trimmed":
        codes = languages or (tuple(found.scores.languages) if found.scores else found.experiment.sources)
        codes = (*codes, found.readings.into) if found.readings else codes
        always = tokenizer.encode(found.tokenize.prefix, add_special_tokens=True).ids
        keep = trimming.kept(text, codes, found.tokenize.tokenizer.pad_token_id, always)
        text = trimming.trimmed(text, keep)
    durable.write(folder / artefact.TOKENIZER, text)
    described = {"mode": mode, "pieces": pieces, "kept": pieces if keep is None else len(keep)}
    return keep, described | ({} if keep is None else {"scripts": list(trimming.scripts(codes))})


def _library(found: Bundle, folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Choose the library that cuts texts: SentencePiece, where the kind of tokenizer allows it and the pieces agree."""
    usual = {"library": "tokenizers"}
    text = (folder / artefact.TOKENIZER).read_text(encoding="utf-8")
    types = "token_type_ids" in found.tokenize.tokenizer.model_input_names
    if types or found.experiment.corpus.text_pair is not None or not pieces.fits(text):
        return usual
    pieces.write(text, folder)
    sample = [found.tokenize.prefix + one for one in _sample(texts)]
    apart = pieces.differing(text, folder, sample) / len(sample)
    if apart <= OTHERWISE:
        return {"library": pieces.LIBRARY, "cut_otherwise": apart}
    for name in (pieces.FILE, pieces.AROUND):
        (folder / name).unlink()
    return usual


def _write(graph: Graph, made: Artefact, precision: str, words: Sequence[str]) -> None:
    places = dict.fromkeys(words[:1], EMBEDDINGS)
    onnx_graph.write(graph, made.folder / artefact.network_file(precision), places, f"weights.{precision}.bin")


def _compare(found: Bundle, made: Artefact) -> None:
    """Raise InputError where the float32 network answers otherwise than the bundle, in known languages or without."""
    texts = ["", "1", "A somewhat longer text, of which the others are padded to the length.", "1 2 3 " * 200]
    onnx = OnnxEngine(made, "float32")
    asked: list[tuple[list[str], list[str | None]]] = [
        (rows, [None] * len(rows)) for rows in (texts, texts[:1], texts[2:3])
    ]
    if known := [*made.offsets, *made.heads]:
        asked.append((texts[2:3] * len(known), [*known]))
    for rows, codes in asked:
        pairs = rows[::-1] if made.pairs else None
        answers = onnx.probabilities(onnx.encode(rows, pairs), codes)
        apart = np.abs(answers - found.answer(found.tokenize(rows, pairs), codes)).max()
        if not apart <= ALIKE:
            raise InputError(
                f"{type(found.network.encoder).__name__}: exported, it answers otherwise (probabilities are up to "
                f"{apart:.1e} apart); serve the bundle with torch"
            )


def _margin(made: Artefact, texts: Sequence[str]) -> float:
    """Return the margin below which int8 is to ask float32, from the logits of both, of all heads by turns."""
    onnx = OnnxEngine(replace(made, margin=np.inf), "int8")
    sample = _sample(texts)
    rows = onnx.encode(sample, sample[::-1] if made.pairs else None)
    heads = [None, *made.heads]
    codes = [heads[number % len(heads)] for number in range(len(rows))]
    return agreement.margin(*(onnx.logits(one, rows, codes) for one in (onnx.session, onnx.precise)))


def _sample(texts: Sequence[str]) -> list[str]:
    texts = texts or _sentences()
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:CALIBRATING]]


@functools.cache  # an export needs them twice
def _sentences() -> list[str]:
    corpus = loaders.load(CorpusConfig(loader="voice_commands"))
    tables = corpus.unlabelled(corpus.languages("train"))
    return [text for table in tables.values() for text in table["text"].to_pylist()]


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes its place when the block ends, and that of an artefact there."""
    if out.exists() and not (out / artefact.FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: holds something that is not an artefact; name another folder")
    for left in out.parent.glob(f".{out.name}.*.*"):  # of exports that were killed
        pid = re.fullmatch(r"(\d+)\.([0-9a-f]{8}|old)", left.name.removeprefix(f".{out.name}."))
        if pid and not _running(int(pid[1])):
            shutil.rmtree(left, ignore_errors=True)
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        with durable.publishing(out) as folder:
            folder.mkdir()
            yield folder
            if out.exists():
                out.rename(old)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _running(pid: int) -> bool:
    with suppress(ProcessLookupError):
        with suppress(PermissionError):  # somebody else's, so it runs
            os.kill(pid, 0)
        return True
    return False
