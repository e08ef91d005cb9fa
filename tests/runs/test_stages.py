"""Stages: a run does another first and begins from its bundle, and no run is measured on what came before it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from xlt_ray import cli
from xlt_ray.config.read import build
from xlt_ray.corpora import seen
from xlt_ray.errors import InputError
from xlt_ray.events import Event
from xlt_ray.inference import artefact, bundle
from xlt_ray.runs import measure, run, stages

Settings = dict[str, Any]


@pytest.fixture
def files(tiny_settings: Settings, tmp_path: Path) -> tuple[Path, Path]:
    """Two configurations, of which the second is a probe that begins from the first."""
    first, second = copy.deepcopy(tiny_settings), copy.deepcopy(tiny_settings)
    first |= {"name": "first", "storage": "nowhere", "tracking": {"uri": "nowhere.db"}}
    first["training"] |= {"epochs": 1}
    second |= {"name": "second", "training": {"method": "probe", "precision": "float32"}}
    second["network"]["init"] = f"run:{tmp_path / 'first.yaml'}"
    for content in (first, second):
        (tmp_path / f"{content['name']}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "first.yaml", tmp_path / "second.yaml"


def planned(file: Path, **network: Any) -> stages.Planned:
    content = yaml.safe_load(file.read_text())
    content["network"] |= network
    return stages.plan(build(content))


# what is planned


def test_a_stage_is_stored_and_tracked_where_the_run_is_that_asks_for_it(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    found = planned(files[1])
    (stage,) = found.before()
    assert stage.experiment.name == "first" and stage.experiment.storage == str(tmp_path / "runs")
    assert stage.experiment.tracking.uri == "off"
    assert found.key.startswith("second-") and stage.key.startswith("first-")


def test_the_name_of_a_run_depends_on_its_stage_and_not_on_where_that_is_configured(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = files
    before = planned(second).key
    moved = shutil.move(first, tmp_path / "moved.yaml")
    assert planned(second, init=f"run:{moved}").key == before
    assert planned(second, init=f"run:{moved} training.epochs=1").key == before
    assert planned(second, init=f"run:{moved} training.epochs=2").key != before
    assert planned(second, init=f"run:{moved} seed=1").key != before


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("run:none.yaml", r"network\.init: 'run:none\.yaml': none\.yaml"),
        ("run:", r"network\.init: 'run:'"),
        ("run:{first} training.epoch=2", "did you mean training.epochs"),
        ("run:{first} corpus.path=none", "network.init: 'run:.* corpus.path=none'"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(files: tuple[Path, Path], init: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(files[1], init=init.format(first=files[0]))


def test_a_run_cannot_come_before_itself(files: tuple[Path, Path]) -> None:
    first, second = files
    content = yaml.safe_load(first.read_text())
    content["network"]["init"] = f"run:{second}"
    first.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="that run would come before itself"):
        planned(second)


def test_faults_of_both_runs_are_found_before_either_is_done(files: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = files
    with pytest.raises(InputError, match="source fra_Latn has none"):
        run.run(build(yaml.safe_load(second.read_text()) | {"sources": ["eng_Latn", "fra_Latn"]}))
    with pytest.raises(InputError, match="there is no such technique"):
        planned(second, init=f"run:{first} techniques.none.x=1").check()
    assert not list((tmp_path / "runs").glob("*/bundle"))


def test_a_head_of_other_labels_is_refused_before_its_stage_is_done(files: tuple[Path, Path]) -> None:
    first, second = files
    content = yaml.safe_load(second.read_text()) | {"training": {"method": "fine_tune"}}
    second.write_text(yaml.safe_dump(content))
    planned(second, init=f"run:{first}", head="bundle").check()
    with pytest.raises(
        InputError, match="labels travel, food, sport, and the run task: classification with the labels food, "
    ):
        planned(second, init=f"run:{first} corpus.labels=[travel,food,sport]", head="bundle").check()


def test_blocks_that_a_stage_leaves_out_are_missed_before_it_is_done(files: tuple[Path, Path]) -> None:
    first, second = files
    planned(second, init=f"run:{first} network.layers=1").check()
    planned(second, init=f"run:{first} network.layers=1", layers=1).check()
    with pytest.raises(InputError, match=r"network.layers: 2, but 'run:.* leaves 1 of the encoder; give 1 to 1"):
        planned(second, init=f"run:{first} network.layers=1", layers=2).check()
    with pytest.raises(InputError, match="network.freeze"):
        planned(second, init=f"run:{first} network.layers=1", freeze=[2]).check()


@pytest.mark.parametrize("verb", ["rank-sources", "retrieve"])
def test_only_a_run_does_another_first_and_others_say_so_before_ray_starts(
    files: tuple[Path, Path], verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("xlt_ray.training.cluster.ray_cluster")
    done = CliRunner().invoke(cli.app, [verb, str(files[1])])
    assert done.exit_code == 2 and "only `xlt train` does another run first" in " ".join(done.output.split())


# what is done


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_a_stage_is_done_first_and_found_done_after_that(files: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = files
    experiment = build(yaml.safe_load(second.read_text()))
    shown = CliRunner().invoke(cli.app, ["train", str(second), "--dry-run"])
    (stage,) = stages.plan(experiment).before()
    assert shown.exit_code == 0, shown.output
    assert f"begins from: {tmp_path / 'runs'}/{stage.key}, to be done first" in " ".join(shown.output.split())
    events: list[Event] = []
    outcome = run.run(experiment, events.append)
    notes = [event["note"] for event in events if "note" in event and event["stage"] == "check"]
    assert notes == [f"network.init: {stage.key} comes first", f"network.init: {stage.key} is done"]
    assert {one.name for one in (tmp_path / "runs").iterdir()} == {stage.key, outcome.folder.key}

    made, before = (bundle.load(tmp_path / "runs" / key / "bundle") for key in (outcome.folder.key, stage.key))
    one, other = made.network.encoder.state_dict(), before.network.encoder.state_dict()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    digest = artefact.bundle_digest(tmp_path / "runs" / stage.key / "bundle")
    assert made.lineage == ({"run": stage.key, "corpus": before.corpus, "bundle": digest},)
    assert before.lineage == () and made.corpus == before.corpus != ""

    again = run.run(experiment)
    assert again.repeated and again.scores == outcome.scores
    other_probe = build(yaml.safe_load(second.read_text()) | {"seed": 1})
    events.clear()
    assert not run.run(other_probe, events.append).repeated
    assert "train" not in {event["stage"] for event in events}, "the stage is found done"
    shown = CliRunner().invoke(cli.app, ["train", str(second), "--dry-run"])
    assert f"{stage.key}, done" in " ".join(shown.output.split())


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_a_test_row_that_an_ancestor_was_trained_on_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = files
    content = yaml.safe_load(second.read_text())
    corpus = Path(shutil.copytree(content["corpus"]["path"], tmp_path / "other"))
    text = (corpus / "eng_Latn" / "train.tsv").read_text(encoding="utf-8").splitlines()[1].split("\t")[1]
    lines = (corpus / "swh_Latn" / "test.tsv").read_text(encoding="utf-8").splitlines()
    # the row is of train no longer, and has other spaces and another id
    kept = [line for line in (corpus / "eng_Latn" / "train.tsv").read_text().splitlines() if f"\t{text}\t" not in line]
    (corpus / "eng_Latn" / "train.tsv").write_text("\n".join(kept) + "\n")
    (corpus / "swh_Latn" / "test.tsv").write_text("\n".join([*lines, f"strange\t {text}  \tsport"]) + "\n")
    elsewhere = content | {"corpus": content["corpus"] | {"path": str(corpus)}}
    with pytest.raises(InputError, match=r"swh_Latn.*test\.tsv.*is trained on this text; measure on other rows"):
        run.run(build(elsewhere))
    assert not list((tmp_path / "runs").glob("*/bundle")), "it is known before the stage is done"
    grandchild = run.run(build(content))
    with pytest.raises(InputError, match=r"swh_Latn.*test\.tsv.*is trained on this text"):
        run.run(build(elsewhere))
    made = tmp_path / "runs" / next(one.name for one in (tmp_path / "runs").glob("first-*")) / "bundle"
    third = copy.deepcopy(elsewhere)
    for init in (made, made / "encoder"):
        third["network"]["init"] = str(init)
        with pytest.raises(InputError, match="is trained on this text"):
            run.run(build(third))
    # and by a grandchild, whose own corpus does not hold the row
    third["network"]["init"] = str(grandchild.folder.local / "bundle")
    with pytest.raises(InputError, match="is trained on this text"):
        run.run(build(third))
    with pytest.raises(InputError, match="is trained on this text"):
        measure.measure(bundle.load(grandchild.folder.local / "bundle"), build(elsewhere), lambda event: None)
    # the remedy: the ancestor is trained again, on a corpus that holds this test
    remedied = elsewhere["corpus"] | {"overlap": "drop_train"}
    (corpus / "eng_Latn" / "train.tsv").write_text("\n".join([*kept, f"back\t{text}\tsport"]) + "\n")
    first_again = yaml.safe_load(first.read_text()) | {"corpus": remedied}
    first.write_text(yaml.safe_dump(first_again))
    assert not run.run(build(elsewhere | {"corpus": remedied})).repeated


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_a_bundle_counts_by_its_content_wherever_it_is(files: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = files
    content = yaml.safe_load(first.read_text()) | {"storage": str(tmp_path / "runs"), "tracking": {"uri": "off"}}
    made = run.run(build(content)).folder.local / "bundle"
    moved = shutil.copytree(made, tmp_path / "moved")
    keys = [planned(second, init=str(place)).key for place in (made, moved)]
    assert keys[0] == keys[1]
    told = json.loads((moved / "bundle.json").read_text())
    (moved / "bundle.json").write_text(json.dumps(told | {"sha256": told["sha256"] | {"head.safetensors": "0" * 64}}))
    assert planned(second, init=str(moved)).key != keys[0]


# digests of texts


def test_texts_are_told_as_encoders_see_them() -> None:
    one = pa.table({"text": ["caf\u00e9 au lait", "tea"]})
    other = pa.table({"text": ["  cafe\u0301\u200b  au lait ", "water", "tea"]})
    found = seen.digests([one, other])
    assert len(found) == 3 and np.array_equal(found, seen.digests([other]))
    pairs = pa.table({"text": ["tea"], "text_pair": ["water"]})
    assert not np.isin(seen.digests([pairs]), found).any()
    assert len(seen.digests([])) == len(seen.digests([one.slice(0, 0)])) == 0


def test_digests_are_those_of_any_version_and_machine() -> None:
    assert seen.digests([pa.table({"text": ["tea"]})]).tolist() == [DIGEST]


DIGEST = 16135525412891768939


def test_a_stage_whose_bundle_is_gone_is_made_anew_when_its_folder_is_deleted(files: tuple[Path, Path]) -> None:
    found = planned(files[1])
    (stage,) = found.before()
    folder = stage.folder().local
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text("{}")
    with pytest.raises(InputError, match=f"no whole bundle; delete {folder}; the same command makes it anew"):
        found.check()
    shutil.rmtree(folder)
    found.check()
