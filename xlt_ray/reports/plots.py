"""Draw the figures of reports: the main metric per language, training per epoch, reliability, and accuracy over shots.

Only matplotlib's objects are used, never pyplot, so that no global state changes and threads do not interfere. A figure
becomes SVG text that takes the colour of the page around it, or files.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from xlt_ray.evaluation import groups as language_groups
from xlt_ray.evaluation.calibration import LEVELS, Reliability
from xlt_ray.evaluation.groups import FEW_SHOT, ROLES, SOURCE, ZERO_SHOT
from xlt_ray.evaluation.scores import LanguageScore, Scores, metric_title
from xlt_ray.languages import codes
from xlt_ray.languages.codes import family
from xlt_ray.supervision import shown

INK = "#1a1b1c"  # becomes currentColor inside a page, so it must be no other colour of a figure
SCRIPTS = {
    "Latin": "#3b7cc4",
    "Cyrillic": "#d99000",
    "Arabic": "#1f9e77",
    "Devanagari": "#b86aa8",
    "Other scripts": "#8a8f98",
}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "svg.fonttype": "none",  # text stays text: it can be searched, and a screen reader finds it
    "svg.hashsalt": "xlt_ray",
}
_ROW, _PANEL, _NAMES, _VALUES, _KEY = 0.18, 4.45, 1.87, 0.4, 0.17  # inches; _KEY: a row of the legend
_EDGE = 0.02 - _NAMES / (_PANEL - _NAMES - _VALUES)  # left end of a panel, in units of its axis
_DASHES = (0, (3, 2))
_ROWS_A_PANEL, _MOST_PANELS = 40, 3
_GROUP_FROM = 20  # with fewer zero-shot languages, one sorted list reads better than families

Row = LanguageScore | str  # a bar, or the title of a group


def colour_of(code: str) -> str:
    """Return the colour of a language's script."""
    found = codes.get(code)
    return SCRIPTS.get(found.script if found else "", SCRIPTS["Other scripts"])


def groups(scores: Scores) -> dict[str, list[LanguageScore]]:
    """Group languages for reading: sources, few-shot ones, then zero-shot ones by family, the largest first.

    Within a group they go from best to worst.
    """
    ranked = sorted(scores.languages.values(), key=lambda one: (-one.main.value, one.code))
    members = language_groups.of({one.code: one for one in ranked})
    source, few_shot, zero_shot = ([scores.languages[code] for code in members.get(role, ())] for role in ROLES)
    titles = {name: title[0].upper() + title[1:] for name, title in scores.titles().items()}
    found: dict[str, list[LanguageScore]] = {}
    for one in zero_shot:
        title = family(one.code) if len(zero_shot) >= _GROUP_FROM else titles[ZERO_SHOT]
        found.setdefault(title, []).append(one)
    last = "Families of one language here"
    single = [title for title, members in found.items() if len(members) == 1]
    if len(single) > 1:
        found[last] = [found.pop(title)[0] for title in single]
    by_size = sorted(found.items(), key=lambda item: (item[0] == last, -len(item[1]), item[0]))
    first = {titles[SOURCE]: source, titles[FEW_SHOT]: few_shot}
    return {title: members for title, members in first.items() if members} | dict(by_size)


def bars(scores: Scores) -> Figure:
    """Draw the main metric per language with its 95% interval, in as many columns as a page can show.

    A faint extension reaches from each bar to the best source's: the transfer gap.
    """
    panels = _panels(scores)
    best = max((one.main.value for one in scores.languages.values() if one.role == SOURCE), default=None)
    with matplotlib.rc_context(STYLE):
        key = _key(scores, best)
        columns = 3 * len(panels)
        rows_of_key = _KEY * math.ceil(len(key) / columns)
        head = rows_of_key + 0.35 + (_KEY if scores.supervision else 0)
        width, height = _PANEL * len(panels), head + _ROW * (max(map(len, panels)) + 0.8)
        figure = Figure(figsize=(width, height))
        figure.legend(
            handles=key, loc="upper left", ncols=columns, frameon=False, labelcolor=INK, handlelength=1.4, fontsize=8,
            columnspacing=1.2, borderaxespad=0.1, labelspacing=0.3,
        )  # fmt: skip
        if scores.supervision:
            told, at = f"targets: {shown(scores.supervision)}", (0.06 / width, 1 - (rows_of_key + 0.12) / height)
            figure.text(*at, told, color=INK, fontsize=8, va="top")
        for index, rows in enumerate(panels):
            span = _ROW * (len(rows) + 0.2)
            left, wide = _PANEL * index + _NAMES, _PANEL - _NAMES - _VALUES
            axes = figure.add_axes((left / width, (height - head - span) / height, wide / width, span / height))
            _frame(axes, len(rows), best, metric_title(scores.main))
            for position, row in enumerate(rows):
                _draw(axes, position, row, best)
    return figure


def _panels(scores: Scores) -> list[list[Row]]:
    listed = groups(scores)
    total = sum(len(members) + 1 for members in listed.values())
    count = min(_MOST_PANELS, math.ceil(total / _ROWS_A_PANEL))
    room = math.ceil(total / count) + 2  # a title is never left alone at a foot, and may be repeated at a head
    panels: list[list[Row]] = [[]]
    for title, members in listed.items():
        if len(panels[-1]) + 3 > room:
            panels.append([])
        panels[-1].append(title)
        for one in members:
            if len(panels[-1]) >= room:
                panels.append([f"{title}, continued"])
            panels[-1].append(one)
    return panels


def _frame(axes: Axes, rows: int, best: float | None, metric: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=None))
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=INK, labelsize=7.5, pad=1)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    axes.text(_EDGE, 1, f"{metric}, %", color=INK, fontsize=7.5, va="bottom", transform=axes.transAxes)
    if best is not None:
        axes.axvline(best, color=INK, linewidth=0.8, linestyle=_DASHES, zorder=1.5)


def _draw(axes: Axes, position: int, row: Row, best: float | None) -> None:
    if isinstance(row, str):
        axes.text(_EDGE, position, row, color=INK, weight="bold", va="center_baseline")
        return
    colour = colour_of(row.code)
    value, low, high = row.main
    axes.barh(position, value, height=0.72, color=colour)
    if best is not None and best > value:
        axes.barh(position, best - value, left=value, height=0.72, color=colour, alpha=0.22)
    axes.hlines(position, low, high, color=INK, linewidth=1.1)
    mark = " †" if row.seen is False else ""
    shown = codes.name(row.code).replace(" script)", ")")
    axes.text(-0.02, position, shown + mark, color=INK, ha="right", va="center_baseline")
    axes.text(1.02, position, f"{100 * value:.1f}", color=INK, va="center_baseline")


def _key(scores: Scores, best: float | None) -> list[Any]:
    used = {colour_of(code) for code in scores.languages}
    entries: list[Any] = [Patch(color=colour, label=script) for script, colour in SCRIPTS.items() if colour in used]
    entries.append(Line2D([], [], color=INK, linewidth=1.1, label="95% interval"))
    if best is not None:
        label = f"best source, {100 * best:.1f}"
        entries.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=_DASHES, label=label))
    if any(one.seen is False for one in scores.languages.values()):
        entries.append(Line2D([], [], color=INK, marker="$†$", linestyle="none", label="unseen in pre-training"))
    return entries


def curve(history: Sequence[Mapping[str, float]], metric: str) -> Figure | None:
    """Draw training loss and a metric on dev per epoch; None where there is no history, as after a probe."""
    loss = "train/epoch_loss" if any("train/epoch_loss" in row for row in history) else "train/loss"
    wanted = {
        "training loss": {"": (loss, 1)},
        f"{metric_title(metric)} on dev, %": {
            "source": (f"dev/{metric}", 100),
            "target (oracle)": (f"oracle_dev/{metric}", 100),
        },
    }
    panels = {}
    for title, lines in wanted.items():
        drawn = {
            label: [(row["epoch"], scale * row[key]) for row in history if "epoch" in row and key in row]
            for label, (key, scale) in lines.items()
        }
        panels[title] = {label: points for label, points in drawn.items() if points}
    panels = {title: drawn for title, drawn in panels.items() if drawn}
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.45 * len(panels), 1.9), layout="constrained")
        for axes, (title, drawn) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            _curves(axes, title, drawn)
    return figure


def _curves(axes: Axes, title: str, drawn: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for (label, points), colour, style in zip(drawn.items(), SCRIPTS.values(), ("-", "--", ":"), strict=False):
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, color=colour, label=label)
    axes.set_title(title, loc="left", color=INK, fontsize=8.5)
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    plain(axes)
    if any(drawn):
        axes.legend(frameon=False, labelcolor=INK, fontsize=7.5)


def reliability(groups: Mapping[str, Reliability]) -> Figure | None:
    """Draw the share of right answers over the confidence of each bin, a line a group; None where there is no group.

    On the dashed diagonal confidences are calibrated, below it they are too high. The larger a dot, the more of the
    group's rows lie in its bin. Guo et al. 2017, figure 1.
    """
    if not groups:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=_DASHES)
        for (label, table), colour in zip(groups.items(), SCRIPTS.values(), strict=False):
            filled = [(sure / rows / LEVELS, right / rows, rows) for rows, right, sure in table if rows]
            x, y, rows = zip(*filled, strict=True)
            axes.plot(x, y, color=colour, linewidth=1, label=label)
            axes.scatter(x, y, [4 + 80 * count / sum(rows) for count in rows], color=colour, zorder=3)
        axes.set_title("share of right answers, %", loc="left", color=INK, fontsize=8.5)
        axes.set_xlabel("confidence, %", color=INK)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, symbol=None))
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        plain(axes)
        figure.legend(frameon=False, labelcolor=INK, fontsize=7.5, loc="outside lower center", ncols=2)
    return figure


def heat_map(names: Sequence[str], values: np.ndarray, title: str) -> Figure:
    """Draw shares of every name with every other, (names, names), nan where there is none."""
    size, font = 2.2 + 0.075 * len(names), max(2.5, min(7.5, 400 / len(names) / 2))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.0, size + 0.7), max(3.4, size)), layout="constrained")
        axes = figure.subplots()
        drawn = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(colors=INK, length=0, labelsize=font)
        axes.spines[:].set_visible(False)
        axes.set_title(title, loc="left", color=INK, fontsize=8.5)
        bar = figure.colorbar(drawn, shrink=0.6, format=PercentFormatter(1, symbol=None))
        bar.ax.tick_params(colors=INK, labelsize=7.5)
        bar.outline.set_visible(False)
    return figure


def plain(axes: Axes) -> None:
    """Draw axes in ink, with a faint grid and no frame."""
    axes.tick_params(colors=INK, length=2, labelsize=7.5)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)


def few_shot(lines: Mapping[str, Mapping[int, Sequence[float]]], without: str = ZERO_SHOT) -> Figure:
    """Draw accuracy against shots a class, on a log axis: for each line shots -> the values of its draws.

    A line goes through the means of draws, a band from the smallest to the largest, a dot is one draw. Zero shots have
    no place on a log axis: they are drawn at its left, with a dashed line across to compare with; `without` is what
    they are called.
    """
    shots = sorted({k for values in lines.values() for k in values if k})
    apart = shots[0] / 2.2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        for (label, values), colour in zip(lines.items(), SCRIPTS.values(), strict=False):
            _shots(axes, label, values, colour, apart)
        zero = any(0 in values for values in lines.values())
        ticks = ([apart] if zero else []) + shots
        axes.set_xticks(ticks, [str(k) for k in ([0] if zero else []) + shots])
        axes.set_xticks([], minor=True)
        axes.set_xlim(ticks[0] / 1.25, shots[-1] * 1.15)
        if zero:
            axes.axvline(shots[0] / 1.5, color=INK, alpha=0.35, linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"labelled rows a class and language (0: {without})", color=INK)
        axes.set_title("few-shot accuracy on test, %: mean over languages", loc="left", color=INK, fontsize=8.5)
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None, decimals=None))
        plain(axes)
        figure.legend(frameon=False, labelcolor=INK, fontsize=7.5, loc="outside lower center", ncols=len(lines))
    return figure


def _shots(axes: Axes, label: str, values: Mapping[int, Sequence[float]], colour: str, apart: float) -> None:
    shots = sorted(k for k in values if k)
    means = [sum(values[k]) / len(values[k]) for k in shots]
    axes.plot(shots, means, color=colour, marker="o", markersize=3.5, label=label, zorder=3)
    low, high = [min(values[k]) for k in shots], [max(values[k]) for k in shots]
    axes.fill_between(shots, low, high, color=colour, alpha=0.16, linewidth=0)
    for k in shots:
        axes.plot([k] * len(values[k]), values[k], ".", color=colour, alpha=0.6, markersize=2.5, zorder=2.5)
    for zero in values.get(0, ()):
        axes.plot([apart, shots[-1]], [zero, zero], color=colour, linewidth=0.8, linestyle=_DASHES, alpha=0.7)
        axes.plot(apart, zero, color=colour, marker="D", markersize=4)


def svg(figure: Figure, identity: str, title: str) -> str:
    """Return a figure as SVG for inside a page: in its text's colour, ids of its own, a title for screen readers.

    It fills the width there is, within what keeps its text legible.
    """
    text = _svg(figure, transparent=True)
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = re.sub(r'\bid="', f'id="{identity}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{identity}-", text).replace(INK, "currentColor")
    width, height = figure.get_size_inches()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {72 * width:.2f} {72 * height:.2f}" aria-labelledby="{identity}-title" '
        f'style="min-width:{72 * width:.0f}px;max-width:{140 * width:.0f}px">'
        f'<title id="{identity}-title">{escape(title)}</title>{text}'
    )


def save(figure: Figure, folder: Path, stem: str) -> dict[str, Path]:
    """Write a figure as SVG and PNG files on white; file name -> path."""
    files = {f"{stem}.{suffix}": folder / f"{stem}.{suffix}" for suffix in ("svg", "png")}
    files[f"{stem}.svg"].write_text(_svg(figure, facecolor="white"), encoding="utf-8")
    with matplotlib.rc_context(STYLE):
        figure.savefig(files[f"{stem}.png"], dpi=160, facecolor="white")
    return files


def _svg(figure: Figure, **options: Any) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no date: the same scores give the same file
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=nothing, **options)
    return buffer.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")
