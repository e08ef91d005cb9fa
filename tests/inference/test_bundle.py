"""A bundle: all that is needed to predict, in no pickle, and refused by name where a file is not the one saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.inference import artefact, bundle, pyfunc
from xlt_ray.inference.bundle import Bundle
from xlt_ray.model import collate, encoders, network

TEXTS = ["eng1 eng2 eng3", "eng40 eng41", "swh22", "unknown words", ""]
LABELS = ("sport", "food", "travel")


def made(experiment: Experiment) -> tuple[Bundle, str]:
    """Make a bundle of an untrained network whose answers differ from text to text."""
    net, tokenize, identity = network.build(experiment.network, 3, 0)
    with torch.no_grad():
        net.head.weight *= 100
        batch = collate.pad(tokenize(TEXTS), tokenize.tokenizer.pad_token_id)
        net.head.bias -= net.head.weight @ net.eval().features(batch).mean(0)
    predictions = {
        code: Predictions(np.array([0, 1, 2] * 4), np.array([0, 1, 1] * 4), [str(i) for i in range(12)])
        for code in ("eng_Latn", "swh_Latn")
    }
    scores = metrics.score(predictions, LABELS, Roles(("eng_Latn",)), 100, 0)
    return Bundle(net.eval(), tokenize, LABELS, experiment, scores), identity


@pytest.fixture
def original(tiny_settings: dict[str, Any]) -> tuple[Bundle, str]:
    return made(build(tiny_settings, ["network.prefix='eng5 '"]))


@pytest.fixture
def saved(original: tuple[Bundle, str], tmp_path: Path) -> Path:
    folder = tmp_path / "deep" / "bundle"
    bundle.save(folder, *original)
    return folder


# the round trip


def test_a_loaded_bundle_predicts_identically_wherever_it_lies(
    original: tuple[Bundle, str], saved: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.move(saved, tmp_path / "elsewhere"))
    loaded = bundle.load(moved)
    assert np.array_equal(loaded.probabilities(TEXTS), original[0].probabilities(TEXTS))
    assert loaded.predict(TEXTS) == original[0].predict(TEXTS)
    assert len(set(loaded.predict(TEXTS))) > 1
    assert (loaded.labels, loaded.experiment, loaded.scores) == (LABELS, original[0].experiment, original[0].scores)
    assert (loaded.tokenize.prefix, loaded.tokenize.max_length) == ("eng5 ", 32)
    assert not loaded.network.training


def test_a_bundle_saved_from_a_loaded_one_is_the_same(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    bundle.save(again, bundle.load(saved), json.loads((saved / "bundle.json").read_text())["encoder"])
    one, other = (json.loads((folder / "bundle.json").read_text()) for folder in (saved, again))
    weights = [name for name in one["sha256"] if name.endswith(".safetensors")]
    assert len(weights) == 2
    assert all(one["sha256"][name] == other["sha256"][name] for name in weights)
    one.pop("sha256"), other.pop("sha256")
    assert one == other


def test_pooling_is_kept_and_scores_may_be_missing(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    first, identity = made(build(tiny_settings, ["network.pooling=first"]))
    bundle.save(tmp_path, Bundle(first.network, first.tokenize, LABELS, first.experiment, None), identity)
    loaded = bundle.load(tmp_path)
    assert loaded.scores is None and loaded.network.pooling == "first"
    assert np.array_equal(loaded.probabilities(TEXTS), first.probabilities(TEXTS))


def test_there_is_no_pickle_in_it_and_every_file_is_listed(saved: Path) -> None:
    files = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert not [
        name for name in files if Path(name).suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle", ".npy", ".npz"}
    ]
    assert {Path(name).suffix for name in files} <= {".safetensors", ".json", ".txt"}
    content = json.loads((saved / "bundle.json").read_text(encoding="utf-8"))
    assert set(content["sha256"]) == files - {"bundle.json"}
    assert content["encoder"].startswith("directory@") and content["labels"] == list(LABELS)


def test_whoever_may_read_one_file_of_it_may_read_all(saved: Path) -> None:
    modes = {str(file.relative_to(saved)): file.stat().st_mode for file in saved.rglob("*") if file.is_file()}
    assert len({*modes.values()}) == 1, modes


def test_saving_again_over_a_bundle_makes_it_the_new_one(original: tuple[Bundle, str], saved: Path) -> None:
    model, identity = original
    with torch.no_grad():
        model.network.head.bias += torch.tensor([0.0, 1000.0, 0.0])
    bundle.save(saved, model, identity)
    assert bundle.load(saved).predict(TEXTS) == ["food"] * len(TEXTS)


# answers


def test_probabilities_sum_to_one_in_the_order_of_the_texts(original: tuple[Bundle, str]) -> None:
    model = original[0]
    found = model.probabilities(TEXTS)
    assert found.shape == (len(TEXTS), 3) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.probabilities(TEXTS[::-1])[::-1], found, atol=1e-5)
    for text, row in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(model.probabilities([text])[0], row, atol=1e-5)
    assert model.predict(TEXTS) == [LABELS[i] for i in found.argmax(1)]


def test_no_text_gives_no_answer(original: tuple[Bundle, str]) -> None:
    assert original[0].probabilities([]).shape == (0, 3)
    assert original[0].predict([]) == []


def test_pairs_are_read_as_pairs(original: tuple[Bundle, str]) -> None:
    model = original[0]
    one, other = (model.probabilities(TEXTS, pairs) for pairs in (TEXTS, TEXTS[::-1]))
    assert not np.allclose(one, model.probabilities(TEXTS)) and not np.allclose(one, other)
    with torch.no_grad():
        batch = collate.pad(model.tokenize([TEXTS[0]], [TEXTS[1]]), 0)
        alone = model.network(batch).softmax(-1)[0].numpy()
    np.testing.assert_allclose(model.probabilities([TEXTS[0]], [TEXTS[1]])[0], alone, atol=1e-6)


def test_mlflows_loader_takes_lists_series_and_frames(saved: Path) -> None:
    served, model = pyfunc.load_pyfunc(str(saved)), bundle.load(saved)
    alone, paired = model.predict(TEXTS), model.predict(TEXTS, TEXTS[::-1])
    for texts in (
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        pd.Series(TEXTS, index=range(9, 14)),
        pd.DataFrame({"x": TEXTS}),
    ):
        assert served.predict(texts) == alone
    assert served.predict(TEXTS, params={}) == alone
    assert served.predict(pd.DataFrame({"text": TEXTS, "text_pair": TEXTS[::-1]})) == paired


# going on from a bundle


def test_a_bundle_as_a_beginning_carries_encoder_and_prefix_on(
    original: tuple[Bundle, str], saved: Path, tiny_settings: dict[str, Any]
) -> None:
    config = build(tiny_settings, [f"network.init={saved}"]).network
    with torch.no_grad():
        next(original[0].network.encoder.parameters()).add_(1)
    bundle.save(saved, *original)
    net, _, identity = network.build(config, 5, 0)
    assert network.prefix(config) == "eng5 "
    before = original[0].network.encoder.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.encoder.state_dict().items())
    assert net.head.weight.shape == (5, 32)
    assert identity == encoders.fingerprint(str(saved / "encoder")) != original[1]


# what is refused


def test_a_changed_truncated_or_missing_file_is_refused_by_its_name(saved: Path, tmp_path: Path) -> None:
    names = sorted(json.loads((saved / "bundle.json").read_text())["sha256"])
    assert {"head.safetensors", "encoder/model.safetensors", "encoder/tokenizer.json", "scores.json"} <= set(names)
    for number, name in enumerate(names):
        folder = Path(shutil.copytree(saved, tmp_path / str(number)))
        file, content = folder / name, (saved / name).read_bytes()
        for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:], b""):
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=f"{name}: not the file that was saved"):
                bundle.load(folder)
        file.unlink()
        with pytest.raises(InputError, match=f"{name}: missing; copy the bundle again"):
            bundle.load(folder)
        file.write_bytes(content)
        assert artefact.verify_bundle(folder)["labels"] == list(LABELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1,', "damaged .*; copy the bundle again"),
        ("[]", "format list, this version reads 1 and 2; train again"),
        ("{}", "format None, this version reads 1"),
        ('{"format": 3}', "format 3, this version reads 1 and 2"),
        ("\udcff", "damaged"),
        ('{"format": 1}', "damaged .sha256: no list of files.; copy the bundle again"),
    ],
)
def test_a_bundle_of_another_format_is_refused(saved: Path, content: str, message: str) -> None:
    (saved / "bundle.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=f"bundle.json: {message}"):
        bundle.load(saved)


def test_what_is_no_bundle_is_refused(saved: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", saved / "head.safetensors"):
        with pytest.raises(InputError, match=r"not a bundle \(no bundle.json\); give the folder `bundle`"):
            bundle.load(place)


def test_a_save_that_was_cut_short_is_no_bundle(
    original: tuple[Bundle, str], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(bundle.durable, "write", full)
    with pytest.raises(OSError, match="disk full"):
        bundle.save(saved, *original)
    with pytest.raises(InputError, match="not a bundle"):
        bundle.load(saved)
