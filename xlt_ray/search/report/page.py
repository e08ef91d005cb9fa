"""Report what a search found: tables for the terminal, a self-contained page, every trial, and the choice as a file.

The page answers one question first: which mix, how good, and how sure is that. The search's own scores are not of test
and the best of many, so the answer comes from the retrained runs wherever there are any.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from xlt_ray import config
from xlt_ray.config.masking import masked
from xlt_ray.evaluation.groups import GROUPS, SOURCE, ZERO_SHOT
from xlt_ray.evaluation.scores import Scores, metric_title
from xlt_ray.languages import codes as language_codes
from xlt_ray.reports import plots
from xlt_ray.reports.page import render
from xlt_ray.search.findings import Findings, Retrained, importance, shortlist
from xlt_ray.search.report import figures, summary
from xlt_ray.search.report.figures import KINDS, scored, short
from xlt_ray.search.selection import CHOSEN, RULES, Tried
from xlt_ray.search.space import describe

FINE_TUNED, PROBES = 10, 5  # at most so many in the terminal
PICTURES = {
    "cost": "Objective of every trial against wall-clock time, and the best so far",
    "alpha": "Objective against mixture.alpha, with means and their 95% intervals",
    "importance": "Difference of the objective with each language in the mix, with 95% intervals",
    "heat": "Dev scores of the best mixes in each language",
}


def table(findings: Findings) -> Group:
    """Return the findings as text and tables for a terminal at least 80 columns wide, plain in a pipe."""
    names = ((three, language_codes.name(code)) for code, three in short(findings.search.pool).items())
    key = ", ".join(f"{three} {name}" for three, name in names if three != name)
    parts: list[Any] = [
        _mixes(findings),
        Text(f"\nchosen: {summary.short_name(findings.chosen.point, findings)}"),
        Text(summary.optimism(findings)),
        Text(f"The pool: {key}." if key else ""),
    ]
    front = summary.pareto(findings)
    if front:
        title = f"\nPareto front: no other mix is as good in all objectives and better in one{summary.oracle(findings)}"
        parts += [Text(title), *(Text(_line(one, findings)) for one in front)]
    if findings.retrained:
        parts += [Text(""), _retrained(findings)]
        parts += [Text(""), _differences(findings)] if findings.comparisons else []
    if findings.rules:
        parts += [Text(""), _rules(findings)]
    return Group(*parts, Text(""), *(Text(sentence) for sentence in summary.remarks(findings)))


_words = partial(Column, overflow="fold")
_number = partial(Column, no_wrap=True, justify="right")


def _titled(title: str, columns: Iterable[Column], rows: Iterable[Sequence[Any]]) -> Group:
    grid = Table(*columns, box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for row in rows:
        grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return Group(Text(title), grid)


def _mixes(findings: Findings) -> Group:
    first, *others = findings.search.settings.selection.objectives
    columns = [
        *(_words("mix", min_width=16), Column("fidelity", no_wrap=True), Column("epochs", no_wrap=True)),
        *map(_number, (first, "95% interval", *others)),
        Column("worst language", no_wrap=True, max_width=22),
    ]
    rows = []
    for one in shortlist(findings.judge, findings.tried, FINE_TUNED, PROBES):
        facts = summary.trial(one, findings)
        value, *more = [_percent(value) for value in facts["values"].values()]
        interval = f"[{100 * one.low:4.1f}, {100 * one.high:4.1f}]"
        name, least = facts["worst"]
        worst = Text(f"{100 * least:.1f} {name}", no_wrap=True, overflow="ellipsis")
        rows.append((facts["short"], facts["fidelity"], facts["epochs"], value, interval, *more, worst))
    return _titled(f"{findings.search.base.name}: {scored(findings)}, in %", columns, rows)


def _retrained(findings: Findings) -> Group:
    seeds = len(findings.retrained[0].scores)
    measured = f"mean of {seeds} new seeds (least to most)" if seeds > 1 else "one new seed"
    title = f"Retrained, test {metric_title(findings.search.metric)} in %, {measured}{summary.oracle(findings)}"
    groups, rows = summary.groups(findings), []
    for one in findings.retrained:
        cells = []
        for key in groups:
            low, high = summary.spread(one, key)
            over = f" ({_percent(low)} to {_percent(high)})" if seeds > 1 else ""
            cells.append(_percent(one.mean(f"{findings.search.metric}/{key}")) + over)
        rows.append((one.name, *cells))
    return _titled(
        title, [_words("model"), *map(_number, (summary.titled(name, findings) for name in groups.values()))], rows
    )


def _differences(findings: Findings) -> Group:
    title = f"Chosen less baseline on the same test rows, in points{summary.oracle(findings)}"
    headings, rows = ("n", "difference", "95% interval", "p", "by seed"), []
    for name, group, one, seeds in summary.differences(findings):
        interval = f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
        by_seed = f"{100 * seeds[0]:+.1f} to {100 * seeds[1]:+.1f}" if seeds else ""
        numbers = (str(one.languages), f"{100 * one.difference:+.1f}", interval, summary.probability(one), by_seed)
        rows.append((name, summary.titled(group, findings), *numbers))
    return _titled(title, [_words("baseline"), _words("languages"), *map(_number, headings)], rows)


def _rules(findings: Findings) -> Group:
    kinds = " and ".join(sorted({KINDS[one.choice.fidelity] for one in findings.rules}))
    title = f"What each rule would have chosen ({kinds} mixes), scores by every rule in %"
    rules = summary.rule_columns(findings)
    headings = [summary.RULE_NAMES[rule].replace("held_out_sources", "held out") for rule in rules]
    rows = []
    for one in findings.rules:
        values = [_percent(one.values.get(rule)) for rule in rules]
        rows.append((summary.RULE_NAMES[one.rule], summary.short_name(one.choice.point, findings), *values))
    return _titled(title, [_words("rule"), _words("its choice"), *map(_number, headings)], rows)


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _line(one: Tried, findings: Findings) -> str:
    facts = summary.trial(one, findings)
    values = ", ".join(f"{objective} {_percent(value)}" for objective, value in facts["values"].items())
    return f"  {facts['short']}: {values}"


def write(folder: str | Path, findings: Findings) -> dict[str, Path]:
    """Write search.html, search.tsv, chosen.yaml and the pictures; return file name -> path.

    chosen.yaml is an experiment for `xlt train`, with the search's own seed. search.tsv has one trial a row, fractions
    from 0 to 1; columns of scores by target labels begin with `oracle_`. A picture without enough trials is left
    out.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = {name: target / name for name in ("search.html", "search.tsv", "chosen.yaml")}
    files["chosen.yaml"].write_text(_chosen(findings), encoding="utf-8")
    _write_trials(files["search.tsv"], findings)
    inline = {}
    for stem, title in PICTURES.items():
        figure = getattr(figures, stem)(findings)
        if figure is not None:
            files |= plots.save(figure, target, stem)
            inline[stem] = plots.svg(figure, stem, title + summary.oracle(findings))
    page = _page(findings) | {"pictures": inline}
    files["search.html"].write_text(render("search.html", page), encoding="utf-8")
    return files


def _chosen(findings: Findings) -> str:
    search, counts = findings.search, summary.counted(findings)
    settings = search.settings.selection
    lines = [
        "The mix that a search chose; `xlt train` runs it. How good it is and how sure that is: search.html beside it.",
        f"Chosen by rule {settings.languages} ({RULES[settings.languages]}), "
        f"{settings.objectives[0]} {metric_title(search.metric)},",
        f"among {counts['probe']} mixes probed and {counts['fine_tune']} fine-tuned, {counts['whole']} to the end.",
    ]
    return "".join(f"# {line}\n" for line in lines) + config.dump(search.experiment(findings.chosen.point))


def _write_trials(file: Path, findings: Findings) -> None:
    objectives = findings.search.settings.selection.objectives
    kind, pool = "oracle_dev" if findings.search.oracle else "dev", set(findings.search.pool)
    codes = sorted({code for one in findings.tried for code in one.accuracy}, key=lambda code: (code not in pool, code))
    heads = [f"{kind}/objective/{objective}" for objective in objectives]
    bounds = [f"{heads[0]}_low", f"{heads[0]}_high"]
    each = [f"{'dev' if code in pool else 'oracle_dev'}/{findings.search.metric}/{code}" for code in codes]
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["point", "mix", "fidelity", "epochs", "whole", *heads, *bounds, "seconds", "cost", *each])
        for one in findings.tried:
            values = [findings.judge.value(one, objective) for objective in objectives]
            ends = [one.low, one.high] if values[0] is not None else [None, None]
            facts = (json.dumps(dict(one.point)), describe(one.point), one.fidelity, one.epochs, one.whole)
            scores = (one.accuracy.get(code) for code in codes)
            writer.writerow([*facts, *values, *ends, one.seconds, one.cost, *scores])


def _page(findings: Findings) -> dict[str, Any]:
    search, chosen = findings.search, findings.chosen
    shown = shortlist(findings.judge, findings.tried, len(findings.tried), 20)
    facts = {key: value for key, value in chosen.point.items() if key not in ("sources", "mixture.weights")}
    weights = chosen.point.get("mixture.weights") or {}
    sources = search.sources(chosen.point)
    return {
        "search": search,
        "findings": findings,
        "oracle": summary.oracle(findings),
        "scored": scored(findings),
        "metric": metric_title(search.metric),
        "counts": summary.counted(findings),
        "chosen": summary.trial(chosen, findings),
        "sources": [(language_codes.name(code), weights.get(code)) for code in sources],
        "settings": {key: f"{value:.3g}" if isinstance(value, float) else str(value) for key, value in facts.items()},
        "cautions": summary.cautions(findings),
        "remarks": [masked(sentence) for sentence in summary.remarks(findings)],
        "optimism": summary.optimism(findings),
        "trials": [summary.trial(one, findings) for one in shown],
        "pareto": [summary.trial(one, findings) for one in summary.pareto(findings)],
        **_tested(findings),
        "rule_columns": [(rule, summary.RULE_NAMES[rule]) for rule in summary.rule_columns(findings)],
        "rules": [
            {"name": summary.RULE_NAMES[one.rule], "about": RULES[one.rule], "kind": KINDS[one.choice.fidelity],
             "mix": summary.full_name(one.choice.point, findings), "values": one.values}
            for one in findings.rules
        ],
        "effects": [
            (language_codes.name(code), one) for code, one in importance(findings.judge, findings.tried).items()
        ],
        "ranking": [(language_codes.name(str(row.get("code"))), row.get("score")) for row in findings.ranking],
        "configuration": config.dump(search.experiment(chosen.point)),
    }  # fmt: skip


def _tested(findings: Findings) -> dict[str, Any]:
    """Return the part of the page on retrained models, all of it measured on test."""
    shown, compared = summary.groups(findings), summary.differences(findings)
    chosen = next((one for one in findings.retrained if one.name == CHOSEN), None)
    metric = findings.search.metric
    return {
        "groups": shown,
        "titles": {name: summary.titled(GROUPS[name].title, findings) for name in shown.values()},
        "names": {name: summary.titled(name, findings) for name in GROUPS},
        "retrained": [
            {"name": one.name, "mix": summary.full_name(one.point, findings), "folders": one.folders,
             "seeds": len(one.scores),
             "scores": {key: (_known(one.mean(f"{metric}/{key}")), *summary.spread(one, key)) for key in shown}}
            for one in findings.retrained
        ],
        "bounds": chosen and _bounds(chosen.scores),
        "differences": [
            {"baseline": name, "group": group, "one": one, "p": summary.probability(one), "seeds": seeds}
            for name, group, one, seeds in compared
        ],
        "languages": _languages(findings, chosen) if chosen else [],
        "baselines": [name for name, by_group in findings.comparisons.items() if ZERO_SHOT in by_group],
    }  # fmt: skip


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _bounds(scores: tuple[Scores, ...]) -> tuple[float, float] | None:
    key = f"{scores[0].main}/{GROUPS[ZERO_SHOT].key}"
    there = [one.summary for one in scores if key in one.summary]
    return (min(one[f"{key}_low"] for one in there), max(one[f"{key}_high"] for one in there)) if there else None


def _languages(findings: Findings, chosen: Retrained) -> list[Mapping[str, Any]]:
    """Return a row a language: the choice's score on test, the mean over seeds, and its gain on each baseline's."""
    gains = [by_group[ZERO_SHOT].per_language for by_group in findings.comparisons.values() if ZERO_SHOT in by_group]
    rows = []
    for code, first in chosen.scores[0].languages.items():
        each = [one.languages[code].main.value for one in chosen.scores if code in one.languages]
        rows.append(
            {"name": language_codes.name(code), "code": code, "role": "source" if first.role == SOURCE else "target",
             "seen": "?" if first.seen is None else "yes" if first.seen else "no", "rows": first.support,
             "mean": sum(each) / len(each), "low": min(each), "high": max(each),
             "gains": [gain.get(code) for gain in gains]}
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row["role"] != "source", -row["mean"], row["name"]))
