"""Adversarial training: reversed gradients, how the weight rises, the probe that judges it, and workers that agree."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_catalogue import run_of
from torch import nn
from torch.nn import functional
from workers import on_workers

from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders, streams
from xlt_ray.errors import InputError
from xlt_ray.techniques.losses.adversarial import Discriminator, language_accuracy
from xlt_ray.techniques.technique import Available
from xlt_ray.techniques.term import Outputs
from xlt_ray.training import loop
from xlt_ray.training.batches import Feed
from xlt_ray.training.checkpoint import Progress

Settings = dict[str, Any]
WIDTH, ROWS = 32, 20


def adversarial(settings: Settings, training: Settings | None = None, **parameters: Any) -> Settings:
    changed = copy.deepcopy(settings)
    changed["training"] |= training or {}
    return {**changed, "techniques": [{"adversarial": parameters}]}


def outputs_of(features: torch.Tensor) -> Outputs:
    """Return what a network computes, where a loss looks at features alone."""
    nothing: Any = None
    return Outputs(nothing, features, features, nothing)


# the discriminator


def gradients(progress: float, weight: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, Discriminator, torch.Tensor]:
    """Return the gradient of the features, that of an ordinary loss, the discriminator and its loss a row."""
    term = Discriminator(WIDTH, 16, 4, weight, 10.0, seed=0)
    features = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    batch = {"language": torch.arange(ROWS) % 4, "progress": torch.tensor(progress)}
    net: Any = None  # not looked at
    reversed_, plain = (features.clone().requires_grad_() for _ in range(2))
    losses = term(net, batch, outputs_of(reversed_), torch.ones(ROWS, dtype=torch.bool))
    losses.sum().backward()
    own = [p.grad.clone() for p in term.parameters()]
    term.zero_grad()
    functional.cross_entropy(term.layers(plain), batch["language"], reduction="sum").backward()
    # the discriminator itself learns to classify languages, with unreversed gradients
    assert all(torch.allclose(one, p.grad) for one, p in zip(own, term.parameters(), strict=True))
    assert reversed_.grad is not None and plain.grad is not None
    return reversed_.grad, plain.grad, term, losses


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.3, 1.0])
def test_the_gradient_comes_back_reversed(progress: float) -> None:
    found, plain, _, _ = gradients(progress)
    factor = 0.3 * (2 / (1 + math.exp(-10 * progress)) - 1)
    assert torch.allclose(found, -factor * plain, rtol=1e-6, atol=1e-9)
    assert plain.abs().max() > 0


def test_the_weight_rises_from_nothing_to_its_full() -> None:
    factors = []
    for progress in np.linspace(0, 1, 11):
        found, plain, _, _ = gradients(float(progress), weight=0.2)
        factors.append(-float((found * plain).sum() / (plain * plain).sum()))
    assert factors[0] == 0
    assert all(later > earlier for earlier, later in zip(factors, factors[1:], strict=False))
    assert factors[-1] == pytest.approx(0.2, rel=1e-3)


def test_there_is_a_loss_for_every_row() -> None:
    _, _, _, losses = gradients(0.5)
    assert losses.shape == (ROWS,)
    assert float(losses.detach().mean()) == pytest.approx(math.log(4), abs=0.2)


def test_it_begins_alike_whatever_state_the_generator_is_in() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, again = (Discriminator(WIDTH, 16, 4, 0.1, 10.0, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), again.parameters(), strict=True))
    other = Discriminator(WIDTH, 16, 4, 0.1, 10.0, seed=4)
    assert not torch.equal(other.layers[0].weight, one.layers[0].weight)


# the probe that measures whether it worked


def test_languages_that_lie_apart_are_recognised_and_shuffled_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    places = 4 * rng.normal(size=(4, WIDTH))
    apart = {f"l{i}": (place + rng.normal(size=(60, WIDTH))).astype(np.float32) for i, place in enumerate(places)}
    assert language_accuracy(apart) == 1.0
    rows = rng.permutation(np.concatenate(list(apart.values())))
    assert abs(language_accuracy({f"l{i}": rows[60 * i : 60 * i + 60] for i in range(4)}) - 0.25) < 0.15


def test_each_language_counts_the_same_however_few_rows_it_has() -> None:
    rng = np.random.default_rng(0)
    same = rng.normal(size=(400, WIDTH)).astype(np.float32)
    # of two that are alike the larger is always answered
    found = language_accuracy({"large": same[:390], "small": same[390:], "other": same[:60] + 50})
    assert found == pytest.approx(2 / 3, abs=0.1)


# in training


def trained_encoder(weight: float, seed: int) -> tuple[float, float, float]:
    """Train a linear encoder for a task; return probe accuracy before and after, and the task's.

    One feature determines the label, another the language.
    """
    rng = np.random.default_rng(seed)
    label, language = torch.arange(240) % 2, torch.arange(240) // 2 % 2
    rows = torch.from_numpy(rng.normal(size=(240, 16)).astype(np.float32))
    rows[:, 0] += 4 * label - 2
    rows[:, 1] += 4 * language - 2
    encoder, head = nn.Linear(16, 16), nn.Linear(16, 2)
    with torch.no_grad():
        encoder.weight.copy_(torch.eye(16))
        for zero in (encoder.bias, head.weight, head.bias):
            zero.zero_()
    term = Discriminator(16, 32, 2, weight, 10.0, seed)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters(), *term.parameters()], lr=1e-2)

    def probed() -> float:
        found = encoder(rows).detach().numpy()
        return language_accuracy({code: found[language == number] for number, code in enumerate(("a", "b"))})

    net: Any = None  # not looked at
    before = probed()
    for step in range(300):
        found, batch = encoder(rows), {"language": language, "progress": torch.tensor(step / 300)}
        loss = functional.cross_entropy(head(found), label) + term(net, batch, outputs_of(found), label >= 0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, probed(), float((head(encoder(rows)).argmax(1) == label).float().mean())


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Compute what is tiny on one thread: on a busy machine several wait for each other at every step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_it_makes_languages_harder_to_tell_and_keeps_the_task() -> None:
    with_it, without = (np.mean([trained_encoder(weight, seed) for seed in range(2)], 0) for weight in (0.3, 1e-9))
    assert without[0] == with_it[0] > 0.9 and without[1] > 0.8
    assert with_it[1] < without[1] - 0.15
    assert min(with_it[2], without[2]) > 0.97


def test_language_separability_before_and_after_is_recorded(tiny_settings: Settings) -> None:
    run = run_of(build(adversarial(tiny_settings, {"epochs": 1})))
    asked = {code: rows.slice(0, 60) for code, rows in run.setup.material.texts.items()}
    before = language_accuracy(run.embed(asked, "float32"))
    progress = loop.fit(run)
    after = language_accuracy(run.embed(asked, "float32"))
    figures = {name.removeprefix("adversarial/language_probe_"): value for name, value in progress.facts.items()}
    assert figures == {"before": before, "after": after, "chance": 0.25}
    assert 0.25 < before < 1 and before != after


def test_targets_join_every_update_without_their_labels(tiny_settings: Settings) -> None:
    run = run_of(build(adversarial(tiny_settings)))
    state = loop.begin(run)
    batches = list(state.feed.batches(state.feed.epoch(0).draws(0, 16), Progress(step=3), total=10))
    language = torch.cat([batch["language"] for batch in batches])
    weight, label = (torch.cat([batch[key] for batch in batches]) for key in ("weight", "label"))
    stream = torch.cat([batch["stream"] for batch in batches])
    assert len(language) == 32 and float(weight.sum()) == 16
    assert stream.bincount().tolist() == batches[0]["counts"].tolist() == [16, 16]
    targets = {run.network.index(code) for code in ("swh_Latn", "hin_Deva")}
    assert set(language[weight == 1].tolist()).isdisjoint(targets)
    assert targets <= set(language[weight == 0].tolist())
    assert not label[weight == 0].any()
    assert float(batches[0]["progress"]) == pytest.approx(0.3)


def test_unlabelled_rows_are_those_of_any_number_of_workers(tiny_settings: Settings) -> None:
    sizes = {"eng_Latn": 160, "swh_Latn": 12, "hin_Deva": 12}
    one, again, later = (streams.unlabelled(sizes, 0.3, 16, 0, step) for step in (5, 5, 6))
    assert np.array_equal(one.row, again.row) and np.array_equal(one.language, again.language)
    assert not np.array_equal(one.row, later.row)
    run = run_of(build(adversarial(tiny_settings)))
    loop.begin(run)
    alone = Feed(run, 0, 1)._unlabelled(5)
    parts = [feed._own(feed._unlabelled(5)) for feed in (Feed(run, rank, 2) for rank in range(2))]
    whole = np.argsort(np.concatenate([part.place for part in parts]))
    for name in ("place", "language", "row"):
        both = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(both[whole], getattr(alone, name))
    assert len(parts[0]) == len(parts[1]) == 8


def train(settings: Settings) -> tuple[list[float], dict[str, np.ndarray], dict[str, float]]:
    run = run_of(build(settings))
    events: list[dict[str, float]] = []
    run.emit = events.append
    progress = loop.fit(run)
    weights = {name: tensor.numpy().copy() for name, tensor in run.network.state_dict().items()}
    return [event["train/loss"] for event in events if "train/loss" in event], weights, progress.facts


ADVERSARY, SECOND_HEAD = {"adversarial": {"weight": 0.5}}, {"language_id": {"weight": 0.3}}


@pytest.mark.parametrize(
    ("chosen", "training"),
    [
        ([ADVERSARY], {}),
        ([ADVERSARY, SECOND_HEAD], {}),
        ([ADVERSARY], {"unlabelled_rows": 5, "tokens_per_step": 32}),
        ([SECOND_HEAD], {}),
    ],
    ids=["adversarial", "with language_id", "other rows, accumulating", "language_id alone"],
)
def test_one_loss_curve_on_one_and_two_workers(
    tiny_settings: Settings, chosen: list[Settings], training: Settings
) -> None:
    settings = adversarial(tiny_settings, {"epochs": 1, **training}) | {"techniques": chosen}
    settings["network"] |= {"dropout": 0.0}
    settings["mixture"] = {"draws_per_epoch": 65}  # the last update has one row, so that one of two workers has none
    losses, weights, facts = train(settings)
    workers = on_workers(2, train, settings)
    assert len(losses) == 5 and workers[0][0] == workers[1][0]
    assert workers[0][0] == pytest.approx(losses, rel=1e-4)
    assert all(np.array_equal(array, workers[1][1][name]) for name, array in workers[0][1].items())
    assert max(float(np.abs(array - weights[name]).max()) for name, array in workers[0][1].items()) < 1e-3
    assert workers[0][2] == workers[1][2] == pytest.approx(facts, abs=0.05)


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ["eng_Latn"], "targets": ["eng_Latn"]}, "needs rows of two languages or more"),
        ({"sources": ["eng_Latn"], "training": {"unlabelled_rows": 0}}, "there is one language only"),
    ],
)
def test_a_run_of_one_language_is_refused(tiny_settings: Settings, changes: Settings, message: str) -> None:
    settings = adversarial(tiny_settings, changes.get("training"))
    experiment = build({**settings, **{key: value for key, value in changes.items() if key != "training"}})
    (made,) = techniques.build(experiment)
    with pytest.raises(InputError, match=message):
        made.check(Available.of(experiment, loaders.load(experiment.corpus)))
