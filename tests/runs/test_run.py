"""A finished run is known again by its configuration and by the rows of its corpus."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.corpora.loaders import load_corpus
from xlt_ray.errors import InputError
from xlt_ray.inference import artefact
from xlt_ray.runs import run
from xlt_ray.training import checks


@pytest.mark.slow
@pytest.mark.long
def test_the_same_command_after_an_edit_of_the_data_is_another_run(
    tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Path(shutil.copytree(tiny_settings["corpus"]["path"], tmp_path / "corpus"))
    monkeypatch.chdir(tmp_path)
    tiny_settings["corpus"]["path"] = "corpus"
    tiny_settings["training"] = {"method": "probe", "precision": "float32"}
    experiment = build(tiny_settings)
    first = run.run(experiment)
    named = artefact.describe(first.folder.local / "bundle", 0).provenance["run"]
    assert named == first.folder.local.name, "whether paths were relative or not"
    edited = corpus / "swh_Latn" / "test.tsv"
    kept = edited.read_text(encoding="utf-8")
    edited.write_text("".join(kept.splitlines(keepends=True)[:-20]), encoding="utf-8")

    second = run.run(experiment)
    assert not second.repeated
    supports = [one.scores.languages["swh_Latn"].support for one in (first, second)]
    assert supports == [45, 25]
    assert second.folder.local != first.folder.local

    edited.write_text(kept, encoding="utf-8")
    events: list[dict[str, Any]] = []
    third = run.run(experiment, events.append)
    assert third.repeated and third.folder == first.folder and third.scores == first.scores
    assert [event["stage"] for event in events] == ["check"], "nothing is computed again"


def test_a_corpus_that_cannot_be_read_is_read_once_and_leaves_no_folder(
    tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_settings["corpus"]["path"] = str(tmp_path / "none")
    tiny_settings["techniques"] = ["no_such"]
    times: list[int] = []

    def counted(experiment: Experiment) -> Any:
        times.append(1)
        return load_corpus(experiment)

    monkeypatch.setattr(checks, "load_corpus", counted)
    with pytest.raises(InputError) as refused:
        run.run(build(tiny_settings))
    assert len(times) == 1 and len(refused.value.faults) == 2, "reading may take minutes, and every fault is listed"
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_refused_for_another_cause_leaves_no_folder_either(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    tiny_settings |= {"techniques": ["no_such"], "storage": str(tmp_path / "runs")}
    with pytest.raises(InputError, match="no such technique"):
        run.run(build(tiny_settings))
    assert list((tmp_path / "runs").iterdir()) == []
