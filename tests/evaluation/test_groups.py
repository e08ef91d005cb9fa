"""Which groups of languages there are, and which of them a language belongs to."""

from __future__ import annotations

import doctest

from xlt_ray.evaluation import groups
from xlt_ray.evaluation.groups import Place, Roles

LANGUAGES = {
    "eng_Latn": Place("source", True),
    "hin_Deva": Place("few-shot", True),
    "deu_Latn": Place("zero-shot", True),
    "yor_Latn": Place("zero-shot", False),
    "tst_Test": Place("zero-shot", None),
}


def test_the_examples_hold() -> None:
    tried = doctest.testmod(groups)
    assert tried.attempted >= 5 and not tried.failed


def test_every_group_has_its_members_and_the_order_of_the_table() -> None:
    found = groups.of(LANGUAGES)
    assert list(found) == list(groups.GROUPS)
    assert found["all"] == list(LANGUAGES) and found["zero-shot"] == ["deu_Latn", "yor_Latn", "tst_Test"]
    assert (found["zero-shot seen"], found["zero-shot unseen"]) == (["deu_Latn"], ["yor_Latn"])
    assert (found["source"], found["few-shot"]) == (["eng_Latn"], ["hin_Deva"])
    assert groups.of({}) == {}


def test_groups_that_stand_apart_hold_each_language_once() -> None:
    found = groups.apart(LANGUAGES)
    assert sorted(code for members in found.values() for code in members) == sorted(LANGUAGES)
    assert found["zero-shot"] == ["tst_Test"] and list(found) == [name for name in groups.GROUPS if name != "all"]
    unknown = {code: Place(one.role, None) for code, one in LANGUAGES.items()}
    assert list(groups.apart(unknown)) == ["source", "few-shot", "zero-shot"]


def test_a_source_is_never_few_shot_and_labels_of_both_were_trained_on() -> None:
    roles = Roles(("eng_Latn",), ("eng_Latn", "hin_Deva"))
    assert [roles.role(code) for code in ("eng_Latn", "hin_Deva", "deu_Latn")] == list(groups.ROLES)
    assert [groups.trained_on(role) for role in groups.ROLES] == [True, True, False]


def test_in_two_models_a_language_has_the_role_it_has_in_both() -> None:
    other = LANGUAGES | {"deu_Latn": Place("few-shot", True), "eng_Latn": Place("source", None)}
    del other["tst_Test"]
    assert groups.of(groups.in_both(LANGUAGES, other)) == {
        "all": ["eng_Latn", "hin_Deva", "deu_Latn", "yor_Latn"],
        "source": ["eng_Latn"],
        "few-shot": ["hin_Deva"],
        "zero-shot": ["yor_Latn"],
        "zero-shot unseen": ["yor_Latn"],
    }
