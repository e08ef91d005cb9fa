"""Compute pooled features of texts in any layer of a finished network, and keep them by content."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from xlt_ray.config.experiment import Experiment
from xlt_ray.evaluation import evaluate, features
from xlt_ray.events import OnProgress
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model.network import Network, digest
from xlt_ray.model.precision import choose_precision


@dataclass(frozen=True, eq=False)
class Reader:
    """Computes features of texts in any layer of a network, and keeps them by content as those of the last are."""

    network: Network
    inputs: evaluate.Inputs
    cache_dir: str
    settings: Mapping[str, str | int]

    @classmethod
    def of(cls, model: Bundle, experiment: Experiment) -> Reader:
        """Return the reader of a bundle, on a GPU where there is one."""
        network, tokenize = model.network, model.tokenize
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        precision = choose_precision(experiment.training.precision, network, tokenize.max_length)
        made = [network.encoder.config.to_json_string(), tokenize.tokenizer.backend_tokenizer.to_str()]
        made.append(json.dumps(dict(model.experiment.techniques), sort_keys=True))  # what is added may be scaled
        about = hashlib.sha256("".join(made).encode()).hexdigest()
        settings: dict[str, str | int] = {
            "encoder": digest(network.encoder), "about": about, "prefix": tokenize.prefix, "pooling": network.pooling,
            "max_length": tokenize.max_length, "precision": precision,
        }  # fmt: skip
        inputs = evaluate.Inputs(tokenize, precision, experiment.evaluation.tokens_per_step)
        return cls(network, inputs, experiment.corpus.cache_dir, settings)

    def features(
        self, tables: Mapping[str, pa.Table], layers: Sequence[int], on_progress: OnProgress
    ) -> dict[str, dict[int, np.ndarray]]:
        """Return features (rows, width) of tables by name and layer, mapped from disk; what is missing is computed."""
        done, total = 0, sum(table.num_rows for table in tables.values())
        found, device = {}, next(self.network.parameters()).device
        call = functools.partial(self.network.pooled, layers=layers)
        for name, table in tables.items():
            files = {n: features.cache_file(self.cache_dir, table, {**self.settings, "layer": n}) for n in layers}
            if any(features.read(file) is None for file in files.values()):
                rows = evaluate.outputs(call, device, table, np.arange(table.num_rows), self.inputs)
                features.refuse_broken(rows, self.inputs.precision, str(self.settings["encoder"]))
                for file, part in zip(files.values(), np.split(rows, len(layers), axis=1), strict=True):
                    features.write(file, np.ascontiguousarray(part))
            found[name] = {layer: np.asarray(features.read(file)) for layer, file in files.items()}
            done += table.num_rows
            on_progress(done, total)
        return found
