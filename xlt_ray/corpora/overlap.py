"""Find texts that stand where they should not: in train and in test, and several times in one split.

Texts are compared as encoders see them, and ids as they are: by Arrow on whole columns, but a piece at a time, so that
a large language costs no second copy of its texts.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.corpora.corpus import Corpus, Where, first_of, place, taken_from

PIECE_ROWS = 1 << 18
KINDS = (
    ("with another label too", "correct or remove some of them"),
    ("three times or more", "each of them counts in the score"),
)
# what has no shape of its own: format characters, such as those of zero width, and variation selectors
UNSEEN = r"[\p{Cf}\x{34F}\x{180B}-\x{180D}\x{180F}\x{FE00}-\x{FE0F}]+"
# of what NFKD leaves; a single space needs no change, which makes this quick
SPACES = r"[ \x{1C}-\x{1F}\x{85}\x{1680}\x{2028}\x{2029}\s]{2,}|[\t-\r\x{1C}-\x{1F}\x{85}\x{1680}\x{2028}\x{2029}]"


def overlaps(corpus: Corpus, read: Sequence[Where]) -> Iterator[str]:
    """Yield the faults of rows of train and dev, of what a run reads, that have the id or the text of a row of test."""
    tested = [language for split, language in read if split == "test"]
    others = [(split, language) for split, language in read if split != "test"]
    remedy = "remove the rows from either, or set corpus.overlap: drop_train"
    for what, key in _KEYS.items():
        marks = _in_test(_tests(corpus, tested), [corpus.table(*where) for where in others], what)
        for (split, language), both in zip(others, marks, strict=True):
            row = pc.index(both, True).as_py()
            if row >= 0:
                value = key(corpus.table(split, language).slice(row, 1))[0]
                fault = f"{what} {_short(value.as_py())} is in test too, at {_find(corpus, tested, what, value)}"
                restarts = ", or unset corpus.id if ids restart in every split" if what == "id" else ""
                yield from first_of(corpus, split, language, both, fault, remedy + restarts)
    yield from overlaps_beside(corpus, tested)


def overlaps_beside(corpus: Corpus, tested: Sequence[str]) -> Iterator[str]:
    """Yield the faults of parallel and plain text that stands in test, in pair tasks as one of two texts."""
    kinds = (("parallel", corpus.parallel, "it with its translations"), ("unlabelled", corpus.plain, "it"))
    for key, tables, what in kinds:
        for (language, table), both in zip(tables.items(), _beside_in_test(corpus, tables, tested), strict=True):
            if (row := pc.index(both, True).as_py()) >= 0:
                count = pc.sum(both).as_py()
                more = f" (and {count - 1} more rows of {language})" if count > 1 else ""
                yield (
                    f"corpus.{key}, {language}, {table['id'][row]}: text {_short(table['text'][row].as_py())} is in "
                    f"test too{more}; remove {what}, or set corpus.overlap: drop_train"
                )


def as_seen(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Normalise texts to what encoders see: NFKD, no invisible characters, one space between words; null is "".

    >>> as_seen(pa.chunked_array([["caf\\u00e9 \\u00a0au\\u200b lait", "\\ufb01n", None]])).to_pylist()
    ['cafe\\u0301 au lait', 'fin', '']
    """
    shown = pc.replace_substring_regex(pc.fill_null(texts, "").cast(pa.large_string()), UNSEEN, "")
    spaced = pc.replace_substring_regex(pc.utf8_normalize(shown, "NFKD"), SPACES, " ")
    return pc.utf8_trim_whitespace(spaced)


def _texts(table: pa.Table) -> pa.ChunkedArray:
    parts = [as_seen(table[name]) for name in ("text", "text_pair") if name in table.column_names]
    return pc.binary_join_element_wise(*parts, pa.scalar("\x1f", pa.large_string())) if len(parts) > 1 else parts[0]


def _ids(table: pa.Table) -> pa.ChunkedArray:
    return table["id"].cast(pa.large_string())


_KEYS = {"id": _ids, "text": _texts}


def _tests(corpus: Corpus, tested: Iterable[str]) -> list[pa.Table]:
    return [corpus.table("test", code) for code in tested]


def _beside_in_test(corpus: Corpus, tables: Mapping[str, pa.Table], tested: Iterable[str]) -> list[pa.ChunkedArray]:
    """Mark the rows of text beside a corpus, by language, whose text is one of test."""
    columns = [(table, name) for table in _tests(corpus, tested) for name in ("text", "text_pair")]
    alone = [pa.table({"text": table[name]}) for table, name in columns if name in table.column_names]
    return _in_test(alone, [table.select(["text"]) for table in tables.values()], "text")


def _in_test(test: Sequence[pa.Table], tables: Sequence[pa.Table], what: str) -> list[pa.ChunkedArray]:
    """Mark in every table the rows whose id or text is among those of test."""
    keys = _all_keys(test, what)
    seen = pc.unique(pa.chunked_array([chunk for part in keys for chunk in part.chunks], pa.large_string()))
    found = (pc.is_in(part, value_set=seen, skip_nulls=True) for part in _all_keys(tables, what))
    marks = pa.chunked_array([chunk for part in found for chunk in part.chunks], pa.bool_())
    starts = itertools.accumulate((table.num_rows for table in tables), initial=0)
    return [marks.slice(start, table.num_rows) for start, table in zip(starts, tables, strict=False)]


def _all_keys(tables: Sequence[pa.Table], what: str) -> Iterator[pa.ChunkedArray]:
    """Yield the ids or the texts of all tables end to end, so that small languages share a search through test."""
    for _, alike in itertools.groupby(tables, key=lambda table: "text_pair" in table.column_names):
        whole = pa.concat_tables(alike, promote_options="permissive")
        yield from (_KEYS[what](piece) for piece in pieces(whole))


def pieces(table: pa.Table) -> Iterator[pa.Table]:
    """Cut a table in pieces, since `as_seen` makes a copy of texts, which a large language must not hold whole."""
    for start in range(0, table.num_rows, PIECE_ROWS):
        yield table.slice(start, PIECE_ROWS)


def _find(corpus: Corpus, tested: Iterable[str], what: str, value: pa.Scalar) -> str:
    rows = ((language, pc.index(_KEYS[what](corpus.table("test", language)), value).as_py()) for language in tested)
    return next(place(corpus, "test", language, row) for language, row in rows if row >= 0)


def _short(value: str) -> str:
    shown = unicodedata.normalize("NFC", value.replace("\x1f", " / "))
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")


def repeats(corpus: Corpus, read: Sequence[Where]) -> Iterator[str]:
    """Yield warnings of texts that one split of a language has with several labels, or test three times and more."""
    for split, kinds in (("train", KINDS[:1]), ("test", KINDS)):
        found = {code: _repeated(corpus.table(split, code)) for one, code in read if one == split}
        for kind, remedy in kinds:
            having = {code: groups[kind] for code, groups in found.items() if kind in groups}
            if having:
                code, (_, first, second) = next(iter(having.items()))
                text = _texts(corpus.table(split, code).slice(first, 1))[0].as_py()
                total, among = sum(rows for rows, _, _ in having.values()), f" of {len(having)} languages"
                yield (
                    f"{split}: {total} rows{among if len(having) > 1 else ''} have a text that stands there {kind}, "
                    f"such as {_short(text)} at {_labelled(corpus, split, code, first)} and "
                    f"{_labelled(corpus, split, code, second)}; {remedy}"
                )


def _labelled(corpus: Corpus, split: str, language: str, row: int) -> str:
    label = corpus.table(split, language)["label"][row].as_py()
    named = (
        _short(" ".join(corpus.labels[tag] for tag in label)) if isinstance(label, list) else repr(corpus.labels[label])
    )
    return f"{place(corpus, split, language, row)} ({named})"


def _repeated(table: pa.Table) -> dict[str, tuple[int, int, int]]:
    """Count the rows of each of KINDS that occurs, and find two of one text: kind -> (rows, first, second)."""
    # numbers of 64 bits stand for texts, since a table of a large language's texts would be another copy of them
    parts = [np.fromiter(map(hash, _texts(one).to_pylist()), np.int64, one.num_rows) for one in pieces(table)]
    keys, labels = np.concatenate([np.empty(0, np.int64), *parts]), _numbers(table)
    order = np.lexsort((labels, keys))
    starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]][: len(keys)])
    sizes = np.diff(np.r_[starts, len(keys)])
    first, last = order[starts], order[starts + sizes - 1]  # of the least and the greatest label
    found = {}
    for (kind, _), those in zip(KINDS, (labels[first] != labels[last], sizes > 2), strict=True):
        if those.any():
            shown = np.flatnonzero(those)[first[those].argmin()]
            found[kind] = (int(sizes[those].sum()), int(first[shown]), int(last[shown]))
    return found


def _numbers(table: pa.Table) -> np.ndarray:
    """Return a number that stands for the label of each row, or for its tags, (rows,) int64."""
    if not pa.types.is_list(table["label"].type):
        return table["label"].to_numpy()
    found = (hash(tuple(tags or ())) for piece in pieces(table) for tags in piece["label"].to_pylist())
    return np.fromiter(found, np.int64, table.num_rows)


def drop_overlap(corpus: Corpus) -> tuple[Corpus, dict[str, dict[str, int]]]:
    """Drop from train and dev every row whose id or text stands in the test split of any language.

    Of parallel text, rows of such a text are dropped with their translations, and lines of plain text. Returns the
    smaller corpus and split -> language -> number of rows dropped, where any were; those beside the rows stand under
    "parallel" and "unlabelled". Whole batches without such a row stay memory-mapped.
    """
    tested = corpus.languages("test")
    kept: dict[str, dict[str, pa.Table]] = {"train": {}, "dev": {}, "test": dict(corpus.splits.get("test", {}))}
    dropped: dict[str, dict[str, int]] = {}
    others = [(split, language, table) for split, language, table in corpus.tables() if split != "test"]
    tables = [table for _, _, table in others]
    marks = [_in_test(_tests(corpus, tested), tables, what) for what in _KEYS]
    for (split, language, table), *both in zip(others, *marks, strict=True):
        kept[split][language] = _without(table, pc.or_(*both))
        count = table.num_rows - kept[split][language].num_rows
        if count:
            dropped.setdefault(split, {})[language] = count
    parallel, plain = _untested(corpus, tested), dict(corpus.plain)
    for (code, table), both in zip(corpus.plain.items(), _beside_in_test(corpus, corpus.plain, tested), strict=True):
        plain[code] = table.filter(pc.invert(both))
    for name, before, after in (("parallel", corpus.parallel, parallel), ("unlabelled", corpus.plain, plain)):
        fewer = {code: table.num_rows - after[code].num_rows for code, table in before.items()}
        dropped |= {name: counts} if (counts := {code: count for code, count in fewer.items() if count}) else {}
    return replace(
        corpus, splits=kept, parallel=parallel, plain={c: t for c, t in plain.items() if t.num_rows}
    ), dropped


def _untested(corpus: Corpus, tested: Sequence[str]) -> dict[str, pa.Table]:
    """Return parallel text without texts that stand in test, and without their translations."""
    parallel, marks = dict(corpus.parallel), _beside_in_test(corpus, corpus.parallel, tested)
    ids = [table["id"].filter(both) for table, both in zip(parallel.values(), marks, strict=True)]
    leaked = pa.chunked_array([chunk for one in ids for chunk in one.chunks], pa.string()).unique()
    return {code: table.filter(pc.invert(pc.is_in(table["id"], value_set=leaked))) for code, table in parallel.items()}


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
    return taken_from(table, pa.Table.from_batches(batches, schema=table.schema))
