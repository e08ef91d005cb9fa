"""Translate-train: train on rows of the sources in translation too, each with the label and the id of its original.

Training on translations of the labelled rows is the usual rival of zero-shot transfer (Conneau et al. 2018, "XNLI",
section 5.1; Hu et al. 2020, "XTREME", where translations into all languages at once, translate-train-all, are best).
Here rows are translated word by word with a lexicon from the source, or taken from tables of texts that people or a
system have translated. No label of a target is read, so such a language stays zero-shot, but parallel text or a
dictionary is.

A word-by-word copy has the words of one language in the order of another, and words that the lexicon lacks stay as they
are. What a translated row gains over its original is what the encoder reads better or otherwise in the target's words.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora.arrow import with_texts
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.loaders import formats
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.languages.words import unsegmented
from xlt_ray.techniques.technique import Available, Material, Reads, Technique
from xlt_ray.translation import induced, lexicons
from xlt_ray.translation.lexicons import FromSources, Pair, both_named, languages_named, refuse

PLACE = "techniques.translate_train"


class TranslateTrain(Technique):
    """Train on rows of the sources in translation too: word by word, or as somebody has translated them."""

    name: ClassVar[str] = "translate_train"
    paper: ClassVar[str] = "Conneau et al. 2018, arXiv 1809.05053; Hu et al. 2020, arXiv 2003.11080"
    needs: ClassVar[str] = (
        "unlabelled rows of targets with the ids of the source's, or corpus.parallel, 100 or more; or dictionaries; or "
        "translations of the source's train rows"
    )
    cost: ClassVar[str] = (
        "1 s a pair of languages once, for 700 rows, then kept in corpus.cache_dir; training on so many more rows, "
        "which a probe has to encode"
    )
    reads: ClassVar[Reads] = "parallel"
    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {"lexicons": ("induced",), "table": ()}

    by: Literal["lexicon", "table"] = Field(
        "lexicon", description="who translates: a lexicon, word by word; or a table of rows that are translated already"
    )
    languages: tuple[str, ...] | Literal["targets"] = Field(
        "targets", description="languages to translate into, targets or further sources; targets: all that can be"
    )
    lexicons: str = Field(
        "induced",
        description="induced, from parallel rows; or where {source}-{language}.tsv, .tei or .index files lie: a "
        "directory, or a pattern with {language} and, where there are several sources, {source}",
    )
    score: float = Field(
        0.1, gt=0, le=1, description="least score of a translation: a lower one translates more words, and worse"
    )
    phrases: bool = Field(True, description="translate phrases that the lexicon has as wholes, the longest first")
    table: str | None = Field(
        None,
        description="by table: pattern with {language} and, where there are several sources, {source}, of tsv, csv, "
        "jsonl or parquet files with the columns corpus.id (else id), corpus.text and corpus.text_pair",
    )

    @field_validator("languages")
    @classmethod
    def _canonical(cls, languages: tuple[str, ...] | str) -> tuple[str, ...] | str:
        return languages_named(languages, "translate into")

    @field_validator("table")
    @classmethod
    def _a_pattern(cls, table: str | None) -> str | None:
        if table is not None and "{language}" not in table:
            raise ValueError(f"{table}: no {{language}} in it; write a pattern such as translated/{{language}}.tsv")
        return table

    def reads_of(self, targets: Collection[str], there: Collection[str]) -> tuple[str, ...]:
        """Return the targets to translate into: those named, else all that may have a lexicon or a table."""
        wanted: Collection[str] = self._named or targets
        if self._induces:
            wanted = [code for code in wanted if code in there and not unsegmented(code)]
        return tuple(code for code in sorted(targets) if code in wanted)

    def check(self, available: Available) -> None:
        """Refuse languages that cannot be translated into, and options without effect; warn of what is left out."""
        experiment = available.experiment
        self._refuse_idle(experiment)
        for code in self._named:
            if code not in available.languages:
                raise InputError(f"{PLACE}.languages: {code} is neither source nor target; add it to targets")
        pairs = self._pairs(experiment, available.languages)
        if not pairs:
            raise InputError(
                f"{PLACE}.languages: there is nothing to translate into but {', '.join(experiment.sources)} itself; "
                "add targets, or take the technique out"
            )
        rows = available.bitext
        if self.by == "table":
            self._check_tables(pairs, available.texts, experiment)
            return
        found = self._found(experiment, rows)
        lacking = found.refuse({pair: found.fault(pair) for pair in pairs}, self._named)
        self._warn(lacking, len({code for _, code in pairs}))

    def corpus(self, corpus: Corpus, material: Material, on_progress: OnProgress = lambda done, total: None) -> Corpus:
        """Add copies of the sources' rows to train of the languages they are translated into.

        A copy has the label and the id of its row, so that whoever holds a row out holds its translations out as well.
        """
        experiment = material.experiment
        train, found = corpus.splits.get("train", {}), self._found(experiment, material.bitext)
        pairs = [pair for pair in self._pairs(experiment, material.languages) if pair[0] in train]
        pairs = [pair for pair in pairs if (found.fault(pair) if self.by == "lexicon" else self._absent(pair)) is None]
        copies: dict[str, list[pa.Table]] = {}
        unlike: dict[Pair, str | None] = {}
        for number, pair in enumerate(pairs, start=1):
            source, code = pair
            unlike[pair] = found.unlike(pair) if self.by == "lexicon" else None
            if self.by == "table":
                copied = joined(train[source], read_table(self._file(pair), experiment.corpus))
                copies.setdefault(code, []).append(copied)
            elif unlike[pair] is None:
                copies.setdefault(code, []).append(found.translated(train[source], pair))
            on_progress(number, len(pairs))
        if unlike:
            self._warn(found.refuse(unlike, self._named), len({code for _, code in pairs}))
        return corpus.adding("train", {code: pa.concat_tables(parts) for code, parts in copies.items()})

    @property
    def _named(self) -> tuple[str, ...]:
        return () if self.languages == "targets" else self.languages

    @property
    def _induces(self) -> bool:
        return self.by == "lexicon" and self.lexicons == "induced"

    def _pairs(self, experiment: Experiment, known: Iterable[str]) -> list[Pair]:
        """List (source, language) to translate; a source of weight 0, which is not trained on, is none."""
        wanted = self._named or [code for code in known if code not in experiment.sources]
        used = [code for code in experiment.sources if experiment.mixture.weights.get(code, 1.0) > 0]
        return [(source, code) for source in used for code in wanted if code != source]

    def _found(self, experiment: Experiment, rows: Mapping[str, pa.Table]) -> FromSources:
        settings = induced.Settings(self.score, self.phrases, experiment.corpus.cache_dir)
        return FromSources(PLACE, self.lexicons, experiment.sources, rows, settings)

    def _refuse_idle(self, experiment: Experiment) -> None:
        if self.by == "table" and self.table is None:
            raise InputError(f"{PLACE}.table: missing; name the files, such as translated/{{language}}.tsv")
        if self.by == "lexicon" and self.table is not None:
            raise InputError(f"{PLACE}.table: {self.table} is not read by a lexicon; set {PLACE}.by to table")
        if self.by == "table" and self.lexicons != "induced":
            raise InputError(f"{PLACE}.lexicons: {self.lexicons} is not read by a table; set {PLACE}.by to lexicon")
        if self.table and len(experiment.sources) > 1:
            both_named(f"{PLACE}.table", self.table, len(experiment.sources))
        if later := [one.name for one in techniques.build(experiment) if one.second_stage]:
            raise InputError(
                f"{PLACE}: adds translations of the sources' rows, but techniques.{later[0]} as it is set leaves these "
                "rows out; take one of the two out"
            )

    def _warn(self, lacking: Mapping[str, str], count: int) -> None:
        if lacking:
            warnings.warn(
                f"{PLACE}: {len(lacking)} of {count} languages get no translations{lexicons.shown(lacking)}",
                stacklevel=3,
            )

    def _file(self, pair: Pair) -> Path:
        source, code = pair
        return Path((self.table or "").replace("{source}", source).replace("{language}", code)).expanduser()

    def _absent(self, pair: Pair) -> str | None:
        file = self._file(pair)
        return None if file.is_file() else f"no file {file}"

    def _check_tables(self, pairs: Iterable[Pair], rows: Mapping[str, pa.Table], experiment: Experiment) -> None:
        """Refuse tables that are damaged or have none of the rows, and warn of rows that are not translated."""
        faults: dict[Pair, str | None] = {}
        lost: dict[str, str] = {}
        for source, code in pairs:
            file, mine = self._file((source, code)), rows.get(source)
            faults[source, code] = f"{source} has no train rows" if mine is None else self._absent((source, code))
            if mine is None or faults[source, code]:
                continue
            table = read_table(file, experiment.corpus)
            missing = mine.num_rows - joined(mine, table).num_rows
            if missing == mine.num_rows:
                faults[source, code] = (
                    f"{file}: none of its {table.num_rows} rows has an id of {source} (there {_some(table)}, here "
                    f"{_some(mine)}; corpus.id names the column)"
                )
            elif missing:
                lost[f"{source} -> {code}"] = (
                    f"{missing} of {mine.num_rows} rows of {source} have no translation in {file}"
                )
        where = f"no translation from {', '.join(experiment.sources)}"
        remedy = f"{where}; give tables by {PLACE}.table, or other languages"
        self._warn(refuse(PLACE, faults, self._named, remedy), len({code for _, code in faults}))
        if lost:
            warnings.warn(f"{PLACE}.table: rows are left out of translation{lexicons.shown(lost)}", stacklevel=3)


def read_table(file: Path, config: CorpusConfig) -> pa.Table:
    """Read translations of rows: `id`, `text` and, in pair tasks, `text_pair`, from columns named as in the corpus.

    Without `corpus.id` the column of the ids is `id`. Rows without id or with an empty text are no translations and are
    left out. Raises InputError for a file that cannot be read or has an id twice.
    """
    kind = formats.kind_of(file.name)
    if kind is None:
        raise InputError(f"{PLACE}.table: {file}: its suffix tells no format; name it .tsv, .csv, .jsonl or .parquet")
    asked = config.model_copy(update={"id": config.id or "id", "label": "", "language": None})
    parts = [part.replace_schema_metadata(None) for part in formats.read(file, str(file), kind, asked, [])]
    table = pa.concat_tables(parts)
    whole = pc.is_valid(table["id"])
    for name in table.column_names[:-1]:
        whole = pc.and_(whole, pc.greater(pc.binary_length(pc.utf8_trim_whitespace(table[name])), 0))
    table = table.filter(whole)
    if pc.count_distinct(table["id"]).as_py() < table.num_rows:
        counts = pc.value_counts(table["id"].combine_chunks())
        twice = counts.field("values")[pc.index(pc.greater(counts.field("counts"), 1), True).as_py()]
        raise InputError(f"{PLACE}.table: {file}: id {twice.as_py()!r} stands there twice; keep one of its rows")
    return table


def joined(rows: pa.Table, translations: pa.Table) -> pa.Table:
    """Return the rows whose ids have a translation, with its `text` and `text_pair`; all else is the row's own."""
    ids = translations["id"].cast(pa.large_string()).combine_chunks()
    places = pc.index_in(rows["id"].cast(pa.large_string()), value_set=ids, skip_nulls=True)
    found = translations.take(pc.drop_null(places).combine_chunks())
    columns = [name for name in ("text", "text_pair") if name in rows.column_names]
    return with_texts(rows.filter(pc.is_valid(places)), {name: found[name] for name in columns})


def _some(table: pa.Table) -> str:
    return ", ".join(repr(one) for one in table["id"].slice(0, 2).to_pylist()) or "none"
