"""What an earlier layout of the packages wrote still loads and answers the same: a bundle with the state of two
techniques, a served artefact, a registered model and the outbox of a run that was not sent.

`made_before/` was written at commit 3918b2a, when every module lay flat in `xlt_ray`, by `xlt train`, `xlt promote` and
`Outbox` with the encoder of conftest.py; `answers.json` has the probabilities that this commit gave.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import registered
from xlt_ray.inference import bundle, engine
from xlt_ray.registry import fetch, versions
from xlt_ray.tracking import outbox
from xlt_ray.tracking.delivery import Delivery

BEFORE = Path(__file__).parent / "made_before"
ANSWERS = json.loads((BEFORE / "answers.json").read_text(encoding="utf-8"))


def placed(folder: Path) -> Path:
    """Copy the bundle, which holds changes of the encoder alone, and say where the encoder lies now."""
    shutil.copytree(BEFORE / "bundle", folder)
    content = (folder / "bundle.json").read_text(encoding="utf-8")
    assert '"/before/encoder"' in content
    (folder / "bundle.json").write_text(content.replace('"/before/encoder"', json.dumps(str(BEFORE / "encoder"))))
    return folder


def sent(folder: Path, uri: str) -> Path:
    """Send the outbox with its run's files to a new database."""
    shutil.copytree(BEFORE / "outbox", folder)
    shutil.copy(BEFORE / "bundle" / "scores.json", folder)
    placed(folder / "bundle")
    Delivery(folder, uri).send()
    return folder


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return registered.database(tmp_path_factory.mktemp("before"))


def assert_answers(found: Any, kind: str, tolerance: float) -> None:
    np.testing.assert_allclose(found, np.array(ANSWERS[kind]), atol=tolerance)


def test_a_bundle_with_techniques_answers_as_before(tmp_path: Path) -> None:
    found = bundle.load(placed(tmp_path / "bundle"))
    assert found.labels == tuple(ANSWERS["labels"])
    assert set(found.experiment.techniques) == {"lora", "centre"}
    assert_answers(found.probabilities(ANSWERS["texts"], None, ANSWERS["languages"]), "bundle", 1e-4)


@pytest.mark.parametrize(("precision", "kind", "tolerance"), [("int8", "artefact", 0.02), ("float32", "bundle", 1e-4)])
def test_an_artefact_answers_as_before(precision: str, kind: str, tolerance: float) -> None:
    found = engine.load(BEFORE / "artefact", precision=precision)
    assert_answers(found.probabilities(found.encode(ANSWERS["texts"]), ANSWERS["languages"]), kind, tolerance)


def test_an_outbox_is_sent_and_its_model_registered(tmp_path: Path, uri: str) -> None:
    folder = sent(tmp_path / "run", uri)
    assert outbox.pending(folder, uri) == 0
    run = registered.client(uri).get_run(versions.resolve("models:/before@challenger", uri).run_id)
    assert (run.info.status, run.data.params["mixture.alpha"], run.data.metrics["loss"]) == ("FINISHED", "0.3", 0.5)


def test_a_registered_model_answers_through_mlflow_and_the_registry(tmp_path: Path, uri: str) -> None:
    import mlflow

    model = tmp_path / "model"
    shutil.copytree(BEFORE / "registered", model)
    (model / "code").mkdir()  # so that the code of today answers, not a copy that travelled with the model
    placed(model / "data" / "bundle")
    client = registered.client(uri)
    client.create_registered_model("kept")
    client.create_model_version("kept", str(model))
    mlflow.set_tracking_uri(uri)
    assert mlflow.pyfunc.load_model(str(model)).predict(ANSWERS["texts"]) == ANSWERS["by_mlflow"]
    folder = Path(fetch.fetch("models:/kept/1", uri, fetch.Form(device="cuda"), tmp_path / "cache").folder)
    found = bundle.load(folder).probabilities(ANSWERS["texts"], None, ANSWERS["languages"])
    assert_answers(found, "bundle", 1e-4)
