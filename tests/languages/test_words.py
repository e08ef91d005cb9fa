"""Cutting texts into words to tag, and finding words in a text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlt_ray.languages.words import spans, split


def cut(text: str) -> list[str]:
    return [text[low:high] for low, high in split(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Turn on lamp-2, 20.5%!", ["Turn", "on", "lamp", "-", "2", ",", "20", ".", "5", "%", "!"]),
        ("台所のランプを", [*"台所のランプを"]),
        ("เปิดครัว20", ["เ", "ปิ", "ด", "ค", "รั", "ว", "20"]),
        ("ကြောင့်", ["ကြေ", "ာ", "င့်"]),
        ("ភ្លើង", ["ភ្លើ", "ង"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("SonosをON", ["Sonos", "を", "ON"]),
        ("👩‍🚀\u00a0ok", ["👩‍🚀", "ok"]),
        ("부엌에서 켜", ["부엌에서", "켜"]),
    ],
)
def test_a_text_is_cut_by_its_script(text: str, words: list[str]) -> None:
    assert cut(text) == words


# marks and joiners are what regular expressions get wrong
@given(st.text(st.one_of(st.characters(), st.sampled_from(" \u0301\u200d\u200c\ufe0fกำあ\x1c\u2028\r\n"))))
def test_nothing_but_white_space_is_lost_and_a_word_holds_none(text: str) -> None:
    left, end = [], 0
    for low, high in split(text):
        assert end <= low < high and text[low:high].strip()
        left.append(text[end:low])
        end = high
    assert not "".join([*left, text[end:]]).strip()


@given(st.lists(st.sampled_from(["a", "ab", "b", "a b", "c\u00a0", "é"])), st.sampled_from([" ", "", "\n ", "\u00a0"]))
def test_words_are_found_where_they_were_joined(words: list[str], between: str) -> None:
    text = between.join(words)
    found = spans(text, words)
    assert [text[low:high] for low, high in found] == words


def test_the_first_word_that_does_not_follow_ends_the_search() -> None:
    assert spans("a x b", ["a", "b"]) == [(0, 1)]
    assert spans(unicodedata.normalize("NFD", "é"), ["é"]) == []
    assert spans("", []) == []
