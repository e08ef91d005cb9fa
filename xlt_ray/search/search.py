"""Run a search from configuration to result: screen mixes, fine-tune the best, choose on dev, retrain, report.

After a kill the same command resumes: every mix tried is a line of `journal.jsonl`, Tune keeps its own state, retrained
runs are ordinary runs, and `result.json`, written last, marks the end. Test rows are read by the retrained runs alone,
after the choice is made: the corpus of a trial holds none.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from xlt_ray import durable
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.events import OnEvent, counting
from xlt_ray.runs import lease
from xlt_ray.runs.lease import Held
from xlt_ray.runs.run import RESULT
from xlt_ray.runs.storage import RunFolder, open_folder
from xlt_ray.search import prepare as search_prepare
from xlt_ray.search import proposals, screening, selection, similarity, tuning
from xlt_ray.search.findings import Findings, RuleChoice, correlation, rule_choices
from xlt_ray.search.journal import Journal, Progress, Trials
from xlt_ray.search.prepare import prepared, to_yaml
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
    """Run a search, resume it, or read its findings if done; raise InputError before any work where it is not valid."""
    began = time.monotonic()
    on_event({"stage": "check"})
    search, corpus = prepared(search, counting(on_event, "prepare"))
    folder = open_folder(search.base, search.key())
    with lease.held(folder, on_event, lambda: _finished(folder)) as held:
        session = SearchSession.open(search, corpus, held, began)
        return _show(session) if held.done else _run(session, held)


def _finished(folder: RunFolder) -> bool | None:
    folder.download(RESULT)
    return True if (folder.local / RESULT).is_file() else None


def _show(session: SearchSession) -> Found:
    """Return the findings of a finished search: it is recorded, and what is unsent waits for `xlt sync`."""
    with session:
        findings, files = session.complete()
    return Found(session.folder, findings, files, _unsent(session.folder))


def _run(session: SearchSession, held: Held[bool]) -> Found:
    """Do, or resume, the search whose folder is held by this process."""
    search, folder = session.search, session.folder
    outbox = Outbox.open(folder.local, search.base.tracking, session.run_key, search.base.name)
    records.start(outbox, search)
    sender = courier.start(outbox)
    try:
        with session:
            findings, files = session.complete()
        records.end(outbox, findings, files)
        held.on_event({"stage": "track"})
        if outbox.on:
            courier.sync([folder.local / "trials"], outbox.uri, report=lambda line: None)
        sender.close(search.base.tracking.flush_seconds)
    except BaseException as error:
        outbox.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        sender.close(min(10.0, search.base.tracking.flush_seconds))
        held.upload()
        raise
    durable.write(folder.local / RESULT, json.dumps({"key": search.key()}))
    held.upload()
    return Found(folder, findings, files, _unsent(folder))


def _unsent(folder: RunFolder) -> int:
    return sum(pending(file.parent) for file in folder.local.rglob("outbox.jsonl"))


@dataclass
class SearchSession:
    """One call of `run`: what its steps share, and Ray from its first use.

    A context that ends by closing the journal and stopping Ray, if it was started here.
    """

    search: Search
    corpus: Corpus  # without rows of test
    folder: RunFolder
    journal: Journal
    run_key: str  # of the search's run in MLflow
    on_event: OnEvent
    _ray: contextlib.ExitStack = field(init=False, default_factory=contextlib.ExitStack)
    _ray_started: bool = field(init=False, default=False)

    @classmethod
    def open(cls, search: Search, corpus: Corpus, held: Held[bool], began: float) -> SearchSession:
        """Read the journal in the folder of a prepared search; `began` is the `time.monotonic()` of its start."""
        folder = held.folder
        folder.download(JOURNAL, JUDGE, RANKING, TUNED, ORACLE, "outbox.jsonl", "outbox.sent")
        durable.write(folder.local / "search.yaml", to_yaml(search))
        journal = Journal(folder.local / JOURNAL, began)
        return cls(search, corpus, folder, journal, f"{search.key()}-{folder.identity()}", held.on_event)

    def __enter__(self) -> SearchSession:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        self.journal.close()
        return self._ray.__exit__(*error)

    def start_ray(self) -> None:
        """Start Ray once, where it is first needed: showing a finished search starts nothing."""
        if not self._ray_started:
            self._ray.enter_context(cluster.plain_errors())
            self._ray.enter_context(cluster.ray_cluster(self.search.base))
            self._ray_started = True

    def complete(self) -> tuple[Findings, dict[str, Path]]:
        """Do what earlier calls left undone, from screening to retraining; return the findings and report files."""
        search, journal = self.search, self.journal
        if not self._file(TUNED).is_file():
            self.on_event({"stage": "start"})
            self.start_ray()
            self._try_mixes()
        facts, judge = self._read(TUNED), self._kept_judge()
        tried = tuple(journal.tried.values())
        chosen = judge.choose(proposals.candidates(search, tried))
        if chosen is None:
            raise InputError("search: no mix came to its end; give search.minutes more, or see why fine-tunings failed")
        planned, left_out = plan(judge, tried, chosen, self.corpus)
        retrained, comparisons = retrain(search, planned, self.folder, self.run_key, self.on_event, self.start_ray)
        findings = Findings(
            search, judge, tried, chosen, self._rules(judge, tried), correlation(judge, tried), retrained, comparisons,
            tuple(self._read(RANKING)), max(one.seconds for one in tried), facts["busy"], (*facts["notes"], *left_out),
        )  # fmt: skip
        self.on_event({"stage": "save"})
        return findings, page.write(self.folder.local, findings)

    def _try_mixes(self) -> None:
        """Screen and fine-tune, as far as that is not done yet; TUNED, written last, marks the end."""
        search, journal = self.search, self.journal
        fine = search.settings.fine_tuning.trials if search.base.training.method == "fine_tune" else 0
        slots = tuning.concurrent(search) if fine else 0  # refuses what cannot fit, before any work
        # where every mix is tried anyway, no prior has to order them
        every = proposals.whole_space(search) or not search.settings.screening.trials
        early = not every or selection.breaks_ties(search)
        texts = search_prepare.texts(search, self.corpus)
        data = TrialData(self._visible(), texts)
        ranking = self._ranking(data.corpus) if early else None
        judge = Judge(search, nearness=ranking.scores if ranking else {})
        judge = self._screen(judge, data, ranking)
        self.folder.upload()
        notes, busy = [], None
        if fine:
            of_targets = {code: table for code, table in texts.items() if code not in search.pool}
            notes = self._tune(judge, replace(data, texts=of_targets))
            records.trials(judge, journal, self.folder.local, self.run_key)
            began = max((one.seconds for one in journal.probes()), default=0.0)
            busy = sum(one.cost for one in journal.tuned().values()) / max(1e-9, (journal.seconds() - began) * slots)
        if not early:
            self._ranking()
        self._write(TUNED, {"notes": notes, "busy": busy})

    def _visible(self) -> Corpus:
        """Return what a mix may be trained and measured on: no label of a target unless the search is an oracle."""
        search, corpus = self.search, self.corpus
        visible = corpus.for_training(search.pool)
        if search.oracle:
            dev = {code: corpus.table("dev", code) for code in (*search.pool, *search.base.targets)}
            visible = replace(visible, splits={**visible.splits, "dev": dev})
        return visible

    def _ranking(self, visible: Corpus | None = None) -> similarity.Ranking | None:
        """Rank the pool by similarity to the targets' unlabelled text and by typology: a prior and a baseline.

        Where `visible` is to be embedded next, the texts that are compared are embedded with it: actors start once.
        """
        search, rows = self.search, list[Any]()
        if visible is not None:
            texts = similarity.samples(self.corpus, (*search.pool, *search.base.targets))
            screening.embed(search.base, visible, self.on_event, also=texts)
        try:
            ranking = similarity.rank(search.base, self.corpus, self.on_event)
            rows = [{**asdict(row), "nearest": row.nearest} for row in ranking.rows]
        except InputError:
            ranking = None  # languages that nothing is known of; the search does without
        self._write(RANKING, rows)
        return ranking

    def _screen(self, judge: Judge, data: TrialData, ranking: similarity.Ranking | None) -> Judge:
        """Try mixes as probes, and return the judge that knows how hard each language is for them."""
        search, journal = self.search, self.journal
        trials = search.settings.screening.trials if search.mix_dimensions else 0
        if not trials and search.settings.selection.languages != "held_out_sources":
            return judge
        probers = screening.Screening(judge, screening.embed(search.base, data.corpus, self.on_event, data.texts))
        if self._file(JUDGE).is_file():
            judge = self._kept_judge()
            probers.use_judge(judge)
        else:
            judge = probers.measure_difficulty()
            self._write(JUDGE, {"difficulty": judge.difficulty, "nearness": judge.nearness})
        done = journal.probes()
        progress = Progress("screen", trials, judge, done, self.on_event)

        def record(tried: Tried) -> Tried:
            tried = journal.add(f"probe-{tried.key}", tried)
            progress(tried)
            return tried

        proposed = proposals.Proposals(judge, _prior(search, ranking), done, trials)
        probers.run(proposed, record, more=lambda: self._time_left() > 0)
        return judge

    def _tune(self, judge: Judge, data: TrialData) -> list[str]:
        """Fine-tune mixes in the time that is left, and return notes for the report."""
        left = self._time_left()
        if left <= 0:
            return ["search.minutes were used up by screening; nothing was fine-tuned"]
        trials = Trials(judge, self.journal, self.on_event)
        tried = list(self.journal.tried.values())
        failed = tuning.fine_tune(judge, data, tried, self.folder.checkpoints(), trials, left)
        return trials.notes + failed

    def _rules(self, judge: Judge, tried: Sequence[Tried]) -> tuple[RuleChoice, ...]:
        """Compare what each rule would have chosen; dev labels of targets are read here, after the choice, if asked."""
        search = self.search
        if search.oracle or not search.settings.selection.compare_oracle:
            return rule_choices(judge, tried)
        probes = self.journal.probes()
        if not self._file(ORACLE).is_file():
            self.start_ray()
            self._write(ORACLE, self._measure_targets(judge, probes))
        extra = self._read(ORACLE)
        both = [replace(one, accuracy={**one.accuracy, **extra[one.key]}) for one in probes if one.key in extra]
        return rule_choices(judge, both)

    def _measure_targets(self, judge: Judge, probes: Sequence[Tried]) -> dict[str, dict[str, float]]:
        """Return the accuracy of each probe, by its key, on dev of each target."""
        search, corpus = self.search, self.corpus
        codes = [code for code in search.base.targets if code in corpus.languages("dev")]
        splits = {
            "train": {code: corpus.table("train", code) for code in search.pool},
            "dev": {code: corpus.table("dev", code) for code in (*search.pool, *codes)},
            "test": {},
        }
        both = replace(corpus.for_training(search.pool), splits=splits)
        frozen = screening.embed(search.base, both, self.on_event, search_prepare.texts(search, corpus))
        found = screening.Screening(judge, frozen).map([one.point for one in probes], dev_alone=True)
        return {one.key: {code: one.accuracy[code] for code in codes} for one in found}

    def _kept_judge(self) -> Judge:
        return Judge(self.search, **(self._read(JUDGE) if self._file(JUDGE).is_file() else {}))

    def _time_left(self) -> float:
        minutes = self.search.settings.minutes
        return math.inf if minutes is None else 60 * minutes - self.journal.seconds()

    def _file(self, name: str) -> Path:
        return self.folder.local / name

    def _read(self, name: str) -> Any:
        return json.loads(self._file(name).read_text(encoding="utf-8"))

    def _write(self, name: str, data: Any) -> None:
        durable.write(self._file(name), json.dumps(data))


def _prior(search: Search, ranking: similarity.Ranking | None) -> list[Point]:
    # every language alone, the mixes that similarity proposes, and the pool whole, which baselines are compared with
    points: list[Point] = [{"sources": [code]} for code in search.pool]
    if ranking and search.varies("sources"):
        sizes = range(2, max(search.sizes) + 1)
        points += [{"sources": sorted(similarity.greedy(ranking.scores, size))} for size in sizes]
    points += [{"sources": sorted(search.pool), "mixture.alpha": alpha} for alpha in (1.0, 0.3)]
    return points
