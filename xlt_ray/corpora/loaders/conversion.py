"""Convert rows of any origin to a corpus on disk, once, and open it memory-mapped ever after.

What a loader reads is written to `cache_dir/corpora/<key>/`: one Arrow file a split and `corpus.json`. Processes that
convert the same corpus at the same time each write a folder of their own; the first to finish publishes it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray import durable
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora.arrow import each, open_split, origins_of, values, write_split
from xlt_ray.corpora.corpus import SPLITS, Corpus, taken_from
from xlt_ray.errors import InputError
from xlt_ray.languages import codes

VERSION = 2  # of the files below; a change of what they hold needs another number
MOST_LABELS = 10_000

# split, the language's name in the source (None: it is in a column), and a table with its origin, of strings: text,
# text_pair (pair tasks only), label (null: none), id (null: none; where there are ids), language (where in a column);
# of tagged words `words` and `label` are lists of strings
Rows = Iterable[tuple[str, str | None, pa.Table]]
Note = tuple[str, str]  # what should be known of a file, and the file


def key(config: CorpusConfig, origin: Any) -> str:
    """Name a conversion by the columns asked for and by `origin`, JSON data that changes whenever the rows may."""
    asked = config.model_dump(mode="json", exclude={"cache_dir", "overlap", "parallel", "unlabelled"})
    if config.words is None:
        del asked["words"]  # so that a conversion made before there was any is found again
    text = json.dumps([VERSION, asked, origin], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def corpus(
    config: CorpusConfig, named: str, name: str, read: Callable[[Path], Rows], notes: Sequence[Note] = ()
) -> Corpus:
    """Open the conversion of that key, after making it from the rows that `read` yields where there is none, or a part.

    `read` receives an empty folder for temporary files, yields the rows split by split, and raises InputError for rows
    that cannot be read; then nothing is kept. `notes`, which may grow meanwhile, are kept with the rows.
    """
    final = Path(config.cache_dir).expanduser() / "corpora" / named
    if (found := _whole(final)) is None:
        shutil.rmtree(final, ignore_errors=True)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            # a network file system may keep the name of a file that is still mapped, and its folder, a moment longer
            temporary = tempfile.TemporaryDirectory(dir=final.parent, prefix=".", ignore_cleanup_errors=True)
        except OSError as error:
            raise InputError(
                f"corpus.cache_dir {config.cache_dir}: no folder to write to ({error}); name another"
            ) from None
        with temporary, durable.publishing(final) as draft:
            draft.mkdir()
            about = _convert(draft, Path(temporary.name), config, read)
            about |= {"name": name, "notes": _grouped(notes)}
            (draft / "corpus.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        if (found := _whole(final)) is None:  # what was there could not be deleted, and stays
            raise InputError(f"{final}: it is not whole, and cannot be written anew; delete that folder")
    return found


def _whole(final: Path) -> Corpus | None:
    """Open a conversion; None where there is none, or files are missing or were cut short, as by a full disk."""
    try:
        return _open(final)
    except (OSError, ValueError, KeyError):  # of Arrow's errors the one about such a file is a ValueError
        return None


def _convert(draft: Path, temporary: Path, config: CorpusConfig, read: Callable[[Path], Rows]) -> dict[str, Any]:
    """Write the splits to `draft`, with labels as numbers once all are known, and return facts for `corpus.json`."""
    seen: dict[str, set[str]] = {}
    left_out: dict[str, Counter[str]] = {}
    for split, rows in itertools.groupby(read(temporary), key=lambda row: row[0]):
        seen[split], left_out[split] = set(), Counter()
        write_split(temporary / f"{split}.arrow", _by_code(rows, seen[split], left_out[split], config))
    found = seen.get("train") or set().union(*seen.values())
    labels = config.labels or tuple(sorted(found))
    unknown = tuple(sorted(set().union(*seen.values()) - set(labels)))
    for split in seen:
        write_split(draft / f"{split}.arrow", _final(open_split(temporary / f"{split}.arrow"), [*labels, *unknown]))
    return {
        "splits": [split for split in SPLITS if split in seen],
        "labels": labels,
        "unknown_labels": unknown,
        "labels_stated": config.labels is not None,
        "drop_labels": config.drop_labels,
        "left_out": {split: rows for split, rows in left_out.items() if rows},
    }


def _grouped(notes: Sequence[Note]) -> list[str]:
    files: dict[str, list[str]] = {}
    for text, file in notes:
        files.setdefault(text, []).append(file)
    more = {text: f" and {len(named) - 1} more files" if len(named) > 1 else "" for text, named in files.items()}
    return [f"{named[0]}{more[text]}: {text}" for text, named in files.items()]


def _by_code(
    rows: Rows, seen: set[str], left_out: Counter[str], config: CorpusConfig
) -> Iterator[tuple[str, pa.Table]]:
    """Yield (canonical code, rows with ids) of one split; note labels in `seen` and dropped rows in `left_out`."""
    claims: dict[str, str] = {}
    counts: dict[str | None, int] = {}
    for split, name, table in rows:
        seen.update(set(pc.unique(pc.drop_null(values(table["label"]))).to_pylist()) - set(config.drop_labels))
        if len(seen) > MOST_LABELS:
            raise InputError(
                f"corpus.label: column {config.label!r} holds more than {MOST_LABELS:,} different values, such as "
                f"{min(seen)[:60]!r}; name the column of the label"
            )
        first = counts.get(name, 0)
        counts[name] = first + table.num_rows
        numbered = table.append_column("row", pa.array(np.arange(first, counts[name])).cast(pa.string()))
        for code, part in _by_language(numbered, name, config, claims):
            kept = _kept(part, config.drop_labels)
            left_out.update({code: part.num_rows - kept.num_rows} if kept is not part else {})
            yield code, _with_ids(kept, f"{split}:{code}:")


def _kept(table: pa.Table, unwanted: Sequence[str]) -> pa.Table:
    if not unwanted:
        return table
    keep = pc.invert(pc.is_in(pc.fill_null(table["label"], ""), value_set=pa.array(unwanted, pa.string())))
    if pc.all(keep, min_count=0).as_py():
        return table
    return taken_from(table, table.filter(keep))


def _by_language(
    table: pa.Table, name: str | None, config: CorpusConfig, claims: dict[str, str]
) -> Iterator[tuple[str, pa.Table]]:
    if name is not None:
        code = wanted(name, config, claims)
        if code is not None:
            yield code, table
        return
    _, file, line = origins_of(table)[0]
    if table["language"].null_count:
        row = pc.index(pc.is_null(table["language"]), True).as_py()
        where = f"row {table['row'][row].as_py()}" if line is None else f"line {line + row}"
        raise InputError(f"{file}, {where}: no language in column {config.language!r}; fill it or remove the row")
    for value in sorted(pc.unique(table["language"]).to_pylist()):
        code = wanted(value, config, claims)
        if code is not None:
            yield code, taken_from(table, table.filter(pc.equal(table["language"], value)))


def wanted(name: str, config: CorpusConfig, claims: dict[str, str]) -> str | None:
    """Return the canonical code of a language by its name in the source; None when `corpus.languages` leaves it out.

    `claims` (code -> name) keeps what earlier calls found: two names for one language raise InputError.
    """
    if isinstance(config.languages, Mapping):
        code = next((codes.resolve(ours) for ours, theirs in config.languages.items() if theirs == name), None)
    else:
        code = codes.resolve(name)
        if config.languages is not None and name not in config.languages:
            code = code if code in {codes.resolve(asked) for asked in config.languages} else None
    if code is not None and claims.setdefault(code, name) != name:
        raise InputError(
            f"corpus.path: {claims[code]!r} and {name!r} are both {code}; rename one, or choose by "
            f"corpus.languages={{{code}: {name}}}"
        )
    return code


def _with_ids(table: pa.Table, prefix: str) -> pa.Table:
    made = pc.binary_join_element_wise(prefix, table["row"], "")
    ids = pc.coalesce(table["id"], made) if "id" in table.column_names else made
    columns = [column for column in ("text", "text_pair", "words", "label") if column in table.column_names]
    return table.select(columns).append_column("id", ids)


def _final(tables: dict[str, pa.Table], labels: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    names = pa.array(labels, pa.string())
    for language in sorted(tables):
        table = tables[language]
        # rows of many languages that were mixed in one file come in crumbs
        if table.num_rows and len(table["text"].chunks) > 1 + table.num_rows // 4096:
            table = table.combine_chunks()
        numbers = partial(pc.index_in, value_set=names, skip_nulls=True)
        listed = pa.types.is_list(table["label"].type)
        label = each(table["label"], numbers, pa.int32()) if listed else numbers(table["label"]).cast(pa.int32())
        yield language, table.set_column(table.column_names.index("label"), "label", label)


def _open(final: Path) -> Corpus:
    about = json.loads((final / "corpus.json").read_text(encoding="utf-8"))
    fields: dict[str, Any] = {key: tuple(kept) if isinstance(kept, list) else kept for key, kept in about.items()}
    named = fields.pop("splits", [split for split in SPLITS if (final / f"{split}.arrow").is_file()])
    return Corpus(splits={split: open_split(final / f"{split}.arrow") for split in named}, **fields)
