"""Answer with a model, one interface for two engines: onnxruntime on a CPU, torch on a GPU or for a plain bundle.

The first loads neither torch nor transformers nor scipy. Both encode texts exactly as training did (prefix, truncation,
pair template) and compute them in batches of similar length.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xlt_ray.errors import InputError
from xlt_ray.inference import artefact, pieces, tagging
from xlt_ray.inference.tagging import Words
from xlt_ray.model import batching
from xlt_ray.translation import readings
from xlt_ray.translation.readings import Readings

# Padded tokens a batch on one thread: activations stay in the cache of a core, and more rows at once are slower.
TOKENS = 160
MULTIPLE = 1  # onnxruntime prepares nothing per shape, so padding to a multiple would only be more to compute

RELEASE = 8  # batches after which pages of the embedding table are unmapped: they stay in the system's file cache

_LOADING = threading.Lock()

# (tokens,) int64 ids, or (tokens, 2) ids and token types where the encoder tells pairs apart by them; of a model of
# words (tokens, 3), see `Words`
Row = np.ndarray


class Engine(Protocol):
    """A model ready to answer; `encode` and `probabilities` may be called from several threads at once."""

    artefact: artefact.Artefact  # of a bundle as its artefact would be, but for offsets: its own network adds them
    labels: tuple[str, ...]
    precision: str
    device: str
    max_length: int
    readings: Readings | None  # how texts are read, None as they stand
    words: Words | None  # of a model that answers for every word, None of one that answers for whole texts

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Row]:
        """Turn texts into rows of token ids, cut at `max_length`; `len` of a row is its tokens."""

    def probabilities(self, rows: Sequence[Row], codes: Sequence[str | None] | None = None) -> np.ndarray:
        """Return the calibrated probability of every label for every row: (rows, labels) float32, rows sum to 1.

        `codes` are the languages of the rows, or keys of their readings, None where one is unknown; without any, all
        are. Of a model of words there is one for every word of the rows instead: (words, tags).
        """


def classify(
    model: Engine,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    codes: Sequence[str | None] | None = None,
) -> np.ndarray:
    """Return the calibrated probability of every label for every text: (texts, labels) float32, rows sum to 1.

    Texts are read as the model's `readings` say. `codes` are their languages, None where one is unknown.
    """
    read = readings.asked(model.readings, texts, pairs, codes)
    return read.joined(model.probabilities(model.encode(read.texts, read.pairs), read.keys))


def load(
    folder: str | Path,
    *,
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    tokens: int | None = None,
) -> Engine:
    """Load what lies in a folder: an artefact for onnxruntime, a bundle for torch; "auto" takes the best there is.

    `precision` is float32, int8 (artefacts) or bfloat16 (bundles); `device` is cpu or cuda; `threads` computes with so
    many, by default as many as this process may use; `tokens` is the padded tokens of a batch. Raises InputError for
    what does not go together.
    """
    folder = Path(folder)
    if (folder / artefact.FILE).is_file() or not (folder / "bundle.json").is_file():
        if device not in ("auto", "cpu"):
            raise InputError(f"{folder}: an artefact computes on cpu, not {device}; give its bundle instead")
        return OnnxEngine(artefact.read(folder), precision, threads, tokens)
    return TorchEngine(folder, precision, device, threads, tokens)


class _Encode:
    """Encode texts with a tokenizer that is not changed any more, so that threads can share it."""

    def __init__(self, tokenizer: Any, prefix: str, max_length: int, types: bool) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self.tokenizer, self.prefix, self.types = tokenizer, prefix, types

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Row]:
        whole: list[Any] = [self.prefix + text for text in texts]
        try:
            encoded = self.tokenizer.encode_batch_fast(whole if pairs is None else list(zip(whole, pairs, strict=True)))
        except (TypeError, ValueError) as error:
            raise InputError(f"texts: cannot be encoded ({error}); give Unicode, as many pairs as texts") from None
        if self.types:
            return [np.array([one.ids, one.type_ids], dtype=np.int64).T for one in encoded]
        return [np.array(one.ids, dtype=np.int64) for one in encoded]


class OnnxEngine:
    """Answer on a CPU from an artefact that `artefact.read` found whole.

    Every batch is computed by one thread and `threads` of them at once, which is faster than several threads a batch;
    callers share these threads. With int8, close calls are answered again in float32: those texts whose two best
    labels are nearer to each other than `artefact.margin`, a few of a hundred.
    """

    device = "cpu"
    words: Words | None = None

    def __init__(
        self, found: artefact.Artefact, precision: str = "auto", threads: int | None = None, tokens: int | None = None
    ) -> None:
        self.artefact, self.labels, self.max_length = found, found.labels, found.max_length
        self.readings = readings.read(found.folder / readings.FILE) if readings.FILE in found.files else None
        self.precision = found.precisions[0] if precision == "auto" else precision
        second = self.precision == "int8" and found.margin > 0
        with _LOADING:
            before = _mapped(found.folder)
            self.session = _session(found.network(self.precision))
            self.precise = _session(found.network("float32")) if second else None
            # only what these two sessions mapped: another engine of this folder may be gone before this one, and
            # other memory may be at its addresses then
            self.mapped = [span for span in _mapped(found.folder) if span not in before]
        scored, wanted = self.session.get_outputs()[0].shape[-1], len(found.labels) * (1 + len(found.heads))
        if scored != wanted:
            file = found.folder / artefact.FILE
            raise InputError(f"{file}: heads: its labels need {wanted} scores, not {scored}; {artefact.AGAIN}")
        self.inputs = tuple(one.name for one in self.session.get_inputs())
        self.tokens, self.threads = tokens or TOKENS, threads or len(os.sched_getaffinity(0))
        self.pool = ThreadPoolExecutor(self.threads, "onnx")
        self.batches = 0
        self.asked = 0  # rows that were answered again in float32
        self.encode = self._encode()

    def _encode(self) -> Any:
        import tokenizers

        found = self.artefact
        if found.vocabulary.get("library") == pieces.LIBRARY:
            return pieces.Pieces(found.folder, found.prefix, found.max_length)
        tokenizer = tokenizers.Tokenizer.from_file(str(found.folder / artefact.TOKENIZER))
        return _Encode(tokenizer, found.prefix, found.max_length, "token_type_ids" in self.inputs)

    def probabilities(self, rows: Sequence[Row], codes: Sequence[str | None] | None = None) -> np.ndarray:
        """Return what `Engine.probabilities` promises."""
        logits = self.logits(self.session, rows, codes)
        offsets = language_offsets(self.artefact, codes)
        if self.precise is not None and len(rows):
            close = np.flatnonzero(margins(logits + offsets) < self.artefact.margin)
            self.asked += len(close)
            known = None if codes is None else [codes[int(i)] for i in close]
            logits[close] = self.logits(self.precise, [rows[int(i)] for i in close], known)
        return _softmax((logits + offsets) / self.artefact.temperature)

    def logits(self, session: Any, rows: Sequence[Row], codes: Sequence[str | None] | None = None) -> np.ndarray:
        """Score every label for every row by one of the networks: (rows, labels) float32, without `offsets`."""
        heads = language_heads(self.artefact, codes, len(rows))
        lengths = [len(row) for row in rows]
        # so that there is work for every thread, where there are rows enough
        tokens = max(1, min(self.tokens, -(-sum(lengths) // self.threads)))
        groups = batching.steps(lengths, tokens, MULTIPLE)
        result = np.zeros((len(rows), len(self.labels)), dtype=np.float32)

        def answer(group: list[int]) -> None:
            (scores,) = session.run(["logits"], self._padded([rows[i] for i in group]))
            by_head = scores.reshape(len(group), -1, len(self.labels))
            result[group] = by_head[np.arange(len(group)), heads[group]]

        for _ in self.pool.map(answer, groups):
            self.batches += 1
            if self.batches % RELEASE == 0:
                _release(self.mapped)
        return result

    def _padded(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        width = max(len(row) for row in rows)
        batch = {name: np.zeros((len(rows), width), dtype=np.int64) for name in self.inputs}
        batch["input_ids"].fill(self.artefact.pad_id)
        for i, row in enumerate(rows):
            batch["input_ids"][i, : len(row)] = row if row.ndim == 1 else row[:, 0]
            batch["attention_mask"][i, : len(row)] = 1
            if row.ndim == 2:
                batch["token_type_ids"][i, : len(row)] = row[:, 1]
        return batch


class TorchEngine:
    """Answer with torch from a bundle: on a GPU in bfloat16, on a CPU in float32 as `Bundle.probabilities` does.

    Techniques that can be merged into the encoder are, in memory. Call `probabilities` from one thread: torch's
    arithmetic suffers from several (docs/decisions.md).
    """

    def __init__(
        self,
        folder: Path,
        precision: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        tokens: int | None = None,
    ) -> None:
        import torch

        from xlt_ray import techniques
        from xlt_ray.inference import bundle

        self.device = _device(device)
        self.precision = ("bfloat16" if self.device == "cuda" else "float32") if precision == "auto" else precision
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision: {precision} needs an artefact; give one, or take float32 or bfloat16")
        if threads:
            torch.set_num_threads(threads)
        self.bundle, self.tokens = replace(bundle.load(folder), precision=self.precision), tokens
        for one in techniques.build(self.bundle.experiment):
            one.merge_into_encoder(self.bundle.network)
        self.bundle.network.to(self.device)
        tokenize = self.bundle.tokenize
        self.artefact = artefact.describe(folder, tokenize.tokenizer.pad_token_id)
        self.labels, self.max_length, self.readings = self.bundle.labels, tokenize.max_length, self.bundle.readings
        self.words = Words(self.bundle.task, tokenize) if self.bundle.task.tagged else None
        self.types = "token_type_ids" in tokenize.tokenizer.model_input_names
        # of words as well, which are encoded by several threads: the truncation set here is the one they ask for
        self.encode = _Encode(tokenize.tokenizer.backend_tokenizer, tokenize.prefix, self.max_length, self.types)

    def probabilities(self, rows: Sequence[Row], codes: Sequence[str | None] | None = None) -> np.ndarray:
        """Return what `Engine.probabilities` promises."""
        return self.bundle.answer([self._encoded(row) for row in rows], codes, self.tokens)

    def _encoded(self, row: Row) -> dict[str, Any]:
        if row.ndim == 1:
            return {"input_ids": row}
        found = {"input_ids": row[:, 0]} | ({"token_type_ids": row[:, 1]} if self.types else {})
        return found if self.words is None else found | {"word": tagging.marks(row)}


def _device(asked: str) -> str:
    import torch

    if asked not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: {asked!r}; give auto, cpu or cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda, but torch finds no GPU here; give cpu or auto")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def language_offsets(found: artefact.Artefact, codes: Sequence[str | None] | None) -> np.ndarray:
    """Return what to add to the logits of texts in these languages: (texts, labels) float32, or (1, labels) for all.

    That is all there is to centring when it is served: it subtracts a vector m of the language from the features x, the
    head is linear, and W (x - m) + b = (W x + b) - W m. Other languages, and unknown ones, add 0.
    """
    nothing = [0.0] * len(found.labels)
    known = codes if codes and found.offsets else [None]
    return np.array([found.offsets.get(code or "", nothing) for code in known], dtype=np.float32)


def language_heads(found: artefact.Artefact, codes: Sequence[str | None] | None, rows: int) -> np.ndarray:
    """Return which head of a network scores each of so many rows, (rows,) int64: 0 is the head of all languages.

    A language has one of its own where features of its texts are mapped before they are scored: W (A x + c) + b is
    again linear in x, with other weights.
    """
    places = {code: place for place, code in enumerate(found.heads, start=1)}
    return np.array([places.get(code or "", 0) for code in codes or [None] * rows], dtype=np.int64)


def margins(logits: np.ndarray) -> np.ndarray:
    """Return how far the best label is above the second best, (rows,); infinite where there is only one label."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf, dtype=np.float32)
    best = np.partition(logits, -2, axis=1)
    return best[:, -1] - best[:, -2]


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # fused by hand already; shapes seldom repeat, and an arena never returns what one long text took
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_mem_pattern = options.enable_cpu_mem_arena = False
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class of their own
        raise InputError(f"{file}: onnxruntime cannot load it ({error}); export the bundle again") from None


def _mapped(folder: Path) -> list[tuple[int, int]]:
    """List where files of a folder are mapped into this process, as (address, bytes); none without /proc."""
    with suppress(OSError):
        found = []
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            span, access, _, _, _, *name = line.split(maxsplit=5)
            start, end = (int(part, 16) for part in span.split("-"))
            # private and of a file that nobody writes to: what is unmapped is mapped again as it was
            if name and Path(name[0]).parent == folder.resolve() and name[0].endswith(".bin") and access[3] == "p":
                found.append((start, end - start))
        return found
    return []


def _release(mapped: Sequence[tuple[int, int]]) -> None:
    # every row that was looked up has mapped its neighbours' pages too, which would add up to the whole table
    libc = ctypes.CDLL(None)
    for address, size in mapped:
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
