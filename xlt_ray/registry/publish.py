"""Publish the artefact that a registered version is served from: export, check, log, fetch it back and ask it once.

A model of words is served from its bundle, which is registered already: it is fetched back and asked alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xlt_ray import durable
from xlt_ray.errors import InputError
from xlt_ray.events import OnEvent
from xlt_ray.inference import artefact, tagging
from xlt_ray.registry import fetch, versions
from xlt_ray.registry.fetch import Form
from xlt_ray.registry.versions import Version

Question = tuple[str, str | None]  # a text, and its pair
CHECKED = "xlt.checked"  # tag of a version: what its artefact was checked on, and what came of it
TEXTS = 10_000_000  # characters of a file of texts that are read
ASK = """
import json, sys
from xlt_ray.inference import engine
from xlt_ray.languages import identify
text, pair = json.loads(sys.argv[2])
model = engine.load(sys.argv[1], device="cpu")
if model.words is None:
    pair = text if model.artefact.pairs and pair is None else pair
    codes = [identify.Identifier().guess(text).code] if model.artefact.offsets or model.readings else None
    found = engine.classify(model, [text], None if pair is None else [pair], codes)
else:
    found = model.probabilities(model.words.rows([text])[0])
sound = found.size and found.shape[1] == len(model.labels) and abs(found.sum(1) - 1).max() < 0.01
assert sound, f"its probabilities are {found!r}"
print(json.dumps(", ".join(model.labels[i] for i in found.argmax(1))))
"""


@dataclass(frozen=True)
class Made:
    """A version's artefact: its checks, `reasons` against serving it, and whether it loads and `answers`.

    There are no `precisions` where the bundle itself is served.
    """

    precisions: tuple[str, ...]
    checks: Mapping[str, Any]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    answers: bool


@dataclass(frozen=True)
class CheckRows:
    """The rows an artefact is checked on: at most `rows` of each language of the bundle's corpus, None for all.

    A file of `texts`, one a line, stands in for a corpus that cannot be read.
    """

    texts: Path | None = None
    rows: int | None = None


def make(
    version: Version,
    bundle: Path | None,
    checked_on: CheckRows,
    force: bool,
    cache: Path | None,
    on_event: OnEvent,
) -> Made:
    """Make, check, log and try a version's artefact; one that was made and passed before is only tried.

    `bundle` is the version's folder, None to fetch it. Raises InputError where there are no rows to check an
    artefact on, unless with `force`. What passed on fewer rows than are asked for
    now is made and checked again. An int8 network that does not agree is dropped; where float32 does not, nothing is
    logged unless with `force`.
    """
    from xlt_ray.inference import bundle as bundles

    on_event({"stage": "check"})
    bundle = bundle or Path(fetch.fetch(version.model, version.uri, Form(device="cuda"), cache).folder)
    model = bundles.load(bundle)
    itself, most = model.task.tagged, checked_on.rows
    notes: list[str] = []
    tables: dict[str, Any] = {}
    unlabelled: list[str] = []
    try:
        tables, unlabelled = _tables(model, checked_on.texts)
    except InputError as error:
        if not (force or itself):
            raise
        notes.append(f"no rows to check on: {error}")
    question, expected = _question(model, tables)
    del model  # half a gigabyte, and export loads its own
    wanted = sum(min(table.num_rows, most or table.num_rows) for table in tables.values())
    made = Made((), {}, (), (), False) if itself else _earlier(version, wanted)
    with durable.scratch() as scratch:
        if made is None:
            made = _export(bundle, scratch / "artefact", tables, unlabelled, on_event, most)
            if made.reasons and not force:
                return replace(made, notes=(*notes, *made.notes))
            on_event({"stage": "upload"})
            place = f"serving/{artefact.bundle_digest(bundle)}"
            versions.upload(version, scratch / "artefact", place)
            checked = [agrees(name, one) for name, one in made.checks.items()]
            versions.tag(version, {CHECKED: "; ".join([*checked, *made.notes, *made.reasons]), versions.SERVING: place})
        on_event({"stage": "ask"})
        why = trial(version, question, expected, cache, scratch)
    if why:
        if not itself:
            versions.untag(version, versions.SERVING)
        return replace(made, reasons=(*made.reasons, why), notes=(*notes, *made.notes), answers=False)
    return replace(made, notes=(*notes, *made.notes), answers=True)


def trial(
    version: Version, question: Question, expected: str | None, cache: Path | None, elsewhere: Path
) -> str | None:
    """Fetch a version as a server would, load it and ask it once, in fresh processes; return what went wrong, or None.

    `expected` is the label it has to answer, or of words the tags with ", " between, None for any. The processes run in
    the folder `elsewhere`.
    """
    kept = ["--cache", str(cache.absolute())] if cache else []
    fetched = _python(
        "-m", "xlt_ray.registry.fetch", version.model, *kept, cwd=elsewhere, MLFLOW_TRACKING_URI=version.uri
    )
    if fetched.returncode:
        return f"cannot be fetched: {fetched.stderr.strip()[-500:]}"
    folder = json.loads(fetched.stdout)["folder"]
    asked = _python("-c", ASK, folder, json.dumps(question), cwd=elsewhere)
    if asked.returncode:
        return f"does not load and answer: {asked.stderr.strip()[-500:]}"
    answer = json.loads(asked.stdout)
    if expected is not None and answer != expected:
        return f"answers {answer!r} where the bundle answers {expected!r}, to {question[0][:80]!r}"
    return None


def _python(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(cwd)} | variables
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def _tables(model: Any, texts: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Return the rows to check a network on by language, and other texts, none of test, to find int8's margin.

    The rows are a file's texts, labelled by the bundle's answers, or the test rows of the bundle's corpus.
    """
    from xlt_ray.runs import measure

    if texts is None:
        try:
            experiment, corpus = measure.corpus_for(model, model.experiment)
            codes = corpus.measured(experiment.sources, experiment.targets)
            others = [text for table in corpus.unlabelled(codes).values() for text in table["text"].to_pylist()]
            return {code: corpus.table("test", code) for code in codes}, others
        except (InputError, OSError) as error:
            raise InputError(
                f"the corpus is out of reach ({error}); give texts to check on with --texts FILE"
            ) from None
    import pyarrow as pa

    from xlt_ray.languages.identify import Identifier

    try:
        lines = [line for line in texts.read_text(encoding="utf-8")[:TEXTS].splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--texts {texts}: cannot be read ({error}); give a UTF-8 file of one text a line") from None
    if not lines:
        raise InputError(f"--texts {texts}: holds no text; give one a line")
    pairs = lines if model.experiment.corpus.text_pair else None
    columns: dict[str, Any] = {"id": list(map(str, range(len(lines)))), "text": lines}
    if model.asks_for_languages:  # answers depend on languages, which are guessed as in a server
        columns["language"] = pa.array([guess.code for guess in Identifier().guess_all(lines)], pa.string())
    if not model.task.tagged:
        columns["label"] = model.probabilities(lines, pairs).argmax(1)
    return {"texts": pa.table(columns | ({"text_pair": pairs} if pairs else {}))}, []


def _question(model: Any, tables: Mapping[str, Any]) -> tuple[Question, str]:
    """Choose a text whose answer the bundle is most certain of, so that rounding cannot change it; return both."""
    from xlt_ray.tracking.mlflow_run import QUESTION

    rows = [row for table in tables.values() for row in table.slice(0, 1).to_pylist()][:16] or [{"text": QUESTION}]
    texts = [row["text"] for row in rows]
    if model.task.tagged:
        answers = tagging.tag(model, texts)
        sure = [min((word.score for word in words), default=0.0) for words in answers]
        best = int(np.argmax(sure))
        return (texts[best], None), ", ".join(word.tag for word in answers[best])
    paired = bool(model.experiment.corpus.text_pair)
    pairs = [row.get("text_pair") or row["text"] for row in rows] if paired else None
    found = model.probabilities(texts, pairs)
    best = int(found.max(1).argmax())
    return (texts[best], pairs[best] if pairs else None), model.labels[int(found[best].argmax())]


def _earlier(version: Version, wanted: int) -> Made | None:
    """Return this version's artefact where it passed its checks before, on all rows or on at least those wanted."""
    content = versions.listing(version, "serving")
    if content is None:
        return None
    try:
        card = json.loads(content)
        precisions, checks = tuple(card["precisions"]), card["checks"]
        kept = [checks[one] for one in precisions]
        enough = all(one["texts"] >= min(one.get("of", 0), wanted) for one in kept)
        passed = bool(kept) and enough and all(one["passed"] is True for one in kept)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    notes = ("its artefact was made and checked before", *_notes(checks, precisions)) if passed else ()
    return Made(precisions, checks, (), notes, False) if passed else None


def _export(
    bundle: Path, out: Path, tables: Mapping[str, Any], texts: Sequence[str], on_event: OnEvent, rows: int | None
) -> Made:
    """Export in both precisions, check both and drop an int8 that does not agree."""
    from xlt_ray.export import agreement, export

    on_event({"stage": "export"})
    made = export.export(bundle, out, texts=texts)
    if not tables:
        made = _without_int8(made)
        return Made(made.precisions, {}, ("the artefact was not checked against the original",), (), False)
    on_event({"stage": "agree"})
    checks = agreement.check(
        bundle, out, tables, lambda done, total: on_event({"stage": "agree", "done": done, "total": total}), rows
    )
    made = artefact.record(out, checks)
    if not checks["int8"]["passed"]:
        made = _without_int8(made)
    reasons = tuple(f"float32 is not the original: {one}" for one in checks["float32"]["reasons"])
    return Made(made.precisions, made.checks, reasons, _notes(checks, made.precisions), False)


def _notes(checks: Mapping[str, Any], precisions: Sequence[str]) -> tuple[str, ...]:
    """List which precisions were dropped and why, and limits that the others exceed by no more than chance."""
    notes = []
    for name, one in checks.items():
        if name not in precisions:
            notes.append(f"{name} is dropped and float32 served: {'; '.join(one.get('reasons', [])) or 'disagrees'}")
        elif one.get("passed") and one.get("unclear"):
            notes.append(f"{name} passes, as chance explains this: {'; '.join(one['unclear'])}")
    return tuple(notes)


def agrees(name: str, found: Mapping[str, Any]) -> str:
    """Describe in a line how far a precision agrees with the original, and on how many rows of how many.

    >>> agrees("int8", {"agreement": 0.999, "low": 0.9944, "texts": 1000, "of": 1000})
    'int8 agrees on 99.90% of 1000 rows'
    >>> agrees("int8", {"agreement": 0.999, "low": 0.9944, "texts": 1000, "of": 14319})
    'int8 agrees on 99.90% of 1000 rows drawn from 14319 (95% interval from 99.4%)'
    """
    text = f"{name} agrees on {100 * found['agreement']:.2f}% of {found['texts']} rows"
    if found["texts"] >= found.get("of", 0):
        return text
    return f"{text} drawn from {found['of']} (95% interval from {100 * found['low']:.1f}%)"


def _without_int8(made: artefact.Artefact) -> artefact.Artefact:
    """Remove the files of int8 from an artefact; those that float32 uses too stay."""
    for file in made.folder.glob("*.int8.*"):
        file.unlink()
    return artefact.write(replace(made, precisions=("float32",), margin=0.0))
