"""Cut texts into words, find words in them, and replace words and phrases where their script parts them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeVar

import regex

# marks belong to words: without \p{M} the words of Hindi fall apart at every vowel sign
WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
TSHEG = "\u0f0b"  # between the syllables of Tibetan
GAP = regex.compile(rf"[\s\-{TSHEG}]+")  # what may stand between the words of a phrase
APOSTROPHES = ("'", "’")
LONGEST = 5  # words of a phrase that is looked up, and of a translation in a dictionary that is no explanation
ENDING = 2  # letters; after an apostrophe so few are part of a word, as in it's and we'll

UNSEGMENTED = ("Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Hans", "Hant", "Hani", "Jpan")
SYLLABLES = ("Tibt",)  # of these, scripts that part syllables, which are enough of a word to be translated

# letters, marks, digits and what joins them; else a character as it is seen, as everywhere in scripts without spaces
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
PIECE = regex.compile(rf"[[\p{{L}}\p{{M}}\p{{N}}\u200c\u200d]--[{SPACELESS}]]+|(?![\s\x1c-\x1f])\X", regex.VERSION1)

Found = TypeVar("Found")


def fold(word: str) -> str:
    """Normalise a word for comparison: casefolded, composed."""
    return unicodedata.normalize("NFC", word.casefold())


def words(text: str) -> list[str]:
    """Cut a text into its words, composed."""
    return WORD.findall(unicodedata.normalize("NFC", text))


def split(text: str) -> list[tuple[int, int]]:
    """Cut a text to tag into (start, end) of its words: runs of letters and digits, and any other character alone.

    In scripts written without spaces every character is a word, with the marks on it. Nothing but white space is left
    out.

    >>> [text[low:high] for text in ("Lamp 2: on!", "台所 \u0e23\u0e31\u0e01") for low, high in split(text)]
    ['Lamp', '2', ':', 'on', '!', '台', '所', '\u0e23\u0e31', '\u0e01']
    """
    return [match.span() for match in PIECE.finditer(text)]


def spans(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Find (start, end) of words in a text that stand there in their order with at most white space between them.

    There are fewer than words where one does not follow: the first that is missing.

    >>> spans("New York's", ["New", "York", "'s"]), spans("to York", ["York"]), spans("York", ["York", "er"])
    ([(0, 3), (4, 8), (8, 10)], [], [(0, 4)])
    """
    found: list[tuple[int, int]] = []
    end = 0
    for word in words:
        start = text.find(word, end)
        if start < 0 or text[end:start].strip():
            break
        end = start + len(word)
        found.append((start, end))
    return found


def unsegmented(code: str) -> bool:
    """Return whether a language is written without spaces between words, by the script of its code.

    >>> unsegmented("tha_Thai"), unsegmented("swh_Latn")
    (True, False)
    """
    return code.rpartition("_")[2] in UNSEGMENTED


def translatable(code: str) -> bool:
    """Return whether a language's texts can be translated word by word: its script parts words, or else syllables.

    >>> translatable("tha_Thai"), translatable("bod_Tibt"), translatable("swh_Latn")
    (False, True, True)
    """
    return not unsegmented(code) or code.rpartition("_")[2] in SYLLABLES


def without_words(source: str, target: str) -> str | None:
    """Return which of two languages has no words to induce a lexicon from, None where both have.

    Syllables will do where they are translated, but a text cannot be written in them.
    """
    return source if not translatable(source) else target if unsegmented(target) else None


def replace_words(
    text: str,
    find: Callable[[Sequence[str]], tuple[int, Found]],
    choose: Callable[[str, Found], str | None],
    longest: int,
) -> str:
    """Replace words and phrases of a text, and keep all that is between.

    `find(words)` returns how many of at most `longest` folded words make an entry, 0 for none, and what it found;
    `choose(key, found)` returns what to write instead, None to leave the text as it is. The text is cut before anything
    is chosen, and no punctuation lies within a phrase. Initial capitals are kept where there is one.

    >>> replace_words("Sea level", lambda words: (1, None), lambda key, _: {"sea": "Meer"}.get(key), 1)
    'Meer level'
    """
    spans = [match.span() for match in WORD.finditer(text)]
    folded = [fold(text[low:high]) for low, high in spans]
    ends = _ends(text, spans, longest)
    pieces, done, at = [], 0, 0
    while at < len(folded):
        length, found = find(folded[at : ends[at]])
        if not length or _ending(text, spans[at], length):
            at += 1
            continue
        low, high = spans[at][0], spans[at + length - 1][1]
        translation = choose(" ".join(folded[at : at + length]), found)
        if translation is not None:
            pieces += [text[done:low], _cased(text[low:high], translation)]
            done = high
        at += length
    return "".join([*pieces, text[done:]])


def _ends(text: str, spans: Sequence[tuple[int, int]], longest: int) -> list[int]:
    """Return for each word the index after the last word of its longest phrase: no punctuation lies within one."""
    ends = [len(spans)] * len(spans)
    for at in range(len(spans) - 2, -1, -1):
        ends[at] = ends[at + 1] if GAP.fullmatch(text, spans[at][1], spans[at + 1][0]) else at + 1
    return [min(end, at + longest) for at, end in enumerate(ends)]


def _ending(text: str, span: tuple[int, int], length: int) -> bool:
    low, high = span
    return length == 1 and high - low <= ENDING and text[max(low - 1, 0) : low] in APOSTROPHES


def _cased(before: str, translation: str) -> str:
    """Return a translation with the initial capital of what it replaces, where its script has capitals.

    >>> _cased("Sea", "bahari"), _cased("sea", "Meer")
    ('Bahari', 'Meer')
    """
    if before[0] != before[0].lower() and translation[0] == translation[0].lower():
        return translation[0].title() + translation[1:]
    return translation
