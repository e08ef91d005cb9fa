"""The supervision ladder: what of a language a model was made from, beside the pre-training of its encoder.

    zero-shot < + unlabelled text < + parallel text < few-shot < oracle

A figure compares with figures of its own rung: one with parallel text beside one without says little about the models.
The rung of a language follows from what techniques say they read of it (`techniques.supervised`). A source, all of
whose labels may be trained on, stands on no rung.
"""

from __future__ import annotations

from collections.abc import Iterable

ZERO_SHOT, UNLABELLED, PARALLEL = "zero-shot", "+ unlabelled text", "+ parallel text"
FEW_SHOT, ORACLE = "few-shot", "oracle"
MEANING = {
    ZERO_SHOT: "nothing of the language was read",
    UNLABELLED: "texts in the language were read, and no label of them",
    PARALLEL: "translations between the language and a source were read, or a dictionary, and no label",
    FEW_SHOT: "labelled rows of the language were trained on",
    ORACLE: "labels of target languages chose the model, so scores are an upper bound",
}
LADDER = tuple(MEANING)  # from the least supervision to the most
BY_READING = {"nothing": ZERO_SHOT, "unlabelled": UNLABELLED, "parallel": PARALLEL, "labels": FEW_SHOT}


def highest(rungs: Iterable[str | None]) -> str | None:
    """Return the rung with the most supervision, None where none is known.

    >>> highest(["zero-shot", "+ parallel text", None, "+ unlabelled text"]), highest([None])
    ('+ parallel text', None)
    """
    return max((rung for rung in rungs if rung is not None), key=LADDER.index, default=None)


def shown(rung: str | None) -> str:
    """Return what to call figures of a rung wherever it does not stand below another; zero-shot where it is unknown.

    >>> [shown(rung) for rung in ("zero-shot", "+ parallel text", "oracle", None)]
    ['zero-shot', 'zero-shot + parallel text', 'oracle', 'zero-shot']
    """
    return f"{ZERO_SHOT} {rung}" if rung in (UNLABELLED, PARALLEL) else rung or ZERO_SHOT


def titled(title: str, rung: str | None) -> str:
    """Return a title of zero-shot languages as that of languages of a rung.

    >>> titled("zero-shot, seen in pre-training", "+ parallel text"), titled("source languages", "+ parallel text")
    ('zero-shot + parallel text, seen in pre-training', 'source languages')
    """
    whole = f"{ZERO_SHOT} languages"
    return title.replace(whole if title == whole and rung not in (None, ZERO_SHOT) else ZERO_SHOT, shown(rung))
