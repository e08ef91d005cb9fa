"""Save and load a bundle: a folder with the network, its tokenizer, its labels, its experiment and its scores.

Only safetensors, JSON and an array of numbers, never a pickle. `bundle.json` lists the SHA-256 of every other file.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialised

from xlt_ray import durable, tasks, techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.masking import public
from xlt_ray.corpora import seen
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.evaluate import Inputs
from xlt_ray.evaluation.scores import Scores
from xlt_ray.inference import artefact
from xlt_ray.languages.identify import Identifier
from xlt_ray.model.collate import Tokenize
from xlt_ray.model.network import CHANGES, Network
from xlt_ray.tasks.task import Task
from xlt_ray.techniques.technique import Technique
from xlt_ray.translation import readings
from xlt_ray.translation.readings import Readings


@dataclass(frozen=True)
class Bundle:
    """A model ready to answer: `experiment` is how it was made, `scores` how good it was measured to be.

    Without labels it is an encoder, which can be saved, and begun from, but not loaded to answer.
    """

    network: Network
    tokenize: Tokenize
    labels: tuple[str, ...]
    experiment: Experiment
    scores: Scores | None
    precision: str = "float32"
    run: str = ""  # the key of the run that made it, where that is known
    readings: Readings | None = None  # how texts are read, None as they stand
    supervision: Mapping[str, str] = field(default_factory=dict)  # rung of `supervision.LADDER`, of all but sources
    corpus: str = ""  # fingerprint of what it was trained on
    lineage: tuple[Mapping[str, str], ...] = ()  # of the bundles it descends from, the first first, see `lineage`
    seen: np.ndarray | None = None  # digests of the texts that it or one of these was trained on, see `corpora.seen`

    @property
    def task(self) -> Task:
        """What is asked of a text."""
        return tasks.build(self.experiment.task, self.labels)

    def probabilities(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        languages: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """Return the calibrated probability of every label for every text: (texts, labels) float32, rows sum to 1.

        `languages` are codes of the texts, None where one is unknown. Where a technique depends on the language and
        none are given, they are guessed. Raises InputError for a model of words, see `tagging.tag`.
        """
        if self.task.tagged:
            raise InputError(f"task: {self.task.name}: the model answers for every word of a text; use tag")
        if languages is None and self.asks_for_languages:
            languages = _guessed(texts)
        read = readings.asked(self.readings, texts, pairs, languages)
        return read.joined(self.answer(self.tokenize(read.texts, read.pairs) if read.texts else [], read.keys))

    @property
    def asks_for_languages(self) -> bool:
        """Whether answers depend on the languages of texts."""
        return len(self.network.steps) > 0 or self.readings is not None

    def answer(
        self,
        encoded: Sequence[Mapping[str, Sequence[int]]],
        languages: Sequence[str | None] | None,
        tokens: int | None = None,
    ) -> np.ndarray:
        """Return the same of rows encoded as by `tokenize`, one reading each; without `languages` all are unknown.

        `tokens` is the most padded tokens of a batch, by default as the experiment has it.
        """
        if not len(encoded):
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        known = [None] * len(encoded) if languages is None else languages
        indices = [self.network.index(code) for code in known]
        inputs = Inputs(self.tokenize, self.precision, tokens or self.experiment.evaluation.tokens_per_step)
        device = next(self.network.parameters()).device
        logits = evaluate.forward(self.network, device, encoded, inputs, indices)
        return (torch.from_numpy(logits) / self.network.temperature).softmax(-1).numpy()

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        languages: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Return the most probable label of every text; `languages` as for `probabilities`."""
        return [self.labels[i] for i in self.probabilities(texts, pairs, languages).argmax(1)]


def _guessed(texts: Sequence[str]) -> list[str | None]:
    return [guess.code for guess in _identifier().guess_all(texts)]


@functools.cache
def _identifier() -> Identifier:
    return Identifier()


def save(folder: Path, bundle: Bundle, identity: str) -> None:
    """Write a bundle; `identity` is the encoder it started from. bundle.json is written last and makes it valid.

    Of an encoder that a technique only added to, the addition alone is written, unless the technique is to be merged;
    such a bundle loads where `network.init` is still that encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bundle.json").unlink(missing_ok=True)
    net, chosen = bundle.network, techniques.build(bundle.experiment)
    for one in chosen:
        if one.merged_when_saved:
            one.merge_into_encoder(net)
    added = {key: tensor for one in chosen if one.replaces_encoder for key, tensor in one.state(net).items()}
    if added:
        durable.write(folder / CHANGES, serialised(_plain(added)))
    else:
        net.encoder.save_pretrained(folder / "encoder")
        bundle.tokenize.tokenizer.save_pretrained(folder / "encoder")
        mode = (folder / "encoder" / "config.json").stat().st_mode
        for file in (folder / "encoder").glob("*.safetensors"):
            file.chmod(mode)  # safetensors writes files that their owner alone can read
    if bundle.labels:
        durable.write(folder / artefact.HEAD, serialised(_plain(net.head.state_dict())))
    if bundle.scores is not None:
        (folder / "scores.json").write_text(bundle.scores.to_json(), encoding="utf-8")
    if bundle.seen is not None:
        np.save(folder / seen.FILE, bundle.seen, allow_pickle=False)
    content: dict[str, Any] = {
        "format": artefact.FORMAT_OF_WORDS if bundle.labels and bundle.task.tagged else artefact.FORMAT,
        "labels": list(bundle.labels),
        "prefix": bundle.tokenize.prefix,
        "max_length": bundle.tokenize.max_length,
        "pooling": net.pooling,
        "encoder": identity,
        "run": bundle.run,
        "corpus": bundle.corpus,
        "lineage": list(map(dict, bundle.lineage)),
        "experiment": public(bundle.experiment.model_dump(mode="json")),
        "languages": list(net.languages),
        "supervision": dict(bundle.supervision),
        "temperature": net.temperature,
        "steps": _save_steps(folder, net, chosen),
        "added_by": [one.name for one in chosen if one.replaces_encoder] if added else [],
    }
    if bundle.readings is not None:
        content["readings"] = _save_readings(folder, bundle.readings)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    content["sha256"] = {str(p.relative_to(folder)): durable.digest(p) for p in files}
    _write(folder, content)


def _plain(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _save_steps(folder: Path, net: Network, chosen: Sequence[Technique]) -> str | None:
    """Write the state of techniques into a file named by its content; return the name, None where there is none."""
    beside = [one for one in chosen if not one.replaces_encoder]
    state = {f"{one.name}.{key}": tensor for one in beside for key, tensor in one.state(net).items()}
    if not state:
        return None
    return _by_content(folder, "steps", ".safetensors", serialised(_plain(state)))


def _save_readings(folder: Path, kept: Readings) -> str:
    return _by_content(folder, "readings", ".json", readings.to_json(kept).encode())


def _by_content(folder: Path, kind: str, ending: str, content: bytes) -> str:
    """Write a file named by its content, so that an older one stays until bundle.json names this; return the name."""
    name = f"{kind}-{hashlib.sha256(content).hexdigest()[:12]}{ending}"
    durable.write(folder / name, content)
    return name


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    durable.write(folder / artefact.BUNDLE_FILE, json.dumps(content, indent=1, ensure_ascii=False))


def update_steps(folder: Path, bundle: Bundle) -> None:
    """Replace what is saved of techniques, readings and the languages they know; the folder is valid at any moment."""
    content = artefact.verify_bundle(folder)
    before = {name for name in (content.get("steps"), content.get("readings")) if name}
    content["steps"] = _save_steps(folder, bundle.network, techniques.build(bundle.experiment))
    if bundle.readings is not None:
        content["readings"] = _save_readings(folder, bundle.readings)
    content["languages"] = list(bundle.network.languages)
    content["supervision"] = dict(bundle.supervision)
    after = {name for name in (content["steps"], content.get("readings")) if name}
    content["sha256"] = {name: digest for name, digest in content["sha256"].items() if name not in before}
    content["sha256"] |= {name: durable.digest(folder / name) for name in sorted(after)}
    _write(folder, content)
    for name in before - after:
        (folder / name).unlink()


def load(folder: str | Path) -> Bundle:
    """Load a bundle after verifying every file; raise InputError naming the file that is missing or was changed."""
    folder = Path(folder)
    content = artefact.verify_bundle(folder)
    experiment, (network, tokenize, _) = techniques.restore(folder, content)
    file = folder / "scores.json"
    scores = Scores.from_json(file.read_text(encoding="utf-8")) if file.is_file() else None
    rungs = content.get("supervision")
    if rungs is None:  # a bundle of before
        rungs = techniques.supervised(experiment, {*network.languages, *(scores.languages if scores else ())})
    return Bundle(
        network,
        tokenize,
        tuple(content["labels"]),
        experiment,
        scores,
        run=content.get("run", ""),
        readings=readings.read(folder / content["readings"]) if content.get("readings") else None,
        supervision=rungs,
        corpus=content.get("corpus", ""),
        lineage=tuple(content.get("lineage", ())),
        seen=seen.load(folder),
    )


def lineage(bundles: Mapping[str, Path]) -> tuple[Mapping[str, str], ...]:
    """Return `run`, `corpus` and digest of the bundles that a run is made from, each after its ancestors'.

    `bundles` are as `techniques.bundles` has them. The one that the run begins from is the last; those that it has
    learned from as teachers alone have that for their `role`.
    """
    found: dict[str, Mapping[str, str]] = {}
    for place, folder in bundles.items():
        content = artefact.read_bundle(folder)
        own = {name: content.get(name, "") for name in ("run", "corpus")} | {"bundle": artefact.bundle_digest(folder)}
        role = {} if place == techniques.BEGUN else {"role": artefact.TEACHER}
        for one in (*content.get("lineage", ()), own):
            found.pop(one["bundle"], None)
            found[one["bundle"]] = {**one, **role}
    return tuple(found.values())
