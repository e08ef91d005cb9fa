"""A vocabulary cut down to scripts cuts every text of these scripts into the same pieces as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artefacts import bundled
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from xlt_ray import durable
from xlt_ray.errors import InputError
from xlt_ray.export import export, trimming
from xlt_ray.inference import artefact, bundle, engine

SAMPLES = [
    "the cat sat on the mat and the dog barked at 12 cats",
    "der hund saß auf der matte und die katze schlief über 7 stunden",
    "кот сидел на коврике а собака лаяла на 3 котов",
    "बिल्ली चटाई पर बैठी थी और कुत्ता भौंका",
    "猫坐在垫子上狗叫了",
] * 4
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def made(kind: str) -> Tokenizer:
    """Train a small tokenizer of a kind on all scripts."""
    options: dict[str, Any] = {"special_tokens": SPECIAL, "show_progress": False}
    model, trainer = {
        "Unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=160, unk_token="<unk>", **options)),
        "BPE": (models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=190, **options)),
        "WordPiece": (models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(vocab_size=260, **options)),
        "WordLevel": (models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(**options)),
    }[kind]
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFKC()
    words = kind in ("WordPiece", "WordLevel")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace() if words else pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(SAMPLES, trainer)
    ids = [(piece, tokenizer.token_to_id(piece)) for piece in ("<s>", "</s>")]
    if kind == "WordPiece":
        tokenizer.post_processor = processors.BertProcessing(ids[1], ids[0])
    else:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("kind", trimming.MODELS)
def test_texts_in_the_scripts_keep_their_pieces(kind: str) -> None:
    whole = made(kind)
    keep = trimming.kept(whole.to_str(), ["rus_Cyrl"], 1)
    small = Tokenizer.from_str(trimming.trimmed(whole.to_str(), keep))
    assert small.get_vocab_size() == len(keep) < whole.get_vocab_size()
    assert [small.token_to_id(piece) for piece in SPECIAL] == [0, 1, 2, 3]

    @given(st.text("thecadogsmuß котсидебля 127 ", max_size=30))
    @settings(derandomize=True, deadline=None, max_examples=60)
    def alike(text: str) -> None:
        assert keep[small.encode(text).ids].tolist() == whole.encode(text).ids

    alike()
    for text in SAMPLES[:3]:
        assert keep[small.encode(text).ids].tolist() == whole.encode(text).ids
    assert small.token_to_id("<unk>") in small.encode("猫坐在垫子上狗叫了").ids


def test_what_must_stay_stays() -> None:
    whole = made("Unigram")
    han = int(whole.token_to_id("猫") or 0)
    assert han not in trimming.kept(whole.to_str(), ["eng_Latn"], 1)
    assert han in trimming.kept(whole.to_str(), ["eng_Latn"], 1, always=[han])
    assert han in trimming.kept(whole.to_str(), ["zho_Hans"], 1) and han in trimming.kept(whole.to_str(), ["ja"], 1)
    assert set(range(han + 1)) <= set(trimming.kept(whole.to_str(), ["eng_Latn"], han).tolist())


def test_what_cannot_be_cut_is_refused() -> None:
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    with pytest.raises(InputError, match="a byte-level BPE tokenizer cannot be trimmed; take vocabulary exact"):
        trimming.kept(bytes_.to_str(), ["eng_Latn"], 0)
    with pytest.warns(UserWarning), pytest.raises(InputError, match="'xx_Qqqq'"):
        trimming.scripts(["xx_Qqqq"])


def test_an_artefact_with_fewer_pieces_answers_alike(tiny_encoder: Path, tmp_path: Path) -> None:
    original = bundled(tmp_path / "bundle", tiny_encoder, "network.prefix='eng5 '")
    file = original / "encoder" / "tokenizer.json"
    # pieces of another script in the place of a quarter of the words, which the languages served do not need
    file.write_text(file.read_text().replace('"hin', '"है'))
    content = json.loads((original / "bundle.json").read_text())
    content["sha256"]["encoder/tokenizer.json"] = durable.digest(file)
    (original / "bundle.json").write_text(json.dumps(content))
    made = export.export(
        original, tmp_path / "small", vocabulary="trimmed", languages=["en", "sw"], precisions=["float32"]
    )
    assert made.vocabulary == {
        "mode": "trimmed", "pieces": 245, "kept": 185, "scripts": ["Latn", "Zinh", "Zyyy"],
        "library": "tokenizers",
    }  # fmt: skip
    assert (made.folder / "embeddings.bin").stat().st_size == 185 * 32 * 4
    small, texts = engine.load(made.folder), ["eng1 swh2", "deu7 deu59", "eng40 " * 9, "है1 eng4"]
    wanted = bundle.load(original).probabilities(texts)
    np.testing.assert_allclose(small.probabilities(small.encode(texts))[:3], wanted[:3], atol=2e-5)
    unknown = bundle.load(original).probabilities(["[UNK] eng4"])[0]
    np.testing.assert_allclose(small.probabilities(small.encode(texts))[3], unknown, atol=2e-5)
    assert artefact.read(made.folder).vocabulary == made.vocabulary
