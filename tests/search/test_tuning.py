"""Trials on real Ray Tune: many stopped ones in a row leave nothing behind, and what cannot fit is refused."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util import placement_group_table
from ray_runs import Settings, free_ports, offspring, until
from search_runs import TRIAL_ACTOR, search_settings, write
from typer.testing import CliRunner

from xlt_ray import cli
from xlt_ray.errors import InputError
from xlt_ray.search import prepare, search, space, tuning
from xlt_ray.search.selection import Judge, Tried
from xlt_ray.search.space import point_key
from xlt_ray.search.trial import TrialData
from xlt_ray.training import cluster

pytestmark = pytest.mark.slow

TRIALS, EPOCHS = 12, 4
ACTORS = (*TRIAL_ACTOR, "ray::Worker")  # how the titles of the processes of a trial begin


@pytest.fixture(autouse=True)
def own_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test here starts Ray itself."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    ray.shutdown()


def start(dashboard: bool) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # not its usual port, which every Ray without a dashboard takes for its own, those of other tests among them
    place = {"dashboard_host": "127.0.0.1", "dashboard_port": free_ports(1)[0]}
    cluster.init(address="local", num_cpus=2, include_dashboard=dashboard, **place, **quiet)


def actors() -> list[str]:
    """List the titles of the processes that trials run in at this moment."""
    return [one.command for one in offspring(os.getpid()) if one.command.startswith(ACTORS)]


def two_workers(encoder: Path, corpus: Path, folder: Path) -> Settings:
    """A search whose every trial takes the whole of two CPUs, and of whose trials most are bad."""
    return search_settings(
        encoder,
        corpus,
        folder,
        training={"epochs": EPOCHS},
        mixture={"draws_per_epoch": 96},
        search={
            "space": {"sources": {"at_most": 2}, "training.learning_rate": {"loguniform": [1e-6, 1e-2]}},
            "searcher": "random",
            "selection": {"languages": "sources"},
            "screening": {"trials": 0},
            "fine_tuning": {"trials": TRIALS, "workers": 2, "grace_epochs": 1, "reduction": 2, "concurrent": 4},
        },
    )


def test_the_choice_of_the_probes_is_never_stopped_early() -> None:
    scheduler = tuning.Halving("epoch", "objective_mean", "max", max_t=3, grace_period=1, reduction_factor=2)
    points = [{"sources": [code]} for code in ("eng_Latn", "deu_Latn", "swh_Latn")]
    good, exempt, bad = (SimpleNamespace(trial_id=str(number)) for number in range(3))
    scheduler.exempt_key = point_key(points[1])
    for trial in (good, exempt, bad):
        scheduler.on_trial_add(None, trial)

    def decided(trial: Any, epoch: int, value: float) -> str:
        key = point_key(points[int(trial.trial_id)])
        # flat, as Tune hands results to schedulers
        return scheduler.on_trial_result(None, trial, {"epoch": epoch, "objective_mean": value, "key": key})

    assert decided(good, 1, 0.9) == scheduler.CONTINUE
    assert decided(exempt, 1, 0.1) == scheduler.CONTINUE and decided(bad, 1, 0.2) == scheduler.STOP
    scheduler.on_trial_result(None, bad, {"epoch": 1, "objective_mean": 0.0, "diverged": "loss"})  # of no key
    assert decided(exempt, 2, 0.1) == scheduler.CONTINUE and decided(exempt, 3, 0.1) == scheduler.STOP


def test_a_searcher_that_likes_one_mix_still_proposes_every_other(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    asked = {"space": {"sources": {"at_most": 1}}, "selection": {"languages": "sources"}}
    settings = search_settings(tiny_encoder, tiny_corpus, tmp_path, search=asked)
    found, _ = prepare.prepared(space.build(settings))
    judge = Judge(found)
    points = [{"sources": [code]} for code in found.pool]
    # English is received again and again, and is by far the best
    probed = [
        Tried(point, "probe", accuracy={point["sources"][0]: share})
        for point, share in zip(points, (0.9, 0.1, 0.1), strict=True)
    ]
    searcher = tuning._searcher(judge, tuning.Left(3, probed, [], []), [])
    for _ in range(60):
        searcher.add_evaluated_point(found.encode(points[0]), 0.9)
    proposed = []
    while (parameters := searcher.suggest(f"trial{len(proposed)}")) != "FINISHED":
        proposed.append(point_key(found.decode(parameters)))
    assert sorted(proposed) == sorted(point_key(point) for point in points)


@pytest.mark.long
@pytest.mark.parametrize("dashboard", [False, True])
def test_many_stopped_trials_of_two_workers_in_a_row_leave_nothing_behind(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, dashboard: bool
) -> None:
    asked, corpus = prepare.prepared(space.build(two_workers(tiny_encoder, tiny_corpus, tmp_path)))
    reached: dict[str, int] = {}
    ended: list[tuple[str, str]] = []
    seen: list[int] = []

    def listen(what: str, trial: str, result: Mapping[str, Any]) -> None:
        if what == "result":
            reached[trial] = result["epoch"]
            if len(ended) < TRIALS:  # when all have ended, each is reported once more
                seen.append(len(actors()))
        elif what in ("complete", "error"):
            ended.append((what, trial))

    start(dashboard)
    judge, data = Judge(asked), TrialData(corpus.for_training(asked.pool))
    assert tuning.fine_tune(judge, data, [], (str(tmp_path), None), listen, math.inf) == []
    assert len(ended) == len(reached) == TRIALS and set(ended) == {("complete", trial) for trial in reached}
    assert set(seen) == {2}, "one trial at a time, with both of its workers"
    stopped = [trial for trial, epoch in reached.items() if epoch < EPOCHS]
    assert 3 <= len(stopped) < TRIALS
    until(lambda: ray.available_resources().get("CPU") == 2, "the CPUs of the last trial")
    until(lambda: not actors(), "the actors of the last trial to end")
    states = [group["state"] for group in placement_group_table().values()]
    assert states and set(states) == {"REMOVED"}


def test_a_trial_that_no_cluster_of_this_machine_can_hold_is_refused_by_the_command_before_any_work(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = os.cpu_count() or 1
    data = search_settings(tiny_encoder, tiny_corpus, tmp_path, search={"fine_tuning": {"workers": cores + 1}})
    done = CliRunner().invoke(cli.app, ["tune", str(write(data, tmp_path / "large.yaml"))])
    assert done.exit_code == 2, done.output
    message = done.stderr.rpartition("error: ")[2]
    assert f"a trial needs {cores + 1} workers x (1 CPUs)" in message
    assert f"the cluster has 1 machines ({cores} CPUs), room for {cores} such workers" in message
    assert "lower search.fine_tuning.workers" in message and "Traceback" not in done.output
    assert not ray.is_initialized(), "what the command started, it stopped"
    assert not list(tmp_path.rglob("journal.jsonl")) and not (tmp_path / "cache" / "features").exists()


def test_a_trial_that_the_connected_cluster_cannot_hold_is_refused_before_any_work(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    start(dashboard=False)
    data = search_settings(tiny_encoder, tiny_corpus, tmp_path, search={"fine_tuning": {"workers": 3}})
    with pytest.raises(InputError, match=r"3 workers x \(1 CPUs\).* \(2 CPUs\), room for 2 such workers"):
        search.run(space.build(data))
    assert not list(tmp_path.rglob("journal.jsonl")) and not (tmp_path / "cache" / "features").exists()
