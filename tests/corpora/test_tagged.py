"""Corpora of tagged words: the layouts they are published in, what must survive, what is refused and how."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from xlt_ray.config import build
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora import loaders
from xlt_ray.corpora.arrow import column_digest
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.loaders import conversion
from xlt_ray.errors import InputError
from xlt_ray.languages.words import spans

# ten rows, written for these tests: (words, tags)
ROWS = [
    ("Amina lives in Kano .", "B-PER O O B-LOC O"),
    ("The Niger Delta Union met in New York .", "O B-ORG I-ORG I-ORG O O B-LOC I-LOC O"),
    ("Nothing happened .", "O O O"),
    ("Peter Mwangi , a farmer , sold maize .", "B-PER I-PER O O O O O O O"),
    ("# 1 in Lagos", "O O O B-LOC"),
    ("Kigali", "B-LOC"),
    ('She said : " Asante " .', "O O O O O O O"),
    ("Accra Lomé Cotonou", "B-LOC B-LOC B-LOC"),
    ("10 000 people", "O O O"),
    ("Red Cross nurses reached Goma by boat", "B-ORG I-ORG O O B-LOC O O"),
]
TAGS = ("B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O")


@pytest.fixture
def load(tmp_path: Path):
    def loaded(path: Any, **settings: Any) -> Corpus:
        settings = {"loader": "files", "cache_dir": str(tmp_path / "cache")} | settings
        return loaders.load(CorpusConfig(path=str(path), **settings))

    return loaded


def put(folder: Path, text: str | bytes, name: str = "test.conll") -> Path:
    """Write one file of eng, and return the pattern that finds it."""
    (folder / "eng").mkdir(parents=True, exist_ok=True)
    (folder / "eng" / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / "{language}" / f"{{split}}.{name.partition('.')[2]}"


def lines(rows: Sequence[tuple[str, str]] = ROWS, form: str = "{word} {tag}\n") -> str:
    return "\n".join(
        "".join(form.format(word=word, tag=tag) for word, tag in zip(words.split(), tags.split(), strict=True))
        for words, tags in rows
    )


def held(corpus: Corpus, split: str = "test", language: str = "eng_Latn") -> list[tuple[str, str]]:
    """Return the rows as they are written above, after finding every word in its text."""
    rows = corpus.table(split, language).to_pylist()
    for row in rows:
        assert [row["text"][low:high] for low, high in spans(row["text"], row["words"])] == row["words"]
        assert len(row["words"]) == len(row["label"])
    return [(" ".join(row["words"]), " ".join(corpus.labels[tag] for tag in row["label"])) for row in rows]


def refusal(load: Any, path: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **settings)
    return str(caught.value)


def sentence(corpus: Corpus, row: int = 0) -> dict[str, Any]:
    found = corpus.table("test", "eng_Latn").slice(row, 1).to_pylist()[0]
    return found | {"label": [corpus.labels[tag] for tag in found["label"]]}


# ------------------------------------------------------------------------------------------------ layouts


def conllu(rows: Sequence[tuple[str, str]] = ROWS) -> str:
    def one(words: Sequence[str], tags: Sequence[str]) -> str:
        head = f"# sent_id = s-{words[0]}\n# text = {' '.join(words)}\n"
        both = enumerate(zip(words, tags, strict=True), 1)
        return head + "".join(f"{at}\t{w}\t_\t{tag}\tX{tag}\t_\t0\troot\t_\t_\n" for at, (w, tag) in both)

    return "\n".join(one(words.split(), tags.split()) for words, tags in rows) + "\n"


LAYOUTS = {
    # CoNLL-2003: part of speech and chunk between, documents marked
    "conll": ("-DOCSTART- -X- -X- O\n\n" + lines(form="{word} NN B-NP {tag}\n"), {}),
    # MasakhaNER: two columns
    "txt": (lines(), {"format": "conll"}),
    "iob": (lines(form="{word}\t{tag}\n"), {"format": "conll"}),
    # WikiANN: a language before every word
    "bio": (lines(form="en:{word}\t{tag}\n"), {"format": "conll"}),
    # xSID: numbered words, comments, intent
    "conll.txt": (
        "# id: 1\n# text-en: x\n" + lines(form="1\t{word}\tintent\t{tag}\n"),
        {"format": "conll", "text": "2"},
    ),
    "conllu": (conllu(), {}),
    "conllu.gz": (gzip.compress(conllu().encode()), {}),
    "jsonl": (
        "".join(json.dumps({"tokens": w.split(), "ner_tags": t.split()}) + "\n" for w, t in ROWS),
        {"words": "tokens", "label": "ner_tags"},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_layout_gives_the_same_rows(load, tmp_path: Path, name: str) -> None:
    content, settings = LAYOUTS[name]
    corpus = load(put(tmp_path, content, f"test.{name}"), **settings)
    assert held(corpus) == ROWS
    assert corpus.labels == TAGS and corpus.tagged
    table = corpus.table("test", "eng_Latn")
    assert table.column_names == ["text", "words", "label", "id"]
    assert [str(kind) for kind in table.schema.types] == ["string", "list<item: string>", "list<item: int32>", "string"]
    assert table["text"][1].as_py() == ROWS[1][0] and table["id"][9].as_py() == "test:eng_Latn:9"
    assert bool(corpus.notes) == (name == "bio")


def test_parquet_has_tags_as_text_as_numbers_or_by_the_names_of_a_class_label(load, tmp_path: Path) -> None:
    words = [words.split() for words, _ in ROWS]
    numbers = [[TAGS.index(tag) for tag in tags.split()] for _, tags in ROWS]
    (tmp_path / "eng").mkdir()
    plain = pa.table({"tokens": words, "ner_tags": numbers})
    pyarrow.parquet.write_table(plain, tmp_path / "eng" / "test.parquet")
    assert load(tmp_path, words="tokens", label="ner_tags").labels == tuple("0123456")
    label = {"names": TAGS, "_type": "ClassLabel"}
    for kind in ({"feature": label, "_type": "Sequence"}, [label]):
        about = json.dumps({"info": {"features": {"ner_tags": kind}}})
        named = plain.replace_schema_metadata({"huggingface": about})
        pyarrow.parquet.write_table(named, tmp_path / "eng" / "test.parquet")
        assert held(load(tmp_path, words="tokens", label="ner_tags")) == ROWS
    large = plain.set_column(0, "tokens", plain["tokens"].cast(pa.large_list(pa.large_string())))
    large = large.set_column(1, "ner_tags", pa.array([tags.split() for _, tags in ROWS]))
    pyarrow.parquet.write_table(large, tmp_path / "eng" / "test.parquet")
    assert held(load(tmp_path, words="tokens", label="ner_tags")) == ROWS


def test_a_data_set_of_the_hub_has_them_by_the_names_of_its_feature(load, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kind = datasets.Features(
        tokens=datasets.Sequence(datasets.Value("string")),
        tags=datasets.Sequence(datasets.ClassLabel(names=list(TAGS))),
    )
    numbers = [[TAGS.index(tag) for tag in tags.split()] for _, tags in ROWS]
    part = datasets.Dataset.from_dict({"tokens": [w.split() for w, _ in ROWS], "tags": numbers}, features=kind)
    datasets.DatasetDict(test=part).save_to_disk(str(tmp_path / "data" / "eng"))
    assert held(load(tmp_path / "data", loader="hub", words="tokens", label="tags")) == ROWS


def test_a_folder_holds_files_of_any_suffix_once_the_format_is_named(load, tmp_path: Path) -> None:
    for name in ("test.conll", "test.txt", "test.iob2"):
        put(tmp_path / f"of {name} files", lines(), name)
        assert held(load(tmp_path / f"of {name} files", format="conll")) == ROWS
    fault = refusal(load, tmp_path / "of test.conll files")
    assert "test.conll: holds tagged words; set corpus.format=conll" in fault
    (tmp_path / "of test.conll files" / "eng" / "test.tsv").write_text("text\tlabel\na\tx\n", encoding="utf-8")
    assert load(tmp_path / "of test.conll files").table("test", "eng_Latn")["text"].to_pylist() == ["a"]


def test_which_corpora_are_tagged_is_said_by_the_configuration_alone() -> None:
    for settings, tagged in [
        ({}, False),
        ({"loader": "files", "path": "a/{language}.tsv"}, False),
        ({"loader": "files", "path": "a/{language}.conll.gz", "format": "tsv"}, False),
        ({"loader": "files", "path": "https://x.org/{language}.CONLLU?raw=1"}, True),
        ({"loader": "files", "format": "conll"}, True),
        ({"loader": "hub", "words": "tokens"}, True),
        ({"label": "slots"}, True),
        ({"loader": "hub", "label": "slots"}, False),
    ]:
        assert CorpusConfig(**settings).tagged == tagged, settings


# ------------------------------------------------------------------------------------------------ traps of CoNLL


def test_line_ends_marks_of_order_and_missing_last_lines_do_not_matter(load, tmp_path: Path) -> None:
    text = lines()
    for number, content in enumerate([
        text.rstrip("\n"),
        text + "\n\n\n",
        "\ufeff" + text,
        text.replace("\n", "\r\n"),
        text.replace("\n\n", "\n  \t\n"),
        text.replace(" ", " \t "),
        text.replace("\n", " \n"),
    ]):  # fmt: skip
        assert held(load(put(tmp_path / str(number), content))) == ROWS, number


def test_a_no_break_space_and_other_ends_of_lines_may_stand_in_a_word(load, tmp_path: Path) -> None:
    corpus = load(put(tmp_path, "10\u00a0000 O\na\u2028b O\nc\x85d B-X\n"))
    assert sentence(corpus)["words"] == ["10\u00a0000", "a\u2028b", "c\x85d"]


def test_a_word_holds_spaces_where_tabs_part_columns(load, tmp_path: Path) -> None:
    corpus = load(put(tmp_path, "in\tO\nNew York\tB-LOC\n\nhọc sinh\tO\n"))
    assert sentence(corpus)["words"] == ["in", "New York"] and sentence(corpus, 1)["words"] == ["học sinh"]
    assert sentence(load(put(tmp_path / "b", "EU NN\tB-X\nis VB\tO\n")))["words"] == [
        "EU",
        "is",
    ]  # and tabs beside spaces


@pytest.mark.parametrize("nothing", [" ", "\t", "\u00a0 ", "\u2003\t"])
def test_a_line_without_a_word_is_left_out_and_told_where_its_tag_is_none(load, tmp_path: Path, nothing: str) -> None:
    corpus = load(put(tmp_path, f"a O\n{nothing}O\nb B-X\n"))
    assert held(corpus) == [("a b", "O B-X")] and "lines without a word" in corpus.notes[0]
    tabs = load(put(tmp_path / "b", "a c\tO\n\tO\nb\tB-X\n"))
    assert sentence(tabs)["words"] == ["a c", "b"] and "lines without a word" in tabs.notes[0]
    assert "line 2: no word" in refusal(load, put(tmp_path / "c", f"a O\n{nothing}B-X\nb B-X\n"))
    only = load(put(tmp_path / "d", f"{nothing} O\n"), format="conll") if nothing.strip(" \t") else None
    assert only is None or only.sizes("test") == {"eng_Latn": 0}


def test_a_comment_is_skipped_and_the_word_that_looks_like_one_is_not(load, tmp_path: Path) -> None:
    text = "# id 17 domain=en\n#\n# SYM\nwe PRON\n# SYM\n#tag NOUN\n\n# SYM\nend NOUN\n"
    corpus = load(put(tmp_path, text))
    # at the beginning of a sentence it is the tag, in use elsewhere, that tells
    assert held(corpus) == [("we # #tag", "PRON SYM NOUN"), ("end", "NOUN")]
    known = load(put(tmp_path / "b", text.replace("end NOUN", "% SYM")))
    assert held(known)[1] == ("# %", "SYM SYM")
    assert held(load(put(tmp_path / "c", "# B-X\na O\n"))) == [("# a", "B-X O")]
    assert held(load(put(tmp_path / "d", "#\tO\na\tO\n"))) == [("# a", "O O")]


def test_any_column_can_be_asked_for(load, tmp_path: Path) -> None:
    path = put(tmp_path, "1 we PRON O\n2 eat VERB B-X\n")
    assert sentence(load(path, text="2", label="3"))["label"] == ["PRON", "VERB"]
    assert sentence(load(path, text="2"))["label"] == ["O", "B-X"]
    assert "4 columns ('1 we PRON O')" in refusal(load, path, label="5")
    assert "corpus.label: 'ner'; columns of conll have no names" in refusal(load, path, label="ner")


def test_iob1_becomes_iob2_where_a_file_is_iob1_for_certain(load, tmp_path: Path) -> None:
    corpus = load(put(tmp_path, "Accra I-LOC\nLomé B-LOC\nis O\nKofi I-PER\nAnnan I-PER\n"))
    assert held(corpus) == [("Accra Lomé is Kofi Annan", "B-LOC B-LOC O B-PER I-PER")]
    assert "IOB1" in corpus.notes[0] and "test.conll" in corpus.notes[0]
    mixed = load(put(tmp_path / "b", "Accra I-LOC\nis O\nKofi B-PER\n"))  # B- begins a span, so I- may be a slip
    assert held(mixed) == [("Accra is Kofi", "I-LOC O B-PER")] and not mixed.notes
    for tags in ("B-X E-X O S-Y I-X", "B-X L-X O U-Y I-X"):
        (other,) = held(load(put(tmp_path / tags[2:5], lines([("a b c d e", tags)]))))
        assert other[1] == tags


def test_iob1_after_another_type_begins_a_span_too(load, tmp_path: Path) -> None:
    corpus = load(put(tmp_path, "a I-X\nb I-Y\n\nc I-Y\n"))
    assert [tags for _, tags in held(corpus)] == ["B-X B-Y", "B-Y"]


def test_a_word_without_a_tag_is_told_by_its_line(load, tmp_path: Path) -> None:
    fault = refusal(load, put(tmp_path, "a O\nb O\n\nc\n"))
    assert "eng/test.conll, line 4: 1 columns where lines before have 2 ('c'); add the tag" in fault
    fault = refusal(load, put(tmp_path, "\na\nb\n"))
    assert "line 2: 1 columns, and words want one, tags another ('a'); take the file with tags" in fault
    assert "a space in a word wants tabs" in refusal(load, put(tmp_path, "a O\nNew York O\n"))
    assert "line 2" in refusal(load, put(tmp_path, b"a O\n\xe9t\xe9 O\n"))


def test_a_very_long_sentence_and_an_empty_file_are_read(load, tmp_path: Path) -> None:
    corpus = load(put(tmp_path, "word O\n" * 20_000))
    assert len(sentence(corpus)["words"]) == 20_000
    empty = load(put(tmp_path / "b", "# nothing\n\n"))
    assert empty.sizes("test") == {"eng_Latn": 0} and "empty" in empty.notes[0]
    assert empty.table("test", "eng_Latn").column_names == ["text", "words", "label", "id"]


def test_files_that_a_wildcard_finds_are_read_in_order_of_their_names(load, tmp_path: Path) -> None:
    for part in ("b", "a", "c"):
        put(tmp_path, f"{part} O\n", f"{part}-test.conll")
    rows = held(load(tmp_path / "{language}" / "*-{split}.conll"))
    assert [words for words, _ in rows] == ["a", "b", "c"]


# ------------------------------------------------------------------------------------------------ CoNLL-U

CONTRACTED = """# newdoc id = d
# sent_id = fr-1
# text = Il parle du « chat ».
1\tIl\til\tPRON\tCLS\t_\t2\tnsubj\t_\t_
2\tparle\tparler\tVERB\tV\t_\t0\troot\t_\t_
3-4\tdu\t_\t_\t_\t_\t_\t_\t_\t_
3\tde\tde\tADP\tP\t_\t6\tcase\t_\t_
4\tle\tle\tDET\tD\t_\t6\tdet\t_\t_
5\t«\t«\tPUNCT\tPN\t_\t6\tpunct\t_\t_
6\tchat\tchat\tNOUN\tN\t_\t2\tobl\t_\tSpaceAfter=No
6.1\tlà\tlà\tADV\tA\t_\t_\t_\t2:advmod\t_
7\t»\t»\tPUNCT\tPN\t_\t6\tpunct\t_\tA=b|SpaceAfter=No
8\t.\t.\tPUNCT\tPN\t_\t2\tpunct\t_\t_

# text = Ah, oui
1\tAh\tah\tINTJ\tI\t_\t0\troot\t_\tSpaceAfter=No
2\t,\t,\tPUNCT\tPN\t_\t1\tpunct\t_\t_
3\toui\toui\tINTJ\tI\t_\t1\tdep\t_\t_
"""


def test_the_words_of_contractions_are_tagged_and_their_text_is_made(load, tmp_path: Path) -> None:
    corpus = load(put(tmp_path, CONTRACTED, "test.conllu"), id="sent_id")
    row = sentence(corpus)
    assert row["words"] == ["Il", "parle", "de", "le", "«", "chat", "»", "."]
    assert row["label"] == ["PRON", "VERB", "ADP", "DET", "PUNCT", "NOUN", "PUNCT", "PUNCT"]
    assert row["text"] == "Il parle de le « chat»." and row["id"] == "fr-1"
    assert sentence(corpus, 1)["text"] == "Ah, oui" and sentence(corpus, 1)["id"] == "test:eng_Latn:1"
    assert len(corpus.notes) == 1 and "contractions" in corpus.notes[0]
    held(corpus)


def test_what_follows_a_contraction_stands_beside_the_contraction(load, tmp_path: Path) -> None:
    glued = CONTRACTED.replace("3-4\tdu\t_\t_\t_\t_\t_\t_\t_\t_", "3-4\tdu\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No")
    assert sentence(load(put(tmp_path, glued, "test.conllu")))["text"] == "Il parle de le« chat»."


def test_a_comment_that_says_more_than_the_words_is_not_their_text(load, tmp_path: Path) -> None:
    longer = CONTRACTED.replace("# text = Ah, oui", "# text = Ah, oui, oui")
    assert sentence(load(put(tmp_path, longer, "test.conllu")), 1)["text"] == "Ah, oui"


def test_another_column_of_conllu_can_be_asked_for(load, tmp_path: Path) -> None:
    path = put(tmp_path, CONTRACTED, "test.conllu")
    assert sentence(load(path, label="xpos"))["label"][:2] == ["CLS", "V"]
    assert sentence(load(path, label="deprel"))["label"][:2] == ["nsubj", "root"]
    assert "corpus.label: 'ner'" in refusal(load, path, label="ner")
    assert "no comment such as '# name = ...'; leave corpus.id out" in refusal(load, path, id="name")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("2\tparle\tparler\tVERB", "2\tparle\tparler\t_", "line 5: no tag"),
        ("\t6\tcase\t_\t_", "\t6\tcase\t_", "line 7: 9 columns, not 10"),
        ("1\tAh", "9\tAh", "line 16: number '9' where 1 follows"),
        ("\n\n# text = Ah", "\n# text = Ah", "line 15: number '1' where 9 follows"),
    ],
)
def test_a_fault_in_conllu_is_told_by_its_line(load, tmp_path: Path, before: str, after: str, expected: str) -> None:
    assert CONTRACTED.count(before) == 1
    assert expected in refusal(load, put(tmp_path, CONTRACTED.replace(before, after), "test.conllu"))


# ------------------------------------------------------------------------------------------------ lists


def rows_of(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


LISTED = {"words": "tokens", "label": "tags"}


def test_a_text_as_it_stands_must_hold_its_words(load, tmp_path: Path) -> None:
    good = {"text": "Lomé's  port", "tokens": ["Lomé", "'s", "port"], "tags": ["B", "O", "O"]}
    corpus = load(put(tmp_path, rows_of(good, good | {"text": None}), "test.jsonl"), **LISTED)
    assert [sentence(corpus, row)["text"] for row in (0, 1)] == ["Lomé's  port", "Lomé 's port"]
    bad = put(tmp_path, rows_of(good, good | {"text": "Lomé a port"}), "test.jsonl")
    expected = "eng/test.jsonl, line 2: word \"'s\" is not what follows in its text at ' a port'"
    assert expected in refusal(load, bad, **LISTED)
    longer = put(tmp_path, rows_of(good | {"text": "Lomé's port city"}), "test.jsonl")
    assert "line 1: the end of the words is not what follows in its text at ' city'" in refusal(load, longer, **LISTED)
    named = put(tmp_path, rows_of(good | {"sent": "Lomé's port"}), "test.jsonl")
    assert sentence(load(named, text="sent", **LISTED))["text"] == "Lomé's port"
    assert "no column 'raw' for corpus.text" in refusal(load, named, text="raw", **LISTED)


def test_numbers_are_tags_as_they_stand(load, tmp_path: Path) -> None:
    corpus = load(put(tmp_path, rows_of({"tokens": ["a", "b"], "tags": [0, 10]}), "test.jsonl"), **LISTED)
    assert sentence(corpus)["label"] == ["0", "10"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tokens": ["a"], "tags": "O"}, "line 2: 'tags' is a str ('O'), not a list of words or tags"),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, "line 2: 'tokens' holds int ('1') and str before"),
        ({"tokens": [["a"]], "tags": ["O"]}, "line 2: 'tokens' holds list"),
    ],
)
def test_a_list_that_is_none_is_told_by_its_line(load, tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    path = put(tmp_path, rows_of({"tokens": ["x"], "tags": ["O"]}, row), "test.jsonl")
    assert expected in refusal(load, path, **LISTED)


def test_lists_without_corpus_words_are_refused_with_the_way_out(load, tmp_path: Path) -> None:
    (tmp_path / "eng").mkdir()
    pyarrow.parquet.write_table(pa.table({"text": [["a"]], "label": [["O"]]}), tmp_path / "eng" / "test.parquet")
    assert "corpus.words" in refusal(load, tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loader": "files", "words": "w", "format": "csv"}, "words: w names a column of jsonl"),
        ({"words": "w"}, "words: w names a column of jsonl"),
        ({"label": "slots", "drop_labels": ["O"]}, "drop_labels"),
        ({"loader": "files", "format": "conll", "text_pair": "b"}, "text_pair: b, but every word has a tag"),
    ],
)
def test_what_makes_no_sense_for_words_is_refused_by_name(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        CorpusConfig(**settings)


def test_words_in_a_format_without_lists_are_refused(load, tmp_path: Path) -> None:
    path = put(tmp_path, "tokens\ttags\na\tO\n", "test.tsv")
    assert "tsv has no lists, as corpus.words wants" in refusal(load, path, **LISTED)


def test_runs_and_conversions_without_words_are_found_again() -> None:
    # names of before there were words
    assert conversion.key(CorpusConfig(), 1) == "225b49b650563bd99f47e3ab1516648e"
    one = {"sources": ["eng_Latn"], "corpus": {"loader": "hub", "path": "x/y"}}
    assert build(one).key() != build(one, ["corpus.words=tokens"]).key()
    assert "words" not in build(one).corpus.model_dump(exclude_none=True)


def test_labels_are_known_over_all_tags_and_a_stated_set_marks_the_rest(load, tmp_path: Path) -> None:
    put(tmp_path, lines(ROWS[:4]), "train.conll")
    path = put(tmp_path, "a O\nb B-NEW\n", "test.conll")
    corpus = load(path)
    assert corpus.labels == ("B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O")
    assert corpus.unknown_labels == ("B-NEW",)
    assert corpus.table("test", "eng_Latn")["label"].to_pylist() == [[6, 7]]
    stated = load(path, labels=["O", "B-NEW"])
    assert stated.labels == ("O", "B-NEW") and stated.table("test", "eng_Latn")["label"].to_pylist() == [[0, 1]]


def test_the_fingerprint_sees_words_and_tags_however_they_are_chunked(load, tmp_path: Path) -> None:
    def of(*rows: tuple[str, str]) -> str:
        return load(put(tmp_path / str(len(list(tmp_path.iterdir()))), lines(rows))).fingerprint

    assert of(("a b", "O B-X")) == of(("a b", "O B-X")) != of(("a b", "B-X O"))
    for number, words in enumerate((["a b", "c"], ["a", "b c"])):
        put(tmp_path / f"w{number}", rows_of({"tokens": words, "tags": ["O", "B"]}), "test.jsonl")
    both = [load(tmp_path / f"w{number}" / "{language}" / "{split}.jsonl", **LISTED) for number in (0, 1)]
    assert both[0].table("test", "eng_Latn")["text"] == both[1].table("test", "eng_Latn")["text"]
    assert both[0].fingerprint != both[1].fingerprint
    lists = [["ab", "c"], None, [], [None, "d"]]
    whole = pa.chunked_array([lists], pa.list_(pa.string()))
    parts = pa.chunked_array([lists[:1], lists[1:3], lists[3:]], pa.list_(pa.string()))
    assert column_digest(whole) == column_digest(parts) == column_digest(pa.chunked_array([whole.chunk(0)]).slice(0))
    for other in ([["ab"], ["c"], [], [None, "d"]], [["ab", "c"], [], [], [None, "d"]], [["a", "bc"], *lists[1:]]):
        assert column_digest(pa.chunked_array([other], pa.list_(pa.string()))) != column_digest(whole)


def test_what_a_corpus_is_asked_for_carries_no_label_and_keeps_words(load, tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        path = put(tmp_path, lines(ROWS if split == "train" else ROWS[:3]), f"{split}.conll")
    corpus = load(path)
    assert corpus.unlabelled(["eng_Latn"], ids=True)["eng_Latn"].column_names == ["text", "id"]
    kept = corpus.for_training(["eng_Latn"])
    assert (
        kept.tagged
        and not kept.splits["test"]
        and kept.adding("train", kept.splits["train"]).sizes("train") == {"eng_Latn": 20}
    )
