"""Check whether a corpus can yield a sound result: what is refused, and what only causes a warning.

Everything is computed by Arrow on whole columns; only the first faulty row of a kind becomes a Python object.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray import durable
from xlt_ray.corpora import labels, overlap, tags
from xlt_ray.corpora.arrow import origins_of
from xlt_ray.corpora.corpus import Corpus, first_of, offer, refuse

RULES = ("soundness", "labels", "tags", "overlap", "corpus")  # modules that say what is refused or warned of, and how


def check(
    corpus: Corpus,
    sources: Sequence[str],
    targets: Sequence[str] | Literal["all"] = "all",
    dev: Sequence[str] = (),
    cache_dir: str | None = None,
) -> None:
    """Refuse a corpus that cannot yield a sound result for these languages, with one InputError listing every fault.

    `dev` names the languages whose dev rows are needed (the sources for early stopping on them). What no run reads,
    such as train rows of a target, is not looked at. What may be intended only causes a warning. That a corpus was
    found sound, and the warnings, are kept in `cache_dir`, since millions of rows take a minute.
    """
    kept = _kept(corpus, sources, targets, dev, cache_dir) if cache_dir else None
    cautions: list[str] | None = None
    if kept is not None:
        with contextlib.suppress(OSError, ValueError):  # it is not there, or torn
            cautions = json.loads(kept.read_text(encoding="utf-8"))
    if cautions is None:
        cautions = _examine(corpus, sources, targets, dev)
        if kept is not None:
            with contextlib.suppress(OSError):  # no cache is no fault
                durable.write(kept, json.dumps(cautions))
    for caution in cautions:
        warnings.warn(caution, stacklevel=2)


def _kept(
    corpus: Corpus, sources: Sequence[str], targets: Sequence[str] | str, dev: Sequence[str], cache_dir: str
) -> Path:
    """Name the file that tells what was found, by all that is looked at and by what is called a fault here."""
    named = {split: {code: origins_of(one) for code, one in tables.items()} for split, tables in corpus.splits.items()}
    about = [corpus.name, corpus.labels_stated, corpus.drop_labels, corpus.left_out, named]
    rules = [pa.__version__, *(durable.digest(Path(__file__).with_name(f"{name}.py")) for name in RULES)]
    asked = [rules, corpus.fingerprint, about, sorted(sources), targets, sorted(dev)]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return Path(cache_dir).expanduser() / "sound" / f"{key[:32]}.json"


def _examine(
    corpus: Corpus, sources: Sequence[str], targets: Sequence[str] | Literal["all"], dev: Sequence[str]
) -> list[str]:
    """Look at every row that a run reads; return what to warn of, or raise InputError listing every fault."""
    measured = corpus.measured(sources, targets)
    read = [
        (split, language)
        for split, wanted in (("train", sources), ("dev", {*sources, *dev}), ("test", measured))
        for language in sorted(wanted)
        if language in corpus.languages(split)
    ]
    found = labels.count(corpus, sources, read)
    faults = [
        *_absent(corpus, sources, measured, dev),
        *(_without_test(corpus) if targets == "all" else ()),
        *(fault for split, language in read for fault in _bad_rows(corpus, split, language)),
        *(tags if corpus.tagged else labels).faults(found),
        *overlap.overlaps(corpus, read),
    ]
    if faults:
        refuse(f"corpus {corpus.name}", faults)
    return [
        *_left_out(corpus, sources),
        *(caution for split, language in read for caution in _repeated_ids(corpus, split, language)),
        *(tags if corpus.tagged else labels).cautions(found),
        *overlap.repeats(corpus, read),
    ]


def _absent(corpus: Corpus, sources: Sequence[str], measured: Sequence[str], dev: Sequence[str]) -> Iterator[str]:
    for split, role, wanted in (("train", "source", sources), ("dev", "language", dev), ("test", "target", measured)):
        there = corpus.languages(split)
        for language in wanted:
            if language in corpus.splits.get(split, {}) and language not in there:
                yield f"{_no_rows(corpus, split, language)}; add some, or take another {role}"
            elif language not in there:
                yield f"{split}: {role} {language} has none; {offer(language, there)}"
    if not measured and not corpus.splits.get("test"):
        yield f"test: nothing to measure; {offer('', corpus.languages('test'))}"


def _without_test(corpus: Corpus) -> Iterator[str]:
    there = corpus.languages("test")
    some = f"targets=[{', '.join(there)}]" if len(there) <= 20 else "targets"
    for language in sorted({*corpus.splits.get("test", {})} - {*there}):
        yield (
            f"{_no_rows(corpus, 'test', language)}, and targets: all asks for every language with a test split; add "
            f"rows, remove the split, or name those with rows in {some}"
        )


def _no_rows(corpus: Corpus, split: str, language: str) -> str:
    gone = corpus.left_out.get(split, {}).get(language, 0)
    but = f" but {gone} left out by corpus.drop_labels" if gone else ""
    return f"{_file(corpus.splits[split][language])}{split}, {language}: no rows{but}"


def _left_out(corpus: Corpus, sources: Sequence[str]) -> Iterator[str]:
    """Yield warnings of sources that have no test rows to be measured on, and of what `corpus.drop_labels` took."""
    for language in sorted({*sources} & {*corpus.splits.get("test", {})} - {*corpus.languages("test")}):
        yield f"{_no_rows(corpus, 'test', language)}, so it is not measured"
    for split, rows in corpus.left_out.items():
        shown = [f"{language} {count}" for language, count in sorted(rows.items())]
        more = f" and {len(shown) - 10} languages more" if len(shown) > 10 else ""
        yield f"corpus.drop_labels: rows of {split} left out: {', '.join(shown[:10])}{more}"


def _bad_rows(corpus: Corpus, split: str, language: str) -> Iterator[str]:
    table = corpus.table(split, language)
    for column in () if corpus.tagged else ("text", "text_pair"):
        if column in table.column_names:
            blank = [pc.equal(overlap.as_seen(piece[column]), "") for piece in overlap.pieces(table)]
            bare = pa.chunked_array([chunk for marks in blank for chunk in marks.chunks], pa.bool_())
            yield from first_of(corpus, split, language, bare, f"empty {column}", "fill it or remove the row")
    if corpus.tagged:
        yield from tags.bad_rows(corpus, split, language)
        return
    remedy = f"label it, remove the row, or leave out all such rows by {labels.dropping(corpus, [''])}"
    yield from first_of(corpus, split, language, pc.is_null(table["label"]), "no label", remedy)
    if split == "train" and table.num_rows < len(corpus.labels):
        yield (
            f"{_file(table)}{split}, {language}: {table.num_rows} rows for {len(corpus.labels)} labels; "
            "add rows, or do not take it as a source"
        )


def _file(table: pa.Table) -> str:
    return next((f"{file}, " for _, file, _ in origins_of(table)), "")


def _repeated_ids(corpus: Corpus, split: str, language: str) -> Iterator[str]:
    table = corpus.table(split, language)
    repeats = table.num_rows - pc.count_distinct(table["id"], mode="all").as_py()
    if repeats:
        yield f"{_file(table)}{split}, {language}: {repeats} rows repeat an earlier row's id"
