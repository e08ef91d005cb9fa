"""Parallel text in files of its own: layouts, what is wrong with a file, and that none of it stands in test."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from xlt_ray.config.read import build
from xlt_ray.corpora import loaders, overlap, soundness
from xlt_ray.corpora.corpus import Corpus, end_to_end
from xlt_ray.corpora.loaders.beside import parallel
from xlt_ray.errors import InputError
from xlt_ray.training.checks import absolute

Settings = dict[str, Any]
MEMORY = """<?xml version="1.0" encoding="UTF-8"?>
<tmx version="1.4"><header/><body>
<tu><note>n</note><tuv xml:lang="en"><seg>a <bpt i="1">&lt;b&gt;</bpt><hi>house</hi><ept i="1">x</ept></seg></tuv>
<tuv xml:lang="sw"><seg>nyumba</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>alone</seg></tuv><tuv xml:lang="tlh"><seg>Klingon</seg></tuv></tu>
<tu><tuv lang="en-GB"><seg>water</seg></tuv><tuv lang="en-US"><seg>Water</seg></tuv>
<tuv lang="SW"><seg>maji</seg></tuv></tu>
</body></tmx>"""


def written(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")
    return folder


def rows(found: dict[str, pa.Table]) -> dict[str, dict[str, str]]:
    return {code: dict(zip(*table.to_pydict().values(), strict=True)) for code, table in found.items()}


def test_a_table_has_a_column_a_language(tmp_path: Path) -> None:
    folder = written(
        tmp_path, a__tsv="key\ten\tswh_Latn\tde\n1\ta house\tnyumba\t\n2\tword\t\t \n3\tsea\tbahari\tdas  Meer\n"
    )
    assert rows(parallel.read(str(folder))) == {
        "eng_Latn": {"a.tsv:2": "a house", "a.tsv:4": "sea"},  # "word" has no translation
        "swh_Latn": {"a.tsv:2": "nyumba", "a.tsv:4": "bahari"},
        "deu_Latn": {"a.tsv:4": "das Meer"},
    }


def test_id_is_indonesian(tmp_path: Path) -> None:
    file = written(tmp_path, a__tsv="en\tid\nhouse\trumah\n") / "a.tsv"
    assert set(parallel.read(str(file))) == {"eng_Latn", "ind_Latn"}


def test_a_memory_may_have_a_namespace(tmp_path: Path) -> None:
    file = written(tmp_path, a__tmx=MEMORY.replace("<tmx ", '<tmx xmlns="http://www.lisa.org/tmx14" ')) / "a.tmx"
    assert rows(parallel.read(str(file)))["swh_Latn"] == {"a.tmx:1": "nyumba", "a.tmx:3": "maji"}


def test_ids_are_relative_to_the_fixed_part_of_a_pattern(tmp_path: Path) -> None:
    written(tmp_path / "news", a__tsv="en\tsw\na\tb\n")
    for pattern in ("n?ws/*.tsv", "news*/a.tsv"):
        assert list(rows(parallel.read(str(tmp_path / pattern)))["eng_Latn"]) == ["news/a.tsv:2"]
    written(tmp_path, newsletter__tsv="en\tsw\na\tb\n")
    assert list(rows(parallel.read(str(tmp_path / "news*.tsv")))["eng_Latn"]) == ["newsletter.tsv:2"]


def test_quotes_in_a_table_are_characters(tmp_path: Path) -> None:
    file = written(tmp_path, a__tsv='en\tsw\n"a\tnyumba\n') / "a.tsv"
    assert rows(parallel.read(str(file))) == {"eng_Latn": {"a.tsv:2": '"a'}, "swh_Latn": {"a.tsv:2": "nyumba"}}


def test_a_translation_memory_is_read_by_its_units(tmp_path: Path) -> None:
    found = rows(parallel.read(str(written(tmp_path, one__tmx=MEMORY) / "*.tmx")))
    assert found == {
        "eng_Latn": {"one.tmx:1": "a house", "one.tmx:3": "water"},
        "swh_Latn": {"one.tmx:1": "nyumba", "one.tmx:3": "maji"},
    }


def test_files_aligned_by_line_are_told_by_their_suffixes(tmp_path: Path) -> None:
    written(tmp_path / "x", news__en="a\n\nb\r\n", news__sw="A\nB\nC\n", README="text")
    written(tmp_path / "y", news__en="c\n", news__zz_Made="Z\n")
    written(tmp_path / "x" / ".git", a__tsv="no table")
    written(tmp_path / "x", run__sh="a script, whose suffix is a code of Serbian")
    with pytest.warns(UserWarning, match="left out, as they are neither .*: x/README, x/run.sh$"):
        found = rows(parallel.read(str(tmp_path), ["zz_Made"]))
    assert found == {
        "eng_Latn": {"x/news:1": "a", "x/news:3": "b", "y/news:1": "c"},
        "swh_Latn": {"x/news:1": "A", "x/news:3": "C"},
        "zz_Made": {"y/news:1": "Z"},
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a__tsv": "hello\thabari\n"}, r"a\.tsv, line 1: 'hello': a first line names the language"),
        ({"a__tsv": "key\ten\n1\tx\n"}, "line 1: .* two or more"),
        ({"a__tsv": "en\teng_Latn\nx\ty\n"}, "two columns are of one language"),
        ({"a__tsv": "en\tsw\nx\n"}, r"a\.tsv, line 2: 1 columns where the first line has 2"),
        ({"a__tsv": "en\tsw\nx\ty\n", "b__tmx": "<tmx><body>"}, r"b\.tmx, line 1: not well-formed XML"),
        ({"n__en": "a\nb\n", "n__sw": "a\n"}, r"differ in their numbers of lines \(n\.en 2, n\.sw 1\)"),
        ({"n__en": "a\n"}, r"several files aligned by line .* \(there: n\.en\)"),
        ({"n__en": "a\n", "n__eng": "a\n"}, "two of these files are of one language"),
        ({"b__tmx": '<?xml version="1.0" encoding="GB18030"?><tmx/>'}, "its encoding cannot be read .*iconv"),
        ({"b__tmx": "version https://git-lfs.github.com/spec/v1\nsize 3\n"}, "a Git LFS pointer"),
        ({"a__tsv": "en\tsw\n"}, "no text with a translation found"),
        ({"readme__md": "x"}, "no text with a translation found"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parallel.read(str(written(tmp_path, **files)))


def test_a_path_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus\.parallel .*nothing: no such file"):
        parallel.read(str(tmp_path / "nothing"))


@pytest.fixture
def settings(tiny_settings: Settings, tmp_path: Path) -> Settings:
    changed = copy.deepcopy(tiny_settings)
    changed["corpus"]["parallel"] = str(written(tmp_path / "beside", a__tsv="en\tsw\neng1 eng2\tswh1 swh2\n"))
    return changed


def test_a_corpus_holds_it_beside_its_splits_and_it_decides_the_run(settings: Settings, tmp_path: Path) -> None:
    corpus = loaders.load(build(settings).corpus)
    assert rows(dict(corpus.parallel)) == {"eng_Latn": {"a.tsv:2": "eng1 eng2"}, "swh_Latn": {"a.tsv:2": "swh1 swh2"}}
    both = end_to_end(corpus.unlabelled(["eng_Latn"], ids=True), corpus.parallel, ["eng_Latn"])
    assert both["eng_Latn"]["text"].to_pylist()[-1] == "eng1 eng2" and list(both) == ["eng_Latn"]
    (tmp_path / "beside" / "a.tsv").write_text("en\tsw\neng1 eng3\tswh1 swh2\n", encoding="utf-8")
    changed = loaders.load(build(settings).corpus)
    assert changed.fingerprint != corpus.fingerprint
    plain = copy.deepcopy(settings)
    del plain["corpus"]["parallel"]
    assert loaders.load(build(plain).corpus).fingerprint not in (changed.fingerprint, corpus.fingerprint)


def test_its_path_is_made_absolute_for_workers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings["corpus"]["parallel"] = "beside/*.tsv"
    assert absolute(build(settings)).corpus.parallel == str(tmp_path / "beside" / "*.tsv")


def test_text_that_stands_in_test_is_refused_or_dropped_with_its_translations(settings: Settings) -> None:
    corpus = loaders.load(build(settings).corpus)
    tested = corpus.table("test", "swh_Latn")["text"][0].as_py()
    file = Path(settings["corpus"]["parallel"]) / "a.tsv"
    file.write_text(f"en\tsw\neng1 eng2\tswh1 swh2\neng7 eng9\t{tested}\n", encoding="utf-8")
    experiment = build(settings)
    with pytest.raises(InputError, match=r"corpus\.parallel, swh_Latn, a\.tsv:3: text .* is in test too"):
        soundness.check(loaders.load(experiment.corpus), experiment.sources)
    settings["corpus"]["overlap"] = "drop_train"
    kept, dropped = loaders.load_corpus(build(settings))
    assert {code: table["id"].to_pylist() for code, table in kept.parallel.items()} == {
        "eng_Latn": ["a.tsv:2"],
        "swh_Latn": ["a.tsv:2"],
    }
    assert dropped["parallel"] == {"eng_Latn": 1, "swh_Latn": 1}
    soundness.check(kept, experiment.sources)


def test_in_pair_tasks_neither_text_may_stand_in_test() -> None:
    def table(**columns: list[str]) -> pa.Table:
        return pa.table({**columns, "id": [str(row) for row in range(len(columns["text"]))]})

    test = table(text=["premise"], text_pair=["hypothesis"]).append_column("label", pa.array([0], pa.int32()))
    beside = {code: table(text=texts) for code, texts in (("eng_Latn", ["a", "b", "c"]), ("swh_Latn", ["x", "y", "z"]))}
    for text, row in (("premise", 0), ("hypothesis", 2)):
        texts = ["a", "b", "c"]
        texts[row] = text
        corpus = Corpus(
            "made", ("a",), {"test": {"eng_Latn": test}}, parallel={**beside, "eng_Latn": table(text=texts)}
        )
        (fault,) = overlap.overlaps_beside(corpus, ["eng_Latn"])
        assert f"eng_Latn, {row}: text '{text}' is in test too" in fault
        kept, dropped = overlap.drop_overlap(corpus)
        assert dropped["parallel"] == {"eng_Latn": 1, "swh_Latn": 1} and kept.parallel["swh_Latn"].num_rows == 2
