"""A search from configuration to result: screen mixes, fine-tune the best, choose on dev, retrain the choice, report.

Whatever is killed, the same command goes on: every mix tried is a line of `journal.jsonl`, Tune keeps its own state,
retrained runs are ordinary runs, and `result.json`, written last, marks the end. Test rows are read by the retrained
runs alone, after the choice is made: what a trial is handed holds none.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.events import OnEvent
from xlt_ray.runs.run import RESULT
from xlt_ray.runs.storage import RunFolder, open_folder
from xlt_ray.search import prepare as search_prepare
from xlt_ray.search import proposals, screening, selection, similarity, tuning
from xlt_ray.search.findings import Findings, RuleChoice, correlation, rule_choices
from xlt_ray.search.journal import Journal, Shown, Trials
from xlt_ray.search.prepare import _dump, prepared
from xlt_ray.search.report import page, records
from xlt_ray.search.retraining import plan, retrain
from xlt_ray.search.selection import Judge, Tried
from xlt_ray.search.space import Point, Search
from xlt_ray.search.trial import TrialData
from xlt_ray.tracking import courier
from xlt_ray.tracking.outbox import Outbox, pending
from xlt_ray.training import cluster

JOURNAL, JUDGE, RANKING, TUNED, ORACLE = "journal.jsonl", "judge.json", "ranking.json", "tuned.json", "oracle.json"


@dataclass(frozen=True)
class Found:
    """A finished search: its folder and findings, and how many tracking records could not be sent yet."""

    folder: RunFolder
    findings: Findings
    files: Mapping[str, Path]
    unsent: int


def run(search: Search, on_event: OnEvent = lambda event: None) -> Found:
    """Do a search, go on with it, or show it if it is done; raise InputError before any work if it is unsound."""
    began = time.monotonic()
    on_event({"stage": "check"})
    search, corpus = prepared(search)
    folder = open_folder(search.base, search.key())
    folder.download(RESULT, JOURNAL, JUDGE, RANKING, TUNED, ORACLE, "outbox.jsonl", "outbox.sent")
    (folder.local / "search.yaml").write_text(_dump(search), encoding="utf-8")
    journal = Journal(folder.local / JOURNAL, began)
    run_key = f"{search.key()}-{folder.identity()}"
    if (folder.local / RESULT).is_file():  # MLflow was told, and what is unsent waits for `xlt sync`
        with _session(search) as begin:
            findings, files = _work(search, corpus, folder, journal, run_key, on_event, begin)
        return Found(folder, findings, files, _unsent(folder))
    outbox = Outbox.open(folder.local, search.base.tracking, run_key, search.base.name)
    records.start(outbox, search)
    sender = courier.start(outbox)
    try:
        with _session(search) as begin:
            findings, files = _work(search, corpus, folder, journal, run_key, on_event, begin)
        records.end(outbox, findings, files)
        on_event({"stage": "track"})
        if outbox.on:
            courier.sync([folder.local / "trials"], outbox.uri, report=lambda line: None)
        sender.close(search.base.tracking.flush_seconds)
    except BaseException as error:
        outbox.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        sender.close(min(10.0, search.base.tracking.flush_seconds))
        folder.upload()
        raise
    (folder.local / RESULT).write_text(json.dumps({"key": search.key()}), encoding="utf-8")
    folder.upload()
    return Found(folder, findings, files, _unsent(folder))


def _unsent(folder: RunFolder) -> int:
    return sum(pending(file.parent) for file in folder.local.rglob("outbox.jsonl"))


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
    run_key: str,
    on_event: OnEvent,
    begin: Callable[[], None],
) -> tuple[Findings, dict[str, Path]]:
    if not (folder.local / TUNED).is_file():
        on_event({"stage": "start"})
        begin()
        _try_mixes(search, corpus, folder, journal, run_key, on_event)
    facts = json.loads((folder.local / TUNED).read_text(encoding="utf-8"))
    judge = _kept_judge(folder.local, search)
    chosen = judge.choose(proposals.candidates(search, list(journal.tried.values())))
    if chosen is None:
        raise InputError("search: no mix came to its end; give search.minutes more, or see why fine-tunings failed")
    planned, said = plan(judge, list(journal.tried.values()), chosen, corpus)
    retrained, comparisons = retrain(search, planned, folder, run_key, on_event, begin)
    rules = _rules(search, corpus, journal, judge, folder.local, on_event, begin)
    tried = tuple(journal.tried.values())
    findings = Findings(
        search, judge, tried, chosen, rules, correlation(judge, tried), retrained, comparisons,
        tuple(json.loads((folder.local / RANKING).read_text(encoding="utf-8"))),
        max(one.seconds for one in tried), facts["busy"], (*facts["notes"], *said),
    )  # fmt: skip
    on_event({"stage": "save"})
    return findings, page.write(folder.local, findings)


def _try_mixes(
    search: Search, corpus: Corpus, folder: RunFolder, journal: Journal, run_key: str, on_event: OnEvent
) -> None:
    """Screen and fine-tune, as far as that is not done yet; TUNED, written last, marks the end."""
    fine = search.settings.fine_tuning.trials if search.base.training.method == "fine_tune" else 0
    # what trials are handed: no label of a target unless the search is an oracle
    visible = corpus.for_training(search.pool)
    if search.oracle:
        dev = {code: corpus.table("dev", code) for code in (*search.pool, *search.base.targets)}
        visible = replace(visible, splits={**visible.splits, "dev": dev})
    slots = tuning.concurrent(search) if fine else 0  # refuses what cannot fit, before any work
    # where every mix is tried anyway, nothing has to say which to try first
    every = proposals.whole_space(search) or not search.settings.screening.trials
    early = not every or selection.breaks_ties(search)
    texts = search_prepare.texts(search, corpus)
    ranking = _ranking(search, corpus, folder.local, on_event, visible) if early else None
    judge = Judge(search, nearness=ranking.scores if ranking else {})
    judge = _screen(judge, visible, texts, journal, folder.local, ranking, on_event)
    folder.upload()
    notes, busy = [], None
    if fine:
        of_targets = {code: table for code, table in texts.items() if code not in search.pool}
        notes = _tune(judge, visible, of_targets, journal, folder, on_event)
        records.trials(judge, journal, folder.local, run_key)
        began = max((one.seconds for one in journal.probes()), default=0.0)
        busy = sum(one.cost for one in journal.tuned().values()) / max(1e-9, (journal.seconds() - began) * slots)
    if not early:
        _ranking(search, corpus, folder.local, on_event)
    (folder.local / TUNED).write_text(json.dumps({"notes": notes, "busy": busy}), encoding="utf-8")


def _kept_judge(folder: Path, search: Search) -> Judge:
    file = folder / JUDGE
    return Judge(search, **(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}))


def _ranking(
    search: Search, corpus: Corpus, folder: Path, on_event: OnEvent, visible: Corpus | None = None
) -> similarity.Ranking | None:
    """Rank the pool by similarity to the targets' unlabelled text and by typology: a prior and a baseline.

    Where `visible` is to be embedded next, the texts that are compared are embedded with it: actors start once.
    """
    rows: list[Any] = []
    if visible is not None:
        texts = similarity.samples(corpus, (*search.pool, *search.base.targets))
        screening.embed(search.base, visible, on_event, also=texts)
    try:
        ranking = similarity.rank(search.base, corpus, on_event)
        rows = [row.to_plain() for row in ranking.rows]
    except InputError:
        ranking = None  # languages that nothing is known of; the search does without
    (folder / RANKING).write_text(json.dumps(rows), encoding="utf-8")
    return ranking


def _screen(
    judge: Judge,
    visible: Corpus,
    texts: Mapping[str, pa.Table],
    journal: Journal,
    folder: Path,
    ranking: similarity.Ranking | None,
    on_event: OnEvent,
) -> Judge:
    search = judge.search
    trials = search.settings.screening.trials if search.mix_dimensions else 0
    if not trials and search.settings.selection.languages != "held_out_sources":
        return judge
    frozen = screening.embed(search.base, visible, on_event, texts)
    probers = screening.Screening(judge, frozen)
    if (folder / JUDGE).is_file():
        judge = _kept_judge(folder, search)
        probers.use_judge(judge)
    else:
        judge = probers.measure_difficulty()
        kept = {"difficulty": judge.difficulty, "nearness": judge.nearness}
        (folder / JUDGE).write_text(json.dumps(kept), encoding="utf-8")
    done = journal.probes()
    show = Shown("screen", trials, judge, done, on_event)

    def record(tried: Tried) -> Tried:
        tried = journal.add(f"probe-{tried.key}", tried)
        show(tried)
        return tried

    def more() -> bool:
        left = _time_left(search, journal)
        return left is None or left > 0

    probers.run(proposals.Proposals(judge, _prior(search, ranking), done, trials), record, more)
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


def _tune(
    judge: Judge,
    visible: Corpus,
    texts: Mapping[str, pa.Table],
    journal: Journal,
    folder: RunFolder,
    on_event: OnEvent,
) -> list[str]:
    search = judge.search
    left = _time_left(search, journal)
    if left is not None and left <= 0:
        return ["search.minutes were used up by screening; nothing was fine-tuned"]
    trials = Trials(judge, journal, on_event)
    data = TrialData(visible, texts)
    failed = tuning.fine_tune(judge, data, journal.probes(), folder.checkpoints(), trials, left)
    return trials.notes + failed


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
        return rule_choices(judge, tried)
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
        frozen = screening.embed(search.base, both, on_event, search_prepare.texts(search, corpus))
        probers = screening.Screening(judge, frozen)
        found = probers.map([one.point for one in probes], dev_alone=True)
        kept = {one.key: {code: one.accuracy[code] for code in codes} for one in found}
        file.write_text(json.dumps(kept), encoding="utf-8")
    extra = json.loads(file.read_text(encoding="utf-8"))
    told = [replace(one, accuracy={**one.accuracy, **extra[one.key]}) for one in probes if one.key in extra]
    return rule_choices(judge, told)
