"""Code-switching: what is replaced, how often, by which language, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from parallel_texts import parallel

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.languages import lexicon
from xlt_ray.techniques.code_switch import CodeSwitch
from xlt_ray.techniques.technique import Available, Example, Material

TEXT = "The new house, by the Black Sea, isn't large: 'sea view' it's called -- SEA!  (t)"
GERMAN = {"house": "Haus", "sea": "Meer", "new house": "Neubau", "t": "falsch", "s": "falsch", "called": "genannt"}
SWAHILI = {"house": "nyumba", "sea": "bahari", "the": "hiyo", "large": "kubwa"}


def experiment(tmp_path: Path, **changes: Any) -> Experiment:
    plain = {"sources": ["eng_Latn"], "corpus": {"loader": "files", "path": "x", "cache_dir": str(tmp_path / "cache")}}
    return build({**plain, **changes})


def rows(texts: list[str]) -> pa.Table:
    ids = [str(i) for i in range(len(texts))]
    return pa.table({"text": texts, "label": pa.array([0] * len(texts), pa.int32()), "id": ids})


def corpus(**texts: list[str]) -> Corpus:
    tables = {code: rows(some) for code, some in texts.items()}
    return Corpus("invented", ("a", "b"), {"train": tables, "dev": {}, "test": tables})


def material(of: Experiment, there: Corpus) -> Material:
    tables = {code: table.drop_columns(["label"]) for code, table in there.splits["train"].items()}
    return Material(of, tables, {})


def folder(tmp_path: Path) -> Path:
    for code, words in (("deu_Latn", GERMAN), ("swh_Latn", SWAHILI)):
        pairs = [(word, translation, 1.0) for word, translation in words.items()]
        lexicon.write(tmp_path / "words" / f"eng_Latn-{code}.tsv", lexicon.of_pairs(pairs, "eng_Latn", code))
    return tmp_path / "words"


def ready(tmp_path: Path, **fields: Any) -> CodeSwitch:
    fields = {"lexicons": str(folder(tmp_path)), "rate": 1.0, "languages": ("de",), **fields}
    return CodeSwitch(**fields).prepare(Material(experiment(tmp_path), {}, {}))


def switched(technique: CodeSwitch, text: str = TEXT, seed: int = 0) -> str:
    return technique.example(Example(text, None, "eng_Latn"), np.random.default_rng(seed)).text


def test_all_but_the_words_stays_and_capitals_move_over(tmp_path: Path) -> None:
    found = switched(ready(tmp_path))
    # endings after an apostrophe are parts of words, a t by itself is not
    assert found == "The Neubau, by the Black Meer, isn't large: 'Meer view' it's genannt -- Meer!  (falsch)"
    assert switched(ready(tmp_path, languages=("sw",))).startswith(
        "Hiyo new nyumba, by hiyo Black Bahari, isn't kubwa:"
    )


def test_words_alone_are_replaced_without_phrases_and_none_at_rate_0(tmp_path: Path) -> None:
    assert switched(ready(tmp_path, phrases=False)).startswith("The new Haus, by")
    assert switched(ready(tmp_path, rate=0.0)) == TEXT


def test_no_phrase_reaches_over_punctuation(tmp_path: Path) -> None:
    technique = ready(tmp_path)
    assert switched(technique, "new, house") == "new, Haus"
    assert switched(technique, "new-house") == switched(technique, "new  house") == "Neubau"
    assert switched(technique, "a.b") == "a.b"
    assert switched(technique, "") == ""


def test_the_same_generator_gives_the_same_text_and_another_another(tmp_path: Path) -> None:
    technique = ready(tmp_path, rate=0.5, languages=("de", "sw"))
    texts = [switched(technique, seed=seed) for seed in range(20)]
    assert texts == [switched(ready(tmp_path, rate=0.5, languages=("de", "sw")), seed=seed) for seed in range(20)]
    assert len(set(texts)) > 10


def test_a_share_of_rate_of_what_can_be_replaced_is_replaced(tmp_path: Path) -> None:
    technique = ready(tmp_path, rate=0.3, languages=("de", "sw"))
    rng, words = np.random.default_rng(1), 4000
    found = technique.example(Example("sea odd " * words, None, "eng_Latn"), rng).text.split()
    replaced = sum(word in ("Meer", "bahari") for word in found)
    bound = 4 * (words * 0.3 * 0.7) ** 0.5
    assert abs(replaced - 0.3 * words) < bound
    assert found.count("odd") == words


def test_words_mix_languages_and_sentences_do_not(tmp_path: Path) -> None:
    text = "sea house " * 20
    by_word = switched(ready(tmp_path, languages=("de", "sw")), text)
    assert {"Meer", "bahari", "Haus", "nyumba"} == set(by_word.split())
    sentences = [switched(ready(tmp_path, languages=("de", "sw"), mix="sentence"), text, seed) for seed in range(20)]
    assert {frozenset(one.split()) for one in sentences} == {
        frozenset({"Meer", "Haus"}),
        frozenset({"bahari", "nyumba"}),
    }


def test_alpha_shares_the_languages_by_their_entries(tmp_path: Path) -> None:
    for alpha, expected in ((0.0, 0.5), (1.0, 6 / 10), (None, 6**0.3 / (6**0.3 + 4**0.3))):
        technique = ready(tmp_path, languages=("de", "sw"), alpha=alpha)  # the default of mixture.alpha is 0.3
        found = switched(technique, "sea " * 4000).split()
        assert found.count("Meer") / 4000 == pytest.approx(expected, abs=4 * (0.25 / 4000) ** 0.5)


def test_both_texts_of_a_pair_are_switched_and_other_languages_are_not(tmp_path: Path) -> None:
    technique = ready(tmp_path)
    pair = technique.example(Example("a sea", "the house", "eng_Latn"), np.random.default_rng(0))
    assert pair == Example("a Meer", "the Haus", "eng_Latn")
    other = Example("a sea", None, "fra_Latn")
    assert technique.example(other, np.random.default_rng(0)) is other


def test_a_script_without_capitals_or_spaces_stands_between_spaces(tmp_path: Path) -> None:
    (tmp_path / "zho_Hans.csv").write_text("Like,喜欢\nmovie,电影\n", encoding="utf-8")
    technique = ready(tmp_path, lexicons=f"{tmp_path}/{{language}}.csv", languages=("zh",))
    assert switched(technique, "I like this movie very much. Like!") == "I 喜欢 this 电影 very much. 喜欢!"


def _least_score(file: Path) -> float:
    return min(options[-1][1] for options in lexicon.read(file).entries.values())


def test_lexicons_are_induced_from_unlabelled_rows_and_kept(tmp_path: Path) -> None:
    sources, targets, dictionary = parallel(200)
    of, there = (
        experiment(tmp_path),
        corpus(eng_Latn=sources, deu_Latn=targets, tha_Thai=targets, swh_Latn=targets[:50]),
    )
    technique = CodeSwitch(rate=1.0, phrases=False)
    technique.check(Available.of(of, there))  # Thai and too few rows are left out quietly
    prepared = technique.prepare(material(of, there))
    assert not technique._vocabularies  # frozen in, new out
    # of all rows, and down to a lower score without those by which the rows are judged
    kept = sorted((tmp_path / "cache" / "lexicons").glob("eng_Latn-deu_Latn-*.tsv"), key=_least_score, reverse=True)
    assert len(kept) == 2
    known = lexicon.read(kept[0]).entries
    assert sum(options[0][0] == dictionary[word] for word, options in known.items()) > 0.9 * len(known)
    expected = [known[word][0][0] if word in known else word for word in sources[0].lower().strip(".").split()]
    assert switched(prepared, sources[0]).lower() == " ".join(expected) + "."
    written = kept[0].stat().st_mtime_ns
    again = technique.prepare(material(of, there))
    assert kept[0].stat().st_mtime_ns == written
    assert switched(again, sources[3]) == switched(prepared, sources[3])
    CodeSwitch(score=0.7).prepare(material(of, there))  # other settings, another lexicon
    assert len(list(kept[0].parent.glob("*.tsv"))) == 4


def test_workers_begin_with_different_lexicons_and_end_with_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    english, german, _ = parallel(150)
    others = ["afr_Latn", "dan_Latn", "deu_Latn", "isl_Latn", "nld_Latn", "swe_Latn"]
    there = corpus(eng_Latn=english, **dict.fromkeys(others, german))
    induce, induced = lexicon.induce_tables, []

    def watched(source: pa.Table, target: pa.Table, pair: tuple[str, str], *settings: Any) -> lexicon.Lexicon:
        induced.append(pair[1])
        return induce(source, target, pair, *settings)

    monkeypatch.setattr(lexicon, "induce_tables", watched)
    found = []
    for worker in (1, 2):
        monkeypatch.setattr("os.getpid", lambda worker=worker: worker)
        found.append(CodeSwitch(phrases=False).prepare(material(experiment(tmp_path / str(worker)), there)))
    half = len(induced) // 2
    orders = list(dict.fromkeys(induced[:half])), list(dict.fromkeys(induced[half:]))
    assert sorted(orders[0]) == sorted(orders[1]) == others and orders[0] != orders[1]
    first, second = ([switched(one, text) for text in english[:20]] for one in found)
    assert first == second != english[:20]


def test_each_source_has_lexicons_of_its_own(tmp_path: Path) -> None:
    english, german, _ = parallel(200)
    swahili = [text.replace("t", "z") for text in german]
    of = experiment(tmp_path, sources=["eng_Latn", "deu_Latn"])
    there = corpus(eng_Latn=english, deu_Latn=german, swh_Latn=swahili)
    technique = CodeSwitch(rate=1.0, phrases=False)
    technique.check(Available.of(of, there))
    prepared = technique.prepare(material(of, there))
    for code, text in (("eng_Latn", english[0]), ("deu_Latn", german[0])):
        found = prepared.example(Example(text, None, code), np.random.default_rng(0)).text
        assert any(word.startswith("z") for word in found.lower().split())


def test_what_is_named_and_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    sources, targets, _ = parallel(120)
    of = experiment(tmp_path)
    there = corpus(eng_Latn=sources, deu_Latn=targets, tha_Thai=targets, swh_Latn=targets[:50])
    with pytest.raises(InputError, match=r"(?s)languages: tha_Thai: no lexicon from eng_Latn; .*without spaces"):
        CodeSwitch(languages=("de", "th")).check(Available.of(of, there))
    with pytest.raises(InputError, match=r"(?s)languages: swh_Latn: .*50 rows have the same id"):
        CodeSwitch(languages=("sw", "de")).check(Available.of(of, there))
    with pytest.raises(InputError, match=r"(?s)languages: no lexicon.*swh_Latn: 50 rows.*tha_Thai is written without"):
        CodeSwitch().check(Available.of(of, corpus(eng_Latn=sources, tha_Thai=targets, swh_Latn=targets[:50])))
    with pytest.raises(InputError, match=r"fra_Latn has no train or dev rows"):
        CodeSwitch(languages=("fr",)).check(Available.of(of, there))
    narrow = of.model_copy(update={"targets": ("swh_Latn",)})
    with pytest.raises(InputError, match=r"deu_Latn has no train or dev rows .* neither source nor target"):
        CodeSwitch(languages=("de",)).check(Available.of(narrow, there))


def test_missing_dictionaries_are_refused(tmp_path: Path) -> None:
    of, words, there = (
        experiment(tmp_path),
        str(folder(tmp_path)),
        corpus(eng_Latn=["a"], deu_Latn=["b"], fra_Latn=["c"]),
    )
    CodeSwitch(lexicons=words).check(Available.of(of, there))  # German has one, French has none
    with pytest.raises(InputError, match="fra_Latn: no file of eng_Latn -> fra_Latn"):
        CodeSwitch(lexicons=words, languages=("fr",)).check(Available.of(of, there))
    with pytest.raises(InputError, match="nowhere is no folder"):
        CodeSwitch(lexicons="nowhere").check(Available.of(of, there))
    two = experiment(tmp_path, sources=["eng_Latn", "fra_Latn"])
    with pytest.raises(InputError, match=r"has no \{source\}, and there are 2 sources"):
        CodeSwitch(lexicons=f"{words}/{{language}}.tsv").check(Available.of(two, there))
    lexicon.write(tmp_path / "none" / "deu_Latn.tsv", lexicon.Lexicon("eng_Latn", "deu_Latn", {}))
    with pytest.raises(InputError, match="deu_Latn: its lexicon has no entry"):
        CodeSwitch(lexicons=f"{tmp_path}/none").prepare(material(of, there))
