"""`import xlt_ray`: what a script or a notebook can do without a command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import registered
from ray_runs import settings

import xlt_ray
from xlt_ray import api
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.inference import bundle

TEXTS = ["w1 w2 w3", "w4 w5", "w6"]


@pytest.fixture(scope="module")
def data(tiny_encoder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("api")
    return settings(tiny_encoder, tiny_corpus, folder, training={"method": "probe"}, resources={"workers": 1})


@pytest.fixture(scope="module")
def run(data: dict[str, Any]) -> xlt_ray.Run:
    return xlt_ray.train(data, {"seed": 3}, progress=False)


@pytest.fixture
def model(tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path) -> xlt_ray.Model:
    """A model that was never trained, with scores."""
    plain = registered.settings(tiny_encoder, tiny_corpus, tmp_path / "cache")
    made = registered.made_bundle(tmp_path / "made", plain)
    one = bundle.load(made)
    found = registered.answers(plain, {"eng_Latn": 0.9, "swh_Latn": 0.5})
    scores = metrics.score(found, one.labels, Roles(("eng_Latn", "deu_Latn")), 100)
    return xlt_ray.Model(str(made), replace(one, scores=scores))


def test_importing_loads_nothing_that_is_slow() -> None:
    code = "import sys, xlt_ray; print(*sorted({'torch', 'ray', 'pandas', 'numpy'} & set(sys.modules)), dir(xlt_ray))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(dir(xlt_ray)) and "train" in dir(xlt_ray)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = xlt_ray.trian  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_run_is_trained_measured_and_asked(data: dict[str, Any], run: xlt_ray.Run) -> None:
    assert run.experiment.seed == 3 and run.report.is_file() and run.unsent == 0
    frame = run.scores.to_frame()
    assert list(frame.index[:2]) == ["deu_Latn", "eng_Latn"] or list(frame.index[:2]) == ["eng_Latn", "deu_Latn"]
    assert frame.loc["swh_Latn", "accuracy"] == run.scores.languages["swh_Latn"].accuracy
    assert frame.loc["swh_Latn", "role"] == "zero-shot" and frame.loc["swh_Latn", "name"] == "Swahili"
    means = run.scores.means()
    assert means.loc["zero-shot", "accuracy"] == run.scores.summary["accuracy/mean_zero_shot"]
    assert means.loc["all", "languages"] == len(frame)
    answers = run.model.predict(TEXTS, "sw")
    assert list(answers["language"]) == ["swh_Latn"] * 3 and not answers["trained_on"].any()
    assert np.allclose(answers["measured_accuracy_high"], frame.loc["swh_Latn", "accuracy_high"])
    assert list(answers["label"]) == bundle.load(run.folder / "bundle").predict(TEXTS, languages=["swh_Latn"] * 3)
    assert xlt_ray.plot(run.scores).axes
    compared = xlt_ray.compare(run, run.folder)
    assert compared.loc["all", "difference"] == 0 and compared.loc["all", "languages"] == len(frame)
    assert (xlt_ray.compare(run, run.folder, run).xs("1 to 3", level="step")["difference"] == 0).all()
    # again: the same run, from what is on disk
    events: list[Any] = []
    assert xlt_ray.train(run.experiment, progress=events.append).folder == run.folder
    assert [event["stage"] for event in events] == ["check", "check"]
    assert "finished before; `xlt promote" in events[1]["note"]
    assert len(repr(run)) < 300


@pytest.mark.slow
def test_evaluating_measures_what_the_run_measured(run: xlt_ray.Run, data: dict[str, Any]) -> None:
    for again in (xlt_ray.evaluate(run, progress=False), xlt_ray.evaluate(run.folder, data, progress=False)):
        assert again.to_frame()["accuracy"].equals(run.scores.to_frame()["accuracy"])
    resampled = xlt_ray.evaluate(run.model, overrides={"evaluation.resamples": 150}, progress=False)
    assert resampled.languages["eng_Latn"].accuracy == run.scores.languages["eng_Latn"].accuracy


@pytest.mark.long
def test_a_search_is_done_and_its_choice_loaded(data: dict[str, Any], tmp_path: Path) -> None:
    search = data | {
        "storage": str(tmp_path),
        "targets": ["swh_Latn"],
        "search": {
            "space": {"sources": {"at_most": 2}},
            "screening": {"trials": 3},
            "selection": {"languages": "sources"},
            "retraining": {"seeds": 1, "baselines": []},
        },
    }
    found = xlt_ray.tune(search, progress=False)
    assert found.report.is_file() and len(found.mixes) == 3 and set(found.mixes["fidelity"]) == {"probe"}
    assert found.model.bundle.experiment.sources == found.chosen.sources


def test_languages_are_guessed_or_given_and_measured_figures_stand_beside_answers(model: xlt_ray.Model) -> None:
    texts = pd.Series(
        ["Ninapenda kusoma vitabu vya hadithi kila siku", "Licht im Wohnzimmer einschalten", "42"], [5, 6, 7]
    )
    answers = model.predict(texts)
    assert list(answers.index) == [5, 6, 7] and list(answers["text"]) == list(texts)
    assert list(answers["language"])[:2] == ["swh_Latn", "deu_Latn"] and answers["language"].isna()[7]
    assert list(answers["trained_on"].isna()) == [False, True, True]  # German is a source, but was not measured
    assert answers["measured_accuracy"].isna().tolist() == [False, True, True]
    mixed = model.predict(texts, ["en", None, "hi"])
    assert list(mixed["language"]) == ["eng_Latn", "deu_Latn", "hin_Deva"]
    chances = model.predict_proba(texts)
    assert chances.shape == (3, len(model.labels)) and np.allclose(chances.sum(1), 1, atol=1e-6)
    assert np.allclose(chances.max(1), answers["score"])
    assert model.predict(iter(texts), answers["language"]).equals(answers.reset_index(drop=True))
    assert model.predict(np.array(texts), answers["language"].to_numpy())["label"].tolist() == list(answers["label"])
    nothing = model.predict([])
    assert len(nothing) == 0 and nothing.dtypes.equals(answers.dtypes)


def test_a_section_in_overrides_keeps_what_it_does_not_name() -> None:
    found = api._overrides(
        {"mixture": {"alpha": 0.5}, "training": {"epochs": np.int64(3)}, "mixture.weights": {"a": 1}}
    )
    assert found == ["mixture.alpha=0.5", "training.epochs=3", 'mixture.weights={"a": 1}']
    labels = api._experiment({"sources": ["eng_Latn"]}, {"corpus.labels": ["😀", "é", "no"]}).corpus.labels
    assert labels == ("😀", "é", "no")


def test_what_cannot_be_answered_is_refused_with_a_remedy(model: xlt_ray.Model, tmp_path: Path) -> None:
    for texts, languages, pairs, message in (
        ("one text", None, None, r"texts: one text, 'one text', not several; put it into a list"),
        (["a", None], None, None, r"texts: number 1 is None, no text; leave it out"),
        (["a"], ["en", "de"], None, r"languages: 2 of them for 1 texts; give one a text, or one for all"),
        (["a"], {"en"}, None, r"languages: a set, no list of text"),
        (["a"], 5, None, r"languages: a int, no list of text"),
        (["a"], "klingon", None, r"languages: 'klingon' is no language known here; write a code such as swh_Latn"),
        (["a"], [7], None, r"languages: 7 is no language known here"),
        (["a"], [["en"]], None, r"languages: \['en'\] is no language known here"),
        (["a"], "en", ["b"], r"pairs: given, and this model classifies single texts; leave them out"),
        (None, None, None, r"texts: a NoneType, no list of text"),
        (pd.DataFrame({"text": ["a"]}), None, None, r"texts: a DataFrame, no list of text; of a table give one"),
        (["a", " "], None, None, r"texts: number 1 is empty; leave it out"),
        (["\ud800"], None, None, r"texts: number 0 has half a character"),
    ):
        with pytest.raises(xlt_ray.InputError, match=message):
            model.predict(texts, languages, pairs=pairs)  # type: ignore[arg-type]
    for wrong, message in (
        ({"mixture.alpha=3": 1}, "overrides: 'mixture.alpha=3' is no key"),
        ({"sources": {"a", "b"}}, "overrides: .* is no plain value; write text, numbers, lists or mappings"),
    ):
        with pytest.raises(xlt_ray.InputError, match=message):
            xlt_ray.train({"sources": ["eng_Latn"]}, wrong)  # type: ignore[arg-type]
    with pytest.raises(xlt_ray.InputError, match="progress: 'no'; write True or False"):
        xlt_ray.train({"sources": ["eng_Latn"]}, progress="no")  # type: ignore[arg-type]
    with pytest.raises(xlt_ray.InputError, match=r"nothing: no scores.json; give the folder of a finished run"):
        xlt_ray.compare(tmp_path / "nothing", tmp_path)
    with pytest.raises(xlt_ray.InputError, match="run: Model; give a folder"):
        xlt_ray.compare(model, model)  # type: ignore[arg-type]
    with pytest.raises(xlt_ray.InputError, match="scores: DataFrame holds none; give a run"):
        xlt_ray.plot(pd.DataFrame())  # type: ignore[arg-type]
    with pytest.raises(xlt_ray.InputError, match="no such folder"):
        xlt_ray.load(tmp_path / "nothing")
    with pytest.raises(xlt_ray.InputError, match="mixture.alfa: unknown key"):
        xlt_ray.train({"sources": ["eng_Latn"], "mixture": {"alfa": 1}})
    with pytest.raises(xlt_ray.InputError, match="overrides: .*; write keys with their values"):
        xlt_ray.train({"sources": ["eng_Latn"]}, ["mixture.alpha=1"])  # type: ignore[arg-type]
    for device in ("gpu", "cuda:17"):
        with pytest.raises(xlt_ray.InputError, match=f"device: '{device}' cannot be used"):
            xlt_ray.load(model.name, device=device)
    with pytest.raises(xlt_ray.InputError, match="search: missing"):
        xlt_ray.tune({"sources": ["eng_Latn"]})
