"""What `check` refuses and says, and what `drop_overlap` takes out."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from xlt_ray.corpora import overlap
from xlt_ray.corpora.arrow import with_origin
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.overlap import drop_overlap
from xlt_ray.corpora.soundness import check
from xlt_ray.errors import InputError

Row = tuple[str | None, int | None, str]


def table(rows: Sequence[Row], pairs: Sequence[str] | None = None, origin: str | None = None) -> pa.Table:
    columns = {
        "text": pa.array([text for text, _, _ in rows], pa.string()),
        "label": pa.array([label for _, label, _ in rows], pa.int32()),
        "id": pa.array([id for _, _, id in rows], pa.string()),
    }
    made = pa.table(columns | ({"text_pair": pa.array(pairs, pa.string())} if pairs else {}))
    return with_origin(made, origin, 2) if origin else made


def good(language: str, split: str, size: int = 4) -> list[Row]:
    return [(f"{split} {language} {number}", number % 2, f"{split} {number}") for number in range(size)]


def sound(**changes: list[Row] | None) -> Corpus:
    """Build a sound corpus of eng_Latn, hau_Latn (both with all splits) and yor_Latn (test); change or drop parts."""
    whole = {f"{split}_{code}": good(code, split) for split in ("train", "dev", "test") for code in ("eng", "hau")}
    parts: dict[str, list[Row] | None] = {**whole, "test_yor": good("yor", "test"), **changes}
    splits: dict[str, dict[str, pa.Table]] = {"train": {}, "dev": {}, "test": {}}
    for name, rows in parts.items():
        split, code = name.split("_")
        if rows is not None:
            splits[split][f"{code}_Latn"] = table(rows, origin=f"{code}/{split}.tsv")
    return Corpus("tiny", ("no", "yes"), splits)


SOURCES = ["eng_Latn", "hau_Latn"]


def refusal(corpus: Corpus, sources: Sequence[str] = SOURCES, targets="all", dev: Sequence[str] = ()) -> str:
    with pytest.raises(InputError) as caught:
        check(corpus, sources, targets, dev)
    return str(caught.value)


def test_a_sound_corpus_passes_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(sound(), SOURCES, "all", SOURCES)


def test_ids_shared_by_languages_pass_as_long_as_no_id_is_in_two_splits() -> None:
    corpus = sound()
    assert corpus.table("train", "eng_Latn")["id"] == corpus.table("train", "hau_Latn")["id"]
    check(corpus, SOURCES)


@pytest.mark.parametrize(
    ("changes", "arguments", "expected"),
    [
        (
            {"train_hau": None},
            {},
            "train: source hau_Latn has none; add its rows, or take a language that has it, such as eng_Latn",
        ),
        (
            {"dev_hau": None},
            {"dev": SOURCES},
            "dev: language hau_Latn has none; add its rows, or take a language that has it",
        ),
        (
            {},
            {"targets": ["zul_Latn"]},
            "test: target zul_Latn has none; add its rows, or take a language that has it",
        ),
        (
            {"test_yor": [*good("yor", "test"), ("extra", None, "z")]},
            {},
            "yor/test.tsv, line 6: no label; label it, remove the row, or leave out all such rows by "
            "\"corpus.drop_labels=['']\"",
        ),
        (
            {"test_yor": [("a", 0, "y1"), (" \t", 0, "y2"), (None, 1, "y3")]},
            {},
            "yor/test.tsv, line 3: empty text (and 1 more rows of test, yor_Latn); fill it or remove the row",
        ),
        (
            {"train_eng": [("a", 1, "y1")]},
            {},
            "eng/train.tsv, train, eng_Latn: 1 rows for 2 labels; add rows, or do not take it as a source",
        ),
        (
            {"train_eng": [], "train_hau": []},
            {},
            "eng/train.tsv, train, eng_Latn: no rows; add some, or take another source",
        ),
        (
            {"train_hau": [("a", 0, "1"), ("b", 0, "2")]},
            {},
            "train: label 'yes' occurs in eng_Latn alone (2 rows) of 2 sources; merge it with another, or leave it out "
            "by corpus.drop_labels=yes, or where all are classes, state them by \"corpus.labels=['no', 'yes']\"",
        ),
        (
            {"train_eng": [("a", 0, "1"), ("b", 0, "2")], "train_hau": [("c", 0, "1"), ("d", 0, "2")]},
            {},
            "eng/dev.tsv, line 3: label 'yes' (10 rows in 5 splits) is in no train split of the sources",
        ),
        (
            {"train_hau": [*good("hau", "train"), ("new", 0, "test 2")]},
            {},
            "hau/train.tsv, line 6: id 'test 2' is in test too, at eng/test.tsv, line 4; remove the rows from either, "
            "or set corpus.overlap: drop_train, or unset corpus.id",
        ),
        (
            {"dev_eng": [("test eng 1 ", 0, "q")]},
            {},
            "eng/dev.tsv, line 2: text 'test eng 1' is in test too, at eng/test.tsv, line 3",
        ),
        (
            {"train_eng": [*good("eng", "train"), ("test yor 3", 1, "q")]},
            {},
            "eng/train.tsv, line 6: text 'test yor 3' is in test too, at yor/test.tsv, line 5",
        ),
    ],
    ids=[
        "source without train",
        "no dev where it is needed",
        "target without test",
        "null label",
        "empty text",
        "fewer rows than labels",
        "train without rows",
        "label in one language",
        "label without train rows",
        "id in train and test",
        "text in dev and test",
        "text in train and in another language's test",
    ],
)
def test_a_fault_is_refused_with_place_value_and_remedy(changes: dict, arguments: dict, expected: str) -> None:
    assert expected in refusal(sound(**changes), **arguments)


def test_all_faults_come_in_one_message() -> None:
    message = refusal(sound(train_hau=None, test_yor=[("", 0, "1"), ("x", None, "2")]), dev=["zul_Latn"])
    assert message.startswith("corpus tiny: 4 faults")
    assert all(part in message for part in ("hau_Latn", "zul_Latn", "empty text", "no label"))


def test_a_label_outside_the_label_set_is_named_with_a_near_one() -> None:
    whole = sound(test_yor=[("a", 2, "1")])
    corpus = Corpus("tiny", ("no", "yes"), whole.splits, unknown_labels=("yess",))
    assert (
        "yor/test.tsv, line 2: label 'yess' (1 rows of test, yor_Latn) is in no train split of the sources; did you "
        "mean 'yes'? correct it, or leave such rows out by corpus.drop_labels=yess, or where all are "
        "classes, state them"
    ) in refusal(corpus)


def test_stated_labels_may_be_lopsided_but_not_exceeded() -> None:
    lopsided = sound(train_hau=[("a", 0, "1"), ("b", 0, "2")])
    check(Corpus("tiny", ("no", "yes"), lopsided.splits, labels_stated=True), SOURCES)
    strange = sound(train_hau=[*good("hau", "train"), ("b", 2, "9")])
    message = refusal(Corpus("tiny", ("no", "yes"), strange.splits, labels_stated=True, unknown_labels=("maybe",)))
    assert "hau/train.tsv, line 6: label 'maybe' (1 rows of train, hau_Latn) is not in corpus.labels" in message


def test_one_source_may_have_any_labels() -> None:
    check(sound(), ["eng_Latn"])


def test_what_no_run_reads_is_not_looked_at() -> None:
    broken = sound(train_hau=[("", None, "test 0")], dev_hau=[("test eng 0", 0, "q")])
    check(broken, ["eng_Latn"])


def test_rows_without_a_line_are_named_by_their_id() -> None:
    train, test = table([("", 0, "row-7"), ("b", 1, "row-8")]), table([("c", 0, "t")])
    corpus = Corpus("tiny", ("no", "yes"), {"train": {"eng_Latn": train}, "test": {"eng_Latn": test}})
    assert "train, eng_Latn, row row-7: empty text" in refusal(corpus, ["eng_Latn"])


def test_pairs_are_the_same_where_both_texts_are() -> None:
    train = table([("p", 0, "1"), ("p", 1, "2")], pairs=["h1", "h2"])
    fine = table([("p", 0, "3"), ("p", 1, "4")], pairs=["h3", "h4"])
    same = table([("p", 0, "3"), ("p", 1, "4")], pairs=["h3", "h2"])
    bare = table([("p", 0, "3"), ("q", 1, "4")], pairs=["h3", " "])

    def tested(test: pa.Table) -> Corpus:
        return Corpus("pairs", ("no", "yes"), {"train": {"eng_Latn": train}, "test": {"eng_Latn": test}})

    check(tested(fine), ["eng_Latn"])
    twin = "row 2: text 'p / h2' is in test too, at test, eng_Latn, row 4"
    assert twin in refusal(tested(same), ["eng_Latn"])
    assert "row 4: empty text_pair" in refusal(tested(bare), ["eng_Latn"])


def test_ids_that_repeat_inside_a_split_only_warn() -> None:
    with pytest.warns(UserWarning, match=r"yor/test.tsv, test, yor_Latn: 1 rows repeat an earlier row's id"):
        check(sound(test_yor=[("a", 0, "same"), ("b", 1, "same")]), SOURCES)


def test_dropping_takes_rows_from_train_and_dev_and_counts_them() -> None:
    corpus = sound(
        train_eng=[*good("eng", "train"), ("test yor 0", 0, "q"), ("x", 0, "test 1")],
        dev_hau=[*good("hau", "dev"), ("test hau 1", 1, "r")],
    )
    refusal(corpus)
    smaller, dropped = drop_overlap(corpus)
    assert dropped == {"train": {"eng_Latn": 2}, "dev": {"hau_Latn": 1}}
    assert smaller.sizes("train") == {"eng_Latn": 4, "hau_Latn": 4}
    assert smaller.sizes("test") == corpus.sizes("test")
    assert smaller.table("train", "hau_Latn") is corpus.table("train", "hau_Latn"), "untouched tables stay mapped"
    assert corpus.sizes("train") == {"eng_Latn": 6, "hau_Latn": 4}, "the corpus given is not changed"
    check(smaller, SOURCES)


def test_dropping_finds_rows_where_other_languages_have_pairs() -> None:
    split = {"eng_Latn": table([("same", 0, "a")]), "deu_Latn": table([("d", 0, "b")], pairs=["p"])}
    corpus = Corpus("mixed", ("no", "yes"), {"train": split, "test": {"eng_Latn": table([("same", 0, "t")])}})
    smaller, dropped = drop_overlap(corpus)
    assert dropped == {"train": {"eng_Latn": 1}} and smaller.sizes("train") == {"eng_Latn": 0, "deu_Latn": 1}


def test_dropping_without_overlap_changes_nothing() -> None:
    corpus = sound()
    smaller, dropped = drop_overlap(corpus)
    assert dropped == {}
    assert smaller.fingerprint == corpus.fingerprint


def test_no_line_is_claimed_once_rows_are_gone() -> None:
    corpus = sound(train_eng=[("test yor 0", 0, "q"), *good("eng", "train"), ("", 0, "blank")])
    smaller, _ = drop_overlap(corpus)
    assert "eng/train.tsv, train, eng_Latn, row blank: empty text" in refusal(smaller)


def test_small_languages_share_a_search_and_large_ones_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlt_ray.corpora.overlap.PIECE_ROWS", 5)
    codes = [f"l{number:02d}_Latn" for number in range(9)]
    splits = {split: {code: table(good(code, split, size=3)) for code in codes} for split in ("train", "dev", "test")}
    splits["train"]["l07_Latn"] = table([*good("l07_Latn", "train"), ("test l03_Latn 2", 0, "q")])
    splits["dev"]["l02_Latn"] = table([*good("l02_Latn", "dev", size=13), ("test l08_Latn 0", 1, "r"), (" ", 0, "s")])
    corpus = Corpus("many", ("no", "yes"), splits)
    assert "dev, l02_Latn, row r: text 'test l08_Latn 0' is in test too" in refusal(corpus, codes)
    assert "dev, l02_Latn, row s: empty text" in refusal(corpus, codes)
    assert "train, l07_Latn, row q: text 'test l03_Latn 2' is in test too" in refusal(corpus, codes)
    assert drop_overlap(corpus)[1] == {"train": {"l07_Latn": 1}, "dev": {"l02_Latn": 1}}


SAME = ["caf\u00e9 cr\u00e8me au lait", "cafe\u0301 cre\u0300me au lait"]


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        SAME,
        ("the \ufb01ne \uff21\uff22\uff23", "the fine ABC"),
        ("zero\u200bwidth \u200fmarks\u200e \ufeff", "zerowidth marks"),
        ("soft\u00adhyphen", "softhyphen"),
        ("two  spaces\tand\u00a0one\u3000more\u2028", " two spaces and one more"),
        ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u0631\u0648\u0645"),
        ("heart \u2764\ufe0f", "heart \u2764"),
    ],
    ids=ascii,
)
def test_texts_that_encoders_see_as_one_are_one(mine: str, theirs: str) -> None:
    corpus = sound(train_eng=[*good("eng", "train"), (mine, 0, "q")], test_yor=[*good("yor", "test"), (theirs, 0, "r")])
    message = refusal(corpus)
    assert "1 fault" in message and "eng/train.tsv, line 6: text " in message
    assert "is in test too, at yor/test.tsv, line 6" in message
    smaller, dropped = drop_overlap(corpus)
    assert dropped == {"train": {"eng_Latn": 1}}
    check(smaller, SOURCES)


@pytest.mark.parametrize("other", ["The Fine ABC", "the fine abd", "the-fine abc", "thefine abc", "th\u00e9 fine abc"])
def test_texts_that_differ_for_an_encoder_are_two(other: str) -> None:
    check(sound(train_eng=[*good("eng", "train"), ("the fine abc", 0, "q")], test_yor=[(other, 0, "r")]), SOURCES)


def test_a_text_of_invisible_characters_is_empty() -> None:
    assert "yor/test.tsv, line 2: empty text" in refusal(sound(test_yor=[("\u200b\ufeff \u00ad", 0, "r")]))


def test_contrary_and_repeated_texts_are_mentioned_with_their_number_and_an_example() -> None:
    cafe, again = SAME
    corpus = sound(
        train_eng=[*good("eng", "train"), (cafe, 0, "a"), (cafe, 0, "b"), (again, 1, "c")],
        train_hau=[*good("hau", "train"), ("same", 1, "a"), ("same", 1, "b"), ("same", 1, "c")],
        test_yor=[
            *good("yor", "test"),
            *[("often", 1, f"o{n}") for n in range(4)],
            *[("twice", 0, f"t{n}") for n in "ab"],
        ],
        test_hau=[*good("hau", "test"), ("or", 0, "x"), ("or", 1, "y")],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(corpus, SOURCES)
    assert [str(one.message) for one in caught] == [
        "train: 3 rows have a text that stands there with another label too, such as 'café crème au lait' at "
        "eng/train.tsv, line 6 ('no') and eng/train.tsv, line 8 ('yes'); correct or remove some of them",
        "test: 2 rows have a text that stands there with another label too, such as 'or' at hau/test.tsv, line 6 "
        "('no') and hau/test.tsv, line 7 ('yes'); correct or remove some of them",
        "test: 4 rows have a text that stands there three times or more, such as 'often' at yor/test.tsv, line 6 "
        "('yes') and yor/test.tsv, line 9 ('yes'); each of them counts in the score",
    ]


def test_splits_without_rows_are_refused_where_they_are_needed_and_only_there() -> None:
    assert "eng/train.tsv, train, eng_Latn: no rows; add some, or take another source" in refusal(sound(train_eng=[]))
    assert "eng/dev.tsv, dev, eng_Latn: no rows; add some" in refusal(sound(dev_eng=[]), dev=SOURCES)
    assert "yor/test.tsv, test, yor_Latn: no rows; add some" in refusal(sound(test_yor=[]), targets=["yor_Latn"])
    everything = refusal(sound(test_yor=[]))
    assert "yor/test.tsv, test, yor_Latn: no rows" in everything and "targets=[eng_Latn, hau_Latn]" in everything
    check(sound(test_yor=[]), SOURCES, ["eng_Latn", "hau_Latn"])
    check(sound(train_yor=[], dev_yor=[], dev_eng=[]), SOURCES)
    with pytest.warns(UserWarning, match=r"hau/test.tsv, test, hau_Latn: no rows, so it is not measured"):
        check(sound(test_hau=[]), SOURCES, ["yor_Latn"])
    assert "test: nothing to measure; no language has this split" in refusal(
        sound(test_eng=None, test_hau=None, test_yor=None)
    )


def warned(corpus: Corpus, sources: Sequence[str], cache: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(corpus, sources, "all", (), str(cache))
    return [str(one.message) for one in caught]


def test_what_was_found_sound_is_looked_at_once_and_warned_of_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    whole = overlap.overlaps

    def overlaps(corpus: Corpus, read: Sequence[tuple[str, str]]) -> Iterator[str]:
        looked.append(corpus.name)
        return whole(corpus, read)

    monkeypatch.setattr(overlap, "overlaps", overlaps)
    repeated = [("a", 0, "same"), ("b", 1, "same")]
    first = warned(sound(test_yor=repeated), SOURCES, tmp_path)
    assert len(first) == 1 and warned(sound(test_yor=repeated), SOURCES, tmp_path) == first and len(looked) == 1
    (kept,) = (tmp_path / "sound").iterdir()
    kept.write_text(kept.read_text()[:7])  # torn
    assert warned(sound(test_yor=repeated), SOURCES, tmp_path) == first and len(looked) == 2
    # other rows, other languages read, other files
    assert not warned(sound(), SOURCES, tmp_path) and len(looked) == 3
    assert warned(sound(test_yor=repeated), SOURCES[:1], tmp_path) == first and len(looked) == 4
    moved = replace(sound(test_yor=repeated), name="moved")
    assert warned(moved, SOURCES, tmp_path) == first and len(looked) == 5
    empty, renamed = sound(dev_eng=[]), sound(dev_eng=[])
    renamed.splits["dev"]["eng_Latn"] = table([], origin="other.tsv")  # type: ignore[index]
    for corpus in (empty, renamed):
        check(corpus, SOURCES, cache_dir=str(tmp_path))
    assert len(looked) == 7
    for dev, targets in ((SOURCES, "all"), ((), ["fra_Latn"])):
        with pytest.raises(InputError, match="dev, eng_Latn: no rows|target fra_Latn has none"):
            check(empty, SOURCES, targets, dev, str(tmp_path))
    looked.clear()
    for _ in range(2):
        with pytest.raises(InputError, match="empty text"):
            check(sound(test_yor=[("", 0, "r")]), SOURCES, cache_dir=str(tmp_path))
    assert len(looked) == 2, "a fault may be mended"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "sound").write_text("no folder")
    check(sound(), SOURCES, cache_dir=str(tmp_path))
