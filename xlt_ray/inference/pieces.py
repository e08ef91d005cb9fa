"""Cut texts into Unigram pieces with SentencePiece's own library, in a fifth of the memory that `tokenizers` takes.

What comes before and after (added pieces, normalising, words, the template around a text) is left to `tokenizers`, with
a vocabulary of nothing but added pieces: every other word becomes one unknown piece that still carries its letters, and
those are cut here. Both look for the segmentation with the highest sum of scores (Kudo 2018, "Subword Regularization"),
one in 64 and the other in 32 bits, so a text with two equally good ones may be cut differently; `differing` counts such
texts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlt_ray import durable
from xlt_ray.errors import InputError

FILE = "sentencepiece.model"
AROUND = "around.json"  # a tokenizer.json without the vocabulary
SPACE = "▁"
LIBRARY = "sentencepiece"  # in `Artefact.vocabulary`


def fits(tokenizer: str) -> bool:
    """Return whether a tokenizer.json can be replaced by this: Unigram over words that begin with ▁."""
    content = json.loads(tokenizer)
    model, words = content["model"], content["pre_tokenizer"] or {}
    return (
        model["type"] == "Unigram"
        and not model.get("byte_fallback")
        and model["unk_id"] is not None
        and words.get("type") == "Metaspace"
        and words.get("replacement") == SPACE
        and words.get("split", True)
    )


def write(tokenizer: str, folder: Path) -> None:
    """Write into a folder the files that `Pieces` reads, made of a tokenizer.json that `fits`."""
    from sentencepiece import sentencepiece_model_pb2

    forms: Any = sentencepiece_model_pb2
    content = json.loads(tokenizer)
    model = content["model"]
    proto = forms.ModelProto()
    for index, (piece, score) in enumerate(model["vocab"]):
        inside = SPACE in piece[1:]  # words are cut before every ▁, so such a piece never occurs
        kind = "UNKNOWN" if index == model["unk_id"] else "UNUSED" if inside else "NORMAL"
        proto.pieces.add(piece=piece, score=score, type=getattr(proto.SentencePiece, kind))
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    proto.trainer_spec.unk_id, proto.trainer_spec.unk_piece = model["unk_id"], model["vocab"][model["unk_id"]][0]
    proto.trainer_spec.bos_id = proto.trainer_spec.eos_id = proto.trainer_spec.pad_id = -1
    normalizer = proto.normalizer_spec  # `tokenizers` has normalised before
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = normalizer.escape_whitespaces = False
    (folder / FILE).write_bytes(proto.SerializeToString())

    added = content["added_tokens"]
    few = [SPACE + SPACE, *(one["content"] for one in added)]  # the first stands for every other word
    ids = [model["unk_id"], *(one["id"] for one in added)]
    for number, one in enumerate(added, start=1):
        one["id"] = number
    content["model"] |= {"vocab": [[piece, 0.0] for piece in few], "unk_id": 0}
    content |= {"truncation": None, "padding": None}
    before, after = _template(content)
    around = {"tokenizer": content | {"post_processor": None}, "ids": ids, "before": before, "after": after}
    durable.write(folder / AROUND, json.dumps(around, ensure_ascii=False))


def _template(content: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids put before and after a text by a tokenizer.json whose template still has the original ids."""
    import tokenizers

    framed = tokenizers.Tokenizer.from_str(json.dumps(content)).encode("x")
    at, body = framed.special_tokens_mask.index(0), framed.special_tokens_mask.count(0)
    return framed.ids[:at], framed.ids[at + body :]


class Pieces:
    """Encode single texts, cut at `max_length`; used like a function, by several threads at once."""

    def __init__(self, folder: Path, prefix: str, max_length: int) -> None:
        import sentencepiece
        import tokenizers

        around = json.loads((folder / AROUND).read_text(encoding="utf-8"))
        self.around = tokenizers.Tokenizer.from_str(json.dumps(around["tokenizer"]))
        self.ids = around["ids"]
        self.cut = sentencepiece.SentencePieceProcessor(model_file=str(folder / FILE))
        self.prefix = prefix
        self.before, self.after = around["before"], around["after"]
        self.room = max_length - len(self.before) - len(self.after)

    def __call__(self, texts: Sequence[str], pairs: None = None) -> list[np.ndarray]:
        """Return the ids of every text, (tokens,) int64; InputError for what is not Unicode, and for pairs."""
        if pairs is not None:
            raise InputError("pairs: this model classifies single texts; leave them out")
        try:
            encoded = self.around.encode_batch([self.prefix + text for text in texts])
        except (TypeError, ValueError) as error:
            raise InputError(f"texts: cannot be encoded ({error}); give Unicode") from None
        rows = []
        for one in encoded:
            body = self._body(one.ids, one.tokens)[: self.room]
            rows.append(np.array([*self.before, *body, *self.after], dtype=np.int64))
        return rows

    def _body(self, ids: Sequence[int], words: Sequence[str]) -> list[int]:
        body: list[int] = []
        for added, group in itertools.groupby(zip(ids, words, strict=True), key=lambda one: one[0] > 0):
            if added:
                body += [self.ids[number] for number, _ in group]
            else:
                body += self.cut.encode("".join(word for _, word in group))
        return body


def differing(tokenizer: str, folder: Path, texts: Sequence[str]) -> int:
    """Count the texts that `Pieces` cuts differently than the tokenizer.json it was made of."""
    import tokenizers

    whole = tokenizers.Tokenizer.from_str(tokenizer)
    whole.no_truncation()
    whole.no_padding()
    ours = Pieces(folder, "", 2**30)(texts)
    theirs = whole.encode_batch_fast(list(texts))
    return sum(mine.tolist() != one.ids for mine, one in zip(ours, theirs, strict=True))
