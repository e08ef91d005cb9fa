"""A self-contained model directory: the network, its tokenizer, its labels, what it was trained on and how good it is.

Only safetensors and JSON, never a pickle. `bundle.json` lists the SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from xlt_ray import collate, encoders, evaluate
from xlt_ray.collate import Tokenize
from xlt_ray.config import Experiment, InputError, build
from xlt_ray.metrics import Scores
from xlt_ray.network import Network

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

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """Give the probability of every label for every text: (texts, labels) float32, rows summing to 1."""
        if not len(texts):
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        device = next(self.network.parameters()).device
        encoded = self.tokenize(texts, pairs)
        tokens = evaluate.token_budget(self.experiment.evaluation.tokens_per_step, device)
        pad_id = self.tokenize.tokenizer.pad_token_id
        result = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        with torch.inference_mode(), evaluate.autocast(device, self.precision):
            for positions, batch in collate.budgeted(encoded, tokens, pad_id):
                logits = self.network({key: value.to(device) for key, value in batch.items()})
                result[positions] = logits.float().softmax(-1).cpu().numpy()
        return result

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[str]:
        """Give the most probable label of every text."""
        return [self.labels[i] for i in self.probabilities(texts, pairs).argmax(1)]


def save(folder: Path, bundle: Bundle, identity: str) -> None:
    """Write a bundle; `identity` is the encoder it started from. bundle.json comes last and makes it valid."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bundle.json").unlink(missing_ok=True)
    bundle.network.encoder.save_pretrained(folder / "encoder")
    bundle.tokenize.tokenizer.save_pretrained(folder / "encoder")
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in bundle.network.head.state_dict().items()},
        folder / "head.safetensors",
    )
    if bundle.scores is not None:
        (folder / "scores.json").write_text(bundle.scores.to_json(), encoding="utf-8")
    content = {
        "format": FORMAT,
        "labels": list(bundle.labels),
        "prefix": bundle.tokenize.prefix,
        "max_length": bundle.tokenize.max_length,
        "pooling": bundle.network.pooling,
        "encoder": identity,
        "experiment": bundle.experiment.model_dump(mode="json"),
        "sha256": {str(p.relative_to(folder)): _digest(p) for p in sorted(folder.rglob("*")) if p.is_file()},
    }
    (folder / "bundle.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def load(folder: str | Path) -> Bundle:
    """Load a bundle after verifying every file; raise InputError naming the file that is missing or was changed."""
    folder = Path(folder)
    content = verify(folder)
    encoder = encoders.load(str(folder / "encoder"))
    network = Network(encoder.model, len(content["labels"]), content["pooling"])
    network.head.load_state_dict(load_file(folder / "head.safetensors"))
    scores = folder / "scores.json"
    return Bundle(
        network.eval(),
        Tokenize(encoder.tokenizer, content["prefix"], content["max_length"]),
        tuple(content["labels"]),
        build(content["experiment"], place=f"{folder / 'bundle.json'}: experiment"),
        Scores.from_json(scores.read_text(encoding="utf-8")) if scores.is_file() else None,
    )


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
        if _digest(folder / name) != digest:
            raise InputError(f"{folder / name}: not the file that was saved (SHA-256 differs); copy the bundle again")
    return content


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
