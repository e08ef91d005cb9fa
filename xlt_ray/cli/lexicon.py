"""Build and inspect dictionaries for code-switching: the verbs of `xlt lexicon`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xlt_ray.cli.runs import writable
from xlt_ray.errors import InputError

SHOWN = 12  # entries and bars, where no word is asked for
BAR = 40
app = typer.Typer(
    name="lexicon", help="Dictionaries for code-switching: make them, and look at them.", no_args_is_help=True
)


@app.command()
def build(
    config: Annotated[
        str | None, typer.Argument(help="YAML file with a corpus of parallel train rows, or corpus.parallel")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as corpus.id=index_id")
    ] = None,
    source: Annotated[str | None, typer.Option(help="language of the words to translate")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="language to translate into; default: all that have parallel rows or text")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for SOURCE-TARGET.tsv; with --from the file to write")
    ] = None,
    score: Annotated[float, typer.Option(min=0.01, max=1, help="least score of a translation")] = 0.5,
    file: Annotated[
        Path | None, typer.Option("--from", help="read this table or FreeDict file instead of a corpus")
    ] = None,
) -> None:
    """Induce dictionaries from the parallel rows of a corpus, or turn one that exists into a table."""
    if out is None:
        raise InputError("--out: missing; name the folder to write to, or with --from the file")
    writable(out, "folder" if file is None else "file")
    if file is not None:
        if config is not None:
            raise InputError(f"{config}: --from reads {file} and no corpus; leave one of the two out")
        _convert(file, out, source, target or ())
    elif config is None or source is None:
        raise InputError("give a configuration and --source, or --from with a table or FreeDict file")
    else:
        _induce(config, overrides or (), source, target or (), out, score)


def _convert(file: Path, out: Path, source: str | None, targets: Sequence[str]) -> None:
    from xlt_ray.languages import codes, lexicon

    if len(targets) > 1:
        raise InputError(f"--target: {', '.join(targets)}; a file has translations into one language")
    named = [code and codes.resolve(code) for code in (source, *(targets or (None,)))]
    found = lexicon.read(file, *(code or lexicon.UNKNOWN for code in named))
    if not found.entries:
        raise InputError(f"{file}: no entry found; see whether it is a table, TEI or an index of dictd")
    lexicon.write(out, found)
    typer.echo(f"{out}: {len(found.entries)} entries, {found.phrases} of them phrases")


def _induce(
    config: str, overrides: Sequence[str], source: str, targets: Sequence[str], out: Path, score: float
) -> None:
    from xlt_ray.config import load
    from xlt_ray.corpora import loaders, overlap
    from xlt_ray.corpora.corpus import end_to_end, refuse
    from xlt_ray.languages import codes, lexicon
    from xlt_ray.languages.words import unsegmented
    from xlt_ray.training import checks
    from xlt_ray.translation import induced
    from xlt_ray.translation.lexicons import FromSources

    source, experiment = codes.resolve(source), checks.absolute(load(config, overrides))
    corpus, _ = loaders.load_corpus(experiment)
    if faults := [*overlap.overlaps_beside(corpus, corpus.languages("test"))]:
        refuse(f"corpus {corpus.name}", faults)
    rows = end_to_end(corpus.unlabelled(corpus.languages("train"), ids=True), corpus.parallel)
    named = [codes.resolve(code) for code in dict.fromkeys(targets)]
    for code in (source, *named):
        if code not in rows:
            corpus.table("train", code)  # a mistyped one is refused before any work
    for code in named:
        lexicon.for_words(source, code)
    asked = induced.Settings(score, True, experiment.corpus.cache_dir)
    lexicons = FromSources("xlt lexicon build", "induced", (source,), rows, asked)
    wanted = named or [code for code in rows if code != source]
    for number, code in enumerate(wanted, 1):
        began = time.monotonic()
        try:
            found = lexicons.lexicon((source, code))
            if why := lexicons.unlike((source, code)):
                raise InputError(why)
        except InputError as error:
            if named or unsegmented(source):
                raise
            typer.echo(f"[{number}/{len(wanted)}] {code}: left out: {error}")
            continue
        lexicon.write(out / f"{source}-{code}.tsv", found)
        typer.echo(
            f"[{number}/{len(wanted)}] {code}: {len(found.entries)} entries, {found.phrases} of them phrases, "
            f"{time.monotonic() - began:.1f} s"
        )


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="table, FreeDict .tei, or .index with its .dict or .dict.dz")],
    word: Annotated[list[str] | None, typer.Option(help="word or phrase to look up")] = None,
    reference: Annotated[Path | None, typer.Option(help="another dictionary to measure the precision by")] = None,
) -> None:
    """Show a dictionary: how large it is, its scores, some entries, and how often it agrees with another."""
    from xlt_ray.languages import lexicon

    found = lexicon.read(file)
    typer.echo(f"{found.source} -> {found.target}: {len(found.entries)} entries, {found.phrases} of them phrases")
    if word:
        for one in word:
            typer.echo(f"  {one}: {_shown(found.entries.get(lexicon.key_of(one), ()))}")
    else:
        _print_scores([options[0][1] for options in found.entries.values()])
        step = max(1, len(found.entries) // SHOWN)
        for key in list(found.entries)[::step][:SHOWN]:
            typer.echo(f"  {key}: {_shown(found.entries[key])}")
    if reference is not None:
        share, known = lexicon.precision(found, lexicon.read(reference))
        agree = f"{100 * share:.1f} % of them agree in a translation's first letters" if known else "no precision"
        typer.echo(f"{known} entries are in {reference.name} too; {agree}")


def _print_scores(scores: Sequence[float]) -> None:
    counts = Counter(min(int(10 * score), 9) for score in scores)
    for tenth in sorted(counts):
        bar = "#" * max(1, round(BAR * counts[tenth] / max(counts.values())))
        typer.echo(f"  score {tenth / 10:.1f} to {(tenth + 1) / 10:.1f} {counts[tenth]:>7} {bar}")


def _shown(options: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(f"{translation} ({score:.2f})" for translation, score in options[:SHOWN]) or "not there"
