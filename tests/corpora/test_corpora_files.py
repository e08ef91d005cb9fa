"""Corpora from files: the layouts, what must survive, what is refused and how, caching and memory."""

import gzip
import json
import multiprocessing
import os
import re
import subprocess
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora import loaders, overlap, soundness
from xlt_ray.corpora.arrow import origins_of
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError

SIB200 = Path(__file__).parents[2].parent / "shared" / "data" / "sib200"
SPLITS = ("train", "dev", "test")


@pytest.fixture
def load(tmp_path: Path):
    def loaded(path: Any, **settings: Any) -> Corpus:
        return loaders.load(CorpusConfig(loader="files", path=str(path), cache_dir=str(tmp_path / "cache"), **settings))

    return loaded


def lines(split: str, language: str, size: int = 3) -> list[dict[str, Any]]:
    return [{"text": f"{split} {language} {n}", "label": "AB"[n % 2], "n": n} for n in range(size)]


def put(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in the format that the file's name tells."""
    file.parent.mkdir(parents=True, exist_ok=True)
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), file)
        return file
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        separator = "\t" if name.endswith(".tsv") else ","
        text = "".join(separator.join(map(str, row)) + "\n" for row in [list(rows[0]), *(r.values() for r in rows)])
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def tree(root: Path, suffix: str = "tsv", languages: Sequence[str] = ("eng", "hau")) -> Path:
    for language in languages:
        for split in SPLITS:
            put(root / language / f"{split}.{suffix}", lines(split, language))
    return root


def texts(corpus: Corpus, split: str, language: str) -> list[str]:
    return corpus.table(split, language)["text"].to_pylist()


def refusal(load: Any, path: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **settings)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl", "parquet", "tsv.gz", "jsonl.gz"])
def test_a_directory_by_language_loads_in_every_format(load, tmp_path: Path, suffix: str) -> None:
    corpus = load(tree(tmp_path / "topics", suffix))
    assert corpus.name == "topics"
    assert corpus.labels == ("A", "B")
    assert {split: corpus.sizes(split) for split in SPLITS} == dict.fromkeys(SPLITS, {"eng_Latn": 3, "hau_Latn": 3})
    table = corpus.table("dev", "hau_Latn")
    assert table["text"].to_pylist() == ["dev hau 0", "dev hau 1", "dev hau 2"]
    assert table["label"].to_pylist() == [0, 1, 0]
    assert table["label"].type == pa.int32()
    assert table["id"].to_pylist() == ["dev:hau_Latn:0", "dev:hau_Latn:1", "dev:hau_Latn:2"]
    soundness.check(corpus, ["eng_Latn"], "all", ["eng_Latn"])


def test_one_file_a_split_with_a_language_column(load, tmp_path: Path) -> None:
    mixed = [
        {"lang": code, "text": f"{split} {code} {n}", "label": "AB"[n % 2]}
        for split in ("train", "test")
        for n in range(3)
        for code in ("en", "ha", "yo")
    ]
    put(tmp_path / "data" / "train.csv", mixed[:9])
    put(tmp_path / "data" / "test.csv", mixed[9:])
    corpus = load(tmp_path / "data", language="lang")
    assert corpus.sizes("train") == {"eng_Latn": 3, "hau_Latn": 3, "yor_Latn": 3}
    assert texts(corpus, "train", "yor_Latn") == ["train yo 0", "train yo 1", "train yo 2"]
    assert corpus.table("train", "yor_Latn")["id"].to_pylist() == [f"train:yor_Latn:{row}" for row in (2, 5, 8)]
    assert load(tmp_path / "data" / "{split}.csv", language="lang").fingerprint == corpus.fingerprint
    assert load(tmp_path / "data", language="lang", languages=["yor"]).languages("test") == ("yor_Latn",)


def test_a_pattern_may_put_language_and_split_anywhere(load, tmp_path: Path) -> None:
    for language in ("eng", "hau"):
        for split in SPLITS:
            put(tmp_path / "data" / split / f"{language}_{split}_v2.tsv", lines(split, language))
    corpus = load(tmp_path / "data" / "{split}" / "{language}_{split}_v2.tsv")
    assert corpus.languages("test") == ("eng_Latn", "hau_Latn")
    assert texts(corpus, "test", "hau_Latn")[0] == "test hau 0"


def test_a_language_named_twice_in_a_pattern_must_be_the_same(load, tmp_path: Path) -> None:
    put(tmp_path / "hau" / "hau_test.tsv", lines("test", "hau"))
    put(tmp_path / "hau" / "eng_test.tsv", lines("test", "eng"))
    assert load(tmp_path / "{language}" / "{language}_{split}.tsv").languages("test") == ("hau_Latn",)


def test_a_wildcard_gathers_shards_in_order(load, tmp_path: Path) -> None:
    put(tmp_path / "hau" / "train" / "0000.parquet", lines("a", "hau"))
    put(tmp_path / "hau" / "train" / "0001.parquet", lines("b", "hau"))
    corpus = load(tmp_path / "{language}" / "{split}" / "*.parquet")
    assert texts(corpus, "train", "hau_Latn") == [f"{part} hau {n}" for part in "ab" for n in range(3)]
    assert corpus.table("train", "hau_Latn")["id"][5].as_py() == "train:hau_Latn:5"


@pytest.mark.parametrize(
    "name", ["a#b", "what?", "100%", "%23", "[x]", "{y}", "*z", "a::b", "c:d", "w h y", "{language}"]
)
def test_a_folder_may_have_any_name(load, tmp_path: Path, name: str) -> None:
    data = tree(tmp_path / name / "data?")
    assert load(data).sizes("test") == {"eng_Latn": 3, "hau_Latn": 3}
    assert load(f"file://{data}").sizes("test") == {"eng_Latn": 3, "hau_Latn": 3}
    if name not in ("*z", "{language}"):  # which mean something in a pattern
        corpus = load(data / "{language}" / "{split}.*")
        assert origins_of(corpus.table("test", "eng_Latn")) == [(3, str(data / "eng" / "test.tsv"), 2)]


def test_a_file_may_have_any_name(load, tmp_path: Path) -> None:
    for split in SPLITS:
        put(tmp_path / "eng" / f"a#[1]? {split}.tsv", lines(split, "eng"))
    assert load(tmp_path / "{language}" / "a#[1]? {split}.tsv").sizes("test") == {"eng_Latn": 3}


def test_splits_may_have_other_names(load, tmp_path: Path) -> None:
    for name, split in (("training", "train"), ("validation", "dev"), ("test", "test")):
        put(tmp_path / "eng" / f"{name}.tsv", lines(split, "eng"))
    corpus = load(tmp_path, splits={"train": "training", "dev": "validation"})
    assert [corpus.sizes(split) for split in SPLITS] == [{"eng_Latn": 3}] * 3


def test_dev_that_is_called_validation_is_not_passed_over(load, tmp_path: Path) -> None:
    tree(tmp_path / "data")
    for file in (tmp_path / "data").glob("*/dev.tsv"):
        file.rename(file.with_name("validation.tsv"))
    assert "no dev files, but some called validation; set corpus.splits.dev=validation" in refusal(
        load, tmp_path / "data"
    )


def test_a_split_may_be_missing(load, tmp_path: Path) -> None:
    put(tmp_path / "eng" / "train.tsv", lines("train", "eng"))
    put(tmp_path / "yor" / "test.tsv", lines("test", "yor"))
    corpus = load(tmp_path)
    assert [corpus.languages(split) for split in SPLITS] == [("eng_Latn",), (), ("yor_Latn",)]


def test_other_files_beside_are_left_alone(load, tmp_path: Path) -> None:
    tree(tmp_path / "data")
    (tmp_path / "data" / "hau" / "labels.txt").write_text("A\nB\n")
    (tmp_path / "data" / "hau" / "train.old.tsv").write_text("nothing")
    (tmp_path / "data" / "hau" / "train.tsv.bak").write_text("nothing")
    (tmp_path / "data" / "README").write_text("nothing")
    assert load(tmp_path / "data").sizes("train") == {"eng_Latn": 3, "hau_Latn": 3}


@pytest.mark.filterwarnings("ignore:language 'oro'")
def test_languages_are_chosen_by_any_code_or_mapped(load, tmp_path: Path) -> None:
    tree(tmp_path / "data", languages=("en", "ha", "oro"))
    assert load(tmp_path / "data", languages=["hau_Latn"]).languages("train") == ("hau_Latn",)
    assert load(tmp_path / "data", languages=["ha", "eng"]).languages("train") == ("eng_Latn", "hau_Latn")
    mapped = load(tmp_path / "data", languages={"gaz_Latn": "oro", "en": "en"})
    assert mapped.languages("train") == ("eng_Latn", "gaz_Latn")
    assert texts(mapped, "test", "gaz_Latn")[0] == "test oro 0"


def test_a_language_nobody_knows_passes_with_a_warning(load, tmp_path: Path) -> None:
    tree(tmp_path / "data", languages=("eng", "klingon"))
    with pytest.warns(UserWarning, match="klingon"):
        corpus = load(tmp_path / "data")
    assert "klingon" in corpus.languages("test")


def test_texts_are_joined_and_pairs_kept(load, tmp_path: Path) -> None:
    rows = [
        {"head": "H", "body": "B", "second": "S", "label": "A"},
        {"head": "", "body": "B2", "second": "", "label": "B"},
    ]
    put(tmp_path / "eng" / "test.tsv", rows)
    table = load(tmp_path, text="head+body", text_pair="second").table("test", "eng_Latn")
    assert table["text"].to_pylist() == ["H B", "B2"]
    assert table["text_pair"].to_pylist() == ["S", ""]


def test_ids_come_from_their_column_and_gaps_are_filled(load, tmp_path: Path) -> None:
    put(
        tmp_path / "eng" / "test.jsonl",
        [{"text": "a", "label": "A", "key": 7}, {"text": "b", "label": "A", "key": None}],
    )
    assert load(tmp_path, id="key").table("test", "eng_Latn")["id"].to_pylist() == ["7", "test:eng_Latn:1"]


def test_labels_are_those_of_train_or_those_stated(load, tmp_path: Path) -> None:
    put(tmp_path / "eng" / "train.tsv", [{"text": "ab"[n % 2], "label": ("yes", "no")[n % 2]} for n in range(4)])
    put(tmp_path / "eng" / "test.tsv", [{"text": "c", "label": "yes"}, {"text": "d", "label": "maybe"}])
    found = load(tmp_path)
    assert (found.labels, found.unknown_labels, found.labels_stated) == (("no", "yes"), ("maybe",), False)
    with pytest.raises(InputError, match=r"eng/test.tsv, line 3: label 'maybe' .* is in no train split"):
        soundness.check(found, ["eng_Latn"])
    stated = load(tmp_path, labels=["maybe", "no", "yes"])
    assert (stated.labels, stated.unknown_labels, stated.labels_stated) == (("maybe", "no", "yes"), (), True)
    soundness.check(stated, ["eng_Latn"])


# ------------------------------------------------------------------------------------------------ what must survive


def one(load: Any, file: Path, content: bytes, **settings: Any) -> list[tuple[str, str | None]]:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    corpus = load(file.parents[1], **settings)
    table = corpus.table("test", "eng_Latn")
    labels = [None if index is None else corpus.labels[index] for index in table["label"].to_pylist()]
    return list(zip(table["text"].to_pylist(), labels, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("test.tsv", b'text\tlabel\na "stray\tA\nb\tB\nc"\tA\n', [('a "stray', "A"), ("b", "B"), ('c"', "A")]),
        ("test.tsv", b'text\tlabel\n"whole"\tA\n', [('"whole"', "A")]),
        ("test.tsv", b"text\tlabel\nNA\tnull\nnan\tNaN\n", [("NA", "null"), ("nan", "NaN")]),
        ("test.tsv", b"text\tlabel\n007\t01\n1.0\t1\n", [("007", "01"), ("1.0", "1")]),
        ("test.tsv", b"text\tlabel\r\na\tA\r\nb\tB\r\n", [("a", "A"), ("b", "B")]),
        ("test.tsv", b"\xef\xbb\xbftext\tlabel\na\tA", [("a", "A")]),
        ("test.tsv", b"label\tother\ttext\nA\tx\ta\n\nB\ty\tb\n\n", [("a", "A"), ("b", "B")]),
        ("test.tsv", b"text\tlabel\na\t\n\tB\n", [("a", None), ("", "B")]),
        ("test.tsv", "text\tlabel\nሰላም ዓለም\tA\n🙂\u2028x\tB\n".encode(), [("ሰላም ዓለም", "A"), ("🙂\u2028x", "B")]),
        ("test.csv", b'text,label\n"a, ""b""\nc",A\nd,B\n', [('a, "b"\nc', "A"), ("d", "B")]),
        ("test.csv", b'\xef\xbb\xbf"text","label"\r\n"NA","1"\r\n', [("NA", "1")]),
        ("test.csv", b'text,label\n5" pipe,A\nb,B\n', [('5" pipe', "A"), ("b", "B")]),
        ("test.jsonl", b'\xef\xbb\xbf{"text": "a\\n\\"b", "label": 1}\r\n{"label": 2, "text": "c", "x": {}}\r\n',
         [('a\n"b', "1"), ("c", "2")]),
        ("test.jsonl", b'{"text": "a", "label": null}\n{"text": "b", "label": true}', [("a", None), ("b", "true")]),
        ("test.jsonl", b'{"text": null, "label": "A"}\n{"text": 5, "label": "B"}\n', [("", "A"), ("5", "B")]),
    ],
    ids=["stray quote", "quotes kept", "NA and null", "digits", "windows", "bom", "blank lines", "empty cells",
         "scripts", "csv quotes", "csv bom, windows", "csv stray quote", "jsonl integers", "jsonl null", "jsonl text"],
)  # fmt: skip
def test_rows_survive_as_they_are(load, tmp_path: Path, name: str, content: bytes, expected: list) -> None:
    assert one(load, tmp_path / "eng" / name, content) == expected


def test_parquet_of_datasets_has_its_class_names(load, tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": pa.array(["a", "b", "c"], pa.large_string()), "label": pa.array([1, 0, -1], pa.int64())})
    (tmp_path / "eng").mkdir()
    marked = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(marked, tmp_path / "eng" / "test.parquet")
    corpus = load(tmp_path)
    assert corpus.labels == ("neg", "pos")
    assert corpus.table("test", "eng_Latn")["label"].to_pylist() == [1, 0, None], "-1 is no label"


def test_parquet_integers_and_dictionaries_become_text(load, tmp_path: Path) -> None:
    (tmp_path / "eng").mkdir()
    table = pa.table({"text": pa.array(["a", "b"]).dictionary_encode(), "label": pa.array([3, 1], pa.int8())})
    pyarrow.parquet.write_table(table, tmp_path / "eng" / "test.parquet")
    corpus = load(tmp_path)
    assert corpus.labels == ("1", "3")
    assert texts(corpus, "test", "eng_Latn") == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.tsv", b""),
        ("train.csv", b"\xef\xbb\xbf\n"),
        ("train.jsonl", b"\n"),
        ("train.parquet", b""),
        ("train.tsv.gz", b""),
    ],
)
def test_an_empty_file_is_no_rows_and_said_so(load, tmp_path: Path, name: str, content: bytes) -> None:
    tree(tmp_path / "data")
    file = tmp_path / "data" / "hau" / name
    (tmp_path / "data" / "hau" / "train.tsv").unlink()
    file.write_bytes(content)
    for corpus in (load(tmp_path / "data"), load(tmp_path / "data")):  # read, then from the cache
        assert corpus.sizes("train") == {"eng_Latn": 3, "hau_Latn": 0}
        assert corpus.notes == (f"{file}: empty, taken as no rows",)
    soundness.check(corpus, ["eng_Latn"])


def test_a_header_without_a_line_break_is_no_rows(load, tmp_path: Path) -> None:
    (tmp_path / "eng").mkdir()
    (tmp_path / "eng" / "test.tsv").write_text("text\tlabel")
    assert (load(tmp_path).sizes("test"), load(tmp_path).notes) == ({"eng_Latn": 0}, ())


def test_a_file_without_rows_is_not_forgotten(load, tmp_path: Path) -> None:
    tree(tmp_path / "data")
    (tmp_path / "data" / "eng" / "train.tsv").write_text("text\tlabel\n")
    corpus = load(tmp_path / "data")
    assert corpus.sizes("train")["eng_Latn"] == 0
    with pytest.raises(InputError, match=r"eng/train.tsv, train, eng_Latn: no rows; add some"):
        soundness.check(corpus, ["eng_Latn"])


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("test.tsv", b"text\tlabel\na\tA\nb\tA\n\n\n", 2),
        ("test.tsv", b"text\tlabel\na\tA\n\nb\tA\n", None),
        ("test.csv", b"text,label\na,A\nb,A\n", 2),
        ("test.csv", b'text,label\n"a\n",A\nb,A\n', None),
        ("test.jsonl", b'{"text": "a", "label": "A"}\n{"text": "b", "label": "A"}\n', 1),
    ],
)
def test_lines_are_known_where_every_row_is_one(
    load, tmp_path: Path, name: str, content: bytes, line: int | None
) -> None:
    (tmp_path / "eng").mkdir()
    (tmp_path / "eng" / name).write_bytes(content)
    assert origins_of(load(tmp_path).table("test", "eng_Latn")) == [(2, str(tmp_path / "eng" / name), line)]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("name", "content", "settings", "expected"),
    [
        ("test.tsv", b"txt\tlabel\na\tA\n", {},
         "eng/test.tsv: no column 'text' for corpus.text; it has txt, label; did you mean corpus.text=txt?"),
        ("test.tsv", b"text\tcategory\na\tA\n", {},
         "eng/test.tsv: no column 'label' for corpus.label; it has text, category; set corpus.label to one of these"),
        ("test.jsonl", b'{"text": "a"}\n', {"id": "key"}, "no column 'key' for corpus.id; it has text;"),
        ("test.parquet", None, {"label": "labels"}, "no column 'labels' for corpus.label; it has text, label, n;"),
        ("test.tsv", b"text\ttext\tlabel\na\tb\tA\n", {}, "column 'text' (corpus.text) stands there twice; rename one"),
        ("test.tsv", b"text\tlabel\na\tA\nb\nc\tA\td\ne\tB\n", {},
         "eng/test.tsv, line 3: 1 columns where the header has 2 ('b'); a text holds a tab or a line break: take"),
        ("test.tsv", b"text\tlabel\na\tA\nb\nc\tA\td\ne\tB\n", {}, "test.tsv, line 4: 3 columns where the header has"),
        ("test.csv", b'text,label\n"a\nb",A\nc,A,d\n', {},
         "eng/test.csv, line 4: 3 columns where the header has 2 ('c,A,d'); a text holds a comma"),
        ("test.csv", b'text,label\na,A\n"b,A\nc,B\n', {},
         "test.csv, line 3: unexpected end of data in the row that starts here ('\"b,A'); close the quote"),
        ("test.csv", b'text,label\n"a,A\n', {}, "eng/test.csv, line 2: unexpected end of data"),
        ("test.tsv", b"text\tlabel\ngood\tA\ncaf\xe9\tA\nna\xefve\tB\n", {},
         "eng/test.tsv, line 3: byte 21 of the file (0xe9) is not UTF-8; `f="),
        ("test.tsv", b"text\tlabel\n\xc3\xa9\tA\ncaf\xe9\tA\nna\xefve\tB\n", {}, "eng/test.tsv, line 4: byte 25"),
        ("test.csv", b"text,label\ncaf\xe9,A\n", {}, "eng/test.csv, line 2: byte 14 of the file (0xe9) is not UTF-8"),
        ("test.jsonl", b'{"text": "caf\xe9", "label": "A"}\n', {}, "test.jsonl, line 1: byte 13 of the file (0xe9)"),
        ("test.tsv", "text\tlabel\na\tA\n".encode("utf-16"), {}, "test.tsv: written in UTF-16, not UTF-8; `f="),
        ("test.jsonl", b'{"text": "a", "label": "A"}\n{"text": "b" "label": "A"}\n', {},
         "eng/test.jsonl, line 2: Expecting ',' delimiter: line 1 column 14 (char 13) ('{\"text\": \"b\" \"la"),
        ("test.jsonl", b'["text", "label"]\n["a", "A"]\n', {},
         "line 1: list instead of an object ('[\"text\", \"label\"]');"),
        ("test.jsonl", b'{"text": "a", "label": "A"}\n\n{"text": "b", "label": 1}\n', {},
         "eng/test.jsonl, line 3: 'label' is int ('1') and str before; write it as text everywhere"),
        ("test.jsonl", b'{"text": "a", "label": 0.5}\n', {},
         "eng/test.jsonl: column 'label' (corpus.label) holds double, which is no label; store it as text"),
        ("test.jsonl", b'{"text": ["a"], "label": "A"}\n{"text": ["b"], "label": "A"}\n', {},
         "eng/test.jsonl, line 1: 'text' is a list (\"['a']\"), not one value; write one text or number; 1 more such"),
        ("test.parquet", b"no parquet at all", {}, "eng/test.parquet: cannot be read as parquet"),
        ("test.tsv.gz", b"no gzip at all", {}, "eng/test.tsv.gz: not packed, as its name says; take the last ending"),
        ("test.tsv.gz", gzip.compress(b"text\tlabel\n")[:20], {}, "eng/test.tsv.gz: cannot be read (Truncated"),
        ("test.dat", b"text\tlabel\na\tA\n", {"path": "{language}/{split}.*"},
         "eng/test.dat: its suffix tells no format; set corpus.format"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_place_value_and_remedy(
    load, tmp_path: Path, name: str, content: bytes | None, settings: dict, expected: str
) -> None:
    file = tmp_path / "eng" / name
    if content is None:
        put(file, lines("test", "eng"))
    else:
        file.parent.mkdir()
        file.write_bytes(content)
    settings = dict(settings)
    assert expected in refusal(load, tmp_path / settings.pop("path", ""), **settings)
    assert not list((tmp_path / "cache").glob("corpora/*")), "nothing is kept of what failed"


def test_faults_of_all_files_come_in_one_message(load, tmp_path: Path) -> None:
    tree(tmp_path / "data", languages=("eng", "hau", "yor"))
    (tmp_path / "data" / "eng" / "train.tsv").write_bytes(b"text\tlabel\nx\n")
    (tmp_path / "data" / "hau" / "dev.tsv").write_bytes(b"text\tlabel\n\xff\tA\n")
    (tmp_path / "data" / "yor" / "test.tsv").write_bytes(b"t\tlabel\na\tA\n")
    message = refusal(load, tmp_path / "data")
    assert "3 faults" in message
    assert all(f"{place}: " in message for place in ("eng/train.tsv, line 2", "hau/dev.tsv, line 2", "yor/test.tsv"))


def test_many_faults_are_cut_and_counted(load, tmp_path: Path) -> None:
    (tmp_path / "eng").mkdir()
    for split in SPLITS:
        (tmp_path / "eng" / f"{split}.tsv").write_text("text\tlabel\n" + "bad\n" * 100)
    assert "60 faults" in (message := refusal(load, tmp_path))
    assert "... and 40 more" in message
    assert len(message.splitlines()) == 22


@pytest.mark.parametrize(
    ("path", "settings", "expected"),
    [
        (None, {}, "corpus.path: not set; name a directory that holds LANGUAGE/train.tsv"),
        ("nowhere", {}, "nowhere: no such directory; set corpus.path=WHERE_THE_FILES_ARE"),
        ("data/eng/train.tsv", {}, "train.tsv: one file; name its directory, or a pattern such as"),
        ("data/eng", {}, "and found none of them (there are dev.tsv, test.tsv, train.tsv); check corpus.path"),
        ("data/{language}.tsv", {}, "a pattern holds {split}, and {language} unless corpus.language (now None)"),
        ("data/eng/{split}.tsv", {}, "a pattern holds {split}, and {language} unless corpus.language (now None) names"),
        ("data/{language}/{split}.tsv", {"language": "lang"}, "and {language} unless corpus.language (now lang) names"),
        ("data", {"languages": ["eng", "yor", "zul"]}, "no files for yor, zul under corpus.path"),
        ("data", {"languages": ["yor"]}, "there are files for eng, hau; take some of these, or write OUR_CODE:"),
        ("data", {"label": "text", "id": None}, None),
        ("gopher://host/{language}/{split}.tsv", {}, "Protocol not known: gopher; install what it needs, or copy"),
        ("http://127.0.0.1:9/x", {}, "needs a pattern, such as http://127.0.0.1:9/x/{language}/{split}.tsv"),
        ("http://127.0.0.1:9/{language}/{split}.tsv", {}, "name the languages in corpus.languages"),
        ("http://127.0.0.1:9/{language}/{split}.tsv", {"languages": ["eng"]}, "found none of them"),
    ],
)  # fmt: skip
def test_a_bad_place_is_refused_with_a_remedy(
    load, tmp_path: Path, path: str | None, settings: dict, expected: str | None
) -> None:
    tree(tmp_path / "data")
    if expected is None:
        assert len(load(tmp_path / "data", **settings).labels) == 6, "any column may be the label"
        return
    if path is None:
        with pytest.raises(InputError) as caught:
            loaders.load(CorpusConfig(loader="files"))
        assert expected in str(caught.value)
        return
    assert expected in refusal(load, path if "://" in path else tmp_path / path, **settings)


def followed(message: str) -> None:
    """Run the command of a refusal, as a person would who copies it."""
    (command,) = re.findall('`(f=.*?"\\$f")`', message)
    subprocess.run(command, shell=True, check=True)


ROWS = [("a, b", "A"), ('c "d"', "B")]
OBJECTS = [{"text": text, "label": label} for text, label in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("test.csv", 'text;label\na, b;A\nc "d";B\n', "its columns are separated by ';' ('text;label')"),
        ("test.csv", 'text|label\n"a, b"|A\nc "d"|B\n', "its columns are separated by '|'"),
        ("test.tsv", 'text,label\n"a, b",A\n"c ""d""",B\n', "its columns are separated by ','"),
        ("test.json", json.dumps(OBJECTS, indent=1), "one JSON array"),
        ("test.jsonl", json.dumps(OBJECTS), "one JSON array"),
        ("test.json", json.dumps({"version": 1, "data": OBJECTS}), "one JSON object with its rows in 'data'"),
        ("test.json", json.dumps({"data": OBJECTS}, indent=2), "one JSON object with its rows in 'data'"),
        ("test.json", "\n".join(json.dumps(row, indent=2) for row in OBJECTS), "JSON objects over several lines"),
        ("test.json", json.dumps({"text": {"0": "a, b", "1": 'c "d"'}, "label": ["A", "B"]}), "that holds columns"),
        ("test.csv", 'text,label\n"a, b",A\n"c ""d""",B\n'.encode("utf-16"), "written in UTF-16"),
        ("test.tsv", gzip.compress(b'text\tlabel\na, b\tA\nc "d"\tB\n'), "packed with gzip, not text"),
    ],
)  # fmt: skip
def test_another_layout_is_one_fault_whose_remedy_works(
    load, tmp_path: Path, name: str, content: str | bytes, named: str
) -> None:
    file = tmp_path / "it's data" / "eng" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    message = refusal(load, file.parents[1])
    assert "1 fault\n" in message and named in message
    followed(message)
    corpus = load(file.parents[1])
    labels = [corpus.labels[index] for index in corpus.table("test", "eng_Latn")["label"].to_pylist()]
    assert list(zip(texts(corpus, "test", "eng_Latn"), labels, strict=True)) == ROWS


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['{"text": "x", "text": "y", "label": "A"}'], "line 2: Column(/text) was specified twice ('{\"text\": \"x\","),
        (['{"text": "a", "label": 1}', '{"text": "a", "label": 12345678901234567890}'],
         "line 2: 'label' is int ('1') and str before; write it as text everywhere; 1 more such"),
        (['{"text": "a", "label": "A", "other": "\\udc00"}'], "line 2: 'other' holds \\udc00, half of a character"),
        (['{"text": "a", "label": "A"}'] * 3000 + ['{"text": "a\x01", "label": "A"}'], "line 3002: Invalid control"),
        (['{"text": "a", "label": "A"}{"text": "b", "label": "B"'], "line 2: Extra data"),
        (["{'text': 'a', 'label': 'A'}"] * 30, "line 2: Expecting property name enclosed in double quotes"),
    ],
)  # fmt: skip
def test_whatever_arrow_refuses_has_its_line(load, tmp_path: Path, lines: list[str], expected: str) -> None:
    (tmp_path / "eng").mkdir()
    (tmp_path / "eng" / "test.jsonl").write_text("\n".join(['{"text": "a", "label": "A"}', *lines]) + "\n")
    message = refusal(load, tmp_path)
    assert "1 fault\n" in message and f"test.jsonl, {expected}" in message


@pytest.mark.parametrize(("name", "column"), [("test.jsonl", "label"), ("test.tsv", "text")])
def test_a_line_that_only_arrow_refuses_is_found_by_halves(load, tmp_path: Path, name: str, column: str) -> None:
    rows = [{"text": f"a{n}", "label": n} for n in range(700)]
    rows[555][column] = "x" * (20 << 20) if name == "test.tsv" else 12345678901234567890
    put(tmp_path / "eng" / name, rows)
    reason = (
        "20,971,5" if name == "test.tsv" else "Failed to convert JSON to int64, couldn't parse:12345678901234567890"
    )
    assert f"{name}, line {557 if name == 'test.tsv' else 556}: {reason}" in refusal(load, tmp_path)


def test_half_an_emoji_is_named_and_may_be_replaced(load, tmp_path: Path) -> None:
    (tmp_path / "eng").mkdir()
    (tmp_path / "eng" / "test.jsonl").write_text(
        '{"text": "whole \\ud83d\\ude00", "label": "A"}\n{"text": "cut off \\ud83d", "label": "A"}\n'
    )
    message = refusal(load, tmp_path)
    assert "eng/test.jsonl, line 2: 'text' holds \\ud83d, half of a character such as an emoji" in message
    followed(message)
    assert texts(load(tmp_path), "test", "eng_Latn") == ["whole 😀", "cut off ?"]


def test_a_carriage_return_in_a_text_has_its_line(load, tmp_path: Path) -> None:
    (tmp_path / "eng").mkdir()
    (tmp_path / "eng" / "test.tsv").write_bytes(b"text\tlabel\na\tA\nb\rc\tA\n")
    assert "eng/test.tsv, line 3: 1 columns where the header has 2 ('b')" in refusal(load, tmp_path)


@pytest.mark.parametrize("name", ["test.tsv", "test.jsonl", "test.parquet", "test.csv.gz"])
def test_a_git_lfs_pointer_is_named(load, tmp_path: Path, name: str) -> None:
    (tmp_path / "eng").mkdir()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"
    (tmp_path / "eng" / name).write_text(pointer)
    assert f"eng/{name}: no data but a Git LFS pointer to 12,345 bytes; install git-lfs and run `git lfs pull`" in (
        refusal(load, tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"text\tlabel \na\tA\n", "it has text, 'label '; rename 'label ' to 'label' in the file"),
        (b"text\tno\na\tA\n", "it has text, no; set corpus.label to one of these, or write a line of names above"),
        (b"te+xt\tlabel\na\tA\n", "it has te+xt, label; rename 'te+xt' to 'text' in the file"),
    ],
)
def test_a_column_is_not_offered_by_a_name_that_cannot_be_set(
    load, tmp_path: Path, content: bytes, expected: str
) -> None:
    (tmp_path / "eng").mkdir()
    (tmp_path / "eng" / "test.tsv").write_bytes(content)
    assert expected in refusal(load, tmp_path)


def test_two_files_for_one_split_are_refused(load, tmp_path: Path) -> None:
    tree(tmp_path / "data")
    put(tmp_path / "data" / "eng" / "train.jsonl", lines("train", "eng"))
    message = refusal(load, tmp_path / "data")
    assert "train.jsonl" in message and "two files for train; remove one, or set corpus.format" in message
    assert load(tmp_path / "data", format="tsv").sizes("train") == {"eng_Latn": 3, "hau_Latn": 3}


def test_two_names_of_one_language_are_refused(load, tmp_path: Path) -> None:
    tree(tmp_path / "data", languages=("en", "eng"))
    assert "'en' and 'eng' are both eng_Latn; rename one, or choose by corpus.languages=" in refusal(
        load, tmp_path / "data"
    )
    assert load(tmp_path / "data", languages={"eng_Latn": "eng"}).languages("test") == ("eng_Latn",)


def test_a_row_without_language_is_refused(load, tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("text\tlabel\tlang\na\tA\teng\nb\tA\t\n")
    assert "test.tsv, line 3: no language in column 'lang'; fill it" in refusal(load, tmp_path, language="lang")


def test_a_column_that_is_no_label_is_refused(load, tmp_path: Path) -> None:
    put(tmp_path / "eng" / "train.tsv", lines("train", "eng", size=10_001))
    message = refusal(load, tmp_path, label="text")
    assert "corpus.label: column 'text' holds more than 10,000 different values, such as 'train eng 0'" in message


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"corpus.cache_dir .*file.*: no folder to write to .*; name another"):
        loaders.load(CorpusConfig(loader="files", path=str(tmp_path / "data"), cache_dir=str(tmp_path / "file")))


# ------------------------------------------------------------------------------------------------ addresses


@pytest.fixture
def memory() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    for language in ("eng", "hau"):
        for split in SPLITS:
            text = "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in lines(split, language))
            files.pipe(f"/bucket/{language}/{split}.tsv", text.encode())
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


def test_any_fsspec_address_is_listed_and_read(load, memory: str) -> None:
    corpus = load(memory)
    assert corpus.sizes("test") == {"eng_Latn": 3, "hau_Latn": 3}
    assert origins_of(corpus.table("test", "hau_Latn")) == [(3, "memory:///bucket/hau/test.tsv", 2)]
    assert load(memory + "/{language}/{split}.tsv", languages=["ha"]).languages("dev") == ("hau_Latn",)


def test_a_change_elsewhere_is_seen(load, memory: str) -> None:
    load(memory)
    fsspec.filesystem("memory").pipe("/bucket/eng/test.tsv", b"text\tlabel\nnew\tA\n")
    assert load(memory).sizes("test") == {"eng_Latn": 1, "hau_Latn": 3}


def test_a_file_url_is_a_directory_too(load, tmp_path: Path) -> None:
    tree(tmp_path / "data")
    assert load(f"file://{tmp_path}/data").sizes("test") == {"eng_Latn": 3, "hau_Latn": 3}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    tree(tmp_path / "web" / "data")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/data"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_web_host_is_read_by_the_languages_named(load, host: str) -> None:
    corpus = load(host + "/{language}/{split}.tsv", languages={"eng_Latn": "eng", "hau_Latn": "hau"})
    assert [corpus.sizes(split) for split in SPLITS] == [{"eng_Latn": 3, "hau_Latn": 3}] * 3
    assert origins_of(corpus.table("dev", "hau_Latn")) == [(3, f"{host}/hau/dev.tsv", 2)]
    message = refusal(load, host + "/{language}/{split}.tsv", languages=["eng", "yor"])
    assert "corpus.languages: no files for yor" in message


def test_a_web_host_with_an_index_is_listed(load, host: str) -> None:
    assert load(host + "/{language}/{split}.tsv").languages("test") == ("eng_Latn", "hau_Latn")


# ------------------------------------------------------------------------------------------------ the cache


def conversions(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "cache" / "corpora").iterdir())


def test_files_are_converted_once_and_again_when_they_change(load, tmp_path: Path) -> None:
    data = tree(tmp_path / "data")
    first = load(data)
    assert load(data).fingerprint == first.fingerprint
    assert len(conversions(tmp_path)) == 1
    load(data, text="label")
    assert len(conversions(tmp_path)) == 2, "other columns are another conversion"
    (data / "eng" / "test.tsv").write_text("text\tlabel\nother\tA\n")
    assert texts(load(data), "test", "eng_Latn") == ["other"]
    assert len(conversions(tmp_path)) == 3


def test_converted_rows_are_read_from_the_cache_alone(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tree(tmp_path / "data")
    first = load(data)
    monkeypatch.setattr("xlt_ray.corpora.loaders.formats.read", None)
    assert load(data).fingerprint == first.fingerprint


def _load(data: Path, cache: Path, barrier: Any, answers: Any) -> None:
    barrier.wait(60)
    corpus = loaders.load(CorpusConfig(loader="files", path=str(data), cache_dir=str(cache)))
    answers.put((corpus.fingerprint, corpus.sizes("train")))


def test_two_processes_may_convert_at_once(tmp_path: Path) -> None:
    data = tree(tmp_path / "data")
    put(data / "eng" / "train.tsv", lines("train", "eng", size=20_000))
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    workers = [spawn.Process(target=_load, args=(data, tmp_path / "cache", barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert found[0] == found[1]
    assert found[0][1] == {"eng_Latn": 20_000, "hau_Latn": 3}
    assert len(conversions(tmp_path)) == 1


@pytest.mark.parametrize("mixed", [False, True], ids=["by language", "languages mixed in one file"])
def test_many_rows_stay_on_disk(load, tmp_path: Path, mixed: bool) -> None:
    data = tmp_path / "data"
    codes = ("eng", "hau", "yor")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if mixed:
            data.mkdir()
            with (data / "train.tsv").open("w") as file:
                file.write("text\tlabel\tlang\n")
                file.writelines(f"sentence number {n} {'x' * 60}\t{n % 5}\t{codes[n % 3]}\n" for n in range(300_000))
        else:
            for code in codes:
                (data / code).mkdir(parents=True)
                with (data / code / "train.tsv").open("w") as file:
                    file.write("text\tlabel\n")
                    file.writelines(f"sentence number {n} {'x' * 60}\t{n % 5}\n" for n in range(100_000))
        before = pa.total_allocated_bytes()
        corpus = load(data, language="lang" if mixed else None)
    assert corpus.sizes("train") == dict.fromkeys(("eng_Latn", "hau_Latn", "yor_Latn"), 100_000)
    assert sum(table.nbytes for _, _, table in corpus.tables()) > 30_000_000
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert max(len(table["text"].chunks) for _, _, table in corpus.tables()) <= 4
    assert corpus.table("train", "yor_Latn")["text"][99_999].as_py().startswith("sentence number ")


# ------------------------------------------------------------------------------------------------ known layouts


@pytest.mark.skipif(not SIB200.is_dir(), reason="SIB-200 is not here")
def test_sib200_loads_and_is_sound(load) -> None:
    corpus = load(
        SIB200, label="category", id="index_id", languages=["eng_Latn", "swh_Latn", "amh_Ethi", "zho_Hans", "ary_Arab"]
    )
    assert corpus.name == "sib200"
    assert len(corpus.labels) == 7
    assert {split: set(corpus.sizes(split).values()) for split in SPLITS} == {
        "train": {701},
        "dev": {99},
        "test": {204},
    }
    ids = [corpus.table("test", language)["id"] for language in corpus.languages("test")]
    assert all(set(one.to_pylist()) == set(ids[0].to_pylist()) for one in ids), "languages share the ids"
    soundness.check(corpus, ["eng_Latn", "swh_Latn"], "all", ["eng_Latn"])


@pytest.mark.skipif(not (SIB200 / "ary_Arab").is_dir(), reason="SIB-200 is not here")
def test_the_overlap_of_sib200_is_found_and_dropped(load) -> None:
    corpus = load(SIB200, label="category", id="index_id", languages=["ary_Arab", "eng_Latn"])
    with pytest.raises(InputError, match=r"ary_Arab/train.tsv, line 246: text .* at .*ary_Arab/test.tsv, line 15"):
        soundness.check(corpus, ["ary_Arab"])
    smaller, dropped = overlap.drop_overlap(corpus)
    assert dropped == {"train": {"ary_Arab": 1}}
    soundness.check(smaller, ["ary_Arab"])


def test_a_conversion_of_which_a_part_is_there_is_made_again(tmp_path: Path) -> None:
    for split in ("train", "test"):
        file = tmp_path / "data" / "eng_Latn" / f"{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"text\tlabel\n{split} one\ta\n{split} two\tb\n", encoding="utf-8")
    config = CorpusConfig(loader="files", path=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    whole = loaders.load(config).fingerprint
    (folder,) = (tmp_path / "cache" / "corpora").iterdir()
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["corpus.json", "test.arrow", "train.arrow"]
    for name in names:
        for size in (folder.joinpath(name).stat().st_size // 2, 1, 0, None):
            if size is None:
                (folder / name).unlink()
            else:
                os.truncate(folder / name, size)
            assert loaders.load(config).fingerprint == whole
            assert sorted(file.name for file in folder.iterdir()) == names
