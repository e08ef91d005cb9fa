"""A corpus: what its parts promise, and that rows on disk cost no memory."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from xlt_ray.corpora.arrow import BATCH_ROWS, open_split, origins_of, with_origin, write_split
from xlt_ray.corpora.corpus import Corpus, refuse
from xlt_ray.errors import InputError


def rows(*texts: str, label: int = 0, start: int = 0, pair: bool = False) -> pa.Table:
    columns = {
        "text": pa.array(texts, pa.string()),
        "label": pa.array([label] * len(texts), pa.int32()),
        "id": pa.array([f"{text}-{start + number}" for number, text in enumerate(texts)], pa.string()),
    }
    return pa.table(columns | ({"text_pair": pa.array(texts, pa.string())} if pair else {}))


@pytest.fixture
def corpus() -> Corpus:
    def of(split: str) -> dict[str, pa.Table]:
        return {language: rows(f"{split} {language}") for language in ("hau_Latn", "eng_Latn", "fra_Latn")}

    return Corpus("tiny", ("no", "yes"), {split: of(split) for split in ("train", "dev", "test")})


def test_languages_are_sorted_and_sizes_counted(corpus: Corpus) -> None:
    assert corpus.languages("train") == ("eng_Latn", "fra_Latn", "hau_Latn")
    assert corpus.sizes("test") == {"eng_Latn": 1, "fra_Latn": 1, "hau_Latn": 1}
    assert Corpus("none", (), {}).languages("train") == ()


def test_an_unknown_language_is_refused_with_the_near_ones(corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"corpus tiny, train: no hau_Arab; .* such as hau_Latn"):
        corpus.table("train", "hau_Arab")


def test_training_sees_sources_alone(corpus: Corpus) -> None:
    seen = corpus.for_training(["eng_Latn"])
    assert {split: seen.languages(split) for split in ("train", "dev", "test")} == {
        "train": ("eng_Latn",),
        "dev": ("eng_Latn",),
        "test": (),
    }
    assert seen.labels == corpus.labels


def test_the_oracle_sees_dev_of_targets_but_neither_train_nor_test(corpus: Corpus) -> None:
    seen = corpus.for_training(["eng_Latn"], targets_dev=True)
    assert seen.languages("dev") == corpus.languages("dev")
    assert seen.languages("train") == ("eng_Latn",)
    assert seen.languages("test") == ()


def test_testing_sees_test_alone(corpus: Corpus) -> None:
    seen = corpus.for_testing()
    assert seen.languages("test") == corpus.languages("test")
    assert seen.languages("train") == seen.languages("dev") == ()


def test_unlabelled_text_has_no_labels_and_is_never_of_test() -> None:
    one = Corpus(
        "tiny",
        ("no", "yes"),
        {
            "train": {"eng_Latn": rows("train", pair=True), "hau_Latn": rows()},
            "dev": {"eng_Latn": rows("not this"), "hau_Latn": rows("dev")},
            "test": {code: rows("test") for code in ("eng_Latn", "hau_Latn", "zul_Latn")},
        },
    )
    texts = one.unlabelled(["eng_Latn", "hau_Latn", "zul_Latn", "yor_Latn"])
    assert {code: table.column_names for code, table in texts.items()} == {
        "eng_Latn": ["text", "text_pair"],
        "hau_Latn": ["text"],
    }
    assert {code: table["text"].to_pylist() for code, table in texts.items()} == {
        "eng_Latn": ["train"],
        "hau_Latn": ["dev"],
    }


def test_all_targets_are_what_has_a_test_split(corpus: Corpus) -> None:
    assert corpus.measured(["eng_Latn"], "all") == ("eng_Latn", "fra_Latn", "hau_Latn")
    assert corpus.measured(["eng_Latn"], ["hau_Latn"]) == ("eng_Latn", "hau_Latn")
    assert corpus.measured(["zul_Latn"], ["yor_Latn"]) == ("yor_Latn",), "a source without test is not measured"


def test_the_fingerprint_is_of_contents_and_not_of_chunks_or_place(tmp_path: Path) -> None:
    table = rows("a", "", "bc", pair=True)
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    write_split(tmp_path / "test.arrow", [("eng_Latn", with_origin(chunked, "a.tsv", 2))])
    whole = Corpus("x", ("no", "yes"), {"test": {"eng_Latn": table}})
    mapped = Corpus("y", ("no", "yes"), {"dev": {}, "test": open_split(tmp_path / "test.arrow")})
    large = Corpus("z", ("no", "yes"), {"test": {"eng_Latn": table.cast(_with_large_strings(table.schema))}})
    assert whole.fingerprint == mapped.fingerprint == large.fingerprint


def _with_large_strings(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(field.name, pa.large_string() if field.type == pa.string() else field.type) for field in schema])


@pytest.mark.parametrize(
    "other",
    [
        Corpus("x", ("no", "yes"), {"test": {"eng_Latn": rows("ab", "c")}}),
        Corpus("x", ("no", "yes"), {"test": {"eng_Latn": rows("b", "a")}}),
        Corpus("x", ("no", "yes"), {"test": {"eng_Latn": rows("a", "b", label=1)}}),
        Corpus("x", ("no", "yes"), {"test": {"eng_Latn": rows("a", "b", start=1)}}),
        Corpus("x", ("no", "yes"), {"test": {"hau_Latn": rows("a", "b")}}),
        Corpus("x", ("no", "yes"), {"dev": {"eng_Latn": rows("a", "b")}}),
        Corpus("x", ("yes", "no"), {"test": {"eng_Latn": rows("a", "b")}}),
    ],
    ids=["cut", "order", "label", "id", "language", "split", "labels"],
)
def test_the_fingerprint_changes_with_any_content(other: Corpus) -> None:
    assert Corpus("x", ("no", "yes"), {"test": {"eng_Latn": rows("a", "b")}}).fingerprint != other.fingerprint


def test_a_split_comes_back_by_language_with_its_origins(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "train.arrow"
    parts = [
        ("eng_Latn", with_origin(rows("a", "b"), "eng.tsv", 2)),
        ("hau_Latn", with_origin(rows(), "hau.tsv", 2)),
        ("eng_Latn", with_origin(rows("c"), "eng.tsv", 4)),
        ("eng_Latn", with_origin(rows("d"), "more.tsv", None)),
    ]
    write_split(file, iter(parts))
    tables = open_split(file)
    assert tables["eng_Latn"]["text"].to_pylist() == ["a", "b", "c", "d"]
    assert origins_of(tables["eng_Latn"]) == [(3, "eng.tsv", 2), (1, "more.tsv", None)], "successive lines are one run"
    assert tables["hau_Latn"].num_rows == 0, "an empty language does not vanish"
    assert [entry.name for entry in file.parent.iterdir()] == ["train.arrow"], "nothing temporary is left"


def test_a_split_that_fails_to_be_written_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield "eng_Latn", rows("a")
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError):
        write_split(tmp_path / "train.arrow", broken())
    assert list(tmp_path.iterdir()) == []


def test_mapped_rows_cost_no_memory(tmp_path: Path) -> None:
    text = "x" * 100
    table = rows(*[text] * BATCH_ROWS)
    write_split(tmp_path / "train.arrow", (("eng_Latn", table) for _ in range(5)))
    del table
    before = pa.total_allocated_bytes()
    tables = open_split(tmp_path / "train.arrow")
    part = tables["eng_Latn"].slice(BATCH_ROWS, 1000)
    assert tables["eng_Latn"].num_rows == 5 * BATCH_ROWS
    assert part["text"][999].as_py() == text
    assert tables["eng_Latn"].nbytes > 30_000_000
    assert pa.total_allocated_bytes() - before < 100_000


def _write(file: Path) -> None:
    write_split(file, [("eng_Latn", rows(*(str(number) for number in range(50_000))))])


def test_two_processes_may_write_the_same_split(tmp_path: Path) -> None:
    file = tmp_path / "train.arrow"
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(file,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert open_split(file)["eng_Latn"].num_rows == 50_000


def test_faults_are_listed_up_to_twenty_and_then_counted() -> None:
    with pytest.raises(InputError) as caught:
        refuse("corpus x", [f"fault {number}" for number in range(25)])
    lines = str(caught.value).splitlines()
    assert lines[0] == "corpus x: 25 faults"
    assert lines[20] == "  fault 19"
    assert lines[21] == "  ... and 5 more"
    assert len(lines) == 22


def test_the_corpus_needs_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, json, xlt_ray.corpora.corpus, xlt_ray.corpora.soundness, xlt_ray.corpora.loaders.files;"
        "print(json.dumps(sorted({'torch', 'ray', 'pandas', 'transformers', 'mlflow'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
