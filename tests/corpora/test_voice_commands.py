"""The embedded corpus: no leaks, no template syntax left, natural inequality, the same rows for everybody."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora import loaders
from xlt_ray.corpora.corpus import SPLITS, Corpus
from xlt_ray.corpora.loaders import voice_commands
from xlt_ray.corpora.loaders.voice_commands import Row
from xlt_ray.errors import InputError
from xlt_ray.languages.codes import get, resolve
from xlt_ray.languages.words import spans

pytest.importorskip("home_assistant_intents")

Splits = dict[str, dict[str, list[Row]]]
SOURCES = ("eng_Latn", "deu_Latn", "zho_Hans", "arb_Arab", "hin_Deva")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(cache: Path) -> tuple[Corpus, Splits]:
    """The corpus, and the rows it was made of, which still know their template."""
    seen: list[Splits] = []
    build = voice_commands.build

    def watched() -> Splits:
        seen.append(build())
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voice_commands, "build", watched)
        corpus = loaders.load(CorpusConfig(cache_dir=str(cache)))
    return corpus, seen[0]


@pytest.fixture(scope="module")
def corpus(built: tuple[Corpus, Splits]) -> Corpus:
    return built[0]


@pytest.fixture(scope="module")
def rows(built: tuple[Corpus, Splits]) -> Splits:
    return built[1]


def texts(corpus: Corpus, split: str, language: str) -> list[str]:
    return [text.casefold() for text in corpus.table(split, language)["text"].to_pylist()]


def test_there_are_enough_languages_to_leave_forty_one_unseen_and_each_is_known(corpus: Corpus) -> None:
    tested = corpus.languages("test")
    assert len(set(tested) - set(SOURCES)) >= 41
    assert set(SOURCES) <= set(corpus.languages("train"))
    assert all(get(code) is not None for code in tested)
    assert {"gsw_Latn", "yue_Hant", "srp_Cyrl", "srp_Latn"} <= set(tested)
    assert len({get(code).script for code in tested}) >= 12  # type: ignore[union-attr]


def test_rows_have_the_columns_and_types_that_a_corpus_promises(corpus: Corpus) -> None:
    assert corpus.labels == tuple(sorted(corpus.labels))
    assert 20 <= len(corpus.labels) <= 32
    assert corpus.labels_stated and corpus.licence == "Apache-2.0"
    for split, language, table in corpus.tables():
        assert table.column_names == ["text", "label", "id"]
        assert [str(kind) for kind in table.schema.types] == ["string", "int32", "string"], (split, language)
        assert sum(column.null_count for column in table.columns) == 0
        assert set(table["label"].to_pylist()) <= set(range(len(corpus.labels)))


def test_languages_keep_their_natural_sizes(corpus: Corpus) -> None:
    sizes = corpus.sizes("train")
    assert max(sizes.values()) >= 10 * min(sizes.values())
    assert [sizes[code] for code in ("deu_Latn", "eng_Latn", "zho_Hans", "arb_Arab", "hin_Deva")] == sorted(
        (sizes[code] for code in SOURCES), reverse=True
    )
    assert 15_000 <= sum(sum(corpus.sizes(split).values()) for split in SPLITS) <= 30_000


def test_every_test_split_is_small_broad_and_enough_for_an_interval(corpus: Corpus) -> None:
    for language, size in corpus.sizes("test").items():
        assert 50 <= size <= 150, language
        per_label = Counter(corpus.table("test", language)["label"].to_pylist())
        assert len(per_label) >= voice_commands.MIN_LABELS, language
        assert max(per_label.values()) <= voice_commands.PER_LABEL["test"], language
        assert size / len(per_label) >= 2.5, language


def test_each_label_of_a_language_is_in_its_test_split(corpus: Corpus) -> None:
    for language in corpus.languages("test"):
        of_split = {split: set(corpus.table(split, language)["label"].to_pylist()) for split in SPLITS}
        assert of_split["train"] | of_split["dev"] <= of_split["test"], language


def test_no_template_is_in_two_splits_of_a_language(rows: Splits) -> None:
    for language, held in rows.items():
        split_of: dict[str, set[str]] = defaultdict(set)
        for split in SPLITS:
            for row in held[split]:
                split_of[row.template].add(split)
        assert all(len(splits) == 1 for splits in split_of.values()), language


def test_no_text_of_train_or_dev_is_in_the_test_split_of_any_language(corpus: Corpus) -> None:
    held_out = {text for language in corpus.languages("test") for text in texts(corpus, "test", language)}
    for language in corpus.languages("train"):
        train, dev = (set(texts(corpus, split, language)) for split in ("train", "dev"))
        assert not (train | dev) & held_out, language
        assert not train & dev, language


def test_a_language_has_no_text_twice_and_an_id_means_one_row(corpus: Corpus) -> None:
    ids = [name for _, _, table in corpus.tables() for name in table["id"].to_pylist()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]{2}(-[A-Za-z]+)?/Hass\w+/\d+/[012]", name) for name in ids)
    for language in corpus.languages("test"):
        every = [text for split in SPLITS for text in texts(corpus, split, language)]
        assert len(set(every)) == len(every), language


def test_no_template_syntax_is_left_and_every_row_says_something(corpus: Corpus) -> None:
    for split, language, table in corpus.tables():
        for text in table["text"].to_pylist():
            assert not re.search(r"[\[\](){}<>|@;\\_]", text), (split, language, text)
            assert text == " ".join(text.split()) and any(map(str.isalpha, text)), (split, language, text)


def test_slots_are_filled_in_the_language_itself(corpus: Corpus) -> None:
    script = {"ell_Grek": "Ͱ-Ͽἀ-῿", "rus_Cyrl": "Ѐ-ӿ", "hin_Deva": "ऀ-ॿ", "heb_Hebr": "֐-׿", "arb_Arab": "؀-ۿ"}
    for language, characters in script.items():
        every = " ".join(text for split in SPLITS for text in texts(corpus, split, language))
        latin = Counter(re.findall(r"[a-z]+", every))
        brands = {"sonos", "ikea", "roomba", "home", "assistant", "uv", "k", "kelvin", "c", "celsius"}
        assert not set(latin) - brands, (language, latin)
        assert len(re.findall(f"[{characters}]", every)) > 1000, language
    english = set(" ".join(texts(corpus, "train", "eng_Latn")).split())
    assert {"kitchen", "living", "thermostat", "pizza"} <= english
    assert "wohnzimmer" in " ".join(texts(corpus, "train", "deu_Latn"))


def test_unlike_actions_that_home_assistant_files_together_have_labels_of_their_own(corpus: Corpus) -> None:
    english = corpus.table("train", "eng_Latn")
    of_label = defaultdict(set)
    for text, label in zip(english["text"].to_pylist(), english["label"].to_pylist(), strict=True):
        of_label[corpus.labels[label]].add(text)
    assert any(text.startswith("open ") for text in of_label["open"])
    assert all("lock" in text for text in of_label["lock"] | of_label["unlock"])
    assert not any(re.search(r"\b(open|close|lock|unlock|scene)\b", text) for text in of_label["turn_on"])


def test_another_process_with_another_cache_gets_the_same_rows(corpus: Corpus, tmp_path: Path) -> None:
    script = (
        "import sys; from xlt_ray.config.sections import CorpusConfig;"
        "from xlt_ray.corpora import loaders; print(loaders.load(CorpusConfig(cache_dir=sys.argv[1])).fingerprint)"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert other.stdout.strip() == corpus.fingerprint


def test_a_second_load_builds_nothing_and_is_quick(
    corpus: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voice_commands, "build", lambda: pytest.fail("built again"))
    before = time.perf_counter()
    again = loaders.load(CorpusConfig(cache_dir=str(cache)))
    assert time.perf_counter() - before < 1
    assert again.fingerprint == corpus.fingerprint


def test_languages_can_be_restricted_by_any_of_their_codes_and_labels_stay_the_same(
    corpus: Corpus, cache: Path
) -> None:
    some = loaders.load(CorpusConfig(cache_dir=str(cache), languages=("en", "zh-TW")))
    assert some.languages("test") == ("eng_Latn", "zho_Hant")
    assert some.labels == corpus.labels
    with pytest.raises(InputError, match="yor_Latn"):
        loaders.load(CorpusConfig(cache_dir=str(cache), languages=("en", "yo")))


def test_labels_can_be_left_out_and_are_counted(
    corpus: Corpus, rows: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voice_commands, "build", lambda: rows)  # which takes its time
    less = loaders.load(CorpusConfig(cache_dir=str(tmp_path), drop_labels=("turn_on", "turn_off")))
    assert less.labels == tuple(label for label in corpus.labels if label not in ("turn_on", "turn_off"))
    for split in SPLITS:
        gone = {code: corpus.sizes(split)[code] - rows for code, rows in less.sizes(split).items()}
        assert less.left_out[split] == gone and min(gone.values()) > 0


@pytest.fixture(scope="module")
def slots(rows: Splits, cache: Path) -> Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voice_commands, "build", lambda: rows)  # which takes its time
        return loaders.load(CorpusConfig(cache_dir=str(cache), label="slots"))


def test_rows_are_those_of_before_there_were_slots(corpus: Corpus) -> None:
    assert corpus.fingerprint == "b6dd827c384eb7a41519f4278a28685fa50a876f9fd3acb3fc92b65b9c5bc501"


def test_slots_are_tags_of_the_same_rows(corpus: Corpus, slots: Corpus) -> None:
    assert slots.tagged and not corpus.tagged and not slots.unknown_labels
    assert {"O", "B-area", "I-area", "B-name", "B-brightness", "B-temperature"} <= set(slots.labels)
    assert len(slots.labels) < 40 and slots.languages("test") == corpus.languages("test")
    for split, language, table in corpus.tables():
        tagged = slots.table(split, language)
        assert tagged["text"] == table["text"] and tagged["id"] == table["id"]
        assert [str(kind) for kind in tagged.schema.types[1:3]] == ["list<item: string>", "list<item: int32>"]


# share of slots that are part of a longer word: of an Arabic one with its article or preposition
@pytest.mark.parametrize(
    ("language", "code", "most"),
    [
        ("eng_Latn", "en", 0.01),
        ("deu_Latn", "de", 0.06),
        ("zho_Hans", "zh-CN", 0),
        ("arb_Arab", "ar", 0.3),
        ("heb_Hebr", "he", 0.6),
    ],
)
def test_the_words_of_a_slot_are_what_was_drawn_for_it(
    slots: Corpus, rows: Splits, language: str, code: str, most: float
) -> None:
    known = {word for cell in voice_commands._words()[code].values() for word in cell}
    areas, longer, every, seen = set(voice_commands._words()[code]["area"]), 0, 0, Counter[str]()
    for split in SPLITS:
        table = slots.table(split, language).to_pylist()
        for row, made in zip(table, sorted(rows[language][split]), strict=True):
            assert row["id"] == made.id and len(row["words"]) == len(row["label"])
            places = spans(row["text"], row["words"])
            tags = [slots.labels[tag] for tag in row["label"]]
            runs = [
                (places[at][0], max(places[end][1] for end in run(tags, at)), tag[2:])
                for at, tag in enumerate(tags)
                if tag[0] == "B"
            ]
            assert len(runs) == len(made.slots) and not [
                tag for tag, before in zip(tags, ["O", *tags], strict=False) if tag[0] == "I" and before[2:] != tag[2:]
            ]
            for (low, high, name), (start, end, wanted) in zip(runs, made.slots, strict=True):
                value = made.text[start:end]
                assert name == wanted and low <= start and end <= high, (made.text, value)
                assert name != "area" or value in areas, value
                seen[name] += value in known or value.isdecimal()
                longer += (low, high) != (start, end)
                every += 1
    assert min(seen[name] for name in ("area", "name", "brightness", "minutes")) > 2, seen
    assert longer <= most * every


def run(tags: list[str], at: int) -> Iterator[int]:
    yield at
    for later in range(at + 1, len(tags)):
        if tags[later] != f"I-{tags[at][2:]}":
            return
        yield later


def test_a_slot_has_a_word_that_is_more_than_it_and_no_other() -> None:
    assert voice_commands.tags("Sonosissa 5", [(0, 5, "name")]) == (["Sonosissa", "5"], ["B-name", "O"])
    assert voice_commands.tags("台所と居間", [(0, 2, "a"), (3, 5, "a")])[1] == ["B-a", "I-a", "O", "B-a", "I-a"]
    assert voice_commands.tags("ab", [(0, 1, "a"), (1, 2, "b")]) == (["ab"], ["B-a"])


def test_a_missing_package_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InputError, match=r"home-assistant-intents; pip install home-assistant-intents==.* hassil=="):
        loaders.load(CorpusConfig(cache_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_every_language_that_has_words_is_in_the_corpus(corpus: Corpus) -> None:
    words = voice_commands._words()
    codes = {voice_commands.DIALECTS.get(code) or resolve(code) for code in words}
    assert codes == set(corpus.languages("test"))
    assert all(all(cell) for row in words.values() for cell in row.values())
