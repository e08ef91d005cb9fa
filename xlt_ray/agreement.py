"""Check an artefact against the bundle it was made of: the same labels, and no group of languages worse off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xlt_ray import artefact, engine
from xlt_ray.config import InputError
from xlt_ray.engine import margins

AGREEMENT = 0.995  # share of all rows that must get the label the bundle gives them
LOSS = 0.003  # accuracy that no group of languages may lose
LIMITS = {"agreement": AGREEMENT, "loss": LOSS}
CHUNK = 4096  # rows encoded at once
LEFT_WRONG = 0.001  # share of rows expected to keep another label than float32's; in the end it is twice that
UNSURE = 0.3  # share of rows, those of the smallest margins, that show how far margins are off


def check(
    bundle_folder: str | Path,
    artefact_folder: str | Path,
    tables: Mapping[str, pa.Table],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Answer the rows of tables (language -> text, label, for pairs text_pair) by bundle and artefact, and compare.

    Both answer as they do where the language of a row is known.

    Gives for every precision: `agreement` over all rows; `groups`, for all languages, the sources, the zero-shot ones
    and those of them seen and unseen in pre-training: rows, accuracy `before` and `after` and `change` between them;
    `worst`, the language with the least agreement; `asked`, the share of rows that int8 gave to float32; `texts`; and
    whether it `passed` LIMITS, which is what `artefact.record` wants to know. Labels of the tables count as the
    bundle's do. `progress` is told how many answers there are and how many there will be, of all networks together.
    Raises InputError where there is no row or the artefact is another bundle's.
    """
    made = artefact.read(artefact_folder)
    if made.digest != artefact.bundle_digest(bundle_folder):
        raise InputError(f"{artefact_folder}: not made of {bundle_folder}, whose digest differs; export it again")
    if not sum(table.num_rows for table in tables.values()):
        raise InputError("agreement: there is no row to compare by; give a test split")
    torch_engine = engine.load(bundle_folder, device="cpu", precision="float32")
    rows = {code: table.num_rows for code, table in tables.items() if table.num_rows}
    total, done = sum(rows.values()) * (1 + len(made.precisions)), 0

    def answered(model: engine.Engine) -> dict[str, np.ndarray]:
        nonlocal done
        found = {}
        for code in rows:
            found[code] = answers(model, tables[code], code)
            done += rows[code]
            progress(done, total)
        return found

    before = answered(torch_engine)
    gold = {code: tables[code]["label"].to_numpy().astype(np.int64) for code in before}
    found: dict[str, Any] = {}
    for precision in made.precisions:
        onnx_engine = engine.OnnxEngine(made, precision)
        verdict = compare(gold, before, answered(onnx_engine), made.languages)
        found[precision] = verdict | {"asked": onnx_engine.asked / verdict["texts"]}
    return found


def answers(model: engine.Engine, table: pa.Table, language: str) -> np.ndarray:
    """Give the number of the best label of every row, (rows,), as it is served where the language is known.

    That is the `language` of the table, or what its column `language` says of each row.
    """
    found = []
    for start in range(0, table.num_rows, CHUNK):
        part = table.slice(start, CHUNK)
        pairs = part["text_pair"].to_pylist() if "text_pair" in part.column_names else None
        codes = part["language"].to_pylist() if "language" in part.column_names else [language] * part.num_rows
        found.append(model.probabilities(model.encode(part["text"].to_pylist(), pairs), codes).argmax(1))
    return np.concatenate(found)


def compare(
    gold: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    languages: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Compare two sets of answers, language -> labels (rows,); `languages` says which group each belongs to."""
    same = {code: before[code] == after[code] for code in gold}
    groups = {}
    for name, codes in _groups(gold, languages).items():
        right = [np.concatenate([answer[code] == gold[code] for code in codes]) for answer in (before, after)]
        was, now = (float(one.mean()) for one in right)
        groups[name] = {"rows": len(right[0]), "before": was, "after": now, "change": now - was}
    agreed = float(np.concatenate(list(same.values())).mean())
    worst = min(same, key=lambda code: (same[code].mean(), code))
    passed = agreed >= AGREEMENT and all(one["change"] >= -LOSS for one in groups.values())
    return {
        "agreement": agreed,
        "groups": groups,
        "worst": {"language": worst, "agreement": float(same[worst].mean())},
        "texts": sum(map(len, gold.values())),
        "passed": bool(passed),
    }


def _groups(gold: Mapping[str, Any], languages: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    def those(role: str, seen: bool | None = None) -> list[str]:
        known = [code for code in gold if languages.get(code, {}).get("role") == role]
        return known if seen is None else [code for code in known if languages[code].get("seen") is seen]

    groups = {
        "all": list(gold),
        "source": those("source"),
        "zero-shot": those("zero-shot"),
        "zero-shot seen": those("zero-shot", True),
        "zero-shot unseen": those("zero-shot", False),
    }
    return {name: codes for name, codes in groups.items() if codes}


def margin(rough: np.ndarray, precise: np.ndarray) -> float:
    """Find the margin under which rough logits (rows, labels) are not to be trusted, given the precise ones.

    The smallest at which LEFT_WRONG of all rows can be expected to keep a label that the precise logits do not give.
    Wrong labels among a thousand rows are too few to go by. So the chance that a row's label is wrong is taken from how
    far rough margins are off in the UNSURE part of the rows, where rounding does most harm, wrong labels or not. At
    least twice the median of that, as few rows may be off by little through luck.
    """
    if rough.shape[1] < 2 or not len(rough):
        return 0.0
    rows, best, apart = np.arange(len(rough)), rough.argmax(1), margins(rough)
    others = precise.copy()
    others[rows, best] = -np.inf
    off = apart - (precise[rows, best] - others.max(1))  # by how much the rough margin flatters
    unsure = np.sort(off[apart <= np.quantile(apart, UNSURE)])
    chance = 1 - np.searchsorted(unsure, apart) / len(unsure)
    order = np.argsort(-apart)
    left = np.cumsum(chance[order]) / len(rough)
    at = int(np.searchsorted(left, LEFT_WRONG, side="right"))
    needed = apart[order[at]] * (1 + 1e-6) if at < len(rough) else 0.0
    return float(max(needed, 2 * np.median(np.abs(off))))
