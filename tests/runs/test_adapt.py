"""Runs without labels: what they leave behind, what begins from it, and what it does not answer."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import LANGUAGES
from typer.testing import CliRunner

import xlt_ray
from xlt_ray import cli
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.evaluation.paired import comparison
from xlt_ray.inference import bundle
from xlt_ray.model import encoders
from xlt_ray.model.network import digest
from xlt_ray.registry import fetch, promotion
from xlt_ray.reports import figures as table
from xlt_ray.runs import run, stages
from xlt_ray.search import space

Settings = dict[str, Any]


@pytest.fixture
def settings(tiny_settings: Settings) -> Settings:
    """An experiment that fills in words of four languages, one of which is its source."""
    changed = copy.deepcopy(tiny_settings) | {"name": "adapted", "sources": ["eng_Latn"], "techniques": ["mlm"]}
    changed["training"] |= {"method": "adapt", "epochs": 1}
    return changed


def file_of(content: Settings, folder: Path) -> Path:
    file = folder / f"{content['name']}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def figures(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "figures.tsv").open(encoding="utf-8", newline="") as stream:
        return {row["language"]: row for row in csv.DictReader(stream, delimiter="\t")}


@pytest.mark.slow
def test_a_run_without_labels_leaves_an_encoder_and_figures_and_another_begins_from_it(
    settings: Settings, tmp_path: Path, local_ray: None
) -> None:
    file = file_of(settings, tmp_path)
    result = CliRunner().invoke(cli.app, ["train", str(file)])
    assert result.exit_code == 0, result.output
    assert "adapted: an encoder, no task learned" in result.output and "mlm perplexity" in result.output
    assert "figures.tsv" in result.output and "report.html" not in result.output
    made = xlt_ray.train(file, progress=False)
    assert made.measured is None and (made.bundle / "bundle.json").is_file()
    with pytest.raises(InputError, match="has no scores"):
        assert made.scores

    outcome = run.run(build(settings))
    folder = outcome.folder.local
    assert outcome.measured is None and outcome.repeated
    with pytest.raises(
        InputError, match=r"has no scores; train a run that begins from it, with network.init=.*/bundle"
    ):
        assert outcome.scores
    assert {"bundle", "figures.tsv", "history.json", "result.json"} <= {path.name for path in folder.iterdir()}
    assert not {"scores.json", "report.html", "predictions.npz"} & {path.name for path in folder.iterdir()}
    found = figures(folder)
    assert found.keys() == {"all", *LANGUAGES}
    assert all(float(value) > 0 for name, value in found["all"].items() if name.startswith("mlm perplexity"))
    content = json.loads((folder / "bundle" / "bundle.json").read_text())
    assert content["labels"] == [] and "head.safetensors" not in content["sha256"]
    both = [encoders.load(str(place)).model for place in (folder / "bundle" / "encoder", settings["network"]["init"])]
    assert digest(both[0]) != digest(both[1])

    second = copy.deepcopy(settings) | {"name": "second", "techniques": [], "sources": ["deu_Latn"]}
    second["training"] = {"method": "probe", "precision": "float32"}
    second["network"] |= {"init": f"run:{file}"}
    probe = run.run(build(second))
    assert probe.scores.languages["swh_Latn"].supervision == "+ unlabelled text"
    assert probe.scores.languages["eng_Latn"].supervision == "+ unlabelled text", "no label of its source was read"
    loaded = bundle.load(probe.folder.local / "bundle")
    assert [one["run"] for one in loaded.lineage] == [folder.name]

    third = copy.deepcopy(settings) | {"name": "third", "sources": ["hin_Deva"], "techniques": ["mlm"]}
    third["network"] |= {"init": str(probe.folder.local / "bundle")}
    assert stages.plan(build(third)).check().supervision["deu_Latn"] == "few-shot", "labels of before are not forgotten"

    with pytest.raises(InputError, match="give the folder of a finished run that learned a task"):
        comparison.compare_runs(folder, folder)
    with pytest.raises(InputError, match="learned no task"):
        promotion.find(str(folder), "name")
    for ask in (bundle.load, lambda place: fetch.fetch(str(place)), xlt_ray.load):
        with pytest.raises(InputError, match="holds an encoder that learned no task .* network.init="):
            ask(folder / "bundle")


def test_what_was_measured_of_all_languages_together_stands_in_a_file_where_nothing_else_does(tmp_path: Path) -> None:
    facts = {"contrast/xsim_before": 0.5, "contrast/xsim_after": 0.25}
    assert table.write(tmp_path, facts, alone=False) is None and table.write(tmp_path, {}, alone=True) is None
    assert table.table(tmp_path, "nothing") is None
    assert table.write(tmp_path, facts, alone=True) == tmp_path / "figures.tsv"
    assert figures(tmp_path) == {
        "all": {"language": "all", "contrast xsim_before": "0.5", "contrast xsim_after": "0.25"}
    }
    assert table.write(tmp_path, facts | {"mlm/top10_after/eng_Latn": 1.0}, alone=False) is not None
    assert figures(tmp_path)["eng_Latn"]["mlm top10_after"] == "1" and figures(tmp_path)["all"]["mlm top10_after"] == ""


def test_no_figure_is_cut_in_a_narrow_terminal(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {f"technique{number}/perplexity_{when}": 1970.25 for number in range(6) for when in ("before", "after")}
    table.write(tmp_path, facts | {f"{name}/swh_Latn": 0.0012345 for name in facts}, alone=True)
    folder = SimpleNamespace(local=tmp_path, shown=str(tmp_path))
    outcome = SimpleNamespace(folder=folder, measured=None, repeated=False, unsent=0)
    monkeypatch.setattr(run, "run", lambda *_: outcome)
    done = CliRunner().invoke(cli.app, ["train", str(file_of(settings, tmp_path))], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert done.output.count(" 1970") == 12 and done.output.count("0.001234") == 12
    assert "…" not in done.output


def test_check_and_the_dry_run_tell_of_texts(settings: Settings, tmp_path: Path) -> None:
    file = file_of(settings, tmp_path)
    result = CliRunner().invoke(cli.app, ["check", str(file)])
    assert result.output.startswith("sound: 4 languages with 224 texts, 14 updates, no labels")
    result = CliRunner().invoke(cli.app, ["train", str(file), "--dry-run"])
    assert result.exit_code == 0 and "updates: 14 of 16 rows" in result.output
    assert "measured:" not in result.output, "nothing will be"


def test_a_head_is_not_expected_of_a_stage_that_learns_no_task(settings: Settings, tmp_path: Path) -> None:
    second = copy.deepcopy(settings) | {"name": "second", "techniques": []}
    second["training"] = {"method": "fine_tune"}
    second["network"] |= {"init": f"run:{file_of(settings, tmp_path)}", "head": "bundle"}
    with pytest.raises(InputError, match="network.head: bundle, but 'run:.*learns no task"):
        stages.plan(build(second)).check()


def test_there_is_nothing_to_search_by(settings: Settings) -> None:
    asked = {**settings, "search": {"space": {"mixture.alpha": {"uniform": [0.0, 1.0]}}}}
    with pytest.raises(InputError, match="training.method: adapt learns no task, so there are no scores to choose by"):
        space.build(asked)
