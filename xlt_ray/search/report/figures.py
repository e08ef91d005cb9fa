"""Draw what a search found: its cost, the effect of alpha, the effect of each language, and the best mixes by language.

Objectives are in per cent, and never of test rows. Where target labels ranked the mixes every title states it. As in
`reports/plots.py`, only matplotlib's objects are used, and figures take the colour of the page around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import stats

from xlt_ray.evaluation.scores import metric_title
from xlt_ray.languages.codes import name
from xlt_ray.reports.plots import INK, SCRIPTS, STYLE
from xlt_ray.search import findings as search_findings
from xlt_ray.search import selection
from xlt_ray.search.findings import Findings
from xlt_ray.search.selection import Tried
from xlt_ray.search.space import Point, Search, describe

COLOURS = {"probe": SCRIPTS["Latin"], "fine_tune": SCRIPTS["Cyrillic"]}  # blue and orange: apart for every eye
KINDS = {"probe": "probe", "fine_tune": "fine-tuned"}
ORACLE = "oracle, an upper bound"
WHERE = {
    "sources": "dev {metric} over the mix's own languages",
    "held_out_sources": "{metric} over the pool's languages outside the mix",  # a probe's on dev and train rows
    "targets": "dev {metric} over the targets",
}
_TIMES: dict[float, str] = {
    **{0.1: "0.1 s", 0.3: "0.3 s", 1: "1 s", 3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min", 180: "3 min"},
    **{600: "10 min", 1800: "30 min", 3600: "1 h", 10800: "3 h", 36000: "10 h", 86400: "1 d", 259200: "3 d"},
    **{864000: "10 d", 2592000: "30 d"},
}
_SHADES = LinearSegmentedColormap.from_list("shades", ["#eef3fa", "#8fb4dd", "#3b7cc4", "#173f6d"])
_OWN = "#d96b00"  # outline of a mix's own sources: stands out from every shade of blue
_NUMBERED = 70  # columns up to which a cell is wide enough for its number
_ROWS = 12
_LONGEST = 46  # characters of a mix in the map
_FEW = 6  # values of alpha up to which each is averaged by itself
_GROUPS = 8  # else, of as many trials each


def short(pool: Sequence[str]) -> dict[str, str]:
    """Return each language's three letters, or its whole code where another of the pool has the same letters.

    >>> short(["zho_Hans", "zho_Hant", "swh_Latn"])
    {'zho_Hans': 'zho_Hans', 'zho_Hant': 'zho_Hant', 'swh_Latn': 'swh'}
    """
    letters = [code.split("_")[0] for code in pool]
    return {code: three if letters.count(three) == 1 else code for code, three in zip(pool, letters, strict=True)}


def mix(point: Point, search: Search, names: Mapping[str, str]) -> str:
    """Return a point in words, its languages by their `names`; the whole pool is not listed."""
    sources, weights = search.sources(point), point.get("mixture.weights") or {}
    shown = [names.get(code, code) for code in sources]
    if len(sources) == len(search.pool) > 3 and not weights:
        shown = [f"all {len(sources)} of the pool"]
    shown_weights = {names.get(code, code): weight for code, weight in weights.items() if code in sources}
    return describe({**point, "sources": shown, "mixture.weights": shown_weights})


def scored(findings: Findings) -> str:
    """Describe the first objective of the search in words, and that it is an oracle where it is one."""
    settings, eased = findings.search.settings.selection, findings.judge.difficulty
    where = WHERE[settings.languages].format(metric=metric_title(findings.search.metric))
    words = f"{settings.objectives[0]} {where}"
    if settings.languages == "held_out_sources" and eased:
        words += ", their difficulty taken off"
    return words + (f" ({ORACLE})" if findings.search.oracle else "")


def cost(findings: Findings) -> Figure:
    """Draw the objective of every trial against the wall clock, and the best so far of each fidelity.

    Trials stopped early are hollow and no best; the choice is ringed and has its 95% interval.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.5), layout="constrained")
        axes = figure.subplots()
        for fidelity in KINDS:
            _trials(axes, findings, fidelity)
        chosen, value = findings.chosen, findings.judge.value(findings.chosen)
        if value is not None:
            at, colour = max(chosen.seconds, 0.1), COLOURS[chosen.fidelity]
            axes.vlines(at, 100 * chosen.low, 100 * chosen.high, color=colour, linewidth=1.2)
            ring: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "linestyle": "none"}
            axes.plot(at, 100 * value, color=INK, label="chosen, 95% interval", zorder=5, **ring)
        _time(axes, [one.seconds for one in findings.tried])
        _frame(axes, f"{scored(findings)}, %", "wall-clock time since the search began")
        figure.legend(loc="outside lower center", ncols=4, frameon=False, labelcolor=INK, fontsize=8)
    return figure


def _trials(axes: Axes, findings: Findings, fidelity: str) -> None:
    judge, colour = findings.judge, COLOURS[fidelity]
    each = [one for one in findings.tried if one.fidelity == fidelity]
    timed = sorted((max(one.seconds, 0.1), value, one.whole) for one in each if (value := judge.value(one)) is not None)
    size = 9 if fidelity == "probe" else 26
    look: dict[str, Any] = {"s": size, "marker": "o" if fidelity == "probe" else "D", "linewidths": 0.9}
    for whole, face in ((True, colour), (False, "none")):
        points = [(at, 100 * value) for at, value, ended in timed if ended == whole]
        if points:
            faint = 0.45 if len(points) > 100 else 0.85
            look |= {"alpha": faint, "label": KINDS[fidelity] + ("" if whole else ", stopped early")}
            axes.scatter(*zip(*points, strict=True), facecolors=face, edgecolors=colour, **look)
    ended = [(at, 100 * value) for at, value, whole in timed if whole]
    if ended:
        at, values = (list(column) for column in zip(*ended, strict=True))
        best = np.maximum.accumulate([*values, values[-1]])
        last = max(findings.seconds, *(max(one.seconds, 0.1) for one in findings.tried))
        label = f"best so far, {KINDS[fidelity]}"
        axes.plot([*at, last], best, drawstyle="steps-post", color=colour, linewidth=1.6, label=label)


def _time(axes: Axes, seconds: Sequence[float]) -> None:
    low, high = max(min(seconds), 0.1) / 1.3, max(*seconds, 0.1) * 1.3
    low, high = (low, high) if high > 10 * low else (low / 2, max(high * 2, 10 * low))
    ticks = [at for at in _TIMES if low <= at <= high]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [_TIMES[at] for at in ticks])
    axes.set_xticks([], minor=True)


def _frame(axes: Axes, title: str, across: str, lines: Literal["both", "x"] = "both") -> None:
    figure: Any = axes.figure
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=8.5)  # at the edge, where a long one has room
    axes.grid(axis=lines, color=INK, alpha=0.12, linewidth=0.6)
    axes.set_xlabel(across, color=INK, fontsize=8)
    axes.tick_params(colors=INK, length=2, labelsize=7.5)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)


def alpha(findings: Findings) -> Figure | None:
    """Draw the objective against mixture.alpha at equal languages; None where alpha was not searched.

    What the languages of a mix, or their weights, explain (least squares) is subtracted from every score, since mixes
    differ in more than alpha; with too few trials for that the scores stay as they are, and the title does not say
    "at equal languages". Mixes of one language, where alpha does nothing, are left out. Means are of the trials at each
    alpha, or of groups of neighbours where it took many values, with 95% intervals (Student's t). They describe the
    mixes tried, on which the searcher decided.
    """
    found = _at_equal_languages(findings)
    if found is None:
        return None
    alphas, values, kind, adjusted = found
    colour = COLOURS[kind]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        axes = figure.subplots()
        axes.scatter(alphas, 100 * values, s=9, color=colour, alpha=0.4 if len(alphas) > 100 else 0.8, linewidths=0)
        groups = _groups(alphas)
        if len(alphas) >= 8 and groups:
            middle, mean = ([float(of[group].mean()) for group in groups] for of in (alphas, 100 * values))
            reach = [100 * stats.t.ppf(0.975, len(group) - 1) * stats.sem(values[group]) for group in groups]
            axes.errorbar(middle, mean, reach, color=INK, fmt="o-", markersize=4, linewidth=1.2)
        what = f"{KINDS[kind]}s" if kind == "probe" else "fine-tunings"
        across = f"mixture.alpha ({len(alphas)} {what}; 0: equal shares, 1: by corpus size)"
        _frame(axes, f"{scored(findings)}, %" + (", at equal languages" if adjusted else ""), across)
    return figure


def _at_equal_languages(findings: Findings) -> tuple[np.ndarray, np.ndarray, str, bool] | None:
    search, judge = findings.search, findings.judge
    if not search.varies("mixture.alpha"):
        return None
    probes = selection.probes(findings.tried)
    rows, alphas, values = [], [], []
    for one in probes or selection.whole_fine_tunings(findings.tried):
        sources, value = search.sources(one.point), judge.value(one)
        if value is not None and len(sources) > 1:
            rows.append([1.0, *search_findings.presence(search, one.point)])
            alphas.append(float(one.point.get("mixture.alpha", search.base.mixture.alpha)))
            values.append(value)
    if not values:
        return None
    x, y, design = np.array(alphas), np.array(values), np.array(rows)
    adjusted = bool(len(y) > 2 * np.linalg.matrix_rank(design))
    if adjusted:
        # alpha takes part in the regression, or its own effect would go to the languages it was drawn with
        whole = np.column_stack([design, x, x**2])
        languages = np.linalg.lstsq(whole, y, rcond=None)[0][: design.shape[1]]
        explained = design @ languages
        y = y - explained + explained.mean()
    return x, y, "probe" if probes else "fine_tune", adjusted


def _groups(alphas: np.ndarray) -> list[np.ndarray]:
    # the trials that are averaged together; one alone has no interval
    values = np.unique(alphas)
    few = [np.flatnonzero(alphas == value) for value in values]
    groups = few if len(values) <= _FEW else np.array_split(np.argsort(alphas, kind="stable"), _GROUPS)
    return [group for group in groups if len(group) > 1]


def importance(findings: Findings) -> Figure | None:
    """Draw `findings.importance`, in points; None where there were too few mixes to estimate it."""
    effects = search_findings.importance(findings.judge, findings.tried)
    if not effects:
        return None
    weighed = findings.search.varies("mixture.weights")
    probed = bool(selection.probes(findings.tried))
    colour = COLOURS["probe" if probed else "fine_tune"]
    digits = 1 if max(abs(one.value) for one in effects.values()) >= 0.01 else 2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.23 * len(effects) + 1.0), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
        for at, (_, one) in enumerate(effects.items()):
            axes.hlines(at, 100 * one.low, 100 * one.high, color=colour, linewidth=1.8)
            face = colour if one.low > 0 or one.high < 0 else "none"
            axes.plot(100 * one.value, at, "o", markersize=5, color=colour, markerfacecolor=face)
            value, place = f"{100 * one.value:+.{digits}f}".replace("-", "−"), axes.get_yaxis_transform()
            axes.text(1.015, at, value, transform=place, color=INK, va="center_baseline", fontsize=8)
        what = "a tenth of the weight on a language" if weighed else "a language in the mix"
        title = f"Objective with {what}, difference in points ({'probed' if probed else 'fine-tuned'} mixes)"
        across = "points, against the pool's average language at equal size of the mix; hollow: may be 0"
        _frame(axes, title + (f"; {ORACLE}" if findings.search.oracle else ""), across, "x")
        axes.set_ylim(len(effects) - 0.4, -0.6)
        axes.set_yticks(
            range(len(effects)), [f"{name(code)} ({one.mixes})" for code, one in effects.items()], parse_math=False
        )
        axes.tick_params(axis="y", length=0, labelsize=8)
    return figure


def heat(findings: Findings) -> Figure:
    """Draw dev scores of the best mixes (rows; fine-tuned ones first) in each language (columns; the pool first).

    Outlined cells are a mix's own sources, where training saw labels. Up to 70 columns, cells hold their number.
    """
    rows = search_findings.shortlist(findings.judge, findings.tried, _ROWS, _ROWS)[:_ROWS] or [findings.chosen]
    measured = {code for one in rows for code in one.accuracy}
    pool = [code for code in findings.search.pool if code in measured]
    targets = sorted(measured.difference(pool), key=lambda code: (name(code), code))
    columns = [*pool, *targets]
    centres = [at + (0.5 if at < len(pool) else 1.0) for at in range(len(columns))]  # half a cell before the targets
    low, high = _ends([value for one in rows for value in one.accuracy.values()])
    key = f"dev {metric_title(findings.search.metric)}, from {100 * low:.0f}% (light) to {100 * high:.0f}% (dark)"
    key += "; outlined: the mix's own sources" + (f"; right of the gap: targets, {ORACLE}" if targets else "")
    with matplotlib.rc_context(STYLE):
        across, numbered = centres[-1] + 0.5, len(columns) <= _NUMBERED
        figure = Figure(figsize=((0.25 if numbered else 0.12) * across, 0.24 * len(rows)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, across), ylim=(len(rows), 0))
        for row, one in enumerate(rows):
            own = set(findings.search.sources(one.point))
            for centre, code in zip(centres, columns, strict=True):
                if code in one.accuracy:
                    shade = (one.accuracy[code] - low) / (high - low)
                    number = f"{100 * one.accuracy[code]:.0f}" if numbered else ""
                    _cell(axes, (centre, row + 0.5), shade, number, outlined=code in own)
        _label_map(axes, centres, [_head(code, findings) for code in columns], [_label(one, findings) for one in rows])
        axes.set_xlabel(key, loc="right", color=INK, fontsize=7.5)
        _enclose(figure, axes)
    return figure


def _cell(axes: Axes, centre: tuple[float, float], shade: float, number: str, outlined: bool) -> None:
    x, y = centre
    axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=_SHADES(shade), linewidth=0))
    if outlined:
        axes.add_patch(Rectangle((x - 0.43, y - 0.43), 0.86, 0.86, fill=False, edgecolor=_OWN, linewidth=1.4))
    ink = "#ffffff" if shade > 0.6 else "#111111"  # not the page's colour: it stands on the cell's
    axes.text(x, y + 0.02, number, color=ink, ha="center", va="center", fontsize=6.5)


def _head(code: str, findings: Findings) -> str:
    known = short(findings.search.pool).get(code, name(code))
    return name(code) if known == name(code) else f"{name(code)} ({known})"


def _label(one: Tried, findings: Findings) -> str:
    kind = KINDS[one.fidelity] if one.whole else "stopped"
    text = mix(one.point, findings.search, short(findings.search.pool))
    return f"{text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip(' +.,') + '…'} · {kind}"


def _label_map(axes: Axes, centres: Sequence[float], heads: Sequence[str], labels: Sequence[str]) -> None:
    axes.set_xticks(centres, heads, rotation=90, parse_math=False)
    axes.set_yticks([row + 0.5 for row in range(len(labels))], labels, parse_math=False)
    axes.tick_params(length=0, colors=INK, labelsize=7.5, labeltop=True, labelbottom=False)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)


def _enclose(figure: Figure, axes: Axes) -> None:
    """Enlarge a figure that its axes fill until their labels fit; the axes keep their size in inches."""
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    # a tenth more than is needed here, because a page may show another font
    left, below, right, above = (0.05 + 1.1 * max(by, 0) for by in (-box.x0, -box.y0, box.x1 - width, box.y1 - height))
    whole, high = width + left + right, height + below + above
    figure.set_size_inches(whole, high)
    axes.set_position((left / whole, below / high, width / whole, height / high))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if max(values) > min(values) else (min(values) - 0.01, max(values) + 0.01)
