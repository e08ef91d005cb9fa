"""Cut a tokenizer's vocabulary down to the scripts of the languages that are served.

A piece stays when each of its characters belongs to one of these scripts, to Latin (names, brands and addresses occur
in texts of every language) or to all scripts, such as digits and punctuation. A text in these scripts is then cut into
the same pieces as before, whatever it says: Unigram, WordPiece and BPE look at substrings of the text alone, and every
piece that is one stays, with its score or its rank. Letters of other scripts become the unknown piece.

Keeping only pieces that occur in sample texts would cut deeper, but of the quickstart's test texts a fifth hold a piece
that none of its 18,058 train and dev texts holds (docs/decisions.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import regex

from xlt_ray.errors import InputError
from xlt_ray.languages.codes import resolve

# ISO 15924 names combinations of scripts that Unicode knows one by one
TOGETHER = {
    "Hans": ("Hani", "Bopo"), "Hant": ("Hani", "Bopo"), "Jpan": ("Hani", "Hira", "Kana"), "Kore": ("Hang", "Hani"),
    "Hang": ("Hang", "Hani"),
}  # fmt: skip
ALWAYS = ("Latn", "Zyyy", "Zinh")
MARKS = "▁Ġ"  # what tokenizers write for a space
MODELS = ("Unigram", "WordPiece", "WordLevel", "BPE")


def scripts(codes: Iterable[str]) -> tuple[str, ...]:
    """Return the Unicode names of the scripts of languages; InputError where Unicode does not have a script.

    >>> scripts(["deu_Latn", "jpn_Jpan"])
    ('Hani', 'Hira', 'Kana', 'Latn', 'Zinh', 'Zyyy')
    """
    found = set(ALWAYS)
    for code in codes:
        script = resolve(code).rpartition("_")[2]
        found |= set(TOGETHER.get(script, (script,)))
        try:
            regex.compile(rf"\p{{Script={script}}}") if script not in TOGETHER else None
        except regex.error:
            raise InputError(f"languages: {code!r}: Unicode has no script {script!r}; take vocabulary exact") from None
    return tuple(sorted(found))


def kept(tokenizer: str, codes: Sequence[str], pad_id: int, always: Iterable[int] = ()) -> np.ndarray:
    """List the ids that stay, ascending, when the vocabulary of a tokenizer.json is cut down to languages.

    Besides the pieces of their scripts these are: added and unknown pieces, every id up to that of padding, so that it
    keeps its number, and `always`. Raises InputError for a tokenizer that cannot be cut.
    """
    content = json.loads(tokenizer)
    model = content["model"]
    if model["type"] not in MODELS or _byte_level(content):
        kind = f"byte-level {model['type']}" if _byte_level(content) else model["type"]
        raise InputError(f"vocabulary: a {kind} tokenizer cannot be trimmed; take vocabulary exact")
    within = regex.compile("[" + "".join(rf"\p{{Script={one}}}" for one in scripts(codes)) + MARKS + "]*")
    vocabulary = _vocabulary(model)
    stay = {index for piece, index in vocabulary.items() if within.fullmatch(piece)}
    stay |= {one["id"] for one in content["added_tokens"]} | set(range(pad_id + 1)) | set(always)
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        # the unknown piece is scored relative to the lowest of all
        stay |= {int(np.argmin(scores)), *([model["unk_id"]] if model["unk_id"] is not None else [])}
    elif (unknown := model.get("unk_token")) in vocabulary:
        stay.add(vocabulary[unknown])
    return np.array(sorted(stay), dtype=np.int64)


def trimmed(tokenizer: str, keep: np.ndarray) -> str:
    """Return a tokenizer.json with the pieces `keep` alone, numbered in their order."""
    content = json.loads(tokenizer)
    model, number = content["model"], {int(old): new for new, old in enumerate(keep)}
    if model["type"] == "Unigram":
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in number]
        if model["unk_id"] is not None:
            model["unk_id"] = number[model["unk_id"]]
    else:
        model["vocab"] = {piece: number[old] for piece, old in model["vocab"].items() if old in number}
    if model["type"] == "BPE":
        model["merges"] = [one for one in model["merges"] if _stays(one, model)]
    for one in content["added_tokens"]:
        one["id"] = number[one["id"]]
    _renumber(content["post_processor"], number)
    return json.dumps(content, ensure_ascii=False)


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _byte_level(content: dict[str, Any]) -> bool:
    """Return whether letters become bytes before they are cut, whose script is unknown."""
    steps = [content[part] or {} for part in ("normalizer", "pre_tokenizer")]
    for step in steps:
        steps += step.get("normalizers", []) + step.get("pretokenizers", [])
    return any(step.get("type") == "ByteLevel" for step in steps)


def _stays(merge: Any, model: dict[str, Any]) -> bool:
    left, right = merge if isinstance(merge, list) else merge.split(" ")
    joined = left + right.removeprefix(model.get("continuing_subword_prefix") or "")
    return all(piece in model["vocab"] for piece in (left, right, joined))


def _renumber(part: Any, number: dict[int, int]) -> None:
    """Replace the ids in a post-processor: `ids` lists of templates, and `[piece, id]` of BERT and RoBERTa."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "ids":
                part[key] = [number[one] for one in value]
            elif key in ("sep", "cls") and isinstance(value, list):
                part[key] = [value[0], number[value[1]]]
            else:
                _renumber(value, number)
    elif isinstance(part, list):
        for one in part:
            _renumber(one, number)
