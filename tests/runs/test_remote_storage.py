"""A whole run with storage at an fsspec URL: checkpoints and results go there, and a rerun finds them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ray_runs import run_key

from xlt_ray.config.read import build
from xlt_ray.inference import bundle
from xlt_ray.runs import run


@pytest.mark.slow
@pytest.mark.long
def test_a_run_lives_at_a_url(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    # `local://` is a file system of fsspec like any other here: only file:// and plain paths are taken as directories
    experiment = build(tiny_settings | {"storage": f"local://{tmp_path / 'bucket'}"})
    outcome = run.run(experiment)
    stored = tmp_path / "bucket" / run_key(experiment)
    for name in ("result.json", "report.html", "bundle/bundle.json", "identity.txt", "experiment.yaml"):
        assert (stored / name).is_file(), name
    assert list((stored / "ray").glob("checkpoint_*")), "Ray's checkpoints lie at the URL"
    assert bundle.load(stored / "bundle").labels == outcome.scores.labels
    shutil.rmtree(outcome.folder.local)  # as on another machine
    again = run.run(experiment)
    assert again.repeated and again.scores == outcome.scores
