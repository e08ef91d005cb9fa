"""Describe what a run runs on: the machine, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

PINNED = (
    *("torch", "transformers", "tokenizers", "safetensors"),
    *("numpy", "scipy", "pandas", "pyarrow", "pydantic", "PyYAML", "filelock", "platformdirs"),
)


def version(package: str) -> str:
    """Return the installed version of a package; empty when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def environment() -> dict[str, str]:
    """Return name and value of each fact, without packages that are not installed and the commit outside a checkout."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "commit": _commit(),
    }
    packages = ("xlt_ray", "torch", "ray", "transformers", "mlflow")
    return {key: fact for key, fact in (facts | {name: version(name) for name in packages}).items() if fact}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.is_file() else "", re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of this file, with '+changes' when tracked files differ from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # an installed copy may lie inside some other checkout, whose commit says nothing about it
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def requirements() -> list[str]:
    """Return the installed versions that a logged model needs, as pip writes them."""
    # a local version such as 2.13.0+cpu is on no package index
    return [f"{package}=={version(package).partition('+')[0]}" for package in PINNED if version(package)]
