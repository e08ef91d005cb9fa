"""The sweep over shots and draws: what it trains on, that it resumes where it was stopped, and what it writes."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LANGUAGES
from rich.console import Console
from typer.testing import CliRunner

from xlt_ray import cli
from xlt_ray.config.read import build, dump
from xlt_ray.errors import InputError
from xlt_ray.reports import plots
from xlt_ray.runs import run, sweep
from xlt_ray.runs.storage import RunFolder
from xlt_ray.runs.sweep import Result, Sweep
from xlt_ray.training import checks, embedding, frozen

Settings = dict[str, Any]
TARGETS = ("hin_Deva", "swh_Latn")


pytestmark = pytest.mark.usefixtures("local_ray")


def settings(data: Settings, method: str, **sections: Any) -> Settings:
    changed = copy.deepcopy(data)
    changed["training"] |= {"method": method, "epochs": 1}
    return {**changed, **sections}


def accuracies(folder: Path) -> dict[tuple[int, int], dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {(line["shots"], line["draw"]): line["accuracy"] for line in lines}


def test_probes_are_those_of_single_runs_and_a_stopped_sweep_resumes(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refit = ["training.refit=source_dev"]
    experiment = build(settings(tiny_settings, "probe", techniques=["centre"]), refit)
    kept, fit = [], frozen.fit

    def stopped(*arguments: Any) -> Any:
        kept.append(arguments[1].techniques)
        if len(kept) == 3:
            raise KeyboardInterrupt
        return fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            sweep.sweep(experiment, [1, 100], 2, tmp_path / "out")
    assert kept[0] == {"centre": {}} and kept[1] == {"centre": {}, "few_shot": {"shots": 1, "draw": 0}}
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert before.count(b"\n") == 2
    (tmp_path / "out" / "results.jsonl").write_bytes(before + b'{"shots": 1, "dra')  # what a kill leaves
    logged: list[str] = []
    found = sweep.sweep(experiment, [1, 100], 2, tmp_path / "out", log=logged.append)
    assert logged[0].startswith("5 probes on features computed once, 2 of them done before")
    assert (tmp_path / "out" / "results.jsonl").read_bytes().startswith(before)
    assert list(found.results) == [(0, 0), (1, 0), (1, 1), (100, 0), (100, 1)]
    single = run.run(
        build(settings(tiny_settings, "probe", techniques=["centre", {"few_shot": {"draw": 1, "shots": 1}}]), refit)
    )
    line = found.results[1, 1]
    assert {code: one.accuracy for code, one in single.scores.languages.items()} == line.accuracy
    assert {code: one.role for code, one in single.scores.languages.items()} == line.role
    assert set(found.results[0, 0].role.values()) == {"source", "zero-shot"} and found.results[0, 0].rows == {}
    assert line.rows == {"hin_Deva": 3, "swh_Latn": 3} and found.languages == TARGETS
    # more than there are: all rows, so that draws are one
    assert found.results[100, 0].rows == {"hin_Deva": 12, "swh_Latn": 12}
    assert found.results[100, 0].accuracy == found.results[100, 1].accuracy
    monkeypatch.setattr(embedding, "features", None)  # all is done: nothing is computed again
    assert sweep.sweep(experiment, [1, 100], 2, tmp_path / "out").results == found.results


def test_no_text_of_test_is_trained_on(tiny_settings: Settings) -> None:
    prepared = checks.prepare(build(settings(tiny_settings, "probe", techniques=["few_shot"])))
    test = {text for _, table in prepared.corpus.splits["test"].items() for text in table["text"].to_pylist()}
    for setting in ((0, 0), (1, 0), (100, 3)):
        setup = sweep._setup(prepared, setting)
        tables = frozen.training_tables(setup)
        assert all(not set(table["text"].to_pylist()) & test for table in tables.values())
        assert setup.zero_shot == (TARGETS if setting == (0, 0) else ())


@pytest.mark.long
def test_fine_tunings_are_runs_whose_weights_are_not_kept(tiny_settings: Settings, tmp_path: Path) -> None:
    data = settings(tiny_settings, "fine_tune", storage=str(tmp_path / "runs"), mixture={"draws_per_epoch": 32})
    logged: list[str] = []
    found = sweep.sweep(build(data), [2], 1, log=logged.append)
    assert logged[0].startswith("2 fine-tunings, 0 of them done before")
    assert logged[1:] == ["run 1 of 2: 0 shots, draw 0", "run 2 of 2: 2 shots, draw 0"]
    assert found.folder.local.parent == tmp_path / "runs" and found.folder.local.name.endswith("-few-shot")
    assert found.results[2, 0].role["swh_Latn"] == "few-shot" and found.results[2, 0].rows["swh_Latn"] == 6
    inner = sorted((found.folder.local / "runs").iterdir())
    assert len(inner) == 2
    for folder in inner:
        assert (folder / "result.json").is_file() and (folder / "report.html").is_file()
        assert not (folder / "bundle").exists() and not (folder / "ray").exists()
    again = sweep.sweep(build(data), [2], 1, log=logged.append)
    assert again.results == found.results and len(logged) == 4


def test_the_command_prints_a_table_and_writes_files(tiny_settings: Settings, tmp_path: Path) -> None:
    file, out = tmp_path / "some.yaml", tmp_path / "out"
    file.write_text(dump(build(settings(tiny_settings, "probe"))), encoding="utf-8")
    options = ["--shots", "1,3", "--draws", "2", "--out", str(out)]
    done = CliRunner().invoke(cli.app, ["few-shot", str(file), *options], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "5 probes on features computed once" in done.output and "(few-shot where k > 0)" in done.output
    assert {one.name for one in out.iterdir()} == {"few_shot.tsv", "few_shot.png", "few_shot.svg", "results.jsonl"}
    with (out / "few_shot.tsv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert list(rows[0]) == ["k", "draw", "language", "role", "supervision", "seen", "accuracy"]
    assert len(rows) == 5 * len(LANGUAGES)
    assert {row["role"] for row in rows if row["k"] == "0"} == {"source", "zero-shot"}
    assert {row["role"] for row in rows if row["k"] == "3"} == {"source", "few-shot"}
    for wrong in ("1,x", "0", "", "1,-2"):
        refused = CliRunner().invoke(cli.app, ["few-shot", str(file), "--shots", wrong])
        assert refused.exit_code == 2 and "--shots" in refused.output


# what is reported of results


def invented(folder: Path) -> Sweep:
    """Make results up: two languages seen and one not, three draws, of which one language swings widely."""
    rng = np.random.default_rng(0)
    seen = {"eng_Latn": True, "hin_Deva": True, "swh_Latn": True, "wol_Latn": False}
    results = {}
    for shots in (0, 1, 2, 5, 10, 20, 50, 100):
        for draw in range(3 if shots else 1):
            gain = np.log1p(shots) / 12
            noise = rng.normal(0, 0.02 if shots else 0, 4)
            accuracy = dict(
                zip(seen, np.array([0.88, 0.8, 0.75, 0.3]) + gain * np.array([0, 0.2, 0.2, 1]) + noise, strict=True)
            )
            if shots == 5:
                accuracy["wol_Latn"] = 0.4 + 0.1 * draw
            others = dict.fromkeys(("hin_Deva", "swh_Latn", "wol_Latn"), "few-shot" if shots else "zero-shot")
            rows = dict.fromkeys(others, 7 * shots) if shots else {}
            results[shots, draw] = Result(shots, draw, "", "", accuracy, {"eng_Latn": "source", **others}, seen, rows)
    return Sweep(RunFolder(folder), "made-up", results)


def test_means_are_over_the_languages_with_shots_and_spreads_over_draws(tmp_path: Path) -> None:
    found = invented(tmp_path)
    assert found.languages == ("hin_Deva", "swh_Latn", "wol_Latn")
    assert found.groups() == {"all": found.languages, "seen": ("hin_Deva", "swh_Latn"), "unseen": ("wol_Latn",)}
    assert found.means(("wol_Latn",))[5] == pytest.approx([0.4, 0.5, 0.6])
    code, spread = found.widest(5)
    assert code == "wol_Latn" and spread == pytest.approx(0.2)
    console = Console(width=140, record=True)
    console.print(sweep.table(found))
    text = console.export_text()
    (five,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["5"]]
    assert five[1] == "35.0" and five[-4:] == ["50.0", "20.0", "wol_Latn", "20.0"]
    assert "moves one language by up to 20.0 points: Wolof (wol_Latn) at k = 5" in text
    assert "k = 0 is zero-shot" in " ".join(text.split())


def test_the_picture_shows_a_line_for_seen_and_one_for_unseen(tmp_path: Path) -> None:
    files = sweep.write(invented(tmp_path))
    drawn = files["few_shot.svg"].read_text(encoding="utf-8")
    for text in (
        "seen in pre-training (2)",
        "unseen in pre-training (1)",
        "few-shot accuracy",
        "0: zero-shot",
    ):
        assert text in drawn
    figure = plots.few_shot({"some": {0: [0.3], 1: [0.4, 0.5], 10: [0.6, 0.7]}})
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "10"]
    assert plots.few_shot({"some": {1: [0.4]}}).axes[0].get_xticklabels()[0].get_text() == "1"


def test_a_second_stage_has_no_zero_shot_point(tiny_settings: Settings) -> None:
    chosen = [{"few_shot": {"alone": True}}]
    tune = build(settings(tiny_settings, "fine_tune", techniques=chosen))
    assert sweep.settings(tune, [2, 1], 2) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    probed = build(settings(tiny_settings, "probe", techniques=chosen))
    assert sweep.settings(probed, [1], 1) == [(0, 0), (1, 0)]
    assert sweep.at(tune, 4, 3).techniques == {"few_shot": {"alone": True, "shots": 4, "draw": 3}}
    with pytest.raises(InputError, match="--shots: 0; give numbers of 1 or more"):
        sweep.settings(tune, [0], 1)
