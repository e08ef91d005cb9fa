"""Kill -9 a search: the same command resumes it, and no mix is tried twice."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_runs import Command, environment, until
from search_runs import TABLE, TRIAL_ACTOR, journal, search_settings, write

from xlt_ray.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.long]

TRIALS, SAFE = 4, 2  # fine-tunings asked for; so many to the end before the kill


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[Path], Command]]:
    drivers: list[Command] = []

    def start(config: Path) -> Command:
        drivers.append(Command(tmp_path / f"driver{len(drivers)}.log", environment(), "tune", config))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.end()


def kill(driver: Command) -> None:
    """Kill a driver with -9, and wait until nothing that it had started can write any more."""
    driver.process.kill()
    assert driver.process.wait(60) == -signal.SIGKILL
    until(lambda: not driver.left(), "Ray to follow its driver into death")


def whole(folder: Path) -> list[str]:
    """List the trials that ran to their end, in the order of the journal."""
    return [line["name"] for line in journal(folder) if line["fidelity"] == "fine_tune" and line["whole"]]


def finished(folder: Path) -> dict[Path, int]:
    """Return the folders of trials whose end was saved, where no checkpoint is kept, and when each was written last."""
    places = [file for file in folder.glob("tune/*/checkpoint_*/") if not (file / checkpoint.FILE).exists()]
    return {place.parent: place.parent.stat().st_mtime_ns for place in places}


def test_a_search_killed_in_fine_tuning_goes_on(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, begin: Callable[[Path], Command]
) -> None:
    space: dict[str, Any] = {"sources": {"at_most": 2}, "training.learning_rate": {"loguniform": [1e-3, 1e-2]}}
    fine_tuning = {"trials": TRIALS, "scheduler": "none"}  # every trial takes its time
    asked = {"space": space, "fine_tuning": fine_tuning, "retraining": {"seeds": 1, "baselines": []}}
    data = search_settings(
        tiny_encoder, tiny_corpus, tmp_path, mixture={"draws_per_epoch": 640},
        resources={"cpus_per_worker": 1}, search=asked,
    )  # fmt: skip
    config = write(data, tmp_path / "tiny.yaml")

    def folder() -> Path:
        return next((tmp_path / "runs").glob("tiny-search-*/"), tmp_path)

    first = begin(config)
    first.until(lambda: len(whole(folder())) >= SAFE, "trials that ended")
    kill(first)
    assert any(process.command.startswith(TRIAL_ACTOR) for process in first.family.values())
    kept, safe = journal(folder()), finished(folder())
    assert len(safe) >= SAFE - 1, "of the last, Tune may not have noted the end"
    assert len(whole(folder())) < TRIALS and not (folder() / "tuned.json").exists(), "the kill hit in fine-tuning"

    second = begin(config)
    assert second.process.wait(300) == 0, second.told
    assert journal(folder())[: len(kept)] == kept, "what was known stays known"
    assert len(whole(folder())) == len(set(whole(folder()))) == TRIALS
    assert {place: finished(folder()).get(place) for place in safe} == safe, "what had ended was not run again"
    assert (folder() / "result.json").is_file() and list(folder().glob("retrained/tiny-chosen-*/result.json"))
    assert f"\n{TABLE}" in second.told
    lines = journal(folder())
    assert len({line["name"] for line in lines if line["fidelity"] == "fine_tune"}) == TRIALS
    assert max(Counter((line["name"], line["epochs"]) for line in lines).values()) == 1, "nothing is written twice"
    probes = [line["name"] for line in lines if line["fidelity"] == "probe"]
    assert len(probes) == len(set(probes)) == 6 + 2
