"""Add a language to a finished bundle from unlabelled text and, where texts are read in translation, its lexicon."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from xlt_ray import sniff, techniques
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.inference import bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.languages import codes
from xlt_ray.languages import lexicon as lexicons
from xlt_ray.supervision import PARALLEL, UNLABELLED, ZERO_SHOT, highest
from xlt_ray.translation.readings import ORIGINAL, is_first
from xlt_ray.translation.translator import pack

FEWEST = 20  # texts; the mean of fewer is off by a quarter of the spread of single texts


@dataclass(frozen=True)
class Adapted:
    """The language that was added, whether it is new, the number of its texts, and of all `languages` known now.

    `read` says in words how its texts are read.
    """

    language: str
    new: bool
    texts: int
    languages: int
    read: str = ORIGINAL


def adapt(folder: Path, language: str, file: Path, lexicon: Path | None = None) -> Adapted:
    """Add a language to a bundle's techniques from the lines of a file, and save their state in the bundle.

    `lexicon` is a table or a dictionary, see `languages.lexicon.read`, from the language into the one that the bundle
    reads texts in; texts of a language without one are read as they stand. Raises InputError where no technique of the
    bundle can add a language, it reads no text in translation, or the file has too few texts.
    """
    code = codes.resolve(language)
    texts = list(dict.fromkeys(line.strip() for line in sniff.text_lines(file) if line.strip()))
    if len(texts) < FEWEST:
        raise InputError(f"{file}: {len(texts)} different texts; give {FEWEST} or more, some hundred are good")
    model = bundle.load(folder)
    able = [one for one in techniques.build(model.experiment) if one.adds_languages]
    if not able and lexicon is None:
        names = [name for name in techniques.CATALOGUE if techniques.load(name).adds_languages]
        raise InputError(
            f"{folder}: has no technique that adds a language from text: train with "
            + " or ".join(f"`techniques: [{name}]`" for name in names)
        )
    if lexicon is not None:
        model = _with_lexicon(model, code, lexicon)
    tables = {code: pa.table({"text": pa.array(texts, pa.string())})}
    if model.readings is not None:
        tables = model.readings.to_estimate(code, tables[code])
    features = evaluate.embed(model.network, tables, evaluate.Inputs(model.tokenize, model.precision))
    known = model.network.languages
    model.network.languages = (*known, *(key for key in tables if key not in known))
    for one in able:
        for key, rows in features.items():
            one.add_language(model.network, key, rows)
    if code not in model.experiment.sources:
        read_now = ([UNLABELLED] if able else []) + ([PARALLEL] if lexicon else [])
        rung = highest([model.supervision.get(code), *read_now])
        model = replace(model, supervision={**model.supervision, code: rung or ZERO_SHOT})
    bundle.update_steps(folder, model)
    languages = sum(map(is_first, model.network.languages))
    read = ORIGINAL if model.readings is None else model.readings.describe(code)
    return Adapted(code, code not in known, len(texts), languages, read)


def _with_lexicon(model: Bundle, code: str, file: Path) -> Bundle:
    if model.readings is not None and code in (model.readings.into, *model.experiment.sources):
        raise InputError(
            f"--lexicon {file}: {code} is a source or what texts are translated into, and is read as it stands; leave "
            "it out"
        )
    if model.readings is None:
        raise InputError(
            f"--lexicon {file}: the bundle reads texts as they stand; leave it out, or train with a technique that "
            "reads them in translation"
        )
    found = lexicons.read(file, code, model.readings.into)
    if not found.entries:
        raise InputError(f"--lexicon {file}: has no entry; give a table of words and translations")
    return replace(model, readings=model.readings.with_lexicon(code, pack(found)))
