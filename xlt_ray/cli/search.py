"""Choose what to train on and from: the verbs tune, rank-sources, retrieve and geometry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xlt_ray.cli import progress
from xlt_ray.cli.runs import Config, Overrides, output, print_tracking
from xlt_ray.cli.techniques import numbers_of


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


def retrieve(
    config: Config,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, dev, test, or parallel: text beside the corpus")] = "test",
    pivot: Annotated[str | None, typer.Option(help="compare every language with this one alone")] = None,
    out: Annotated[Path | None, output("folder for retrieval.tsv, all pairs, and a heat map")] = None,
) -> None:
    """Measure how often the encoder finds a text's translation, between all languages: no training, no label."""
    from xlt_ray.languages.codes import resolve
    from xlt_ray.reports.page import percent, terminal_table
    from xlt_ray.runs import retrieve as retrieval

    console = Console(highlight=False)
    with progress.shown(console) as on_event:
        at = resolve(pivot) if pivot else None
        found = retrieval.of_file(config, overrides or (), split, at, on_event)
    first = at or found.experiment.sources[0]
    title = f"translations found in {split}, %, by {found.experiment.network.init}"
    heads = ("pairs", f"into {first}", "back", "CSLS into", "back", "CSLS, mean over all")
    table = terminal_table(title, ["language"], heads)
    mean, beside = retrieval.means(found.compared), found.into(first)
    for code, value in mean.items():
        cells = [""] * 5
        if one := beside.get(code):
            shares = (one.forward, one.backward, one.csls_forward, one.csls_backward)
            cells = [str(one.pairs), *map(percent, shares)]
        table.add_row(code, *cells, percent(value))
    console.print(table)
    for name, codes in found.groups(beside).items():
        if codes:
            share = sum(beside[code].mean for code in codes) / len(codes)
            console.print(f"{name} ({len(codes)}): {percent(share)} of translations, into {first} and back, CSLS")
    for file in retrieval.write(out, found.compared) if out else ():
        console.print(str(file), soft_wrap=True)


def geometry(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run, or of its bundle")],
    overrides: Overrides = None,
    split: Annotated[
        str, typer.Option(help="unlabelled: train, else dev; or train, dev, test, or parallel: text beside the corpus")
    ] = "unlabelled",
    rows: Annotated[int, typer.Option(min=20, help="the most parallel rows of a language, drawn alike in all")] = 300,
    pivot: Annotated[
        str | None, typer.Option(help="whose translations the others are; default: the first source")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="joined by commas, 0 being the embeddings; default: four")] = None,
    anchors: Annotated[
        bool, typer.Option("--anchors", help="instead: what is lost on test without words that the pivot has too")
    ] = False,
    out: Annotated[Path | None, output("folder for the tables of all languages, and three plots")] = None,
) -> None:
    """Measure how a run lays out translations in its layers, and whether that tells where it loses accuracy.

    Texts are parallel rows without their labels; the run's scores on test are held against what they say.
    """
    from xlt_ray.errors import InputError
    from xlt_ray.languages.codes import resolve
    from xlt_ray.registry import fetch
    from xlt_ray.reports.page import percent, terminal_table
    from xlt_ray.runs import geometry as measuring

    console, place = Console(highlight=False), fetch.bundle_in(folder)
    asked = measuring.Asked(
        split, rows, resolve(pivot) if pivot else None, tuple(numbers_of(layers, "--layers")) if layers else ()
    )
    if anchors:
        unheard = {"--split": split != "unlabelled", "--rows": rows != 300, "--layers": layers is not None}
        if given := [name for name, there in unheard.items() if there]:
            raise InputError(f"{given[0]}: is of layers, and --anchors looks at test texts alone; leave it out")
        _anchors(console, place, overrides or (), asked.pivot, out)
        return
    with progress.shown(console) as on_event:
        found = measuring.of_bundle(place, overrides or (), asked, on_event)
    means = found.means()
    chance, most = 1 / (len(found.languages) + 1), means["information_most"].mean()
    title = f"{split} rows and their translations in {found.pivot}, means over languages"
    heads = ("CKA", "found", "back", f"nats/{most:.1f}", f"language/{percent(chance)}", "cosine", "dim.")
    table = terminal_table(title, ("layer", "languages"), heads)
    for one in means.reset_index().to_dict("records"):
        shares = (percent(one[name]) for name in ("forward", "backward"))
        cells = (f"{one['cka']:.2f}", *shares, f"{one['information']:.2f}", percent(one["language_probe"]))
        cells += (f"{one['cosine']:.2f}", f"{one['dimensions']:.0f}")
        table.add_row(str(one["layer"]), f"{one['group']} ({one['languages']})", *cells)
    console.print(table)
    for line in found.sentences():
        console.print(line, soft_wrap=True)
    for file in measuring.write(out, found) if out else ():
        console.print(str(file), soft_wrap=True)


def _anchors(console: Console, place: Path, overrides: Sequence[str], pivot: str | None, out: Path | None) -> None:
    from xlt_ray.reports.page import percent, terminal_table
    from xlt_ray.runs import anchors

    with progress.shown(console) as on_event:
        found = anchors.of_bundle(place, overrides, pivot, on_event)
    title = "accuracy on test, %, without anchors, and without as many other words (control)"
    table = terminal_table(title, ["language"], ("words out", "original", "removed", "control", "loss"))
    for one in found.reset_index().to_dict("records"):
        loss = f"{100 * one['loss']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
        table.add_row(one["language"], *map(percent, (one["anchors"], *(one[name] for name in anchors.READ))), loss)
    console.print(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found.to_csv(out / "anchors.tsv", sep="\t", float_format="%.4f", lineterminator="\n")
        console.print(str(out / "anchors.tsv"), soft_wrap=True)
