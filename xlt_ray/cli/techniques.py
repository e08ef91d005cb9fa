"""Adapt a bundle to one more language, and measure accuracy over shots: the verbs adapt and few-shot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xlt_ray.cli import progress
from xlt_ray.cli.runs import Config, output
from xlt_ray.errors import InputError


def adapt(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="folder of a bundle, or of a run that holds one")],
    language: Annotated[str, typer.Option(help="the language to add, such as swh_Latn")],
    text: Annotated[Path, typer.Option(help="UTF-8 file of unlabelled text in it, one text a line")],
    lexicon: Annotated[
        Path | None,
        typer.Option(help="table or FreeDict file from it into the language that the bundle reads texts in, if any"),
    ] = None,
) -> None:
    """Teach a finished bundle one more language, from text without labels and perhaps a dictionary."""
    from xlt_ray.inference import adapt as adapting
    from xlt_ray.registry import fetch

    found = adapting.adapt(fetch.bundle_in(folder), language, text, lexicon)
    typer.echo(
        f"{found.language}: {'added' if found.new else 'replaced'}, the mean of {found.texts} texts; the "
        f"bundle knows {found.languages} languages now; it reads this one as: {found.read}"
    )


def few_shot(
    config: Config,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="such as training.method=probe techniques=[centre]"),
    ] = None,
    shots: Annotated[
        str, typer.Option(help="labelled rows a class and target, several joined by commas")
    ] = "1,2,5,10,20,50,100",
    draws: Annotated[int, typer.Option(min=1, help="different draws of the shots, for each number of them")] = 5,
    out: Annotated[Path | None, output("folder for the results; default: one in the experiment's storage")] = None,
) -> None:
    """Measure how much labelled rows of the targets help: accuracy over shots, several draws of each.

    The same command resumes after any interruption.
    """
    from xlt_ray.config import load

    experiment, asked = load(config, overrides or ()), numbers_of(shots, "--shots")
    from xlt_ray.runs import sweep

    console = Console(highlight=False)
    with progress.shown(console) as on_event:
        found = sweep.sweep(experiment, asked, draws, out, on_event, console.print)
    console.print(sweep.table(found))
    for name in ("few_shot.tsv", "few_shot.png"):
        console.print(f"{name:<13} {found.folder.shown}/{name}", soft_wrap=True)


def numbers_of(text: str, option: str) -> list[int]:
    """Return the whole numbers that an option joins by commas; raise InputError where it holds something else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option}: {text!r}; give whole numbers joined by commas, such as 1,2,5,10") from None
