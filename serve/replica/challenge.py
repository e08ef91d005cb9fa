"""Run a second model beside the one that answers: it takes a share of the traffic, or a copy of it.

Counted is how often the two return the same label, which needs nobody's help, and, where somebody sends the right
labels to `/v1/feedback`, how often each is right on the same texts.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from xlt_ray.config.sections import Section

if TYPE_CHECKING:
    from serve.replica.model import Answer, Model

BUCKETS = 10_000


class ChallengeArgs(Section):
    """Which model challenges, and how."""

    model: str = Field(min_length=1)
    mode: Literal["shadow", "split"] = Field(
        "shadow", description="shadow: the client gets the champion's answer; split: the challenger's for its share"
    )
    share: float = Field(0.1, gt=0, le=1, description="of the requests")


class Challenge:
    """Counts per language how challenger and champion compare; one replica's part, to be summed by `total`."""

    def __init__(self, args: ChallengeArgs, model: Model) -> None:
        self.args, self.model = args, model
        self._counts: dict[str, Counter[str]] = {}

    def pick(self, champion: Model, texts: Sequence[str]) -> Model:
        """Choose who answers a request; the same texts always get the same model."""
        return self.model if self.args.mode == "split" and self._chosen(texts) else champion

    def shadows(self, texts: Sequence[str]) -> bool:
        """Return whether the challenger should classify these texts as well."""
        return self.args.mode == "shadow" and self._chosen(texts)

    def _chosen(self, texts: Sequence[str]) -> bool:
        digest = 0
        for text in texts:
            digest = zlib.crc32(text.encode("utf-8"), digest)
        return digest % BUCKETS < self.args.share * BUCKETS

    def answered(self, answer: Answer) -> None:
        """Count an answer that a client got."""
        who = "challenger" if answer.model is self.model else "champion"
        for guess in answer.guesses:
            self._count(guess.code)[f"answered_by_{who}"] += 1

    def compared(self, first: Answer, second: Answer) -> None:
        """Count how often two models return the same label to the same texts."""
        same = first.labels == second.labels
        for guess, equal in zip(first.guesses, same, strict=True):
            self._count(guess.code).update(compared=1, agreed=int(equal))

    def judged(self, codes: Sequence[str | None], champion: Sequence[bool], challenger: Sequence[bool]) -> None:
        """Count who was right on texts whose label is known."""
        for code, first, second in zip(codes, champion, challenger, strict=True):
            self._count(code).update(
                judged=1,
                champion_right=int(first),
                challenger_right=int(second),
                only_champion_right=int(first and not second),
                only_challenger_right=int(second and not first),
            )

    def _count(self, code: str | None) -> Counter[str]:
        return self._counts.setdefault(code or "unknown", Counter())

    def tally(self) -> dict[str, Any]:
        """Return what was counted so far: language -> counts."""
        return {
            "challenger": self.model.name,
            "mode": self.args.mode,
            "share": self.args.share,
            "languages": {code: dict(counts) for code, counts in sorted(self._counts.items())},
        }


def total(tallies: Iterable[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """Sum the tallies of all replicas: language -> counts."""
    summed: dict[str, Counter[str]] = {}
    for tally in tallies:
        for code, counts in tally["languages"].items():
            summed.setdefault(code, Counter()).update(counts)
    return summed
