"""Sweep over numbers of labelled rows of the targets, and several draws of each, to see how much they help.

Zhao et al. 2021 find that the choice of shots alone moves results by more than ten points, so every number of shots is
tried with several draws, and their spread is reported beside the mean. Shots are train rows; test is measured and never
trained on. All scores but those of k = 0 are few-shot, and are called so.

Each (k, draw) is a line of `results.jsonl` as soon as it is measured, and the same command resumes from there.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group
from rich.text import Text

from xlt_ray import tasks, techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.durable import JsonLines, records
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate, groups
from xlt_ray.evaluation.groups import Measured, Roles
from xlt_ray.events import OnEvent, counting
from xlt_ray.languages import codes as language_codes
from xlt_ray.model import encoders
from xlt_ray.reports import plots
from xlt_ray.reports.page import percent, terminal_table
from xlt_ray.runs import lease, run
from xlt_ray.runs.lease import Held
from xlt_ray.runs.storage import RunFolder, by_content, open_folder
from xlt_ray.supervision import highest, shown
from xlt_ray.training import cluster, embedding, frozen
from xlt_ray.training.checks import prepare
from xlt_ray.training.setup import Setup

RESULTS = "results.jsonl"
Setting = tuple[int, int]  # shots a class and language, and which draw of them


@dataclass(frozen=True)
class Result:
    """The accuracy of a model trained with so many shots of one draw; `key` and `corpus` identify its run."""

    shots: int  # 0: none, which is zero-shot
    draw: int
    key: str  # of the configuration
    corpus: str  # fingerprint of the rows, and a digest of files that techniques read
    accuracy: Mapping[str, float]
    role: Mapping[str, str]
    seen: Mapping[str, bool | None]  # by the encoder in pre-training
    rows: Mapping[str, int]  # of few-shot languages, how many were trained on
    supervision: Mapping[str, str | None] = field(default_factory=dict)  # `supervision.LADDER`; {} in older results


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its folder and its results by (shots, draw), in that order."""

    folder: RunFolder
    name: str
    results: Mapping[Setting, Result]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that shots were taken of: what the means are over, at k = 0 as well."""
        return tuple(sorted({code for one in self.results.values() for code in one.rows}))

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return those languages, and the ones that the encoder saw or did not see in pre-training."""
        parts = groups.by_pretraining(self.languages, next(iter(self.results.values())).seen)
        return {groups.ALL: self.languages, **{name: tuple(members) for name, members in parts.items()}}

    @property
    def without(self) -> str:
        """What the results of k = 0 are called: zero-shot, with what the other techniques read of the targets."""
        rungs = [one.supervision.get(code) for one in self.results.values() if not one.shots for code in self.languages]
        return shown(highest(rungs))

    def means(self, members: Sequence[str]) -> dict[int, list[float]]:
        """Average accuracy over languages: shots -> a mean for each draw."""
        found: dict[int, list[float]] = {}
        for (shots, _), one in self.results.items():
            found.setdefault(shots, []).append(float(np.mean([one.accuracy[code] for code in members])))
        return found

    def widest(self, shots: int) -> tuple[str, float]:
        """Return the language whose accuracy differs most between draws, and by how much."""
        draws = [one.accuracy for (k, _), one in self.results.items() if k == shots]
        spread, code = max((float(np.ptp([accuracy[code] for accuracy in draws])), code) for code in self.languages)
        return code, spread


def settings(experiment: Experiment, shots: Sequence[int], draws: int) -> list[Setting]:
    """List the settings of a sweep, zero-shot first; raise InputError where shots are no positive numbers."""
    if not shots or min(shots) < 1:
        raise InputError(f"--shots: {','.join(map(str, shots))}; give numbers of 1 or more, such as 1,2,5,10")
    second_stage = any(one.second_stage for one in techniques.build(experiment))
    # a second stage without shots would be more training on the sources, and no zero-shot result to compare with
    zero = [] if second_stage and experiment.training.method == "fine_tune" else [(0, 0)]
    return zero + [(k, draw) for k in sorted(set(shots)) for draw in range(draws)]


def at(experiment: Experiment, shots: int, draw: int) -> Experiment:
    """Return the experiment with so many shots of one draw, its other techniques kept; for 0 without shots at all."""
    kinds = map(techniques.load, techniques.CATALOGUE)
    name, (count, number) = next((kind.name, kind.shots_and_draw) for kind in kinds if kind.shots_and_draw)
    chosen = {other: dict(parameters) for other, parameters in experiment.techniques.items()}
    chosen[name] = {**chosen.get(name, {}), count: shots, number: draw}
    if not shots:
        del chosen[name]
    return experiment.model_copy(update={"techniques": chosen})


def sweep(
    experiment: Experiment,
    shots: Sequence[int],
    draws: int,
    out: Path | None = None,
    on_event: OnEvent = lambda event: None,
    log: Callable[[str], None] = lambda text: None,
) -> Sweep:
    """Measure the settings that have no result yet, and write table and picture; raise InputError before any work."""
    if tasks.of_words(experiment.task):
        raise InputError(f"task: {experiment.task}: shots are of labels of whole texts, and it asks of words")
    wanted = settings(experiment, shots, draws)
    on_event({"stage": "check"})
    prepared = prepare(at(experiment, max(shots), 0), on_progress=counting(on_event, "prepare"))
    held: Held[Sweep]
    with lease.held(_folder(experiment, out), on_event, lambda: None) as held:
        return _sweep(prepared, wanted, held, log)


def _sweep(prepared: Setup, wanted: Sequence[Setting], held: Held[Sweep], log: Callable[[str], None]) -> Sweep:
    """Measure what has no result yet in the folder, which is held by this process."""
    experiment, folder, on_event = prepared.experiment, held.folder, held.on_event
    folder.download(RESULTS)
    file, corpus = folder.local / RESULTS, _corpus(prepared)
    earlier = [Result(**record) for _, record in records(file) if record]
    known = {(one.key, one.corpus): one for one in earlier}
    keys = {setting: (by_content(at(prepared.experiment, *setting)).key(), corpus) for setting in wanted}
    results = {setting: known[key] for setting, key in keys.items() if key in known}
    missing = [setting for setting in wanted if setting not in results]
    probing = experiment.training.method == "probe"
    kind = "probes on features computed once" if probing else "fine-tunings"
    log(f"{len(wanted)} {kind}, {len(results)} of them done before; {folder.shown}")
    probes, runs = _probes(prepared, wanted, missing, on_event), _runs(prepared, missing, folder, on_event, log)
    try:
        with closing(JsonLines(file)) as journal:
            for one in probes if probing else runs:  # generators, of which the other one does nothing
                made = replace(one, corpus=corpus)  # as it was read, should a file change meanwhile
                journal.append(asdict(made))
                results[made.shots, made.draw] = made
        found = Sweep(folder, experiment.name, dict(sorted(results.items())))
        write(found)
    finally:
        held.upload()
    return found


def _folder(experiment: Experiment, out: Path | None) -> RunFolder:
    if out is None:  # the name leaves shots and draws out: a larger sweep resumes a smaller one
        return open_folder(experiment, f"{by_content(at(experiment, 1, 0)).key()}-few-shot")
    out.mkdir(parents=True, exist_ok=True)
    return RunFolder(out.absolute())


def _corpus(setup: Setup) -> str:
    read = techniques.digest(setup.experiment.techniques)
    return f"{setup.corpus.fingerprint[:32]}-{read[:16]}" if read else setup.corpus.fingerprint[:32]


def _setup(prepared: Setup, setting: Setting) -> Setup:
    """Return the setup of another setting; the corpus is neither read nor checked again, and texts are read alike."""
    setup = Setup.of(at(prepared.experiment, *setting), prepared.corpus)
    return replace(setup, material=replace(setup.material, readings=prepared.readings))


def _result(setup: Setup, setting: Setting, accuracy: Mapping[str, float], places: Mapping[str, Measured]) -> Result:
    """Return the result of a setting; `places` are role and pre-training of each language."""
    return Result(
        *setting,
        key=by_content(setup.experiment).key(),
        corpus=_corpus(setup),
        accuracy=accuracy,
        role={code: str(one.role) for code, one in places.items()},
        seen={code: one.seen for code, one in places.items()},
        rows=setup.shots,
        supervision={code: setup.supervision.get(code) for code in places},
    )


def _probes(
    prepared: Setup, wanted: Sequence[Setting], missing: Sequence[Setting], on_event: OnEvent
) -> Iterator[Result]:
    """Embed every row that any of the wanted settings trains on, once, and fit a probe for each that is missing."""
    if not missing:
        return
    experiment = prepared.experiment
    rows: dict[str, pa.Table] = {}
    for setting in wanted:
        for name, table in frozen.training_tables(_setup(prepared, setting)).items():
            rows[name] = _distinct([rows[name], table] if name in rows else [table])
    with cluster.ray_cluster(experiment), cluster.plain_errors():
        prepared = prepared.read(cluster.each(experiment), counting(on_event, "prepare"))
        asked = {**rows, **frozen.read_tables(prepared), **frozen.texts(prepared)}
        features, _ = embedding.features(experiment, asked, on_event)
    net, tokenize, _ = prepared.build()
    known = encoders.seen_languages(net.encoder, tokenize.tokenizer)
    places = {name: _texts(table).combine_chunks() for name, table in rows.items()}
    for number, setting in enumerate(missing):
        on_event({"stage": "fit", "done": number, "total": len(missing)})
        setup = _setup(prepared, setting)
        tables = frozen.training_tables(setup)
        found = dict(features)
        for name, table in tables.items():
            found[name] = features[name][pc.index_in(_texts(table), value_set=places[name]).to_numpy()]
        fitted, _, setup = run.fit_probe(setup, net, tables, found)
        scored = frozen.score(setup, net, found, fitted)
        predictions = evaluate.predictions(setup.task, scored, setup.tables("test"), fitted.temperature, setup.readings)
        roles = Roles(experiment.sources, setup.few_shot, known, setup.supervision)
        accuracy = {code: one.score for code, one in predictions.items()}
        yield _result(setup, setting, accuracy, {code: roles.place(code) for code in predictions})
    on_event({"stage": "fit", "done": len(missing), "total": len(missing)})


def _texts(table: pa.Table) -> pa.ChunkedArray:
    """Return the text of each row, joined with its second text where there is one."""
    columns = [pc.fill_null(table[name], "") for name in ("text", "text_pair") if name in table.column_names]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, "\x1f")


def _distinct(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the texts of tables, each once, in the order in which they come first."""
    columns = [name for name in ("text", "text_pair") if name in tables[0].column_names]
    whole = pa.concat_tables(table.select(columns).replace_schema_metadata(None) for table in tables)
    codes = _texts(whole).combine_chunks().dictionary_encode().indices.to_numpy()
    return whole.take(np.sort(np.unique(codes, return_index=True)[1]))


def _runs(
    prepared: Setup,
    missing: Sequence[Setting],
    folder: RunFolder,
    on_event: OnEvent,
    log: Callable[[str], None],
) -> Iterator[Result]:
    """Fine-tune for each setting: a run of its own, of which the scores and the report are kept."""
    untracked = prepared.experiment.tracking.model_copy(update={"uri": "off", "register_as": None, "alias": None})
    place = {"storage": f"{folder.shown}/runs", "tracking": untracked}
    for number, setting in enumerate(missing, start=1):
        log(f"run {number} of {len(missing)}: {setting[0]} shots, draw {setting[1]}")
        setup = _setup(prepared, setting)
        outcome = run.run(setup.experiment.model_copy(update=place), on_event)
        for name in ("bundle", "ray"):  # hundreds of megabytes each; result.json marks the run as finished
            outcome.folder.remove(name)
        languages = outcome.scores.languages
        yield _result(setup, setting, {code: one.main.value for code, one in languages.items()}, languages)


def write(found: Sweep) -> dict[str, Path]:
    """Write few_shot.tsv, one language a line for each (k, draw), and the picture; return file name -> path."""
    file = found.folder.local / "few_shot.tsv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["k", "draw", "language", "role", "supervision", "seen", "accuracy"])
        for one in found.results.values():
            for code in sorted(one.accuracy):
                facts = (one.role[code], one.supervision.get(code), one.seen[code], one.accuracy[code])
                writer.writerow([one.shots, one.draw, code, *facts])
    drawn = found.groups()
    drawn = {name: members for name, members in drawn.items() if name != groups.ALL} or drawn
    titles = {name: f"{name} in pre-training" for name in drawn} | {groups.ALL: "target languages"}
    lines = {f"{titles[name]} ({len(members)})": found.means(members) for name, members in drawn.items()}
    return {file.name: file} | plots.save(plots.few_shot(lines, found.without), found.folder.local, file.stem)


def table(found: Sweep) -> Group:
    """Lay out, for each number of shots, the mean over languages and draws and the spread of draws, in points."""
    headings = ["k", "rows"]
    for name, members in found.groups().items():
        headings += [f"{name} ({len(members)})", "spread"]
    title = f"{found.name}: test accuracy in %, {len(found.languages)} targets (few-shot where k > 0)"
    rows = terminal_table(title, figures=headings)
    rows.add_column("widest language", justify="right")
    means = {name: found.means(members) for name, members in found.groups().items()}
    for shots, draws in means[groups.ALL].items():
        cells = [str(shots), f"{_rows_used(found, shots):.1f}"]
        for each in means.values():
            spread = percent(float(np.ptp(each[shots]))) if len(draws) > 1 else ""
            cells += [percent(float(np.mean(each[shots]))), spread]
        code, widest = found.widest(shots)
        rows.add_row(*cells, f"{code} {percent(widest)}" if len(draws) > 1 else "")
    return Group(rows, Text("\n" + "\n".join(_notes(found))))


def _rows_used(found: Sweep, shots: int) -> float:
    used = [rows for (k, _), one in found.results.items() if k == shots for rows in one.rows.values()]
    return float(np.mean(used or [0]))


def _notes(found: Sweep) -> list[str]:
    draws = len({draw for _, draw in found.results})
    numbers = sorted({shots for shots, _ in found.results})
    notes = [
        "few-shot: k labelled train rows a class of each target were trained on, all where a class has fewer; k = 0 is "
        f"{found.without}.",
        f"rows: those used a language, on average. spread: the largest less the smallest of {draws} draws, in points.",
    ]
    if draws > 1:
        shots = max((k for k in numbers if k), key=lambda k: (found.widest(k)[1], -k))
        code, spread = found.widest(shots)
        notes.append(
            f"The choice of shots alone moves one language by up to {percent(spread)} points: "
            f"{language_codes.name(code)} ({code}) at k = {shots}."
        )
    if 0 not in numbers:
        notes.append("k = 0 is the bundle of network.init itself, which `xlt evaluate` measures.")
    return notes
