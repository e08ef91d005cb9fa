"""What a double quote means in a tsv or csv: decided by what the file holds, strictly, and said."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora import loaders
from xlt_ray.corpora.arrow import origins_of
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.loaders import delimited
from xlt_ray.errors import InputError
from xlt_ray.training import checks

SPLITS = ("train", "dev", "test")
TEXTS = ['He said "no"', "two\nlines, a\ttab", "plain", "with, comma", '"all of it"', "", "7"]


@pytest.fixture
def load(tmp_path: Path):
    def loaded(content: str | bytes, name: str = "test.tsv", **settings: str) -> Corpus:
        file = tmp_path / "data" / "eng" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        config = {"loader": "files", "path": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache"), **settings}
        return loaders.load(CorpusConfig.model_validate(config))

    return loaded


def rows(corpus: Corpus) -> list[tuple[str, str | None]]:
    table = corpus.table("test", "eng_Latn")
    labels = [None if index is None else corpus.labels[index] for index in table["label"].to_pylist()]
    return list(zip(table["text"].to_pylist(), labels, strict=True))


def tsv(*lines: str, header: str = "text\tlabel") -> str:
    return "".join(f"{line}\n" for line in (header, *lines))


def pairs(*texts: str) -> list[tuple[str, str]]:
    return [(text, "AB"[n % 2]) for n, text in enumerate(texts)]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("kept", [TEXTS, TEXTS[:1] + TEXTS[2:]], ids=["line breaks", "one line each"])
def test_a_tsv_that_pandas_wrote_is_read_back(load, quoting: Any, kept: Sequence[str]) -> None:
    frame = pd.DataFrame(pairs(*kept), columns=["text", "label"])
    corpus = load(frame.to_csv(sep="\t", index=False, quoting=quoting))
    assert rows(corpus) == pairs(*kept)
    (note,) = corpus.notes
    assert "eng/test.tsv: double quotes are read as enclosing fields; corpus.quoting=plain reads them" in note


def test_a_tsv_of_a_spreadsheet_is_read_as_intended(load) -> None:
    lines = [f'"one, {n}"\tA' for n in range(5)]
    assert rows(load(tsv(*lines, "two\tB"))) == [*((f"one, {n}", "A") for n in range(5)), ("two", "B")]


@pytest.mark.parametrize("header", ["text\tlabel", '"text"\tlabel'])
def test_a_column_that_is_quoted_throughout_is_quoted(load, header: str) -> None:
    corpus = load(tsv(*(f'"text {n}"\tA' for n in range(5)), header=header))
    assert rows(corpus) == [(f"text {n}", "A") for n in range(5)]


@pytest.mark.parametrize(
    "texts",
    [
        ['5" pipe', 'say "x" now', 'ends "so"'],
        ['"Hello, he said.', "b", 'c"'],
        ['"so it began', "b", 'and so it ended"'],
        ['"Hello," he said. "Bye."', "b"],
        ['"A whole sentence."', "one, with a comma", '"Another, whole."'],
        ['say ""doubled"" here', 'l""hotel'],
        ['"He said \\"no\\""', "b"],
        ['"whole"'],
        ['""', "b"],
    ],
)
def test_where_quotes_are_characters_they_stay(load, texts: list[str]) -> None:
    corpus = load(tsv(*(f"{text}\t{label}" for text, label in pairs(*texts))))
    assert rows(corpus) == pairs(*texts)
    assert corpus.notes == (), "nothing is noteworthy"
    assert origins_of(corpus.table("test", "eng_Latn"))[0][2] == 2


@pytest.mark.parametrize(
    ("lines", "line", "value"),
    [
        (['b\tB', '"Hello, whole."\tA'], 3, "'\"Hello, whole.\"\\tA'"),
        (['"He said ""no"""\tA', '5" pipe\tB'], 2, "'\"He said \"\"no\"\"\"\\tA'"),
        (["x\tA", '"so\tit began\tA', "b\tA", 'and ended"\tA'], 3, "'\"so\\tit began"),
    ],
    ids=["one sentence with a comma", "two ways of writing", "a tab, and whole rows inside"],
)  # fmt: skip
def test_what_may_be_either_is_refused_and_the_key_decides(load, lines: list[str], line: int, value: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tsv(*lines))
    assert f"eng/test.tsv, line {line}: the double quotes of {value}" in str(caught.value)
    assert "set corpus.quoting=quoted or corpus.quoting=plain" in str(caught.value)
    assert '"' not in rows(load(tsv(*lines), quoting="quoted"))[line - 2][0][0]
    if line != 3 or "tab" not in value:
        assert load(tsv(lines[0]), quoting="plain").sizes("test") == {"eng_Latn": 1}


def test_a_file_that_neither_reading_takes_names_both_faults(load) -> None:
    with pytest.raises(InputError) as caught:
        load(tsv("a\tA", '"b" c\tB', "d\te\tA"))
    assert "eng/test.tsv, line 3: '\t' expected after '\"' in the row that starts here ('\"b\" c\\tB')" in str(
        caught.value
    )
    assert "with quotes as characters, line 4 has 3 columns where the header has 2" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['"so it began,A', "b,B", '"and ended,A'], "line 3: ',' expected after '\"' in the row that starts here ('\""),
        (['"so it began,A', "b,B"], "line 3: unexpected end of data in the row that starts here ('\"so it began,A')"),
        (['"abc"def,A'], "line 3: ',' expected after '\"' in the row that starts here ('\"abc\"def,A'); close"),
        (['"abc" ,A'], "line 3: ',' expected after '\"'"),
        (['"two\nlines",A', '"x"y,B'], "line 5: ',' expected after '\"'"),
        (['"two\nlines",A', "a,b,c"], "line 5: 3 columns where the header has 2 ('a,b,c')"),
        ([' "a, b",A'], "line 3: 3 columns where the header has 2"),
        (['"so it began,A', "b,A", 'and ended",A'], "line 3: a quoted text that starts here ('\"so it began,A') holds"),
        (['"so it began,A', 'and ended",A'], "line 3: a quoted text that starts here"),
        (['"' + "x" * (9 << 20) + '",A'], "line 3: field larger than field limit"),
    ],
)  # fmt: skip
def test_a_csv_is_refused_where_strict_reading_refuses_it(load, lines: list[str], expected: str) -> None:
    content = "".join(f"{line}\n" for line in ("text,label", "first,A", *lines))
    with pytest.raises(InputError) as caught:
        load(content, "test.csv")
    assert f"eng/test.csv, {expected}" in str(caught.value)


def test_a_csv_is_read_strictly_and_its_lines_are_known(load) -> None:
    content = 'text,label\r\n"a, ""b""",A\r\n5" pipe,B\r\n"c\r\nd",A\r\n\r\n"e\rf",B\r\n'
    corpus = load(content, "test.csv")
    assert rows(corpus) == [('a, "b"', "A"), ('5" pipe', "B"), ("c\r\nd", "A"), ("e\rf", "B")]
    assert origins_of(corpus.table("test", "eng_Latn"))[0][2] is None
    one_each = load('text,label\n"a, b",A\nc,B\n', "test.csv")
    assert origins_of(one_each.table("test", "eng_Latn"))[0][2] == 2


def test_the_remedies_for_a_csv_work(load) -> None:
    with pytest.raises(InputError, match=r"or set corpus.quoting=plain where double quotes are characters"):
        load('text,label\n"a,A\nb,B\n', "test.csv")
    assert rows(load('text,label\n"a,A\nb,B\n', "test.csv", quoting="plain")) == [('"a', "A"), ("b", "B")]
    swallowed = 'text,label\nx,A\n"b,A\nc",A\n'
    with pytest.raises(InputError, match="set corpus.quoting=quoted where the text is meant so"):
        load(swallowed, "test.csv")
    assert rows(load(swallowed, "test.csv", quoting="quoted"))[1] == ("b,A\nc", "A")


def test_a_label_before_a_long_text_is_no_swallowed_row(load) -> None:
    content = 'label,text\nA,x\nB,"first part\nsecond part, and on"\nA,"one\ntwo"\n'
    assert rows(load(content, "test.csv"))[1] == ("first part\nsecond part, and on", "B")


def test_plain_is_offered_where_a_header_is_quoted(load) -> None:
    with pytest.raises(InputError, match="no column 'text'.*its double quotes enclose it: set corpus.quoting=quoted"):
        load(tsv('"a"\tA', header='"text"\t"label"'), quoting="plain")


@pytest.mark.parametrize("name", ["test.csv", "test.tsv"])
def test_quotes_are_read_in_bounded_memory(load, name: str) -> None:
    separator = "\t" if name == "test.tsv" else ","
    line = f'"a ""long"" text{separator}{"x" * 40}\nof two lines"{separator}A\n'
    before = pa.total_allocated_bytes()
    corpus = load(f"text{separator}label\n" + line * 66_000, name)
    assert corpus.sizes("test") == {"eng_Latn": 66_000}
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert corpus.table("test", "eng_Latn")["text"][65_999].as_py().startswith('a "long" text')


def test_check_and_train_log_a_note_once_for_all_files(tmp_path: Path) -> None:
    for split in SPLITS:
        file = tmp_path / "data" / "eng" / f"{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        texts = [f'{split} {n} "so"' for n in range(4)]
        pd.DataFrame(pairs(*texts), columns=["text", "label"]).to_csv(file, sep="\t", index=False)
    settings = {"loader": "files", "path": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    experiment = Experiment.model_validate({"corpus": settings, "sources": ["eng"], "training": {"method": "probe"}})
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=r"eng/train.tsv and 2 more files: double quotes are read as") as told:
            checks.prepare(experiment)
        assert len(told) == 1


def test_strict_rows_give_lines_and_values(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_bytes(b'\xef\xbb\xbf"a"\tb\n\n"c\n\nd"\te\n')
    assert [(line, values) for line, values, _ in delimited.strict_rows(file, "\t")] == [
        (1, ["a", "b"]),
        (3, ["c\n\nd", "e"]),
    ]
