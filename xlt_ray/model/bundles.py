"""A bundle as those see it who begin from it: what it holds, held to what was written."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from xlt_ray import durable
from xlt_ray.errors import InputError


def verified(place: str, folder: Path, needed: Collection[str] = ("experiment", "sha256")) -> dict[str, Any]:
    """Return what bundle.json holds of the bundle that `place`, a key of a configuration, names, `needed` among it.

    Raises InputError where that is damaged, and where a file is not the one that was written, by its SHA-256.
    """
    file = folder / "bundle.json"
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        if absent := {*needed} - content.keys():
            raise ValueError(f"no {', '.join(sorted(absent))}")
        content["experiment"].keys()
        digests = {name: durable.digest(folder / name) for name in content["sha256"] if (folder / name).is_file()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{place}: {file} is damaged ({error}); copy the bundle again") from None
    if changed := [name for name, sha256 in content["sha256"].items() if digests.get(name) != sha256]:
        raise InputError(
            f"{place}: of the bundle {folder}, {', '.join(changed[:5])} is missing or not what was written; copy the "
            "bundle again"
        )
    return content
