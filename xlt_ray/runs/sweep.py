"""How much few labelled rows of the targets help: a technique that takes shots, over numbers of them and draws of them.

Zhao et al. 2021 find that the choice of shots alone moves results by more than ten points, so every number of shots is
tried with several draws and the spread is told beside the mean. Shots are train rows; test is measured and never
trained on. All scores but those of k = 0 are few-shot and are called so.

Each (k, draw) is a line of `results.jsonl` as soon as it is known, and the same command goes on from there.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.errors import InputError
from xlt_ray.evaluation import groups
from xlt_ray.evaluation.groups import Roles
from xlt_ray.events import OnEvent
from xlt_ray.languages import codes as language_codes
from xlt_ray.model import encoders
from xlt_ray.reports import plots
from xlt_ray.runs import run
from xlt_ray.runs.storage import RunFolder, open_folder
from xlt_ray.training import cluster, embedding, frozen
from xlt_ray.training.checks import prepare
from xlt_ray.training.setup import Setup

RESULTS = "results.jsonl"
Setting = tuple[int, int]  # shots a class and language, and which draw of them


@dataclass(frozen=True)
class Line:
    """What was measured with so many shots of one draw; `key` is that of its configuration, `corpus` of the rows."""

    shots: int  # 0: none, which is zero-shot
    draw: int
    key: str
    corpus: str
    accuracy: Mapping[str, float]
    role: Mapping[str, str]
    seen: Mapping[str, bool | None]  # by the encoder in pre-training
    rows: Mapping[str, int]  # of few-shot languages, how many were trained on


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: where its files are, and its lines by (shots, draw)."""

    folder: RunFolder
    name: str
    lines: Mapping[Setting, Line]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that shots were taken of: what the means are over, at k = 0 as well."""
        return tuple(sorted({code for line in self.lines.values() for code in line.rows}))

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return those languages, and the ones that the encoder saw or did not see in pre-training."""
        parts = groups.by_pretraining(self.languages, next(iter(self.lines.values())).seen)
        return {groups.ALL: self.languages, **{name: tuple(members) for name, members in parts.items()}}

    def means(self, members: Sequence[str]) -> dict[int, list[float]]:
        """Average accuracy over languages: shots -> a mean for each draw."""
        found: dict[int, list[float]] = {}
        for (shots, _), line in sorted(self.lines.items()):
            found.setdefault(shots, []).append(float(np.mean([line.accuracy[code] for code in members])))
        return found

    def widest(self, shots: int) -> tuple[str, float]:
        """Give the language whose accuracy differs most between draws, and by how much."""
        draws = [line for (k, _), line in self.lines.items() if k == shots]
        spread = {code: float(np.ptp([line.accuracy[code] for line in draws])) for code in self.languages}
        code = max(spread, key=lambda one: (spread[one], one))
        return code, spread[code]


def settings(experiment: Experiment, shots: Sequence[int], draws: int) -> list[Setting]:
    """List what there is to do, zero-shot first; raise InputError where shots are no positive numbers."""
    if not shots or min(shots) < 1:
        raise InputError(f"--shots: {','.join(map(str, shots))}; give numbers of 1 or more, such as 1,2,5,10")
    # a second stage without shots would be more training on the sources, and no zero-shot result to compare with
    zero = [] if _second_stage(experiment) else [(0, 0)]
    return zero + [(k, draw) for k in sorted(set(shots)) for draw in range(draws)]


def _second_stage(experiment: Experiment) -> bool:
    alone = any(one.second_stage for one in techniques.build(experiment))
    return alone and experiment.training.method == "fine_tune"


def at(experiment: Experiment, shots: int, draw: int) -> Experiment:
    """Return the experiment with so many shots of one draw, its other techniques kept; for 0 without shots at all."""
    chosen = {name: dict(parameters) for name, parameters in experiment.techniques.items()}
    name, (count, number) = _taking_shots()
    chosen[name] = {**chosen.get(name, {}), count: shots, number: draw}
    if not shots:
        del chosen[name]
    return experiment.model_copy(update={"techniques": chosen})


def _taking_shots() -> tuple[str, tuple[str, str]]:
    """Return the technique that takes shots, and its parameters for how many and which draw."""
    kinds = map(techniques.load, techniques.CATALOGUE)
    return next((kind.name, kind.shots_and_draw) for kind in kinds if kind.shots_and_draw)


def sweep(
    experiment: Experiment,
    shots: Sequence[int],
    draws: int,
    out: Path | None = None,
    on_event: OnEvent = lambda event: None,
    say: Callable[[str], None] = lambda text: None,
) -> Sweep:
    """Do what is missing of a sweep, and write its table and its picture; raise InputError before any work."""
    wanted = settings(experiment, shots, draws)
    on_event({"stage": "check"})
    prepared = prepare(at(experiment, max(shots), 0))
    folder = _folder(experiment, out)
    folder.download(RESULTS)
    corpus = prepared.corpus.fingerprint[:32]
    keys = {setting: at(prepared.experiment, *setting).key() for setting in wanted}
    known = {(line.key, line.corpus): line for line in _read(folder.local / RESULTS)}
    done = {one: known[keys[one], corpus] for one in wanted if (keys[one], corpus) in known}
    missing = [one for one in wanted if one not in done]
    kind = "probes on features computed once" if experiment.training.method == "probe" else "fine-tunings"
    say(f"{len(wanted)} {kind}, {len(done)} of them done before; {folder.shown}")
    found = _probes(prepared, wanted, missing, on_event) if experiment.training.method == "probe" else None
    try:
        for setting, line in found or _runs(prepared, missing, folder, on_event, say):
            done[setting] = replace(line, key=keys[setting], corpus=corpus)
            _append(folder.local / RESULTS, done[setting])
        result = Sweep(folder, experiment.name, dict(sorted(done.items())))
        write(result)
    finally:
        folder.upload()
    return result


def _folder(experiment: Experiment, out: Path | None) -> RunFolder:
    if out is None:  # the name leaves shots and draws out: a larger sweep goes on from a smaller
        return open_folder(experiment, f"{at(experiment, 1, 0).key()}-few-shot")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be used ({error}); give a folder") from None
    return RunFolder(out.absolute())


def _read(file: Path) -> list[Line]:
    """Read the lines there are; what a kill left of the last one is cut off."""
    text = file.read_bytes() if file.is_file() else b""
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        file.write_bytes(whole)
    return [Line(**json.loads(line)) for line in whole.splitlines()]


def _append(file: Path, line: Line) -> None:
    with file.open("ab") as stream:
        stream.write(json.dumps(asdict(line)).encode() + b"\n")


def _scene(prepared: Setup, setting: Setting) -> Setup:
    """Give what was prepared with other shots; the corpus is neither read nor checked again."""
    experiment = at(prepared.experiment, *setting)
    return Setup.of(experiment, prepared.corpus, dropped=prepared.dropped)


def _rows(scene: Setup) -> dict[str, int]:
    return {code: scene.visible.table("train", code).num_rows for code in scene.few_shot}


def _probes(
    prepared: Setup, wanted: Sequence[Setting], missing: Sequence[Setting], on_event: OnEvent
) -> Iterator[tuple[Setting, Line]]:
    """Embed every row that any of the wanted settings trains on, once, and fit a probe for each that is missing."""
    if not missing:
        return
    experiment, test = prepared.experiment, frozen.test_tables(prepared)
    rows: dict[str, pa.Table] = {}
    for setting in wanted:
        for name, table in frozen.training_tables(_scene(prepared, setting)).items():
            rows[name] = _distinct(table, rows.get(name))
    with cluster.ray_cluster(experiment), cluster.plain_errors():
        features, _ = embedding.features(experiment, {**rows, **test, **frozen.texts(prepared)}, on_event)
    net, tokenize, _ = prepared.build()
    classes, known = len(prepared.corpus.labels), encoders.seen_languages(net.encoder, tokenize.tokenizer)
    places = {name: _keys(table).combine_chunks() for name, table in rows.items()}
    for number, setting in enumerate(missing):
        on_event({"stage": "fit", "done": number, "total": len(missing)})
        scene = _scene(prepared, setting)
        tables = frozen.training_tables(scene)
        found = dict(features)
        for name, table in tables.items():
            found[name] = features[name][pc.index_in(_keys(table), value_set=places[name]).to_numpy()]
        frozen.calibrate(scene, net, found)
        taught = frozen.Frozen.of(tables, found, classes, net)
        fitted = frozen.fit(taught, scene.experiment, scene.experiment.training.probe_strengths)
        predictions = frozen.predict(frozen.Frozen.of(test, found, classes, net), fitted, "test")
        roles = Roles(experiment.sources, scene.few_shot, known)
        accuracy = {code: one.accuracy for code, one in predictions.items()}
        role = {code: roles.role(code) for code in predictions}
        seen = {code: roles.was_seen(code) for code in predictions}
        yield setting, Line(*setting, "", "", accuracy, role, seen, _rows(scene))
    on_event({"stage": "fit", "done": len(missing), "total": len(missing)})


def _keys(table: pa.Table) -> pa.ChunkedArray:
    columns = [pc.fill_null(table[name], "") for name in ("text", "text_pair") if name in table.column_names]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, "\x1f")


def _distinct(table: pa.Table, before: pa.Table | None) -> pa.Table:
    """Take the texts of a table, after those that were there before, each once."""
    texts = table.select([c for c in ("text", "text_pair") if c in table.column_names]).replace_schema_metadata(None)
    texts = texts if before is None else pa.concat_tables([before, texts])
    codes = _keys(texts).combine_chunks().dictionary_encode().indices.to_numpy()
    return texts.take(np.sort(np.unique(codes, return_index=True)[1]))


def _runs(
    prepared: Setup,
    missing: Sequence[Setting],
    folder: RunFolder,
    on_event: OnEvent,
    say: Callable[[str], None],
) -> Iterator[tuple[Setting, Line]]:
    """Fine-tune for each setting: a run of its own, of which the scores and the report are kept."""
    place = {"storage": f"{folder.shown}/runs", "tracking": prepared.experiment.tracking.model_copy(update=_UNTRACKED)}
    for number, setting in enumerate(missing, start=1):
        say(f"run {number} of {len(missing)}: {setting[0]} shots, draw {setting[1]}")
        outcome = run.run(at(prepared.experiment, *setting).model_copy(update=place), on_event)
        for name in ("bundle", "ray"):  # hundreds of megabytes each; result.json marks the run as done
            _discard(outcome.folder, name)
        each = outcome.scores.languages
        accuracy = {code: one.accuracy for code, one in each.items()}
        roles, seen = {code: one.role for code, one in each.items()}, {code: one.seen for code, one in each.items()}
        yield setting, Line(*setting, "", "", accuracy, roles, seen, _rows(_scene(prepared, setting)))


_UNTRACKED = {"uri": "off", "register_as": None, "alias": None}


def _discard(folder: RunFolder, name: str) -> None:
    shutil.rmtree(folder.local / name, ignore_errors=True)
    if folder.remote is not None and folder.remote[0].exists(f"{folder.remote[1]}/{name}"):
        folder.remote[0].rm(f"{folder.remote[1]}/{name}", recursive=True)


def write(found: Sweep) -> dict[str, Path]:
    """Write few_shot.tsv, one language a line for each (k, draw), and the picture; give file name -> path."""
    file = found.folder.local / "few_shot.tsv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["k", "draw", "language", "role", "seen", "accuracy"])
        for line in found.lines.values():
            for code in sorted(line.accuracy):
                writer.writerow([line.shots, line.draw, code, line.role[code], line.seen[code], line.accuracy[code]])
    drawn = found.groups()
    drawn = {name: members for name, members in drawn.items() if name != groups.ALL} or drawn
    titles = {name: f"{name} in pre-training" for name in drawn} | {groups.ALL: "target languages"}
    lines = {f"{titles[name]} ({len(members)})": found.means(members) for name, members in drawn.items()}
    return {file.name: file} | plots.save(plots.few_shot(lines), found.folder.local, file.stem)


def table(found: Sweep) -> Group:
    """Lay out, for each number of shots, the mean over languages and draws and how far draws lie apart, in points."""
    grouped = found.groups()
    title = f"{found.name}: test accuracy in %, {len(found.languages)} targets (few-shot where k > 0)"
    rows = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    rows.add_column("k", justify="right", no_wrap=True)
    rows.add_column("rows", justify="right", no_wrap=True)
    for name, members in grouped.items():
        rows.add_column(f"{name} ({len(members)})", justify="right", no_wrap=True)
        rows.add_column("spread", justify="right", no_wrap=True)
    rows.add_column("widest language", justify="right")
    means = {name: found.means(members) for name, members in grouped.items()}
    for shots, draws in means[groups.ALL].items():
        cells = [str(shots), f"{_rows_used(found, shots):.1f}"]
        for each in means.values():
            spread = f"{100 * float(np.ptp(each[shots])):.1f}" if len(draws) > 1 else ""
            cells += [f"{100 * float(np.mean(each[shots])):.1f}", spread]
        code, widest = found.widest(shots)
        rows.add_row(*cells, f"{code} {100 * widest:.1f}" if len(draws) > 1 else "")
    return Group(rows, Text("\n" + "\n".join(_notes(found))))


def _rows_used(found: Sweep, shots: int) -> float:
    used = [rows for (k, _), line in found.lines.items() if k == shots for rows in line.rows.values()]
    return float(np.mean(used or [0]))


def _notes(found: Sweep) -> list[str]:
    draws = len({draw for _, draw in found.lines})
    notes = [
        "few-shot: k labelled train rows a class of each target were trained on, all where a class has fewer; k = 0 is "
        "zero-shot.",
        f"rows: those used a language, on average. spread: the largest less the smallest of {draws} draws, in points.",
    ]
    if draws > 1:
        shots, code, spread = max(
            ((k, *found.widest(k)) for k in {k for k, _ in found.lines if k}), key=lambda one: (one[2], -one[0])
        )
        notes.append(
            f"The choice of shots alone moves one language by up to {100 * spread:.1f} points: "
            f"{language_codes.name(code)} ({code}) at k = {shots}."
        )
    if 0 not in {k for k, _ in found.lines}:
        notes.append("k = 0 is the bundle of network.init itself, which `xlt evaluate` measures.")
    return notes
