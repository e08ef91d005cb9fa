"""Machines of a cluster die and come while a run trains: it goes on, it says so, and the end is the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import Machines, machines
from ray_runs import Command, results, settings
from safetensors.numpy import load_file
from search_runs import write

pytestmark = [pytest.mark.slow, pytest.mark.long]

OURS = re.compile(r"\[ *\d+ s\] |note: |warning: ")
NOISE = 4  # lines of Ray's about a dead machine, at most


@pytest.fixture
def cluster() -> Iterator[Machines]:
    with machines() as found:
        yield found


def config(encoder: Path, corpus: Path, folder: Path, epochs: int, **resources: Any) -> Path:
    training = {"epochs": epochs, "batch_size": 16, "checkpoint_every": 4}
    data = settings(encoder, corpus, folder, training=training, resources=resources)
    return write(data, folder / "tiny.yaml")


def run_folder(place: Path) -> Path:
    return next((place / "runs").glob("tiny-*/"))


def undisturbed(encoder: Path, corpus: Path, place: Path, cluster: Machines, epochs: int, workers: int) -> Path:
    """Do the same run on the whole cluster, and return its folder."""
    command = Command(
        place / "log", cluster.environment(), "train", config(encoder, corpus, place, epochs, workers=workers)
    )
    try:
        assert command.process.wait(300) == 0, command.told
    finally:
        command.end()
    return run_folder(place)


def test_a_machine_dies_and_another_comes_and_the_end_is_the_same_to_the_bit(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, cluster: Machines
) -> None:
    first, second = cluster.add(), cluster.add()
    disturbed, plain = tmp_path / "disturbed", tmp_path / "plain"
    for place in (disturbed, plain):
        place.mkdir()
    asked = config(tiny_encoder, tiny_corpus, disturbed, 20, workers=2, wait_minutes=5)
    command = Command(disturbed / "log", cluster.environment(), "train", asked)
    try:
        command.until("epoch 4 done")
        cluster.kill(second)
        # that the machine is gone too is known a little later
        command.until("; training goes on from the last checkpoint with 2 workers x (1 CPUs)")
        assert re.search(r"note: worker [01] died( with its machine)?; training", command.told)
        command.until("2 workers x (1 CPUs) are asked for, and the cluster has room for 1; waiting, for at most 5 min")
        cluster.add()
        command.until("going on from update")
        assert command.process.wait(300) == 0, command.told
    finally:
        command.end()
    told = command.told[: command.told.index("computing intervals")].splitlines()
    noise = [line for line in told if not OURS.match(line)]
    assert len(noise) <= NOISE, "\n".join(noise)
    assert first.poll() is None
    same = undisturbed(tiny_encoder, tiny_corpus, plain, cluster, 20, 2)
    assert results(run_folder(disturbed)) == results(same)


def test_where_no_machine_comes_the_run_says_what_is_missing_and_goes_on_later(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, cluster: Machines
) -> None:
    cluster.add()
    for asked, most in ((2, 2), ([2, 4], 4)):
        place = tmp_path / f"at_most_{most}"
        place.mkdir()
        file = config(tiny_encoder, tiny_corpus, place, 2, workers=asked, wait_minutes=0.4)
        command = Command(place / "log", cluster.environment(), "train", file)
        try:
            assert command.process.wait(200) == 1, command.told
        finally:
            command.end()
        assert "no room for 2 workers x (1 CPUs) within 0.4 minutes; add machines, raise resources.wait" in command.told
        assert f"or set 'resources.workers=[1,{most}]' to begin with one. The same command goes on" in command.told
    cluster.add()
    fixed = tmp_path / "at_most_2"
    again = Command(fixed / "log", cluster.environment(), "train", fixed / "tiny.yaml")
    try:
        assert again.process.wait(200) == 0, again.told
    finally:
        again.end()


def test_a_run_takes_the_machines_that_there_are(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, cluster: Machines
) -> None:
    cluster.add()
    elastic, plain = tmp_path / "elastic", tmp_path / "plain"
    for place in (elastic, plain):
        place.mkdir()
    file = config(tiny_encoder, tiny_corpus, elastic, 40, workers=[1, 2])
    command = Command(elastic / "log", cluster.environment(), "train", file)
    try:
        command.until("epoch 2 done")
        second = cluster.add()
        command.until(" with 2 workers")
        enough = command.told.count("epoch ") + 4
        command.until(lambda: command.told.count("epoch ") >= enough, "more epochs")
        cluster.kill(second)
        command.until(" with 1 workers")
        assert command.process.wait(300) == 0, command.told
    finally:
        command.end()
    same = undisturbed(tiny_encoder, tiny_corpus, plain, cluster, 40, 1)
    left, right = (load_file(one / "bundle/head.safetensors") for one in (run_folder(elastic), same))
    for name, weights in left.items():
        apart = float(np.abs(weights - right[name]).max() / np.abs(right[name]).max())
        assert 0 < apart < 0.1, f"{name}: other masks of dropout, the same draws"
