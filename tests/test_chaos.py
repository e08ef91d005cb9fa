"""Five minutes of benchmarks/chaos.py, a few of its pairs: what it kills in them costs nobody anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray_runs import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]

PAIRS = ("train: worker", "train: all at once", "serve: all at once")


def test_rounds_of_kills_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--seed", "1", "--play", *PAIRS]
    with (tmp_path / "told").open("w+") as out:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=out, stderr=out)
        try:
            process.wait(1400)
        finally:
            process.terminate()  # it ends what it has started
            process.wait(60)
        out.seek(0)
        told = out.read()
    assert process.returncode == 0, told
    assert f"{len(PAIRS)} rounds, 0 with a fault" in told
