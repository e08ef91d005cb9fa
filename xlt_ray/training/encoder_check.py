"""What can be known of a run's encoder before anything runs: its files, its room, and whether it can read the texts.

No weight is read, only their names and shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.corpus import Corpus, known_languages
from xlt_ray.errors import collecting
from xlt_ray.model import collate, network
from xlt_ray.techniques.technique import Technique

SAMPLE, LONGEST = 50, 500  # rows a language, and characters of each, that are cut into pieces
MOSTLY, PARTLY = 0.5, 0.25  # shares of unknown characters above which a source is refused and any language warned of


def faults(experiment: Experiment, chosen: Sequence[Technique], corpus: Corpus | None) -> list[str]:
    """List why an encoder and what is put on it cannot be used for an experiment; [] where they can.

    Without a corpus, which may have faults of its own, what depends on its labels and texts is left out. A language
    that is only measured and whose script the tokenizer does not know is warned of.
    """
    found: list[str] = []
    config = experiment.network if corpus else experiment.network.model_copy(update={"head": "fresh"})
    asked = experiment.model_copy(update={"network": config})
    with collecting(found):
        network.prefix(config)
    with collecting(found):
        known = known_languages(experiment, corpus) if corpus else ()
        classes = len(corpus.labels) if corpus else 1
        _, tokenizer, _ = techniques.network(chosen, asked, classes, known, weights=False)
        if corpus:
            found += _unreadable(experiment, corpus, known, tokenizer)
    return found


def _unreadable(experiment: Experiment, corpus: Corpus, codes: Sequence[str], tokenizer: Any) -> list[str]:
    tables = {code: table for code in codes if (table := _texts(corpus, code)) is not None}
    shares = {code: unknown_share(tokenizer, table) for code, table in tables.items()}
    lost = [code for code in experiment.sources if shares.get(code, 0.0) > MOSTLY]
    bad = [code for code in codes if code not in lost and shares.get(code, 0.0) > PARTLY]
    init = experiment.network.init
    if bad:
        warnings.warn(
            f"network.init: to the tokenizer of {init!r} much of these languages is unknown: {_shown(bad, shares)}; "
            "expect little of them, or take an encoder that knows their scripts",
            stacklevel=2,
        )
    if not lost:
        return []
    return [
        f"network.init: to the tokenizer of {init!r} most of these sources is unknown: {_shown(lost, shares)}; save "
        "the tokenizer that belongs to the model beside its weights, or take an encoder that knows their scripts"
    ]


def _texts(corpus: Corpus, code: str) -> pa.Table | None:
    there = (corpus.splits.get(split, {}).get(code) for split in ("train", "dev", "test"))
    return next((table for table in there if table is not None and table.num_rows), None)


def _shown(codes: Sequence[str], shares: Mapping[str, float]) -> str:
    worst = sorted(codes, key=lambda code: -shares[code])
    more = f" and {len(worst) - 8} more" if len(worst) > 8 else ""
    return ", ".join(f"{code} ({100 * shares[code]:.0f}% of its characters)" for code in worst[:8]) + more


def unknown_share(tokenizer: Any, table: pa.Table) -> float:
    """Measure which share of the characters of a sample of rows, spaces aside, is in no piece that is known: 0 to 1.

    A tokenizer of bytes knows everything, and BERT's [UNK] stands for all characters of its word.
    """
    rows = np.unique(np.linspace(0, table.num_rows - 1, min(SAMPLE, table.num_rows)).astype(np.int64))
    firsts, seconds = collate.texts_of(table, rows)
    texts = [text[:LONGEST] for text in (*firsts, *(seconds or [])) if text]
    cut = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True) if texts else {"input_ids": []}
    characters = unknown = 0
    for number, text in enumerate(texts):
        known = bytearray(len(text))
        for piece, (start, end) in zip(cut["input_ids"][number], cut["offset_mapping"][number], strict=True):
            if piece != tokenizer.unk_token_id:
                known[start:end] = b"\1" * (end - start)
        written = [at for at, character in enumerate(text) if not character.isspace()]
        characters += len(written)
        unknown += sum(not known[at] for at in written)
    return unknown / max(characters, 1)
