"""Add a language to a finished bundle: from unlabelled text alone, without training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from xlt_ray import sniff
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.inference import bundle
from xlt_ray.languages import codes
from xlt_ray.techniques.centre import Shift

FEWEST = 20  # texts; a mean of fewer is off by a quarter of what texts differ by among themselves


@dataclass(frozen=True)
class Adapted:
    """What was added: the language's code, whether it is new, from how many texts, and how many are known now."""

    language: str
    new: bool
    texts: int
    languages: int


def adapt(folder: Path, language: str, file: Path) -> Adapted:
    """Estimate the mean features of a language on the lines of a file, and write it into a bundle.

    Raises InputError where the bundle was trained without `centre` or the file has too few texts.
    """
    code = codes.resolve(language)
    texts = list(dict.fromkeys(line.strip() for line in sniff.text_lines(file) if line.strip()))
    if len(texts) < FEWEST:
        raise InputError(f"{file}: {len(texts)} different texts; give {FEWEST} or more, some hundred are good")
    model = bundle.load(folder)
    step = dict(model.network.steps.items()).get("centre")
    if not isinstance(step, Shift):
        raise InputError(
            f"{folder}: trained without the technique centre, which alone can take up a language; train with "
            "`techniques: [centre]`"
        )
    table = pa.table({"text": pa.array(texts, pa.string())})
    features = evaluate.embed(model.network, {code: table}, evaluate.Inputs(model.tokenize, model.precision))[code]
    known = model.network.languages
    new = code not in known
    step.add(len(known) if new else known.index(code), features.mean(0, dtype=np.float64))
    if new:
        model.network.languages = (*known, code)
    bundle.update_steps(folder, model)
    return Adapted(code, new, len(texts), len(model.network.languages))
