"""Every command of docs/laptop_to_cluster.md is run, in its order, on a head and a worker that share this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray_runs import ROOT, environment, free_ports, marked, settings, until
from search_runs import search_settings, write
from tracking_server import healthy

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(2400)]

PAGE = ROOT / "docs" / "laptop_to_cluster.md"
MARK = "XLT_PAGE"
PORTS = ("5000", "6379", "8000", "8265")  # as the page has them
# nodes of one machine need ports and a folder of their own, with a short path to its sockets
ON_ONE_MACHINE = """
ray() {
  if [ "$1" = start ]; then set -- "$@" --dashboard-agent-listen-port="$AGENT" --temp-dir="$SHORT$AGENT" $MORE; fi
  command ray "$@"
}
"""


@dataclass
class Reader:
    """Somebody who does what the page says, in one shell after another, with ports and a storage of their own."""

    checkout: Path
    variables: dict[str, str]
    changes: dict[str, str]  # word of the page -> what stands there instead
    exports: list[str] = field(default_factory=list)

    def ask(self, command: str, status: int = 0, **more: str) -> str:
        """Return what a command prints after all exports so far, and what those print that it leaves at work."""
        script = "\n".join(["set -euo pipefail", *self.exports, ON_ONE_MACHINE, command])
        with (self.checkout.parent / "out").open("w+") as out:  # the end of a pipe would wait for what goes on
            options: dict[str, Any] = {"cwd": self.checkout, "stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            done = subprocess.run(["bash", "-c", script], env={**self.variables, **more}, timeout=900, **options)
            out.seek(0)
            told = out.read()
        assert done.returncode == status, f"{script}\n{told}"
        return told

    def changed(self, block: str) -> str:
        words = "|".join(map(re.escape, self.changes))
        return re.sub(words, lambda found: self.changes[found[0]], block)

    def do(self, block: str, **more: str) -> str:
        """Do a block of the page, and return what it prints; what it exports stays."""
        block = self.changed(block)
        told = self.ask(block, **more)
        self.exports += [line for line in block.splitlines() if line.startswith("export ")]
        return told


def checkout(folder: Path, encoder: Path, corpus: Path, ports: dict[str, str]) -> Path:
    """Copy what a reader has, with a small corpus in place of the quickstart's."""
    made = folder / "checkout"
    for part in ("xlt_ray", "jobs", "serve"):
        shutil.copytree(ROOT / part, made / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", made)
    tracking = {"uri": "off", "register_as": "quickstart", "alias": "champion"}
    training = {"epochs": 24, "batch_size": 16, "checkpoint_every": 4}
    shared: dict[str, Any] = {"tracking": tracking, "resources": {"workers": 2}}
    train = settings(encoder, corpus, folder, training=training, **shared)
    search = {"screening": {"trials": 4}, "fine_tuning": {"trials": 1}, "retraining": {"seeds": 1, "baselines": []}}
    tune = search_settings(encoder, corpus, folder, training={"epochs": 2}, search=search, **shared)
    for name, data in (("quickstart", train), ("search_quickstart", tune)):
        del data["storage"]
        write(data | {"name": name.replace("_", "-")}, made / "jobs" / "configs" / f"{name}.yaml")
    config = made / "serve" / "config.yaml"
    edited = config.read_text().replace("http://127.0.0.1:5000", f"http://127.0.0.1:{ports['5000']}")
    edited = edited.replace("host: 0.0.0.0", "host: 127.0.0.1").replace("port: 8000", f"port: {ports['8000']}")
    config.write_text(edited.replace("cpus: 1 ", "cpus: 0.5 "))
    return made


@pytest.fixture
def reader(tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path) -> Iterator[Reader]:
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    made = checkout(tmp_path, tiny_encoder, tiny_corpus, ports)
    with tempfile.TemporaryDirectory(prefix="x") as short:
        (Path(short) / "home").mkdir()
        variables = environment(HOME=f"{short}/home", SHORT=f"{short}/ray", MORE="", HF_HUB_OFFLINE="1")
        variables[MARK] = short
        changes = {**ports, "/shared/xlt": str(tmp_path / "shared"), "$PWD/.venv": sys.prefix}
        try:
            yield Reader(made, variables, changes)
        finally:
            for process in marked(f"{MARK}={short}"):
                process.kill()
            until(lambda: not marked(f"{MARK}={short}"), "the end of all that was started")


def blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def test_who_follows_the_page_gets_from_a_laptop_to_a_served_model(reader: Reader) -> None:
    page = iter(blocks())

    def is_next(words: str) -> str:
        block = next(page)
        assert words in block, f"this test expects {words!r} here, and the page has {block!r}"
        return block

    assert reader.do(is_next("xlt check")).startswith("sound: ")
    reader.do(is_next("export HEAD="))
    server = reader.changed(is_next("mlflow server"))
    reader.ask(f"nohup {server.strip()} > ../server.log 2>&1 &")  # the terminal of its own
    address = f"http://127.0.0.1:{reader.changes['5000']}"
    until(lambda: healthy(address), "MLflow's server", 300)
    reader.do(is_next("ray get-auth-token --generate"))
    first, second = free_ports(2)
    reader.do(is_next("ray start --head"), AGENT=str(first), MORE=f"--dashboard-port={reader.changes['8265']}")
    reader.do(is_next("ray start --address="), AGENT=str(second), MORE="--num-cpus=2")

    address = f"http://127.0.0.1:{reader.changes['8265']}"
    assert "oken" in reader.ask(f"RAY_AUTH_MODE=disabled ray job list --address {address}", status=1), (
        "a stranger is refused"
    )

    reader.do(is_next("ray job submit --submission-id first"))
    end = time.monotonic() + 300
    while "epoch 2 done" not in (told := reader.ask("ray job logs first")):
        assert time.monotonic() < end, told
        time.sleep(2)
    again = reader.do(is_next("ray job stop first"))
    assert "going on from update" in again and "quickstart: test scores in %" in again and "succeeded" in again
    assert "chosen:" in reader.do(is_next("jobs/tune.py"))
    assert "quickstart: test scores in %" in reader.do(is_next("export RUN="))
    assert "champion" in reader.do(is_next("xlt promote"))
    answered = reader.do(is_next("serve deploy"))
    assert answered.count('"label"') >= 2, answered
    assert "models:/quickstart" in reader.do(is_next("xlt rollout"))
    reader.do(is_next("serve shutdown"))
    assert next(page, None) is None, "a command of the page is not run"
