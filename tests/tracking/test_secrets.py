"""No command shows or stores the secret of a tracking URI: not in its output, its run's folder, MLflow or a bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from xlt_ray import cli
from xlt_ray.cli import runs
from xlt_ray.config.masking import masked
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.runs import run
from xlt_ray.tracking import outbox
from xlt_ray.training import cluster
from xlt_ray.training.setup import Setup

SECRET = "hunter2secret"
Ask = Callable[..., Any]


@pytest.fixture
def ask() -> Ask:
    """Run a verb in this process and hold that it shows no secret."""

    def invoke(*arguments: object) -> Any:
        done = CliRunner().invoke(cli.app, [str(one) for one in arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert SECRET not in done.output + done.stderr
        return done

    return invoke


@pytest.fixture
def config(tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "1000")  # where lines break, a secret could hide from the test
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(tiny_settings))
    return file


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a probe's predictions be made up, so that `train` does all it does around the work on Ray."""

    def probe(setup: Setup, *more: Any) -> Any:
        gold = np.arange(9) % len(setup.corpus.labels)
        rows = Predictions(gold, gold, [str(number) for number in gold])
        return run.Fitted(setup.build(), dict.fromkeys(setup.measured, rows), setup, [], [], {})

    monkeypatch.setattr(cluster, "ray_cluster", lambda *more: contextlib.nullcontext())
    monkeypatch.setattr(run, "_probe", probe)


def holding_it(folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql+absent://ann:{SECRET}@db/x",
        f"postgres://ann:{SECRET}@db/x",
        f"postgresql:/ann:{SECRET}@db/x",
        f"postgresql://ann:{SECRET}@b@db/x",
        f"postgresql://ann:a {SECRET}@db/x",
        f"mysql+aiomysql://ann:{SECRET}@db/x",
        f"ann:{SECRET}@host:5000",
        f"htpp://ann:{SECRET}@host:5000",
        f"http://host:5000?token={SECRET}",
        f"https://{SECRET}@host:99999",
        f"redis://ann:{SECRET}@host",
    ],
)
def test_an_address_that_is_refused_shows_no_secret(uri: str, ask: Ask, config: Path, tmp_path: Path) -> None:
    verbs = (
        ["check", config, f"tracking.uri={uri}"],
        ["train", config, f"tracking.uri={uri}"],
        ["sync", tmp_path, "--uri", uri],
        ["promote", "models:/tiny/1", "--uri", uri],
        ["predict", "models:/tiny/1", config, "--uri", uri],
        ["serve", "models:/tiny@champion", f"tracking_uri={uri}"],
    )
    assert [ask(*verb).exit_code for verb in verbs] == [2] * len(verbs)


@pytest.mark.slow
def test_a_tracked_run_keeps_no_secret(ask: Ask, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real database, whose driver ignores the token in its address as a server would not."""
    without_ray(monkeypatch)
    uri = f"sqlite:///{tmp_path}/xlt.db?token={SECRET}"
    asked = (config, f"tracking.uri={uri}", "training.method=probe")
    assert ask("check", *asked).exit_code == 0
    plan = ask("train", *asked, "--dry-run")
    assert plan.exit_code == 0 and "token=***" in plan.output
    trained = ask("train", *asked, "tracking.flush_seconds=0")
    assert trained.exit_code == runs.UNSENT and "records are not sent and are kept" in trained.output
    (folder,) = (tmp_path / "runs").iterdir()
    left = ask("sync", folder)
    assert left.exit_code == 1 and "set MLFLOW_TRACKING_URI to the same URI, whole" in left.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    sent = ask("sync", folder)
    assert sent.exit_code == 0 and outbox.pending(folder) == 0, sent.output
    again = ask("train", *asked)
    assert again.exit_code == 0 and masked(uri) in again.output
    assert ask("report", folder).exit_code == 0
    for verb in (["predict", "models:/none@x", config], ["serve", "models:/none@x"], ["promote", "models:/none/1"]):
        option = [f"tracking_uri={uri}"] if verb[0] == "serve" else ["--uri", uri]
        refused = ask(*verb, *option)
        assert refused.exit_code == 2 and masked(uri) in refused.stderr
    assert (folder / "bundle" / "bundle.json").is_file() and (tmp_path / "mlartifacts").is_dir()
    assert holding_it(tmp_path / "runs") + holding_it(tmp_path / "mlartifacts") == []
    assert SECRET.encode() not in (tmp_path / "xlt.db").read_bytes()
