"""What a search goes on from after a kill: Tune's own state where it is whole, else its journal."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from search_runs import search_settings

from xlt_ray.events import Event
from xlt_ray.search import prepare, space, tuning
from xlt_ray.search.journal import Journal, Trials
from xlt_ray.search.selection import Judge, Tried
from xlt_ray.search.space import point_key


def state(folder: Path, trials: int, counter: int | None) -> None:
    """Write what Tune keeps of a search: its list of trials, and the searcher in two files; of a grid in one."""
    (folder / "trial").mkdir(parents=True, exist_ok=True)
    (folder / "trial" / "result.json").write_text("{}")
    (folder / "experiment_state-1.json").write_text(json.dumps({"trial_data": [["{}", "{}"]] * trials}))
    searcher = {"finished": False} if counter is None else {"counter": counter}
    (folder / "search_gen_state-1.json").write_bytes(pickle.dumps(searcher))
    if counter is not None:
        (folder / "searcher-state-1.pkl").write_bytes(pickle.dumps({"study": 1}))


def test_tune_goes_on_from_a_state_of_one_moment_alone(tmp_path: Path) -> None:
    assert not tuning.resumable(str(tmp_path / "none"), None)
    for trials, counter in ((3, 3), (3, None)):
        state(tmp_path / "whole", trials, counter)
        assert tuning.resumable(str(tmp_path / "whole"), None)
    state(tmp_path / "torn", 3, 2)  # the searcher is of before the last trial
    assert not tuning.resumable(str(tmp_path / "torn"), None)
    assert [file.name for file in (tmp_path / "torn").iterdir()] == ["trial"], "what trials have written stays"


@pytest.mark.parametrize("name", ["experiment_state-1.json", "search_gen_state-1.json", "searcher-state-1.pkl"])
@pytest.mark.parametrize("content", [b"", b"\x80\x05\x95", None])
def test_a_torn_state_of_tune_is_not_gone_on_from(tmp_path: Path, name: str, content: bytes | None) -> None:
    state(tmp_path, 2, 2)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    assert not tuning.resumable(str(tmp_path), None)


def test_without_tunes_state_what_the_journal_has_counts_and_what_ran_last_begins_again(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"space": {"sources": {"at_most": 2}}, "fine_tuning": {"trials": 5, "grace_epochs": 1}}
    found, _ = prepare.prepared(space.build(search_settings(tiny_encoder, tiny_corpus, tmp_path, search=asked)))
    monkeypatch.setattr(tuning, "concurrent", lambda search: 1)

    def tuned(codes: list[str], seconds: float, whole: bool) -> Tried:
        accuracy = dict.fromkeys(found.pool, 0.5)
        return Tried({"sources": codes}, "fine_tune", accuracy=accuracy, seconds=seconds, whole=whole)

    stopped, running = tuned(["eng_Latn"], 1.0, whole=False), tuned(["deu_Latn"], 3.0, whole=False)
    ended = tuned(["deu_Latn", "eng_Latn"], 2.0, whole=True)
    left = tuning.Left.of(found, [running, stopped, ended])
    assert left is not None and left.trials == 3 and left.begun == [running] and left.ended == [stopped, ended]
    searcher = tuning._searcher(Judge(found), left, [found.encode(running.point)])
    assert found.decode(searcher.suggest("1")) == running.point, "what ran comes first"
    keys = {point_key(found.decode(searcher.suggest(f"other{number}"))) for number in range(3)}
    assert not keys & {stopped.key, ended.key, running.key}, "what had ended is not proposed again"
    assert tuning.Left.of(found, [tuned([str(number)], number, whole=True) for number in range(5)]) is None


@pytest.mark.parametrize(
    ("written", "note"),
    [
        ("Failure # 1 (occurred at ...)\nTraceback\nOSError: No space left\n", " (OSError: No space left)"),
        (None, ""),
    ],
    ids=["why is known", "nothing could be written"],
)
def test_a_trial_that_is_tried_again_is_told_of_in_a_line(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, written: str | None, note: str
) -> None:
    search = space.build(search_settings(tiny_encoder, tiny_corpus, tmp_path))
    events: list[Event] = []
    trials = Trials(Judge(search, {}), Journal(tmp_path / "journal.jsonl"), events.append)
    if written is not None:
        (tmp_path / "error.txt").write_text(written)
    tuning.SESSIONS["one"] = tuning.Session(trials, deadline=0.0)
    try:
        failed = SimpleNamespace(trial_id="1", error_file=str(tmp_path / "error.txt"))
        tuning.Follow("one").on_trial_recover(0, [], failed)
    finally:
        del tuning.SESSIONS["one"]
    told = [event["note"] for event in events if "note" in event]
    assert told == [f"a trial failed{note} and goes on from its last checkpoint"]
