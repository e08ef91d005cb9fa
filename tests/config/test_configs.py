"""Every configuration that is shipped works as it stands, and every package that is needed is pinned."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from xlt_ray import config
from xlt_ray.config.experiment import Experiment
from xlt_ray.search import space

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "jobs" / "configs").rglob("*.y*ml"))
every_config = pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))


def test_there_are_configurations() -> None:
    assert ROOT / "jobs" / "configs" / "quickstart.yaml" in CONFIGS


def experiment_of(file: Path) -> Experiment:
    """Read an experiment, or the one that a search varies."""
    return space.load(file).base if file.name.startswith("search_") else config.load(file)


@every_config
def test_it_loads_and_begins_by_saying_what_it_is(file: Path) -> None:
    experiment_of(file)
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# \w", first), f"{file.name} begins with {first!r}; begin with a comment: what, data, command"


@every_config
def test_it_survives_being_written_and_read_again(file: Path, tmp_path: Path) -> None:
    experiment = experiment_of(file)
    again = tmp_path / "again.yaml"
    again.write_text(config.dump(experiment), encoding="utf-8")
    assert config.load(again) == experiment
    assert config.load(again).key() == experiment.key()


def test_no_two_configurations_share_a_run() -> None:
    keys = [experiment_of(file).key() for file in CONFIGS]
    assert len(set(keys)) == len(keys)


def project() -> dict[str, list[str]]:
    """Return what pyproject.toml asks for: "" holds the dependencies, the other keys are its extras."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": table["dependencies"], **table["optional-dependencies"]}


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pinned}


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    for asked in (Requirement(line) for extra in project().values() for line in extra):
        pinned = pins().get(canonicalize_name(asked.name))
        assert pinned, f"{asked.name}: not in constraints.txt; run `make constraints`"
        assert asked.specifier.contains(pinned), f"{asked}: constraints.txt has {pinned}; run `make constraints`"


def test_what_the_requirements_require_is_pinned() -> None:
    """Follow the installed packages' own requirements; what is not installed here is not followed further."""
    pinned, waiting, seen = pins(), [Requirement(line) for extra in project().values() for line in extra], set()
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        assert name in pinned, f"{name}: not in constraints.txt; run `make constraints`"
        for extra in ("", *asked.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += needed(name, extra)


def needed(package: str, extra: str) -> list[Requirement]:
    try:
        declared = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in declared]
    return [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": extra})]


def test_the_makefile_and_the_constraints_agree_on_torch() -> None:
    stated = re.search(r"^TORCH = torch==(\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated and Version(stated.group(1)) == pins()["torch"]
