"""Readings: which texts stand in for one, under which keys, and how their answers become one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xlt_ray.errors import InputError
from xlt_ray.languages import lexicon
from xlt_ray.translation import readings as reading
from xlt_ray.translation.readings import Readings, asked, by_lexicon
from xlt_ray.translation.translator import Lexicons, pack


def packed(source: str, **words: str) -> bytes:
    return pack(lexicon.of_pairs([(word, other, 0.5) for word, other in words.items()], source, "eng_Latn"))


def made(original: bool = True) -> Readings:
    lexicons = Lexicons({"swh_Latn": packed("swh_Latn", bahari="sea"), "yor_Latn": packed("yor_Latn", omi="water")})
    return by_lexicon("eng_Latn", (0.9, 0.1), original, lexicons)


def test_a_language_with_a_lexicon_is_read_in_all_ways_and_others_as_they_stand() -> None:
    found = made()
    assert found.texts(["bahari"], "swh_Latn") == [["bahari"], ["bahari"], ["sea"]]
    assert found.texts(["bahari"], "deu_Latn") == found.texts(["bahari"], None) == [["bahari"]]
    assert found.keys("swh_Latn") == ["swh_Latn", "swh_Latn/1", "swh_Latn/2"] and found.keys("deu_Latn") == ["deu_Latn"]
    assert made(original=False).texts(["bahari"], "swh_Latn") == [["bahari"], ["sea"]]
    assert made(original=False).keys("swh_Latn") == ["swh_Latn/1", "swh_Latn/2"], "the language's own is as it stands"
    assert found.describe("swh_Latn") == "original + 2 word-by-word English readings"
    assert made(original=False).describe("swh_Latn") == "2 word-by-word English readings"
    assert found.describe("deu_Latn") == found.describe(None) == "original"
    assert [len(found.named(code)) for code in ("swh_Latn", "deu_Latn", None)] == [3, 1, 1]


def test_tables_keep_their_rows_and_columns_and_read_both_texts_of_a_pair() -> None:
    table = pa.table({"id": ["1", "2"], "text": ["bahari", "na"], "text_pair": ["omi", None], "label": [0, 1]})
    found = made().tables({"swh_Latn": table, "deu_Latn": table})
    assert list(found) == ["swh_Latn", "swh_Latn/1", "swh_Latn/2", "deu_Latn"]
    assert found["swh_Latn/2"]["text"].to_pylist() == ["sea", "na"]
    assert found["swh_Latn/2"]["text_pair"].to_pylist() == ["omi", ""]
    assert found["swh_Latn/2"].select(["id", "label"]).equals(table.select(["id", "label"]))
    assert found["deu_Latn"].equals(table)


def test_texts_of_many_languages_are_asked_in_their_order() -> None:
    found = asked(
        made(), ["bahari", "Haus", "omi", "x"], ["a", "b", "omi", "c"], ["swh_Latn", "deu_Latn", "yor_Latn", None]
    )
    assert found.texts == ["bahari", "bahari", "sea", "Haus", "omi", "omi", "water", "x"]
    assert found.pairs == ["a", "a", "a", "b", "omi", "omi", "water", "c"]
    assert found.keys == [*made().keys("swh_Latn"), "deu_Latn", *made().keys("yor_Latn"), None]
    assert found.owners.tolist() == [0, 0, 0, 1, 2, 2, 2, 3]
    assert np.bincount(found.owners, found.shares) == pytest.approx(np.ones(4))


def test_without_readings_or_languages_texts_are_asked_as_they_stand() -> None:
    for found in (
        asked(None, ["a", "b"], None, ["swh_Latn"] * 2),
        asked(made(), ["a", "b"]),
        asked(made(), [], None, []),
    ):
        assert found.owners.tolist() == list(range(len(found.texts)))
        answers = np.random.default_rng(0).random((len(found.texts), 3)).astype(np.float32)
        assert found.joined(answers) is answers


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def test_joined_answers_are_those_of_the_weighted_mean_of_logits() -> None:
    weighted = replace(made(), by_language={"swh_Latn": (3.0, 1.0, 0.0001)})
    found = asked(weighted, ["bahari", "x", "omi"], None, ["swh_Latn", None, "yor_Latn"])
    logits = np.random.default_rng(0).normal(0, 3, (7, 4))
    wanted = np.stack([weighted.shares("swh_Latn") @ logits[:3], logits[3], logits[4:].mean(0)])
    np.testing.assert_allclose(found.joined(softmax(logits)), softmax(wanted), atol=1e-6)


def test_a_probability_of_zero_leaves_an_answer() -> None:
    found = asked(made(), ["bahari"], None, ["swh_Latn"])
    joined = found.joined(np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=np.float32))
    assert np.isfinite(joined).all() and joined.argmax() == 0 and joined.sum() == pytest.approx(1)


@pytest.mark.parametrize("original", [True, False])
def test_they_come_back_from_a_file_as_they_were(tmp_path: Path, original: bool) -> None:
    weighted = replace(made(original), by_language={"swh_Latn": (0.5, 0.25, 0.25)[: 2 + original]})
    (tmp_path / "r.json").write_text(reading.to_json(weighted), encoding="utf-8")
    again = reading.read(tmp_path / "r.json")
    for code in ("swh_Latn", "yor_Latn", "deu_Latn"):
        assert again.texts(["bahari omi"], code) == weighted.texts(["bahari omi"], code)
        assert again.shares(code).tolist() == weighted.shares(code).tolist()
        assert again.describe(code) == weighted.describe(code)
    assert reading.to_json(again) == reading.to_json(weighted)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1, "into": "eng_Latn", "readings": [], "lexicons": {}}']
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"r\.json: damaged"):
        reading.read(tmp_path / "r.json")


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(reading.to_json(made()).replace('"format": 1', '"format": 2'), encoding="utf-8")
    with pytest.raises(InputError, match="format 2"):
        reading.read(tmp_path / "r.json")


def test_rows_to_estimate_from_are_those_that_the_lexicon_has_not_seen() -> None:
    part = by_lexicon("eng_Latn", (0.9, 0.1), True, Lexicons({"swh_Latn": packed("swh_Latn", na="and")})).translators
    table = pa.table({"id": ["1", "2", "3"], "text": ["bahari na", "na", "bahari"]})
    found = replace(made(), held_out=part, unseen={"swh_Latn": np.array([True, False, True])})
    read = found.to_estimate("swh_Latn", table)
    assert read["swh_Latn/2"]["text"].to_pylist() == ["bahari and", "bahari"]
    assert read["swh_Latn"].equals(table), "no lexicon is needed to read a text as it stands"
    alike = found.to_estimate("swh_Latn", table, alike=True)
    assert list(alike) == found.keys("swh_Latn")
    assert all(one["id"].to_pylist() == ["1", "3"] for one in alike.values())
    assert found.to_estimate("deu_Latn", table) == {"deu_Latn": table}


def test_a_lexicon_is_added() -> None:
    found = made().with_lexicon("deu_Latn", packed("deu_Latn", Meer="sea"))
    assert found.texts(["Meer"], "deu_Latn") == [["Meer"], ["Meer"], ["Sea"]]
    assert found.texts(["bahari"], "swh_Latn") == made().texts(["bahari"], "swh_Latn")
    assert not made().several("deu_Latn")
