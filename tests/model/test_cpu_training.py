"""Dropout and attention on a CPU: the same function and the same distribution as torch's, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from xlt_ray.config.sections import NetworkConfig
from xlt_ray.errors import InputError
from xlt_ray.model import cpu, encoders, network, precision
from xlt_ray.model.network import Network
from xlt_ray.model.precision import autocast


def batch() -> dict[str, torch.Tensor]:
    """Three rows of which two are padded."""
    mask = torch.tensor([[1] * 16, [1] * 9 + [0] * 7, [1] * 3 + [0] * 13])
    return {"input_ids": torch.randint(4, 99, mask.shape, generator=torch.manual_seed(0)), "attention_mask": mask}


def built(folder: Path, dropout: float) -> Network:
    settings = NetworkConfig(init=str(folder), max_length=32, freeze=(), dropout=dropout)
    return network.build(settings, 3, 0).network.train()


def outcome(net: Network, precision: str = "float32") -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the gradients of their squares as one vector."""
    with autocast(torch.device("cpu"), precision):
        logits = net(batch())
    logits.square().sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    net.zero_grad()
    return logits.detach(), gradients


SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3,
    "sep_token_id": 3, "mask_token_id": 4, "decoder_start_token_id": 0,
}  # fmt: skip
WINDOW = {"sliding_window": 4, "local_attention": 4}
SHARED = {"num_attention_heads": 4, "num_key_value_heads": 2}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
# kind of encoder -> what it needs besides SHAPE; windows are shorter than the padding
KINDS: dict[str, dict[str, Any]] = {
    "bert": {}, "xlm-roberta": {}, "roberta-prelayernorm": {}, "electra": {"embedding_size": 32}, "camembert": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}, "deberta-v2": {}, "rembert": {},
    "mpnet": {}, "roformer": {}, "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32}, "mt5": T5,
    "umt5": T5, "modernbert": WINDOW, "ultrabert": WINDOW | {"head_dim": 16}, "eurobert": SHARED, "gte": {},
    "nomic_bert": {}, "mistral": SHARED | WINDOW | {"head_dim": 8}, "gemma3_text": SHARED | WINDOW | {"head_dim": 8},
}  # fmt: skip


def of_kind(kind: str, **settings: Any) -> Network:
    """Build a network around a tiny random encoder of some kind, without dropout."""
    own = type(transformers.AutoConfig.for_model(kind))
    known = {name for one in own.__mro__ for name in getattr(one, "__annotations__", {})} | set(own.attribute_map)
    wanted = {name: value for name, value in (SHAPE | KINDS.get(kind, {}) | settings).items() if name in known}
    auto = transformers.AutoModelForTextEncoding if kind in encoders.FAMILIES else transformers.AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Network(auto.from_config(own(**wanted)), 3, "mean")
    network._set_dropout(net, 0.0)
    return net.train()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_computes_what_its_own_attention_does_in_either_precision(kind: str) -> None:
    net = of_kind(kind)
    exact = outcome(net)
    rounded = outcome(net, "bfloat16")
    exchanged = net.encoder.config._attn_implementation == "sdpa" and net.encoder._supports_attention_backend
    with cpu.fast(net):
        assert (net.encoder.config._attn_implementation == cpu.ATTENTION) is exchanged
        found, found_rounded = outcome(net), outcome(net, "bfloat16")
    for mine, own, tolerance in ((found, exact, 1e-5), (found_rounded, exact, 0.03), (rounded, exact, 0.03)):
        for one, other in zip(mine, own, strict=True):  # not a number is in no tolerance
            assert apart(one, other) < tolerance, kind
    assert precision.fault(net, 32) is None
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training


def test_an_encoder_that_cannot_be_computed_in_bfloat16_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_gain", lambda net: 2.0)
    notes: list[str] = []
    assert precision.choose_precision("auto", of_kind("deberta"), 32, notes.append) == "float32"
    assert len(notes) == 1 and notes[0].startswith("DebertaModel cannot be computed in bfloat16 (value cannot be")
    with pytest.raises(InputError, match=r"bfloat16, but DebertaModel .* set training.precision=float32"):
        precision.choose_precision("bfloat16", of_kind("deberta"), 32)
    assert precision.choose_precision("auto", of_kind("modernbert"), 32, notes.append) == "bfloat16"
    assert len(notes) == 1


@pytest.mark.parametrize(("gain", "expected"), [(0.2, ["bfloat16 takes 5.0 times as long as float32 here"]), (1.5, [])])
def test_bfloat16_that_only_slows_down_is_done_as_asked_and_said(
    monkeypatch: pytest.MonkeyPatch, gain: float, expected: list[str]
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(precision, "_gain", lambda network: gain)
    assert precision.choose_precision("bfloat16", of_kind("modernbert"), 32, notes.append) == "bfloat16"
    assert [note.partition(";")[0] for note in notes] == expected


def test_features_under_dropout_have_the_mean_and_spread_of_torchs(tiny_encoder: Path) -> None:
    net, inputs, draws = built(tiny_encoder, dropout=0.2), batch(), 400

    def moments() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        with torch.no_grad():
            features = torch.stack([net.features(inputs) for _ in range(draws)]).double()
        return features.mean(0), features.var(0)

    expected, spread = moments()
    with cpu.fast(net):
        found, own_spread = moments()
    assert not found.equal(expected), "other masks were drawn"
    assert 0.85 < float(own_spread.mean() / spread.mean()) < 1.18
    z = (found - expected) / ((spread + own_spread) / draws).sqrt()
    assert float(z.square().mean()) < 2, "1 where both means are the same"


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.00001, 0.999])
def test_a_mask_drops_the_share_asked_for_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    mask = cpu.keep_mask((401, 2503), probability)
    dropped = float((mask == 0).double().mean())
    assert abs(dropped - probability) < 5 * (probability * (1 - probability) / mask.numel()) ** 0.5 + 1 / 65536
    assert len(mask.unique()) <= 2
    kept = mask.max().item()
    assert kept == pytest.approx(1 / (1 - probability), rel=0.01)
    # neighbours come from one random word: they must not know of each other
    flat = (mask.flatten()[: mask.numel() // 4 * 4] == 0).double().view(-1, 4)
    if 0.05 < probability < 0.95:
        assert torch.corrcoef(flat.T).fill_diagonal_(0).abs().max() < 0.01


def test_masks_follow_torchs_seed() -> None:
    torch.manual_seed(7)
    first, second = cpu.keep_mask((3, 5), 0.5), cpu.keep_mask((3, 5), 0.5)
    torch.manual_seed(7)
    assert cpu.keep_mask((3, 5), 0.5).equal(first)
    assert not first.equal(second)


def test_nothing_is_dropped_in_evaluation_and_everything_is_put_back(tiny_encoder: Path) -> None:
    net = built(tiny_encoder, dropout=0.3)
    own = net.encoder.config._attn_implementation
    with cpu.fast(net.eval()):
        torch.testing.assert_close(net(batch()), net(batch()), atol=0, rtol=0)
    with pytest.raises(KeyError), cpu.fast(net):
        raise KeyError
    assert net.encoder.config._attn_implementation == own
    assert not any("forward" in vars(module) for module in net.modules())


def test_an_encoder_with_attention_of_its_own_keeps_it(t5: Path) -> None:
    net = built(t5, dropout=0.4)
    own = net.encoder.config._attn_implementation
    with cpu.fast(net):
        assert net.encoder.config._attn_implementation == own
        assert any(isinstance(m, nn.Dropout) and "forward" in vars(m) for m in net.modules())
        _, gradients = outcome(net)
    assert gradients.any()
