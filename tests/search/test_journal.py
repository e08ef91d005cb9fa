"""The journal of a search: what was found is there after a kill, and the clock goes on from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from xlt_ray.search import journal
from xlt_ray.search.journal import Journal
from xlt_ray.search.selection import Tried


class Clock:
    """A clock that moves when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the journal read this clock."""
    found = Clock()
    monkeypatch.setattr(journal, "time", found)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a journal that is not there yet."""
    return tmp_path / "journal.jsonl"


def tried(fidelity: Literal["probe", "fine_tune"] = "probe", epochs: int = 0, **point: Any) -> Tried:
    whole = {"sources": ["eng_Latn", "swh_Latn"], "mixture.weights": {"eng_Latn": 0.25, "swh_Latn": 0.75}, **point}
    measured: dict[str, Any] = {"accuracy": {"deu_Latn": 0.625, "ayr_Latn": 0.1}, "low": 0.3, "high": 0.7, "cost": 1.5}
    return Tried(whole, fidelity, epochs=epochs, whole=epochs != 1, **measured)


def test_what_was_added_is_read_back(file: Path, clock: Clock) -> None:
    first = Journal(file)
    clock.now += 3
    added = first.add("probe-1", tried())
    clock.now += 4
    other = first.add("trial-1", tried("fine_tune", 2, alpha="ü"))
    assert added == replace(tried(), seconds=3.0) and other.seconds == 7.0
    again = Journal(file)
    assert again.tried == first.tried == {"probe-1": added, "trial-1": other}
    assert again.probes() == [added] and again.tuned() == {"trial-1": other}


def test_a_trial_that_went_further_takes_the_place_of_its_earlier_rung(file: Path) -> None:
    first = Journal(file)
    first.add("trial-1", tried("fine_tune", 1))
    first.add("trial-2", tried("fine_tune", 1))
    last = first.add("trial-1", tried("fine_tune", 3))
    for one in (first, Journal(file)):
        assert one.tuned()["trial-1"] == last and len(one.tried) == 2
    assert len(file.read_bytes().splitlines()) == 3, "every rung stays on disk"


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_half_written_last_line_is_dropped_and_the_file_mended(file: Path, kept: int) -> None:
    first = Journal(file)
    for name in ("one", "two"):
        first.add(name, tried())
    whole = file.read_bytes()
    first.add("three", tried())
    line = file.read_bytes()[len(whole) :]
    file.write_bytes(whole + line[:kept])
    again = Journal(file)
    assert list(again.tried) == ["one", "two"] and file.read_bytes() == whole
    again.add("four", tried())
    assert list(Journal(file).tried) == ["one", "two", "four"]


def test_the_first_line_may_be_the_half_written_one(file: Path) -> None:
    file.write_bytes(b'{"name": "on')
    assert Journal(file).tried == {} and file.read_bytes() == b""


def test_the_clock_goes_on_from_the_last_thing_written(file: Path, clock: Clock) -> None:
    first = Journal(file)
    clock.now += 60
    first.add("one", tried())
    clock.now += 500  # killed after this, and started again a day later
    clock.now += 86_400
    again = Journal(file)
    assert again.seconds() == 60
    clock.now += 5
    assert again.add("two", tried()).seconds == 65


def test_the_clock_can_start_before_the_journal_is_opened(file: Path, clock: Clock) -> None:
    assert Journal(file, since=clock.now - 12).seconds() == 12
