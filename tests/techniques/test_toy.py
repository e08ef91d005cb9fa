"""A technique of a file of its own is trained, resumed, searched, exported, served and given a language.

What is in `toy.py` is all there is of it: nothing in the product knows its name.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from test_catalogue import resumed_bit_by_bit

from tests.ray_runs import ROOT
from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.export import export
from xlt_ray.inference import bundle, engine
from xlt_ray.inference.adapt import adapt
from xlt_ray.model.network import trained
from xlt_ray.runs import run
from xlt_ray.search import trial
from xlt_ray.training import cluster

Settings = dict[str, Any]
TEXTS = ["eng1 eng2 eng3", "swh4 swh50 swh7", "hin30"]
CODES = ["eng_Latn", "swh_Latn", "hin_Deva"]


@pytest.fixture
def settings(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setitem(techniques.CATALOGUE, "toy", "tests.techniques.toy.Toy")
    changed = copy.deepcopy(tiny_settings)
    return changed | {"techniques": [{"toy": {"strength": 0.5}}]}


def test_it_is_resumed_bit_by_bit(settings: Settings, tmp_path: Path) -> None:
    settings["training"] |= {"checkpoint_every": 3}
    one = resumed_bit_by_bit(build(settings), tmp_path)
    assert not torch.equal(one["steps.toy.scale"], torch.ones(32)), "what it attached was trained"
    assert one["steps.toy.move"].any(), "and what it estimates was estimated"


def test_it_is_searched(settings: Settings) -> None:
    settings |= {"targets": ["hin_Deva"]}
    whole = loaders.load(build(settings).corpus)
    pool = ("eng_Latn", "deu_Latn")
    data = trial.TrialData(whole.for_training(pool), whole.unlabelled(["hin_Deva"], ids=True))
    worker = trial.Worker(data, 0, trial.WorkerGroup("", 1, 1, 0))
    worker.begin(build({**settings, "sources": ["deu_Latn"]}))
    worker.advance(1)
    worker.begin(build({**settings, "sources": ["eng_Latn"]}))
    predictions = worker.advance(2)
    assert set(predictions) == {*pool}, "the language that the mix leaves out was taken up and measured"
    assert worker.net.index("deu_Latn") < 0, "on a copy"
    assert "steps.toy.scale" in trained(worker.net)


@pytest.mark.slow
@pytest.mark.long
def test_it_is_trained_on_ray_bundled_exported_served_and_given_a_language(settings: Settings, tmp_path: Path) -> None:
    experiment = build(settings)
    environment = {"worker_process_setup_hook": "tests.techniques.toy.enrol", "env_vars": {"PYTHONPATH": str(ROOT)}}
    options: dict[str, Any] = {"include_dashboard": False, "dashboard_port": 0, "log_to_driver": False}
    cluster.init(address="local", runtime_env=environment, **options)
    try:
        outcome = run.run(experiment)
    finally:
        ray.shutdown()
    folder = outcome.folder.local / "bundle"
    model = bundle.load(folder)
    assert outcome.scores.summary["accuracy/mean_source"] > 0.5
    wanted = model.probabilities(TEXTS, languages=CODES)
    assert np.abs(wanted - model.probabilities(TEXTS, languages=[None] * 3)).max() > 1e-3, "a language counts"

    export.export(folder, tmp_path / "artefact")
    served = engine.load(tmp_path / "artefact", precision="float32")
    np.testing.assert_allclose(served.probabilities(served.encode(TEXTS), CODES), wanted, atol=1e-4)

    (tmp_path / "texts.txt").write_text("".join(f"eng{number} eng{number + 1}\n" for number in range(30)))
    assert adapt(folder, "yo", tmp_path / "texts.txt").new
    now = bundle.load(folder)
    np.testing.assert_array_equal(now.probabilities(TEXTS, languages=CODES), wanted)
    yoruba, unknown = (now.probabilities(TEXTS, languages=[code] * 3) for code in ("yor_Latn", None))
    assert np.abs(yoruba - unknown).max() > 1e-3
