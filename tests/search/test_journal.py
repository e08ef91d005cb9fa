"""The journal of a search: what was found is there after a kill, and the clock continues from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from xlt_ray.search import journal
from xlt_ray.search.journal import Journal
from xlt_ray.search.selection import Tried


class Clock:
    """A clock that the tests move."""

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
def test_a_half_written_last_line_is_dropped_and_the_file_mended_by_the_next_result(file: Path, kept: int) -> None:
    first = Journal(file)
    for name in ("one", "two"):
        first.add(name, tried())
    whole = file.read_bytes()
    first.add("three", tried())
    line = file.read_bytes()[len(whole) :]
    file.write_bytes(whole + line[:kept])
    again = Journal(file)
    assert list(again.tried) == ["one", "two"]
    again.add("four", tried())
    assert file.read_bytes().startswith(whole + b'{"name": "four"')
    assert list(Journal(file).tried) == ["one", "two", "four"]


def test_the_first_line_may_be_the_half_written_one(file: Path) -> None:
    file.write_bytes(b'{"name": "on')
    again = Journal(file)
    assert again.tried == {}
    again.add("one", tried())
    assert list(Journal(file).tried) == ["one"]


def test_a_damaged_line_costs_its_own_result_alone(file: Path) -> None:
    first = Journal(file)
    for name in ("one", "two"):
        first.add(name, tried())
    file.write_bytes(file.read_bytes().replace(b'{"name": "one"', b"\0" * 14))
    assert list(Journal(file).tried) == ["two"]


def test_a_journal_begins_with_the_first_result_and_can_be_closed_between_two(file: Path) -> None:
    found = Journal(file)
    found.close()
    assert not file.exists(), "a search that was refused leaves none"
    for name in ("one", "two"):
        found.add(name, tried())
        found.close()
    assert list(Journal(file).tried) == ["one", "two"]


def test_a_journal_of_an_earlier_version_is_read(file: Path) -> None:
    line = '{"name": "probe-1", "point": {"sources": ["eng_Latn"]}, "fidelity": "probe", "epochs": 0, "whole": true, '
    line += '"accuracy": {"deu_Latn": 0.5}, "low": 0.25, "high": 0.75, "seconds": 3.5, "cost": 0.25}\n'
    file.write_text(line, encoding="utf-8")
    expected = Tried(
        {"sources": ["eng_Latn"]}, "probe", accuracy={"deu_Latn": 0.5}, low=0.25, high=0.75, seconds=3.5, cost=0.25
    )
    assert Journal(file).tried == {"probe-1": expected}
    assert Journal(file).seconds() >= 3.5


def test_the_clock_continues_from_the_last_thing_written(file: Path, clock: Clock) -> None:
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
