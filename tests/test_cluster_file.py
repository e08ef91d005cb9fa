"""The cluster files are what Ray's launcher accepts, and what they name in this repository is there."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
from ray.autoscaler._private.util import prepare_config, validate_config

from xlt_ray.config.sections import TrackingConfig

ROOT = Path(__file__).parents[1]
TEXT, LOCAL = ((ROOT / name).read_text(encoding="utf-8") for name in ("cluster.yaml", "deploy/cluster.local.yaml"))
COMMANDS = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray makes of the file, with its defaults filled in, as `ray up` does before it asks the cloud."""
    monkeypatch.chdir(ROOT)
    return prepare_config(yaml.safe_load(TEXT))


@pytest.fixture(params=[TEXT, LOCAL], ids=["cloud", "local"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The same of both files."""
    monkeypatch.chdir(ROOT)
    return prepare_config(yaml.safe_load(request.param))


def test_ray_accepts_it(either: dict[str, Any]) -> None:
    validate_config(either)


def test_of_machines_that_one_has_as_many_are_wanted_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    written = yaml.safe_load(LOCAL)
    assert written["min_workers"] == written["max_workers"] == len(written["provider"]["worker_ips"])
    assert "--num-cpus=0" in written["head_start_ray_commands"][-1], "the head takes no work"
    assert written["file_mounts"] == yaml.safe_load(TEXT)["file_mounts"]
    monkeypatch.chdir(ROOT)
    broken = prepare_config(written) | {"min_worker": 3}
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(broken)


def test_ray_refuses_what_is_not_in_its_schema(cluster: dict[str, Any]) -> None:
    """The check above is worth something only if a slip of the pen fails it."""
    broken = copy.deepcopy(cluster)
    broken["available_node_types"]["cpu_worker"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(broken)


def test_the_head_takes_no_work(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0


def test_two_groups_of_workers_come_and_go(cluster: dict[str, Any]) -> None:
    groups = {k: v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"]}
    assert sorted(groups) == ["cpu_worker", "gpu_worker"]
    written = yaml.safe_load(TEXT)["available_node_types"]
    for name, group in groups.items():
        assert {"min_workers", "max_workers"} <= set(written[name]), f"{name}: left to Ray's defaults"
        assert 0 <= group["min_workers"] < group["max_workers"]
    assert sum(group["max_workers"] for group in groups.values()) <= cluster["max_workers"]


def test_places_to_edit_are_marked(cluster: dict[str, Any]) -> None:
    marked = [number for number, line in enumerate(TEXT.splitlines()) if re.search(r"#\s*EDIT\b", line)]
    lines = TEXT.splitlines()
    for must in ("region:", "ImageId: &ubuntu", "ImageId: ami-", "IamInstanceProfile: &profile", "max_workers:"):
        at = [number for number, line in enumerate(lines) if must in line]
        assert at, f"{must} is gone; adapt this test"
        assert any(0 <= number - mark <= 4 for number in at for mark in marked), f"{must} is not marked EDIT"
    account = str(cluster["available_node_types"]["head"]["node_config"]["IamInstanceProfile"])
    assert "000000000000" in account, "the account number of somebody got into the file"


def test_what_is_copied_exists_and_suffices_to_install(either: dict[str, Any]) -> None:
    mounts = either["file_mounts"]
    assert all((ROOT / local).exists() for local in mounts.values())
    assert {"Makefile", "pyproject.toml", "constraints.txt", "README.md", "xlt_ray"} <= set(mounts.values())
    folder = {remote.removesuffix("/" + local) for remote, local in mounts.items()}
    assert len(folder) == 1, f"copied to several places: {folder}"


def test_what_the_commands_name_exists(either: dict[str, Any]) -> None:
    commands = [command for kind in COMMANDS for command in either[kind]]
    made = {"xlt-venv", ".bashrc", "ray_bootstrap_config.yaml"}  # by the commands themselves, the system and Ray
    mounts = either["file_mounts"]
    for path in re.findall(r"(?:~|\$HOME)/([\w./-]+)", " ".join(commands)):
        if path.split("/")[0] not in made:
            below = [local for remote, local in mounts.items() if remote.startswith(f"~/{path}")]
            assert below and all((ROOT / local).exists() for local in below), f"{path}: not copied to the nodes"
    targets = re.findall(r"^(setup[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    called = re.findall(r"make -C \S+ (\S+)", " ".join(commands))
    assert called and set(called) <= set(targets)


@pytest.mark.parametrize("text", [TEXT, LOCAL], ids=["cloud", "local"])
def test_the_files_the_comment_tells_to_run_exist(text: str) -> None:
    header = text[: text.index("cluster_name:")]
    named = re.findall(r"\b(?:jobs|xlt_ray|serve)/[\w./-]+", header)
    assert named and all((ROOT / name).is_file() for name in named), named
    for verb in ("ray up", "ray job submit", "ray down", "storage="):
        assert verb in header


def test_ports_do_not_clash(either: dict[str, Any]) -> None:
    """A fixed port within the range Ray's workers use keeps `ray start` from starting."""
    head = " ".join(either["head_start_ray_commands"])
    ports = {name: int(port) for name, port in re.findall(r"--([\w-]*port)=(\d+)", head)}
    assert {"port", "object-manager-port", "dashboard-port"} <= set(ports)
    assert len(set(ports.values())) == len(ports)
    assert not [name for name, port in ports.items() if 10002 <= port <= 19999]
    worker = " ".join(either["worker_start_ray_commands"])
    assert f"--address=$RAY_HEAD_IP:{ports['port']} " in worker
    assert f"--object-manager-port={ports['object-manager-port']}" in worker
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


DATABASE = str(TrackingConfig().uri).removeprefix("sqlite:///")


@pytest.mark.parametrize(
    "path",
    ["runs/quick-1/report.html", DATABASE, f"{DATABASE}-wal", ".venv/bin/python", ".git/config", "mlartifacts/1/x"],
)
def test_jobs_leave_behind_what_is_large_or_changes(path: str) -> None:
    """What is written while `ray job submit` packs the folder would change its hash, and 100 MiB is Ray's limit."""
    excluded = get_excludes_from_ignore_files(ROOT, include_gitignore=False)
    # Ray asks for each folder first and does not enter one that is excluded
    steps = [ROOT / Path(*Path(path).parts[: n + 1]) for n in range(len(Path(path).parts))]
    assert any(excludes(step) for excludes in excluded for step in steps), f"add {path} to .rayignore"


@pytest.mark.parametrize(
    "path", ["jobs/train.py", "jobs/configs/quickstart.yaml", "xlt_ray/languages/languages.tsv", "xlt_ray/runs/run.py"]
)
def test_jobs_take_along_what_they_need(path: str) -> None:
    assert (ROOT / path).is_file()
    excluded = get_excludes_from_ignore_files(ROOT, include_gitignore=False)
    assert not any(excludes(ROOT / path) for excludes in excluded)
