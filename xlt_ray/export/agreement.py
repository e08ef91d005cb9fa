"""Check an artefact against the bundle it was made of: the same labels, and no group of languages worse off.

Both limits are rates, and a rate of few rows is mostly luck: a single row of a hundred is a whole point. So a limit is
broken only where so many rows changed that a true rate within it does not explain them, by an exact binomial test that
is corrected for everything looked at. Rounding changes rows that were close calls, and where languages share their
sentences a close call is one in several of them: fewer than `FEWEST` rows are never taken for the loss of a group.
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
ALPHA = 0.05  # chance that an artefact that keeps all limits is called one that does not
FEWEST = 3  # rows lost, net of those won, that count against a group
CHUNK = 512  # rows answered between two words about progress
LEFT_WRONG = 0.001  # share of rows expected to keep another label than float32's; in the end it is twice that
UNSURE = 0.3  # share of rows, those of the smallest margins, that show how far margins are off


def check(
    bundle_folder: str | Path,
    artefact_folder: str | Path,
    tables: Mapping[str, pa.Table],
    progress: Callable[[int, int], None] = lambda done, total: None,
    rows: int | None = None,
) -> dict[str, Any]:
    """Answer the rows of tables (language -> text, label, for pairs text_pair) by bundle and artefact, and compare.

    Both answer as they do where the language of a row is known. With `rows` at most so many of each language are
    compared, drawn by the language's name alone.

    Gives for every precision what `compare` gives, besides `of`, all rows of the tables, and `asked`, the share of
    rows that int8 gave to float32. That is what `artefact.record` wants to know. Labels of the tables count as the
    bundle's do. `progress` is told how many answers there are and how many there will be, of all networks together.
    Raises InputError where there is no row or the artefact is another bundle's.
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
        found: dict[str, list[np.ndarray]] = {code: [] for code in chosen}
        for code, table in chosen.items():
            for start in range(0, table.num_rows, CHUNK):
                found[code].append(answers(model, table.slice(start, CHUNK), code))
                done += len(found[code][-1])
                progress(done, total)
        return {code: np.concatenate(parts) for code, parts in found.items()}

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
    """Give the number of the best label of every row, (rows,), as it is served where the language is known.

    That is the `language` of the table, or what its column `language` says of each row.
    """
    pairs = table["text_pair"].to_pylist() if "text_pair" in table.column_names else None
    codes = table["language"].to_pylist() if "language" in table.column_names else [language] * table.num_rows
    return model.probabilities(model.encode(table["text"].to_pylist(), pairs), codes).argmax(1)


def compare(
    gold: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    languages: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Compare two sets of answers, language -> labels (rows,); `languages` says which group each belongs to.

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
    """Say which limits are broken, and which are only exceeded by what chance explains."""
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
            # rounding turns about as many rows wrong as right by chance alone, and those won say how many that is
            sure = net >= FEWEST and _more(one["lost"], one["rows"], LOSS + one["won"] / one["rows"], alpha)
            (reasons if sure else unclear).append(text)
    return reasons, unclear


def _more(found: int, rows: int, rate: float, alpha: float) -> bool:
    """Tell whether so many of the rows are more than a true rate explains."""
    return bool(stats.binomtest(found, rows, rate, alternative="greater").pvalue <= alpha)


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
