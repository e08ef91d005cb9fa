"""Whether a corpus can give a sound result: what `check` refuses, and what `drop_overlap` takes out.

Everything is computed by Arrow on whole columns; only the first faulty row of a kind becomes a Python object.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.corpus import Corpus, offer, origins_of, refuse, with_origin

BUNCH_ROWS = 1 << 18


def check(
    corpus: Corpus, sources: Sequence[str], targets: Sequence[str] | Literal["all"] = "all", dev: Sequence[str] = ()
) -> None:
    """Refuse a corpus that cannot give a sound result for these languages, with one InputError listing every fault.

    `dev` names the languages whose dev rows are needed (the sources for early stopping on them). What no run reads,
    such as train rows of a target, is not looked at. Ids that repeat inside a split only cause a warning.
    """
    measured = corpus.measured(sources, targets)
    read = [
        (split, language)
        for split, wanted in (("train", sources), ("dev", {*sources, *dev}), ("test", measured))
        for language in sorted(wanted)
        if language in corpus.splits.get(split, {})
    ]
    faults = [
        *_absent(corpus, sources, measured, dev),
        *(fault for split, language in read for fault in _bad_rows(corpus, split, language)),
        *_bad_labels(corpus, sources, read),
        *_lopsided_labels(corpus, sources),
        *_overlaps(corpus, read),
    ]
    if faults:
        refuse(f"corpus {corpus.name}", faults)
    for split, language in read:
        _warn_of_repeats(corpus, split, language)


def _absent(corpus: Corpus, sources: Sequence[str], measured: Sequence[str], dev: Sequence[str]) -> Iterator[str]:
    for split, role, wanted in (("train", "source", sources), ("dev", "language", dev), ("test", "target", measured)):
        there = corpus.languages(split)
        for language in wanted:
            if language not in there:
                yield f"{split}: {role} {language} has none; {offer(language, there)}"


def place(corpus: Corpus, split: str, language: str, row: int) -> str:
    """Say where a row comes from: file and line where known, else file or split, language and the row's id."""
    table = corpus.table(split, language)
    name = f"{split}, {language}, row {table['id'][row].as_py()}"
    for rows, file, line in origins_of(table):
        if row < rows:
            return f"{file}, {name}" if line is None else f"{file}, line {line + row}"
        row -= rows
    return name


def _bad_rows(corpus: Corpus, split: str, language: str) -> Iterator[str]:
    table = corpus.table(split, language)
    for column in ("text", "text_pair"):
        if column in table.column_names:
            blank = [_blank(piece[column]) for piece in _pieces(table)]
            bare = pa.chunked_array([chunk for marks in blank for chunk in marks.chunks], pa.bool_())
            yield from _first(corpus, split, language, bare, f"empty {column}", "fill it or remove the row")
    missing = pc.is_null(table["label"])
    yield from _first(corpus, split, language, missing, "no label", "label it or remove the row")
    if split == "train" and table.num_rows < len(corpus.labels):
        yield (
            f"{_file(table)}{split}, {language}: {table.num_rows} rows for {len(corpus.labels)} labels; "
            "add rows, or do not take it as a source"
        )


def _blank(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0), True)


def _file(table: pa.Table) -> str:
    return next((f"{file}, " for _, file, _ in origins_of(table)), "")


def _first(corpus: Corpus, split: str, language: str, bad: pa.ChunkedArray, what: str, remedy: str) -> Iterator[str]:
    count = pc.sum(bad).as_py() or 0
    if count:
        others = f" (and {count - 1} more rows of {split}, {language})" if count > 1 else ""
        row = pc.index(bad, True).as_py()
        yield f"{place(corpus, split, language, row)}: {what}{others}; {remedy}"


def _label_counts(table: pa.Table) -> dict[int, int]:
    pairs = pc.value_counts(pc.drop_null(table["label"])).to_pylist()
    return {pair["values"]: pair["counts"] for pair in pairs}


def _train_labels(corpus: Corpus, sources: Sequence[str]) -> dict[str, dict[int, int]]:
    trained = [language for language in sources if language in corpus.splits.get("train", {})]
    return {language: _label_counts(corpus.table("train", language)) for language in trained}


def _bad_labels(corpus: Corpus, sources: Sequence[str], read: Sequence[tuple[str, str]]) -> Iterator[str]:
    known = set(range(len(corpus.labels)))
    if not corpus.labels_stated:
        known &= {label for counts in _train_labels(corpus, sources).values() for label in counts}
    names = [*corpus.labels, *corpus.unknown_labels]
    where = "is not in corpus.labels" if corpus.labels_stated else "is in no train split of the sources"
    for split, language in read:
        table = corpus.table(split, language)
        for label, count in sorted(_label_counts(table).items()):
            if label not in known and (split != "train" or label >= len(corpus.labels)):
                near = difflib.get_close_matches(names[label], [names[index] for index in sorted(known)], n=1)
                meant = f"did you mean {near[0]!r}? " if near else ""
                row = place(corpus, split, language, pc.index(table["label"], pa.scalar(label, pa.int32())).as_py())
                yield (
                    f"{row}: label {names[label]!r} ({count} rows of {split}, {language}) {where}; "
                    f"{meant}correct it, remove the rows, or list all labels in corpus.labels"
                )


def _lopsided_labels(corpus: Corpus, sources: Sequence[str]) -> Iterator[str]:
    # a label that one language alone has lets a network answer by recognising the language
    trained = _train_labels(corpus, sources)
    if corpus.labels_stated or len(trained) < 2:
        return
    for label, name in enumerate(corpus.labels):
        having = [language for language, counts in trained.items() if label in counts]
        if len(having) == 1:
            yield (
                f"train: label {name!r} occurs in {having[0]} alone ({trained[having[0]][label]} rows) of "
                f"{len(trained)} sources; drop it, merge it with another, or list all in corpus.labels to keep it"
            )


def _warn_of_repeats(corpus: Corpus, split: str, language: str) -> None:
    table = corpus.table(split, language)
    repeats = table.num_rows - pc.count_distinct(table["id"], mode="all").as_py()
    if repeats:
        warnings.warn(f"{_file(table)}{split}, {language}: {repeats} rows repeat an earlier row's id", stacklevel=3)


def _texts(table: pa.Table) -> pa.ChunkedArray:
    columns = [name for name in ("text", "text_pair") if name in table.column_names]
    parts = [pc.utf8_trim_whitespace(pc.fill_null(table[name], "").cast(pa.large_string())) for name in columns]
    return pc.binary_join_element_wise(*parts, pa.scalar("\x1f", pa.large_string())) if len(parts) > 1 else parts[0]


def _ids(table: pa.Table) -> pa.ChunkedArray:
    return table["id"].cast(pa.large_string())


_KEYS = {"id": _ids, "text": _texts}


def _overlaps(corpus: Corpus, read: Sequence[tuple[str, str]]) -> Iterator[str]:
    tested = [language for split, language in read if split == "test"]
    others = [(split, language) for split, language in read if split != "test"]
    remedy = "remove the rows from either, or set corpus.overlap: drop_train"
    for what, key in _KEYS.items():
        marks = _in_test([corpus.table(*where) for where in others], what, _test_keys(corpus, tested, what))
        for (split, language), both in zip(others, marks, strict=True):
            row = pc.index(both, True).as_py()
            if row >= 0:
                value = key(corpus.table(split, language).slice(row, 1))[0]
                twin = next(_find(corpus, tested, what, value))
                fault = f"{what} {_short(value.as_py())} is in test too, at {twin}"
                restarts = ", or unset corpus.id if ids restart in every split" if what == "id" else ""
                yield from _first(corpus, split, language, both, fault, remedy + restarts)


def _in_test(tables: Sequence[pa.Table], what: str, seen: pa.Array) -> list[pa.ChunkedArray]:
    """Mark in every table the rows whose id or text is among those of test."""
    marks: list[list[pa.BooleanArray]] = [[] for _ in tables]
    for bunch in _bunches([(number, piece) for number, table in enumerate(tables) for piece in _pieces(table)]):
        keys = [chunk for _, piece in bunch for chunk in _KEYS[what](piece).chunks]
        found = pc.is_in(pa.chunked_array(keys, pa.large_string()), value_set=seen, skip_nulls=True)
        for number, piece in bunch:
            marks[number] += found.slice(0, piece.num_rows).chunks
            found = found.slice(piece.num_rows)
    return [pa.chunked_array(chunks, pa.bool_()) for chunks in marks]


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    # trimming makes a copy of the texts, which a large language must not hold whole
    for start in range(0, table.num_rows, BUNCH_ROWS):
        yield table.slice(start, BUNCH_ROWS)


def _bunches(pieces: Iterable[tuple[int, pa.Table]]) -> Iterator[list[tuple[int, pa.Table]]]:
    # each search costs what test is large, so small languages share one
    bunch: list[tuple[int, pa.Table]] = []
    for piece in pieces:
        bunch.append(piece)
        if sum(one.num_rows for _, one in bunch) >= BUNCH_ROWS:
            yield bunch
            bunch = []
    if bunch:
        yield bunch


def _test_keys(corpus: Corpus, tested: Iterable[str], what: str) -> pa.Array:
    chunks = [chunk for language in tested for chunk in _KEYS[what](corpus.table("test", language)).chunks]
    return pc.unique(pa.chunked_array(chunks, pa.large_string()))


def _find(corpus: Corpus, tested: Iterable[str], what: str, value: pa.Scalar) -> Iterator[str]:
    for language in tested:
        row = pc.index(_KEYS[what](corpus.table("test", language)), value).as_py()
        if row >= 0:
            yield place(corpus, "test", language, row)


def _short(value: str) -> str:
    shown = value.replace("\x1f", " / ")
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")


def drop_overlap(corpus: Corpus) -> tuple[Corpus, dict[str, dict[str, int]]]:
    """Drop from train and dev every row whose id or text stands in the test split of any language.

    Returns the smaller corpus and split -> language -> number of rows dropped, where any were. Whole batches without
    such a row stay memory-mapped.
    """
    tested = corpus.languages("test")
    kept: dict[str, dict[str, pa.Table]] = {"train": {}, "dev": {}, "test": dict(corpus.splits.get("test", {}))}
    dropped: dict[str, dict[str, int]] = {}
    others = [(split, language, table) for split, language, table in corpus.tables() if split != "test"]
    tables = [table for _, _, table in others]
    marks = [_in_test(tables, what, _test_keys(corpus, tested, what)) for what in _KEYS]
    for (split, language, table), *both in zip(others, *marks, strict=True):
        kept[split][language] = _without(table, pc.or_(*both))
        count = table.num_rows - kept[split][language].num_rows
        if count:
            dropped.setdefault(split, {})[language] = count
    return replace(corpus, splits=kept), dropped


def _without(table: pa.Table, unwanted: pa.ChunkedArray) -> pa.Table:
    if not pc.any(unwanted, min_count=0).as_py():
        return table
    keep = pc.invert(unwanted)
    batches, start = [], 0
    for batch in table.to_batches():
        mask = keep.slice(start, batch.num_rows)
        whole = pc.all(mask, min_count=0).as_py()
        batches.append(batch if whole else batch.filter(mask.combine_chunks()))
        start += batch.num_rows
    kept = pa.Table.from_batches(batches, schema=table.schema)
    # the lines no longer follow one another
    return with_origin(kept, origins_of(table)[0][1], None) if origins_of(table) else kept
