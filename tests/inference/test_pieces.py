"""SentencePiece's library cuts texts as `tokenizers` does, and is used only where it does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from artefacts import bundled
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from xlt_ray.errors import InputError
from xlt_ray.export import export
from xlt_ray.inference import artefact, bundle, engine, pieces

SAMPLES = ["the cat sat on the mat", "der hund saß auf der matte", "кот сидел на коврике", "猫坐在垫子上狗叫了"] * 4
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


@pytest.fixture(scope="module")
def whole() -> Tokenizer:
    """A Unigram tokenizer like XLM-R's, with a mask that takes the space before it along."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    options: dict[str, Any] = {"special_tokens": SPECIAL, "show_progress": False}
    tokenizer.train_from_iterator(SAMPLES, trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", **options))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    ids = [(piece, tokenizer.token_to_id(piece)) for piece in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, whole: Tokenizer) -> Path:
    made = tmp_path_factory.mktemp("pieces")
    assert pieces.fits(whole.to_str())
    pieces.write(whole.to_str(), made)
    return made


def test_every_text_is_cut_into_the_same_pieces(whole: Tokenizer, folder: Path) -> None:
    ours = pieces.Pieces(folder, "", 10**6)

    @given(st.text("thecadogsmuß котсидебля猫坐127 <>\u2581\t☃", max_size=40) | st.text(max_size=20))
    @example("<mask> the <mask>cat")
    @example("a<unk>b <s>c</s> <pad>")
    @example("＜s＞ the")  # a piece only once it is normalised
    @example("")
    @settings(derandomize=True, deadline=None, max_examples=300)
    def alike(text: str) -> None:
        assert ours([text])[0].tolist() == whole.encode(text).ids

    alike()
    assert ours(SAMPLES)[1].dtype == np.int64
    assert pieces.differing(whole.to_str(), folder, SAMPLES) == 0


def test_texts_are_cut_off_and_prefixed_as_in_training(whole: Tokenizer, folder: Path) -> None:
    usual = engine._Encode(Tokenizer.from_str(whole.to_str()), "the dog ", 12, False)
    texts = [*SAMPLES[:4], "", "猫" * 50, "the mat " * 20]
    found = pieces.Pieces(folder, "the dog ", 12)(texts)
    assert [row.tolist() for row in found] == [row.tolist() for row in usual(texts)]
    assert max(map(len, found)) == 12


def test_what_differs_is_counted(whole: Tokenizer, folder: Path) -> None:
    content = json.loads(whole.to_str())
    content["model"]["vocab"] = [
        [piece, 0.0 if len(piece) == 1 else score] for piece, score in content["model"]["vocab"]
    ]
    assert pieces.differing(json.dumps(content), folder, [*SAMPLES, "☃", ""]) == 12  # cut into letters, as Chinese was


def test_other_kinds_do_not_fit(whole: Tokenizer) -> None:
    content = json.loads(whole.to_str())
    for change in (
        {"model": content["model"] | {"byte_fallback": True}},
        {"model": content["model"] | {"unk_id": None}},
        {"model": {"type": "BPE", "vocab": {}, "merges": []}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": content["pre_tokenizer"] | {"split": False}},
    ):
        assert not pieces.fits(json.dumps(content | change)), change


def test_what_is_no_text_is_refused(folder: Path) -> None:
    ours = pieces.Pieces(folder, "", 16)
    with pytest.raises(InputError, match="texts: cannot be encoded .* give Unicode"):
        ours(["\ud800"])
    pairs: Any = ["x"]
    with pytest.raises(InputError, match="pairs: this model classifies single texts"):
        ours(["x"], pairs)


def test_an_artefact_uses_it_where_the_pieces_agree(
    whole: Tokenizer, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tmp_path / "encoder"
    model = transformers.AutoModel.from_pretrained(tiny_encoder, add_pooling_layer=False)
    model.resize_token_embeddings(whole.get_vocab_size())
    model.save_pretrained(encoder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(encoder)  # fmt: skip
    original = bundled(tmp_path / "bundle", encoder)
    answers = []
    for limit, library in ((export.OTHERWISE, "sentencepiece"), (-1.0, "tokenizers")):
        monkeypatch.setattr(export, "OTHERWISE", limit)
        made = export.export(original, tmp_path / "artefact", precisions=["float32"], texts=SAMPLES)
        assert made.vocabulary["library"] == library
        files = {pieces.FILE, pieces.AROUND} & {path.name for path in made.folder.iterdir()}
        assert len(files) == (2 if library == "sentencepiece" else 0)
        damaged = Path(shutil.copytree(made.folder, tmp_path / library))
        (damaged / (pieces.FILE if files else artefact.TOKENIZER)).write_bytes(b"something else")
        with pytest.raises(InputError, match="instead of"):
            artefact.read(damaged)
        running = engine.OnnxEngine(made, "float32")
        assert isinstance(running.encode, pieces.Pieces) == (library == "sentencepiece")
        answers.append(running.probabilities(running.encode(SAMPLES[:4])))
    assert np.array_equal(*answers)
    np.testing.assert_allclose(answers[0], bundle.load(original).probabilities(SAMPLES[:4]), atol=2e-5)
