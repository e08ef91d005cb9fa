"""What is fixed before any work: absolute places, the mixture, the updates, and which dev rows must be there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build, dump
from xlt_ray.corpora import mixture
from xlt_ray.errors import InputError
from xlt_ray.inference import bundle
from xlt_ray.runs import retrieve
from xlt_ray.search import similarity
from xlt_ray.training import batches, checks, setup

Settings = dict[str, Any]


@pytest.fixture
def corpus_folder(tiny_corpus: Path, tmp_path: Path) -> Path:
    """A copy of the tiny corpus to take files from."""
    return Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))


def prepared(settings: Settings, folder: Path, *overrides: str) -> setup.Setup:
    return checks.prepare(build(settings, [f"corpus.path={folder}", *overrides]))


# what a dry run shows


def test_the_mixture_the_languages_and_the_updates_are_known(tiny_experiment: Experiment) -> None:
    found = checks.prepare(tiny_experiment)
    assert found.measured == ("deu_Latn", "eng_Latn", "hin_Deva", "swh_Latn")
    assert found.zero_shot == ("hin_Deva", "swh_Latn")
    assert [(share.language, share.rows) for share in found.mixture] == [("eng_Latn", 160), ("deu_Latn", 40)]
    assert sum(share.draws for share in found.mixture) == pytest.approx(200)
    assert found.corpus.labels == ("food", "sport", "travel")
    assert found.dropped == {}


@pytest.mark.parametrize(
    "overrides",
    [[], ["mixture.draws_per_epoch=33"], ["mixture.weights.deu_Latn=0"], ["training.batch_size=7", "mixture.alpha=1"]],
    ids=str,
)
def test_the_updates_announced_are_those_that_training_makes(tiny_settings: Settings, overrides: list[str]) -> None:
    found = checks.prepare(build(tiny_settings, overrides))
    config, training = found.experiment.mixture, found.experiment.training
    sizes = {share.language: share.rows for share in found.mixture if share.weight > 0}
    made = 0
    for number in range(training.epochs):
        draws = mixture.epoch(sizes, config, 0, number)
        lengths = {code: np.arange(rows, dtype=np.int32).__getitem__ for code, rows in sizes.items()}
        made += len(list(batches.updates(draws, lengths, training.batch_size)))
    assert found.updates == made


def test_targets_asked_for_are_measured_besides_the_sources(tiny_settings: Settings) -> None:
    found = checks.prepare(build(tiny_settings, ["targets=[swh_Latn]"]))
    assert (found.measured, found.zero_shot) == (("deu_Latn", "eng_Latn", "swh_Latn"), ("swh_Latn",))
    assert checks.prepare(build(tiny_settings, ["targets=[]"])).zero_shot == ()


def test_rows_that_are_in_test_too_are_refused_or_dropped(tiny_settings: Settings, corpus_folder: Path) -> None:
    test = (corpus_folder / "swh_Latn" / "test.tsv").read_text(encoding="utf-8").splitlines()
    with (corpus_folder / "eng_Latn" / "train.tsv").open("a", encoding="utf-8") as file:
        file.write(test[1].replace("2000\t", "7777\t", 1) + "\n")
    with pytest.raises(InputError, match="corpus.overlap: drop_train"):
        prepared(tiny_settings, corpus_folder)
    found = prepared(tiny_settings, corpus_folder, "corpus.overlap=drop_train")
    assert found.dropped == {"train": {"eng_Latn": 1}}
    assert {share.language: share.rows for share in found.mixture} == {"eng_Latn": 160, "deu_Latn": 40}


def test_all_that_is_missing_is_listed_at_once(tiny_settings: Settings, corpus_folder: Path) -> None:
    (corpus_folder / "deu_Latn" / "train.tsv").unlink()
    (corpus_folder / "swh_Latn" / "test.tsv").unlink()
    with pytest.raises(InputError) as refused:
        prepared(tiny_settings, corpus_folder, "targets=[swh_Latn, hin_Deva]")
    message = str(refused.value)
    assert "train: source deu_Latn has none" in message and "test: target swh_Latn has none" in message


# which dev rows are needed


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ([], []),
        (["training.average_last=2"], []),
        (["training.select=source_dev"], ["eng_Latn", "deu_Latn"]),
        (["training.select=target_dev"], ["swh_Latn", "hin_Deva"]),
        (["training.select=target_dev", "targets=[swh_Latn, eng_Latn]"], ["swh_Latn"]),
        (["training.method=probe"], ["eng_Latn", "deu_Latn"]),
        (["training.method=probe", "training.probe_strengths=[1]"], []),
        (
            ["training.method=probe", "training.probe_strengths=[1]", "training.refit=source_dev"],
            ["eng_Latn", "deu_Latn"],
        ),
    ],
    ids=str,
)
def test_dev_rows_are_asked_for_only_where_something_is_chosen_by_them(
    tiny_settings: Settings, corpus_folder: Path, overrides: list[str], needed: list[str]
) -> None:
    languages = {"eng_Latn", "deu_Latn", "swh_Latn", "hin_Deva"}
    for language in languages - set(needed):
        (corpus_folder / language / "dev.tsv").unlink()
    assert prepared(tiny_settings, corpus_folder, *overrides).measured
    for language in needed:
        (corpus_folder / language / "dev.tsv").rename(corpus_folder / language / "aside")
        with pytest.raises(InputError, match=f"dev: language {language} has none"):
            prepared(tiny_settings, corpus_folder, *overrides)
        (corpus_folder / language / "aside").rename(corpus_folder / language / "dev.tsv")


@pytest.mark.parametrize("targets", ["targets=[]", "targets=[eng_Latn]"])
def test_an_oracle_without_a_target_is_refused(tiny_settings: Settings, targets: str) -> None:
    with pytest.raises(InputError, match="training.select: target_dev, but every target is a source"):
        checks.prepare(build(tiny_settings, ["training.select=target_dev", targets]))


# places


def test_local_places_become_absolute_and_all_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "model").mkdir()
    (tmp_path / "home" / "model").mkdir(parents=True)

    def absolute(**corpus: str) -> Experiment:
        init = corpus.pop("init", "bundled:e5-small")
        data = {"sources": ["eng_Latn"], "network": {"init": init}, "corpus": corpus}
        return checks.absolute(build(data))

    assert absolute(init="model").network.init == str(tmp_path / "model")
    assert absolute(init="~/model").network.init == str(tmp_path / "home" / "model")
    for init in ("bundled:e5-small", "xlm-roberta-base", "intfloat/multilingual-e5-small"):
        assert absolute(init=init).network.init == init

    for path in ("data", "data/{language}/{split}.tsv"):
        assert absolute(loader="files", path=path).corpus.path == str(tmp_path / path)
    assert absolute(loader="files", path="~/{split}.csv").corpus.path == str(tmp_path / "home" / "{split}.csv")
    url = "https://host/{language}/{split}.tsv"
    assert absolute(loader="files", path=url).corpus.path == url
    assert absolute(loader="hub", path="owner/set").corpus.path == "owner/set"
    assert absolute(loader="hub", path="model").corpus.path == str(tmp_path / "model")

    assert absolute(cache_dir="cache").corpus.cache_dir == str(tmp_path / "cache")
    assert absolute(cache_dir="~/.cache/xlt_ray").corpus.cache_dir == "~/.cache/xlt_ray"


def test_absolute_changes_nothing_that_is_absolute_and_nothing_else(tiny_experiment: Experiment) -> None:
    assert checks.absolute(tiny_experiment) == tiny_experiment
    assert checks.absolute(checks.absolute(tiny_experiment)) == tiny_experiment


# a bundle that a run begins from


def damaged(folder: Path, what: str) -> None:
    """Damage a bundle as copies are."""
    head, weights = folder / "head.safetensors", folder / "encoder" / "model.safetensors"
    if what == "cut":
        head.write_bytes(head.read_bytes()[:-4])
    elif what == "gone":
        weights.unlink()
    elif what == "zeros":
        content = weights.read_bytes()
        weights.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    else:
        content = json.loads((folder / "bundle.json").read_text())
        (folder / "bundle.json").write_text(json.dumps(content | {"experiment": 3}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("zeros", r"network.init: of the bundle .*/copy, encoder/model.safetensors is missing or not what was written"),
        ("gone", r"network.init: of the bundle .*/copy, encoder/model.safetensors is missing or not what was written"),
        ("cut", r"network.init: of the bundle .*/copy, head.safetensors is missing or not what was written"),
        ("no experiment", r"network.init: .*bundle.json is damaged .*; copy the bundle again"),
    ],
)
def test_a_damaged_bundle_is_refused_before_any_work(
    tiny_settings: dict[str, Any], tmp_path: Path, what: str, message: str
) -> None:
    made = checks.prepare(build(tiny_settings))
    net, tokenize, identity = made.build()
    one = bundle.Bundle(net, tokenize, made.corpus.labels, made.experiment, None, seen=made.read_texts())
    bundle.save(tmp_path / "copy", one, identity)
    network = {**tiny_settings["network"], "init": str(tmp_path / "copy"), "head": "bundle"}
    checks.prepare(build(tiny_settings | {"network": network}))
    damaged(tmp_path / "copy", what)
    with pytest.raises(InputError, match=message):
        checks.prepare(build(tiny_settings | {"network": network}))
    file = tmp_path / "asked.yaml"
    file.write_text(dump(build(tiny_settings | {"network": network})), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        retrieve.of_file(str(file), (), "test", None, lambda event: None)
    with pytest.raises(InputError, match=message):
        similarity.rank_file(str(file), (), lambda event: None)


def test_an_encoder_that_is_frozen_whole_is_not_adapted(tiny_settings: dict[str, Any]) -> None:
    asked = tiny_settings | {"training": {"method": "adapt"}, "techniques": ["mlm"]}
    checks.prepare(build(asked | {"network": {**tiny_settings["network"], "freeze": ["embeddings", 1]}}))
    with pytest.raises(InputError, match=r"network.freeze: leaves nothing of the encoder to learn .*; freeze less"):
        checks.prepare(build(asked | {"network": {**tiny_settings["network"], "freeze": ["embeddings", 2]}}))
