"""Train, check, measure and compare runs: the verbs train, check, evaluate, report, compare and sync."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xlt_ray.cli import listings, progress
from xlt_ray.errors import InputError
from xlt_ray.events import counting

UNSENT = 3  # exit code of what is done while MLflow has not all of it
Config = Annotated[str, typer.Argument(help="YAML file; ready ones are under jobs/configs/")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as mixture.alpha=0.5")]


def writable(out: Path, kind: str = "folder", option: str = "--out") -> Path:
    """Return the folder or file that an option names; raise InputError where it cannot be written. Nothing is made."""
    there = out
    try:
        there = next(one for one in (out, *out.absolute().parents) if one.is_symlink() or one.exists())
        with there.open("ab") if there == out and kind == "file" else tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        why = f"{there}: {error.strerror}"
        raise InputError(f"{option}: {out} cannot be used ({why}); give a {kind} that can be written") from None
    return out


def output(purpose: str, kind: str = "folder") -> Any:
    """Return an option that names what to write, and that is refused before any work where this is not `writable`."""

    def checked(option: typer.CallbackParam, out: Path | None) -> Path | None:
        return out and writable(out, kind, option.opts[0])

    return typer.Option(help=purpose, callback=checked)


def train(
    config: Config,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print configuration, mixture and resources, then stop")
    ] = False,
) -> None:
    """Train, measure every language, record, report and bundle. The same command resumes after any interruption.

    Exit codes: 0 all is done; 3 the run is finished but MLflow has not all of it yet, see `xlt sync`; 2 the
    configuration is refused; 1 the work stopped; 130 interrupted.
    """
    from xlt_ray.config import load

    experiment = load(config, overrides or ())
    if dry_run:
        listings.plan(experiment)
        return
    from xlt_ray.reports import figures, report
    from xlt_ray.runs import run

    console = Console(highlight=False)
    with progress.shown(console) as on_event:
        outcome = run.run(experiment, on_event)
    if outcome.measured is not None:
        console.print(report.table(outcome.scores, experiment))
    elif (found := figures.table(outcome.folder.local, f"{experiment.name}: an encoder, no task learned")) is not None:
        console.print(found, crop=False)
    if outcome.repeated:
        console.print(
            "This run was finished before; change the seed or the name, or delete its folder, to train again."
        )
    for name in ("report.html" if outcome.measured else figures.FILE, "bundle"):
        console.print(f"{name:<12} {outcome.folder.shown}/{name}", soft_wrap=True)
    print_tracking(console, experiment, outcome)


def print_tracking(console: Console, experiment: Any, outcome: Any) -> None:
    """Print where records of a run or a search went; exit with UNSENT where some are not sent."""
    from xlt_ray.config.masking import masked
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


def check(config: Config, overrides: Overrides = None) -> None:
    """Check a configuration and its corpus and list every fault, without starting Ray."""
    from xlt_ray.config import load
    from xlt_ray.runs import stages

    with progress.shown(Console(highlight=False)) as on_event:
        prepared = stages.plan(load(config, overrides or ())).check(counting(on_event, "prepare"))
    rows = sum(share.rows for share in prepared.mixture)
    if not prepared.experiment.training.labelled:
        typer.echo(f"sound: {len(prepared.mixture)} languages with {rows} texts, {prepared.updates} updates, no labels")
        return
    few = f", {len(prepared.few_shot)} few-shot" if prepared.few_shot else ""
    more = "".join(f", {sum(each.values())} of them by {name}" for name, each in prepared.added.items() if each)
    typer.echo(
        f"sound: {len(prepared.experiment.sources)} sources{few} with {rows} train rows{more}, "
        f"{len(prepared.corpus.labels)} labels, {len(prepared.measured)} languages to measure, "
        f"{listings.zero_shot(prepared)} of them zero-shot"
    )


def evaluate(
    folder: Annotated[Path, typer.Argument(help="folder of a bundle, or of a run that holds one")],
    config: Annotated[str | None, typer.Option(help="YAML with another corpus; default: the bundle's own")] = None,
    overrides: Overrides = None,
    by_class: Annotated[
        list[str] | None, typer.Option("--report", help="language whose per-class table alone to print")
    ] = None,
    out: Annotated[Path | None, output("measure all languages and write the scores as JSON", "file")] = None,
) -> None:
    """Measure a bundle on the test split of a corpus, language by language.

    With --report alone the answer is what the bundle's own run measured, where the bundle holds that.
    """
    from xlt_ray.config import load
    from xlt_ray.inference import bundle
    from xlt_ray.languages.codes import resolve
    from xlt_ray.registry import fetch
    from xlt_ray.reports import report
    from xlt_ray.runs import measure

    console, place = Console(highlight=False), fetch.bundle_in(folder)
    codes = [resolve(code) for code in by_class or ()]
    alone = bool(codes) and out is None
    scores = measure.kept(place, codes) if alone and config is None and not overrides else None
    if scores is not None:
        console.print(
            f"as the finished run measured it; `xlt evaluate {folder}` measures the bundle again", soft_wrap=True
        )
    else:
        with progress.shown(console) as on_event:
            model = bundle.load(place)
            changes = overrides or ()
            experiment = load(config, changes) if config else measure.changed(model.experiment, changes, str(place))
            scores = measure.measure(model, experiment, on_event, codes, alone)
        if not alone:
            console.print(report.table(scores, experiment))
    for code in codes:
        console.print(*_classes(scores, code), sep="\n", soft_wrap=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(scores.to_json(), encoding="utf-8")


def _classes(scores: Any, code: str) -> tuple[Text, Table]:
    from xlt_ray import tasks
    from xlt_ray.evaluation import metrics
    from xlt_ray.evaluation.scores import metric_title
    from xlt_ray.reports import report

    one = scores.languages[code]
    (name, main), *others = one.metrics.items()
    head = f"\n{code} ({report.role(one)}): {metric_title(name)} {100 * main.value:.1f} "
    head += f"[{100 * main.low:.1f}, {100 * main.high:.1f}]"
    head += "".join(f", {metric_title(other)} {100 * found.value:.1f}" for other, found in others)
    table = Table("label", "precision", "recall", "F1", "words" if tasks.of_words(scores.task) else "rows")
    for row in metrics.classification_report(one.confusion, scores.labels):
        shares = (f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1"))
        table.add_row(row["label"], *shares, str(row["support"]))
    return Text(head), table


def report(folder: Annotated[Path, typer.Argument(help="folder of a finished run")]) -> None:
    """Write a finished run's report again from its scores, and print its table."""
    from xlt_ray.reports import report as reports

    scores, experiment, files = reports.write_again(folder)
    Console(highlight=False).print(reports.table(scores, experiment))
    typer.echo(files["report.html"])


def compare(
    first: Annotated[Path, typer.Argument(help="folder of a finished run")],
    second: Annotated[Path, typer.Argument(help="folder of a finished run on the same test rows")],
    later: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="more of them: compare a chain, step by step")
    ] = None,
) -> None:
    """Report whether one run is better than another: paired bootstrap over the rows both predicted.

    Of two runs, differences are the first less the second. Of three and more, in their order (before a stage, after it,
    after the next), they are what each language and group gained, or lost, from one to the next and from first to last.

    Exit codes: 0 whatever is found, as `xlt promote` is what refuses a model; 2 where runs cannot be compared.
    """
    if later:
        _chain([first, second, *later])
        return
    from xlt_ray.evaluation.paired import comparison

    console, uneven = Console(highlight=False), False
    for group, found in comparison.compare_runs(first, second).items():
        console.print(
            f"{group} ({found.languages}): {100 * found.difference:+.1f} points "
            f"[{100 * found.low:.1f}, {100 * found.high:.1f}], p {_shown(found.p_value)}{_rungs(found)}"
        )
        uneven |= found.uneven
        if group == "all":
            ranked = sorted(found.per_language.items(), key=lambda item: item[1])
            extremes = ranked if len(ranked) <= 10 else ranked[:5] + ranked[-5:]
            console.print("  " + "  ".join(f"{code} {100 * gain:+.1f}" for code, gain in extremes), soft_wrap=True)

    if uneven:
        console.print(
            "One run read more of these languages than the other, so the difference is not of the models alone; "
            "compare runs whose techniques read the same.",
            soft_wrap=True,
        )


def _chain(folders: list[Path]) -> None:
    """Print what every language, and every group of them, gained and lost over a chain of runs."""
    from xlt_ray.evaluation.paired import chain
    from xlt_ray.evaluation.paired.gate import ALPHA
    from xlt_ray.evaluation.scores import metric_title
    from xlt_ray.inference import artefact
    from xlt_ray.supervision import shown

    console, found = Console(highlight=False), chain.compare(folders)
    steps = sum(len(step.name) + 1 for step in found.steps)  # a long chain is wide, and no figure of it is cut
    console.width = max(console.width, 59 + steps)
    begun = artefact.begun_from([folder / "bundle" for folder in folders])
    ways = [step.groups["all"] for step in found.steps]
    rungs = [*(way.before_supervision for way in ways[:-1]), ways[-1].after_supervision]
    for number, (folder, before, rung) in enumerate(zip(folders, begun, rungs, strict=True), 1):
        more = [*([] if rung is None else [shown(rung)]), *([] if before is None else [f"begun from {before + 1}"])]
        console.print(", ".join([f"{number}  {folder}", *more]), soft_wrap=True, markup=False)
    title = f"{metric_title(found.metric)} on test in %"
    console.print("", _languages(found, f"{title} in run 1, and points gained in each step; * surely"), "")
    console.print(_groups(found, f"{title}, means before each step, and points gained in it"))
    console.print(
        f"\nSurely (*, +, -) is what is more than chance among all {len(found.places)} languages of a step: where one "
        f"changes nothing, the chance that it has any such language is {100 * ALPHA:g}%, a little more with few rows.",
        soft_wrap=True,
    )
    if found.left_out:
        console.print(f"Left out, as not every run measured them: {', '.join(found.left_out)}", soft_wrap=True)
    if any(change.uneven for step in found.steps for change in step.groups.values()):
        console.print(
            "A run read more of these languages than another, so differences are not of the models alone.",
            soft_wrap=True,
        )


def _languages(found: Any, title: str) -> Table:
    from xlt_ray.languages import codes
    from xlt_ray.reports.page import terminal_table

    figures = ("n", "run 1", *(step.name for step in found.steps), "95% interval")
    table = terminal_table(title, ("language", "code", "role", "seen"), figures)
    known: tuple[str, str] | None = None
    for code, place in found.places.items():
        kind = (place.role or "differs", {None: "?", True: "yes", False: "no"}[place.seen])
        if known not in (None, kind):
            table.add_section()
        known, last = kind, found.steps[-1].languages[code]
        name = Text(codes.name(code), no_wrap=True, overflow="ellipsis")
        gains = [_gain(step.languages[code]) for step in found.steps]
        table.add_row(name, code, *kind, str(last.rows), f"{100 * last.before:.1f}", *gains, _interval(last))
    return table


def _groups(found: Any, title: str) -> Table:
    from xlt_ray.reports.page import terminal_table

    heads = ("before", "gained", "95% interval", "p", "surely +", "-")
    table = terminal_table(title, ("languages", "step"), heads)
    for name in found.steps[0].groups:
        for step in found.steps:
            one = step.groups[name]
            shown = f"{name} ({one.languages})" if step is found.steps[0] else ""
            figures = (f"{100 * one.before:.1f}", f"{100 * one.difference:+.1f}", _interval(one))
            table.add_row(shown, step.name, *figures, _shown(one.p_value).strip("= "), str(one.gained), str(one.lost))
        table.add_section()
    return table


def _gain(one: Any) -> str:
    return f"{100 * one.difference:+.1f}{'*' if one.gained or one.lost else ' '}"


def _interval(one: Any) -> str:
    return f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def _rungs(found: Any) -> str:
    from xlt_ray.supervision import shown

    names = [shown(rung) for rung in found.supervision if rung is not None]
    return f", {' against '.join(dict.fromkeys(names))}" if len(names) == 2 else ""


def _shown(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


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
    from xlt_ray.tracking import courier

    if missing := [str(folder) for folder in folders or () if not folder.exists()]:
        raise InputError(f"{', '.join(missing)}: no such folder; give that of a run, or one that holds runs")
    left = courier.sync(folders or [Path("runs")], uri, typer.echo, experiment, give_up)
    if left:
        typer.echo(f"{left} records are still not sent; they are kept", err=True)
        raise typer.Exit(1)
