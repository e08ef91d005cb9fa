"""The loop: one loss curve on any number of workers, the same bits after a restart, and what each setting does."""

from __future__ import annotations

import copy
import doctest
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from workers import on_workers

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.config.sections import TrainingConfig
from xlt_ray.corpora import loaders, mixture
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.model import precision
from xlt_ray.training import loop, setup
from xlt_ray.training.setup import Setup

Settings = dict[str, Any]


@dataclass
class Outcome:
    """What a call of `fit` left behind on one worker; weights as arrays, so that they travel between processes."""

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    emitted: list[dict[str, float]] = field(default_factory=list)
    reported: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    seen: Corpus | None = None

    @property
    def losses(self) -> list[float]:
        return [event["train/loss"] for event in self.emitted if "train/loss" in event]


class Killed(Exception):
    """Raised in a report, to stop a run there."""


def changed(settings: Settings, **sections: Settings) -> Settings:
    """Copy settings with some keys of some sections changed."""
    copied = copy.deepcopy(settings)
    for section, values in sections.items():
        copied[section] = {**copied.get(section, {}), **values}
    return copied


def arrays(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in weights.items()}


def make(experiment: Experiment) -> setup.Run:
    corpus = loaders.load(experiment.corpus)
    made = Setup.of(experiment, corpus)
    net, tokenize, _ = made.build()
    return setup.Run(made, net, tokenize)


def train(settings: Settings, kept: str = "", restored: str = "", killed_after: int = 0) -> Outcome:
    """Fit, keeping each checkpoint in `kept`/1, 2, ... ; from `restored`; until the report number `killed_after`."""
    run, outcome = make(build(settings)), Outcome()
    rank = distributed.get_rank() if distributed.is_initialized() else 0

    def report(metrics: dict[str, float], save: setup.Save | None) -> None:
        outcome.reported.append(metrics)
        if kept and rank == 0 and save is not None:
            folder = Path(kept) / str(len(outcome.reported))
            folder.mkdir(parents=True)
            save(folder)
        if len(outcome.reported) == killed_after:
            raise Killed

    run.report, run.emit, outcome.seen = report, outcome.emitted.append, run.setup.visible
    try:
        outcome.history = loop.fit(run, Path(restored) if restored else None).history
    except Killed:
        return outcome
    outcome.weights = arrays(run.network.state_dict())
    return outcome


def train_reporting_seldom(*arguments: Any) -> Outcome:
    """Fit in a process of its own, where a reported loss spans several updates, checkpoints and ends of epochs."""
    loop.REPORTS = 4
    return train(*arguments)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


# the same updates on any number of workers


@pytest.mark.parametrize(
    ("training", "balance"),
    [({}, 0), ({"tokens_per_step": 32}, 1), ({"batch_size": 3, "tokens_per_step": 8, "learning_rate": 1e-3}, 0)],
    ids=["plain", "accumulating, labels balanced", "fewer rows than workers"],
)
def test_one_loss_curve_on_one_two_and_four_workers(
    tiny_settings: Settings, training: Settings, balance: float
) -> None:
    # 50 draws: the last update of an epoch has 2 rows, so that two of four workers have none
    mix = {"draws_per_epoch": 50, "label_balance": balance}
    settings = changed(tiny_settings, training=training, network={"dropout": 0.0}, mixture=mix)
    alone = train(settings)
    assert len(alone.losses) >= 8
    for world in (2, 4):
        workers = on_workers(world, train, settings)
        assert all(worker.losses == workers[0].losses for worker in workers)
        assert all(equal(worker.weights, workers[0].weights) for worker in workers)
        assert workers[0].losses == pytest.approx(alone.losses, rel=1e-4)
        assert largest_difference(workers[0].weights, alone.weights) < 1e-3


def test_rare_labels_weigh_more_where_labels_are_balanced(tiny_settings: Settings) -> None:
    batches = {}
    for balance in (0, 1):
        run = make(build(changed(tiny_settings, mixture={"label_balance": balance, "draws_per_epoch": 60})))
        state = loop.begin(run)
        batches[balance] = list(state.feed.batches(state.feed.epoch(0).draws(), state.progress, total=10))
    assert all((batch["weight"] == 1).all() for batch in batches[0])
    known = {code: table["label"].to_numpy() for code, table in run.setup.visible.splits["train"].items()}
    expected = mixture.label_weights(known, len(run.setup.visible.labels), run.experiment.mixture)
    assert len(set(expected.tolist())) > 1
    assert all(np.array_equal(batch["weight"], expected[batch["label"]]) for batch in batches[1])


def test_the_token_budget_changes_no_loss(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, network={"dropout": 0.0}, mixture={"draws_per_epoch": 64})
    whole, cut = train(settings), train(changed(settings, training={"tokens_per_step": 16}))
    assert cut.losses == pytest.approx(whole.losses, rel=1e-4)


def test_dropout_does_not_repeat_itself(tiny_settings: Settings) -> None:
    training = {"epochs": 1, "learning_rate": 1e-30}
    run = make(
        build(changed(tiny_settings, network={"dropout": 0.5}, training=training, mixture={"draws_per_epoch": 160}))
    )
    events: list[dict[str, float]] = []
    run.emit = events.append
    masks: list[torch.Tensor] = []
    dropout = run.network.encoder.embeddings.dropout
    dropout.register_forward_hook(lambda module, args, out: masks.append(out[0, 0] == 0) if module.training else None)
    run.network.eval()
    loop.fit(run)
    assert len(masks) >= 10 and all(mask.any() for mask in masks)
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks)


# exact resume


@pytest.mark.parametrize(
    ("world", "training"),
    [(1, {}), (2, {}), (1, {"average_last": 2}), (2, {"average_last": 2}), (1, {"select": "source_dev"})],
    ids=["1 worker", "2 workers", "average, 1 worker", "average, 2 workers", "best on dev"],
)
def test_a_killed_run_ends_in_the_same_bits(
    tiny_settings: Settings, tmp_path: Path, world: int, training: Settings
) -> None:
    settings = changed(
        tiny_settings,
        training={"epochs": 3, "checkpoint_every": 4, "tokens_per_step": 64, "label_smoothing": 0.1, **training},
        network={"dropout": 0.1},
        mixture={"draws_per_epoch": 100},
    )
    whole = on_workers(world, train_reporting_seldom, settings)[0]
    # 7 updates an epoch: reports after updates 4, 7, 8, 12, 14, 16, 20 and 21
    assert [row["step"] for row in whole.reported] == [4, 7, 8, 12, 14, 16, 20, 21]
    assert [event["step"] for event in whole.emitted if "train/loss" in event] == [5, 10, 15, 20]
    for killed_after in (1, 6):
        kept = tmp_path / str(killed_after)
        killed = on_workers(world, train_reporting_seldom, settings, str(kept), "", killed_after)[0]
        resumed = on_workers(world, train_reporting_seldom, settings, "", str(kept / str(killed_after)))[0]
        assert killed.weights == {}
        assert killed.reported + resumed.reported == whole.reported
        assert resumed.emitted[0]["note"].startswith("going on from update ")
        assert killed.emitted + resumed.emitted[1:] == whole.emitted
        assert resumed.history == whole.history
        assert equal(resumed.weights, whole.weights)


def test_a_run_killed_twice_and_one_killed_at_its_end_give_the_same_bits(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    settings = changed(
        tiny_settings,
        training={"epochs": 2, "checkpoint_every": 2, "average_last": 2},
        network={"dropout": 0.1},
        mixture={"draws_per_epoch": 64},
    )
    whole = train(settings, str(tmp_path / "whole"))
    train(settings, str(tmp_path / "a"), "", 1)
    torch.manual_seed(123)  # whatever state the generator is in, a resumed run does not care
    train(settings, str(tmp_path / "b"), str(tmp_path / "a" / "1"), 1)
    assert equal(train(settings, "", str(tmp_path / "b" / "1")).weights, whole.weights)
    last = max((tmp_path / "whole").iterdir(), key=lambda folder: int(folder.name))
    assert equal(train(settings, "", str(last)).weights, whole.weights)


def test_where_checkpoints_are_made_changes_nothing(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, network={"dropout": 0.1}, mixture={"draws_per_epoch": 64})
    often = train(changed(settings, training={"checkpoint_every": 1}))
    seldom = train(settings)
    assert equal(often.weights, seldom.weights)
    assert often.losses == pytest.approx(seldom.losses, rel=1e-12)


def test_the_same_run_gives_the_same_bits_and_another_seed_others(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, training={"epochs": 1}, mixture={"draws_per_epoch": 48})
    one, again, other = train(settings), train(settings), train({**settings, "seed": 1})
    assert equal(one.weights, again.weights) and one.losses == again.losses
    assert not equal(one.weights, other.weights)


# what is trained, and how fast


def test_the_learning_rate_rises_then_falls() -> None:
    linear = [loop.rate(TrainingConfig(warmup=0.1), step, 100) for step in range(100)]
    assert linear[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert linear[10] == 1.0
    assert linear[10:] == pytest.approx([1 - step / 90 for step in range(90)])
    cosine = [loop.rate(TrainingConfig(warmup=0.1, decay="cosine"), step, 100) for step in range(100)]
    assert cosine[10] == 1.0 and cosine[55] == pytest.approx(0.5) and 0 < cosine[99] < 0.001
    assert all(later < earlier for earlier, later in zip(cosine[10:], cosine[11:], strict=False))
    constant = [loop.rate(TrainingConfig(warmup=0, decay="constant"), step, 10) for step in range(10)]
    assert constant == [1.0] * 10
    assert all(loop.rate(TrainingConfig(warmup=share), 0, 1) == 1.0 for share in (0, 0.1, 0.99))
    assert all(0 < loop.rate(TrainingConfig(warmup=0.99), step, 7) <= 1 for step in range(7))
    assert doctest.testmod(loop).failed == 0 and doctest.testmod(loop).attempted > 0


def test_the_schedule_spans_the_whole_run_and_every_event_says_where_it_is(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, training={"warmup": 0.25}, mixture={"draws_per_epoch": 64})
    outcome = train(settings)
    events = [event for event in outcome.emitted if "train/loss" in event]
    assert [event["step"] for event in events] == list(range(1, 9))
    assert {event["steps"] for event in events} == {8}
    wanted = [5e-3 * loop.rate(build(settings).training, step, 8) for step in range(8)]
    assert [event["learning_rate"] for event in events] == pytest.approx(wanted)
    means = [np.mean(outcome.losses[:4]), np.mean(outcome.losses[4:])]
    assert [row["train/epoch_loss"] for row in outcome.history] == pytest.approx(means)


def test_gradients_are_clipped_by_their_common_norm(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    settings = changed(tiny_settings, training={"epochs": 1}, mixture={"draws_per_epoch": 48})
    for clip in (0.01, 1e9):
        train(changed(settings, training={"clip": clip}))
    assert norms[:3] == pytest.approx([0.01] * 3, rel=1e-3)
    assert len(norms) == 6 and min(norms[3:]) > 0.1


def test_the_head_has_its_own_rate_and_only_matrices_decay(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, training={"head_learning_rate": 0.1, "weight_decay": 0.3})
    run = make(build(settings))
    groups = loop._optimizer(run.network, run.experiment.training).param_groups
    found = {id(p): (group["peak"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in run.network.named_parameters():
        rate = 0.1 if name.startswith("head.") else 5e-3
        assert found.pop(id(parameter)) == (rate, 0.3 if parameter.ndim > 1 else 0.0), name
    assert found == {}


def test_a_long_run_reports_about_fifty_losses(tiny_settings: Settings) -> None:
    settings = changed(
        tiny_settings, training={"epochs": 3, "batch_size": 1, "learning_rate": 1e-4}, mixture={"draws_per_epoch": 41}
    )
    outcome = train(settings)
    events = [event for event in outcome.emitted if "train/loss" in event]
    assert [event["step"] for event in events] == list(range(2, 124, 2))
    # a reported loss is the mean over its rows, and so is an epoch's
    assert np.mean([event["train/loss"] for event in events[:20]]) * 40 / 41 < outcome.history[0]["train/epoch_loss"]
    assert outcome.history[0]["train/epoch_loss"] == pytest.approx(np.mean(outcome.losses[:20]), rel=0.1)


@pytest.mark.parametrize(
    ("freeze", "still"),
    [
        ([], ()),
        (["embeddings"], ("encoder.embeddings.word_embeddings.",)),
        ([0], ("encoder.embeddings.",)),
        ([1], ("encoder.embeddings.", "encoder.encoder.layer.0.")),
        (["embeddings", 2], ("encoder.",)),
    ],
    ids=str,
)
def test_frozen_parts_do_not_change_and_all_others_do(tiny_settings: Settings, freeze: list, still: tuple) -> None:
    settings = changed(tiny_settings, network={"freeze": freeze}, training={"epochs": 1})
    before = arrays(make(build(settings)).network.state_dict())
    after = train(settings).weights
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(still or "none")}


def test_frozen_parts_do_not_change_on_two_workers(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, network={"freeze": [1]}, training={"epochs": 1}, mixture={"draws_per_epoch": 32})
    before = arrays(make(build(settings)).network.state_dict())
    after = on_workers(2, train, settings)[0].weights
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("encoder.embeddings.", "encoder.encoder.layer.0."))}


def count_bytes(settings: Settings) -> tuple[int, int, int]:
    """Train an epoch, and return the bytes averaged over workers, those of all that is trained, and the updates."""
    state = loop.begin(make(build(settings)))
    sent = []

    def count(group, bucket):  # torch wants its own annotations, as objects, or none
        sent.append(bucket.buffer().nbytes)
        return default_hooks.allreduce_hook(group, bucket)

    state.forward.register_comm_hook(None, count)  # type: ignore[operator]
    state.advance(1)
    return sum(sent), sum(one.nbytes for one in state.parameters), state.progress.step


def test_only_what_is_trained_is_sent_and_once_an_update(tiny_settings: Settings) -> None:
    """The embedding of a multilingual encoder's pieces is most of it; frozen, it is never on the wire."""
    training = {"epochs": 1, "batch_size": 16, "tokens_per_step": 64}  # several steps an update
    whole = changed(tiny_settings, training=training, mixture={"draws_per_epoch": 64})
    frozen = changed(whole, network={"freeze": ["embeddings", 1]})
    weights = {}
    for name, settings in (("whole", whole), ("frozen", frozen)):
        for sent, trained, updates in on_workers(2, count_bytes, settings):
            assert sent == trained * updates and updates == 4
        weights[name] = trained
    assert weights["frozen"] < weights["whole"] / 2


def test_gradients_sent_in_bfloat16_are_half_the_bytes_and_nearly_the_same(tiny_settings: Settings) -> None:
    training = {"epochs": 1, "batch_size": 16, "all_reduce": "bfloat16"}
    settings = changed(tiny_settings, training=training, network={"dropout": 0.0}, mixture={"draws_per_epoch": 64})
    rounded = on_workers(2, train, settings)
    exact = on_workers(2, train, changed(settings, training={"all_reduce": "float32"}))
    assert equal(rounded[0].weights, rounded[1].weights)
    assert 0 < largest_difference(rounded[0].weights, exact[0].weights) < 0.05
    assert rounded[0].losses == pytest.approx(exact[0].losses, rel=0.02)
    assert equal(train(settings).weights, train(changed(settings, training={"all_reduce": "float32"})).weights), (
        "one worker sends nothing"
    )


def own_state(settings: Settings) -> tuple[int, int]:
    """Train an epoch, and return the numbers of the optimiser's state that this worker keeps, and those of all."""
    state = loop.begin(make(build(settings)))
    state.advance(1)
    own: Any = state.optimizer.optim  # type: ignore[attr-defined]
    assert not state.optimizer._all_state_dicts, "the whole is kept no longer than it takes to write it"  # type: ignore[attr-defined]
    kept = [tensor for one in own.state.values() for tensor in one.values() if tensor.ndim]
    return sum(one.numel() for one in kept), 2 * sum(one.numel() for one in state.parameters)


def test_a_sharded_optimiser_gives_the_same_bits_and_checkpoints_for_any_number_of_workers(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    training = {"epochs": 2, "batch_size": 16, "checkpoint_every": 3, "head_learning_rate": 1e-2, "average_last": 2}
    whole = changed(tiny_settings, training=training, mixture={"draws_per_epoch": 64}, resources={"workers": 2})
    sharded = changed(whole, resources={"shard_optimizer": True})
    assert build(sharded).key() == build(whole).key()
    kept, alike = str(tmp_path / "sharded"), str(tmp_path / "whole")
    found, expected = on_workers(2, train, sharded, kept), on_workers(2, train, whole, alike)
    assert equal(found[0].weights, expected[0].weights) and equal(found[0].weights, found[1].weights)
    for settings, folder in ((sharded, kept), (sharded, alike), (whole, kept)):
        resumed = on_workers(2, train, settings, "", f"{folder}/1")
        assert equal(resumed[0].weights, expected[0].weights)
    assert equal(train(sharded, "", f"{kept}/1").weights, train(whole, "", f"{alike}/1").weights)
    assert torch.load(Path(kept) / "1" / "training.pt", weights_only=True)["optimizer"]["state"].keys() == (
        torch.load(Path(alike) / "1" / "training.pt", weights_only=True)["optimizer"]["state"].keys()
    )
    shares = on_workers(2, own_state, changed(sharded, training={"average_last": 1}))
    assert sum(own for own, _ in shares) == shares[0][1] and max(own for own, _ in shares) < 0.7 * shares[0][1]


@pytest.mark.parametrize("blocks", [3, -1])
def test_freezing_blocks_that_are_not_there_is_refused(tiny_settings: Settings, blocks: int) -> None:
    with pytest.raises(InputError, match=rf"network.freeze: {blocks} blocks, but the encoder has 2; give 0 to 2"):
        make(build(changed(tiny_settings, network={"freeze": [blocks]})))


def test_training_learns(tiny_settings: Settings) -> None:
    outcome = train(changed(tiny_settings, training={"epochs": 4}))
    assert outcome.history[-1]["dev/accuracy"] > 0.8
    assert outcome.history[-1]["train/epoch_loss"] < outcome.history[0]["train/epoch_loss"] / 2
    assert [row["epoch"] for row in outcome.history] == [1, 2, 3, 4]


def test_training_learns_in_bfloat16(tiny_settings: Settings) -> None:
    outcome = train(changed(tiny_settings, training={"epochs": 4, "precision": "bfloat16"}))
    assert outcome.history[-1]["dev/accuracy"] > 0.8
    assert {array.dtype for array in outcome.weights.values()} == {np.dtype(np.float32)}
    assert outcome.losses != train(changed(tiny_settings, training={"epochs": 4})).losses


def test_the_precision_measured_is_kept_by_a_resumed_run(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = changed(
        tiny_settings, training={"precision": "auto", "checkpoint_every": 2}, mixture={"draws_per_epoch": 64}
    )
    monkeypatch.setattr(precision, "_gain", lambda network: 2.0)
    whole = train(settings, str(tmp_path))
    monkeypatch.setattr(precision, "_gain", lambda network: 0.5)
    assert equal(train(settings, "", str(tmp_path / "1")).weights, whole.weights)
    assert not equal(train(settings).weights, whole.weights)


def test_auto_measures_and_anything_else_is_obeyed(tiny_settings: Settings) -> None:
    net = make(build(tiny_settings)).network
    assert precision._gain(net) > 0
    assert precision.choose_precision("auto", net, 32) in ("float32", "bfloat16")
    assert [precision.choose_precision(asked, net, 32) for asked in ("float32", "bfloat16")] == ["float32", "bfloat16"]


# weights that are not numbers


@pytest.mark.parametrize(("chosen", "remedy"), [("bfloat16", "set training.precision=float32"), ("float32", "save it")])
def test_numbers_that_are_none_at_the_first_update_are_no_fault_of_the_learning_rate(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, chosen: str, remedy: str
) -> None:
    run = make(build(changed(tiny_settings, training={"precision": chosen})))
    monkeypatch.setattr(precision, "fault", lambda net, max_length: None)
    with torch.no_grad():
        run.network.encoder.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=rf"loss nan, .* at the first update, .*{remedy}") as error:
        loop.fit(run)
    assert "learning_rate" not in str(error.value)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(tiny_settings: Settings, tmp_path: Path) -> None:
    settings = changed(tiny_settings, training={"learning_rate": 1e30, "warmup": 0, "checkpoint_every": 1})
    with pytest.raises(FloatingPointError, match=r"update \d+: loss .* lower training.learning_rate \(now 1e\+30\)"):
        train(settings, str(tmp_path))
    for checkpoint in tmp_path.rglob("*.pt"):
        weights = torch.load(checkpoint, weights_only=True)["network"]
        assert all(tensor.isfinite().all() for tensor in weights.values())


def test_an_update_that_spoils_the_weights_stops_a_run_at_its_very_end(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, training={"epochs": 1, "batch_size": 64}, mixture={"draws_per_epoch": 64})
    run = make(build(settings))
    # the loss is finite, its gradient is not
    run.network.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"loss \d.*norm of the gradient inf at the first update"):
        loop.fit(run)


# which weights are kept


def test_averaging_takes_the_mean_of_the_last_epochs_ends(tiny_settings: Settings, tmp_path: Path) -> None:
    settings = changed(tiny_settings, training={"epochs": 4, "average_last": 3}, mixture={"draws_per_epoch": 32})
    averaged = train(settings, str(tmp_path)).weights
    ends = [torch.load(tmp_path / str(epoch) / "training.pt", weights_only=True)["network"] for epoch in (2, 3, 4)]
    for name, array in averaged.items():
        mean = torch.stack([end[name] for end in ends]).double().mean(0).numpy()
        np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-7)
    assert not equal(averaged, arrays(ends[-1]))
    alone = train(changed(settings, training={"average_last": 1})).weights
    assert equal(alone, arrays(ends[-1]))


def test_select_keeps_the_epoch_that_is_best_on_dev(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.9, 0.7])
    monkeypatch.setattr(loop.TrainingState, "_dev", lambda self: {"dev/accuracy": next(scores)})
    settings = changed(tiny_settings, training={"epochs": 4, "select": "source_dev"}, mixture={"draws_per_epoch": 32})
    kept = train(settings, str(tmp_path)).weights
    # of equals the earlier
    assert equal(kept, arrays(torch.load(tmp_path / "2" / "training.pt", weights_only=True)["network"]))


def test_the_network_is_left_in_evaluation_mode(tiny_settings: Settings) -> None:
    run = make(build(changed(tiny_settings, training={"epochs": 1}, mixture={"draws_per_epoch": 16})))
    run.network.train()
    loop.fit(run)
    assert not run.network.training


# who sees a target's labels


@pytest.mark.parametrize("select", ["last", "source_dev"])
def test_a_zero_shot_run_sees_no_label_of_a_target(tiny_settings: Settings, select: str) -> None:
    outcome = train(changed(tiny_settings, training={"select": select}, mixture={"draws_per_epoch": 32}))
    assert outcome.seen is not None
    assert {code for _, code, _ in outcome.seen.tables()} == {"eng_Latn", "deu_Latn"}
    assert outcome.seen.languages("test") == ()
    assert all("oracle_dev/accuracy" not in row for row in outcome.history + outcome.emitted)
    assert all("dev/accuracy" in row for row in outcome.history)


def test_the_oracle_alone_sees_dev_of_the_targets_and_says_so(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, training={"select": "target_dev", "epochs": 3})
    outcome = train(settings)
    assert outcome.seen is not None
    assert outcome.seen.languages("train") == ("deu_Latn", "eng_Latn")
    assert set(outcome.seen.languages("dev")) == {"deu_Latn", "eng_Latn", "hin_Deva", "swh_Latn"}
    assert outcome.seen.languages("test") == ()
    assert all(0 <= row["oracle_dev/accuracy"] <= 1 for row in outcome.history)


def test_the_oracle_measures_the_targets_asked_for_alone(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, training={"select": "target_dev", "epochs": 1}, mixture={"draws_per_epoch": 32})
    run = make(build({**settings, "targets": ["swh_Latn"]}))
    history = loop.fit(run).history
    tables = {"swh_Latn": run.setup.visible.table("dev", "swh_Latn")}
    answers = evaluate.predict(run.network, run.setup.task, tables, evaluate.Inputs(run.tokenize, "float32", 512))[
        "swh_Latn"
    ]
    assert history[0]["oracle_dev/accuracy"] == np.mean(answers.gold == answers.predicted)


def test_a_language_of_weight_zero_is_not_drawn(tiny_settings: Settings) -> None:
    settings = changed(tiny_settings, mixture={"weights": {"deu_Latn": 0}, "alpha": 1}, network={"dropout": 0.0})
    with_it = train({**settings, "sources": ["eng_Latn", "deu_Latn"]})
    without = train({**settings, "sources": ["eng_Latn"], "mixture": {"alpha": 1}})
    assert equal(with_it.weights, without.weights)
    assert math.isfinite(with_it.history[-1]["dev/accuracy"])
