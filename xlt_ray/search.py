"""A search from configuration to result: screen mixes, fine-tune the best, choose on dev, retrain the choice, report.

Whatever is killed, the same command goes on: every mix tried is a line of `journal.jsonl`, Tune keeps its own state,
retrained runs are ordinary runs, and `result.json`, written last, marks the end. Test rows are read by the retrained
runs alone, after the choice is made: what a trial is handed holds none.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from xlt_ray import cluster, network, screening, search_report, selection, similarity, tracking, tuning
from xlt_ray.config import InputError, dump
from xlt_ray.corpus import Corpus
from xlt_ray.outbox import Outbox, pending
from xlt_ray.prepare import prepare
from xlt_ray.retraining import plan, retrain
from xlt_ray.run import RESULT, flat
from xlt_ray.selection import Correlation, Findings, Judge, RuleChoice, Tried
from xlt_ray.space import Point, Search, describe
from xlt_ray.storage import RunFolder, open_folder
from xlt_ray.train import OnEvent

JOURNAL, JUDGE, RANKING, ORACLE = "journal.jsonl", "judge.json", "ranking.json", "oracle.json"


@dataclass(frozen=True)
class Found:
    """A finished search: its folder and findings, and how many tracking records could not be sent yet."""

    folder: RunFolder
    findings: Findings
    files: Mapping[str, Path]
    unsent: int


class Journal:
    """Every mix tried, one line each, with the seconds of search that were behind it; read again after a kill."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tried: dict[str, Tried] = {}  # a fine-tuning that went further takes the place of its earlier rungs
        self.work: dict[str, float] = {}  # fine-tuning: worker seconds available, and spent
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            file.write_bytes(b"".join(whole))  # the line that was being written
        for line in whole:
            record = json.loads(line)
            name = record.pop("name")
            self.tried[name] = Tried(**record)
        before = max((one.seconds for one in self.tried.values()), default=0.0)
        self._began = time.monotonic() - before

    def seconds(self) -> float:
        """Give the wall clock of the search, over all sessions, up to the last thing written in each."""
        return time.monotonic() - self._began

    def add(self, name: str, tried: Tried) -> Tried:
        """Write down a result."""
        tried = replace(tried, seconds=self.seconds())
        self.tried[name] = tried
        with self.file.open("ab") as stream:
            stream.write(json.dumps({"name": name, **tried.to_plain()}).encode() + b"\n")
        return tried

    def probes(self) -> list[Tried]:
        """List the mixes screened."""
        return [one for one in self.tried.values() if one.fidelity == "probe"]

    def tuned(self) -> dict[str, Tried]:
        """List the mixes fine-tuned so far by the name of their trial."""
        return {name: one for name, one in self.tried.items() if one.fidelity == "fine_tune"}


def run(search: Search, on_event: OnEvent = lambda event: None) -> Found:
    """Do a search, go on with it, or show it if it is done; raise InputError before any work if it is unsound."""
    on_event({"stage": "check"})
    search, corpus = _prepared(search)
    folder = open_folder(search.base, search.key())
    folder.download(RESULT, JOURNAL, JUDGE, RANKING, ORACLE)
    (folder.local / "search.yaml").write_text(_dump(search), encoding="utf-8")
    journal = Journal(folder.local / JOURNAL)
    run_key = f"{search.key()}-{folder.identity()}"
    outbox = Outbox.open(folder.local, search.base.tracking, run_key, search.base.name)
    if not (folder.local / RESULT).is_file():
        _record_start(outbox, search)
    sender = tracking.start(outbox)
    try:
        with _session(search) as begin:
            findings, files = _work(search, corpus, folder, journal, outbox, run_key, on_event, begin)
        _record_end(outbox, findings, files)
        on_event({"stage": "track"})
        tracking.sync([folder.local / "trials"], report=lambda line: None)
        sender.close(search.base.tracking.flush_seconds)
    except BaseException as error:
        outbox.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        sender.close(min(10.0, search.base.tracking.flush_seconds))
        folder.upload()
        raise
    (folder.local / RESULT).write_text(json.dumps({"key": search.key()}), encoding="utf-8")
    folder.upload()
    left = sum(pending(file.parent) for file in folder.local.rglob("outbox.jsonl"))
    return Found(folder, findings, files, left)


def _prepared(search: Search) -> tuple[Search, Corpus]:
    """Fix paths, targets and the number of draws; check all that can be checked without Ray."""
    prepared = prepare(search.base)
    base, corpus = prepared.experiment, prepared.corpus
    targets = tuple(code for code in corpus.measured((), base.targets) if code not in base.sources)
    if not targets:
        raise InputError("targets: every one is in `sources`, the pool, so there is nothing to transfer to; add others")
    rule = search.settings.selection.languages
    missing = [c for c in (targets if rule == "targets" else base.sources) if c not in corpus.languages("dev")]
    if missing:
        raise InputError(
            f"search.selection.languages: {rule} ranks mixes on dev rows, and {', '.join(missing[:8])} have none; add "
            "dev rows or leave these languages out"
        )
    # equal for all mixes, so that none wins by training longer
    most = max(corpus.table("train", code).num_rows for code in base.sources)
    mixture = base.mixture.model_copy(update={"draws_per_epoch": base.mixture.draws_per_epoch or most})
    base = base.model_copy(update={"targets": targets, "mixture": mixture})
    search = replace(search, base=base)
    cluster.check_cpus(base)
    network.build(base.network, len(corpus.labels), base.seed)  # what is wrong with it shows now
    return search, corpus


@contextlib.contextmanager
def _session(search: Search) -> Iterator[Callable[[], None]]:
    """Give a function that starts Ray when it is first called, so that showing a finished search starts nothing."""
    with contextlib.ExitStack() as stack:
        started: list[bool] = []

        def begin() -> None:
            if not started:
                stack.enter_context(cluster.plain_errors())
                stack.enter_context(cluster.ray_cluster(search.base))
                started.append(True)

        yield begin


def _work(
    search: Search,
    corpus: Corpus,
    folder: RunFolder,
    journal: Journal,
    outbox: Outbox,
    run_key: str,
    on_event: OnEvent,
    begin: Callable[[], None],
) -> tuple[Findings, dict[str, Path]]:
    fine = search.settings.fine_tuning.trials if search.base.training.method == "fine_tune" else 0
    # what trials are handed: no test split, and no label of a target unless the search is an oracle
    visible = corpus.for_training(search.pool)
    if search.oracle:
        dev = {code: corpus.table("dev", code) for code in (*search.pool, *search.base.targets)}
        visible = replace(visible, splits={**visible.splits, "dev": dev})
    notes: list[str] = []
    judge = _kept_judge(folder.local, search)
    if not (folder.local / RESULT).is_file():
        on_event({"stage": "start"})
        begin()
        if fine:
            tuning.concurrent(search)  # refuses what cannot fit, before any work
        ranking = _ranking(search, corpus, folder.local, on_event)
        frozen = screening.embed(search.base, visible, on_event)
        judge = _screen(search, frozen, journal, folder.local, ranking, on_event)
        if fine:
            notes += _tune(judge, visible, journal, folder, on_event)
            _record_trials(search, journal, folder.local, run_key)
        del frozen
    chosen = judge.choose(list(journal.tried.values()))
    if chosen is None:
        raise InputError("search: no mix was tried to its end within search.minutes; give it more")
    (folder.local / "chosen.yaml").write_text(dump(search.experiment(chosen.point)), encoding="utf-8")
    planned, said = plan(judge, list(journal.tried.values()), chosen, corpus)
    retrained, comparisons = retrain(search, planned, folder, run_key, on_event, begin)
    rules = _rules(search, corpus, journal, judge, folder.local, on_event, begin)
    tried = tuple(journal.tried.values())
    findings = Findings(
        search, judge, tried, chosen, rules, selection.correlation(judge, tried), retrained, comparisons,
        tuple(json.loads((folder.local / RANKING).read_text(encoding="utf-8"))),
        max(one.seconds for one in tried), _busy(journal, folder.local), tuple(notes + said),
    )  # fmt: skip
    on_event({"stage": "save"})
    return findings, search_report.write(folder.local, findings)


def _kept_judge(folder: Path, search: Search) -> Judge:
    file = folder / JUDGE
    return Judge(search, json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})


def _ranking(search: Search, corpus: Corpus, folder: Path, on_event: OnEvent) -> similarity.Ranking | None:
    """Rank the pool by similarity to the targets' unlabelled text and by typology: a prior and a baseline."""
    rows: list[Any] = []
    try:
        ranking = similarity.rank(search.base, corpus, on_event)
        rows = [row.to_plain() for row in ranking.rows]
    except InputError:
        ranking = None  # languages that nothing is known of; the search does without
    (folder / RANKING).write_text(json.dumps(rows), encoding="utf-8")
    return ranking


def _screen(
    search: Search,
    frozen: screening.Frozen,
    journal: Journal,
    folder: Path,
    ranking: similarity.Ranking | None,
    on_event: OnEvent,
) -> Judge:
    trials = search.settings.screening.trials if search.mix_dimensions else 0
    with screening.Screening(Judge(search), frozen) as probers:
        judge = _kept_judge(folder, search)
        if not (folder / JUDGE).is_file():
            judge = probers.measure_difficulty()
            (folder / JUDGE).write_text(json.dumps(dict(judge.difficulty)), encoding="utf-8")
        else:
            probers.trust(judge)
        done = journal.probes()
        show = _Shown("screen", trials, judge, journal.probes(), on_event)

        def record(tried: Tried) -> Tried:
            tried = journal.add(f"probe-{tried.key}", tried)
            show(tried)
            return tried

        proposals = screening.Proposals(judge, _prior(search, ranking), done, trials)
        probers.run(proposals, record, lambda: _time_left(search, journal) is None or _time_left(search, journal) > 0)  # type: ignore[operator]
    return judge


def _prior(search: Search, ranking: similarity.Ranking | None) -> list[Point]:
    # every language alone, the mixes that similarity proposes, and the pool whole, which baselines are compared with
    points: list[Point] = [{"sources": [code]} for code in search.pool]
    sizes = next((range(2, int(one.high) + 1) for one in search.dimensions if one.kind == "subset"), range(0))
    points += [{"sources": sorted(ranking.greedy(size))} for size in sizes] if ranking else []
    points += [{"sources": sorted(search.pool), "mixture.alpha": alpha} for alpha in (1.0, 0.3)]
    return points


def _time_left(search: Search, journal: Journal) -> float | None:
    return None if search.settings.minutes is None else 60 * search.settings.minutes - journal.seconds()


class _Shown:
    """Turn results into events for the live table: how many are done and running, and the best so far."""

    def __init__(self, stage: str, total: int, judge: Judge, done: Sequence[Tried], on_event: OnEvent) -> None:
        self.stage, self.total, self.judge, self.on_event = stage, total, judge, on_event
        self.count, self.running, self.best = len(done), 0, (judge.ranked(done) or [None])[0]
        if done:
            self.tell()

    def __call__(self, tried: Tried) -> None:
        self.count += 1
        self.look(tried)
        self.tell()

    def look(self, tried: Tried) -> None:
        """Keep a result if it is the best."""
        value = self.judge.value(tried)
        if value is not None and (self.best is None or value > (self.judge.value(self.best) or 0.0)):
            self.best = tried

    def tell(self) -> None:
        """Send the event."""
        event: dict[str, Any] = {"stage": self.stage, "done": self.count, "total": self.total, "running": self.running}
        if self.best is not None:
            event |= {"best": self.judge.value(self.best), "mix": describe(self.best.point)}
        self.on_event(event | {"oracle": self.judge.search.oracle})


def _tune(judge: Judge, visible: Corpus, journal: Journal, folder: RunFolder, on_event: OnEvent) -> list[str]:
    search = judge.search
    left = _time_left(search, journal)
    if left is not None and left <= 0:
        return ["search.minutes were used up by screening; nothing was fine-tuned"]
    epochs, slots = search.base.training.epochs, tuning.concurrent(search)
    show = _Shown("tune", search.settings.fine_tuning.trials, judge, [], on_event)
    spent = {name: one.cost for name, one in journal.tuned().items()}
    ended: set[str] = set()
    running: set[str] = set()
    began, before = journal.seconds(), sum(spent.values())
    notes = []

    def listen(what: str, trial: str, result: Mapping[str, Any]) -> None:
        if what == "start":
            running.add(trial)
        elif what == "result" and "diverged" in result:
            notes.append(f"a trial diverged and counts as the worst: {result['diverged']}")
        elif what == "result":
            point, epoch = result["point"], int(result["epoch"])
            tried = Tried(
                point, "fine_tune", epoch, epoch == epochs, result["accuracy"], result["low"], result["high"], 0.0,
                result["cost"],
            )  # fmt: skip
            tried = journal.add(trial, tried)
            spent[trial] = tried.cost
            if tried.whole:
                show.look(tried)
        elif what in ("complete", "error"):
            running.discard(trial)
            ended.add(trial)
        show.count, show.running = len(ended), len(running)
        show.tell()

    show.tell()
    notes += tuning.fine_tune(judge, visible, journal.probes(), folder.checkpoints(), listen, left)
    work = {"available": (journal.seconds() - began) * slots, "spent": sum(spent.values()) - before}
    file = folder.local / "work.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    total = {name: work[name] + earlier.get(name, 0.0) for name in work}
    file.write_text(json.dumps(total), encoding="utf-8")
    return notes


def _busy(journal: Journal, folder: Path) -> float | None:
    file = folder / "work.json"
    work = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return work["spent"] / work["available"] if work.get("available") else None


def _rules(
    search: Search,
    corpus: Corpus,
    journal: Journal,
    judge: Judge,
    folder: Path,
    on_event: OnEvent,
    begin: Callable[[], None],
) -> tuple[RuleChoice, ...]:
    """Compare what each rule would have chosen; target dev labels are read here, after the choice, where asked for."""
    tried = list(journal.tried.values())
    if search.oracle or not search.settings.selection.compare_oracle:
        return selection.rule_choices(judge, tried)
    file = folder / ORACLE
    probes = [one for one in tried if one.fidelity == "probe"]
    if not file.is_file():
        begin()
        codes = [code for code in search.base.targets if code in corpus.languages("dev")]
        both = replace(
            corpus.for_training(search.pool),
            splits={
                "train": {code: corpus.table("train", code) for code in search.pool},
                "dev": {code: corpus.table("dev", code) for code in (*search.pool, *codes)},
                "test": {},
            },
        )
        frozen = screening.embed(search.base, both, on_event)
        with screening.Screening(judge, frozen) as probers:
            found = probers.map([one.point for one in probes])
        kept = {one.key: {code: one.accuracy[code] for code in codes} for one in found}
        file.write_text(json.dumps(kept), encoding="utf-8")
    extra = json.loads(file.read_text(encoding="utf-8"))
    told = [replace(one, accuracy={**one.accuracy, **extra[one.key]}) for one in probes if one.key in extra]
    return selection.rule_choices(judge, told)


def _record_start(outbox: Outbox, search: Search) -> None:
    outbox.params(flat(search.base.model_dump(mode="json")))
    outbox.params(flat({"search": search.settings.model_dump(mode="json")}))
    outbox.tags(_tags(search) | {"xlt.method": "search"})


def _tags(search: Search) -> dict[str, str]:
    rule = search.settings.selection.languages
    return {"xlt.selection": "oracle" if search.oracle else rule, "xlt.searcher": search.settings.searcher}


def _record_trials(search: Search, journal: Journal, folder: Path, run_key: str) -> None:
    """Write an outbox for every fine-tuned mix, to be nested below the search's own run."""
    judge = _kept_judge(folder, search)
    for name, one in journal.tuned().items():
        place = folder / "trials" / name
        if (place / "outbox.jsonl").is_file() or search.base.tracking.uri == "off":
            continue
        experiment = search.experiment(one.point)
        outbox = Outbox.open(place, search.base.tracking, f"{run_key}-{name}", describe(one.point)[:200], run_key)
        outbox.params(flat(experiment.model_dump(mode="json")))
        outbox.tags(_tags(search) | {"xlt.method": "trial", "xlt.whole": str(one.whole)})
        kind = "oracle_dev" if search.oracle else "dev"
        found = {f"dev/accuracy/{c}" if c in search.pool else f"oracle_dev/accuracy/{c}": v for c, v in one.accuracy.items()}
        for objective in search.settings.selection.objectives:
            found[f"{kind}/objective/{objective}"] = judge.value(one, objective) or 0.0
        outbox.metrics(found | {"seconds": one.cost}, step=one.epochs)
        outbox.finish("FINISHED" if one.whole else "KILLED")


def _record_end(outbox: Outbox, findings: Findings, files: Mapping[str, Path]) -> None:
    kind = "oracle_dev" if findings.search.oracle else "dev"
    values = {f"{kind}/objective": findings.judge.value(findings.chosen) or 0.0, "seconds": findings.seconds}
    for one in findings.retrained:
        name = one.name.replace(" ", "_")
        values |= {f"test/{name}/{group}": one.mean(group) for group in one.scores[0].summary}
    if isinstance(findings.correlation, Correlation):
        values["fidelity/spearman"] = findings.correlation.rho
    outbox.metrics(values, step=0)
    outbox.tags({"xlt.chosen": describe(findings.chosen.point)})
    for path in files.values():
        outbox.artifact(path)
    outbox.finish("FINISHED")


def _dump(search: Search) -> str:
    import yaml

    data = search.base.model_dump(mode="json") | {"search": search.settings.model_dump(mode="json")}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
