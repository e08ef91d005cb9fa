"""Translate-train: which rows are added in translation, what of their originals they keep, and what they are called."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_catalogue import mislabelled, parallel_corpus

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.inference import bundle
from xlt_ray.languages import lexicon
from xlt_ray.reports import report
from xlt_ray.runs import measure, run, sweep
from xlt_ray.training import checks, frozen, loop, setup
from xlt_ray.training.setup import Setup
from xlt_ray.translation.translator import WordByWord

Settings = dict[str, Any]
__all__ = ["parallel_corpus"]
TARGETS = ("hin_Deva", "swh_Latn")


@pytest.fixture
def settings(tiny_settings: Settings, parallel_corpus: Path) -> Settings:
    changed = copy.deepcopy(tiny_settings)
    changed["corpus"]["path"] = str(parallel_corpus)
    changed |= {"sources": ["eng_Latn"], "techniques": ["translate_train"]}
    changed["training"] |= {"epochs": 1, "batch_size": 40}
    return changed


def translated(settings: Settings, **parameters: Any) -> Settings:
    return {**settings, "techniques": [{"translate_train": parameters}]}


def setup_of(settings: Settings, **parameters: Any) -> Setup:
    experiment = build(translated(settings, **parameters) if parameters else settings)
    return Setup.of(experiment, loaders.load(experiment.corpus))


def columns(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


# a corpus in memory, whose lexicons are files


def tables(words: str, first: int = 0, pairs: bool = False) -> pa.Table:
    texts = words.split(", ")
    found = {"text": texts, **({"text_pair": [f"{text} again" for text in texts]} if pairs else {})}
    labels = pa.array([number % 2 for number in range(len(texts))], pa.int32())
    return pa.table(found | {"label": labels, "id": [str(first + number) for number in range(len(texts))]})


def small(pairs: bool = False, **train: str) -> Corpus:
    known = {code: tables(words, pairs=pairs) for code, words in train.items()}
    test = {code: tables(f"{code} one, {code} two", 100, pairs) for code in ("eng_Latn", "deu_Latn", "swh_Latn")}
    return Corpus("made", ("a", "b"), {"train": known, "dev": {}, "test": test})


def of_files(tmp_path: Path, **changes: Any) -> Experiment:
    for pair, words in (("eng_Latn-swh_Latn", "the sea\tbahari\nsea\tziwa\n"), ("deu_Latn-swh_Latn", "Meer\tbahari\n")):
        (tmp_path / f"{pair}.tsv").write_text(words, encoding="utf-8")
    parameters = {"lexicons": str(tmp_path), "languages": ["sw"], **changes.pop("parameters", {})}
    plain = {"sources": ["eng_Latn"], "corpus": {"loader": "files", "path": "x", "cache_dir": str(tmp_path / "cache")}}
    return build({**plain, "techniques": [{"translate_train": parameters}], **changes})


# the copies


def test_a_copy_has_the_label_and_the_id_of_its_row_and_other_words(settings: Settings) -> None:
    found = setup_of(settings)
    english = found.visible.table("train", "eng_Latn")
    assert english.equals(found.corpus.table("train", "eng_Latn")), "the originals stay as they are"
    for code in TARGETS:
        copies = found.visible.table("train", code)
        assert columns(copies, "id", "label") == columns(english, "id", "label")
        words = [word for text in copies["text"].to_pylist() for word in text.split()]
        assert sum(word.startswith(code[:3]) for word in words) > 0.8 * len(words)
        assert not any("\n" in text for text in copies["text"].to_pylist())
    assert found.visible.languages("dev") == ("eng_Latn",) and not found.visible.splits["test"]


def test_words_and_phrases_are_replaced_in_both_texts_of_a_pair(tmp_path: Path) -> None:
    corpus = small(pairs=True, eng_Latn="The sea is wide, a sea")
    copies = Setup.of(of_files(tmp_path), corpus).visible.table("train", "swh_Latn")
    expected = [("Bahari is wide", "Bahari is wide again", 0, "0"), ("a ziwa", "a ziwa again", 1, "1")]
    assert columns(copies, "text", "text_pair", "label", "id") == expected
    alone = Setup.of(of_files(tmp_path, parameters={"phrases": False}), corpus).visible.table("train", "swh_Latn")
    assert alone["text"].to_pylist() == ["The ziwa is wide", "a ziwa"]


def test_no_label_of_a_target_changes_the_weights(settings: Settings) -> None:
    experiment = build(settings)
    corpus, weights = loaders.load(experiment.corpus), []
    for one in (corpus, mislabelled(corpus, TARGETS)):
        made = Setup.of(experiment, one)
        net, tokenize, _ = made.build()
        loop.fit(setup.Run(made, net, tokenize))
        weights.append(net.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_copy_of_a_text_that_stands_in_test_is_dropped_and_counted(tmp_path: Path) -> None:
    corpus = small(eng_Latn="a sea, one, two")
    (tmp_path / "swh_Latn.tsv").write_text("id\ttext\n0\tza bahari\n1\tswh_Latn  two\n2\tmbili\n", encoding="utf-8")
    chosen = {"by": "table", "table": f"{tmp_path}/{{language}}.tsv", "lexicons": "induced"}
    found = Setup.of(of_files(tmp_path, parameters=chosen), corpus)
    assert found.visible.table("train", "swh_Latn")["text"].to_pylist() == ["za bahari", "mbili"]
    assert found.dropped == {"train": {"swh_Latn": 1}} and found.added == {"translate_train": {"swh_Latn": 2}}


def test_each_source_is_translated_and_one_that_is_not_trained_on_is_not(tmp_path: Path) -> None:
    corpus, two = small(eng_Latn="a sea", deu_Latn="das Meer, ein Meer"), ["eng_Latn", "deu_Latn"]
    both = Setup.of(of_files(tmp_path, sources=two), corpus).visible
    assert columns(both.table("train", "swh_Latn"), "text", "id") == [
        ("a ziwa", "0"), ("das Bahari", "0"), ("ein Bahari", "1")
    ]  # fmt: skip
    one = of_files(tmp_path, sources=two, mixture={"weights": {"deu_Latn": 0}})
    assert Setup.of(one, corpus).visible.table("train", "swh_Latn")["text"].to_pylist() == ["a ziwa"]


def test_a_further_source_may_be_translated_into(tmp_path: Path) -> None:
    (tmp_path / "eng_Latn-deu_Latn.tsv").write_text("sea\tMeer\n", encoding="utf-8")
    corpus = small(eng_Latn="a sea", deu_Latn="das Haus")
    chosen = of_files(tmp_path, sources=["eng_Latn", "deu_Latn"], parameters={"languages": ["de"]})
    found = Setup.of(chosen, corpus)
    assert found.visible.table("train", "deu_Latn")["text"].to_pylist() == ["das Haus", "a Meer"]
    assert found.added == {"translate_train": {"deu_Latn": 1}} and found.few_shot == ()


# what it costs


def test_nothing_is_translated_twice(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    experiment = build(settings)
    corpus = loaders.load(experiment.corpus)
    first = Setup.of(experiment, corpus, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(lexicon, "induce_tables", None)
        patch.setattr(lexicon, "read_table", None)
        patch.setattr(WordByWord, "translate", None)
        again = Setup.of(experiment, corpus)
    for code in TARGETS:
        assert again.visible.table("train", code).equals(first.visible.table("train", code))
    kept = Path(settings["corpus"]["cache_dir"]) / "translations"
    assert len(list(kept.glob("*.arrow"))) == 2
    setup_of(settings, score=0.6)
    assert len(list(kept.glob("*.arrow"))) == 4, "another score is another translation"


def test_another_dictionary_or_other_rows_are_translated_anew(tmp_path: Path) -> None:
    corpus, experiment = small(eng_Latn="a sea"), of_files(tmp_path)

    def texts(of: Corpus) -> list[str]:
        return Setup.of(experiment, of).visible.table("train", "swh_Latn")["text"].to_pylist()

    assert texts(corpus) == ["a ziwa"] and texts(small(eng_Latn="one sea")) == ["one ziwa"]
    (tmp_path / "eng_Latn-swh_Latn.tsv").write_text("sea\tbahari\n", encoding="utf-8")
    assert texts(corpus) == ["a bahari"]


# what they are called


def test_a_language_of_copies_stays_zero_shot_on_the_rung_of_parallel_text(settings: Settings) -> None:
    prepared = checks.prepare(build(settings))
    assert prepared.few_shot == () and prepared.zero_shot == TARGETS and prepared.shots == {}
    assert prepared.supervision == dict.fromkeys(TARGETS, "+ parallel text")
    assert set(prepared.rungs.values()) == {"+ parallel text"}
    assert [(share.language, share.rows) for share in prepared.mixture] == [
        ("eng_Latn", 120), ("hin_Deva", 120), ("swh_Latn", 120)
    ]  # fmt: skip
    assert prepared.added == {"translate_train": dict.fromkeys(TARGETS, 120)}
    assert run.corpus_facts(prepared)["added"] == {"translate_train": dict.fromkeys(TARGETS, 120)}


@pytest.mark.parametrize("first", ["few_shot", "translate_train"])
def test_shots_and_copies_stand_side_by_side_in_either_order(settings: Settings, first: str) -> None:
    chosen: dict[str, Settings] = {
        "few_shot": {"shots": 2, "languages": ["sw"]}, "translate_train": {"languages": TARGETS}
    }  # fmt: skip
    both = [{first: chosen.pop(first)}, chosen]
    found = setup_of({**settings, "techniques": both})
    assert found.visible.sizes("train") == {"eng_Latn": 120, "hin_Deva": 120, "swh_Latn": 126}
    assert found.few_shot == ("swh_Latn",) and found.zero_shot == ("hin_Deva",) and found.shots == {"swh_Latn": 6}
    assert found.supervision == {"swh_Latn": "few-shot", "hin_Deva": "+ parallel text"}


def test_a_sweep_of_shots_counts_shots_alone(settings: Settings) -> None:
    prepared = checks.prepare(build({**settings, "techniques": ["translate_train", {"few_shot": {"shots": 1}}]}))
    assert sweep._setup(prepared, (2, 0)).shots == dict.fromkeys(TARGETS, 6)
    zero = sweep._setup(prepared, (0, 0))
    assert zero.shots == {} and zero.visible.sizes("train")["swh_Latn"] == 120


def test_a_second_stage_leaves_no_row_to_translate(settings: Settings) -> None:
    both = ["translate_train", {"few_shot": {"alone": True}}]
    settings["training"]["method"] = "probe"
    with pytest.raises(InputError, match=r"translate_train: adds translations .* techniques\.few_shot .* leaves these"):
        checks.prepare(build({**settings, "techniques": both}))


# tables


def table_of(settings: Settings, folder: Path, rows: str, **parameters: Any) -> Settings:
    (folder / "swh_Latn.tsv").write_text(f"id\ttext\n{rows}", encoding="utf-8")
    return translated(settings, by="table", table=f"{folder}/{{language}}.tsv", **parameters)


def test_a_table_gives_the_rows_whose_ids_it_has(settings: Settings, tmp_path: Path) -> None:
    rows = "3\tswh tatu\n1\tswh moja\n900\tnobody asks\n5\t \n"
    chosen = table_of(settings, tmp_path, rows)
    with pytest.warns(UserWarning) as told:
        found = checks.prepare(build(chosen))
    english = dict(columns(found.corpus.table("train", "eng_Latn"), "id", "label"))
    copies = columns(found.visible.table("train", "swh_Latn"), "id", "text", "label")
    assert copies == [("1", "swh moja", english["1"]), ("3", "swh tatu", english["3"])]
    assert "hin_Deva" not in found.visible.languages("train")
    said = " ".join(str(one.message) for one in told)
    assert f"swh_Latn: 118 of 120 rows of eng_Latn have no translation in {tmp_path}/swh_Latn.tsv" in said
    assert f"1 of 2 languages get no translations\n  hin_Deva: no file {tmp_path}/hin_Deva.tsv" in said
    assert found.supervision["swh_Latn"] == "+ parallel text" and found.few_shot == ()


def test_a_table_of_all_rows_is_nothing_to_warn_of(settings: Settings, tmp_path: Path) -> None:
    rows = "".join(f"{number}\tswh {number} x\n" for number in range(120))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r"techniques\.translate_train")
        found = checks.prepare(build({**table_of(settings, tmp_path, rows), "targets": ["swh_Latn"]}))
    assert found.visible.sizes("train") == {"eng_Latn": 120, "swh_Latn": 120}


@pytest.mark.parametrize(
    ("rows", "parameters", "message"),
    [
        ("1\ta\n1\tb\n", {}, r"swh_Latn\.tsv: id '1' stands there twice; keep one of its rows"),
        ("x\ta\n", {}, r"none of its 1 rows has an id of eng_Latn \(there 'x', here '0', '1'; corpus\.id names"),
        ("1\ta\n", {"languages": ["hi"]}, r"languages: hin_Deva: no translation from eng_Latn; give tables by"),
        ("1\ta\tb\n", {}, r"swh_Latn\.tsv, line 2: 3 columns where the header has 2"),
        ("1\ta\n", {"lexicons": "words"}, r"lexicons: .*words is not read by a table; set .*by to lexicon"),
        ("1\ta\n", {"table": None}, r"translate_train\.table: missing; name the files"),
        ("1\ta\n", {"table": "all.tsv"}, r"translate_train\.table: .*all\.tsv: no \{language\} in it"),
        ("1\ta\n", {"by": "lexicon"}, r"table: .* is not read by a lexicon; set .*by to table"),
        ("1\ta\n", {"by": "google"}, r"translate_train\.by"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(
    settings: Settings, tmp_path: Path, rows: str, parameters: Settings, message: str
) -> None:
    chosen = table_of(settings, tmp_path, rows)
    chosen["techniques"][0]["translate_train"] |= parameters
    with pytest.raises(InputError, match=message):
        checks.prepare(build(chosen))


def test_a_table_of_no_known_format_or_without_the_columns_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "swh_Latn.txt").write_text("id\ttext\n1\ta\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"swh_Latn\.txt: its suffix tells no format; name it \.tsv"):
        checks.prepare(build(translated(settings, by="table", table=f"{tmp_path}/{{language}}.txt")))
    (tmp_path / "swh_Latn.jsonl").write_text('{"id": "1", "sentence": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"swh_Latn\.jsonl: no column 'text' for corpus\.text"):
        checks.prepare(build(translated(settings, by="table", table=f"{tmp_path}/{{language}}.jsonl")))


def test_several_sources_need_a_table_each(settings: Settings, tmp_path: Path) -> None:
    chosen = {**table_of(settings, tmp_path, "1\ta\n"), "sources": ["eng_Latn", "hin_Deva"]}
    with pytest.raises(InputError, match=r"table: .* has no \{source\}, and there are 2 sources; write both"):
        checks.prepare(build(chosen))


# lexicons


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"languages": []}, "no language to translate into"),
        ({"languages": ["fr"]}, "languages: fra_Latn is neither source nor target; add it to targets"),
        ({"languages": ["en"]}, "there is nothing to translate into but eng_Latn itself"),
        ({"lexicons": "/no/such/folder"}, "lexicons: /no/such/folder is no folder"),
        ({"score": 0}, r"translate_train\.score"),
        ({"lexicons": "HERE"}, r"languages: no lexicon from eng_Latn; .*\n  hin_Deva: no file of eng_Latn -> hin_Deva"),
        ({"lexicons": "HERE", "languages": ["sw"]}, r"languages: swh_Latn: no lexicon from eng_Latn"),
    ],
)
def test_what_cannot_be_translated_is_refused(
    settings: Settings, tmp_path: Path, parameters: Settings, message: str
) -> None:
    parameters = {key: str(tmp_path) if value == "HERE" else value for key, value in parameters.items()}
    with pytest.raises(InputError, match=f"(?s){message}"):
        checks.prepare(build(translated(settings, **parameters)))


def test_a_lexicon_that_translates_nothing_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "eng_Latn-swh_Latn.tsv").write_text("eng4\tswh4\t0.05\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"eng_Latn -> swh_Latn has no entry that scores 0\.1 or more; lower .*score"):
        checks.prepare(build(translated(settings, lexicons=str(tmp_path), languages=["sw"])))


def test_a_language_without_spaces_is_refused_by_name_and_left_out_else(settings: Settings) -> None:
    experiment = build({**settings, "targets": ["swh_Latn", "tha_Thai"]})
    whole = loaders.load(experiment.corpus)
    splits = {split: {**each, "tha_Thai": each["hin_Deva"]} for split, each in whole.splits.items()}
    corpus = Corpus(whole.name, whole.labels, splits)
    with pytest.warns(UserWarning, match=r"1 of 2 languages get no translations\n  tha_Thai: .* without spaces"):
        checks.check(techniques.build(experiment), experiment, corpus)
    found = Setup.of(experiment, corpus)
    assert found.added == {"translate_train": {"swh_Latn": 120}}
    assert found.supervision == {"swh_Latn": "+ parallel text", "tha_Thai": "zero-shot"}
    named = build({**translated(settings, languages=["th"]), "targets": ["swh_Latn", "tha_Thai"]})
    with pytest.raises(InputError, match=r"(?s)languages: tha_Thai: no lexicon .*without spaces"):
        checks.check(techniques.build(named), named, corpus)


# whole runs


def test_a_probe_holds_a_row_and_its_copies_out_together(settings: Settings) -> None:
    settings["training"] |= {"method": "probe"}
    found = checks.prepare(build(settings))
    tables = frozen.training_tables(found)
    features = {name: np.zeros((table.num_rows, 4), np.float32) for name, table in tables.items()}
    rest = frozen.Frozen.of(tables, features, 3, None).without({"7", "8"})
    assert {name: len(rows) for name, rows in rest.labels.items() if name.startswith("train/")} == {
        f"train/{code}": 118 for code in ("eng_Latn", *TARGETS)
    }


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("method", ["probe", "fine_tune"])
def test_a_run_on_ray_ends_with_zero_shot_scores_and_says_what_was_added(
    settings: Settings, tmp_path: Path, method: str, local_ray: None
) -> None:
    settings |= {"storage": str(tmp_path / "runs"), "resources": {"workers": 2}}
    settings["techniques"] = [{"translate_test": {"scores": [0.1]}}, "translate_train", "centre"]
    settings["corpus"]["cache_dir"] = str(tmp_path / "cache")
    settings["training"] |= {"method": method, "epochs": 2}
    stages: list[str] = []
    outcome = run.run(build(settings), lambda event: stages.append(event["stage"]))
    assert "prepare" in stages[: stages.index("start")], "translating is told of before Ray starts"
    roles = {code: (one.role, one.supervision) for code, one in outcome.scores.languages.items()}
    assert roles == {
        "eng_Latn": ("source", None), **dict.fromkeys(TARGETS, ("zero-shot", "+ parallel text"))
    }  # fmt: skip
    page = (outcome.folder.local / "report.html").read_text(encoding="utf-8")
    assert "120 labelled rows in English" in page and "240 rows that translate_train added in 2 languages" in page
    assert "few-shot" not in report._called(outcome.scores, outcome.experiment)
    made = bundle.load(outcome.folder.local / "bundle")
    again = measure.measure(made, outcome.experiment, lambda event: None)
    assert {code: one.role for code, one in again.languages.items()} == {
        code: role for code, (role, _) in roles.items()
    }
