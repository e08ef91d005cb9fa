"""List the techniques for better transfer: each is one file here and one line in CATALOGUE.

A configuration lists techniques under `techniques:`, and they compose in that order. Their hooks are in `technique.py`.
No module outside this package names one of them.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from xlt_ray import durable, supervision, tasks
from xlt_ray.config import keys
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build as read
from xlt_ray.errors import InputError, joined
from xlt_ray.techniques.technique import Example, Material, Technique

if TYPE_CHECKING:
    from xlt_ray.model.network import Built

# what may lie in a folder of dictionaries; the last two are the articles beside an index
BEGUN = "network.init"  # the key of the bundle that a run begins from, see `bundles`
DICTIONARIES = (".tsv", ".csv", ".tei", ".index", ".dict", ".dict.dz")

CATALOGUE = {
    "few_shot": "xlt_ray.techniques.few_shot.FewShot",
    "code_switch": "xlt_ray.techniques.code_switch.CodeSwitch",
    "translate_train": "xlt_ray.techniques.translate_train.TranslateTrain",
    "lora": "xlt_ray.techniques.lora.Lora",
    "distil": "xlt_ray.techniques.losses.distil.Distil",
    "contrast": "xlt_ray.techniques.losses.contrast.Contrast",
    "mlm": "xlt_ray.techniques.losses.mlm.Mlm",
    "tlm": "xlt_ray.techniques.losses.tlm.Tlm",
    "adversarial": "xlt_ray.techniques.losses.adversarial.Adversarial",
    "translate_test": "xlt_ray.techniques.translate_test.TranslateTest",
    "centre": "xlt_ray.techniques.centre.Centre",
    "language_id": "xlt_ray.techniques.losses.language_id.LanguageId",
}


def build(experiment: Experiment) -> tuple[Technique, ...]:
    """Return the techniques of an experiment, in its order; raise InputError that lists all that is wrong with them."""
    found, faults = [], []
    for name, parameters in experiment.techniques.items():
        if name not in CATALOGUE:
            faults.append(f"techniques.{name}: there is no such technique; there are {', '.join(CATALOGUE)}")
            continue
        kind = load(name)
        try:
            found.append(kind.model_validate(dict(parameters)))
        except ValidationError as error:
            faults += [f"techniques.{name}.{keys.explain(fault, kind)}" for fault in error.errors(include_url=False)]
        if experiment.training.method not in kind.methods:
            faults.append(
                f"techniques.{name}: has no effect with training.method: {experiment.training.method}; set it to "
                f"{' or '.join(kind.methods)}, or take the technique out"
            )
        if experiment.training.labelled and tasks.of_words(experiment.task) and not kind.of_words:
            able = [one for one in CATALOGUE if load(one).of_words]
            faults.append(
                f"techniques.{name}: is for tasks that ask of whole texts, and task: {experiment.task} asks of words; "
                f"take it out, or take one of {', '.join(able)}"
            )
    alone = not experiment.training.labelled and not faults
    if alone and not any(type(one).loss_term is not Technique.loss_term for one in found):
        able = [name for name in CATALOGUE if (kind := load(name)).loss_term is not Technique.loss_term]
        able = [name for name in able if "adapt" in load(name).methods]
        faults.append(
            f"techniques: training.method: adapt learns by losses of techniques alone, and none has any; add one of "
            f"{', '.join(able)}, or set training.method to fine_tune"
        )
    if len(readers := [one.name for one in found if one.changes_readings]) > 1:
        faults.append(f"techniques: {' and '.join(readers)}: one may say how texts are read; take all but one out")
    if faults:
        raise joined(faults)
    return tuple(found)


def network(
    techniques: Sequence[Technique],
    experiment: Experiment,
    classes: int,
    languages: Sequence[str],
    material: Material | None = None,
    weights: bool = True,
) -> Built:
    """Build an experiment's network with what techniques attach to it; `material` is passed on to them.

    Without `weights` the encoder has shapes alone, which is enough to check what does not fit.
    """
    from xlt_ray.model import network as networks

    built = networks.build(experiment.network, classes, experiment.seed, languages, weights)
    for one in techniques:
        one.check_encoder(built.network, built.tokenize.tokenizer)
        one.attach(built.network, built.tokenize.tokenizer, material)
    return built


def restore(folder: Path, content: Mapping[str, Any]) -> tuple[Experiment, Built]:
    """Build the network of a bundle, with its head and what techniques added; return its experiment too.

    `content` is that of its bundle.json. Raises InputError where it holds changes to an encoder that is another now.
    """
    from safetensors.torch import load_file

    from xlt_ray.model import encoders
    from xlt_ray.model import network as networks
    from xlt_ray.model.collate import Tokenize

    experiment = read(content["experiment"], place=f"{folder / 'bundle.json'}: experiment")
    whole = networks.is_whole(content)
    encoder = encoders.load(str(folder / "encoder")) if whole else networks.load_encoder(experiment.network)
    if not whole and encoder.identity != content["encoder"]:
        raise InputError(
            f"{folder}: holds changes to the encoder {content['encoder']}, but {experiment.network.init} is now "
            f"{encoder.identity}; bring the former back, or train again with {networks.whole_again(content)}, which "
            "writes whole bundles"
        )
    labels, codes = content["labels"], content.get("languages", ())
    network = networks.Network(encoder.model, len(labels), content["pooling"], languages=codes)
    network.head.load_state_dict(load_file(folder / networks.HEAD))
    network.temperature = content.get("temperature", 1.0)
    changes = load_file(folder / networks.CHANGES) if (folder / networks.CHANGES).is_file() else None
    steps = load_file(folder / content["steps"]) if content.get("steps") else {}
    for one in build(experiment):
        prefix = f"{one.name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in steps.items() if key.startswith(prefix)}
        state = changes if one.replaces_encoder else own
        if state is None:
            continue  # it was merged into the encoder
        one.attach(network, encoder.tokenizer, None)
        one.load(network, state)
    tokenize = Tokenize(encoder.tokenizer, content["prefix"], content["max_length"])
    return experiment, networks.Built(network.eval(), tokenize, encoder.identity)


def bundles(chosen: Iterable[Technique], experiment: Experiment) -> dict[str, Path]:
    """Return the folders of the bundles that a run is made from, by the key that names each, BEGUN the last.

    What these were trained on the run has learned from: no test row may be among it, and its rungs are the run's. One
    that is not there is among them, so that whoever asks what it was trained on fails, and forgets nothing.
    """
    found = {f"techniques.{one.name}.{key}": path for one in chosen for key, path in one.bundles.items()}
    return found if (begun := experiment.network.bundle) is None else {**found, BEGUN: begun}


def change_examples(
    techniques: Sequence[Technique],
    texts: list[str],
    pairs: list[str] | None,
    language: str,
    address: tuple[int, int],
    places: np.ndarray,
) -> tuple[list[str], list[str] | None]:
    """Return the texts of a language's draws, and second texts of pairs, as techniques change them in their order.

    `address` is (seed, epoch), and `places` (draws,) are the positions of the draws in the epoch: together they seed
    the generator of each draw, so that a restart changes nothing.
    """
    if not techniques:
        return texts, pairs
    drawn = []
    for number, place in enumerate(places):
        example = Example(texts[number], pairs[number] if pairs else None, language)
        rng = np.random.default_rng([*address, 4, int(place)])
        for one in techniques:
            example = one.example(example, rng)
        drawn.append(example)
    return [one.text for one in drawn], pairs and [one.text_pair or "" for one in drawn]


def supervised(
    experiment: Experiment,
    languages: Iterable[str],
    texts: Collection[str] | None = None,
    labelled: Collection[str] | None = None,
    parallel: Collection[str] | None = None,
    as_they_stand: Collection[str] = (),
) -> dict[str, str]:
    """Return the rung of `supervision.LADDER` on which a run stands in each of its languages that is no source.

    Of a run without labels sources are no other languages than targets.

    It is the highest of what its techniques say they read, of what the runs of the bundles that it is made from read,
    whose languages are added, and of the oracle. `texts` are the languages with train or dev rows, `labelled` those
    with train rows and `parallel` those with either or with parallel text; None where that is not known any more, and
    then all may have been read. Languages whose texts turned out to be read `as_they_stand` owe nothing to a technique
    that changes how texts are read.
    """
    sources = experiment.sources if experiment.training.labelled else ()
    targets = [code for code in languages if code not in sources]
    found = [(code, supervision.ORACLE if experiment.oracle else supervision.ZERO_SHOT) for code in targets]
    chosen = build(experiment)
    for one in chosen:
        there = {"labels": labelled, "parallel": parallel}.get(one.reads, texts)
        read = one.reads_each(experiment, targets, targets if there is None else there)
        unread = as_they_stand if one.changes_readings else ()
        found += [(code, supervision.BY_READING[what]) for code, what in read.items() if code not in unread]
    rungs: dict[str, str] = {}
    for place, folder in bundles(chosen, experiment).items():
        found += _inherited(place, folder).items()
    for code, rung in found:
        if code not in sources:
            rungs[code] = supervision.highest([rungs.get(code), rung]) or rung
    return rungs


def _inherited(place: str, folder: Path) -> Mapping[str, str]:
    """Return the rungs of the run whose bundle is in a folder that a key names; its sources had labels."""
    file = folder / "bundle.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        earlier = read(content["experiment"], place=f"{file}: experiment")
        rungs = content.get("supervision")  # a bundle of before has none
        rungs = supervised(earlier, content.get("languages", ())) if rungs is None else rungs
        return rungs | dict.fromkeys(earlier.sources if earlier.training.labelled else (), supervision.FEW_SHOT)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place}: {file} is damaged ({error}); copy the bundle again") from None


def paths(chosen: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield (technique, parameter, path) of the parameters of techniques that name local files."""
    for name in sorted(chosen.keys() & CATALOGUE.keys()):
        for parameter, others in load(name).paths.items():
            value = chosen[name].get(parameter)
            if isinstance(value, str) and value not in others:
                yield name, parameter, value


def digest(chosen: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a digest of the files that techniques read, such as dictionaries; "" where they are told to read none.

    Of a bundle it reads bundle.json alone, which lists the digests of all others.

    Raises InputError where one cannot be read.
    """
    lines: list[str] = []
    for name, parameter, where in paths(chosen):
        path = Path(where).expanduser()
        try:
            if path.is_dir():
                root, patterns = path, [*(f"*{ending}" for ending in DICTIONARIES), "bundle.json"]
            else:
                root = Path(os.path.dirname(str(path).partition("{")[0]))
                inside = re.sub(r"\{[a-z]+\}", "*", glob.escape(os.path.relpath(path, root)))
                patterns = [inside, *([f"{inside.removesuffix('.index')}.dict*"] if inside.endswith(".index") else [])]
            for file in (file for pattern in patterns for file in root.glob(pattern) if file.is_file()):
                lines.append("\0".join((name, parameter, str(file.relative_to(root)), durable.digest(file))))
        except OSError as error:
            raise InputError(f"techniques.{name}.{parameter}: {error}; let it be read, or take it away") from None
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() if lines else ""


def load(name: str) -> type[Technique]:
    """Import and return the class of a technique of the catalogue."""
    module, _, kind = CATALOGUE[name].rpartition(".")
    return getattr(importlib.import_module(module), kind)
