"""Verbs of single techniques: parsing and printing only, as in `cli`, which calls `register`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Told = Callable[[], contextlib.AbstractContextManager[None]]


def register(app: typer.Typer, told: Told) -> None:
    """Add the verbs to an application; `told` turns errors into messages and exit codes."""

    @app.command()
    def adapt(
        folder: Annotated[
            Path, typer.Argument(metavar="BUNDLE", help="folder of a bundle, or of a run that holds one")
        ],
        language: Annotated[str, typer.Option(help="the language to add, such as swh_Latn")],
        text: Annotated[Path, typer.Option(help="UTF-8 file of unlabelled text in it, one text a line")],
    ) -> None:
        """Teach a finished bundle the mean of one more language, where it was trained with the technique `centre`."""
        with told():
            from xlt_ray import adapt as adapting
            from xlt_ray import fetch

            found = adapting.adapt(fetch.bundle_in(folder), language, text)
            typer.echo(
                f"{found.language}: {'added' if found.new else 'replaced'}, the mean of {found.texts} texts; the "
                f"bundle knows {found.languages} languages now"
            )
