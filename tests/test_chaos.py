"""Five minutes of benchmarks/chaos.py: what it kills in them costs nobody anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray_runs import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]


def test_rounds_of_kills_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--minutes", "5", "--seed", "1"]
    with (tmp_path / "told").open("w+") as out:
        done = subprocess.run(command, cwd=tmp_path, env=environment(), stdout=out, stderr=out, timeout=1400)
        out.seek(0)
        told = out.read()
    assert done.returncode == 0, told
    assert " 0 with a fault" in told and "round 0: " in told
