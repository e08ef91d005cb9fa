"""Hold the labelled rows of a corpus per split and language, as Arrow tables on disk.

A split is one Arrow IPC file whose batches are tagged with their language; opened memory-mapped, its tables cost
address space and no memory. Nothing here turns a whole column into Python objects, so millions of rows are fine.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.arrow import column_digest, origins_of, with_origin, with_texts
from xlt_ray.errors import InputError

SPLITS = ("train", "dev", "test")
SHOWN_FAULTS = 20
Where = tuple[str, str]  # split and language


@dataclass(frozen=True, eq=False)
class Corpus:
    """Rows of train, dev and test per language. A table has the columns `text` (string), `label` (int32, an index into
    `labels`), `id` (string) and, in pair tasks alone, `text_pair` (string).

    Of tagged words it has `words` (list<string>) too, which stand in `text` in their order with at most white space
    between them, and `label` (list<int32>) is a tag for each of them.
    """

    name: str
    labels: tuple[str, ...]
    splits: Mapping[str, Mapping[str, pa.Table]] = field(repr=False)
    # parallel text beside the splits, without labels: by language `id`, which translations share, and `text`
    parallel: Mapping[str, pa.Table] = field(default_factory=dict, repr=False)
    # plain text beside the splits, likewise, of which no row is known to be a translation
    plain: Mapping[str, pa.Table] = field(default_factory=dict, repr=False)
    licence: str = ""
    # the user or the loader listed the labels, so one that only some languages have is intended
    labels_stated: bool = False
    # labels whose rows are left out, and how many they were: split -> language -> number
    drop_labels: tuple[str, ...] = ()
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict, repr=False)
    # labels of rows that are outside `labels`: index len(labels) + k is unknown_labels[k]; `check` refuses such rows
    unknown_labels: tuple[str, ...] = ()
    # what its loader decided or left out, for `training/checks.py` to log
    notes: tuple[str, ...] = ()

    @property
    def tagged(self) -> bool:
        """Whether rows are words, each with a tag."""
        return any("words" in one.column_names for tables in self.splits.values() for one in tables.values())

    def table(self, split: str, language: str) -> pa.Table:
        """Return the rows of one language in one split; raise InputError when it has no such split."""
        found = self.splits.get(split, {}).get(language)
        if found is None:
            raise InputError(f"corpus {self.name}, {split}: no {language}; {offer(language, self.languages(split))}")
        return found

    def languages(self, split: str) -> tuple[str, ...]:
        """List the languages that have rows in this split, sorted."""
        return tuple(sorted(code for code, table in self.splits.get(split, {}).items() if table.num_rows))

    def sizes(self, split: str) -> dict[str, int]:
        """Count the rows of every language of a split, also where there are none."""
        return {language: table.num_rows for language, table in sorted(self.splits.get(split, {}).items())}

    def measured(self, sources: Sequence[str], targets: Sequence[str] | Literal["all"]) -> tuple[str, ...]:
        """List, sorted, the languages to measure: targets ("all": whatever has test rows), and sources with some."""
        tested = self.languages("test")
        wanted = tested if targets == "all" else targets
        return tuple(sorted({*wanted, *(language for language in sources if language in tested)}))

    def for_training(self, sources: Sequence[str], targets_dev: bool = False) -> Corpus:
        """Keep train and dev of the sources alone, so that whatever trains on it cannot see a target's label.

        `targets_dev` keeps the dev rows of every language: the oracle, whose scores are no zero-shot result.
        """
        dev = self.languages("dev") if targets_dev else sources
        return replace(self, splits={"train": self._only("train", sources), "dev": self._only("dev", dev), "test": {}})

    def for_testing(self) -> Corpus:
        """Keep test alone."""
        return replace(self, splits={"train": {}, "dev": {}, "test": self._only("test", self.languages("test"))})

    def unlabelled(self, languages: Iterable[str], ids: bool = False) -> dict[str, pa.Table]:
        """Return the texts of languages without their labels: rows of train, else of dev, never of test.

        A table has `text`, in pair tasks `text_pair`, and `id` where `ids` asks for it; a language without such rows is
        absent.
        """
        columns = ("text", "text_pair", *(["id"] if ids else []))
        texts = {}
        for language in languages:
            tables = [self.splits.get(split, {}).get(language) for split in ("train", "dev")]
            table = next((table for table in tables if table is not None and table.num_rows), None)
            if table is not None:
                texts[language] = table.select([c for c in columns if c in table.column_names])
        return texts

    def adding(self, split: str, tables: Mapping[str, pa.Table]) -> Corpus:
        """Return the corpus with rows added to a split, behind the rows of their language that are there."""
        there = dict(self.splits.get(split, {}))
        for code, table in tables.items():
            both = [one.replace_schema_metadata(None) for one in (there[code], table)] if code in there else []
            there[code] = pa.concat_tables(both) if both else table
        return replace(self, splits={**self.splits, split: there})

    def _only(self, split: str, languages: Iterable[str]) -> dict[str, pa.Table]:
        tables = self.splits.get(split, {})
        return {language: tables[language] for language in languages if language in tables}

    def tables(self) -> Iterator[tuple[str, str, pa.Table]]:
        """Yield (split, language, table) of every table with rows, in a fixed order."""
        for split in SPLITS:
            for language in self.languages(split):
                yield split, language, self.splits[split][language]

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of labels and rows in their order, the same in any place and however they are chunked."""
        digest = hashlib.sha256(json.dumps([self.labels, self.unknown_labels]).encode())
        others = {"parallel": self.parallel, "plain": self.plain}
        beside = [(kind, language, one) for kind, tables in others.items() for language, one in sorted(tables.items())]
        for split, language, table in (*self.tables(), *beside):
            digest.update(json.dumps([split, language, table.num_rows]).encode())
            for column in ("text", "text_pair", "id", "label", "words"):
                if column in table.column_names:
                    digest.update(column.encode() + column_digest(table[column]))
        return digest.hexdigest()


def end_to_end(
    texts: Mapping[str, pa.Table], others: Mapping[str, pa.Table], languages: Collection[str] = ()
) -> dict[str, pa.Table]:
    """Return unlabelled rows and those of parallel or plain text end to end, by language, of some languages or of all.

    Rows of equal ids are translations of each other. A column `beside` tells the latter where there are some.
    """
    found = {}
    for code in sorted({*texts, *others} & {*(languages or (*texts, *others))}):
        found[code] = texts[code].replace_schema_metadata(None) if code in texts else others[code].slice(0, 0)
        if code in others:
            both = (found[code], others[code])
            beside = np.repeat([False, True], [table.num_rows for table in both])
            whole = pa.concat_tables(both, promote_options="permissive")
            if "text_pair" in whole.column_names:  # text beside the rows has none
                whole = with_texts(whole, {"text_pair": pc.fill_null(whole["text_pair"], "")})
            found[code] = whole.append_column("beside", pa.array(beside))
    return found


def taken_from(table: pa.Table, rows: pa.Table) -> pa.Table:
    """Note the file of a table on rows chosen from it, without lines, since these need not be successive any more."""
    origins = origins_of(table)
    return with_origin(rows, origins[0][1], None) if origins else rows


def place(corpus: Corpus, split: str, language: str, row: int) -> str:
    """Describe where a row comes from: file and line where known, else file or split, language and the row's id."""
    table = corpus.table(split, language)
    name = f"{split}, {language}, row {table['id'][row].as_py()}"
    for rows, file, line in origins_of(table):
        if row < rows:
            return f"{file}, {name}" if line is None else f"{file}, line {line + row}"
        row -= rows
    return name


def first_of(corpus: Corpus, split: str, language: str, bad: pa.ChunkedArray, what: str, remedy: str) -> Iterator[str]:
    """Yield a fault that names the first of the rows marked as bad and counts the others; nothing where none is."""
    count = pc.sum(bad).as_py() or 0
    if count:
        others = f" (and {count - 1} more rows of {split}, {language})" if count > 1 else ""
        row = pc.index(bad, True).as_py()
        yield f"{place(corpus, split, language, row)}: {what}{others}; {remedy}"


def offer(language: str, there: Sequence[str]) -> str:
    """Suggest what to do about a missing language, naming those that are there."""
    if not there:
        return "no language has this split; check corpus.path and corpus.splits"
    near = difflib.get_close_matches(language, there, n=3, cutoff=0.4)
    return f"add its rows, or take a language that has it, such as {', '.join(near or there[:10])}"


def refuse(title: str, faults: Sequence[str]) -> NoReturn:
    """Raise one InputError that lists faults, the first 20 of them and then a count."""
    shown = [f"  {fault}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        shown.append(f"  ... and {len(faults) - SHOWN_FAULTS} more")
    message = "\n".join([f"{title}: {len(faults)} fault{'s' if len(faults) > 1 else ''}", *shown])
    raise InputError(message, faults)


def known_languages(experiment: Experiment, corpus: Corpus) -> tuple[str, ...]:
    """List, sorted, the languages of a run, sources and targets: what a network's `language` indexes."""
    return tuple(sorted({*experiment.sources, *corpus.measured(experiment.sources, experiment.targets)}))
