"""Which labels are classes: every kind of what is none is refused or mentioned, with a remedy that is followed here."""

from __future__ import annotations

import csv
import re
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from xlt_ray.config.read import build
from xlt_ray.corpora import loaders, soundness
from xlt_ray.errors import InputError

Check = Callable[..., list[str]]
PLENTY = ["pos", "neg"] * 6


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Check a corpus of files with these labels in train, and in test of another language; gives what is warned of."""

    def checked(train: Sequence[str], test: Sequence[str], *overrides: str) -> list[str]:
        for place, names in (("en/train", train), ("sw/test", test)):
            file = tmp_path / "data" / f"{place}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8", newline="") as stream:
                rows = [[f"{place} {number}", name] for number, name in enumerate(names)]
                csv.writer(stream).writerows([["text", "label"], *rows])
        settings: dict[str, Any] = {"loader": "files", "path": str(tmp_path / "data"), "cache_dir": str(tmp_path)}
        experiment = build({"sources": ["en"], "corpus": settings}, overrides)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            soundness.check(loaders.load(experiment.corpus), experiment.sources, experiment.targets)
        return [str(one.message) for one in caught]

    return checked


def refusal(check: Check, train: Sequence[str], test: Sequence[str] = ("pos", "neg"), *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        check(train, test, *overrides)
    return str(caught.value)


def options(message: str, key: str) -> list[str]:
    """Return the overrides of a message as a shell passes them."""
    forms = (rf"'corpus\.{key}=(?:[^']|'\"'\"')*'", rf'"corpus\.{key}=[^"]*"', rf"corpus\.{key}=[\w.-]+")
    return [shlex.split(found)[0] for found in re.findall("|".join(forms), message)]


@pytest.mark.parametrize(
    ("train", "test", "marker"),
    [
        ([*"012" * 4, "-1"], ["0", "-1"], "-1"),
        ([*"012" * 4], ["0", "1", "-1", "-1"], "-1"),
        ([*"01" * 6, "-1"], ["0", "1"], "-1"),
        ([*"012" * 4, "-100"], ["0"], "-100"),
        ([*PLENTY, "-1"], ["pos"], "-1"),
        *(
            ([*PLENTY, name], ["pos", "neg"], name)
            for name in ("nan", "NA", "N/A", "None", "null", "?", "-", "[]", "<unk>")
        ),
        (PLENTY, ["pos", "not labelled"], "not labelled"),
        ([*PLENTY, "??", "??", "??", "??", "??", "??", "??"], ["pos"], "??"),
    ],
)
def test_a_marker_of_rows_without_a_label_is_refused_and_both_remedies_work(
    check: Check, train: list[str], test: list[str], marker: str
) -> None:
    message = refusal(check, train, test)
    assert message.startswith("corpus data: 1 fault\n") and f"label {marker!r} (" in message
    assert "marks rows without a label" in message
    (drop,), (state,) = options(message, "drop_labels"), options(message, "labels")
    gone = check(train, test, drop)
    assert [one for one in gone if one.startswith("corpus.drop_labels: rows of ")]
    assert not [one for one in check(train, test, state) if "drop_labels" in one]


def test_several_markers_have_one_remedy_that_keeps_what_is_dropped_already(check: Check) -> None:
    train = [*PLENTY, "?", "nan", "-1", "", "mixed"]
    message = refusal(check, train, ["pos", ""])
    assert message.startswith("corpus data: 5 faults")
    (blank,) = {*options(message, "drop_labels")} - {*options(message.partition("marks")[2], "drop_labels")[:3]}
    message = refusal(check, train, ["pos", ""], blank)
    (all_of_them,) = {*options(message, "drop_labels")}
    assert check(train, ["pos", ""], all_of_them) == [
        "corpus.drop_labels: rows of train left out: eng_Latn 4",
        "corpus.drop_labels: rows of test left out: swh_Latn 1",
        "test: all rows have one label in swh_Latn ('pos'); a score of such rows says little",
    ]


def test_a_test_split_of_markers_alone_has_no_rows(check: Check) -> None:
    message = refusal(check, [*"012" * 4], ["-1"] * 3, "corpus.drop_labels=-1")
    assert "sw/test.csv, test, swh_Latn: no rows but 3 left out by corpus.drop_labels" in message


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ([*["-1", "0", "1"] * 4], "-1"),
        ([*["favor", "against", "none"] * 4], "none"),
        ([*PLENTY, *["unknown"] * 6], "unknown"),
    ],
)
def test_what_may_be_a_class_is_mentioned_and_silent_once_stated(check: Check, train: list[str], told: str) -> None:
    (caution,) = check(train, train)
    assert f"label {told!r}" in caution and "is taken for a class" in caution
    (state,) = options(caution, "labels")
    assert check(train, train, state) == []


@pytest.mark.parametrize(
    "names",
    [("-1", "1"), ("-2", "-1", "0", "1", "2"), ("+", "-"), ("0", "1"), ("?", "!", "."), ("1", "2", "3", "4", "5")],
    ids=" ".join,
)
def test_classes_that_look_like_markers_pass_without_a_word(check: Check, names: tuple[str, ...]) -> None:
    assert check([*names] * 4, names) == []


@pytest.mark.parametrize(
    "other",
    ["Pos", "POS", " pos", "pos ", "p os", "ｐｏｓ", "pos\u200b", "\u200epos", "pos\u00a0", "po\u00ads", "\ufeffpos"],
    ids=ascii,
)
def test_a_label_in_two_spellings_is_refused_with_both_and_the_rarer_ones_place(check: Check, other: str) -> None:
    message = refusal(check, [*PLENTY, other])
    assert "1 fault" in message and f"en/train.csv, line 14: labels 'pos' (7 rows in 2 splits) and {other!r}" in message
    (state,) = options(message, "labels")
    assert check([*PLENTY, other], ["pos", "neg"], state) == []


def test_spellings_that_look_alike_are_shown_apart(check: Check) -> None:
    message = refusal(check, [*["caf\u00e9", "bar"] * 4, "cafe\u0301"], ["bar"])
    assert r"'caf\xe9' (4 rows of train, eng_Latn) and 'cafe\u0301'" in message
    assert "'1' (4 rows of train, eng_Latn) and '1.0'" in refusal(check, [*"12" * 4, "1.0"], ["2", "1.0"])


def test_a_stated_label_in_another_spelling_is_named(check: Check) -> None:
    message = refusal(check, [*PLENTY, "POS "], ["pos"], "corpus.labels=[pos, neg]")
    assert "label 'POS ' (1 rows of train, eng_Latn) is not in corpus.labels; did you mean 'pos'?" in message


@pytest.mark.parametrize("name", ["['pos', 'x']", '["pos"]', "{'a': 1}", "[0, 2]", "[1 0]", "('pos', 'x')"])
def test_lists_and_objects_are_refused(check: Check, name: str) -> None:
    message = refusal(check, [*PLENTY, name, name])
    assert "1 fault" in message and f"label {name!r} (2 rows of train, eng_Latn) is a list or an object" in message
    assert check([*PLENTY, name, name], ["pos", "neg"], *options(message, "labels")) == []


def test_labels_in_brackets_are_no_lists_and_joined_ones_are_mentioned(check: Check) -> None:
    assert check(["[HATE]", "[OK]"] * 4, ["[HATE]", "[OK]"]) == []
    (caution,) = check([*["joy", "anger", "joy, anger"] * 4], ["joy", "anger"])
    assert "label 'joy, anger' (4 rows of train, eng_Latn) joins labels that stand alone elsewhere" in caution


def test_numbers_on_a_scale_are_refused_and_may_be_stated(check: Check) -> None:
    scores = [f"{0.37 * number:.2f}" for number in range(11)]
    message = refusal(check, scores, ["3.70"])
    assert "train: the labels are numbers on a scale, 11 of them in 11 rows: 0.00, 0.37, 0.74" in message
    assert check(scores, scores[:2], *options(message, "labels")) == []
    assert "12 of them in 24 rows" in refusal(check, [*map(str, range(12))] * 2, ["3"])
    assert "numbers on a scale" in refusal(check, ["1,5", "2,5", "3"], ["3"])
    assert check([*map(str, range(12))] * 5, ["3", "4"]) == [], "so many rows each: classes with numbers for names"
    (caution,) = check(["0.0", "0.5", "1.0"] * 6, ["0.5", "0.0"])
    assert caution.startswith("train: the labels are numbers, 0.0, 0.5, 1.0, and are taken for classes")


def test_a_label_of_its_own_for_nearly_every_row_is_refused(check: Check) -> None:
    assert "nearly every row has a label of its own, 12 labels in 12 rows" in refusal(check, [*"abcdefghijkl"], ["a"])


def test_one_label_alone_is_refused(check: Check) -> None:
    message = refusal(check, ["pos"] * 12, ["pos"])
    assert "train: every row of the sources has the label 'pos' (12 rows), and a classifier needs two" in message
    assert "every row of the sources" in refusal(check, ["pos"] * 12, ["pos"], "corpus.labels=[pos, neg]")
    assert "every other row" in refusal(check, [*["pos"] * 12, "-1"], ["pos"])


def test_a_stated_label_without_train_rows_is_mentioned(check: Check) -> None:
    (caution,) = check(PLENTY, ["pos", "odd"], "corpus.labels=[pos, neg, odd]")
    assert caution == "corpus.labels: no train row of the sources has odd, so no text will be given it"


def test_a_corpus_that_is_only_measured_misses_no_train_rows_but_is_held_to_the_labels(
    check: Check, tmp_path: Path
) -> None:
    assert check(PLENTY, PLENTY, "corpus.labels=[pos, neg]") == []
    settings = {"loader": "files", "path": str(tmp_path / "data"), "cache_dir": str(tmp_path)}
    for stated, fault in (
        ("[pos, neg]", None),
        ("[pos]", r"label 'neg' \(6 rows of test, swh_Latn\) is not in corpus"),
    ):
        experiment = build({"sources": ["en"], "corpus": settings}, [f"corpus.labels={stated}"])
        test = loaders.load(experiment.corpus).for_testing()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if fault is None:
                soundness.check(test, ())
            else:
                with pytest.raises(InputError, match=fault):
                    soundness.check(test, ())


def test_labels_are_stated_once_and_not_dropped_as_well() -> None:
    for override, message in (
        ("corpus.labels=[a, b, a]", "corpus: labels: a given twice; name each label once"),
        ("corpus.drop_labels=b", "corpus: drop_labels: b is in labels too; take it out of one of them"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            build({"sources": ["en"], "corpus": {"labels": ["a", "b"]}}, [override])
