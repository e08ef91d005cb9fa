"""Map every code of a language that a corpus or a user may write to one, in the style of FLORES (hau_Latn).

The table `languages.tsv` has one row per language and script: the 205 of FLORES-200 and SIB-200, what XLM-R was
pre-trained on, and what the loaders of this package and some regional benchmarks (AfriSenti, NusaX, AmericasNLI) add.
Its columns are code, name, script, family (as SIB-200 groups them; arXiv 2309.07445), aliases and in_xlmr.

How `in_xlmr` is counted. XLM-R (arXiv 1911.02116, appendix) lists 100 languages, but it lists names and a row here is a
language in one script. 99 rows are marked, and the two agree as follows.

- 96 of the 100 names have a row that is marked. Romanised Bengali, Hindi, Tamil, Telugu and Urdu are five of the names
  and have rows of their own (ben_Latn and so on), as have simplified and traditional Chinese.
- Burmese in the Zawgyi font is an encoding, not a script, and is part of mya_Mymr.
- Filipino, Oriya and Punjabi are on XLM-R's list, yet the published table of SIB-200 marks tgl_Latn, ory_Orya and
  pan_Guru as unseen. That table is followed in all its rows, so that averages over seen and unseen languages can stand
  beside the published ones.
- Three names count twice: Norwegian (nob_Latn, nno_Latn) and Azerbaijani (azj_Latn, azb_Arab), as in that table, and
  Serbian (srp_Cyrl, srp_Latn), because its name on the list is not bound to a script.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

RIGHT_TO_LEFT = ("Adlm", "Arab", "Hebr", "Nkoo", "Syrc", "Thaa")


@dataclass(frozen=True)
class Language:
    """One language in one script.

    `code` is ISO 639-3 and ISO 15924 joined by an underscore; `aliases` are lower-case codes with hyphens, each of them
    belonging to one language only; `in_xlmr` is whether XLM-R was pre-trained on it.
    """

    code: str
    name: str
    script: str
    family: str
    aliases: tuple[str, ...]
    in_xlmr: bool


@functools.cache
def all_languages() -> tuple[Language, ...]:
    """List the table, sorted by code."""
    text = resources.files("xlt_ray.languages").joinpath("languages.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return tuple(
        Language(code, name, script, family, tuple(aliases.split()), in_xlmr == "1")
        for code, name, script, family, aliases, in_xlmr in rows
    )


def get(code: str) -> Language | None:
    """Look up a canonical code; None when the table does not have it.

    >>> get("hau_Latn").name
    'Hausa'
    """
    return _by_code().get(code)


def name(code: str) -> str:
    """Return a language's name for a reader, or its code where the table does not have it."""
    found = get(code)
    return found.name if found else code


@functools.cache
def resolve(code: str) -> str:
    """Turn any usual code into the canonical one; an unknown code comes back unchanged, with one warning.

    Understood are FLORES codes, ISO 639-1, -2 and -3, macrolanguages, and BCP-47 with a script or a region, in any case
    and with hyphen or underscore. A script decides between the scripts of a language; a region counts only where it
    implies one (zh-TW). A script the language is not known in makes the code unknown, since text in it is another thing
    to an encoder.

    >>> [resolve(code) for code in ("en", "SWA", "zh", "zh_TW", "sr-Latn-RS", "pt-BR")]
    ['eng_Latn', 'swh_Latn', 'zho_Hans', 'zho_Hant', 'srp_Latn', 'por_Latn']
    """
    found = _find(code)
    if found is None:
        # cached with the answer, so each unknown code warns once in a process
        warnings.warn(
            f"language {code!r} is not in xlt_ray/languages/languages.tsv and keeps this name, without family or "
            "script; if it is another name of one that is there, write its FLORES code, such as hau_Latn",
            stacklevel=2,
        )
        return code
    return found


def read(code: str) -> str | None:
    """Turn any usual code into the canonical one, as `resolve`, but return None for an unknown one, without a warning.

    Nothing is cached, as these codes may come from anybody.

    >>> read("sw"), read("qqq")
    ('swh_Latn', None)
    """
    found = _find(code) if code.isascii() else None
    return found if found in _by_code() else None


def right_to_left(code: str) -> bool:
    """Return whether a language's script is written from right to left.

    >>> right_to_left("arb_Arab"), right_to_left("swh_Latn")
    (True, False)
    """
    return code.rpartition("_")[2] in RIGHT_TO_LEFT


def _find(code: str) -> str | None:
    subtags = code.strip().lower().replace("_", "-").split("-")
    # four letters are always a script in BCP-47: a variant of four characters starts with a digit
    at = next((i for i, subtag in enumerate(subtags) if i and len(subtag) == 4 and subtag.isalpha()), None)
    return _longest_alias(subtags) if at is None else _in_script(subtags[:at], subtags[at])


@functools.cache
def _by_code() -> Mapping[str, Language]:
    return MappingProxyType({language.code: language for language in all_languages()})


@functools.cache
def _by_alias() -> Mapping[str, str]:
    exact = {language.code.lower().replace("_", "-"): language.code for language in all_languages()}
    return MappingProxyType(exact | {alias: entry.code for entry in all_languages() for alias in entry.aliases})


def _longest_alias(subtags: list[str]) -> str | None:
    starts = ("-".join(subtags[:length]) for length in range(len(subtags), 0, -1))
    return next((_by_alias()[start] for start in starts if start in _by_alias()), None)


def _in_script(language: list[str], script: str) -> str | None:
    found = _by_alias().get("-".join([*language, script]))
    base = _longest_alias(language)
    if found or base is None:
        return found
    code = f"{base.split('_')[0]}_{script.title()}"
    return code if code in _by_code() else None


def family(code: str) -> str:
    """Return a language's family, or "unknown family"."""
    found = get(code)
    return found.family if found else "unknown family"
