"""Read plain text beside a corpus: a file a language, a text a line."""

from __future__ import annotations

import glob
import itertools
import re
import warnings
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa

from xlt_ray import sniff
from xlt_ray.corpora.corpus import refuse
from xlt_ray.errors import InputError, collecting
from xlt_ray.languages import codes

PLACE = "corpus.unlabelled"
NAME = "{language}"
SCHEMA = pa.schema({"id": pa.string(), "text": pa.string()})
CHUNK = 1 << 16  # lines that are Python objects at once


def read(where: str, known: Collection[str] = ()) -> dict[str, pa.Table]:
    """Return the lines of all files by language, without empty ones, with the columns `id` and `text`.

    `where` holds {language} once, as in text/{language}.txt; `known` are codes that a corpus uses beside those of
    `codes`. Raises InputError that lists what is wrong with which file, and where there is none.
    """
    if "://" in where:
        raise InputError(f"{PLACE}: {where!r} is a URL; fetch the files, and give their path, as in text/{NAME}.txt")
    if where.count(NAME) != 1:
        raise InputError(
            f"{PLACE}: {where!r}; write {NAME} once where files have their language, as in text/{NAME}.txt"
        )
    before, after = str(Path(where).expanduser()).split(NAME)
    shape = re.compile(re.escape(before) + r"([^/]+)" + re.escape(after))
    files = sorted(glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"))
    names = {file: named[1] for file in files if (named := shape.fullmatch(file))}
    read_as = {file: name if name in known else codes.read(name) for file, name in names.items()}
    if strangers := [names[file] for file, code in read_as.items() if code is None]:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        warnings.warn(f"{PLACE}: left out, as they name no language: {', '.join(strangers[:5])}{more}", stacklevel=2)
    found: dict[str, pa.Table] = {}
    faults: list[str] = []
    for file, code in read_as.items():
        with collecting(faults):
            if code in found:
                faults.append(f"{file}: of {code}, as another file is; join them")
            elif code is not None:
                found[code] = _table(Path(file))
    if faults:
        refuse(PLACE, faults)
    if not any(table.num_rows for table in found.values()):
        raise InputError(f"{PLACE}: {where!r}: no file of a language there that holds text; correct the path")
    return {code: table for code, table in sorted(found.items()) if table.num_rows}


def _table(file: Path) -> pa.Table:
    lines = ((f"{file.name}:{number}", " ".join(line.split())) for number, line in enumerate(sniff.text_lines(file), 1))
    kept = (row for row in lines if row[1])
    parts = []
    while some := list(itertools.islice(kept, CHUNK)):
        parts.append(
            pa.record_batch([pa.array(column, pa.string()) for column in zip(*some, strict=True)], schema=SCHEMA)
        )
    return pa.Table.from_batches(parts, SCHEMA)
