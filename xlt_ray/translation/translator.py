"""The interface of a translator, and the one that needs nothing but a lexicon: word by word."""

from __future__ import annotations

import base64
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from xlt_ray.languages.words import LONGEST, TSHEG, WORD, replace_words

if TYPE_CHECKING:
    from xlt_ray.languages.lexicon import Lexicon

UNPACKED = 64  # lexicons held as dictionaries, a megabyte or two each; the others stay packed

Best = Mapping[str, tuple[str, float]]  # key -> its best translation and that one's score


class Translator(Protocol):
    """Translates texts from one language into another, each text alone."""

    @property
    def name(self) -> str:
        """What a reader of an answer is told, such as 'word by word, score 0.1'."""

    def translates(self, source: str, target: str) -> bool:
        """Return whether texts of one language can be translated into the other."""

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """Return the translation of every text; raise KeyError where `translates` is false."""


class Lexicons:
    """The best translation of every word and phrase, by language, packed: a few dozen kilobytes a language."""

    def __init__(self, packed: Mapping[str, bytes]) -> None:
        self.packed = dict(packed)
        self.best = functools.lru_cache(UNPACKED)(self._best)

    def __contains__(self, code: str) -> bool:
        return code in self.packed

    def __reduce__(self) -> tuple[type[Lexicons], tuple[dict[str, bytes]]]:
        return Lexicons, (self.packed,)

    def _best(self, code: str) -> Best:
        """Return key -> (translation, score in (0, 1]) of a language."""
        rows = (line.split("\t") for line in zlib.decompress(self.packed[code]).decode().splitlines())
        return {key: (translation, float(score)) for key, translation, score in rows}

    def to_json(self) -> dict[str, str]:
        """Return what `from_json` reads."""
        return {code: base64.b64encode(packed).decode() for code, packed in self.packed.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, str]) -> Lexicons:
        """Read what `to_json` returned; raise ValueError where it is something else."""
        packed = {code: base64.b64decode(text, validate=True) for code, text in content.items()}
        return cls(packed)


def pack(lexicon: Lexicon) -> bytes:
    """Pack the best translations of a lexicon for `Lexicons`."""
    lines = (f"{key}\t{options[0][0]}\t{options[0][1]:.4g}" for key, options in sorted(lexicon.entries.items()))
    return zlib.compress("\n".join(lines).encode(), 9)


@dataclass(frozen=True, eq=False)
class WordByWord:
    """Replace the longest phrases and the words whose best translation scores `score` or more; all else stays.

    Word order is that of the source, and a word has one translation whatever stands around it: a gloss, whose words an
    encoder can read where it cannot read the language. Lexicons are of one target each language.
    """

    lexicons: Lexicons
    score: float
    target: str
    name: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"word by word, score {self.score:g}")

    def translates(self, source: str, target: str) -> bool:
        """Return whether there is a lexicon."""
        return source in self.lexicons and target == self.target

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """Return the gloss of every text."""
        if target != self.target:
            raise KeyError(target)
        find = self._entries(source)
        return [replace_words(_spaced(text), find, lambda key, found: found, LONGEST) for text in texts]

    def coverage(self, texts: Iterable[str], source: str) -> float:
        """Return the share of the words of texts that are replaced, nan where there is no word."""
        find, known, total = self._entries(source), 0, 0

        def count(key: str, found: str) -> None:
            nonlocal known
            known += key.count(" ") + 1

        for text in texts:
            replace_words(_spaced(text), find, count, LONGEST)
            total += len(WORD.findall(text))
        return known / total if total else float("nan")

    def _entries(self, source: str) -> Callable[[Sequence[str]], tuple[int, str]]:
        """Return a function from words to the length of the longest entry they begin with, and its translation."""
        best = self.lexicons.best(source)

        def find(words: Sequence[str]) -> tuple[int, str]:
            for length in range(len(words), 0, -1):
                found = best.get(" ".join(words[:length]))
                if found is not None and found[1] >= self.score:
                    return length, found[0]
            return 0, ""

        return find


def _spaced(text: str) -> str:
    # a translated syllable must not stick to the next
    return text.replace(TSHEG, " ") if TSHEG in text else text
