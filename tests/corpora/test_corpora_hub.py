"""Corpora through `datasets`: saved copies of any shape, class names, and what is said where the hub is not reached."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora import loaders, soundness
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.loaders import hub
from xlt_ray.errors import InputError
from xlt_ray.languages import codes

NAMES = ["entailment", "neutral", "contradiction"]
FEATURES = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=NAMES)})
PAIRS = {"text": "premise", "text_pair": "hypothesis", "splits": {"dev": "validation"}}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Corpus]:
    def loaded(path: Any, **settings: Any) -> Corpus:
        return loaders.load(CorpusConfig(loader="hub", path=str(path), cache_dir=str(tmp_path / "cache"), **settings))

    return loaded


def rows(split: str, language: str, size: int = 6) -> Dataset:
    columns = {
        "premise": [f"{split} {language} p{n}" for n in range(size)],
        "hypothesis": [f"{split} {language} h{n}" for n in range(size)],
        "label": [n % 3 for n in range(size)],
    }
    return Dataset.from_dict(columns, features=FEATURES)


def whole(language: str) -> DatasetDict:
    return DatasetDict({split: rows(split, language) for split in ("train", "validation", "test")})


def saved(root: Path, languages: Sequence[str] = ("en", "sw")) -> Path:
    for language in languages:
        whole(language).save_to_disk(root / language)
    return root


def parquet(root: Path, languages: Sequence[str] = ("en", "sw")) -> Path:
    for language in languages:
        for split, part in whole(language).items():
            (root / language / split).mkdir(parents=True)
            part.to_parquet(root / language / split / "0000.parquet")
    return root


def refusal(load: Callable[..., Corpus], path: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **settings)
    return str(caught.value)


def labels(corpus: Corpus, split: str, language: str) -> list[str]:
    return [corpus.labels[index] for index in corpus.table(split, language)["label"].to_pylist()]


@pytest.mark.parametrize(
    "settings", [{}, {"subset": "{language}"}, {"subset": "{language}", "languages": ["sw", "en"]}]
)
def test_directories_saved_by_language_load_with_class_names(load, tmp_path: Path, settings: dict) -> None:
    corpus = load(saved(tmp_path / "nli"), **PAIRS, **settings)
    assert corpus.name == "nli"
    assert corpus.labels == tuple(sorted(NAMES))
    sizes = {split: corpus.sizes(split) for split in ("train", "dev", "test")}
    assert sizes == dict.fromkeys(("train", "dev", "test"), {"eng_Latn": 6, "swh_Latn": 6})
    assert labels(corpus, "dev", "swh_Latn") == NAMES * 2
    assert corpus.table("dev", "swh_Latn").slice(1, 1).to_pylist() == [
        {"text": "validation sw p1", "text_pair": "validation sw h1", "label": 2, "id": "dev:swh_Latn:1"}
    ]
    soundness.check(corpus, ["eng_Latn"], "all", ["eng_Latn"])


def test_one_data_set_with_a_language_column(load, tmp_path: Path) -> None:
    features = Features(
        {"text": Value("string"), "label": Value("int64"), "lang": Value("string"), "uid": Value("int32")}
    )

    def mixed(split: str, first: int) -> Dataset:
        columns = {
            "text": [f"{split} {n}" for n in range(6)],
            "label": [n % 2 for n in range(6)],
            "lang": ["en", "ha", "yo"] * 2,
            "uid": [first + n for n in range(6)],
        }
        return Dataset.from_dict(columns, features=features)

    DatasetDict({"train": mixed("train", 0), "test": mixed("test", 6)}).save_to_disk(tmp_path / "mixed")
    corpus = load(tmp_path / "mixed", language="lang", id="uid")
    assert corpus.sizes("test") == {"eng_Latn": 2, "hau_Latn": 2, "yor_Latn": 2}
    assert corpus.table("test", "yor_Latn").select(["text", "id"]).to_pylist() == [
        {"text": "test 2", "id": "8"},
        {"text": "test 5", "id": "11"},
    ]
    assert corpus.labels == ("0", "1")
    assert load(tmp_path / "mixed", language="lang", languages={"yor_Latn": "yo"}).languages("test") == ("yor_Latn",)


def test_a_directory_of_parquet_files_as_the_hub_converts_them(load, tmp_path: Path) -> None:
    settings = PAIRS | {"subset": "{language}", "languages": ["en", "sw"], "revision": "refs/convert/parquet"}
    corpus = load(parquet(tmp_path / "nli"), **settings)
    assert corpus.sizes("test") == {"eng_Latn": 6, "swh_Latn": 6}
    assert labels(corpus, "test", "eng_Latn") == NAMES * 2, "class names survive in the files"


def test_a_directory_with_subsets_declared_in_its_card(load, tmp_path: Path) -> None:
    root = parquet(tmp_path / "nli", ["en", "sw", "all_languages"])
    subsets = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}/*\n" for split in ("train", "validation", "test"))
        for name in ("en", "sw", "all_languages")
    )
    (root / "README.md").write_text(f"---\nconfigs:\n{subsets}---\n")
    corpus = load(root, **PAIRS, subset="{language}", languages=["en", "sw"])
    assert corpus.languages("train") == ("eng_Latn", "swh_Latn")
    codes.resolve.cache_clear()  # it warns of a name once
    with pytest.warns(UserWarning, match="all_languages"):
        found = load(root, **PAIRS, subset="{language}")
    assert found.languages("train") == ("all_languages", "eng_Latn", "swh_Latn")
    message = refusal(load, root, **PAIRS, subset="{language}", languages=["en", "yo"])
    assert "subset yo: ValueError: BuilderConfig 'yo' not found" in message
    assert "correct corpus.subset, or choose languages that it has" in message
    assert "matches none of the subsets en, sw, all_languages" in refusal(load, root, **PAIRS, subset="x-{language}")


def test_a_label_of_minus_one_is_no_label(load, tmp_path: Path) -> None:
    test = Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [-1]}, features=FEATURES)
    DatasetDict({"train": rows("train", "en"), "test": test}).save_to_disk(tmp_path / "en")
    corpus = load(tmp_path, text="premise", text_pair="hypothesis")
    with pytest.raises(InputError, match=r"en, test, test, eng_Latn, row test:eng_Latn:0: no label; label it"):
        soundness.check(corpus, ["eng_Latn"])


def test_a_selection_of_rows_is_respected(load, tmp_path: Path) -> None:
    part = DatasetDict({"test": rows("test", "en", size=100).select([7, 3])})
    part.save_to_disk(tmp_path / "en")
    corpus = load(tmp_path, text="premise")
    assert corpus.table("test", "eng_Latn")["text"].to_pylist() == ["test en p7", "test en p3"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"splits": {}}, "nli/en: no split dev, but validation; set corpus.splits.dev=validation"),
        (
            {"splits": {"train": "a", "dev": "b", "test": "c"}},
            "nli/en: the splits are train, validation, test and none of a, b, c; set corpus.splits.train",
        ),
        (
            {"label": "lable"},
            "sw, validation: no column 'lable' for corpus.label; it has premise, hypothesis, label",
        ),
        ({"languages": ["en", "yo"]}, "corpus.languages: yo not among those of corpus.path"),
        ({"subset": "nothing"}, "nothing tells the language of a row; set corpus.language to the column that holds it"),
    ],
)
def test_bad_settings_are_refused_with_a_remedy(load, tmp_path: Path, settings: dict, expected: str) -> None:
    root = saved(tmp_path / "nli")
    if "subset" in settings:
        root = parquet(tmp_path / "other")
    assert expected in refusal(load, root, **(PAIRS | settings))


def test_a_table_without_splits_is_refused(load, tmp_path: Path) -> None:
    rows("train", "en").save_to_disk(tmp_path / "en")
    assert "one table without splits; save a DatasetDict whose splits are called train, dev, test" in refusal(
        load, tmp_path
    )


def test_a_structured_column_is_refused(load, tmp_path: Path) -> None:
    part = Dataset.from_dict({"text": [{"en": "a", "sw": "b"}], "label": ["x"]})
    DatasetDict({"test": part}).save_to_disk(tmp_path / "en")
    assert "column 'text' (corpus.text) holds struct<" in (message := refusal(load, tmp_path))
    assert "which is no text; store it as text, or name another column" in message


def test_without_a_network_the_remedy_is_named(load) -> None:
    for settings in ({"languages": ["en"]}, {}):
        message = refusal(load, "someone/something", subset="{language}", **settings)
        assert message.startswith("corpus.path someone/something, subset ")
        assert "save the data set elsewhere with save_to_disk, copy the directory here" in message


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            RuntimeError("Dataset scripts are no longer supported, but found x.py"),
            "set corpus.revision=refs/convert/parquet",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"),
            "check the id and corpus.revision; for a",
        ),
        (ValueError("BuilderConfig 'x' not found. Available: ['y']"), "correct corpus.subset, or choose languages"),
        (OSError("disk on fire"), "OSError: disk on fire; check corpus.path, corpus.subset and corpus.revision"),
    ],
)
def test_what_datasets_raises_is_explained(
    load, monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(hub.datasets, "load_dataset", fail)
    assert remedy in refusal(load, "a/b", subset="{language}", languages=["en"])


def test_a_commit_is_fetched_once(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []

    def fetch(path: str, name: str, revision: str) -> DatasetDict:
        asked.append((path, name, revision))
        return whole(name)

    monkeypatch.setattr(hub.datasets, "load_dataset", fetch)
    settings = PAIRS | {"subset": "{language}", "languages": ["en", "sw"], "revision": "0123456789" * 4}
    first = load("someone/nli", **settings)
    assert asked == [("someone/nli", name, "0123456789" * 4) for name in ("en", "sw")]
    assert load("someone/nli", **settings).fingerprint == first.fingerprint
    assert len(asked) == 2, "the conversion is enough"
    load("someone/nli", **(settings | {"revision": "main"}))
    assert len(asked) == 4, "a branch may have moved on"


def _load(root: Path, cache: Path, answers: Any) -> None:
    datasets.disable_progress_bars()
    corpus = loaders.load(CorpusConfig(loader="hub", path=str(root), cache_dir=str(cache), **PAIRS))
    answers.put(corpus.fingerprint)


def test_processes_share_one_conversion(tmp_path: Path) -> None:
    root = saved(tmp_path / "nli")
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    workers = [spawn.Process(target=_load, args=(root, tmp_path / "cache", answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert found[0] == found[1]
    assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 1


def test_many_rows_stay_on_disk(load, tmp_path: Path) -> None:
    DatasetDict({"train": rows("train", "en", size=150_000)}).save_to_disk(tmp_path / "en")
    before = pa.total_allocated_bytes()
    corpus = load(tmp_path, text="premise", text_pair="hypothesis")
    assert corpus.sizes("train") == {"eng_Latn": 150_000}
    assert corpus.table("train", "eng_Latn").nbytes > 8_000_000
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_the_conversion_is_described(load, tmp_path: Path) -> None:
    load(saved(tmp_path / "nli"), **PAIRS)
    (about,) = (tmp_path / "cache" / "corpora").glob("*/corpus.json")
    assert json.loads(about.read_text())["labels"] == sorted(NAMES)
