"""Add a language to a finished bundle from unlabelled text alone, without training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from xlt_ray import sniff, techniques
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.inference import bundle
from xlt_ray.languages import codes
from xlt_ray.supervision import BY_READING, ZERO_SHOT, highest

FEWEST = 20  # texts; the mean of fewer is off by a quarter of the spread of single texts


@dataclass(frozen=True)
class Adapted:
    """The language that was added, whether it is new, the number of its texts, and of all `languages` known now."""

    language: str
    new: bool
    texts: int
    languages: int


def adapt(folder: Path, language: str, file: Path) -> Adapted:
    """Add a language to a bundle's techniques from the lines of a file, and save their state in the bundle.

    Raises InputError where no technique of the bundle can add a language, or the file has too few texts.
    """
    code = codes.resolve(language)
    texts = list(dict.fromkeys(line.strip() for line in sniff.text_lines(file) if line.strip()))
    if len(texts) < FEWEST:
        raise InputError(f"{file}: {len(texts)} different texts; give {FEWEST} or more, some hundred are good")
    model = bundle.load(folder)
    able = [one for one in techniques.build(model.experiment) if one.adds_languages]
    if not able:
        names = [name for name in techniques.CATALOGUE if techniques.load(name).adds_languages]
        raise InputError(
            f"{folder}: has no technique that adds a language: train with "
            + " or ".join(f"`techniques: [{name}]`" for name in names)
        )
    table = pa.table({"text": pa.array(texts, pa.string())})
    features = evaluate.embed(model.network, {code: table}, evaluate.Inputs(model.tokenize, model.precision))[code]
    known = model.network.languages
    new = code not in known
    if new:
        model.network.languages = (*known, code)
    for one in able:
        one.add_language(model.network, code, features)
    if code not in model.experiment.sources:
        rung = highest([model.supervision.get(code), *(BY_READING[one.reads] for one in able)])
        model = replace(model, supervision={**model.supervision, code: rung or ZERO_SHOT})
    bundle.update_steps(folder, model)
    return Adapted(code, new, len(texts), len(model.network.languages))
