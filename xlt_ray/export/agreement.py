"""Check an artefact against the bundle it was exported from: the same labels, and no group of languages worse off.

Both limits are rates, and a rate of few rows is mostly chance: one row of a hundred is a whole point. So a limit is
broken only where so many rows changed that a true rate within it does not explain them, by an exact binomial test that
is corrected for the number of tests. Rounding changes rows that were close calls, and where languages share their
sentences a close call is one in several of them: fewer than `FEWEST` rows never count as the loss of a group.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from xlt_ray.errors import InputError
from xlt_ray.evaluation import groups
from xlt_ray.evaluation.groups import Place
from xlt_ray.inference import artefact, engine
from xlt_ray.inference.engine import margins

AGREEMENT = 0.995  # share of all rows that must get the label the bundle gives them
LOSS = 0.003  # accuracy that no group of languages may lose
ALPHA = 0.05  # chance that an artefact that keeps all limits fails the check
FEWEST = 3  # rows lost, net of those won, that count against a group
CHUNK = 512  # rows answered between two reports of progress
LEFT_WRONG = 0.001  # share of rows expected to keep another label than float32's; as measured it is twice that
UNSURE = 0.3  # share of rows, those of the smallest margins, that show how far margins are off


def check(
    bundle_folder: str | Path,
    artefact_folder: str | Path,
    tables: Mapping[str, pa.Table],
    progress: Callable[[int, int], None] = lambda done, total: None,
    rows: int | None = None,
) -> dict[str, Any]:
    """Compare the answers of bundle and artefact on tables of rows (language -> text, label, for pairs text_pair).

    Both answer as they do where the language of a row is known, and number labels as the tables do. With `rows` at most
    so many of each language are compared, drawn by the language's name alone.

    Returns, for every precision and as `artefact.record` takes it, what `compare` returns and `of`, all rows of the
    tables, and `asked`, the share of rows that int8 left to float32. `progress(done, total)` counts the answers of all
    networks together. Raises InputError where there is no row or the artefact is another bundle's.
    """
    made = artefact.read(artefact_folder)
    if made.digest != artefact.bundle_digest(bundle_folder):
        raise InputError(f"{artefact_folder}: not made of {bundle_folder}, whose digest differs; export it again")
    every = sum(table.num_rows for table in tables.values())
    if not every:
        raise InputError("agreement: there is no row to compare by; give a test split")
    chosen = {code: sample(table, code, rows) for code, table in tables.items() if table.num_rows}
    total, done = sum(table.num_rows for table in chosen.values()) * (1 + len(made.precisions)), 0

    def answered(model: engine.Engine) -> dict[str, np.ndarray]:
        nonlocal done
        found = {code: np.zeros(table.num_rows, dtype=np.int64) for code, table in chosen.items()}
        for code, table in chosen.items():
            for start in range(0, table.num_rows, CHUNK):
                part = table.slice(start, CHUNK)
                found[code][start : start + CHUNK] = answers(model, part, code)
                done += part.num_rows
                progress(done, total)
        return found

    before = answered(engine.load(bundle_folder, device="cpu", precision="float32"))
    gold = {code: table["label"].to_numpy().astype(np.int64) for code, table in chosen.items()}
    verdicts: dict[str, Any] = {}
    for precision in made.precisions:
        onnx_engine = engine.OnnxEngine(made, precision)
        verdict = compare(gold, before, answered(onnx_engine), made.languages)
        verdicts[precision] = verdict | {"of": every, "asked": onnx_engine.asked / verdict["texts"]}
    return verdicts


def sample(table: pa.Table, language: str, rows: int | None) -> pa.Table:
    """Draw at most so many rows of a language's table, always the same ones and in their order; None is all."""
    if rows is None or table.num_rows <= rows:
        return table
    rng = np.random.default_rng([0, zlib.crc32(language.encode())])
    return table.take(pa.array(np.sort(rng.permutation(table.num_rows)[:rows])))


def answers(model: engine.Engine, table: pa.Table, language: str) -> np.ndarray:
    """Return the index of the best label of every row, (rows,), as it is served where the language is known.

    The language is that of the table, unless a column `language` has one for each row.
    """
    pairs = table["text_pair"].to_pylist() if "text_pair" in table.column_names else None
    codes = table["language"].to_pylist() if "language" in table.column_names else [language] * table.num_rows
    return engine.classify(model, table["text"].to_pylist(), pairs, codes).argmax(1)


def compare(
    gold: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    languages: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Compare two sets of answers, language -> labels (rows,); `languages` has the role and `seen` of each.

    Returns `texts`, the rows compared; `changed`, those with another label; `agreement`, the share of the others, and
    `low`, the lower end of its 95% interval (Clopper and Pearson 1934); `groups`, for each group of
    `evaluation.groups`: rows, accuracy `before` and `after`, `change` between them, and the rows that were `lost`
    (right, then wrong) and `won`; `worst`, the language with the least agreement; `reasons`, a line for each limit that
    is broken; `unclear`, a line for each that only chance keeps; and whether it `passed`, which is that there are no
    reasons.
    """
    same = {code: before[code] == after[code] for code in gold}
    known = {code: languages.get(code, {}) for code in gold}
    members = groups.of({code: Place(one.get("role"), one.get("seen")) for code, one in known.items()})
    figures = {}
    for name, codes in members.items():
        was, now = (np.concatenate([answer[code] == gold[code] for code in codes]) for answer in (before, after))
        shares = {"rows": len(was), "before": float(was.mean()), "after": float(now.mean())}
        change = shares["after"] - shares["before"]
        figures[name] = shares | {"change": change, "lost": int((was & ~now).sum()), "won": int((now & ~was).sum())}
    texts, kept = sum(map(len, gold.values())), sum(int(one.sum()) for one in same.values())
    worst = min(same, key=lambda code: (same[code].mean(), code))
    distinct = {tuple(codes): name for name, codes in reversed(members.items())}  # those of the same languages are one
    looked_at = {name: one for name, one in figures.items() if name in distinct.values()}
    reasons, unclear = _faults(texts, texts - kept, looked_at)
    return {
        "texts": texts,
        "changed": texts - kept,
        "agreement": kept / texts,
        "low": float(stats.binomtest(kept, texts).proportion_ci().low),
        "groups": figures,
        "worst": {"language": worst, "agreement": float(same[worst].mean())},
        "reasons": reasons,
        "unclear": unclear,
        "passed": not reasons,
    }


def _faults(texts: int, changed: int, figures: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return a line for each limit that is broken, and one for each that is exceeded by no more than chance."""
    reasons: list[str] = []
    unclear: list[str] = []
    alpha = ALPHA / (1 + len(figures))
    if changed > (1 - AGREEMENT) * texts:
        text = f"{changed} of {texts} rows get another label, more than {100 * (1 - AGREEMENT):.2g}%"
        (reasons if _more(changed, texts, 1 - AGREEMENT, alpha) else unclear).append(text)
    for name, one in figures.items():
        net = one["lost"] - one["won"]
        if net > LOSS * one["rows"]:
            text = (
                f"{name}: {one['lost']} of {one['rows']} rows turn wrong and {one['won']} right, "
                f"{-100 * one['change']:.2f} points less and more than {100 * LOSS:g}"
            )
            # by chance alone rounding turns about as many rows wrong as right, and those won show how many that is
            sure = net >= FEWEST and _more(one["lost"], one["rows"], LOSS + one["won"] / one["rows"], alpha)
            (reasons if sure else unclear).append(text)
    return reasons, unclear


def _more(found: int, rows: int, rate: float, alpha: float) -> bool:
    """Return whether so many of the rows are significantly more than a rate explains."""
    return bool(stats.binomtest(found, rows, rate, alternative="greater").pvalue <= alpha)


def margin(int8: np.ndarray, float32: np.ndarray) -> float:
    """Return the margin of int8 logits (rows, labels) below which float32 is to answer, from the logits of both.

    It is the smallest at which LEFT_WRONG of all rows are expected to keep a label that float32 does not choose. Wrong
    labels among a thousand rows are too few to estimate that from. So the chance that a row's label is wrong is taken
    from how far int8's margins are off in the UNSURE part of the rows, where rounding does most harm, wrong labels or
    not. It is at least twice the median of that error, which few rows may underestimate by chance.
    """
    if int8.shape[1] < 2 or not len(int8):
        return 0.0
    rows, best, found = np.arange(len(int8)), int8.argmax(1), margins(int8)
    others = float32.copy()
    others[rows, best] = -np.inf
    error = found - (float32[rows, best] - others.max(1))  # positive where int8 is too sure
    unsure = np.sort(error[found <= np.quantile(found, UNSURE)])
    chance = 1 - np.searchsorted(unsure, found) / len(unsure)
    order = np.argsort(-found)
    left = np.cumsum(chance[order]) / len(int8)
    at = int(np.searchsorted(left, LEFT_WRONG, side="right"))
    needed = found[order[at]] * (1 + 1e-6) if at < len(int8) else 0.0
    return float(max(needed, 2 * np.median(np.abs(error))))
