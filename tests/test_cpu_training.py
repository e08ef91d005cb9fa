"""Dropout and attention on a CPU: the same function and the same distribution as torch's, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from conftest import saved
from torch import nn

from xlt_ray import cpu_training, network
from xlt_ray.config import NetworkConfig
from xlt_ray.network import Network


def batch() -> dict[str, torch.Tensor]:
    """Three rows of which two are padded."""
    mask = torch.tensor([[1] * 16, [1] * 9 + [0] * 7, [1] * 3 + [0] * 13])
    return {"input_ids": torch.randint(4, 99, mask.shape, generator=torch.manual_seed(0)), "attention_mask": mask}


def built(folder: Path, dropout: float) -> Network:
    settings = NetworkConfig(init=str(folder), max_length=32, freeze=(), dropout=dropout)
    return network.build(settings, 3, 0)[0].train()


def outcome(net: Network) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of their squares."""
    logits = net(batch())
    logits.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    return logits.detach(), gradients


@pytest.fixture(params=["bert", "grouped queries", "windows"])
def folder(request: pytest.FixtureRequest, tiny_encoder: Path, tmp_path: Path) -> Path:
    """Encoders: one with a mask for padding only, one whose heads share keys, one that looks at near tokens only."""
    if request.param == "bert":
        return tiny_encoder
    shape = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "pad_token_id": 0}
    model: transformers.PreTrainedModel
    if request.param == "windows":
        config = transformers.ModernBertConfig(
            **shape, num_attention_heads=2, local_attention=4, layer_types=["full_attention", "sliding_attention"],
            bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3,
        )  # fmt: skip
        model = transformers.ModernBertModel(config)
    else:
        model = transformers.EuroBertModel(
            transformers.EuroBertConfig(
                **shape, num_attention_heads=4, num_key_value_heads=2, bos_token_id=2, eos_token_id=3, mask_token_id=4
            )
        )
    return saved(tmp_path, tiny_encoder, model)


def test_without_dropout_logits_and_gradients_are_those_of_the_encoders_own_attention(folder: Path) -> None:
    net = built(folder, dropout=0.0)
    own_logits, own_gradients = outcome(net)
    with cpu_training.fast(net):
        assert net.encoder.config._attn_implementation == cpu_training.ATTENTION
        logits, gradients = outcome(net)
    torch.testing.assert_close(logits, own_logits, atol=1e-6, rtol=1e-4)
    assert gradients.keys() == own_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, own_gradients[name], atol=1e-6, rtol=1e-3, msg=name)


def test_features_under_dropout_have_the_mean_and_spread_of_torchs(tiny_encoder: Path) -> None:
    net, inputs, draws = built(tiny_encoder, dropout=0.2), batch(), 400

    def moments() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        with torch.no_grad():
            features = torch.stack([net.features(inputs) for _ in range(draws)]).double()
        return features.mean(0), features.var(0)

    expected, spread = moments()
    with cpu_training.fast(net):
        found, own_spread = moments()
    assert not found.equal(expected), "other masks were drawn"
    assert 0.85 < float(own_spread.mean() / spread.mean()) < 1.18
    z = (found - expected) / ((spread + own_spread) / draws).sqrt()
    assert float(z.square().mean()) < 2, "1 where both means are the same"


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.00001, 0.999])
def test_a_mask_drops_the_share_asked_for_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    mask = cpu_training.keep_mask((401, 2503), probability)
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
    first, second = cpu_training.keep_mask((3, 5), 0.5), cpu_training.keep_mask((3, 5), 0.5)
    torch.manual_seed(7)
    assert cpu_training.keep_mask((3, 5), 0.5).equal(first)
    assert not first.equal(second)


def test_nothing_is_dropped_in_evaluation_and_everything_is_put_back(tiny_encoder: Path) -> None:
    net = built(tiny_encoder, dropout=0.3)
    own = net.encoder.config._attn_implementation
    with cpu_training.fast(net.eval()):
        torch.testing.assert_close(net(batch()), net(batch()), atol=0, rtol=0)
    with pytest.raises(KeyError), cpu_training.fast(net):
        raise KeyError
    assert net.encoder.config._attn_implementation == own
    assert not any("forward" in vars(module) for module in net.modules())


def test_an_encoder_with_attention_of_its_own_keeps_it(t5: Path) -> None:
    net = built(t5, dropout=0.4)
    own = net.encoder.config._attn_implementation
    with cpu_training.fast(net):
        assert net.encoder.config._attn_implementation == own
        assert any(isinstance(m, nn.Dropout) and "forward" in vars(m) for m in net.modules())
        _, gradients = outcome(net)
    assert gradients
