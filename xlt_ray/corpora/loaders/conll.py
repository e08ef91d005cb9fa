"""Read files of a word a line with its tag, sentences parted by blank lines: CoNLL's, of any columns, and CoNLL-U.

A file is read twice: first for its columns and its scheme of tags, which no single line shows, then for its sentences.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora.loaders.conversion import Note
from xlt_ray.corpora.loaders.diagnosis import TEXT, FileFaults, lines_of
from xlt_ray.languages.words import spans

ROWS = 1 << 14  # sentences that are Python objects at once
LIST = pa.list_(pa.string())
SCHEMA = pa.schema({"text": pa.string(), "words": LIST, "label": LIST, "id": pa.string()})
LABEL = CorpusConfig.model_fields["label"].default
COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
COMMENT = re.compile(r"#\s*([^=]+?)\s*=\s*(.*)")
DOCUMENT = "-DOCSTART-"
SPACES = re.compile("[ \t]+")  # a no-break space may be part of a word
TAG = re.compile(r"O|[BIESLUM]-\S+")
NAMED = re.compile(r"[a-z]{2,3}(-[a-z-]+)?:(?=.)")  # a language before every word, as in en:London

IOB1 = "tags are IOB1, where B- stands between touching spans alone; read as IOB2, where every span begins with B-"
LANGUAGES = "a language stands before every word, as in en:London; it is taken off"
WORDLESS = "lines without a word, of the tag O, are left out"
MADE = "some texts are words joined by spaces, since `# text` does not hold them in their order (as of contractions)"

EMPTY = "empty, taken as no rows"


@dataclass
class Sentence:
    """The words of a sentence, their tags, and what comments say of it."""

    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)  # the words and the spaces between them
    glued: bool = True  # no space follows what is joined
    wordless: bool = False  # there are lines without a word
    about: dict[str, str] = field(default_factory=dict)


class Layout(NamedTuple):
    """How the lines of a file are cut, and what is changed in what they hold."""

    kind: str
    tabs: bool
    width: int
    word: int
    tag: int
    known: frozenset[str]  # tags of lines that are no comments for certain
    cut: int = 0  # characters before every word
    iob1: bool = False
    wordless: bool = False

    def columns(self, line: str) -> list[str]:
        """Cut a line; where all columns but the first stand behind white space, that is empty."""
        if self.tabs:
            return line.split("\t")
        columns = SPACES.split(line.strip(" \t"))
        return ["", *columns] if line[0] in " \t" and len(columns) == self.width - 1 else columns


def tables(file: Path, shown: str, kind: str, config: CorpusConfig, notes: list[Note]) -> Iterator[pa.Table]:
    """Yield the sentences of one file as tables of SCHEMA; raise FileFaults, and UnicodeDecodeError.

    Words of contractions are those that are tagged (CoNLL-U's 1-2 and 1.1 are left out). An id is what a comment says,
    `corpus.id` its key. Tags of IOB1 become IOB2's where a file is IOB1 for certain; all others stay as they are.
    """
    if config.language is not None:
        raise FileFaults([f"{shown}: {kind} has no column of a language; name files by {{language}} in corpus.path"])
    layout = _layout(file, shown, kind, config)
    if layout is None:
        notes.append((EMPTY, shown))
        return
    layout = _scheme(layout, file, shown)
    kinds = ((IOB1, layout.iob1), (LANGUAGES, layout.cut), (WORDLESS, layout.wordless))
    notes += [(note, shown) for note, so in kinds if so]
    made = False
    found = _sentences(file, shown, layout)
    while some := list(itertools.islice(found, ROWS)):
        texts = [_text(one) for one in some]
        if not made and any(
            "text" in one.about and text != one.about["text"] for one, text in zip(some, texts, strict=True)
        ):
            made = True
            notes.append((MADE, shown))
        tags = [_iob2(one.tags) if layout.iob1 else one.tags for one in some]
        if config.id is not None and not any(config.id in one.about for one in some):
            raise FileFaults([f"{shown}: no comment such as '# {config.id} = ...'; leave corpus.id out"])
        ids = [one.about.get(config.id or "") for one in some]
        yield pa.table([texts, [one.words for one in some], tags, ids], schema=SCHEMA)


def _text(sentence: Sentence) -> str:
    """Return the text of a comment where it holds the words in their order and nothing else, or else the words."""
    stated = sentence.about.get("text", "")
    found = spans(stated, sentence.words)
    whole = len(found) == len(sentence.words) and not stated[found[-1][1] :].strip()
    return stated if whole else "".join(sentence.joined)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with io.TextIOWrapper(lines_of(file), encoding="utf-8-sig", newline="\n") as stream:
        yield from ((number, line.rstrip("\r\n")) for number, line in enumerate(stream, 1))


def _layout(file: Path, shown: str, kind: str, config: CorpusConfig) -> Layout | None:
    """Find how lines are cut: by white space where all are then of one width, or else by tabs; None without words."""
    if kind == "conllu":
        wanted = "UPOS" if config.label == LABEL else config.label.upper()
        if wanted not in COLUMNS or config.text != TEXT:
            name, value = ("text", config.text) if wanted in COLUMNS else ("label", config.label)
            raise FileFaults(
                [f"corpus.{name}: {value!r}; CoNLL-U has its words in FORM, and tags in any of {', '.join(COLUMNS)}"]
            )
        return Layout(kind, True, len(COLUMNS), 1, COLUMNS.index(wanted), frozenset())
    word, tag = (_number(config, role) for role in ("text", "label"))
    cuts = [Layout(kind, tabs, 0, word, tag, frozenset()) for tabs in (False, True)]
    widths: list[dict[int, tuple[int, str]]] = [{}, {}]  # the first line of every width
    known: list[set[str]] = [set(), set()]
    for number, line in _lines(file):
        if line.strip() and line != "#" and not line.startswith(("# ", DOCUMENT)):
            for tabs, cut in enumerate(cuts):
                columns = cut.columns(line)
                if len(columns) not in widths[tabs]:
                    cuts[tabs] = cut._replace(width=cut.width or len(columns))
                    widths[tabs][len(columns)] = number, line
                known[tabs].update(columns[tag:][:1])
    if not widths[0]:
        return None
    tabs = len(widths[0]) > 1 and len(widths[1]) == 1 and [*widths[1]] != [1]
    width = cuts[tabs].width
    faults = []
    if len(widths[tabs]) > 1:
        faults = [_other_width(place, line, few, width) for few, (place, line) in [*widths[tabs].items()][1:]]
    elif not max(0, word, tag) < width or width < 2:
        ((number, line),) = widths[tabs].values()
        what = f"{width} columns, and words want one, tags another" if width < 2 else f"{width} columns"
        faults = [f", line {number}: {what} ({line.strip()[:60]!r}); take the file with tags, or correct corpus.label"]
    if faults:
        raise FileFaults([shown + fault for fault in faults])
    return cuts[tabs]._replace(known=frozenset(known[tabs]))


def _number(config: CorpusConfig, role: str) -> int:
    """Return where a column is that `corpus.text` or `corpus.label` counts from 1; else the first and the last."""
    name = getattr(config, role)
    if name == CorpusConfig.model_fields[role].default:
        return 0 if role == "text" else -1
    if not name.isdecimal() or int(name) < 1:
        raise FileFaults([f"corpus.{role}: {name!r}; columns of conll have no names: give a number such as '2'"])
    return int(name) - 1


def _other_width(number: int, line: str, columns: int, width: int) -> str:
    remedy = "add the tag" if columns < width else "a space in a word wants tabs between columns"
    return f", line {number}: {columns} columns where lines before have {width} ({line.strip()[:60]!r}); {remedy}"


def _scheme(layout: Layout, file: Path, shown: str) -> Layout:
    """Read a file for what its words and tags have in common; raise FileFaults of its first line that is wrong."""
    prefix: str | None = None
    odd = begun = wordless = False
    for sentence in _sentences(file, shown, layout):
        wordless = wordless or sentence.wordless
        before = "O"
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            if prefix is None:
                named = NAMED.match(word)
                prefix = named[0] if named else ""
            if not (word.startswith(prefix) and len(word) > len(prefix)):
                prefix = ""
            touching = before != "O" and before[2:] == tag[2:]
            begun = begun or (tag.startswith("I-") and not touching)
            odd = odd or not (tag == "O" or tag.startswith(("B-", "I-"))) or (tag[0] == "B" and not touching)
            before = tag
    cut = len(prefix or "") if layout.kind == "conll" else 0
    return layout._replace(cut=cut, iob1=begun and not odd, wordless=wordless)


def _iob2(tags: Sequence[str]) -> list[str]:
    """Let every span begin with B-.

    >>> _iob2(["I-LOC", "I-LOC", "B-LOC", "O", "I-PER", "I-LOC"])
    ['B-LOC', 'I-LOC', 'B-LOC', 'O', 'B-PER', 'B-LOC']
    """
    before = ["O", *tags]
    return [
        f"B-{tag[2:]}" if tag[0] == "I" and (last == "O" or last[2:] != tag[2:]) else tag
        for last, tag in zip(before, tags, strict=False)
    ]


def _sentences(file: Path, shown: str, layout: Layout) -> Iterator[Sentence]:
    sentence, until, held = Sentence(), 0, False
    for number, line in _lines(file):
        if _is_comment(line, layout, sentence):
            if stated := COMMENT.fullmatch(line):
                sentence.about[stated[1]] = stated[2].strip()
            continue
        if not line.strip() or line.startswith(DOCUMENT):
            if sentence.words:
                yield sentence
            sentence, until = Sentence(), 0
            continue
        columns = layout.columns(line)
        at = len(sentence.words)
        glued = False
        if layout.kind == "conllu" and len(columns) == layout.width:
            glued = "SpaceAfter=No" in columns[-1].split("|")
            if part := re.fullmatch(r"\d+([-.])(\d+)", columns[0]):
                until, held = (int(part[2]), glued) if part[1] == "-" else (until, held)
                continue
            # what follows the last word of a contraction stands beside the contraction
            glued = glued if at >= until else held and at == until - 1
        if fault := _wrong(columns, layout, at):
            raise FileFaults([f"{shown}, line {number}: {fault} ({line.strip()[:60]!r})"])
        word, tag = columns[layout.word].strip(" ")[layout.cut :], columns[layout.tag].strip()
        if not word.strip():
            sentence.wordless = True
            continue
        sentence.joined += [word] if sentence.glued else [" ", word]
        sentence.glued = glued
        sentence.words.append(word)
        sentence.tags.append(tag)
    if sentence.words:
        yield sentence


def _is_comment(line: str, layout: Layout, sentence: Sentence) -> bool:
    if layout.kind == "conllu":
        return line.startswith("#")
    if not (line == "#" or line.startswith("# ")):
        return False
    # the word # with a tag, where spaces part columns
    columns = layout.columns(line)
    tag = columns[layout.tag] if len(columns) == layout.width else ""
    return not tag or not (sentence.words or TAG.fullmatch(tag) or tag in layout.known)


def _wrong(columns: Sequence[str], layout: Layout, at: int) -> str | None:
    """Say what is wrong with the columns of word `at` of a sentence."""
    if len(columns) != layout.width:
        hint = ", parted by tabs; set corpus.format=conll where it has others" if layout.kind == "conllu" else ""
        return f"{len(columns)} columns, not {layout.width}{hint}"
    if layout.kind == "conllu" and columns[0] != str(at + 1):
        return f"number {columns[0]!r} where {at + 1} follows; number words from 1, with a blank line between sentences"
    tag = columns[layout.tag].strip()
    if not columns[layout.word][layout.cut :].strip() and (layout.kind == "conllu" or tag != "O"):
        return "no word; remove the line"
    if not tag or (layout.kind == "conllu" and tag == "_" and COLUMNS[layout.tag] in ("UPOS", "XPOS", "DEPREL")):
        return "no tag; write it, remove the sentence, or name another column in corpus.label"
    return None
