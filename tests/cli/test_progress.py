"""Progress: a bar in a terminal, few lines in a log, and words for every stage that the product names."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from xlt_ray.cli import progress
from xlt_ray.events import STAGES

RUN: list[dict[str, Any]] = [
    {"stage": "check"},
    {"stage": "start"},
    {"stage": "train", "step": 1, "steps": 4, "train/loss": 1.25, "learning_rate": 0.1},
    {"stage": "train", "step": 2, "steps": 4, "train/loss": 1.0, "learning_rate": 0.1},
    {"stage": "train", "epoch": 1, "step": 2, "train/epoch_loss": 1.125, "dev/accuracy": 0.5},
    {"stage": "train", "epoch": 2, "step": 4, "train/epoch_loss": 0.5, "oracle_dev/accuracy": 0.75},
    {"stage": "embed", "done": 0, "total": 0},
    {"stage": "fit", "epoch": 1, "step": 0, "dev/accuracy": 0.9, "strength": 0.01},
    {"stage": "evaluate", "done": 10, "total": 20},
    {"stage": "evaluate", "done": 20, "total": 20},
]


def shown(events: list[dict[str, Any]], terminal: bool = False) -> str:
    file = io.StringIO()
    with progress.shown(Console(file=file, force_terminal=terminal, width=120)) as show:
        for event in events:
            show(event)
    return file.getvalue()


def test_every_stage_the_product_names_has_words() -> None:
    sources = Path(progress.__file__).parents[1].rglob("*.py")
    named = {stage for file in sources for stage in re.findall(r'"stage": "(\w+)"', file.read_text(encoding="utf-8"))}
    assert {"train", "evaluate", "track"} <= named <= set(STAGES)


def test_a_log_has_a_line_for_each_stage_epoch_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)
    lines = shown(RUN).splitlines()
    assert lines == [
        "[    0 s] reading and checking the corpus",
        "[    0 s] starting Ray",
        "[    0 s] training  loss 1.250  1 of 4",
        "[    0 s] training  epoch 1 done, loss 1.125  source dev accuracy 50.0",
        "[    0 s] training  epoch 2 done, loss 0.500  ORACLE target dev accuracy 75.0",
        "[    0 s] computing features",
        "[    0 s] fitting the probe  source dev accuracy 90.0  at strength 0.01",
        "[    0 s] measuring on test  10 of 20",
        "[    0 s] measuring on test  20 of 20",
    ]


def test_a_log_has_a_line_every_few_seconds_and_not_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000, 1101))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    events = [{"stage": "train", "step": step, "steps": 200, "train/loss": 1.0} for step in range(1, 101)]
    lines = shown(events).splitlines()
    assert len(lines) == 20
    assert lines[:2] == ["[    1 s] training  loss 1.000  1 of 200", "[    6 s] training  loss 1.000  6 of 200"]


def test_a_line_is_never_broken_or_coloured() -> None:
    file = io.StringIO()
    with progress.shown(Console(file=file, width=20)) as show:
        show({"stage": "train", "epoch": 1, "step": 2, "train/epoch_loss": 1.0, "dev/accuracy": 0.5})
    assert file.getvalue().count("\n") == 1 and "\x1b" not in file.getvalue()


def test_a_terminal_has_a_bar_for_each_stage() -> None:
    text = shown(RUN, terminal=True)
    for words in ("reading and checking the corpus", "training  epoch 2 done, loss 0.500", "measuring on test"):
        assert words in text
    last = text.split("\x1b[2K")[-1]
    assert last.count("100%") >= 5


def test_a_stage_that_comes_again_after_a_failure_goes_on_in_its_bar() -> None:
    again = [{"stage": "load"}, RUN[2], {"stage": "load"}, RUN[2], RUN[3]]
    for terminal in (True, False):
        assert "training  loss 1.000" in shown(again, terminal) or not terminal
        assert shown(again, terminal)


def test_a_search_tells_how_far_it_is_and_what_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)
    best = {"best": 0.7254, "mix": "eng_Latn + swh_Latn", "oracle": False}
    lines = shown(
        [
            {"stage": "screen", "done": 0, "total": 400, "running": 0, "oracle": False},
            {"stage": "tune", "done": 1, "total": 9, "running": 2, **best},
            {"stage": "retrain", "done": 0.5, "total": 8, "mix": "best single source"},
        ]
    ).splitlines()
    assert lines == [
        "[    0 s] trying mixes on frozen features  0 of 400",
        "[    0 s] fine-tuning mixes  2 running  best dev 72.5: eng_Latn + swh_Latn  1 of 9",
        "[    0 s] retraining  best single source  0.5 of 8",
    ]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("oracle", [True, False])
def test_a_best_by_target_labels_is_called_an_oracle(terminal: bool, oracle: bool) -> None:
    event = {"stage": "screen", "done": 3, "total": 9, "best": 0.5, "mix": "eng_Latn", "oracle": oracle}
    text = shown([event], terminal)
    assert "dev 50.0: eng_Latn" in text and ("best ORACLE target dev" in text) is oracle


@pytest.mark.parametrize("stage", ["screen", "tune", "retrain"])
def test_a_log_tells_the_time_left_of_what_takes_long(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    file = io.StringIO()
    with progress.shown(Console(file=file, width=120)) as show:
        # two were done by an earlier session, which says nothing of the pace of this one
        for seconds, done in ((10.0, 2), (40.0, 4), (100.0, 6), (500.0, 26), (510.0, 42)):
            clock[0] = seconds
            show({"stage": stage, "done": done, "total": 42})
    lines = file.getvalue().splitlines()
    assert [line.split(STAGES[stage])[1] for line in lines] == [
        "  2 of 42",
        "  4 of 42, about 10 min left",  # 30 s for 2, 38 to go
        "  6 of 42, about 14 min left",  # 90 s for 4, 36 to go
        "  26 of 42, about 5 min left",  # 490 s for 24, 16 to go
        "  42 of 42",
    ]


def test_a_log_tells_seconds_where_it_is_less_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 0.0, 30.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert shown([{"stage": "tune", "done": n, "total": 3} for n in (0, 2)]).endswith("2 of 3, about 15 s left\n")


def test_a_log_tells_no_time_left_of_what_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 0.0, 30.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert "left" not in shown([{"stage": "evaluate", "done": n, "total": 3} for n in (0, 2)])
