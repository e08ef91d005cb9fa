"""The network: pooling blind to padding, a head of its own seed, and refusals before the first batch."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import saved
from torch import nn

from xlt_ray import tasks
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import NetworkConfig
from xlt_ray.errors import InputError
from xlt_ray.model import collate, network
from xlt_ray.model.network import Network
from xlt_ray.training.loop import Objective

TASK = tasks.build("classification", "abc")


def built(folder: Path, **settings: Any) -> Network:
    return network.build(NetworkConfig(init=str(folder), **{"max_length": 32, "freeze": ()} | settings), 3, 0).network


def batch(*sizes: int, extra: int = 0) -> dict[str, torch.Tensor]:
    """Make a batch of rows of these lengths, padded by `extra` columns more than needed."""
    padded = collate.pad([{"input_ids": [2, *range(4, 2 + size), 3]} for size in sizes], pad_id=0)
    return {name: nn.functional.pad(tensor, (0, extra)) for name, tensor in padded.items()}


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    config = transformers.XLMRobertaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=36, pad_token_id=0,
    )  # fmt: skip
    model = transformers.XLMRobertaModel(config, add_pooling_layer=False)
    return saved(tmp_path_factory.mktemp("roberta"), tiny_encoder, model)


# pooling


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_padding_does_not_touch_a_rows_features(tiny_encoder: Path, pooling: str) -> None:
    net = built(tiny_encoder, pooling=pooling).eval()
    with torch.no_grad():
        alone, among, wider = net(batch(5)), net(batch(5, 9, 16)), net(batch(5, extra=16))
    torch.testing.assert_close(among[:1], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(wider, alone, rtol=1e-5, atol=1e-6)


def test_mean_pooling_is_the_mean_over_real_tokens_and_first_the_first(tiny_encoder: Path) -> None:
    net, two = built(tiny_encoder).eval(), batch(4, 7)
    with torch.no_grad():
        hidden = net.encoder(input_ids=two["input_ids"], attention_mask=two["attention_mask"]).last_hidden_state
        mean = net.features(two)
        net.pooling = "first"
        first = net.features(two)
    torch.testing.assert_close(mean, torch.stack([hidden[0, :4].mean(0), hidden[1, :7].mean(0)]))
    assert torch.equal(first, hidden[:, 0])
    assert mean.dtype == first.dtype == torch.float32


def test_scores_are_a_linear_map_of_features(tiny_encoder: Path) -> None:
    net = built(tiny_encoder).eval()
    with torch.no_grad():
        found = net(batch(4, 7))
        torch.testing.assert_close(found, net.features(batch(4, 7)) @ net.head.weight.T + net.head.bias)
    assert found.shape == (2, 3)


def test_under_autocast_the_head_stays_in_float32(tiny_encoder: Path) -> None:
    net = built(tiny_encoder).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = net(batch(4))
        features = net.features(batch(4))
    torch.testing.assert_close(scores, features @ net.head.weight.detach().T)
    with torch.no_grad():
        assert not torch.equal(features, net.features(batch(4)))
    assert scores.dtype == features.dtype == torch.float32


# building


def test_building_leaves_the_global_generators_alone(tiny_encoder: Path) -> None:
    built(tiny_encoder)  # what is imported on first use is not the matter here
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    built(tiny_encoder)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_a_head_depends_on_its_seed_alone(tiny_encoder: Path) -> None:
    config = NetworkConfig(init=str(tiny_encoder), max_length=32)
    torch.manual_seed(1)
    one = network.build(config, 3, 0).network.head
    torch.manual_seed(2)
    again, other = network.build(config, 3, 0).network.head, network.build(config, 3, 1).network.head
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, other.weight)
    assert one.weight.std().item() == pytest.approx(0.02, rel=0.3) and torch.count_nonzero(one.bias) == 0


@pytest.mark.parametrize("family", ["tiny_encoder", "t5"])
def test_dropout_can_be_set_and_is_gone_at_zero(request: pytest.FixtureRequest, family: str) -> None:
    folder = request.getfixturevalue(family)
    off, own = built(folder, dropout=0.0).train(), built(folder).train()
    assert torch.equal(off(batch(9)), off(batch(9)))
    assert not torch.equal(own(batch(9)), own(batch(9)))
    half = built(folder, dropout=0.5).train()
    assert {module.p for module in half.modules() if isinstance(module, nn.Dropout)} == {0.5}


def test_the_encoders_own_dropout_stands_where_none_is_asked_for(t5: Path) -> None:
    assert built(t5).dropout.p == 0.5


@pytest.mark.parametrize(("family", "room"), [("tiny_encoder", 64), ("roberta", 32)])
def test_more_tokens_than_the_encoder_has_room_for_are_refused(
    request: pytest.FixtureRequest, family: str, room: int
) -> None:
    folder = request.getfixturevalue(family)
    net = built(folder, max_length=room).eval()
    assert net(batch(room)).shape == (1, 3)
    with pytest.raises(InputError, match=f"max_length: {room + 1} tokens, .* room for {room}; give {room} or less"):
        built(folder, max_length=room + 1)


def test_an_encoder_with_relative_positions_has_no_such_limit(t5: Path) -> None:
    assert built(t5, max_length=1024).eval()(batch(200)).shape == (1, 3)


def test_freezing_the_embeddings_of_a_tied_encoder_freezes_them_all(t5: Path) -> None:
    net = built(t5, freeze=("embeddings",))
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.shared.weight"}


# prefix


@pytest.mark.parametrize(
    ("init", "prefix"),
    [
        ("bundled:e5-small", "query: "),
        ("intfloat/multilingual-e5-small", "query: "),
        ("xlm-roberta-base", ""),
        ("google/mt5-small", ""),
        ("/home/me/e5-trials/bert", ""),
        ("/home/me/models/E5-large", "query: "),
    ],
)
def test_e5_has_a_prefix_and_others_have_none(init: str, prefix: str) -> None:
    assert network.prefix(NetworkConfig(init=init)) == prefix
    assert network.prefix(NetworkConfig(init=init, prefix="")) == ""
    assert network.prefix(NetworkConfig(init=init, prefix="passage: ")) == "passage: "


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_bundle_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bundle.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"bundle.json is damaged .*; copy the bundle again"):
        network.prefix(NetworkConfig(init=str(tmp_path)))


def test_a_bundle_stands_for_the_encoder_and_the_prefix_in_it(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"prefix": "x: "}), encoding="utf-8")
    config = NetworkConfig(init=str(tmp_path))
    assert network.encoder_source(config) == str(tmp_path / "encoder")
    assert network.prefix(config) == "x: "
    assert network.encoder_source(NetworkConfig(init="xlm-roberta-base")) == "xlm-roberta-base"


# objective


def test_the_objective_sums_weighted_cross_entropies(tiny_experiment: Experiment, tiny_encoder: Path) -> None:
    net = built(tiny_encoder).eval()
    rows = batch(4, 7, 5) | {"label": torch.tensor([0, 2, 1]), "weight": torch.tensor([1.0, 0.0, 2.0])}
    with torch.no_grad():
        losses = nn.functional.cross_entropy(net(rows), rows["label"], reduction="none")
        torch.testing.assert_close(Objective(net, TASK)(rows), losses[0] + 2 * losses[2])
        smooth = nn.functional.cross_entropy(net(rows), rows["label"], reduction="none", label_smoothing=0.2)
        torch.testing.assert_close(Objective(net, TASK, 0.2)(rows), smooth[0] + 2 * smooth[2])


def test_a_row_of_weight_zero_has_no_gradient(tiny_encoder: Path) -> None:
    net = built(tiny_encoder).eval()
    rows = batch(4) | {"label": torch.tensor([0]), "weight": torch.tensor([0.0])}
    Objective(net, TASK)(rows).backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
