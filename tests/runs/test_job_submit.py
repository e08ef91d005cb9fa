"""`ray job submit` of jobs/train.py to a real head node: logs and exit code are those of the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ray_runs import environment, free_ports, offspring, settings, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A head node and the checkout that is submitted to it."""

    address: str
    checkout: Path

    def submit(self, *arguments: str, job: str = "train") -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), "job", "submit", "--address", self.address, "--working-dir", str(self.checkout)]
        command += ["--", "python", f"jobs/{job}.py", *arguments]
        away, variables = self.checkout.parent, cluster_environment()  # a file written inside would spoil the upload
        return subprocess.run(command, cwd=away, env=variables, capture_output=True, text=True, timeout=300)


def cluster_environment() -> dict[str, str]:
    # `python` of a job is the first on the PATH of the head; a cluster for one test on one machine needs no token
    path = os.pathsep.join((str(BIN), os.environ.get("PATH", "")))
    return environment(PATH=path, RAY_AUTH_MODE="disabled", HF_HUB_OFFLINE="1")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    checkout = tmp_path_factory.mktemp("head") / "checkout"
    for part in ("xlt_ray", "jobs"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", checkout)
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    # the paths of Ray's sockets are limited to about 100 characters, and those of pytest's folders are long
    with tempfile.TemporaryDirectory(prefix="xlt") as temp, open(checkout.parent / "head.log", "wb") as log:
        command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
        command += ["--dashboard-host=127.0.0.1", "--include-dashboard=true", "--disable-usage-stats"]
        command += [f"--temp-dir={temp}", *(f"--{name}={port}" for name, port in ports.items())]
        process = subprocess.Popen(command, env=cluster_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{ports['dashboard-port']}"
            until(lambda: process.poll() is not None or answers(address), "the head node")
            assert process.poll() is None, (checkout.parent / "head.log").read_text()
            yield Head(address, checkout)
        finally:
            stop(process)


def answers(address: str) -> bool:
    """Return whether jobs can be submitted."""
    from ray.job_submission import JobSubmissionClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        try:
            JobSubmissionClient(address).list_jobs()
        except Exception:  # refused, reset, not ready: any of them means "not yet", and `until` has a limit
            return False
        return True


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill this head with all that it started, and nothing else: other clusters of this machine are left alone."""
    started = offspring(process.pid)
    process.kill()
    process.wait()
    for one in started:
        one.kill()
    until(lambda: not any(one.now() for one in started), "the processes of the head node to end")


@pytest.fixture(scope="module")
def config(tiny_encoder: Path, tiny_corpus: Path, head: Head, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A configuration inside the checkout, named as a job sees it: from the checkout's top."""
    data = settings(tiny_encoder, tiny_corpus, tmp_path_factory.mktemp("job"))
    (head.checkout / "jobs" / "configs" / "tiny.yaml").write_text(yaml.safe_dump(data))
    return "jobs/configs/tiny.yaml"


@pytest.mark.long
def test_a_job_trains_on_the_cluster_and_shows_its_table(head: Head, config: str) -> None:
    done = head.submit(config, "mixture.alpha=0.3", "resources.workers=2", "resources.cpus_per_worker=0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    for code in ("eng_Latn", "deu_Latn", "swh_Latn", "hin_Deva"):
        assert code in done.stdout
    assert "tiny: test scores in %" in done.stdout and "succeeded" in done.stdout
    storage = Path(yaml.safe_load((head.checkout / config).read_text())["storage"])
    (folder,) = storage.iterdir()
    assert f"report.html  {folder}/report.html" in done.stdout
    assert yaml.safe_load((folder / "experiment.yaml").read_text())["mixture"]["alpha"] == 0.3
    assert (folder / "bundle" / "bundle.json").is_file()


@pytest.mark.long
def test_other_verbs_are_jobs_too(head: Head, config: str) -> None:
    assert head.submit(config).returncode == 0
    storage = Path(yaml.safe_load((head.checkout / config).read_text())["storage"])
    folder = next(storage.iterdir())
    again = head.submit(str(folder), job="evaluate")
    assert again.returncode == 0 and "tiny: test scores in %" in again.stdout, again.stdout + again.stderr
    untracked = head.submit(str(folder), job="promote")
    assert untracked.returncode == 1 and "was not tracked, so MLflow knows nothing of it" in untracked.stdout
    assert head.submit(str(folder), job="sync").returncode == 0


def test_a_bad_configuration_fails_the_job_and_its_log_says_why(head: Head, config: str) -> None:
    done = head.submit(config, "training.epochz=3")
    assert done.returncode == 1
    log = done.stdout + done.stderr
    assert "training.epochz: unknown key, did you mean training.epochs?" in log
    assert "Traceback" not in log
