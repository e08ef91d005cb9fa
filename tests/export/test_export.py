"""A bundle exported answers as it does in torch, whatever the encoder, and the folder appears whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from artefacts import LABELS, TEXTS, bundled
from conftest import saved

from xlt_ray.errors import InputError
from xlt_ray.export import export
from xlt_ray.inference import artefact, bundle, engine


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    return bundled(tmp_path_factory.mktemp("export") / "bundle", tiny_encoder, "network.prefix='eng5 '")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("export") / "deep" / "artefact"
    export.export(tiny_bundle, folder, texts=TEXTS)
    return folder


CONFIG: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {
    "xlm-roberta": lambda: transformers.XLMRobertaModel(
        transformers.XLMRobertaConfig(**CONFIG, intermediate_size=64, max_position_embeddings=66, pad_token_id=1),
        add_pooling_layer=False,
    ),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=300, dim=32, n_layers=2, n_heads=2, hidden_dim=64, pad_token_id=0)
    ),
    "mt5": lambda: transformers.MT5EncoderModel(
        transformers.MT5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0)
    ),
    "modernbert": lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(**CONFIG, intermediate_size=64, pad_token_id=0)
    ),
}
TRACED = ("mt5", "modernbert")  # by torch.onnx, which takes seconds


def same_answers(folder: Path, original: Path) -> None:
    """Compare an artefact's float32 answers with those of torch: padded, single, and in another order."""
    onnx, whole = engine.load(folder, precision="float32", threads=1), bundle.load(original)
    wanted = whole.probabilities(TEXTS)
    assert np.ptp(wanted, axis=0).max() > 0.01
    rows = onnx.encode(TEXTS)
    np.testing.assert_allclose(onnx.probabilities(rows), wanted, atol=2e-5)
    np.testing.assert_allclose(onnx.probabilities(rows[::-1])[::-1], wanted, atol=2e-5)
    for row, one in zip(rows, wanted, strict=True):
        np.testing.assert_allclose(onnx.probabilities([row])[0], one, atol=2e-5)


def test_a_bert_answers_as_in_torch(exported: Path, tiny_bundle: Path) -> None:
    same_answers(exported, tiny_bundle)


@pytest.mark.parametrize(
    "family", ["xlm-roberta", "distilbert", *(pytest.param(k, marks=pytest.mark.slow) for k in TRACED)]
)
def test_other_encoders_answer_as_in_torch(family: str, tiny_encoder: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = saved(tmp_path / "encoder", tiny_encoder, OTHERS[family]())
    pooling = "network.pooling=first" if family == "distilbert" else "network.pooling=mean"
    original = bundled(tmp_path / "bundle", encoder, pooling)
    made = export.export(original, tmp_path / "artefact", texts=TEXTS)
    same_answers(made.folder, original)
    assert {path.name for path in made.folder.iterdir()} == {
        "artefact.json", "embeddings.bin", "model.float32.onnx", "model.int8.onnx", "tokenizer.json",
        "weights.float32.bin", "weights.int8.bin",
    }  # fmt: skip
    assert (made.folder / "embeddings.bin").stat().st_size == 300 * 32 * 4
    rough = engine.OnnxEngine(made, "int8", 1)
    precise = rough.logits(rough.precise, rough.encode(TEXTS))
    off = np.abs(rough.logits(rough.session, rough.encode(TEXTS)) - precise)
    assert 0 < off.mean() < 0.1 * precise.std()


def test_pairs_are_told_apart_as_in_torch(exported: Path, tiny_bundle: Path) -> None:
    onnx, whole = engine.load(exported, precision="float32"), bundle.load(tiny_bundle)
    found = onnx.probabilities(onnx.encode(TEXTS, TEXTS[::-1]))
    np.testing.assert_allclose(found, whole.probabilities(TEXTS, TEXTS[::-1]), atol=2e-5)
    assert np.abs(found - onnx.probabilities(onnx.encode(TEXTS))).max() > 1e-3


def test_int8_asks_float32_where_it_is_in_doubt(exported: Path) -> None:
    found = artefact.read(exported)
    assert found.precisions == ("float32", "int8") and 0 < found.margin < 1
    exact = engine.OnnxEngine(found, "float32")
    rows = exact.encode([f"eng{i} swh{j}" for i in range(60) for j in range(0, 60, 6)])
    wanted = exact.probabilities(rows)
    rough = engine.OnnxEngine(found, "int8")
    near = np.quantile(engine.margins(rough.logits(rough.session, rows)), 0.25)
    doubting = engine.OnnxEngine(replace(found, margin=float(near)), "int8")
    assert (doubting.probabilities(rows).argmax(1) == wanted.argmax(1)).mean() > 0.99
    assert doubting.asked == len(rows) // 4
    assert (doubting.probabilities(rows) == wanted).all(1).sum() >= len(rows) // 4


def test_exporting_again_gives_the_same_networks_and_replaces_what_was_there(
    exported: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    first = export.export(tiny_bundle, again, precisions=["float32"])
    assert first.precisions == ("float32",)
    export.export(tiny_bundle, again, texts=TEXTS)
    for file in exported.iterdir():
        assert file.name == "artefact.json" or file.read_bytes() == (again / file.name).read_bytes(), file.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]
    assert artefact.read(again).digest == artefact.bundle_digest(tiny_bundle)


def test_what_a_bundle_says_of_itself_is_kept(exported: Path, tiny_bundle: Path) -> None:
    found = artefact.read(exported)
    assert (found.labels, found.prefix, found.max_length, found.pairs) == (LABELS, "eng5 ", 32, False)
    assert found.vocabulary == {"mode": "exact", "pieces": 245, "kept": 245, "library": "tokenizers"}
    assert found.provenance["name"] == "tiny" and found.provenance["oracle"] is False
    assert found.languages == {}
    assert found.encoder == artefact.verify_bundle(tiny_bundle)["encoder"]


def test_a_failing_export_leaves_what_was_there_and_nothing_beside(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.export(tiny_bundle, tmp_path / "artefact", precisions=["float32"])
    monkeypatch.setattr(export, "ALIKE", -1.0)
    with pytest.raises(InputError, match="BertModel: exported, it answers otherwise.* serve the bundle with torch"):
        export.export(tiny_bundle, tmp_path / "artefact", precisions=["float32"])
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]
    artefact.read(tmp_path / "artefact")


def test_what_a_killed_export_left_is_removed_and_nothing_else(tiny_bundle: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    mine = (f".artefact.{os.getpid()}.0123abcd", ".artefact.of.mine", ".artefact.77.notes")
    for name in (f".artefact.{gone.pid}.0123abcd", f".artefact.{gone.pid}.old", *mine):
        (tmp_path / name).mkdir()
    export.export(tiny_bundle, tmp_path / "artefact", precisions=["float32"])
    assert {path.name for path in tmp_path.iterdir()} == {"artefact", *mine}


def test_invalid_arguments_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="mine: holds something that is not an artefact; name another folder"):
        export.export(tiny_bundle, tmp_path / "mine")
    with pytest.raises(InputError, match="precisions: 'int4'; give some of float32, int8"):
        export.export(tiny_bundle, tmp_path / "x", precisions=["int4"])
    with pytest.raises(InputError, match="not a bundle"):
        export.export(tmp_path / "mine", tmp_path / "x")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.long
def test_the_bundled_encoder_in_8_bits_and_with_fewer_pieces_answers_alike(tmp_path: Path) -> None:
    original = bundled(tmp_path / "bundle", "bundled:e5-small")
    texts = ["turn on the light", "mach das Licht im Flur an", "quelle heure est-il ?", "abre la puerta", "1 2 3", ""]
    made = export.export(original, tmp_path / "artefact", vocabulary="trimmed", languages=["en", "de"], texts=texts)
    assert made.vocabulary["pieces"] == 250_002 and made.vocabulary["kept"] < 125_000
    whole, onnx = bundle.load(original), engine.OnnxEngine(made, "float32")
    np.testing.assert_allclose(onnx.probabilities(onnx.encode(texts)), whole.probabilities(texts), atol=2e-5)
    rough = engine.OnnxEngine(made, "int8")
    precise, logits = (rough.logits(one, rough.encode(texts)) for one in (rough.precise, rough.session))
    assert 0 < np.abs(logits - precise).mean() < 0.1 * precise.std()
