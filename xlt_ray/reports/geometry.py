"""Draw what `xlt geometry` measures: figures over layers, gaps over disagreement, and texts on a plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from xlt_ray.evaluation import groups
from xlt_ray.languages import codes
from xlt_ray.reports.plots import INK, SCRIPTS, STYLE, colour_of, plain

MEASURES = {  # of a layer: title, and whether it is a share
    "cka": ("CKA, debiased", False),
    "forward": ("found in the pivot, %", True),
    "backward": ("found from the pivot, %", True),
    "information": ("information, nats at least", False),
    "language_probe": ("language recognised, %", True),
    "cosine": ("cosine of random texts", False),
    "dimensions": ("dimensions in use", False),
}
NAMES = {groups.SEEN: "seen in pre-training", groups.UNSEEN: "unseen", groups.ALL: "all languages"}
CROSSED = 40  # languages up to which their intervals are drawn
MANY = (*SCRIPTS.values(), "#d6604d", "#4d4d4d", "#8c6d31")


class Cloud(NamedTuple):
    """Texts on a plane: points (rows, 2), the language of each, and the label that the run gives it."""

    points: np.ndarray
    languages: np.ndarray
    answers: np.ndarray


def over_layers(means: pd.DataFrame) -> Figure:
    """Draw the mean of every measure over layers, seen and unseen languages apart; dashed is the most there can be."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.9), layout="constrained")
        for axes, (name, (title, share)) in zip(figure.subplots(2, 4).flat, MEASURES.items(), strict=False):
            for (group, rows), colour in zip(means.groupby("group"), SCRIPTS.values(), strict=False):
                at = rows.index.get_level_values("layer")
                axes.plot(at, rows[name], color=colour, marker="o", markersize=3.5, label=NAMES[str(group)])
            if name == "information":
                most = means["information_most"].groupby("layer").mean()
                axes.plot(most.index, most, color=INK, linewidth=0.8, linestyle="--")
            axes.set_title(title, loc="left", color=INK, fontsize=8.5)
            axes.set_xticks(sorted({*means.index.get_level_values("layer")}))
            if share:
                axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))
            low, high = axes.get_ylim()
            axes.set_ylim(min(0, low), max(1.04, high) if share or name in ("cka", "cosine") else high)
            plain(axes)
        rest = figure.axes[len(MEASURES)]
        rest.set_axis_off()
        rest.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, labelcolor=INK, loc="center")
        figure.supxlabel("layer (0: the embeddings)", color=INK, fontsize=8.5)
    return figure


def over_disagreement(languages: pd.DataFrame) -> Figure:
    """Draw the gap of every language over its disagreement, by script; on and below the diagonal the bound holds."""
    known = languages[np.isfinite(languages["gap"])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 4.3), layout="constrained")
        axes = figure.subplots()
        most = max(0.05, float(known[["gap", "disagreement"]].max().max())) * 1.05
        axes.plot([0, most], [0, most], color=INK, linewidth=0.8, linestyle="--")
        for row in known.itertuples():
            spread: dict[str, Any] = {"color": INK, "linewidth": 0.5, "alpha": 0.4, "zorder": 1.5}
            if len(known) <= CROSSED:
                axes.plot([row.disagreement] * 2, [row.gap_low, row.gap_high], **spread)
                axes.plot([row.disagreement_low, row.disagreement_high], [row.gap] * 2, **spread)
            fill = "white" if row.seen is False else colour_of(row.language)
            axes.plot(row.disagreement, row.gap, "o", color=colour_of(row.language), markerfacecolor=fill, markersize=4)
        used = {colour_of(code) for code in known["language"]}
        dot: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 4}
        key = [Line2D([], [], color=colour, label=name, **dot) for name, colour in SCRIPTS.items() if colour in used]
        if (known["seen"] == False).any():  # noqa: E712 - None is not known
            key.append(Line2D([], [], color=INK, markerfacecolor="white", label="unseen in pre-training", **dot))
        figure.legend(handles=key, frameon=False, labelcolor=INK, fontsize=7.5, loc="outside lower center", ncols=3)
        axes.set_title("accuracy lost on test rows, points", loc="left", color=INK, fontsize=8.5)
        axes.set_xlabel("texts answered otherwise than their translations, no label read, %", color=INK)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, symbol=None, decimals=0))
        plain(axes)
    return figure


def on_a_plane(cloud: Cloud) -> Figure:
    """Draw texts on a plane twice: coloured by language, and by the label that the run gives them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        named = [codes.name(code) for code in cloud.languages]
        _points(left, cloud.points, np.array(named), list(dict.fromkeys(named)), "by language")
        _points(right, cloud.points, cloud.answers, sorted({*cloud.answers}), "by the label that the run gives")
    return figure


def _points(axes: Axes, points: np.ndarray, kinds: np.ndarray, names: Sequence[str], title: str) -> None:
    for name, colour in zip(names, MANY * (len(names) // len(MANY) + 1), strict=False):
        mine = points[kinds == name]
        axes.plot(mine[:, 0], mine[:, 1], ".", color=colour, markersize=2.5, alpha=0.6, label=name)
    axes.set_title(title, loc="left", color=INK, fontsize=8.5)
    plain(axes)
    axes.set(xticks=[], yticks=[])
    axes.legend(
        frameon=False, labelcolor=INK, fontsize=7.5, markerscale=3, loc="upper center", bbox_to_anchor=(0.5, -0.02),
        ncols=2,
    )  # fmt: skip


def write(folder: Path, means: pd.DataFrame, languages: pd.DataFrame, cloud: Cloud) -> list[Path]:
    """Draw all three into a folder; return the files. Without a gap there is no second."""
    drawn = {"layers": over_layers(means), "map": on_a_plane(cloud)}
    if np.isfinite(languages["gap"]).any():
        drawn["gap"] = over_disagreement(languages)
    files = []
    for name, figure in drawn.items():
        files.append(folder / f"{name}.png")
        with matplotlib.rc_context(STYLE):
            figure.savefig(files[-1], dpi=150, facecolor="white")
    return files
