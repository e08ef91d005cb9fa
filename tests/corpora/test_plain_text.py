"""Plain text beside a corpus: what is read, what is wrong with a file, and that none of it stands in test."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from xlt_ray.config.read import build
from xlt_ray.corpora import loaders, seen, soundness
from xlt_ray.corpora.loaders.beside import plain
from xlt_ray.errors import InputError
from xlt_ray.supervision import UNLABELLED, ZERO_SHOT
from xlt_ray.training import checks
from xlt_ray.training.checks import absolute
from xlt_ray.training.setup import Setup

Settings = dict[str, Any]


def written(folder: Path, **files: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.txt").write_text(content, encoding="utf-8")
    return str(folder / "{language}.txt")


def test_a_line_is_a_text_and_empty_ones_are_none(tmp_path: Path) -> None:
    found = plain.read(written(tmp_path, en="one  text\n\n  \ntwo\n", swh_Latn="tatu", de="\n"))
    assert {code: table.to_pylist() for code, table in found.items()} == {
        "eng_Latn": [{"id": "en.txt:1", "text": "one text"}, {"id": "en.txt:4", "text": "two"}],
        "swh_Latn": [{"id": "swh_Latn.txt:1", "text": "tatu"}],
    }


def test_the_language_may_be_a_folder_and_a_code_the_corpus_uses(tmp_path: Path) -> None:
    for code in ("swh_Latn", "zz_Made"):
        written(tmp_path / code, news=f"text of {code}\n")
    (tmp_path / "news.txt").write_text("of no language")
    found = plain.read(str(tmp_path / "{language}" / "news.txt"), ["zz_Made"])
    assert {code: table["text"].to_pylist() for code, table in found.items()} == {
        code: [f"text of {code}"] for code in ("swh_Latn", "zz_Made")
    }


def test_names_of_no_language_are_left_out_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="corpus.unlabelled: left out, as they name no language: README$"):
        assert list(plain.read(written(tmp_path, en="a\n", README="b\n"))) == ["eng_Latn"]


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"write \{language\} once where files have their language"):
        plain.read(str(tmp_path / "all.txt"))
    with pytest.raises(InputError, match="no file of a language there that holds text; correct the path"):
        plain.read(written(tmp_path / "empty", en="\n"))
    with pytest.raises(InputError, match="eng.txt: of eng_Latn, as another file is; join them"):
        plain.read(written(tmp_path / "twice", en="a\n", eng="b\n"))
    with pytest.raises(InputError, match="is a URL; fetch the files"):
        plain.read("s3://bucket/{language}.txt")
    where = written(tmp_path / "bytes", en="a\n")
    (tmp_path / "bytes" / "de.txt").write_bytes(b"Stra\xdfe\n")
    with pytest.raises(InputError, match="de.txt"):
        plain.read(where)


@pytest.fixture
def settings(tiny_settings: Settings, tmp_path: Path) -> Settings:
    changed = copy.deepcopy(tiny_settings) | {"sources": ["eng_Latn"], "targets": ["swh_Latn", "hin_Deva"]}
    changed["corpus"]["unlabelled"] = written(tmp_path / "text", swh_Latn="swh1 swh2\nswh3 swh4\n", fra="x y\n")
    changed["techniques"], changed["training"]["method"] = ["mlm"], "adapt"
    return changed


def test_it_is_learned_from_beside_rows_and_counts_as_unlabelled_text(settings: Settings) -> None:
    experiment = build(settings)
    corpus = loaders.load(experiment.corpus)
    found = Setup.of(experiment, corpus)
    rows = {code: table.num_rows for code, table in found.joining.items()}
    assert rows == {"eng_Latn": 160, "hin_Deva": 12, "swh_Latn": 12 + 2}
    assert sum(share.rows for share in found.mixture) == 186
    assert found.material.all_texts["swh_Latn"]["text"].to_pylist()[-2:] == ["swh1 swh2", "swh3 swh4"]
    assert seen.digests([found.material.all_texts["swh_Latn"]])[0] in found.read_texts()
    assert found.supervision == dict.fromkeys(("eng_Latn", "hin_Deva", "swh_Latn"), UNLABELLED)
    centred = Setup.of(build({**settings, "techniques": ["centre"], "training": {"method": "probe"}}), corpus)
    assert centred.material.texts["swh_Latn"].num_rows == 12, "others look at rows alone"


def test_a_language_of_which_there_is_plain_text_alone_is_learned_from(settings: Settings, tmp_path: Path) -> None:
    corpus = loaders.load(build(settings).corpus)
    splits = {
        split: {c: t for c, t in tables.items() if split == "test" or c != "swh_Latn"}
        for split, tables in corpus.splits.items()
    }
    for technique, rung in (("mlm", UNLABELLED), ("language_id", ZERO_SHOT)):
        method = "adapt" if technique == "mlm" else "fine_tune"
        experiment = build({**settings, "techniques": [technique], "training": {"method": method}})
        found = Setup.of(experiment, type(corpus)(corpus.name, corpus.labels, splits, plain=corpus.plain))
        assert found.supervision["swh_Latn"] == rung


def test_what_no_run_of_these_languages_reads_is_told_and_a_target_may_have_plain_text_alone(
    settings: Settings,
) -> None:
    settings["targets"] = ["swh_Latn", "fra_Latn"]
    prepared = checks.prepare(build(settings))
    assert prepared.joining["fra_Latn"].num_rows == 1 and "hin_Deva" not in prepared.joining
    settings["targets"] = ["swh_Latn"]
    with pytest.warns(
        UserWarning, match="corpus.unlabelled: fra_Latn: not read, as these are neither sources nor targets"
    ):
        checks.prepare(build(settings))
    settings |= {"targets": ["swh_Latn", "fra_Latn"], "training": {"method": "fine_tune"}}
    with pytest.raises(InputError, match="test: target fra_Latn has none"):
        checks.prepare(build(settings))


def test_it_names_another_run_and_other_runs_keep_their_names(settings: Settings) -> None:
    corpus = loaders.load(build(settings).corpus)
    del settings["corpus"]["unlabelled"]
    without = loaders.load(build(settings).corpus)
    assert corpus.fingerprint != without.fingerprint
    assert build(settings).key() == build({**settings, "corpus": {**settings["corpus"], "unlabelled": None}}).key()


def test_lines_that_stand_in_test_are_refused_or_dropped(settings: Settings, tmp_path: Path) -> None:
    test = loaders.load(build(settings).corpus).table("test", "hin_Deva")["text"][0].as_py()
    settings["corpus"]["unlabelled"] = written(tmp_path / "leak", swh_Latn=f"swh1 swh2\n  {test} \n")
    corpus = loaders.load(build(settings).corpus)
    with pytest.raises(
        InputError, match=r"corpus.unlabelled, swh_Latn, swh_Latn.txt:2: text .* is in test too; remove it"
    ):
        soundness.check(corpus, ["eng_Latn"], ["swh_Latn", "hin_Deva"])
    settings["corpus"]["overlap"] = "drop_train"
    kept, dropped = loaders.load_corpus(build(settings))
    assert kept.plain["swh_Latn"]["text"].to_pylist() == ["swh1 swh2"] and dropped["unlabelled"] == {"swh_Latn": 1}
    settings["corpus"]["unlabelled"] = written(tmp_path / "all", swh_Latn=f"{test}\n")
    kept, dropped = loaders.load_corpus(build(settings))
    assert not kept.plain and dropped["unlabelled"] == {"swh_Latn": 1}


def test_a_path_is_made_absolute_for_workers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings["corpus"]["unlabelled"] = "text/{language}.txt"
    assert absolute(build(settings)).corpus.unlabelled == str(tmp_path / "text" / "{language}.txt")
