"""Word by word: what is replaced, at which score, and how much of a text that is."""

from __future__ import annotations

import pickle

import pytest

from xlt_ray.languages import lexicon
from xlt_ray.translation.translator import Lexicons, WordByWord, pack

PAIRS = [
    ("bahari", "sea", 0.9),
    ("bahari", "ocean", 0.2),
    ("nyumba", "house", 0.25),
    ("nyumba kubwa", "mansion", 0.15),
    ("kubwa", "large", 0.05),
]


def lexicons() -> Lexicons:
    return Lexicons({"swh_Latn": pack(lexicon.of_pairs(PAIRS, "swh_Latn", "eng_Latn"))})


def gloss(text: str, score: float) -> str:
    (found,) = WordByWord(lexicons(), score, "eng_Latn").translate([text], "swh_Latn", "eng_Latn")
    return found


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (1.0, "Bahari na nyumba kubwa!"),
        (0.3, "Sea na nyumba kubwa!"),
        (0.2, "Sea na house kubwa!"),
        (0.15, "Sea na mansion!"),  # the longest entry that scores enough
        (0.05, "Sea na mansion!"),
    ],
)
def test_a_lower_score_translates_more_words_each_by_its_best_translation(score: float, expected: str) -> None:
    assert gloss("Bahari na nyumba kubwa!", score) == expected


def test_no_phrase_reaches_over_punctuation_and_all_between_words_stays() -> None:
    assert gloss("nyumba, kubwa -- (bahari)\n", 0.05) == "house, large -- (sea)\n"
    assert gloss("", 0.05) == ""


def test_coverage_is_the_share_of_words_that_are_replaced() -> None:
    translator = WordByWord(lexicons(), 0.1, "eng_Latn")
    assert translator.coverage(["nyumba kubwa na bahari", "na"], "swh_Latn") == pytest.approx(3 / 5)
    assert str(translator.coverage([], "swh_Latn")) == "nan"


def test_it_translates_what_it_has_a_lexicon_of_into_one_language() -> None:
    translator = WordByWord(lexicons(), 0.1, "eng_Latn")
    assert translator.translates("swh_Latn", "eng_Latn")
    assert not translator.translates("swh_Latn", "fra_Latn") and not translator.translates("yor_Latn", "eng_Latn")
    with pytest.raises(KeyError):
        translator.translate(["bahari"], "swh_Latn", "fra_Latn")


def test_syllables_of_tibetan_are_words_and_a_translated_one_stands_alone() -> None:
    pairs = [("བོད", "Tibet", 0.5), ("བོད ཡིག", "Tibetan", 0.5)]
    found = WordByWord(Lexicons({"bod_Tibt": pack(lexicon.of_pairs(pairs, "bod_Tibt", "eng_Latn"))}), 0.1, "eng_Latn")
    assert found.translate(["བོད་ཡིག་ནི་བོད་"], "bod_Tibt", "eng_Latn") == ["Tibetan ནི Tibet "]


def test_packed_lexicons_come_back_from_json_and_between_processes() -> None:
    for again in (Lexicons.from_json(lexicons().to_json()), pickle.loads(pickle.dumps(lexicons()))):
        assert dict(again.best("swh_Latn")) == dict(lexicons().best("swh_Latn"))
        assert again.best("swh_Latn")["bahari"] == ("sea", 0.9)
