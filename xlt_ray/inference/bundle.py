"""A self-contained model directory: the network, its tokenizer, its labels, what it was trained on and how good it is.

Only safetensors and JSON, never a pickle. `bundle.json` lists the SHA-256 of every other file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from xlt_ray import sniff, techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.masking import public
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.evaluation.metrics import Scores
from xlt_ray.inference import artefact
from xlt_ray.languages.identify import Identifier
from xlt_ray.model import collate, encoders
from xlt_ray.model.collate import Tokenize
from xlt_ray.model.encoders import Encoder
from xlt_ray.model.network import CHANGES, Network
from xlt_ray.model.precision import autocast, token_budget
from xlt_ray.techniques import lora

FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A model ready to answer: `experiment` says how it was made, `scores` how good it was measured to be."""

    network: Network
    tokenize: Tokenize
    labels: tuple[str, ...]
    experiment: Experiment
    scores: Scores | None
    precision: str = "float32"

    def probabilities(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        languages: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """Give the calibrated probability of every label for every text: (texts, labels) float32, rows summing to 1.

        `languages` are codes of the texts, None where one is unknown. Where a technique depends on the language and
        none are given, they are guessed.
        """
        if not len(texts):
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        if languages is None:
            languages = _guessed(texts) if len(self.network.steps) else [None] * len(texts)
        indices = np.array([self.network.index(code) for code in languages])
        device = next(self.network.parameters()).device
        encoded = self.tokenize(texts, pairs)
        tokens = token_budget(self.experiment.evaluation.tokens_per_step, device)
        pad_id = self.tokenize.tokenizer.pad_token_id
        result = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        with torch.inference_mode(), autocast(device, self.precision):
            for positions, batch in collate.budgeted(encoded, tokens, pad_id):
                batch["language"] = torch.from_numpy(indices[positions])
                logits = self.network({key: value.to(device) for key, value in batch.items()})
                result[positions] = (logits.float() / self.network.temperature).softmax(-1).cpu().numpy()
        return result

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        languages: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Give the most probable label of every text; `languages` as for `probabilities`."""
        return [self.labels[i] for i in self.probabilities(texts, pairs, languages).argmax(1)]


def _guessed(texts: Sequence[str]) -> list[str | None]:
    return [guess.code for guess in _identifier().guess_all(texts)]


@functools.cache
def _identifier() -> Identifier:
    return Identifier()


def save(folder: Path, bundle: Bundle, identity: str) -> None:
    """Write a bundle; `identity` is the encoder it started from. bundle.json comes last and makes it valid.

    Of an encoder that only LoRA changed the change alone is written, unless the technique says `merge`; such a bundle
    loads where `network.init` gives that encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bundle.json").unlink(missing_ok=True)
    net = bundle.network
    changed = lora.adapted(net.encoder)
    if changed and bundle.experiment.techniques["lora"].get("merge"):
        lora.merge(net.encoder)
        changed = False
    if changed:
        save_file(lora.changes(net.encoder), folder / CHANGES)
    else:
        net.encoder.save_pretrained(folder / "encoder")
        bundle.tokenize.tokenizer.save_pretrained(folder / "encoder")
    save_file(_state(net.head), folder / "head.safetensors")
    if bundle.scores is not None:
        (folder / "scores.json").write_text(bundle.scores.to_json(), encoding="utf-8")
    content = {
        "format": FORMAT,
        "labels": list(bundle.labels),
        "prefix": bundle.tokenize.prefix,
        "max_length": bundle.tokenize.max_length,
        "pooling": net.pooling,
        "encoder": identity,
        "experiment": public(bundle.experiment.model_dump(mode="json")),
        "languages": list(net.languages),
        "temperature": net.temperature,
        "steps": _save_steps(folder, net),
    }
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    content["sha256"] = {str(p.relative_to(folder)): artefact.digest(p) for p in files}
    _write(folder, content)


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _save_steps(folder: Path, net: Network) -> str | None:
    """Write what techniques do to features, under a name of its content; give the name, None where there is nothing."""
    if not len(net.steps):
        return None
    draft = folder / "steps.safetensors"
    save_file(_state(net.steps), draft)
    file = folder / f"steps-{artefact.digest(draft)[:12]}.safetensors"
    draft.replace(file)
    return file.name


def _write(folder: Path, content: dict[str, Any]) -> None:
    artefact.write_text(folder / "bundle.json", json.dumps(content, indent=1, ensure_ascii=False))


def update_steps(folder: Path, bundle: Bundle) -> None:
    """Write anew what techniques do to features and the languages that they know; at any moment the folder is valid."""
    content = verify(folder)
    old = content.get("steps")
    content["steps"], content["languages"] = _save_steps(folder, bundle.network), list(bundle.network.languages)
    content["sha256"].pop(old, None)
    if content["steps"]:
        content["sha256"][content["steps"]] = artefact.digest(folder / content["steps"])
    _write(folder, content)
    if old and old != content["steps"]:
        (folder / old).unlink()


def load(folder: str | Path) -> Bundle:
    """Load a bundle after verifying every file; raise InputError naming the file that is missing or was changed."""
    folder = Path(folder)
    content = verify(folder)
    experiment = build(content["experiment"], place=f"{folder / 'bundle.json'}: experiment")
    encoder = encoders.load(str(folder / "encoder")) if (folder / "encoder").is_dir() else _unchanged(folder, content)
    network = Network(encoder.model, len(content["labels"]), content["pooling"], languages=content.get("languages", ()))
    network.head.load_state_dict(load_file(folder / "head.safetensors"))
    network.temperature = content.get("temperature", 1.0)
    for one in techniques.build(experiment):
        if one.name != "lora" or (folder / CHANGES).is_file():
            one.network(network, encoder.tokenizer)
    if (folder / CHANGES).is_file():
        network.encoder.load_state_dict(load_file(folder / CHANGES), strict=False)
    if content.get("steps"):
        state = load_file(folder / content["steps"])
        for name, tensor in state.items():  # `xlt adapt` may have added languages
            step, _, buffer = name.partition(".")
            setattr(network.steps[step], buffer, tensor)
    scores = folder / "scores.json"
    return Bundle(
        network.eval(),
        Tokenize(encoder.tokenizer, content["prefix"], content["max_length"]),
        tuple(content["labels"]),
        experiment,
        Scores.from_json(scores.read_text(encoding="utf-8")) if scores.is_file() else None,
    )


def _unchanged(folder: Path, content: dict[str, Any]) -> Encoder:
    """Load the encoder that a bundle of changes belongs to, which must be the very same."""
    init, revision = content["experiment"]["network"]["init"], content["experiment"]["network"]["revision"]
    found = encoders.load(init, revision)
    if found.identity != content["encoder"]:
        raise InputError(
            f"{folder}: holds changes to the encoder {content['encoder']}, but {init} is now {found.identity}; bring "
            "the former back, or train again with techniques.lora.merge=true, which writes whole bundles"
        )
    return found


def verify(folder: Path) -> dict[str, Any]:
    """Check a bundle's files against their recorded SHA-256 and return the content of bundle.json."""
    try:
        content: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder}: not a bundle (no bundle.json); give the folder `bundle` of a finished run"
        ) from None
    except ValueError as error:
        raise InputError(f"{folder / 'bundle.json'}: damaged ({error}); copy the bundle again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{folder / 'bundle.json'}: format {found}, this version reads {FORMAT}; train again")
    for name, digest in content["sha256"].items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing; copy the bundle again")
        if pointer := sniff.lfs_pointer(folder / name):
            raise InputError(pointer)
        if artefact.digest(folder / name) != digest:
            raise InputError(f"{folder / name}: not the file that was saved (SHA-256 differs); copy the bundle again")
    return content


class _PyFunc:
    """What MLflow's generic loader calls: texts in, labels out."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Classify a list of texts, a Series, or a frame whose first column is text and whose second its pair."""
        columns = getattr(model_input, "columns", None)
        if columns is None:
            return self.bundle.predict([str(text) for text in model_input])
        texts = [str(text) for text in model_input.iloc[:, 0]]
        pairs = [str(text) for text in model_input.iloc[:, 1]] if len(columns) > 1 else None
        return self.bundle.predict(texts, pairs)


def _load_pyfunc(path: str) -> _PyFunc:
    # the name and signature that mlflow.pyfunc's `loader_module` asks for
    return _PyFunc(load(path))
