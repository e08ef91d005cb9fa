"""LoRA: what is trained, how small a bundle is, that merging changes no answer, and which encoders it goes with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_encoder
from peft.tuners.tuners_utils import BaseTunerLayer
from test_catalogue import run_of

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.inference import bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model import collate, network
from xlt_ray.model.network import Network, trained
from xlt_ray.techniques import lora
from xlt_ray.training import checks, loop

Settings = dict[str, Any]
TEXTS = ["eng1 eng2 eng3", "swh4 swh50 swh7", "hin30"]


def adapted(settings: Settings, init: Path | None = None, **parameters: Any) -> Experiment:
    changed = copy.deepcopy(settings)
    changed["training"] |= {"epochs": 1}
    changed["network"] |= {"init": str(init)} if init else {}
    return build({**changed, "techniques": [{"lora": parameters}]})


def built(experiment: Experiment) -> Network:
    return techniques.network(techniques.build(experiment), experiment, 3, ())[0]


def matrices(net: Network) -> dict[str, torch.Tensor]:
    return lora.Lora().state(net)


def save(experiment: Experiment, folder: Path) -> Bundle:
    run = run_of(experiment)
    loop.fit(run)
    identity = network.build(experiment.network, 3, 0).identity
    made = Bundle(run.network.eval(), run.tokenize, run.setup.corpus.labels, experiment, None)
    bundle.save(folder, made, identity)
    return made


def answers(net: Network, tokenize: collate.Tokenize) -> np.ndarray:
    (batch,) = [batch for _, batch in collate.budgeted(tokenize(TEXTS), 10**6, tokenize.tokenizer.pad_token_id)]
    with torch.inference_mode():
        return net.eval()(batch).numpy()


# what is trained


def test_only_the_matrices_and_the_head_are_trained(tiny_settings: Settings) -> None:
    run = run_of(adapted(tiny_settings))
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    loop.fit(run)
    moved = {name for name, tensor in run.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"head.weight", "head.bias"} <= moved
    matrices = moved - {"head.weight", "head.bias"}
    assert len(matrices) == 2 * 2 * 2  # A and B of queries and values in two layers
    assert all("lora_" in name and (".query." in name or ".value." in name) for name in matrices)
    assert set(trained(run.network)) == moved  # so a checkpoint holds nothing else


def test_at_the_start_nothing_is_added(tiny_settings: Settings) -> None:
    run = run_of(adapted(tiny_settings))
    plain = network.build(run.experiment.network, 3, 0).network
    assert np.array_equal(answers(run.network, run.tokenize), answers(plain, run.tokenize))


def test_matrices_have_the_rank_that_is_asked_for_and_an_address(tiny_settings: Settings) -> None:
    one = matrices(built(adapted(tiny_settings, rank=3)))
    torch.manual_seed(123)  # whatever state the generator is in
    state = torch.get_rng_state()
    again = matrices(built(adapted(tiny_settings, rank=3)))
    assert torch.equal(torch.get_rng_state(), state)
    assert {tuple(tensor.shape) for tensor in one.values()} == {(3, 32), (32, 3)}
    assert all(torch.equal(one[name], again[name]) for name in one)
    other = matrices(built(adapted({**tiny_settings, "seed": 1}, rank=3)))
    assert any(not torch.equal(one[name], other[name]) for name in one)


# which encoders and layers


def layers(net: Network) -> set[str]:
    return {name.rpartition(".")[2] for name, m in net.encoder.named_modules() if isinstance(m, BaseTunerLayer)}


def test_each_family_of_encoders_is_adapted(tiny_settings: Settings, tiny_encoder: Path, t5: Path) -> None:
    assert layers(built(adapted(tiny_settings))) == {"query", "value"}
    assert layers(built(adapted(tiny_settings, t5))) == {"q", "v"}


@pytest.mark.parametrize("merge", [False, True])
def test_a_t5_is_trained_and_comes_back(tiny_settings: Settings, t5: Path, tmp_path: Path, merge: bool) -> None:
    made = save(adapted(tiny_settings, t5, merge=merge), tmp_path / "bundle")
    loaded = bundle.load(tmp_path / "bundle")
    assert np.array_equal(loaded.probabilities(TEXTS), made.probabilities(TEXTS))
    assert bool(matrices(loaded.network)) is not merge


def test_all_linear_layers_or_named_ones(tiny_settings: Settings) -> None:
    assert layers(built(adapted(tiny_settings, layers="all-linear"))) == {"query", "key", "value", "dense"}
    assert layers(built(adapted(tiny_settings, layers=["key"]))) == {"key"}


def test_layers_that_are_not_there_are_refused(tiny_settings: Settings, t5: Path) -> None:
    with pytest.raises(InputError, match=r"lora\.layers: \['nothing'\]: .*give names of layers of bert"):
        built(adapted(tiny_settings, layers=["nothing"]))
    with pytest.raises(InputError, match=r"lora\.layers: \['query'\]: .*give names of layers of mt5"):
        built(adapted(tiny_settings, t5, layers=["query"]))


def test_an_encoder_whose_attention_is_not_known_is_refused(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(lora.ATTENTION, "bert")
    with pytest.raises(InputError, match=r"lora\.layers: attention of a bert encoder is not known; give the names"):
        built(adapted(tiny_settings))


def test_a_probe_is_refused(tiny_settings: Settings) -> None:
    settings = copy.deepcopy(tiny_settings)
    settings["training"] |= {"method": "probe"}
    with pytest.raises(InputError, match=r"techniques\.lora: has no effect with training\.method: probe"):
        checks.prepare(build({**settings, "techniques": ["lora"]}))


# bundles


def test_a_bundle_holds_the_change_and_no_encoder(tiny_settings: Settings, tmp_path: Path) -> None:
    made = save(adapted(tiny_settings), tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "encoder").exists()
    files = {file.name for file in (tmp_path / "bundle").iterdir()}
    assert files == {"bundle.json", "changes.safetensors", "head.safetensors"}
    assert sum(file.stat().st_size for file in (tmp_path / "bundle").iterdir()) < 30_000
    loaded = bundle.load(tmp_path / "bundle")
    assert np.array_equal(loaded.probabilities(TEXTS), made.probabilities(TEXTS))


def test_changes_belong_to_an_encoder_of_as_few_layers(tiny_settings: Settings, tmp_path: Path) -> None:
    asked = adapted(tiny_settings)
    fewer = asked.model_copy(update={"network": asked.network.model_copy(update={"layers": 1})})
    assert fewer.key() != asked.key()
    made = save(fewer, tmp_path / "bundle")
    content = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert content["encoder"] == network.fingerprint(fewer.network) != network.fingerprint(asked.network)
    loaded = bundle.load(tmp_path / "bundle")
    assert np.array_equal(loaded.probabilities(TEXTS), made.probabilities(TEXTS))


def test_merging_leaves_plain_layers_that_answer_the_same(tiny_settings: Settings) -> None:
    run = run_of(adapted(tiny_settings, rank=4, alpha=32))
    plain = network.build(run.experiment.network, 3, 0).network
    loop.fit(run)
    before = answers(run.network, run.tokenize)
    lora.Lora().merge_into_encoder(run.network)
    assert not matrices(run.network) and not layers(run.network)
    assert [name for name, _ in run.network.named_parameters()] == [name for name, _ in plain.named_parameters()]
    np.testing.assert_allclose(answers(run.network, run.tokenize), before, atol=1e-5)
    plain.head.load_state_dict(run.network.head.state_dict())  # the change is more than that of the head
    assert np.abs(answers(plain, run.tokenize) - before).max() > 1e-3


def test_another_encoder_in_its_place_is_refused(tiny_settings: Settings, tmp_path: Path) -> None:
    encoder = save_encoder(tmp_path / "encoder")
    save(adapted(tiny_settings, encoder), tmp_path / "bundle")
    bundle.load(tmp_path / "bundle")
    was = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["encoder"]
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-6}))
    now = network.build(adapted(tiny_settings, encoder).network, 3, 0).identity
    with pytest.raises(InputError) as error:
        bundle.load(tmp_path / "bundle")
    assert was != now and f"holds changes to the encoder {was}, but {encoder} is now {now}" in str(error.value)


def test_changes_that_were_damaged_are_refused(tiny_settings: Settings, tmp_path: Path) -> None:
    save(adapted(tiny_settings), tmp_path / "bundle")
    file = tmp_path / "bundle" / "changes.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(InputError, match=r"changes\.safetensors: not the file that was saved"):
        bundle.load(tmp_path / "bundle")


def test_merge_writes_a_whole_bundle_that_another_run_goes_on_from(tiny_settings: Settings, tmp_path: Path) -> None:
    whole = save(adapted(tiny_settings, merge=True), tmp_path / "whole")
    assert (tmp_path / "whole" / "encoder").is_dir() and not (tmp_path / "whole" / "changes.safetensors").exists()
    assert np.array_equal(bundle.load(tmp_path / "whole").probabilities(TEXTS), whole.probabilities(TEXTS))
    for chosen in ([], ["lora"]):
        settings = copy.deepcopy(tiny_settings)
        settings["network"] |= {"init": str(tmp_path / "whole"), "head": "bundle"}
        run = run_of(build({**settings, "techniques": chosen}))
        np.testing.assert_allclose(answers(run.network, run.tokenize), answers(whole.network, run.tokenize), atol=1e-6)


def test_a_bundle_of_changes_alone_is_no_place_to_start_from(tiny_settings: Settings, tmp_path: Path) -> None:
    save(adapted(tiny_settings), tmp_path / "changes")
    with pytest.raises(
        InputError, match=r"holds only changes to an encoder; train it again with techniques.lora.merge=true"
    ):
        built(adapted(tiny_settings, tmp_path / "changes"))
