"""The `xlt` command: parsing and printing only. Every verb imports what it needs when it is called."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from xlt_ray.cli import lexicon, serving, techniques
from xlt_ray.cli.serving import UNSENT
from xlt_ray.config.masking import masked

app = typer.Typer(
    name="xlt",
    help="Distributed cross-lingual transfer on Ray: labels in a few languages in, a measured model for many out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Config = Annotated[str, typer.Argument(help="YAML file; ready ones are under jobs/configs/")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as mixture.alpha=0.5")]
Folder = Annotated[Path, typer.Argument(help="folder of a bundle, or of a run that holds one")]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what went wrong into a message and an exit code: 2 bad input, 130 interrupted, 1 anything else."""
    from xlt_ray.errors import InputError, RegistryError, TrainingError

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own progress is shown instead
    usual, warnings.formatwarning = warnings.formatwarning, lambda message, *place: masked(f"warning: {message}\n")
    try:
        yield
    except InputError as error:
        typer.echo(masked(f"error: {error}"), err=True)
        raise typer.Exit(2) from None
    except (TrainingError, RegistryError) as error:
        typer.echo(masked(f"error: {error}"), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from what is done", err=True)
        raise typer.Exit(130) from None
    finally:
        warnings.formatwarning = usual


def _experiment(config: str, overrides: list[str] | None) -> Any:
    from xlt_ray import config as configuration

    return configuration.load(config, overrides or ())


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print configuration, mixture and resources, then stop")
    ] = False,
) -> None:
    """Train, measure every language, record, report and bundle. The same command goes on after any interruption.

    Exit codes: 0 all is done; 3 the run is finished but MLflow has not all of it yet, see `xlt sync`; 2 the
    configuration is refused; 1 the work stopped; 130 interrupted.
    """
    from rich.console import Console

    with _told():
        experiment = _experiment(config, overrides)
        if dry_run:
            from xlt_ray.cli import listings

            listings.plan(experiment)
            return
        from xlt_ray.cli import progress
        from xlt_ray.reports import report
        from xlt_ray.runs import run

        console = Console(highlight=False)
        with progress.shown(console) as on_event:
            outcome = run.run(experiment, on_event)
        console.print(report.table(outcome.scores, experiment))
        if outcome.repeated:
            console.print(
                "This run was finished before; change the seed or the name, or delete its folder, to train again."
            )
        for name in ("report.html", "bundle"):
            console.print(f"{name:<12} {outcome.folder.shown}/{name}", soft_wrap=True)
        _print_tracking(console, experiment, outcome)


def _print_tracking(console: Any, experiment: Any, outcome: Any) -> None:
    from xlt_ray.tracking.outbox import FILE, reason

    if outcome.unsent:
        why = next(filter(None, (reason(file.parent) for file in outcome.folder.local.rglob(FILE))), "no time was left")
        console.print(
            f"tracking     {outcome.unsent} records are not sent and are kept ({why}); "
            f"`xlt sync {outcome.folder.local}` sends them",
            soft_wrap=True,
            markup=False,
        )
        raise typer.Exit(UNSENT)
    if experiment.tracking.uri != "off":
        console.print(
            f"tracking     {masked(experiment.tracking.uri)}, experiment {experiment.tracking.experiment}",
            soft_wrap=True,
        )


@app.command()
def check(config: Config, overrides: Overrides = None) -> None:
    """Check a configuration and its corpus and list every fault, without starting Ray."""
    with _told():
        from xlt_ray.training.checks import prepare

        prepared = prepare(_experiment(config, overrides))
        rows = sum(share.rows for share in prepared.mixture)
        few = f", {len(prepared.few_shot)} few-shot" if prepared.few_shot else ""
        typer.echo(
            f"sound: {len(prepared.experiment.sources)} sources{few} with {rows} train rows, "
            f"{len(prepared.corpus.labels)} labels, {len(prepared.measured)} languages to measure, "
            f"{len(prepared.zero_shot)} of them zero-shot"
        )


@app.command()
def evaluate(
    folder: Folder,
    config: Annotated[str | None, typer.Option(help="YAML with another corpus; default: the bundle's own")] = None,
    overrides: Overrides = None,
    by_class: Annotated[
        list[str] | None, typer.Option("--report", help="language whose per-class table alone to print")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="measure all languages and write the scores as JSON")] = None,
) -> None:
    """Measure a bundle on the test split of a corpus, language by language.

    With --report alone the answer is what the bundle's own run measured, where the bundle holds that.
    """
    with _told():
        from rich.console import Console

        from xlt_ray.cli import progress
        from xlt_ray.config import build
        from xlt_ray.inference import bundle
        from xlt_ray.languages import codes as language_codes
        from xlt_ray.registry import fetch
        from xlt_ray.reports import report
        from xlt_ray.runs import measure

        console, bundle_folder = Console(highlight=False), fetch.bundle_in(folder)
        codes = [language_codes.resolve(code) for code in by_class or ()]
        alone = bool(codes) and out is None
        scores = measure.kept(bundle_folder, codes) if alone and config is None and not overrides else None
        if scores is not None:
            console.print(
                f"as the finished run measured it; `xlt evaluate {folder}` measures the bundle again", soft_wrap=True
            )
        else:
            with progress.shown(console) as on_event:
                model = bundle.load(bundle_folder)
                own = model.experiment.model_dump(mode="json")
                changes = overrides or ()
                experiment = _experiment(config, overrides) if config else build(own, changes, place=str(bundle_folder))
                scores = measure.measure(model, experiment, on_event, codes, alone)
            if not alone:
                console.print(report.table(scores, experiment))
        for code in codes:
            console.print(*_classes(scores, code), sep="\n", soft_wrap=True)
        if out is not None:
            out.write_text(scores.to_json(), encoding="utf-8")


def _classes(scores: Any, code: str) -> tuple[Any, Any]:
    from rich.table import Table
    from rich.text import Text

    from xlt_ray.evaluation import metrics

    one = scores.languages[code]
    interval = f"[{100 * one.accuracy_low:.1f}, {100 * one.accuracy_high:.1f}]"
    head = f"\n{code} ({one.role}): accuracy {100 * one.accuracy:.1f} {interval}, macro-F1 {100 * one.macro_f1:.1f}"
    table = Table("label", "precision", "recall", "F1", "rows")
    for row in metrics.classification_report(one, scores.labels):
        table.add_row(
            row["label"], *(f"{100 * row[k]:.1f}" for k in ("precision", "recall", "f1")), str(row["support"])
        )
    return Text(head), table


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="folder of a finished run")]) -> None:
    """Write a finished run's report again from its scores, and print its table."""
    with _told():
        from rich.console import Console

        from xlt_ray.reports import report as reports
        from xlt_ray.runs import measure

        scores, experiment, files = measure.report_again(folder)
        Console(highlight=False).print(reports.table(scores, experiment))
        typer.echo(files["report.html"])


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="folder of a finished run")],
    second: Annotated[Path, typer.Argument(help="folder of a finished run on the same test rows")],
) -> None:
    """Say whether one run is better than another: paired bootstrap over the rows both predicted."""
    with _told():
        from rich.console import Console

        from xlt_ray.runs import measure

        console = Console(highlight=False)
        for group, found in measure.compare_runs(first, second).items():
            console.print(
                f"{group} ({found.languages}): {100 * found.difference:+.1f} points "
                f"[{100 * found.low:.1f}, {100 * found.high:.1f}], p {_shown(found.p_value)}"
            )
            if group == "all":
                ranked = sorted(found.per_language.items(), key=lambda item: item[1])
                extremes = ranked if len(ranked) <= 10 else ranked[:5] + ranked[-5:]
                console.print("  " + "  ".join(f"{code} {100 * gain:+.1f}" for code, gain in extremes), soft_wrap=True)


def _shown(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


@app.command()
def tune(
    config: Annotated[str, typer.Argument(help="YAML file with a section `search`; see jobs/configs/search_*.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as search.searcher=random")
    ] = None,
) -> None:
    """Search the mix of sources that serves the targets best, retrain it, and say how sure that is.

    Exit codes are those of `xlt train`.
    """
    with _told():
        from rich.console import Console

        from xlt_ray.search import space

        search = space.load(config, overrides or ())
        from xlt_ray.cli import progress
        from xlt_ray.search import search as searching
        from xlt_ray.search.report import page

        console = Console(highlight=False)
        with progress.shown(console) as on_event:
            found = searching.run(search, on_event)
        console.print(page.table(found.findings))
        for name in ("search.html", "chosen.yaml"):
            console.print(f"{name:<12} {found.folder.shown}/{name}", soft_wrap=True)
        _print_tracking(console, search.base, found)


@app.command("rank-sources")
def rank_sources(
    config: Config,
    overrides: Overrides = None,
    mix: Annotated[int | None, typer.Option(min=1, help="also choose so many sources that go well together")] = None,
) -> None:
    """Rank the sources of a configuration, or of a search, for its targets by likeness alone: no label is used."""
    with _told():
        from rich.console import Console

        from xlt_ray.cli import progress
        from xlt_ray.search import similarity

        with progress.shown(Console(stderr=True, highlight=False)) as on_event:
            ranking = similarity.rank_file(config, overrides or [], on_event)
        Console(highlight=False).print(similarity.table(ranking))
        if mix:
            typer.echo("\n" + similarity.mix_lines(ranking, mix))


@app.command()
def catalogue() -> None:
    """List what a configuration can name: corpora, training methods, encoders, and every key with its default."""
    from serve.settings import ServeArgs
    from xlt_ray.cli import listings

    listings.catalogue(ServeArgs)


@app.command()
def languages(
    codes: Annotated[list[str] | None, typer.Argument(help="codes of any common kind; default: all")] = None,
) -> None:
    """Show how language codes are read, and what is known of each language."""
    with _told():
        from xlt_ray.cli import listings

        listings.languages(codes or [])


@app.command()
def sync(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="folders of runs, or folders that hold them; default: runs")
    ] = None,
    uri: Annotated[str | None, typer.Option(help="tracking server to send to instead of the configured one")] = None,
    experiment: Annotated[
        str | None, typer.Option(help="experiment to send to, as where the own one is deleted")
    ] = None,
    give_up: Annotated[bool, typer.Option("--give-up", help="forget the records that the server refuses")] = False,
) -> None:
    """Send to MLflow what could not be sent while its server was slow or down; exit code 1 while something is left."""
    with _told():
        from xlt_ray.errors import InputError
        from xlt_ray.tracking import courier

        if missing := [str(folder) for folder in folders or () if not folder.exists()]:
            raise InputError(f"{', '.join(missing)}: no such folder; give that of a run, or one that holds runs")
        left = courier.sync(folders or [Path("runs")], uri, typer.echo, experiment, give_up)
        if left:
            typer.echo(f"{left} records are still not sent; they are kept", err=True)
            raise typer.Exit(1)


serving.register(app, _told)
lexicon.register(app, _told)
techniques.register(app, _told)


def main() -> None:
    """Run the `xlt` command."""
    app()
