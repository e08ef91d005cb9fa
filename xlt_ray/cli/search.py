"""Choose the sources to train on: the verbs tune and rank-sources."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from xlt_ray.cli import progress
from xlt_ray.cli.runs import Config, Overrides, print_tracking


def tune(
    config: Annotated[str, typer.Argument(help="YAML file with a section `search`; see jobs/configs/search_*.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as search.searcher=random")
    ] = None,
) -> None:
    """Search the mix of sources that serves the targets best, retrain it, and report how sure that is.

    Exit codes are those of `xlt train`.
    """
    from xlt_ray.search import space

    search = space.load(config, overrides or ())
    from xlt_ray.search import search as searching
    from xlt_ray.search.report import page

    console = Console(highlight=False)
    with progress.shown(console) as on_event:
        found = searching.run(search, on_event)
    console.print(page.table(found.findings))
    for name in ("search.html", "chosen.yaml"):
        console.print(f"{name:<12} {found.folder.shown}/{name}", soft_wrap=True)
    print_tracking(console, search.base, found)


def rank_sources(
    config: Config,
    overrides: Overrides = None,
    mix: Annotated[int | None, typer.Option(min=1, help="also choose so many sources that go well together")] = None,
) -> None:
    """Rank the sources of a configuration, or of a search, for its targets by likeness alone: no label is used."""
    from xlt_ray.search import similarity

    with progress.shown(Console(stderr=True, highlight=False)) as on_event:
        ranking = similarity.rank_file(config, overrides or [], on_event)
    Console(highlight=False).print(similarity.table(ranking))
    if mix:
        typer.echo("\n" + similarity.mix_lines(ranking, mix))
