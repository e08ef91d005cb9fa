"""Show a run's progress: a live bar in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn, TimeRemainingColumn

from xlt_ray.events import LONG, STAGES

EVERY = 5.0  # seconds between lines in a log
# what begins the names of scores in an event, and how these are shown
MEASURED = {
    "dev/": "source dev",
    "cross_validated/": "cross-validated",
    "oracle_dev/": "ORACLE target dev",
}


@contextlib.contextmanager
def shown(console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield the function that receives a run's events, and tidy up after it."""
    if not console.is_terminal:
        yield _noted(console, _lines(console))
        return
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=console) as bars:
        yield _noted(console, _bars(bars))


def _noted(console: Console, show: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Print what an event notes, each note once, and show all other events."""
    notes: set[str] = set()

    def note_or_show(event: dict[str, Any]) -> None:
        note = event.get("note")
        if note is None:
            show(event)
        elif note not in notes:
            notes.add(note)
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)

    return note_or_show


def _describe(event: dict[str, Any]) -> tuple[str, float | None, float | None]:
    stage = event["stage"]
    text, done, total = STAGES[stage], event.get("done"), event.get("total")
    if "train/loss" in event:
        done, total = event["step"], event["steps"]
        text += f"  loss {event['train/loss']:.3f}"
    if "train/epoch_loss" in event:
        text += f"  epoch {event['epoch']} done, loss {event['train/epoch_loss']:.3f}"
    for kind, shown in MEASURED.items():
        found = {key.removeprefix(kind): value for key, value in event.items() if key.startswith(kind)}
        text += "".join(
            f"  {shown} {name} {100 * value:.1f}" for name, value in found.items() if name != "loss" and "/" not in name
        )
    if "strength" in event:
        text += f"  at strength {event['strength']:g}"
    if event.get("running"):
        text += f"  {event['running']} running"
    if "best" in event:
        text += f"  best {'ORACLE target ' if event['oracle'] else ''}dev {100 * event['best']:.1f}: "
    if "mix" in event:
        text += event["mix"] if "best" in event else f"  {event['mix']}"
    return text, done, total


def _bars(bars: Progress) -> Callable[[dict[str, Any]], None]:
    tasks: dict[str, Any] = {}

    def show(event: dict[str, Any]) -> None:
        text, done, total = _describe(event)
        stage = event["stage"]
        if stage not in tasks:
            for other in tasks.values():
                full = bars.tasks[other].total or 1
                bars.update(other, total=full, completed=full)
            tasks[stage] = bars.add_task(text, total=total)
        bars.update(tasks[stage], description=text)
        if done is not None:
            bars.update(tasks[stage], total=total, completed=done)

    return show


def _lines(console: Console) -> Callable[[dict[str, Any]], None]:
    start, last_stage, last_line = time.monotonic(), "", 0.0
    begun: dict[str, tuple[float, float]] = {}

    def show(event: dict[str, Any]) -> None:
        nonlocal last_stage, last_line
        text, done, total = _describe(event)
        now, stage = time.monotonic(), event["stage"]
        ended = "epoch" in event or "strength" in event or (done is not None and done == total)
        if stage == last_stage and not ended and now - last_line < EVERY:
            return
        if done is not None and total:
            text += f"  {done:g} of {total:g}"
            since, first = begun.setdefault(stage, (now, done))
            if stage in LONG and first < done < total:
                left = (now - since) / (done - first) * (total - done)
                text += f", about {left / 60:.0f} min left" if left >= 60 else f", about {left:.0f} s left"
        console.print(f"[{now - start:5.0f} s] {text}", markup=False, highlight=False, soft_wrap=True)
        last_stage, last_line = stage, now

    return show
