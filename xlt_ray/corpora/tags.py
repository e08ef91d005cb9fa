"""Check that words and their tags are sound: as many of one as of the other, tags that can be learned, one scheme."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.config import plain_yaml
from xlt_ray.corpora.arrow import values
from xlt_ray.corpora.corpus import Corpus, first_of, place
from xlt_ray.corpora.labels import Labels
from xlt_ray.corpora.overlap import pieces

OUTSIDE = "O"
REMOVE = "correct it or remove the row"


def bad_rows(corpus: Corpus, split: str, language: str) -> Iterator[str]:
    """Yield the faults of rows without words or tags, with another number of tags than words, or with empty ones."""
    table = corpus.table(split, language)
    words, tags = (pc.list_value_length(table[name]) for name in ("words", "label"))
    none = pc.equal(pc.fill_null(words, 0), 0)
    untagged = pc.and_(pc.invert(none), pc.is_null(tags))
    uneven = pc.and_(pc.invert(none), pc.fill_null(pc.not_equal(words, tags), False))
    row = pc.index(uneven, True).as_py()
    counts = f"{words[row]} words and {tags[row]} tags" if row >= 0 else ""
    bare = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(values(table["words"]), "")), "")
    for marks, what, remedy in (
        (none, "no words", "remove the row"),
        (untagged, "words without tags", "tag them or remove the row"),
        (uneven, counts, REMOVE),
        (_rows(table["words"], bare), "an empty word", REMOVE),
        (_rows(table["label"], pc.is_null(values(table["label"]))), "a word without a tag", REMOVE),
    ):
        yield from first_of(corpus, split, language, marks, what, remedy)


def _rows(column: pa.ChunkedArray, marks: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which rows of a column of lists have one of the values marked, (rows,) bool."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    there = np.repeat(np.arange(len(lengths)), lengths)[marks.to_numpy().astype(bool)]
    return pa.chunked_array([np.bincount(there, minlength=len(lengths)) > 0])


def faults(found: Labels) -> Iterator[str]:
    """Yield the faults of tags, of what a run reads, that no train row of the sources teaches."""
    if len(found.trained) == 1:
        (tag,) = found.trained
        yield (
            f"train: every word of the sources has the tag {found.names[tag]!r}, and a tagger needs two; add rows with "
            "others, or name the column of the tags in corpus.label"
        )
    if not (found.trained or found.stated):
        return
    known = found.stated or {tag for tag in found.trained if tag < len(found.corpus.labels)}
    where = "is not in corpus.labels" if found.corpus.labels_stated else "is in no train split of the sources"
    names = [found.names[tag] for tag in sorted(known)]
    # labels of a model that is measured are stated, and a further one cannot be
    or_state = " or remove the row" if found.corpus.labels_stated else f", or state all by {_stating(found)}"
    for tag, name in found.doubtful.items():
        if tag not in known:
            near = difflib.get_close_matches(name, names, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            (split, language), _ = next(item for item in found.counts.items() if tag in item[1])
            table = found.corpus.table(split, language)
            row, word = _first(table, pc.fill_null(pc.equal(values(table["label"]), tag), False))
            total = sum(counts.get(tag, 0) for counts in found.counts.values())
            more = f" and of {total - 1} more words" if total > 1 else ""
            yield (
                f"{place(found.corpus, split, language, row)}: tag {name!r} of {word!r}{more} {where}; {meant}correct "
                f"it{or_state}"
            )


def _first(table: pa.Table, marks: pa.ChunkedArray) -> tuple[int, str | None]:
    """Return the row of the first of the words marked, and the word."""
    at = pc.index(marks, True).as_py()
    ends = np.cumsum(pc.fill_null(pc.list_value_length(table["label"]), 0).to_numpy())
    row = int(np.searchsorted(ends, at, "right"))
    inside = at - int(ends[row - 1]) if row else at
    words = table["words"][row].as_py() or []
    return row, words[inside] if inside < len(words) else None


def _stating(found: Labels) -> str:
    names = sorted({found.names[tag] for tag in {*found.trained, *found.doubtful, *found.stated}})
    return shlex.quote(f"corpus.labels={plain_yaml.flow(names)}")


def cautions(found: Labels) -> Iterator[str]:
    """Yield warnings of tags of a corpus without faults that may not be meant so."""
    used = {found.names[tag] for counts in found.counts.values() for tag in counts}
    odd = sorted(tag for tag in used if tag != OUTSIDE and not _parted(tag))
    if odd and any(map(_parted, used)):
        yield (
            f"tags {_few(odd)} are neither {OUTSIDE} nor of the form B-NAME, as others are; each is taken for a tag of "
            "its own, and not for a span"
        )
    if used and all(tag.lstrip("-").isdecimal() for tag in used):
        yield (
            f"tags are numbers, {_few(sorted(used))}: words are scored, and no spans found; write names such as B-PER "
            "where they stand for such"
        )
    idle = sorted(found.names[tag] for tag in found.stated - set(found.trained))
    if idle and found.trained:
        yield f"corpus.labels: no train row of the sources has {_few(idle)}, so no word will be given it"
    for split, language in found.counts:
        table = found.corpus.table(split, language)
        marks = pa.chunked_array([_broken(piece, found.names) for piece in pieces(table)], pa.bool_())
        if count := pc.sum(marks).as_py() or 0:
            row, word = _first(table, marks)
            yield (
                f"{split}, {language}: {count} words have a tag such as I-NAME and none of their span before them, the "
                f"first {word!r} at {place(found.corpus, split, language, row)}; each is taken to begin a span, as in "
                "IOB1; correct them where that is not meant"
            )


def _broken(table: pa.Table, names: Iterable[str]) -> np.ndarray:
    """Mark the words whose tag is I-NAME where the word before has no tag of the same name, (words,) bool."""
    parts = [name.partition("-") if _parted(name) else ("", "", "") for name in names]
    numbers = {name: number for number, name in enumerate(sorted({part[2] for part in parts}))}
    kinds = np.array([numbers[part[2]] for part in parts] + [-1])  # the last of no tag
    within = np.array([part[0] == "I" for part in parts] + [False])
    begun = np.array([part[0] in ("B", "I") for part in parts] + [False])
    tags = pc.fill_null(values(table["label"]), len(parts)).to_numpy()
    before = np.r_[len(parts), tags[:-1]][: len(tags)]
    lengths = pc.fill_null(pc.list_value_length(table["label"]), 0).to_numpy()
    starts = np.cumsum(lengths) - lengths
    before[starts[lengths > 0]] = len(parts)
    return within[tags] & ~(begun[before] & (kinds[before] == kinds[tags]))


def _parted(tag: str) -> bool:
    """Return whether a tag is of the form PREFIX-NAME."""
    prefix, dash, name = tag.partition("-")
    return len(prefix) == 1 and prefix in "BIESLUM" and bool(dash and name)


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
