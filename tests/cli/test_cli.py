"""The verbs of `xlt`: what each prints, and that whatever is wrong comes out as a message and not as a traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import LABELS, LANGUAGES, write_rows
from ray_runs import Settings, environment, settings
from typer.testing import CliRunner

from xlt_ray import cli, errors, techniques
from xlt_ray.cli import runs
from xlt_ray.evaluation.scores import Scores

Result = Any  # of a CliRunner
Call = Callable[..., Result]

VERBS = {"train", "tune", "rank-sources", "check", "evaluate", "predict", "report", "compare", "catalogue", "retrieve"}
VERBS |= {"adapt", "few-shot", "lexicon", "geometry"}
VERBS |= {"languages", "sync", "promote", "serve", "rollout", "rollback", "challenge", "key"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def xlt() -> Iterator[Call]:
    """Call a verb in this process, in a wide terminal and away from any Ray cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("COLUMNS", "160")
        yield lambda *arguments, **kept: CliRunner().invoke(cli.app, [str(a) for a in arguments], **kept)


def write(data: Settings, file: Path) -> Path:
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


@pytest.fixture
def config(tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path) -> Path:
    return write(settings(tiny_encoder, tiny_corpus, tmp_path), tmp_path / "tiny.yaml")


def refused(result: Result, *parts: str) -> None:
    """Hold a call to exit code 2, with these parts in its one message and no traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    _, error, message = result.stderr.rpartition("error: ")
    assert error
    for part in parts:
        assert part in message


# without Ray


@pytest.mark.parametrize(
    "verb",
    [
        ("retrieve", "none.yaml", "--out"),
        ("geometry", "run", "--out"),
        ("geometry", "run", "--anchors", "--out"),
        ("few-shot", "none.yaml", "--out"),
        ("lexicon", "build", "none.yaml", "--source", "en", "--out"),
        ("promote", "run", "--cache"),
        ("evaluate", "run", "--out"),
        ("lexicon", "build", "--from", "none.tsv", "--out"),
    ],
    ids=lambda verb: " ".join(verb),
)
def test_where_nothing_can_be_written_is_refused_before_anything_is_read(
    xlt: Call, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    file = "evaluate" in verb or "--from" in verb
    (tmp_path / "afile").write_text("kept")
    for place, at in ((tmp_path if file else tmp_path / "afile",) * 2, (tmp_path / "afile/sub/x", tmp_path / "afile")):
        option, kind = verb[-1], "file" if file else "folder"
        refused(xlt(*verb, place), f"{option}: {place} cannot be used ({at}: ", f"); give a {kind} that can be written")
    fits = xlt(*verb, tmp_path / "new/sub/x")  # and what is asked for besides is looked at
    assert fits.exit_code == 2 and "cannot be used" not in fits.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["afile"] and (tmp_path / "afile").read_text() == "kept"


def test_a_file_that_is_there_may_be_written_again_and_a_folder_that_takes_none_not(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("kept")
    for place, kind in ((tmp_path / "there", "file"), (tmp_path / "new" / "x", "file"), (tmp_path, "folder")):
        assert runs.writable(place, kind) == place
    assert (tmp_path / "there").read_text() == "kept" and not (tmp_path / "new").exists()
    for place in (Path("/proc"), tmp_path / ("a" * 300)):
        with pytest.raises(errors.InputError, match="^--out: .* give a folder that can be written$"):
            runs.writable(place)


def test_help_names_every_verb(xlt: Call) -> None:
    done = xlt("--help")
    assert done.exit_code == 0
    assert {
        line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ") and line[2].isalpha()
    } == VERBS
    for verb in VERBS:
        assert xlt(verb, "-h").exit_code == 0


def test_a_verb_leaves_the_form_of_warnings_as_it_was(xlt: Call) -> None:
    before = warnings.formatwarning
    with pytest.warns(UserWarning, match="qqq"):
        assert xlt("languages", "qqq").exit_code == 0
    assert xlt("evaluate", "no-such-folder").exit_code == 2
    assert warnings.formatwarning is before


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.InputError("http://ann:pw@host is wrong"), 2, "error: http://***@host is wrong\n"),
        (errors.TrainingError("a worker died"), 1, "error: a worker died\n"),
        (errors.RegistryError("no answer"), 1, "error: no answer\n"),
        (errors.ServingError("not loaded"), 1, "error: not loaded\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/outbox.jsonl"),
            1,
            "error: runs/a/outbox.jsonl: the disk is full; free space and run the same command again\n",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            1,
            "error: the disk is full; free space and run the same command again\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes from what is done\n"),
    ],
)
def test_what_goes_wrong_in_a_verb_is_a_message_and_an_exit_code(
    xlt: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    from xlt_ray.tracking import courier

    def fail(*arguments: Any) -> int:
        raise error

    monkeypatch.setattr(courier, "sync", fail)
    done = xlt("sync", tmp_path)
    assert (done.exit_code, done.stderr, done.stdout) == (code, message, "")


def test_a_dry_run_prints_the_plan_and_loads_neither_ray_nor_mlflow(config: Path) -> None:
    code = (
        "import sys; from xlt_ray.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "sys.exit(sum(name in sys.modules for name in ('ray', 'mlflow')))"
    )
    asked = ["training.epochs=3", "mixture.alpha=0", "mixture.weights.deu_Latn=3", "resources.workers=2"]
    command = [sys.executable, "-c", code, "train", str(config), "--dry-run", *asked]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resolved, _, plan = done.stdout.partition("┏")
    assert "  epochs: 3\n" in resolved and "  alpha: 0.0\n" in resolved and "  warmup: 0.1\n" in resolved
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in plan.splitlines() if "_Latn" in line]
    # 160 and 40 rows are 200 draws, of which 3 in 4 go to the language of weight 3
    assert cells == [["eng_Latn", "160", "1", "0.250", "50", "0.31"], ["deu_Latn", "40", "3", "0.750", "150", "3.75"]]
    assert "measured: 4 languages, 2 of them zero-shot\n" in plan
    assert "updates: 39 of 16 rows\n" in plan
    assert "resources: 2 workers x 1 CPU, 0 GPU = 2 CPU, 0 GPU\n" in plan
    assert not (config.parent / "runs").exists()


def test_check_says_that_a_corpus_is_sound(xlt: Call, config: Path) -> None:
    done = xlt("check", config)
    assert done.exit_code == 0, done.output
    assert (
        done.stdout == "sound: 2 sources with 200 train rows, 3 labels, 4 languages to measure, 2 of them zero-shot\n"
    )
    few = xlt("check", config, "techniques=[{few_shot: {shots: 1}}]").stdout
    assert few.startswith("sound: 2 sources, 2 few-shot with 206 train rows, 6 of them by few_shot, 3 labels"), few


def test_check_lists_all_faults_of_a_corpus_at_once(xlt: Call, config: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_corpus, tmp_path / "broken"))
    english, german, swahili = (broken / code for code in ("eng_Latn", "deu_Latn", "swh_Latn"))
    with (english / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("900\t\tsport\n901\tdeurow2001 alone\tsport\n")  # an empty text
    with (german / "test.tsv").open("a", encoding="utf-8") as file:
        file.write("2900\tdeurow2001 more\tcooking\n0\tdeu1 deu2\tfood\n")  # an unknown label, and an id of train
    (swahili / "test.tsv").unlink()
    refused(
        xlt("check", config, f"corpus.path={broken}", "targets=[swh_Latn, hin_Deva]"),
        "eng_Latn/train.tsv, line 162: empty text",
        "label 'cooking'",
        "id '0' is in test too",
        "test: target swh_Latn has none",
    )


@pytest.mark.parametrize("verb", ["train", "check"])
def test_a_file_that_is_not_there_and_a_key_that_is_unknown_are_refused(xlt: Call, config: Path, verb: str) -> None:
    refused(xlt(verb, config.parent / "missing.yaml"), "missing.yaml: no such file", "jobs/configs/")
    refused(xlt(verb, config, "mixture.alfa=1"), "mixture.alfa: unknown key, did you mean mixture.alpha?")
    refused(xlt(verb, config, "nonsense"), "an override is written key=value")


def test_more_cpus_than_there_are_are_refused_with_the_arithmetic_before_ray_starts(xlt: Call, config: Path) -> None:
    import ray

    cores = os.cpu_count() or 1
    sums = f"resources: {cores} workers x 1.5 CPUs = {1.5 * cores:g} CPUs, but this machine has {cores}"
    done = xlt("train", config, f"resources.workers={cores}", "resources.cpus_per_worker=1.5")
    refused(done, sums, f"set resources.workers={max(1, int(cores / 1.5))} or give RAY_ADDRESS")
    assert "starting Ray" not in done.stdout and not ray.is_initialized()
    assert not list(config.parent.rglob("outbox.jsonl"))


def test_the_catalogue_lists_what_can_be_named(xlt: Call) -> None:
    done = xlt("catalogue")
    assert done.exit_code == 0
    for named in ("voice_commands", "files", "hub", "fine_tune", "probe", "bundled:e5-small", "mixture.alpha"):
        assert f"│ {named} " in done.stdout


def test_the_catalogue_tells_of_every_technique_and_its_keys(xlt: Call) -> None:
    said = xlt("catalogue").stdout
    words = " ".join(said.replace("│", " ").split())  # long facts go over two lines
    for name in techniques.CATALOGUE:
        kind = techniques.load(name)
        assert f"│ {name} " in said
        facts = {"paper": kind.paper, "needs": kind.needs, "cost": kind.cost, "methods": ", ".join(kind.methods)}
        assert str(kind.__doc__).split("\n")[0] in words
        assert [fact for key, fact in facts.items() if f"{key}: {' '.join(fact.split())}" not in words] == []
        keys = [f"techniques.{name}.{field}" for field in kind.model_fields]
        assert [key for key in keys if f"│ {key} " not in said] == []


def test_language_codes_of_any_kind_are_understood(xlt: Call) -> None:
    done = xlt("languages", "sw", "zh-TW", "qqq")
    assert done.exit_code == 0
    swahili, chinese, unknown = (line for line in done.stdout.splitlines() if line.startswith("│"))
    assert "swh_Latn" in swahili and "Swahili" in swahili and "Latin" in swahili
    assert "zho_Hant" in chinese
    assert "qqq" in unknown and "unknown: passed on as it is" in unknown
    everything = xlt("languages")
    assert sum(line.startswith("│") for line in everything.stdout.splitlines()) > 100


def test_sync_with_nothing_to_send_is_done_at_once(xlt: Call, tmp_path: Path) -> None:
    for folders in ([tmp_path], []):
        done = xlt("sync", *folders)
        assert (done.exit_code, done.stderr) == (0, "")
    mistyped = xlt("sync", tmp_path, tmp_path / "none")
    assert mistyped.exit_code == 2 and f"{tmp_path}/none: no such folder; give that of a run" in mistyped.stderr


@pytest.mark.parametrize("left", [0, 2])
def test_a_challenge_that_mlflow_has_not_all_of_ends_like_such_a_run(
    left: int, xlt: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.control import control, scoreboard
    from xlt_ray.tracking import courier

    board = scoreboard.Board("a", "b", "shadow", 0.1, {}, f"sqlite:///{tmp_path}/xlt.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scoreboard, "collect", lambda *asked: board)
    monkeypatch.setattr(control, "found", lambda *asked: contextlib.nullcontext())
    monkeypatch.setattr(courier, "start", lambda outbox: SimpleNamespace(close=lambda limit: left))
    done = xlt("challenge")
    assert done.exit_code == (runs.UNSENT if left else 0), done.output
    told = "2 records are not sent and are kept (no time was left); `xlt sync " if left else "recorded at"
    assert told in done.stdout


# with a run that was trained once


@pytest.fixture(scope="module")
def trained(xlt: Call, tiny_encoder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, trained by the command itself on a Ray of its own, which is gone afterwards."""
    import ray

    folder = tmp_path_factory.mktemp("trained")
    data = settings(tiny_encoder, tiny_corpus, folder, training={"method": "probe", "precision": "float32"})
    done = xlt("train", write(data, folder / "tiny.yaml"))
    assert done.exit_code == 0, done.output
    assert not ray.is_initialized()
    (run,) = (folder / "runs").iterdir()
    for code in LANGUAGES:
        assert code in done.stdout
    assert f"report.html  {run}/report.html\n" in done.stdout and f"bundle       {run}/bundle\n" in done.stdout
    assert "tracking" not in done.stdout
    assert " ECE" in done.stdout and "temperature, fitted on source dev" in done.stdout
    return run


@pytest.mark.slow
def test_training_again_shows_the_finished_run(xlt: Call, trained: Path) -> None:
    done = xlt("train", trained.parents[1] / "tiny.yaml")
    assert done.exit_code == 0
    assert "This run was finished before" in done.stdout and "swh_Latn" in done.stdout
    assert "starting Ray" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["", "bundle"])
def test_evaluating_a_bundle_on_its_own_corpus_gives_the_scores_of_its_run(
    xlt: Call, trained: Path, tmp_path: Path, inside: str
) -> None:
    done = xlt(
        "evaluate", trained / inside, "--report", "sw", "--report", "eng_Latn", "--out", tmp_path / "scores.json"
    )
    assert done.exit_code == 0, done.output
    found = Scores.from_json((tmp_path / "scores.json").read_text(encoding="utf-8"))
    kept = Scores.from_json((trained / "scores.json").read_text(encoding="utf-8"))
    assert uncalibrated(found) == uncalibrated(kept)
    # a probe's confidences come from features in one go there and from batches here, and differ in their last bits
    errors = [{code: one.calibration_error for code, one in scores.languages.items()} for scores in (found, kept)]
    assert errors[0] == pytest.approx(errors[1], abs=0.01)
    for code in ("swh_Latn", "eng_Latn"):
        _, _, classes = done.stdout.partition(f" {code} ")
        assert all(f"│ {label} " in classes for label in LABELS)
    assert "precision" in done.stdout and "recall" in done.stdout


def uncalibrated(scores: Scores) -> Scores:
    nothing = dict.fromkeys(("calibration_error", "calibration_error_low", "calibration_error_high", "reliability"))
    languages = {code: replace(one, **nothing) for code, one in scores.languages.items()}
    summary = {name: value for name, value in scores.summary.items() if not name.startswith("calibration_error/")}
    return replace(scores, languages=languages, summary=summary)


@pytest.mark.slow
def test_evaluating_on_another_corpus_measures_its_rows(
    xlt: Call, trained: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    for code, rows in {"eng_Latn": 30, "swh_Latn": 24}.items():
        for split in ("train", "test"):
            write_rows(tmp_path / "other" / code / f"{split}.tsv", code, rows, seed=77 + rows, start=len(split) * 1000)
    data = settings(tiny_encoder, tmp_path / "other", tmp_path, sources=["eng_Latn"])
    config, out = write(data, tmp_path / "other.yaml"), tmp_path / "scores.json"
    done = xlt("evaluate", trained, "--config", config, "--out", out)
    assert done.exit_code == 0, done.output
    found = Scores.from_json(out.read_text(encoding="utf-8"))
    assert {code: one.support for code, one in found.languages.items()} == {"eng_Latn": 30, "swh_Latn": 24}
    assert {code: one.role for code, one in found.languages.items()} == {"eng_Latn": "source", "swh_Latn": "zero-shot"}
    assert found.labels == tuple(sorted(LABELS))


@pytest.mark.slow
def test_a_corpus_without_any_source_language_can_be_measured(
    xlt: Call, trained: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "other" / "swh_Latn" / "test.tsv", "swh_Latn", 24, seed=5, start=0)
    config = write(settings(tiny_encoder, tmp_path / "other", tmp_path), tmp_path / "other.yaml")
    done = xlt("evaluate", trained, "--config", config, "--out", tmp_path / "scores.json")
    assert done.exit_code == 0, done.output
    found = Scores.from_json((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert list(found.languages) == ["swh_Latn"] and found.languages["swh_Latn"].transfer_gap is None


@pytest.mark.slow
def test_what_cannot_be_evaluated_is_refused(
    xlt: Call, trained: Path, tiny_corpus: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    refused(xlt("evaluate", tmp_path), "neither an artefact nor a bundle, nor a finished run")
    unmeasured = xlt("evaluate", trained, "--report", "fra_Latn")
    refused(unmeasured, "--report fra_Latn: not measured", "eng_Latn")
    assert "measuring on test" not in unmeasured.output, "refused before any work"
    renamed = Path(shutil.copytree(tiny_corpus, tmp_path / "renamed"))
    for file in renamed.rglob("*.tsv"):
        file.write_text(file.read_text(encoding="utf-8").replace("\tfood", "\tmeals"), encoding="utf-8")
    config = write(settings(tiny_encoder, renamed, tmp_path), tmp_path / "renamed.yaml")
    refused(xlt("evaluate", trained, "--config", config), "meals")
    changed = Path(shutil.copytree(trained / "bundle", tmp_path / "changed"))
    (changed / "head.safetensors").write_bytes(b"something else")
    refused(xlt("evaluate", changed), "head.safetensors: not the file that was saved")


@pytest.mark.slow
def test_predictions_are_one_json_object_a_line(xlt: Call, trained: Path, tmp_path: Path) -> None:
    texts = [f"eng{i % 60} eng{(i + 3) % 60} “ü”\t" for i in range(301)] + ["\u1230\u120b\u121d"]
    content = "".join(text + "\n" for text in texts)
    (tmp_path / "texts.txt").write_text(content, encoding="utf-8")
    done = xlt("predict", trained, tmp_path / "texts.txt", "--top", "2")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [row["line"] for row in rows] == list(range(1, 303))
    for row in rows:
        first, second = row["scores"]
        assert first["label"] == row["label"]
        assert first["score"] >= second["score"] and first["label"] != second["label"]
        assert {first["label"], second["label"]} < set(LABELS)
    assert len({row["label"] for row in rows}) == 3
    least = sorted(row["confidence"] for row in rows)[150]
    unsure = xlt("predict", trained, tmp_path / "texts.txt", "--top", "2", "--min-confidence", least)
    found = [json.loads(line) for line in unsure.stdout.splitlines()]
    kept = [row["confidence"] >= least for row in rows]
    assert unsure.exit_code == 0 and set(kept) == {True, False}
    assert [row["abstained"] for row in found] == [not one for one in kept]
    wanted = [row["label"] if one else None for row, one in zip(rows, kept, strict=True)]
    assert [row["label"] for row in found] == wanted
    assert all(row["reliability"]["rows"] for row in found)


@pytest.mark.slow
def test_a_report_is_written_again_from_what_a_run_kept(xlt: Call, trained: Path, tmp_path: Path) -> None:
    before = (trained / "report.html").read_text(encoding="utf-8")
    (trained / "report.html").unlink()
    done = xlt("report", trained)
    assert done.exit_code == 0, done.output
    assert "swh_Latn" in done.stdout and done.stdout.endswith(f"{trained}/report.html\n")
    after = (trained / "report.html").read_text(encoding="utf-8")
    assert len(after) == pytest.approx(len(before), rel=0.05)
    refused(xlt("report", tmp_path), "give the folder of a finished run")


@pytest.mark.slow
def test_a_run_is_not_better_than_itself(xlt: Call, trained: Path, tmp_path: Path) -> None:
    done = xlt("compare", trained, trained)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("all (4): +0.0 points [0.0, 0.0], p = 1.000, zero-shot\n")
    refused(xlt("compare", trained, tmp_path), "no scores.json; give the folder of a finished run")
