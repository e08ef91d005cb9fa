"""Check that labels are classes, not marks of missing labels, one label in two spellings, lists or numbers on a scale.

What `corpus.labels` names is a class and passes; a label outside it, or in no train split of the sources, does not.
"""

from __future__ import annotations

import difflib
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.config import plain_yaml
from xlt_ray.corpora.arrow import values
from xlt_ray.corpora.corpus import Corpus, Where, place

# without what is neither letter nor digit: `<NA>`, `N/A` and `n.a.` are one
NEVER_CLASSES = re.compile(
    r"nan|null|unk|todo|tbd|(un|not)(labelled|labeled|annotated)|no(gold|label|goldlabel)|(gold|label)missing|missinglabel"
)
SELDOM_CLASSES = re.compile(r"na|none|nil|unknown|missing|undefined|undecided|not(available|applicable)")
NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*%?")
LISTED = re.compile(r"\[.*[\s'\",:\d].*\]|\{.*[\s'\",:\d].*\}|\(.*['\",].*\)|\[\]|\{\}", re.DOTALL)
MANY = 10  # labels; fewer may be classes, however few rows they have
LISTABLE = 20  # labels that are written out in a remedy


@dataclass(frozen=True)
class Labels:
    """The labels, or tags of words, that a run reads: how often each stands in every split and language."""

    corpus: Corpus
    names: tuple[str, ...]
    counts: Mapping[Where, Mapping[int, int]]
    trained: Counter[int]  # over the train splits of all sources

    @property
    def stated(self) -> set[int]:
        """The labels that are classes because the user or the loader listed them."""
        return set(range(len(self.corpus.labels))) if self.corpus.labels_stated else set()

    @property
    def doubtful(self) -> dict[int, str]:
        """The labels of rows that nobody listed as classes: number -> name."""
        used = sorted({label for counts in self.counts.values() for label in counts} - self.stated)
        return {label: self.names[label] for label in used}

    def first(self, label: int) -> str:
        """Describe where a label stands first, in the order of reading."""
        split, language = next(where for where, counts in self.counts.items() if label in counts)
        column = self.corpus.table(split, language)["label"]
        return place(self.corpus, split, language, pc.index(column, pa.scalar(label, pa.int32())).as_py())

    def shown(self, label: int) -> str:
        """Describe a label for a message: where it stands first, its name and its rows."""
        return f"{self.first(label)}: label {self.names[label]!r} ({self.rows(label)})"

    def rows(self, label: int) -> str:
        """Describe how many rows have a label, and where."""
        having = [(where, counts[label]) for where, counts in self.counts.items() if label in counts]
        (split, language), _ = having[0]
        total = sum(rows for _, rows in having)
        return f"{total} rows of {split}, {language}" if len(having) == 1 else f"{total} rows in {len(having)} splits"


def count(corpus: Corpus, sources: Sequence[str], read: Sequence[Where]) -> Labels:
    """Count the labels of the splits and languages read."""
    counts = {where: _counts(corpus.table(*where)) for where in read}
    trained: Counter[int] = Counter()
    for (split, language), found in counts.items():
        if split == "train" and language in sources:
            trained.update(found)
    return Labels(corpus, (*corpus.labels, *corpus.unknown_labels), counts, trained)


def _counts(table: pa.Table) -> dict[int, int]:
    pairs = pc.value_counts(pc.drop_null(values(table["label"]))).to_pylist()
    return {pair["values"]: pair["counts"] for pair in pairs}


def faults(found: Labels) -> Iterator[str]:
    """Yield the faults of labels, of what a run reads, that are no classes or cannot be learned."""
    markers = {label for label in found.doubtful if _marker(found, label) == "sure"}
    lists = {label for label, name in found.doubtful.items() if LISTED.fullmatch(name)} - markers
    groups = [] if found.corpus.labels_stated else _spellings(found, markers | lists)
    yield from _marked(found, markers)
    yield from _listed(found, lists)
    yield from (_spelt(found, group) for group in groups)
    refused = markers | lists | {label for group in groups for label in group}
    if (scale := _scale(found, markers | lists)) is not None:
        yield scale
        return
    classes = {fold(found.names[label]): label for label in set(found.trained) - markers - lists}
    if len(classes) == 1 and not lists:
        (label,) = classes.values()
        yield (
            f"train: every{' other' if markers else ''} row of the sources has the label {found.names[label]!r} "
            f"({found.trained[label]} rows), and a classifier needs two; add rows of another label, or name the column "
            "of the label in corpus.label"
        )
    if found.trained or found.stated:
        yield from _unknown(found, refused, markers)
    yield from _lopsided(found, refused)


def cautions(found: Labels) -> Iterator[str]:
    """Yield warnings of what in the labels of a corpus without faults may not be intended."""
    names = found.doubtful
    for label, name in names.items():
        if _marker(found, label):
            yield (
                f"{found.shown(label)} is taken for a class; where it marks rows without a label, "
                f"{_dropping(found, {label})} leaves them out{_or_all(found)}"
            )
        if len(parts := re.split(r"\s*[,;|+/&]\s*", name)) > 1 and set(parts) <= set(names.values()):
            yield (
                f"{found.shown(label)} joins labels that stand alone elsewhere and is taken for a class of its own; a "
                f"row has one label{_or_all(found)}"
            )
    numbers = [_number(name) for name in names.values()]
    if None not in numbers and any(number % 1 for number in numbers if number is not None):
        yield f"train: the labels are numbers, {_few(names.values())}, and are taken for classes{_or_all(found)}"
    idle = sorted(found.names[label] for label in found.stated - set(found.trained))
    if idle and found.trained:  # where no source is read, as when a bundle is measured, there is nothing to miss
        yield f"corpus.labels: no train row of the sources has {_few(idle)}, so no text will be given it"
    alone = [where for where, counts in found.counts.items() if where[0] == "test" and len(counts) == 1]
    if alone:
        shown = [f"{language} ({found.names[next(iter(found.counts['test', language]))]!r})" for _, language in alone]
        yield f"test: all rows have one label in {_few(shown)}; a score of such rows says little"


def fold(name: str) -> str:
    """Normalise a label, so that spellings that differ in case, spaces, Unicode form, or as 1.0 and 1 are equal.

    >>> fold("Not_Hate ") == fold("not hate\u200b") == fold("\uff2eot hate"), fold("1.0"), fold("-1")
    (True, '1', '-1')
    """
    number = _number(name)
    if number is not None:
        return f"{number:g}"
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in plain if not c.isspace() and c != "_" and unicodedata.category(c) != "Cf")


def _number(name: str) -> float | None:
    text = name.strip()
    return float(text.rstrip("% ").replace(",", ".")) if NUMBER.fullmatch(text) else None


def _marker(found: Labels, label: int) -> str:
    """Judge whether a label marks rows without one: "sure", "perhaps" where classes are called so too, or "" for no."""
    others = {found.names[other] for counts in found.counts.values() for other in counts if other != label}
    bare = _bare(found.names[label])
    value, values = _number(found.names[label]), {_number(other) for other in others}
    if not others:
        return ""
    if not bare:
        doubt = "" if any(not _bare(other) for other in others) else "sure"
    elif NEVER_CLASSES.fullmatch(bare):
        doubt = "sure"
    elif value is not None and values == {None}:
        doubt = "sure" if value < 0 else "perhaps"
    elif value is not None and value < 0 and all(one is None or (one >= 0 and not one % 1) for one in values):
        # -1, 0 and 1 may be three classes; with 2 they are not, and -1 and 1 are two
        doubt = "" if values == {1.0} else "perhaps" if values <= {0.0, 1.0} else "sure"
    else:
        doubt = "perhaps" if SELDOM_CLASSES.fullmatch(bare) else ""
    rest = [rows for other, rows in found.trained.items() if other != label]
    # a class is seldom so much rarer than all others
    return "sure" if doubt and rest and 2 * found.trained[label] < min(rest) else doubt


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _marked(found: Labels, markers: set[int]) -> Iterator[str]:
    remedy = _dropping(found, markers)
    for label in sorted(markers):
        yield f"{found.shown(label)} marks rows without a label; {remedy} leaves them out{_or_all(found)}"


def _listed(found: Labels, lists: set[int]) -> Iterator[str]:
    if lists:
        label = min(lists, key=lambda one: -found.trained[one])
        more = f" and {len(lists) - 1} other labels are" if len(lists) > 1 else " is"
        yield (
            f"{found.shown(label)}{more} a list or an object, and a row has one label; write one, or name another "
            f"column in corpus.label{_or_all(found)}"
        )


def _spellings(found: Labels, refused: set[int]) -> list[list[int]]:
    """Group labels that differ in spelling alone, the commonest of a group first."""
    groups: dict[str, list[int]] = {}
    for label, name in found.doubtful.items():
        if label not in refused:
            groups.setdefault(fold(name), []).append(label)
    return [sorted(group, key=lambda one: -found.trained[one]) for group in groups.values() if len(group) > 1]


def _spelt(found: Labels, group: Sequence[int]) -> str:
    names = [found.names[label] for label in group]
    alike = len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
    shown = [
        f"{ascii(name) if alike else repr(name)} ({found.rows(label)})"
        for label, name in zip(group, names, strict=True)
    ]
    return (
        f"{found.first(group[-1])}: labels {' and '.join(shown)} differ in spelling alone, such as case, spaces or "
        f"Unicode form; write one of them everywhere{_or_all(found)}"
    )


def _scale(found: Labels, refused: set[int]) -> str | None:
    counts = {found.names[label]: rows for label, rows in found.trained.items() if label not in found.stated | refused}
    rows, few = sum(counts.values()), _few(sorted(counts))
    numbers = [_number(name) for name in counts]
    if None not in numbers:
        fractions = any(number % 1 for number in numbers if number is not None)
        many = rows < 5 * len(counts) if len(counts) >= MANY or (fractions and len(counts) > 1) else False
        what = f"the labels are numbers on a scale, {len(counts)} of them in {rows} rows: {few}"
    else:
        many = len(counts) >= MANY and rows < 2 * len(counts)
        what = f"nearly every row has a label of its own, {len(counts)} labels in {rows} rows: {few}"
    remedy = "make a few classes of them, or name another column in corpus.label"
    return f"train: {what}; {remedy}{_or_all(found)}" if many else None


def _unknown(found: Labels, refused: set[int], markers: set[int]) -> Iterator[str]:
    known = found.stated or {label for label in found.trained if label < len(found.corpus.labels)}
    where = "is not in corpus.labels" if found.corpus.labels_stated else "is in no train split of the sources"
    strange = {label: name for label, name in found.doubtful.items() if label not in known | refused}
    remedy = _dropping(found, {*markers, *strange})
    for label, name in strange.items():
        same = [found.names[other] for other in sorted(known) if fold(found.names[other]) == fold(name)]
        near = same or difflib.get_close_matches(name, [found.names[other] for other in sorted(known)], n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        yield f"{found.shown(label)} {where}; {meant}correct it, or leave such rows out by {remedy}{_or_all(found)}"


def _lopsided(found: Labels, refused: set[int]) -> Iterator[str]:
    # a label that one language alone has lets a network answer by recognising the language
    trained = {language: counts for (split, language), counts in found.counts.items() if split == "train"}
    if found.corpus.labels_stated or len(trained) < 2:
        return
    for label in sorted(set(found.trained) - refused):
        having = [language for language, counts in trained.items() if label in counts]
        if len(having) == 1:
            yield (
                f"train: label {found.names[label]!r} occurs in {having[0]} alone ({trained[having[0]][label]} rows) "
                f"of {len(trained)} sources; merge it with another, or leave it out by "
                f"{_dropping(found, {label})}{_or_all(found)}"
            )


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def dropping(corpus: Corpus, names: Iterable[str]) -> str:
    """Return the override that leaves out rows with these labels too, quoted for a shell."""
    return _option("corpus.drop_labels", [*corpus.drop_labels, *names])


def _option(key: str, names: Sequence[str]) -> str:
    if len(names) == 1 and re.fullmatch(r"(?!null$)[\w.+-]+", names[0], re.ASCII):
        return f"{key}={names[0]}"
    text = f"{key}={plain_yaml.flow(names)}"
    return shlex.quote(text) if re.search(r'["\\$`!]', text) else f'"{text}"'


def _dropping(found: Labels, labels: Iterable[int]) -> str:
    return dropping(found.corpus, [found.names[label] for label in sorted(labels)])


def _or_all(found: Labels) -> str:
    """Return the remedy that states all labels as classes."""
    names = sorted({found.names[label] for label in {*found.trained, *found.doubtful, *found.stated}})
    stated = f"by {_option('corpus.labels', names)}" if len(names) <= LISTABLE else "in corpus.labels"
    return f", or where all are classes, state them {stated}"
