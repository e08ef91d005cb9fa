"""The network: an encoder, a pooling of its token features, and a linear head over labels.

Techniques add `steps`, which change pooled features before the head, and `terms`, which are added to the loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from xlt_ray.config.sections import NetworkConfig
from xlt_ray.errors import InputError, collecting, joined
from xlt_ray.model import bundles, encoders
from xlt_ray.model.batching import MULTIPLE
from xlt_ray.model.collate import Tokenize
from xlt_ray.model.encoders import Encoder

Weights = dict[str, torch.Tensor]

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")  # of a batch, what an encoder takes
STAGE = "run:"  # begins a `network.init` that names a run to be done first
HEAD = "head.safetensors"  # in a bundle: of its network
CHANGES = "changes.safetensors"  # in a bundle: of the encoder, where the encoder itself is not


class Network(nn.Module):
    """Classify texts or their words: encode tokens, pool them to one vector, map it linearly to a score per label.

    `languages` are those that a batch's `language`, (rows,) int64, indexes; -1 stands for any other and for unknown.
    `temperature` is what to divide scores by before they become probabilities; 1 until `calibration` has fitted one.
    """

    def __init__(self, encoder: Any, classes: int, pooling: str, seed: int = 0, languages: Sequence[str] = ()) -> None:
        super().__init__()
        self.encoder, self.pooling, self.seed, self.languages = encoder, pooling, seed, tuple(languages)
        self.temperature = 1.0
        self.steps = nn.ModuleDict()  # name of a technique -> (features, language) to features, in their order
        self.terms = nn.ModuleDict()  # name of a technique -> (network, batch, outputs) to a loss per row
        settings = encoder.config
        self.dropout = nn.Dropout(getattr(settings, "hidden_dropout_prob", getattr(settings, "dropout_rate", 0.1)))
        # a generator of its own and none of nn.Linear's own numbers, so that building a network disturbs nothing
        self.head = nn.utils.skip_init(nn.Linear, settings.hidden_size, classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 0.02, generator=generator)
            self.head.bias.zero_()

    def encode(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the encoder's last hidden states: (rows, tokens) token ids to (rows, tokens, width) float32."""
        inputs = {key: batch[key] for key in INPUTS if key in batch}
        hidden: torch.Tensor = self.encoder(**inputs).last_hidden_state
        return hidden.float()

    def pool(self, hidden: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Pool hidden states, (rows, tokens, width) to (rows, width)."""
        if self.pooling == "first":
            return hidden[:, 0]
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def features(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute pooled features: (rows, tokens) token ids to (rows, width) float32."""
        return self.pool(self.encode(batch), batch)

    def pooled(self, batch: Mapping[str, torch.Tensor], layers: Sequence[int]) -> torch.Tensor:
        """Compute pooled features after some blocks, 0 being the embeddings: (rows, layers * width) float32."""
        inputs = {key: batch[key] for key in INPUTS if key in batch}
        found = self.encoder(**inputs, output_hidden_states=True)
        states = (*found.hidden_states[:-1], found.last_hidden_state)
        return torch.cat([self.pool(states[layer].float(), batch) for layer in layers], dim=1)

    def transform(self, features: torch.Tensor, language: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the steps of techniques to pooled features (rows, width), of languages (rows,) or all unknown."""
        if language is None and len(self.steps):
            language = torch.full((len(features),), -1, device=features.device)
        for step in self.steps.values():
            features = step(features, language)
        return features

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Score every label: transformed features (rows, width) to (rows, classes) float32 logits."""
        features = self.dropout(features)
        with torch.autocast(features.device.type, enabled=False):  # the head decides; it costs nothing in float32
            return self.head(features)

    def answers(self, hidden: torch.Tensor, features: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Score every label: of each row by its transformed features, or of each word that a batch marks.

        A batch's `word`, (rows, words) int64, is 1 and the place of the token whose hidden state, of (rows, tokens,
        width), scores a word; 0 is none. Returns (rows or words, classes) float32 logits, words row by row.
        """
        if "word" not in batch:
            return self.classify(features)
        row, word = (batch["word"] > 0).nonzero(as_tuple=True)
        return self.classify(hidden[row, batch["word"][row, word] - 1])

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Score every label, see `answers`: a batch of (rows, tokens) tensors to (answers, classes) float32 logits."""
        hidden = self.encode(batch)
        return self.answers(hidden, self.transform(self.pool(hidden, batch), batch.get("language")), batch)

    def index(self, language: str | None) -> int:
        """Return the place of a language in `languages`, -1 where it is not there."""
        return self.languages.index(language) if language in self.languages else -1


class Plain(NamedTuple):
    """A network without steps, and how its scores in known languages follow from those of an unknown one.

    `added[language]`, (classes,), is added to the logits of texts in that language. Languages in `heads` have logits of
    their own instead: the network scores all classes as for an unknown language, then all again for each of `heads`.
    """

    network: Network
    added: dict[str, list[float]]
    heads: tuple[str, ...]


def plain(network: Network) -> Plain:
    """Fold the steps of a network, each affine in the features of a language, into its head.

    A language that shifts the features of an unknown one by a vector adds a constant to the logits; any other language
    gets a head of its own.
    """
    width, classes = network.head.in_features, network.head.out_features
    probe = torch.cat([torch.zeros(1, width), torch.eye(width)]).to(network.head.weight)
    added, own = {}, {}
    with torch.no_grad():
        unknown = network.transform(probe)
        for index, code in enumerate(network.languages if len(network.steps) else ()):
            known = network.transform(probe, torch.full((len(probe),), index, device=probe.device))
            shift = known - unknown
            if (shift - shift[0]).abs().max() > 1e-5 * max(1.0, float(shift[0].abs().max())):
                own[code] = known
            else:
                added[code] = (network.head.weight @ shift[0]).tolist()
        parts = [unknown, *own.values()]  # where nought goes, and where every unit vector does
        result = Network(network.encoder, len(parts) * classes, network.pooling)
        result.temperature = network.temperature
        weight, bias = network.head.weight, network.head.bias
        result.head.weight.copy_(torch.cat([weight @ (part[1:] - part[0]).T for part in parts]))
        result.head.bias.copy_(torch.cat([bias + weight @ part[0] for part in parts]))
    return Plain(result.train(network.training), added, tuple(own))


def prefix(config: NetworkConfig) -> str:
    """Return what is put before every text: of the configuration or the bundle, else 'query: ' for E5 encoders."""
    if config.prefix is not None:
        return config.prefix
    if (bundle := Path(config.init) / "bundle.json").is_file():
        try:
            return str(json.loads(bundle.read_text(encoding="utf-8"))["prefix"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"network.init: {bundle} is damaged ({error}); copy the bundle again") from None
    # the name alone, as the folders above a local encoder say nothing about it
    return "query: " if "e5-" in Path(config.init).name.lower() else ""


def is_whole(content: Mapping[str, Any]) -> bool:
    """Return whether the bundle that a `bundle.json` describes holds its encoder, and not changes to another alone."""
    return any(name.startswith("encoder/") for name in content["sha256"])


def whole_again(content: Mapping[str, Any]) -> str:
    """Return the settings with which the bundle that a `bundle.json` describes would hold its whole encoder."""
    if names := content.get("added_by"):
        return " and ".join(f"techniques.{name}.merge=true" for name in names)
    listed = ", ".join(content["experiment"]["techniques"])  # an older bundle, which does not name it
    return f"techniques.NAME.merge=true, where NAME is the one of its techniques ({listed}) that adds to an encoder,"


def encoder_source(config: NetworkConfig) -> str:
    """Return the name that `encoders.load` loads: `config.init`, or the encoder inside of it where that is a bundle.

    Raises InputError for a bundle that holds changes to an encoder alone, and for a run that is to be done first.
    """
    if config.init.startswith(STAGE):
        raise InputError(
            f"network.init: {config.init!r}: only `xlt train` does another run first; do that one, and give its bundle"
        )
    if not (Path(config.init) / "bundle.json").is_file():
        return config.init
    if (Path(config.init) / CHANGES).is_file():
        content = json.loads((Path(config.init) / "bundle.json").read_text(encoding="utf-8"))
        raise InputError(
            f"network.init: the bundle {config.init} holds only changes to an encoder; train it again with "
            f"{whole_again(content)} to go on from it"
        )
    return str(Path(config.init) / "encoder")


def load_encoder(config: NetworkConfig, weights: bool = True) -> Encoder:
    """Load a configuration's encoder, with the blocks that it keeps; see `encoders.load`.

    Without `weights`, as before any work begins, the files of a bundle are held to what was written
    (`bundles.verified`).
    """
    if not weights and config.bundle is not None:
        bundles.verified("network.init", config.bundle)
    found = encoders.load(encoder_source(config), config.revision, weights)
    if config.layers is not None:
        encoders.keep_layers(found.model, config.layers)
    return replace(found, identity=_identity(found.identity, config))


def fingerprint(config: NetworkConfig) -> str:
    """Return the identity of the encoder that `load_encoder` would load, without building it."""
    return _identity(encoders.fingerprint(encoder_source(config), config.revision), config)


def _identity(found: str, config: NetworkConfig) -> str:
    return found if config.layers is None else f"{found} {config.layers} layers"


class Built(NamedTuple):
    """A network with what turns texts into its batches, and the identity of the encoder that it began with."""

    network: Network
    tokenize: Tokenize
    identity: str


def build(config: NetworkConfig, classes: int, seed: int, languages: Sequence[str] = (), weights: bool = True) -> Built:
    """Load a configuration's encoder and put a head on it.

    The head is fresh, or that of the bundle `config.init` where `config.head` asks for it. Without `weights` the
    encoder has shapes alone, see `encoders.load`. Raises InputError with all that does not fit.
    """
    encoder, before = None, ""
    faults: list[str] = []
    with collecting(faults):
        before = prefix(config)
    with collecting(faults):
        encoder = load_encoder(config, weights)
    if encoder is None:
        raise joined(faults)
    with collecting(faults):
        _check_length(encoder.model, config.max_length)
    network = Network(encoder.model, classes, config.pooling, seed, languages)
    if config.head == "bundle":
        with collecting(faults):
            _take_head(network, Path(config.init))
    if config.dropout is not None:
        _set_dropout(network, config.dropout)
    with collecting(faults):
        freeze(network, config.freeze)
    if faults:
        raise joined(faults)
    return Built(network, Tokenize(encoder.tokenizer, before, config.max_length), encoder.identity)


def _take_head(network: Network, bundle: Path) -> None:
    file = bundle / HEAD
    if not file.is_file():
        raise InputError(
            f"network.head: bundle, but {bundle} is none that learned a task (no {file.name}); set network.init to one"
        )
    state = load_file(file)
    if state["weight"].shape != network.head.weight.shape:
        raise InputError(
            f"network.head: the bundle {bundle} has {len(state['weight'])} labels, the corpus "
            f"{len(network.head.weight)}; take a bundle of the same labels, or network.head=fresh"
        )
    network.head.load_state_dict(state)


def positions(encoder: nn.Module) -> range | None:
    """Return the numbers of positions that an encoder has embeddings of; None where it has none, or relative ones."""
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return None
    return range(0 if table.padding_idx is None else table.padding_idx + 1, table.num_embeddings)


def _check_length(encoder: nn.Module, asked: int) -> None:
    there = positions(encoder)
    if there is not None and asked > (room := len(there) - len(there) % MULTIPLE):  # batches are padded to multiples
        raise InputError(
            f"network.max_length: {asked} tokens, but the encoder has room for {room}; give {room} or less"
        )


def _set_dropout(network: Network, probability: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout", "attention_dropout"):  # T5 and ModernBERT keep that of their attention as a number
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def freeze(network: Network, parts: tuple[str | int, ...]) -> None:
    """Stop training of parts of the encoder: 'embeddings' (word embeddings), a number n (everything up to block n).

    Raises InputError where n is more blocks than the encoder has.
    """
    blocks = encoders.layers(network.encoder)
    for part in parts:
        if part == "embeddings":
            network.encoder.get_input_embeddings().requires_grad_(False)
        elif not 0 <= int(part) <= len(blocks):
            raise InputError(
                f"network.freeze: {part} blocks, but the encoder has {len(blocks)}; give 0 to {len(blocks)}"
            )
        else:
            trained = {id(p) for block in blocks[int(part) :] for p in block.parameters()}
            for parameter in network.encoder.parameters():
                if id(parameter) not in trained:
                    parameter.requires_grad_(False)


def trained(network: nn.Module) -> Weights:
    """Return what training changes, by name and not copied: the parameters with gradients and all buffers."""
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    return weights | {name: b for name, b in network.named_buffers() if name in network.state_dict()}


def digest(encoder: nn.Module) -> str:
    """Return a digest of every weight of an encoder as it is now, which training has changed or not."""
    found = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"weights@{found.hexdigest()}"


def restore_weights(network: nn.Module, weights: Weights) -> None:
    """Copy weights that `trained` returned into a network; raise InputError where names or shapes differ."""
    current = trained(network)
    strange = sorted(current.keys() ^ weights.keys())
    strange += sorted(name for name in current.keys() & weights.keys() if current[name].shape != weights[name].shape)
    if strange:
        raise InputError(
            f"checkpoint: its weights are not this network's ({', '.join(strange[:3])} ...); use a new name"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            current[name].copy_(tensor)
