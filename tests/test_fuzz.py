"""A few hundred of the requests of benchmarks/fuzz.py, which sends ten thousand: none ends in a fault of ours."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import local_server
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_requests_that_nobody_would_write_are_answered_or_refused(
    fuzzer: ModuleType, tiny_encoder: Path, tmp_path: Path
) -> None:
    key = {"name": "fuzzer", "sha256": hashlib.sha256(fuzzer.KEY.encode()).hexdigest()}
    model = local_server.loaded(local_server.artefact_of(tiny_encoder, tmp_path))
    service = local_server.service(model, api_keys=[key])
    with local_server.running(service) as address:
        tally = fuzzer.fuzz(address, 200, seed=1)
    kinds = {kind for kind, _ in tally}
    assert kinds == {"bodies", "lines", "heads", "document, positive", "document, negative"}
    assert tally.total() > 150
    assert service.queue.waiting == 0
