"""Move an alias to a run that passed the gate: the verb promote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from xlt_ray.cli import progress
from xlt_ray.cli.runs import output


def promote(
    run: Annotated[str, typer.Argument(help="folder of a finished run, or models:/NAME/VERSION")],
    alias: Annotated[str, typer.Option(help="alias to move to it")] = "champion",
    name: Annotated[str | None, typer.Option(help="registered model; default: the run's own")] = None,
    languages: Annotated[
        str | None,
        typer.Option(help="served languages, as de,sw; default: all the present version was measured in"),
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, max=100, help="points a served language may fall by")] = 2.0,
    strict: Annotated[bool, typer.Option("--strict", help="also refuse falls that may be chance")] = False,
    force: Annotated[bool, typer.Option("--force", help="promote whatever speaks against it; recorded")] = False,
    texts: Annotated[
        Path | None, typer.Option(help="texts, one a line, to check the model on where the corpus is gone")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="test rows a language to check the artefact on; default: all")
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(help="tracking server; default: the run's own. Another is sent all of the run first"),
    ] = None,
    cache: Annotated[Path | None, output("folder for fetched models, if not the usual one")] = None,
) -> None:
    """Hold a run against the model in service, make what it is served from, try it, and only then move the alias."""
    from xlt_ray.evaluation.paired.gate import Rules
    from xlt_ray.registry import promotion
    from xlt_ray.registry.publish import CheckRows

    console = Console(highlight=False)
    served = tuple(code.strip() for code in (languages or "").split(",") if code.strip())
    rules = Rules(served, tolerance / 100, strict, force)
    address, checked_on = promotion.Address(alias, name, uri), CheckRows(texts, rows)
    with progress.shown(console) as on_event:
        found = promotion.promote(run, address, rules, checked_on, cache, on_event)
    _print_outcome(console, found)
    if not found.promoted:
        raise typer.Exit(1)


def _print_outcome(console: Console, found: Any) -> None:
    from xlt_ray.evaluation.scores import metric_title

    if found.gate is not None:
        console.print(_table(found.gate, found.previous, found.version))
        unclear = "  [yellow]unclear[/]: chance explains so small a fall" if found.gate.unclear else ""
        metric = metric_title(found.gate.metric)
        console.print(
            f"\nmean {metric} over the served languages  {100 * found.gate.difference:+.2f} points "
            f"\\[{100 * found.gate.low:z.2f}, {100 * found.gate.high:z.2f}]{unclear}",
            soft_wrap=True,
        )
        console.print(
            "The test rows were asked once, after all other choices. Each promotion that they decide wears them out a "
            "little: who promotes often on one test set should renew it.",
            soft_wrap=True,
        )
        if any(row.verdict == "unclear" for row in found.gate.rows):
            far = f"{100 * found.gate.tolerance:g} points"
            console.print(f"[yellow]unclear[/]: falls by more than {far}, which may be chance; --strict refuses it")
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    for reason in found.reasons:
        console.print(f"{'overruled' if found.promoted else 'refused'}: {reason}", soft_wrap=True, markup=False)
    address = f"models:/{found.version.name}@{found.alias}"
    if not found.promoted:
        where = f"version {found.present}" if found.present else "nothing"
        console.print(f"{address} still means {where}; version {found.version.version} stays registered")
        return
    if found.artefact.precisions:
        served, *others = found.artefact.precisions
        also = f", {', '.join(others)} on demand" if others else ""
        console.print(f"artefact     served in {served}{also}; {_checked(found.artefact.checks)}", soft_wrap=True)
    else:
        console.print("bundle       served as it is; fetched back, it answers as before", soft_wrap=True)
    if found.present == found.version.version:
        console.print(f"{address} means version {found.present}, as it did", soft_wrap=True)
        return
    before = f" instead of version {found.present}" if found.present else ""
    console.print(f"{address} now means version {found.version.version}{before}", soft_wrap=True)


def _checked(checks: Any) -> str:
    from xlt_ray.registry.publish import agrees

    return ", ".join(agrees(name, one) for name, one in checks.items()) or "not checked"


def _table(gate: Any, champion: Any, candidate: Any) -> Table:
    from xlt_ray.languages import codes
    from xlt_ray.reports.page import terminal_table

    heads = ("rows", f"v{champion.version}", f"v{candidate.version}", "change", "95% interval")
    table = terminal_table("", ("language", "code"), heads)
    table.add_column("", no_wrap=True)
    colours = {"falls": "red", "lost": "red", "unclear": "yellow"}
    ranked = sorted(gate.rows, key=lambda row: (row.difference is not None, row.difference or 0.0, row.code))
    for row in ranked:
        figures = ["-" if one is None else f"{100 * one:.1f}" for one in (row.champion, row.candidate)]
        interval = "-" if row.low is None else f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
        change = "-" if row.difference is None else f"{100 * row.difference:+.1f}"
        verdict = row.verdict if row.verdict not in colours else f"[{colours[row.verdict]}]{row.verdict}[/]"
        table.add_row(codes.name(row.code), row.code, str(row.rows), *figures, change, f"\\{interval}", verdict)
    return table
