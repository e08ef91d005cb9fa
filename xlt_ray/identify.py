"""Say in which language a text is written, to tell its reader how good the model was measured to be in it.

py3langid (Lui and Baldwin 2012, "langid.py: An off-the-shelf language identification tool"; retrained on 140 languages)
scores byte sequences by naive Bayes; the script that the text is written in then decides between the scripts of a
language and overrules what cannot be. A guess only warns and explains: no text is ever refused or routed by it.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xlt_ray import languages

# first word of a letter's Unicode name -> its script as language codes here write it, where the two differ
SCRIPTS = {
    **{"BENGALI": "Beng", "CANADIAN": "Cans", "CJK": "Hani", "ETHIOPIC": "Ethi", "GREEK": "Grek", "GUJARATI": "Gujr"},
    **{"GURMUKHI": "Guru", "HANGUL": "Hang", "HIRAGANA": "Jpan", "KATAKANA": "Jpan", "KANNADA": "Knda"},
    **{"LATIN": "Latn", "LAO": "Laoo", "MALAYALAM": "Mlym", "MYANMAR": "Mymr", "OL": "Olck", "ORIYA": "Orya"},
    **{"SINHALA": "Sinh", "SYRIAC": "Syrc", "TAMIL": "Taml", "TELUGU": "Telu", "THAANA": "Thaa", "TIBETAN": "Tibt"},
    **{"TIFINAGH": "Tfng", "ARABIC": "Arab", "ARMENIAN": "Armn", "CYRILLIC": "Cyrl", "DEVANAGARI": "Deva"},
    **{"GEORGIAN": "Geor", "HEBREW": "Hebr", "KHMER": "Khmr", "THAI": "Thai", "CHEROKEE": "Cher", "NKO": "Nkoo"},
}
NOT_A_LANGUAGE = "zxx"  # py3langid's label of what is no language
READ = 1000  # characters looked at: more changes no answer and would cost time that a long text should not take
SURE = 0.5  # from here on the guess is worth telling; py3langid scales its confidence so that length does not matter


@dataclass(frozen=True)
class Guess:
    """What a text is taken for: `code` is None where it cannot be told; `confidence` goes from 0 to 1."""

    code: str | None
    confidence: float


UNKNOWN = Guess(None, 0.0)


class Identifier:
    """Guesses languages. Loading takes a second, a text a fifth of a millisecond; safe to use from several threads."""

    def __init__(self) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._model: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def guess(self, text: str) -> Guess:
        """Guess the language of one text.

        A text without letters, or with too few to tell, is given as `UNKNOWN` or with a code of None.
        """
        text = text[:READ]
        script = script_of(text)
        if script is None:
            return UNKNOWN
        ranked = self._model.rank(text)
        for label, confidence in ranked[:10]:
            code = _code(label, script, text)
            if code is not None:
                return Guess(code if confidence >= SURE else None, round(float(confidence), 3))
        return UNKNOWN

    def guess_all(self, texts: Sequence[str]) -> list[Guess]:
        """Guess the language of every text."""
        return [self.guess(text) for text in texts]


def script_of(text: str) -> str | None:
    """Name the script that most letters are of; any kana makes it Japanese; None where there are no letters.

    >>> [script_of(text) for text in ("Licht an!", "यह", "東京へ行く", "12 + 3")]
    ['Latn', 'Deva', 'Jpan', None]
    """
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    counts.pop("", None)
    if not counts:
        return None
    return "Jpan" if counts["Jpan"] else counts.most_common(1)[0][0]


@functools.lru_cache(maxsize=65_536)
def _script(letter: str) -> str:
    return SCRIPTS.get(unicodedata.name(letter, "").split(" ")[0].split("-")[0], "")


def _code(label: str, script: str, text: str) -> str | None:
    """Give the language code of a label in a script; None where that language is not written so."""
    if label == NOT_A_LANGUAGE:
        return None
    if script == "Hani" and label != "ja":
        script = _han(text)
    return _resolved(label, "Jpan" if label == "ja" and script == "Hani" else script)


def _han(text: str) -> str:
    """Tell simplified from traditional characters by which of the two national character sets has the text."""
    lacks = {}
    for script, charset in (("Hans", "gb2312"), ("Hant", "big5")):
        kept = text.encode(charset, errors="ignore").decode(charset)
        lacks[script] = len(text) - len(kept)
    return "Hant" if lacks["Hant"] < lacks["Hans"] else "Hans"


@functools.cache
def _resolved(label: str, script: str) -> str | None:
    code = languages.read(label)
    if code is None:
        return label  # a language that the table lacks is named as py3langid names it
    return code if code.endswith(f"_{script}") else languages.read(f"{label}-{script}")
