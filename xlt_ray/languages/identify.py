"""Identify the language of a text, so that its reader can be shown how good the model was measured to be in it.

py3langid (Lui and Baldwin 2012, "langid.py: An off-the-shelf language identification tool"; retrained on 140 languages)
scores byte sequences by naive Bayes; the script that the text is written in then decides between the scripts of a
language and overrules what cannot be. A guess is for warnings and explanations, and decides which mean a centred model
subtracts; no text is ever refused by it.
"""

from __future__ import annotations

import functools
import json
import mmap
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlt_ray import durable
from xlt_ray.languages import codes

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
RELEASE = 512  # texts after which the pages that they touched are unmapped; they stay in the system's file cache
SURE = 0.5  # from here on the guess is worth showing; py3langid scales its confidence so that length does not matter


@dataclass(frozen=True)
class Guess:
    """The language guessed for a text: `code` is None where it is not clear; `confidence` goes from 0 to 1."""

    code: str | None
    confidence: float


UNKNOWN = Guess(None, 0.0)


class Identifier:
    """Guesses languages. Loading takes a second, a text a fifth of a millisecond; safe to use from several threads.

    `cache` is a folder for the model's two large tables, 68 MB, which are then mapped and not held: processes share
    them, and the pages that texts brought into memory are released again and again.
    """

    def __init__(self, cache: Path | None = None) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._guessed, self._mapped = 0, list[Any]()
        if cache is None:
            self._model: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
            return
        folder = _tables(cache)
        scores, moves = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ptc", "nextmove"))
        self._mapped = [scores, moves]
        # py3langid walks `nextmove` byte by byte, and a memoryview returns Python's own numbers, which numpy does not
        self._model = LanguageIdentifier(
            scores,
            np.load(folder / "pc.npy"),
            json.loads((folder / "classes.json").read_text(encoding="utf-8")),
            memoryview(moves),
            np.load(folder / "output.npy").tolist(),
            norm_probs=True,
            tk_row=np.load(folder / "row.npy").tolist(),
        )

    def guess(self, text: str) -> Guess:
        """Guess the language of a text; of one without letters, or with too few, the code of the guess is None."""
        text = text[:READ]
        script = script_of(text)
        if script is None:
            return UNKNOWN
        ranked = self._model.rank(text)
        self._guessed += 1
        if self._guessed % RELEASE == 0:
            for table in self._mapped:
                table._mmap.madvise(mmap.MADV_DONTNEED)
        for label, confidence in ranked[:10]:
            code = _code(label, script, text)
            if code is not None:
                return Guess(code if confidence >= SURE else None, round(float(confidence), 3))
        return UNKNOWN

    def guess_all(self, texts: Sequence[str]) -> list[Guess]:
        """Guess the language of every text."""
        return [self.guess(text) for text in texts]


def _tables(cache: Path) -> Path:
    """Return the folder of py3langid's unpacked tables, which the first process to need it makes."""
    import py3langid
    from py3langid.langid import MODEL_FILE
    from py3langid.modelio import load_model

    packed = Path(py3langid.__file__).parent / MODEL_FILE
    folder = cache / f"py3langid-{durable.digest(packed)[:16]}"
    if folder.is_dir():
        return folder
    with durable.publishing(folder) as draft:
        draft.mkdir()
        scores, priors, classes, moves, row, output = load_model(packed)
        for name, values in {"ptc": scores, "pc": priors, "nextmove": moves, "row": row, "output": output}.items():
            np.save(draft / f"{name}.npy", np.asarray(values))
        (draft / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    return folder


def script_of(text: str) -> str | None:
    """Return the script of most letters; any kana makes it Japanese; None where there are no letters.

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
    """Return the language code of a label in a script; None where that language is not written so."""
    if label == NOT_A_LANGUAGE:
        return None
    if script == "Hani" and label != "ja":
        script = _han(text)
    return _resolved(label, "Jpan" if label == "ja" and script == "Hani" else script)


def _han(text: str) -> str:
    """Distinguish simplified from traditional characters by which of the two national character sets has the text."""
    lacks = {}
    for script, charset in (("Hans", "gb2312"), ("Hant", "big5")):
        kept = text.encode(charset, errors="ignore").decode(charset)
        lacks[script] = len(text) - len(kept)
    return "Hant" if lacks["Hant"] < lacks["Hans"] else "Hans"


@functools.cache
def _resolved(label: str, script: str) -> str | None:
    code = codes.read(label)
    if code is None:
        return label  # a language that the table lacks is named as py3langid names it
    return code if code.endswith(f"_{script}") else codes.read(f"{label}-{script}")
