"""A finished run is known again by its configuration and by the rows of its corpus."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from xlt_ray.config.read import build
from xlt_ray.runs import run


@pytest.mark.slow
def test_the_same_command_after_an_edit_of_the_data_is_another_run(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    corpus = Path(shutil.copytree(tiny_settings["corpus"]["path"], tmp_path / "corpus"))
    tiny_settings["corpus"]["path"] = str(corpus)
    tiny_settings["training"] = {"method": "probe", "precision": "float32"}
    experiment = build(tiny_settings)
    first = run.run(experiment)
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


def test_a_corpus_that_cannot_be_read_is_refused_and_leaves_no_folder(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    tiny_settings["corpus"]["path"] = str(tmp_path / "none")
    with pytest.raises(ValueError, match="none"):
        run.run(build(tiny_settings))
    assert not (tmp_path / "runs").exists(), "no folder is made for what cannot begin"
