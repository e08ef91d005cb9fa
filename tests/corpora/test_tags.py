"""What `check` refuses and says of tagged words, and that overlap and digests read their texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from xlt_ray.corpora import seen, tags
from xlt_ray.corpora.arrow import with_origin
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.overlap import drop_overlap
from xlt_ray.corpora.soundness import check
from xlt_ray.errors import InputError

NAMES = ("B-X", "I-X", "O")
Row = tuple[str, str | None]  # words, and tags by their first letters; ? for none
GOOD: list[Row] = [("Ade went", "BO"), ("New York", "BI"), ("no one", "OO")]


def table(rows: Sequence[Row], origin: str, names: Sequence[str] = NAMES) -> pa.Table:
    numbers = {name[0]: number for number, name in enumerate(names)} | {"?": None}
    words = [[word.strip("_") or (None if word == "__" else "") for word in text.split()] for text, _ in rows]
    columns = {
        "text": pa.array([f"{origin} {text}" for text, _ in rows], pa.string()),
        "words": pa.array([[origin, *one] if one else one for one in words], pa.list_(pa.string())),
        "label": pa.array(
            [None if t is None else [numbers[letter] for letter in ("O" if w else "") + t] for w, t in rows],
            pa.list_(pa.int32()),
        ),
        "id": pa.array([f"{origin}-{row}" for row in range(len(rows))], pa.string()),
    }
    return with_origin(pa.table(columns), f"{origin}.jsonl", 1)


def corpus(train: Sequence[Row] = GOOD, test: Sequence[Row] = GOOD, names=NAMES, **settings) -> Corpus:
    splits = {
        "train": {"eng_Latn": table(train, "train", names)},
        "test": {"eng_Latn": table(GOOD, "test", names), "hau_Latn": table(test, "htest", names)},
    }
    return Corpus("tiny", NAMES, splits, **settings)


def refusal(one: Corpus) -> str:
    with pytest.raises(InputError) as caught:
        check(one, ["eng_Latn"])
    return str(caught.value)


def warned(one: Corpus) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(one, ["eng_Latn"])
    return [str(warning.message) for warning in caught]


def test_sound_tagged_words_pass_without_a_word_and_few_rows_are_enough() -> None:
    assert warned(corpus()) == []
    assert warned(corpus(train=[("Ade", "B"), ("York", "I")])) != []  # two rows for three tags; I- behind O


@pytest.mark.parametrize(
    ("row", "expected", "remedy"),
    [
        (("", ""), "htest.jsonl, line 4: no words", "; remove the row"),
        (("a b", None), "htest.jsonl, line 4: words without tags", "; tag them or remove the row"),
        (("a b", "B"), "htest.jsonl, line 4: 3 words and 2 tags", "; correct it or remove the row"),
        (("a _ b", "BOO"), "htest.jsonl, line 4: an empty word", "; correct it"),
        (("a __ b", "BOO"), "htest.jsonl, line 4: an empty word", "; correct it"),
        (("a b", "B?"), "htest.jsonl, line 4: a word without a tag", "; correct it"),
    ],
)
def test_rows_of_no_use_are_refused_by_their_place(row: Row, expected: str, remedy: str) -> None:
    assert f"{expected} (and 1 more rows of test, hau_Latn){remedy}" in refusal(corpus(test=[*GOOD, row, row]))


def test_a_tag_that_no_source_teaches_is_refused_with_its_word() -> None:
    fault = refusal(corpus(test=[*GOOD, ("Ade saw Ann", "OOI")], train=[("Ade went", "BO"), ("x", "B")]))
    assert "test.jsonl, line 2: tag 'I-X' of 'York' and of 2 more words is in no train split of the sources; " in fault
    assert "did you mean 'B-X'? correct it, or state all by 'corpus.labels=[B-X, I-X, O]'" in fault
    stated = corpus(train=[("Ade went", "BO"), ("x", "B")], labels_stated=True)
    assert any("no train row of the sources has I-X, so no word will be given it" in one for one in warned(stated))


def test_a_tag_outside_the_stated_ones_is_refused() -> None:
    one = corpus(test=[("Ade", "N")], names=(*NAMES, "NEW"), labels_stated=True, unknown_labels=("NEW",))
    assert "htest.jsonl, line 1: tag 'NEW' of 'Ade' is not in corpus.labels; correct it" in refusal(one)


def test_one_tag_alone_teaches_nothing() -> None:
    assert "every word of the sources has the tag 'O'" in refusal(corpus(train=[("a b", "OO"), ("c", "O")]))


def test_an_i_that_begins_a_span_is_counted() -> None:
    (said,) = warned(corpus(test=[("a b c", "BIO"), ("d e", "OI"), ("f g", "II")]))
    assert said.startswith("test, hau_Latn: 2 words have a tag such as I-NAME and none of their span before them, ")
    assert "the first 'e' at htest.jsonl, line 2" in said


def test_the_rows_before_and_another_name_begin_a_span_anew() -> None:
    names = ["B-X", "I-X", "I-Y", "E-X", "O"]
    rows = pa.table(
        {"label": pa.array([[0, 1], [1], None, [], [0, 2, 2, 1], [4, None, 1], [3, 1]], pa.list_(pa.int32()))}
    )
    broken = np.flatnonzero(tags._broken(rows, names)).tolist()
    assert broken == [2, 4, 6, 9, 11]
    assert not tags._broken(rows.slice(0, 0), names).size


def test_mixed_tags_and_numbers_are_warned_of() -> None:
    def of(*names: str) -> list[str]:
        one = corpus()
        return warned(Corpus("tiny", names, one.splits))

    assert of("NOUN", "I_X", "O") == []
    assert "tags NOUN are neither O nor of the form B-NAME" in of("B-X", "NOUN", "O")[0]
    assert of("B-X", "I-X", "X-POS")[0].startswith("tags X-POS are neither")
    assert of("0", "1", "2")[0].startswith("tags are numbers, 0, 1, 2")


def test_rows_of_one_text_are_compared_by_their_tags() -> None:
    one = corpus(test=[("Ade", "B"), ("Ade", "O"), ("Ade", "B")])
    said = "\n".join(warned(one))
    assert "test: 3 rows have a text that stands there with another label too, such as 'htest Ade'" in said
    assert "line 2 ('O O')" in said and "('O B-X')" in said
    assert "another label" not in "\n".join(warned(corpus(test=[("Ade", "B")] * 3)))


def test_overlap_and_digests_read_the_text() -> None:
    one = corpus()
    test = {**one.splits["test"], "hau_Latn": one.table("train", "eng_Latn").slice(1, 1)}
    leaked = Corpus("tiny", NAMES, {**one.splits, "test": test})
    assert "is in test too" in refusal(leaked)
    kept, dropped = drop_overlap(leaked)
    assert dropped == {"train": {"eng_Latn": 1}} and kept.table("train", "eng_Latn")["words"][1].as_py()[1] == "no"
    digests = seen.digests([one.table("train", "eng_Latn")])
    assert len(digests) == 3
    assert "trained on this text" in next(seen.faults(leaked, ["hau_Latn"], digests, "m"))


def test_many_rows_in_pieces_and_chunks_are_judged_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlt_ray.corpora.overlap.PIECE_ROWS", 2)
    rows = [("a b", "BI"), ("c d", "OI"), ("e", "I"), ("f", "O"), ("g h", "BO")]
    whole = table(rows, "htest")
    parts = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 2), whole.slice(3)])
    one = corpus()
    found = Corpus("tiny", NAMES, {**one.splits, "test": {"hau_Latn": parts}})
    assert ["2 words have a tag" in said for said in warned(found)] == [True]
