"""Define the roles of languages, and the groups of languages that scores are reported for.

A language's role is about labels: "source", all of its labelled rows may be trained on; "few-shot", some rows of a
target were; "zero-shot", none: what else was read of it, its supervision, `xlt_ray.supervision` ranks. Whether a
language was seen is about texts without labels: the encoder's pre-training.
Reports, comparisons, gates, sweeps and searches all show the groups of `GROUPS`, under these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from xlt_ray.supervision import FEW_SHOT, ZERO_SHOT

Role = Literal["source", "few-shot", "zero-shot"]
ALL, SOURCE = "all", "source"
ROLES = (SOURCE, FEW_SHOT, ZERO_SHOT)  # in the order of tables
SEEN, UNSEEN = "seen", "unseen"  # in pre-training
ZERO_SHOT_SEEN, ZERO_SHOT_UNSEEN = f"{ZERO_SHOT} {SEEN}", f"{ZERO_SHOT} {UNSEEN}"


class Group(NamedTuple):
    """A group of languages: `title` stands above figures, `key` is that of its mean in the summary of scores."""

    title: str
    key: str


GROUPS = {
    ALL: Group("all languages", "mean"),
    SOURCE: Group("source languages", "mean_source"),
    FEW_SHOT: Group("few-shot languages", "mean_few_shot"),
    ZERO_SHOT: Group("zero-shot languages", "mean_zero_shot"),
    ZERO_SHOT_SEEN: Group("zero-shot, seen in pre-training", "mean_seen"),
    ZERO_SHOT_UNSEEN: Group("zero-shot, unseen in pre-training", "mean_unseen"),
}

OF_TARGETS = (ZERO_SHOT, ZERO_SHOT_SEEN, ZERO_SHOT_UNSEEN)  # where no label of a target was trained on


class Measured(Protocol):
    """Whatever knows its role and whether it was seen, None where that is unknown: a language's score, or a Place."""

    @property
    def role(self) -> str | None:
        """The role of the language."""

    @property
    def seen(self) -> bool | None:
        """Whether the encoder saw the language in pre-training."""


class Place(NamedTuple):
    """What a language is: its role, and whether it was seen; None where that is unknown, or differs between models."""

    role: str | None
    seen: bool | None
    supervision: str | None = None  # its rung of `supervision.LADDER`; None of a source


@dataclass(frozen=True)
class Roles:
    """What each language is to a model; `seen` are those of the encoder's pre-training, None where that is unknown.

    >>> roles = Roles(("eng_Latn",), ("swh_Latn",), frozenset({"eng_Latn", "deu_Latn"}))
    >>> [roles.role(code) for code in ("eng_Latn", "swh_Latn", "deu_Latn")]
    ['source', 'few-shot', 'zero-shot']
    >>> roles.was_seen("deu_Latn"), roles.was_seen("swh_Latn"), Roles(()).was_seen("swh_Latn")
    (True, False, None)
    """

    sources: tuple[str, ...]
    few_shot: tuple[str, ...] = ()  # targets of which some labelled rows were trained on
    seen: frozenset[str] | None = None
    supervision: Mapping[str, str] | None = None  # rung of `supervision.LADDER`; of no language named here: zero-shot

    def role(self, code: str) -> Role:
        """Return the role of a language; a source stays one even where it is listed as few-shot."""
        return "source" if code in self.sources else "few-shot" if code in self.few_shot else "zero-shot"

    def was_seen(self, code: str) -> bool | None:
        """Return whether the encoder saw a language in pre-training, None where that is unknown."""
        return None if self.seen is None else code in self.seen

    def place(self, code: str) -> Place:
        """Return role, pre-training and supervision of a language together."""
        role = self.role(code)
        known = self.supervision is not None and role != SOURCE
        return Place(role, self.was_seen(code), (self.supervision or {}).get(code, ZERO_SHOT) if known else None)


def trained_on(role: str) -> bool:
    """Return whether labels of a language with this role were trained on, be they all or few."""
    return role != ZERO_SHOT


def of(languages: Mapping[str, Measured]) -> dict[str, list[str]]:
    """Return the groups that have members, in the order of `GROUPS`; a group keeps the order of the languages.

    Where nothing is known of pre-training, the zero-shot languages are one group and not two more.

    >>> of({"eng_Latn": Place("source", True), "swh_Latn": Place("zero-shot", True), "yor_Latn": Place(None, False)})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'all': ['eng_Latn', 'swh_Latn', 'yor_Latn'], 'source': ['eng_Latn'], 'zero-shot': ['swh_Latn'],
     'zero-shot seen': ['swh_Latn']}
    """
    found = {ALL: list(languages)}
    found |= {role: [code for code, one in languages.items() if one.role == role] for role in ROLES}
    parts = by_pretraining(found[ZERO_SHOT], {code: one.seen for code, one in languages.items()})
    found |= {f"{ZERO_SHOT} {name}": members for name, members in parts.items()}
    return {name: members for name, members in found.items() if members}


def by_pretraining(codes: Iterable[str], seen: Mapping[str, bool | None]) -> dict[str, list[str]]:
    """Return the languages seen and those unseen in pre-training, where there are any; unknown ones are neither.

    >>> by_pretraining(["deu_Latn", "yor_Latn"], {"deu_Latn": True, "yor_Latn": None})
    {'seen': ['deu_Latn']}
    """
    codes = list(codes)
    found = {name: [code for code in codes if seen[code] is known] for name, known in ((SEEN, True), (UNSEEN, False))}
    return {name: members for name, members in found.items() if members}


def apart(languages: Mapping[str, Measured]) -> dict[str, list[str]]:
    """Return groups that share no language: sources, few-shot ones, and zero-shot ones by pre-training where known."""
    found = of(languages)
    rest = set(found.get(ZERO_SHOT, ())) - {*found.get(ZERO_SHOT_SEEN, ()), *found.get(ZERO_SHOT_UNSEEN, ())}
    found[ZERO_SHOT] = [code for code in found.get(ZERO_SHOT, ()) if code in rest]
    return {name: members for name in GROUPS if name != ALL and (members := found.get(name))}


def in_both(first: Mapping[str, Measured], second: Mapping[str, Measured]) -> dict[str, Place]:
    """Return what the languages of two models are: a role only where both agree on it, and likewise for `seen`.

    So a language that is zero-shot in one model and not in the other belongs to no group but "all".
    """
    found = {}
    for code, one in first.items():
        if (other := second.get(code)) is not None:
            role = one.role if one.role == other.role else None
            found[code] = Place(role, one.seen if one.seen is other.seen else None)
    return found
