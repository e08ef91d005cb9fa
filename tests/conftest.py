"""A tiny random encoder and a small labelled corpus on disk, learnable in seconds, that most tests share."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Tests run side by side on few cores, where threads that wait for one another in a spin take twice the time of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.languages import codes

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# A shell without job control starts `make test &` with SIGINT ignored, and what tests start would inherit that and be
# deaf to the Ctrl-C that they send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

LABELS = ("sport", "food", "travel")
LANGUAGES = ("eng_Latn", "deu_Latn", "swh_Latn", "hin_Deva")
WORDS = 60  # words a language
ON_RAY = pytest.StashKey[set[Path]]()  # files with tests that ask for `local_ray`
LONGEST = 1200  # seconds that bound a failing test of several sessions, as `timeout` in pyproject.toml does all others


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Number cases of bytes, which are no name: gzip writes the time into them, and then workers do not agree."""
    return argname if isinstance(val, bytes) else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--until",
        type=int,
        help="seconds since 1970 after which no long test begins any more, but is skipped; each number has an order of "
        "files of its own, so that none is always the last",
    )


@pytest.hookimpl(trylast=True)  # after those that are not wanted have been taken out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_ray = {item.path for item in items if "local_ray" in getattr(item, "fixturenames", ())}
    config.stash[ON_RAY] = on_ray
    items.sort(key=lambda item: item.path not in on_ray)  # one after the other, so that they can use one Ray
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONGEST))
    until = config.getoption("--until")
    if until is not None:
        files = sorted({item.path for item in items})
        random.Random(until).shuffle(files)
        items.sort(key=lambda item: files.index(item.path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.path not in item.config.stash[ON_RAY]:
        _stop_ray()
    until = item.config.getoption("--until")
    if until is not None and item.get_closest_marker("long") and time.time() > until:
        pytest.skip("no time was left to begin it")


def pytest_sessionfinish() -> None:
    _stop_ray()


def _stop_ray() -> None:
    if "ray_runs" in sys.modules:  # else it is not imported here either: many tests need no Ray
        import ray_runs

        ray_runs.stop_local_ray()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A local Ray of two CPUs; files that follow one another share it, and those that do not ask for it find none."""
    import ray_runs

    with ray_runs.local_ray():
        yield


@pytest.fixture(autouse=True)
def _every_warning_anew() -> None:
    """Let an unknown language's warning, given once a process, not depend on the tests that ran before."""
    codes.resolve.cache_clear()


def _vocabulary() -> list[str]:
    return [f"{code[:3]}{i}" for code in LANGUAGES for i in range(WORDS)]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT of random weights with a whole-word vocabulary, saved as a directory."""
    return save_encoder(tmp_path_factory.mktemp("tiny_encoder"))


def save_encoder(folder: Path) -> Path:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_vocabulary(), "[MASK]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary) - 1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertModel(config, add_pooling_layer=False)
        # the mask's is drawn last, and all others are what they were without it
        model.resize_token_embeddings(len(vocabulary), mean_resizing=False)
        model.save_pretrained(folder)
    return folder


def write_rows(file: Path, language: str, rows: int, seed: int, start: int) -> None:
    """Write rows of words whose label shows in which third of the vocabulary most of them come from."""
    rng = np.random.default_rng(seed)
    lines = ["id\ttext\tlabel"]
    third = WORDS // len(LABELS)
    for number in range(rows):
        label = number % len(LABELS)
        picks = [int(rng.integers(third)) + third * label for _ in range(int(rng.integers(3, 12)))]
        noise = [int(rng.integers(WORDS)) for _ in range(2)]
        words = " ".join(f"{language[:3]}{i}" for i in picks + noise)
        lines.append(f"{start + number}\t{words} {language[:3]}row{start + number}\t{LABELS[label]}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def saved(folder: Path, tiny_encoder: Path, model: transformers.PreTrainedModel) -> Path:
    """Save a model of another family with the tokenizer of the tiny encoder."""
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """An encoder of the T5 family, with attention of its own and dropout of 0.5."""
    config = transformers.MT5Config(
        vocab_size=300, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.5, pad_token_id=0
    )
    return saved(tmp_path_factory.mktemp("t5"), tiny_encoder, transformers.MT5EncoderModel(config))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four languages of unequal size as LANGUAGE/{train,dev,test}.tsv; row ids are shared by the languages."""
    folder = tmp_path_factory.mktemp("tiny_corpus")
    for number, (language, rows) in enumerate(zip(LANGUAGES, (160, 40, 12, 12), strict=True)):
        for split, count, start in (("train", rows, 0), ("dev", 21, 1000), ("test", 45, 2000)):
            write_rows(folder / language / f"{split}.tsv", language, count, 10 * number + start, start)
    return folder


def write_tagged(folder: Path, rows: int = 60) -> Path:
    """Write jsonl of words whose tag shows in which third of the vocabulary they are; a second one goes on inside."""
    for number, language in enumerate(("eng_Latn", "deu_Latn", "swh_Latn")):
        for split, count in (("train", rows), ("dev", 15), ("test", 30)):
            rng = np.random.default_rng([number, count])
            lines = []
            for row in range(count):
                words, tags = [], []
                for _ in range(int(rng.integers(2, 9))):
                    kind = int(rng.integers(3))
                    words.append(f"{language[:3]}{kind * 20 + int(rng.integers(20))}")
                    tag = ("O", "B-food", "B-place")[kind]
                    before = tags[-1] if tags else "O"
                    tags.append(tag.replace("B-", "I-") if tag != "O" and before[1:] == tag[1:] else tag)
                words.append(f"{language[:3]}row{split}{row}")
                tags.append("O")
                lines.append(json.dumps({"words": words, "tags": tags, "id": f"{split}{row}"}))
            file = folder / language / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tagged_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagged(tmp_path_factory.mktemp("tagged"))


@pytest.fixture
def tiny_settings(tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path) -> dict[str, object]:
    """Plain data of an experiment that trains in a second: two sources, two zero-shot targets, no tracking."""
    return {
        "name": "tiny",
        "corpus": {"loader": "files", "path": str(tiny_corpus), "id": "id", "cache_dir": str(tmp_path / "cache")},
        "sources": ["eng_Latn", "deu_Latn"],
        "network": {"init": str(tiny_encoder), "max_length": 32, "freeze": []},
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 5e-3, "precision": "float32"},
        "evaluation": {"resamples": 200},
        "tracking": {"uri": "off"},
        "storage": str(tmp_path / "runs"),
    }


@pytest.fixture
def tiny_experiment(tiny_settings: dict[str, object]) -> Experiment:
    """The same, built."""
    return build(tiny_settings)
