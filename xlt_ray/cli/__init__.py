"""The `xlt` command: parsing and printing only. Every verb imports what it needs when it is called."""

from __future__ import annotations

import errno
import os
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from xlt_ray import errors
from xlt_ray.cli import lexicon, listings, models, runs, search, serving, techniques


def _masked(text: str) -> str:
    from xlt_ray.config.masking import masked  # late: `xlt --help` needs no configuration

    return masked(text)


class Commands(TyperGroup):
    """Turns what went wrong in any verb into a message and an exit code: 2 bad input, 130 interrupted, 1 the rest."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was asked for."""
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own progress is shown instead
        usual, warnings.formatwarning = warnings.formatwarning, lambda message, *place: _masked(f"warning: {message}\n")
        try:
            return super().invoke(ctx)
        except (errors.InputError, errors.TrainingError, errors.RegistryError, errors.ServingError) as error:
            typer.echo(_masked(f"error: {error}"), err=True)
            raise typer.Exit(2 if isinstance(error, errors.InputError) else 1) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            place = f"{error.filename}: " if error.filename else ""
            typer.echo(_masked(f"error: {place}the disk is full; free space and run the same command again"), err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command resumes from what is done", err=True)
            raise typer.Exit(130) from None
        finally:
            warnings.formatwarning = usual


app = typer.Typer(
    name="xlt",
    cls=Commands,
    help="Distributed cross-lingual transfer on Ray: labels in a few languages in, a measured model for many out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    *(runs.train, runs.check, runs.evaluate, runs.report, runs.compare),
    *(search.tune, search.rank_sources, search.retrieve, search.geometry, runs.sync),
    *(listings.catalogue, listings.languages),
    *(models.promote, serving.predict, serving.serve, serving.rollout, serving.rollback, serving.challenge),
    *(serving.key, techniques.adapt, techniques.few_shot),
):
    app.command()(verb)
app.add_typer(lexicon.app)


def main() -> None:
    """Run the `xlt` command."""
    app()
