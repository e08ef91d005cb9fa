"""Induce, read and write bilingual lexicons: words and phrases with weighted translations into another language.

One is induced from parallel rows by `induce`, or read from a table or a FreeDict dictionary by `read`. Keys are
casefolded words joined by single spaces; translations keep the capitals that they have inside a sentence.
"""

from __future__ import annotations

import csv
import gzip
import io
import string
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import regex

from xlt_ray import durable, sniff
from xlt_ray.errors import InputError
from xlt_ray.languages import word_alignment
from xlt_ray.languages.word_alignment import forms_of, shared
from xlt_ray.languages.words import LONGEST, WORD, fold, without_words, words

UNKNOWN = "und"  # the code of ISO 639 for a language that nobody has named
FEWEST_PAIRS = 100
PREFIX = 5  # letters that two forms of one word share, by which `precision` goes

CODE = regex.compile(r"[a-z]{3}_[A-Z][a-z]{3}|und")
HEADS = (("source", "word"), ("target", "translation"))
BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
NUMBERED = regex.compile(r"^\s*\d+[.)]\s*")
BRACKETED = regex.compile(r"<[^>]*>|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}")
REMARK = regex.compile(r"""\s*(["“]|(see|note|synonyms?|antonyms?)\b[^:]*:)""", regex.IGNORECASE)

Translations = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Lexicon:
    """Translations from one language into another: key -> ((translation, score in (0, 1]), ...), best first."""

    source: str
    target: str
    entries: Mapping[str, Translations]

    def match(self, words: Sequence[str]) -> int:
        """Return the number of words of the longest entry that `words` begin with; 0 where there is none.

        >>> Lexicon("eng_Latn", "deu_Latn", {"sea": (("Meer", 1.0),)}).match(["sea", "level"])
        1
        """
        lengths = range(min(LONGEST, len(words)), 0, -1)
        return next((length for length in lengths if " ".join(words[:length]) in self.entries), 0)

    @property
    def phrases(self) -> int:
        """The number of entries of more than one word."""
        return sum(" " in key for key in self.entries)


def key_of(text: str) -> str:
    """Return the key under which a word or phrase stands in a lexicon.

    >>> key_of("Ice-Cream!")
    'ice cream'
    """
    return " ".join(fold(word) for word in WORD.findall(text))


def of_pairs(pairs: Iterable[tuple[str, str, float]], source: str, target: str) -> Lexicon:
    """Make a lexicon of (word, translation, score); of a pair that comes twice the better score counts."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for word, translation, score in pairs:
        key, shown = key_of(word), unicodedata.normalize("NFC", " ".join(translation.split()))
        if key and WORD.search(shown):
            found[key][shown] = max(score, found[key].get(shown, 0.0))
    ranked = {key: tuple(sorted(options.items(), key=lambda one: -one[1])) for key, options in found.items()}
    return Lexicon(source, target, ranked)


def induce_tables(
    source: pa.Table,
    target: pa.Table,
    languages: tuple[str, str],
    score: float = 0.5,
    phrases: bool = True,
    fewest: int = FEWEST_PAIRS,
) -> Lexicon:
    """Induce a lexicon from rows of two languages with equal ids; raise InputError where there are too few."""
    for_words(*languages)
    mine, theirs = shared(source, target)
    if mine.num_rows < fewest:
        raise InputError(
            f"lexicon {languages[0]} -> {languages[1]}: {mine.num_rows} rows have the same id in both, and fewer than "
            f"{fewest} teach no words; set corpus.id to a column that parallel rows share, or give a table of "
            "words"
        )
    columns = [c for c in ("text", "text_pair") if c in mine.column_names and c in theirs.column_names]
    texts = [[text or "" for c in columns for text in table[c].to_pylist()] for table in (mine, theirs)]
    return induce(texts[0], texts[1], languages, score, phrases)


def for_words(source: str, target: str) -> None:
    """Raise InputError where a language's words are not separated by spaces, which induction needs."""
    if code := without_words(source, target):
        raise InputError(
            f"lexicon {source} -> {target}: {code} is written without spaces between words, so none can be "
            "induced; give a table or a FreeDict dictionary, or leave the language out"
        )


def induce(
    source_texts: Sequence[str],
    target_texts: Sequence[str],
    languages: tuple[str, str],
    score: float = 0.5,
    phrases: bool = True,
) -> Lexicon:
    """Induce a lexicon from parallel texts by IBM Model 1 (Brown et al. 1993) in both directions.

    Pairs that score below `score` are left out; see `word_alignment.translations` for what a score is.
    """
    for_words(*languages)
    rows = [(words(mine), words(theirs)) for mine, theirs in zip(source_texts, target_texts, strict=True)]
    folded = [([fold(word) for word in mine], [fold(word) for word in theirs]) for mine, theirs in rows]
    forms = forms_of(theirs for _, theirs in rows)
    pairs = word_alignment.translations(folded, score, phrases)
    shown = ((word, " ".join(forms[one] for one in translation.split()), p) for word, translation, p in pairs)
    return of_pairs(sorted(shown), *languages)


def read(path: str | Path, source: str = UNKNOWN, target: str = UNKNOWN) -> Lexicon:
    """Read a lexicon by its suffix: FreeDict (.tei, or .index with .dict or .dict.dz beside it), else a table."""
    name = Path(path).name.lower()
    if name.endswith((".tei", ".xml")):
        return of_pairs(_tei(Path(path)), source, target)
    if name.endswith((".index", ".dict", ".dict.dz")):
        return of_pairs(_dictd(Path(path)), source, target)
    return read_table(path, source, target)


def read_table(path: str | Path, source: str = UNKNOWN, target: str = UNKNOWN) -> Lexicon:
    """Read a table of word, translation and, if it has one, score (default 1), separated by tabs or commas.

    A first line of two language codes, or of `source` or `word` and `target` or `translation`, is a header; its codes
    are those of the lexicon unless `source` and `target` name others.
    """
    text = _text(Path(path))
    tabbed = "\t" in text.lstrip().partition("\n")[0]
    # a quotation mark is a letter like another in a tab-separated file
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabbed else {"delimiter": ","}
    reader = csv.reader(io.StringIO(text), **style)  # type: ignore[call-overload]
    pairs: list[tuple[str, str, float]] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not pairs and (codes := _header(cells)):
                if wrong := [
                    f"{code} for {named}"
                    for named, code in zip((source, target), codes, strict=True)
                    if UNKNOWN not in (named, code) and named != code
                ]:
                    raise InputError(
                        f"{path}, line {reader.line_num}: its header names {wrong[0]}; exchange the columns, or give "
                        "the file of these languages"
                    )
                source, target = (
                    given if given != UNKNOWN else code for given, code in zip((source, target), codes, strict=True)
                )
                continue
            pairs.append(_row(cells, f"{path}, line {reader.line_num}"))
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: {error}; write one word and its translation a line"
        ) from None
    return of_pairs(pairs, source, target)


def _header(cells: Sequence[str]) -> tuple[str, str] | None:
    if len(cells) >= 2 and all(CODE.fullmatch(cell) for cell in cells[:2]):
        return cells[0], cells[1]
    named = len(cells) >= 2 and cells[0].lower() in HEADS[0] and cells[1].lower() in HEADS[1]
    return (UNKNOWN, UNKNOWN) if named else None


def _row(cells: Sequence[str], place: str) -> tuple[str, str, float]:
    if len(cells) not in (2, 3) or not cells[0] or not cells[1]:
        raise InputError(
            f"{place}: {cells!r} is not a word, its translation and perhaps a score; separate them by tabs"
        )
    try:
        score = float(cells[2]) if len(cells) == 3 and cells[2] else 1.0
    except ValueError:
        score = 0.0
    if not 0 < score <= 1:
        raise InputError(f"{place}: score {cells[2]!r}; write a number above 0 and up to 1, or leave the column out")
    return cells[0], cells[1], score


def write(path: str | Path, lexicon: Lexicon) -> None:
    """Write a lexicon as a table that `read_table` reads back as it was; the file appears whole or not at all."""
    rows = [f"{lexicon.source}\t{lexicon.target}\tscore"]
    for key, options in lexicon.entries.items():
        rows += [f"{key}\t{translation}\t{score!r}" for translation, score in options]
    try:
        durable.write(Path(path), "\n".join(rows) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}); name a file in a folder that can be written") from None


def precision(lexicon: Lexicon, reference: Lexicon) -> tuple[float, int]:
    """Return the share of entries whose best translation agrees with a reference's, of those it has, and their number.

    Two translations agree when they, or a word of the reference's, begin with the same five letters, which lets
    inflected forms pass. The share is nan when the reference has none.
    """
    known = [key for key in lexicon.entries if key in reference.entries]
    right = 0
    for key in known:
        folded = [key_of(translation) for translation, _ in reference.entries[key]]
        heads = {text[:PREFIX] for option in folded for text in (option, *option.split())}
        right += key_of(lexicon.entries[key][0][0])[:PREFIX] in heads
    return (right / len(known) if known else float("nan")), len(known)


def _bytes(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        if pointer := sniff.pointer_fault(content, str(file)):
            raise InputError(pointer)
        return gzip.decompress(content) if file.suffix in (".dz", ".gz") else content
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{file}: no such file; give a table, a .tei file, or an .index file with its .dict")
    return InputError(f"{file}: cannot be read ({error}); fetch or unpack it again")


def _text(file: Path) -> str:
    content = _bytes(file)
    return "\n".join(sniff.text_lines(file, io.BufferedReader(io.BytesIO(content))))


def _options(text: str) -> Iterator[str]:
    """Split an article's line into alternatives at commas, without its number and remarks in brackets."""
    for option in regex.split("[;,]", BRACKETED.sub(" ", NUMBERED.sub("", text)).replace("~", " ")):
        if option.strip(" .") and len(option.split()) <= LONGEST:
            yield option.strip(" .")


def _tei(file: Path) -> Iterator[tuple[str, str, float]]:
    """Read TEI of versions 4 and 5 as a stream."""
    try:
        for element in sniff.elements(file, "entry"):
            options = [option for quote in _quotes(element) for option in _options(quote)]
            for form in (child for child in element if sniff.tag(child) == "form"):
                for word in (child for child in form if sniff.tag(child) == "orth"):
                    yield from (("".join(word.itertext()), option, 1.0) for option in options)
    except ElementTree.ParseError as error:
        line = error.position[0]
        raise InputError(f"{file}, line {line}: not well-formed XML ({error}); fetch the dictionary again") from None
    except OSError as error:
        raise _unreadable(file, error) from None


def _quotes(element: ElementTree.Element) -> Iterator[str]:
    for child in element:
        tag, kind = sniff.tag(child), child.get("type", "")
        if tag == "tr" or (tag == "quote" and sniff.tag(element) == "cit"):
            yield "".join(child.itertext())
        elif tag in ("sense", "trans") or (tag == "cit" and kind.startswith("trans")):  # not the examples
            yield from _quotes(child)


def _dictd(file: Path) -> Iterator[tuple[str, str, float]]:
    """Read the two files of dictd: an index of headword, offset and length in base 64, and the articles."""
    stem = file.name.removesuffix(".dz").removesuffix(".dict").removesuffix(".index")
    index = file.with_name(f"{stem}.index")
    packed = file.with_name(f"{stem}.dict.dz")
    articles = _bytes(packed if packed.exists() else file.with_name(f"{stem}.dict"))
    for number, line in enumerate(_text(index).splitlines(), 1):
        cells = line.split("\t")
        if cells[0].startswith(("00-database", "00database")) or not line.strip():
            continue
        try:
            offset, length = _base64(cells[1]), _base64(cells[2])
        except (IndexError, ValueError):
            raise InputError(
                f"{index}, line {number}: {line!r} is not headword, offset and length in base 64"
            ) from None
        if offset + length > len(articles):
            raise InputError(f"{index}, line {number}: {line!r} lies beyond the articles; fetch both files again")
        # the first line of an article is its headword with pronunciation
        for article in articles[offset : offset + length].decode("utf-8", "replace").splitlines()[1:]:
            if not REMARK.match(article):
                yield from ((cells[0], option, 1.0) for option in _options(article))


def _base64(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + BASE64.index(digit)
    return value
