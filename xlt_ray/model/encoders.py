"""Load an encoder and its tokenizer: the bundled multilingual E5, a directory, or a model of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import cached_file, extract_commit_hash, logging

from xlt_ray import durable, sniff
from xlt_ray.errors import InputError, joined
from xlt_ray.model import bundled
from xlt_ray.model.bundled import BUNDLED, DIGITS

FAMILIES = ("t5", "mt5", "umt5")  # encoder-decoders whose encoder transformers can save and load by itself
REMEDY = f"use {BUNDLED}, a directory saved by save_pretrained, or a hub id (go online, or set HF_HOME to a cache)"
TOKENIZER_REMEDY = "save the tokenizer that belongs to the model beside its weights: tokenizer.save_pretrained(FOLDER)"
UNLOADABLE = (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError)
# What makes a directory's encoder what it is; training leaves other files beside these, such as training_args.bin.
WEIGHTS = r"(model|pytorch_model).*\.(safetensors|bin|index\.json)"
TOKENIZER = r"(tokenizer|special_tokens_map|added_tokens|vocab|merges|spiece|spm|sentencepiece).*\.(json|txt|model)"
PARTS = re.compile(rf"config\.json|{WEIGHTS}|{TOKENIZER}")
BLOCK = re.compile(r"^(?!.*decoder\.)(.*\.)?(layer|block|layers)\.\d+\.")  # the name of a weight of a transformer block
LEAST_PIECES = 0.25  # of the embeddings' rows: some are padding, but not most
# XLM-R's vocabulary has 250,002 pieces (E5 adds unused rows); these five distinguish it from others of that size.
XLMR_SIZE = 250_002
XLMR_PIECES = {"▁de": 8, "▁the": 70, "▁world": 8999, "▁Hello": 35378, "<mask>": 250_001}


@dataclass(frozen=True)
class Encoder:
    """An encoder ready for use: float32, in evaluation mode, without a pooler or a head.

    `identity` names what was loaded: equal identities are equal weights and tokenizers.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    identity: str


def load(init: str, revision: str | None = None, weights: bool = True) -> Encoder:
    """Load an encoder by name: "bundled:e5-small", a local directory, or a hub id at a revision (default: its main).

    Takes any encoder of `transformers.AutoModel` and the encoder half of T5, mT5 and umT5. Raises InputError when there
    is no such model, when a file of it is damaged or missing, and when weights are missing that would else be random.
    Without `weights` only the names and shapes of a directory's weights are read, and none of a hub's: parameters are
    on the meta device, and the identity of a directory is not computed. What it refuses is the same.
    """
    identity = fingerprint(init, revision, weights)
    if init == BUNDLED:
        blocks = bundled.read_blocks(bundled.file(), weights)
        return Encoder(bundled.network_of(blocks), bundled.tokenizer_of(blocks), identity)
    folder = Path(init).expanduser()
    # The commit rather than the branch, so that configuration, weights and tokenizer cannot be of different commits.
    source, commit = (str(folder), None) if folder.is_dir() else (init, identity.rpartition("@")[2])
    try:
        with quiet():
            model = _pretrained_model(source, commit, weights)
    except InputError:
        raise
    except UNLOADABLE as error:
        raise _unloadable(init, error) from error
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=commit, trust_remote_code=False)
    except UNLOADABLE as error:
        raise InputError(
            f"network.init: {init!r} has no tokenizer that can be loaded ({_cause(error)}); {TOKENIZER_REMEDY}"
        ) from error
    return Encoder(model.eval(), _checked(init, tokenizer, _rows(model)), identity)


def fingerprint(init: str, revision: str | None = None, contents: bool = True) -> str:
    """Return the identity of what `load` would load, without building it: a key for what is computed from an encoder.

    "bundled:e5-small@<sha256 of the file>", "directory@<sha256 of its weights, configuration and tokenizer>" or
    "<hub id>@<commit>". A directory is named by its contents alone, so a copy elsewhere has the same identity.
    Without `contents` a directory is not read and all are called "directory". Raises InputError where there is nothing
    to load.
    """
    if init == BUNDLED:
        return f"{BUNDLED}@{bundled.digest(bundled.file())[:DIGITS]}"
    if init.startswith("bundled:"):
        raise InputError(f"network.init: {init!r} is not bundled; the only bundled encoder is {BUNDLED}")
    folder = Path(init).expanduser()
    if folder.is_dir():
        files = _parts(folder)
        if not contents:
            return "directory"
        lines = "".join(f"{file.name}\0{durable.digest(file)}\n" for file in files)
        return f"directory@{hashlib.sha256(lines.encode()).hexdigest()[:DIGITS]}"
    if folder.exists() or init.startswith(("/", "./", "../", "~")):
        raise InputError(f"network.init: there is no directory {init!r}; {REMEDY}")
    try:
        config = cached_file(init, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise _unloadable(init, error) from error
    # the hub's cache keeps each commit in a folder of its name, which is where transformers looks for it too
    return f"{init}@{extract_commit_hash(config, None) or revision or 'main'}"


def layers(model: nn.Module) -> nn.ModuleList:
    """Return an encoder's transformer blocks, the lowest first.

    Knows BERT, XLM-R, ELECTRA, DeBERTa (`encoder.layer`), DistilBERT (`transformer.layer`), T5 and its kin
    (`encoder.block`) and ModernBERT (`layers`). Raises InputError, naming the class, for any other.
    """
    for path in ("encoder.layer", "transformer.layer", "encoder.block", "layers"):
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise InputError(
        f"network.init: the transformer blocks of a {type(model).__name__} were not found; "
        "use a BERT, XLM-R, DeBERTa, DistilBERT, ModernBERT or T5 encoder"
    )


def kept_layers(there: int, kept: int) -> list[int]:
    """Choose blocks to keep, evenly spaced, the first and the last among them (one alone is the first).

    >>> kept_layers(12, 6), kept_layers(12, 1)
    ([0, 2, 4, 7, 9, 11], [0])
    """
    return [round(place * (there - 1) / max(kept - 1, 1)) for place in range(kept)]


def keep_layers(model: PreTrainedModel, kept: int) -> None:
    """Leave out all of an encoder's blocks but `kept` of them, in place, and say so in its configuration.

    Raises InputError where it has fewer.
    """
    blocks = layers(model)
    if kept > len(blocks):
        raise InputError(f"network.layers: {kept}, but the encoder has {len(blocks)}; give 1 to {len(blocks)}")
    chosen = kept_layers(len(blocks), kept)
    if kinds := getattr(model.config, "layer_types", None):  # where some blocks attend to neighbours alone
        model.config.layer_types = [kinds[place] for place in chosen]
    model.config.num_hidden_layers = kept
    for place in sorted(set(range(len(blocks))) - set(chosen), reverse=True):
        del blocks[place]


def seen_languages(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[str] | None:
    """Return the canonical codes of the languages an encoder saw in pre-training; None where that is not known.

    Known are encoders with XLM-R's vocabulary, by its size and pieces: XLM-R and what grew out of it, such as
    multilingual MiniLM and E5. They saw XLM-R's 100 languages (arXiv 1911.02116). An encoder trained from nothing on
    that vocabulary would be misjudged; one whose vocabulary was cut down is not recognised.
    """
    from xlt_ray.languages import codes

    if _rows(model) < XLMR_SIZE:
        return None
    if tokenizer.convert_tokens_to_ids(list(XLMR_PIECES)) != list(XLMR_PIECES.values()):
        return None
    return frozenset(language.code for language in codes.all_languages() if language.in_xlmr)


def _parts(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and PARTS.fullmatch(path.name))
    if pointers := [f"network.init: {pointer}" for pointer in map(sniff.lfs_pointer, files) if pointer]:
        raise joined(pointers)
    if folder / "config.json" not in files:
        raise InputError(f"network.init: {folder} holds no config.json, so no encoder; {REMEDY}")
    return files


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' reports on what it loads: what matters of them is an InputError of this module."""
    logging = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _pretrained_model(source: str, commit: str | None, weights: bool) -> PreTrainedModel:
    config = transformers.AutoConfig.from_pretrained(source, revision=commit, trust_remote_code=False)
    half = config.model_type in FAMILIES
    if getattr(config, "is_encoder_decoder", False) and not half:
        raise InputError(
            f"network.init: {source!r} is an encoder-decoder of type {config.model_type!r}; only from "
            f"{', '.join(FAMILIES)} can the encoder be taken alone; {REMEDY}"
        )
    known: Any = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING if half else transformers.MODEL_MAPPING
    options: dict[str, Any] = {"revision": commit, "trust_remote_code": False, "output_loading_info": True}
    if type(config) in known and "add_pooling_layer" in inspect.signature(known[type(config)]).parameters:
        options["add_pooling_layer"] = False  # it is not used, and DDP stops at parameters without a gradient
    auto = transformers.AutoModelForTextEncoding if half else transformers.AutoModel
    if not weights and not Path(source).is_dir():
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=False)
    model, report = auto.from_pretrained(
        source, config=config, dtype=torch.float32, device_map=None if weights else "meta",
        ignore_mismatched_sizes=True, **options,
    )  # fmt: skip
    _check_weights(source, type(model).__name__, report)
    return model


def _check_weights(source: str, kind: str, report: Mapping[str, Any]) -> None:
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise InputError(
            f"network.init: {source!r} has {len(mismatched)} weights of other shapes than its config.json says, such "
            f"as {name}, {list(stored)} instead of {list(wanted)}; save model and configuration together again"
        )
    if report["missing_keys"]:
        raise InputError(
            f"network.init: {source!r} lacks {len(report['missing_keys'])} weights of its {kind}, such "
            f"as {min(report['missing_keys'])}, which would be random; save the model again or name another"
        )
    if blocks := sorted(filter(BLOCK.search, report["unexpected_keys"])):
        raise InputError(
            f"network.init: {source!r} holds {len(blocks)} weights of blocks that its config.json does not know, such "
            f"as {blocks[0]}; copy the config.json that belongs to the weights"
        )


def _rows(model: PreTrainedModel) -> int:
    return len(cast(nn.Embedding, model.get_input_embeddings()).weight)


def _checked(init: str, tokenizer: Any, rows: int) -> PreTrainedTokenizerFast:
    remedy = TOKENIZER_REMEDY
    folder, kind = Path(init).expanduser(), type(tokenizer).__name__
    if folder.is_dir() and not _has_vocabulary(folder, tokenizer):
        names = " and ".join(_vocabulary_files(tokenizer))
        raise InputError(
            f"network.init: {init!r} holds no tokenizer: neither tokenizer.json nor {names or 'another vocabulary'}, "
            f"without which every word is unknown; {remedy}"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"network.init: {init!r} has a {kind}, not a fast tokenizer; {remedy}")
    if tokenizer.pad_token_id is None:
        raise InputError(f"network.init: the tokenizer of {init!r} has no padding token; {remedy}")
    if len(tokenizer) > rows or len(tokenizer) < rows * LEAST_PIECES:
        raise InputError(
            f"network.init: {init!r} has {len(tokenizer)} pieces and {rows} embeddings for them, so its tokenizer is "
            f"another model's or cut short; {remedy}"
        )
    return tokenizer


def _vocabulary_files(tokenizer: Any) -> list[str]:
    return sorted(set(getattr(tokenizer, "vocab_files_names", {}).values()) - {"tokenizer.json"})


def _has_vocabulary(folder: Path, tokenizer: Any) -> bool:
    """Return whether a tokenizer was read from files: without any, transformers makes one of a few pieces up."""
    wanted = _vocabulary_files(tokenizer)
    whole = bool(wanted) and all((folder / name).is_file() for name in wanted)
    made_of_nothing = not hasattr(tokenizer, "vocab_files_names") or tokenizer.vocab_files_names == {}
    return whole or made_of_nothing or (folder / "tokenizer.json").is_file() or any(folder.glob("*.model"))


def _unloadable(init: str, error: Exception) -> InputError:
    return InputError(f"network.init: {init!r} cannot be loaded ({_cause(error)}); {REMEDY}")


def _cause(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own for every file that it loads or writes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
