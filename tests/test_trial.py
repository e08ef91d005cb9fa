"""A trial of a search is the training of `xlt train`: the same bits, also on an actor that had another trial before."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import tune
from search_runs import Plain, fit_plainly, search_settings

from xlt_ray import checkpoint, mixture, search, space, trial, tuning
from xlt_ray.corpus import Corpus
from xlt_ray.selection import Judge
from xlt_ray.space import Point, Search

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ENGLISH: Point = {"sources": ["eng_Latn"], "training.learning_rate": 5e-3}
MIXED: Point = {"sources": ["deu_Latn", "swh_Latn"], "training.learning_rate": 2e-3}


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """One local Ray of two CPUs for this module."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address="local", num_cpus=2, include_dashboard=False, **quiet)
        yield
        ray.shutdown()
    torch.set_num_threads(threads)  # a trial in this process took one


@dataclass(frozen=True)
class Asked:
    """A search, what its trials are handed, and what the loop alone makes of two of its points."""

    search: Search
    corpus: Corpus
    plain: dict[str, Plain]

    def trial(self, point: Point) -> trial.Trial:
        """Start a trial of one worker in this process, where its weights can be seen."""
        rungs = tuning.rungs(self.search)
        made: Any = tune.with_parameters(trial.Trial, judge=Judge(self.search), corpus=self.corpus, rungs=rungs)
        return made(config={"point": point})  # type: ignore[no-any-return]


def sums(point: Point) -> str:
    return space.point_key(point)


@pytest.fixture(scope="module")
def asked(tiny_encoder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    data = search_settings(
        tiny_encoder, tiny_corpus, tmp_path_factory.mktemp("trial"),
        training={"average_last": 2}, network={"dropout": 0.2},
        search={"space": {"sources": {"at_most": 2}, "training.learning_rate": {"choice": [5e-3, 2e-3]}}},
    )  # fmt: skip
    found, corpus = search.prepared(space.build(data))
    corpus = corpus.for_training(found.pool)
    points = (ENGLISH, MIXED)
    return Asked(found, corpus, {sums(one): fit_plainly(found.experiment(one), corpus) for one in points})


def to_the_end(one: trial.Trial) -> dict[str, Any]:
    while True:
        result = one.step()
        if result["done"]:
            return result


def same_bits(found: checkpoint.Weights, expected: checkpoint.Weights) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_trial_gives_the_bits_of_the_loop(asked: Asked) -> None:
    one = asked.trial(ENGLISH)
    first = one.step()
    assert (first["epoch"], first["done"]) == (1, False)
    last = to_the_end(one)
    assert last["epoch"] == 3 and last["accuracy"] == asked.plain[sums(ENGLISH)].accuracy
    assert set(last["accuracy"]) == set(asked.search.pool)
    same_bits(checkpoint.trained(one.worker.net), asked.plain[sums(ENGLISH)].weights)


def test_an_actor_gives_the_bits_of_the_loop_after_a_trial_that_was_stopped(asked: Asked) -> None:
    one = asked.trial(ENGLISH)
    assert one.step()["epoch"] == 1
    for point in (MIXED, ENGLISH):
        assert one.reset({"point": point})
        assert to_the_end(one)["accuracy"] == asked.plain[sums(point)].accuracy
        same_bits(checkpoint.trained(one.worker.net), asked.plain[sums(point)].weights)


def test_a_trial_goes_on_where_it_was_saved(asked: Asked, tmp_path: Path) -> None:
    one = asked.trial(MIXED)
    one.step()
    one.save_checkpoint(str(tmp_path))
    spent = one.cost
    assert one.reset({"point": ENGLISH})
    assert one.reset({"point": MIXED})
    one.load_checkpoint(str(tmp_path))
    assert (one.worker.trainee.progress.epoch, one.cost) == (1, spent)
    to_the_end(one)
    same_bits(checkpoint.trained(one.worker.net), asked.plain[sums(MIXED)].weights)


def test_a_trial_whose_end_tune_had_not_noted_ends_again(asked: Asked, tmp_path: Path) -> None:
    one = asked.trial(MIXED)
    to_the_end(one)
    one.save_checkpoint(str(tmp_path))
    assert one.reset({"point": MIXED})
    one.load_checkpoint(str(tmp_path))
    again = one.step()
    assert (again["epoch"], again["done"]) == (3, True)
    assert again["accuracy"] == asked.plain[sums(MIXED)].accuracy
    same_bits(checkpoint.trained(one.worker.net), asked.plain[sums(MIXED)].weights)


@pytest.mark.parametrize("gone", ["file", "folder"])
def test_a_trial_whose_checkpoint_was_deleted_just_before_a_kill_begins_anew(
    asked: Asked, tmp_path: Path, gone: str
) -> None:
    one = asked.trial(MIXED)
    kept = one.save(str(tmp_path / "kept"))
    (tmp_path / "kept" / checkpoint.FILE).unlink()
    if gone == "folder":
        (tmp_path / "kept").rename(tmp_path / "elsewhere")
    one.restore(kept)
    assert (one.worker.trainee.progress.epoch, one.cost) == (0, 0.0)
    to_the_end(one)
    same_bits(checkpoint.trained(one.worker.net), asked.plain[sums(MIXED)].weights)


def test_every_mix_trains_on_as_many_rows(asked: Asked) -> None:
    one, found = asked.trial(ENGLISH), []
    for codes in (["eng_Latn"], ["swh_Latn"], ["deu_Latn", "eng_Latn"]):
        assert one.reset({"point": {"sources": codes}})
        one.step()
        trainee = one.worker.trainee
        draws = mixture.epoch(trainee.sizes, trainee.experiment.mixture, trainee.experiment.seed, 0)
        assert set(draws.languages) == set(codes)
        found.append((len(draws), trainee.progress.step))
    assert set(found) == {(160, 10)}, "160 rows of English, the largest, in batches of 16"


def test_a_mix_that_diverges_ends_with_the_worst_score_and_the_actor_goes_on(asked: Asked) -> None:
    one = asked.trial({**ENGLISH, "training.learning_rate": 1e30})
    worst = one.step()
    assert worst["done"] and worst["objective_mean"] == 0.0 and "training diverged" in worst["diverged"]
    assert one.reset({"point": ENGLISH})
    to_the_end(one)
    same_bits(checkpoint.trained(one.worker.net), asked.plain[sums(ENGLISH)].weights)


def test_two_workers_give_the_model_of_one(asked: Asked, tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    data = search_settings(tiny_encoder, tiny_corpus, tmp_path, network={"dropout": 0.0})  # whose masks go by rank
    found, _ = search.prepared(space.build(data))
    experiment = found.experiment({"sources": ["deu_Latn", "eng_Latn"]})
    expected = fit_plainly(experiment, asked.corpus)
    remote: Any = ray.remote(trial.Worker)
    address = f"127.0.0.1:{trial._free_port()}"
    workers = [remote.options(num_cpus=1).remote(asked.corpus, rank, address, 2, 1, 0) for rank in range(2)]
    try:
        ray.get([one.begin.remote(experiment) for one in workers])
        for epochs in (1, 3):
            dev, other = ray.get([one.advance.remote(epochs) for one in workers])
        weights = ray.get([one.__ray_call__.remote(lambda self: checkpoint.trained(self.net)) for one in workers])
    finally:
        for one in workers:
            ray.kill(one)
    same_bits(*weights)
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=1e-3, atol=1e-3)
    for code, one in expected.dev.items():
        assert (dev[code].predicted == other[code].predicted).all()
        assert (dev[code].predicted == one.predicted).mean() > 0.9
