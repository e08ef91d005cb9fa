"""Tagging: every word of a text has one of some tags, such as a part of speech, or the begin or inside of a name.

A word is scored by the encoder's last hidden state at its first piece (Devlin et al. 2019, section 5.3), the rest of
its pieces is ignored. A text longer than `network.max_length` is read in windows that overlap, cut between words, so
that every word gets its tag; in training one of them is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.streams import Encoded
from xlt_ray.languages import words as splitting
from xlt_ray.model.collate import Tokenize
from xlt_ray.tasks.classification import macro, share
from xlt_ray.tasks.task import Answer, Span, Task

if TYPE_CHECKING:
    from torch import Tensor

OF_SPANS = re.compile(r"([BIMELSU])-(.+)")  # tags of the begin, inside and end of spans, and of spans of one word
OUTSIDE = ("O", "")
SHARED = 4  # a window shares a quarter of its words with the next, and as many before it are context alone


class Window(NamedTuple):
    """A part of a text as it is encoded, and which of its words are answered in it, from `first` on."""

    encoded: Encoded
    first: int


class Tag(Task):
    """Say the tag of every word of a text: named entities, parts of speech, slots."""

    name: ClassVar[str] = "tag"
    data: ClassVar[str] = "words with a tag each (corpus.words, corpus.format: conll or conllu)"
    tagged: ClassVar[bool] = True
    biased: ClassVar[tuple[str, ...]] = ("macro_f1",)

    @cached_property
    def parts(self) -> tuple[tuple[str, str], ...] | None:
        """The prefix and the type of every tag, ("O", "") of those outside of spans; None where none is of spans."""
        found = [OF_SPANS.fullmatch(tag) for tag in self.labels]
        return tuple((one[1], one[2]) if one else OUTSIDE for one in found) if any(found) else None

    @property
    def lead(self) -> str:
        """What a model of it is called at the head of a report."""
        if self.parts is None:
            return f"A tagger of words with {len(self.labels)} tags"
        return f"A finder of spans of {len(self.types)} types in text"

    @property
    def types(self) -> tuple[str, ...]:
        """The types of spans, sorted; none where tags are not of spans."""
        return tuple(sorted({kind for _, kind in self.parts or ()} - {""}))

    @property
    def metrics(self) -> tuple[str, ...]:
        """F1 of spans and the accuracy over words; of tags that are not of spans accuracy, and mean F1 over tags."""
        return ("accuracy", "macro_f1") if self.parts is None else ("f1", "accuracy")

    def faults(self, experiment: Experiment, corpus: Corpus) -> Iterator[str]:
        """Yield what of an experiment is for labels of whole texts."""
        if experiment.mixture.label_balance:
            yield (
                f"mixture.label_balance: {experiment.mixture.label_balance:g} weighs rows by their label, and rows of "
                f"task: {self.name} have many; set it to 0"
            )

    def sizes(self, table: pa.Table) -> np.ndarray:
        """Return how many words every row has, (rows,) int64."""
        return np.asarray(pc.list_value_length(table["words"]).to_numpy().astype(np.int64))

    def gold(self, table: pa.Table) -> np.ndarray:
        """Return the tags of the words of all rows, (words,) int64."""
        return np.asarray(pc.list_flatten(table["label"]).to_numpy().astype(np.int64))

    def encode(
        self,
        tokenize: Tokenize,
        table: pa.Table,
        texts: tuple[list[str], list[str] | None],
        address: tuple[int, int],
        places: np.ndarray,
    ) -> list[Encoded]:
        """Encode rows to be trained on, of a long one a window that is drawn, with `word` and `tag`.

        Both are lists with an entry a word: 1 and the place of the piece that is scored, and its tag.
        """
        tags, found = table["label"].to_pylist(), []
        for number, windows in enumerate(_windows(tokenize, texts[0], _places(texts[0], table))):
            chosen = windows[0]
            if len(windows) > 1:
                rng = np.random.default_rng([*address, 8, int(places[number])])
                chosen = windows[int(rng.integers(len(windows)))]
            own = tags[number][chosen.first : chosen.first + len(chosen.encoded["word"])]
            found.append({**chosen.encoded, "tag": own})
        return found

    def answers(self, answer: Answer, tokenize: Tokenize, table: pa.Table) -> np.ndarray:
        """Score every tag for every word of a table's rows: (words, tags) float32 logits."""
        texts = table["text"].to_pylist()
        return answer([one for windows in self.windows(tokenize, texts, _places(texts, table)) for one in windows])

    def windows(
        self, tokenize: Tokenize, texts: Sequence[str], places: Sequence[Sequence[tuple[int, int]]]
    ) -> list[list[Encoded]]:
        """Encode texts in windows that overlap, cut between words; see the head of this module."""
        return [[one.encoded for one in windows] for windows in _windows(tokenize, texts, places)]

    def loss(self, logits: Tensor, batch: Any, label_smoothing: float) -> Tensor:
        """Return the mean cross-entropy over the words of every row, (rows,), of logits (words, tags)."""
        from torch.nn import functional

        if "tag" not in batch:  # a step of rows without labels
            return 0.0 * logits.sum(1)
        asked = batch["word"] > 0
        each = functional.cross_entropy(logits, batch["tag"][asked], reduction="none", label_smoothing=label_smoothing)
        rows = logits.new_zeros(len(asked)).index_add(0, asked.nonzero()[:, 0], each)
        return rows / asked.sum(1).clamp(min=1)

    def ratios(self, gold: np.ndarray, predicted: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
        """Return twice the spans found right and those of gold and predictions together, or words right and all."""
        counts = self.cells(gold, predicted, sizes)
        if self.parts is not None:
            return np.stack([2 * counts[:, 0], counts[:, 1]], axis=1)
        return np.stack([counts[:, : len(self.labels)].sum(1), np.asarray(sizes)], axis=1)

    def cells(self, gold: np.ndarray, predicted: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
        """Count for every row what `measure` sums, (rows, counts).

        Of spans: those right, those of gold and predictions together, words right, words; of other tags, for each: how
        often it is right, and how often it occurs in gold and predictions together.
        """
        assert sizes is not None, "words come in rows"
        row = np.repeat(np.arange(len(sizes)), sizes)
        right = gold == predicted
        if self.parts is None:
            tags, rows = len(self.labels), len(sizes)
            hits = np.bincount(row[right] * tags + gold[right], minlength=rows * tags)
            both = [np.bincount(row * tags + one, minlength=rows * tags) for one in (gold, predicted)]
            either = both[0] + both[1]
            return np.concatenate([one.reshape(rows, tags) for one in (hits, either)], axis=1)
        ends = np.cumsum(sizes)
        found = np.zeros((len(sizes), 4), dtype=np.int64)
        for number, (start, end) in enumerate(zip(ends - sizes, ends, strict=True)):
            wanted, given = ({*self.spans(tags[start:end].tolist())} for tags in (gold, predicted))
            found[number, :2] = len(wanted & given), len(wanted) + len(given)
        found[:, 2], found[:, 3] = np.bincount(row[right], minlength=len(sizes)), sizes
        return found

    def measure(self, kinds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the metrics, each of sums over rows."""
        sums = kinds.T @ counts
        if self.parts is not None:
            return np.stack([share(2 * sums[0], sums[1]), share(sums[2], sums[3])])
        right, either = np.split(sums, 2)
        return np.stack([share(2 * right.sum(0), either.sum(0)), macro(right, either)])

    def spans(self, answers: Sequence[int]) -> list[Span]:
        """Return the spans of a row's tags as conlleval has them (Tjong Kim Sang and De Meulder 2003), by their place.

        There are none where tags are not of spans. A span ends where its type does, after E or L, and before B, S or U;
        one that begins with I or E counts too.

        >>> Tag(("B-PER", "I-PER", "O")).spans([0, 1, 2, 1])
        [Span(type='PER', start=0, end=2), Span(type='PER', start=3, end=4)]
        """
        if self.parts is None:
            return []
        found, start, before = [], 0, OUTSIDE
        for place, now in enumerate([*(self.parts[tag] for tag in answers), OUTSIDE]):
            apart = before[1] != now[1] or before[0] in "ELSU" or now[0] in "BSU"
            if before[0] != "O" and (apart or now[0] == "O"):
                found.append(Span(before[1], start, place))
            if now[0] != "O" and (apart or before[0] == "O"):
                start = place
            before = now
        return found


def _places(texts: Sequence[str], table: pa.Table) -> list[list[tuple[int, int]]]:
    """Return (start, end) of the words of a table's rows in their texts."""
    words = table["words"].to_pylist()
    places = [splitting.spans(text, own) for text, own in zip(texts, words, strict=True)]
    assert all(len(there) == len(own) for there, own in zip(places, words, strict=True)), "words stand in their text"
    return places


def _windows(
    tokenize: Tokenize, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
) -> list[list[Window]]:
    """Encode texts in as many windows as each takes; `word` of one has an entry for each of the words it answers."""
    found: list[list[Window]] = [[] for _ in texts]
    waiting = [(number, 0, 0) for number in range(len(texts))]  # text, its first word in the window, and to answer
    while waiting:
        # no more words than may find room, so that a long text is not encoded to its end each time
        own = [spans[number][first : first + tokenize.max_length] for number, first, _ in waiting]
        cut = [first + len(some) < len(spans[number]) for (number, first, _), some in zip(waiting, own, strict=True)]
        starts = [some[0][0] if first else 0 for (_, first, _), some in zip(waiting, own, strict=True)]
        ends = [some[-1][1] if more else None for some, more in zip(own, cut, strict=True)]
        parts = [texts[number][a:b] for (number, _, _), a, b in zip(waiting, starts, ends, strict=True)]
        later = []
        for at, (encoded, pieces) in enumerate(tokenize.pieces(parts)):
            number, first, answer = waiting[at]
            places = [(one - starts[at], end - starts[at]) for one, end in own[at]]
            covered = max((end for _, end in pieces), default=0)
            short = len(encoded["input_ids"]) < tokenize.max_length
            inside = len(places) if short else sum(end <= covered for _, end in places)
            # the word to answer is inside, as it was in the window before, unless no window holds it
            done = first + max(inside, answer - first + 1) if places else 0
            last = done == len(spans[number])
            kept = done if last else max(done - inside // SHARED, answer + 1)
            marks = [1 + piece for piece in _first_pieces(pieces, places[answer - first : kept - first])]
            found[number].append(Window({**encoded, "word": marks}, answer))
            if not last:
                later.append((number, max(first + 1, kept - inside // SHARED), kept))
        waiting = later
    return found


def _first_pieces(pieces: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]]) -> list[int]:
    """Return the place of the first piece of every word; of one without, that of the piece before it."""
    found, place = [], 0
    for start, end in words:
        while place < len(pieces) and pieces[place][1] <= start:
            place += 1
        there = place < len(pieces) and pieces[place][0] < end
        found.append(place if there else max(place - 1, 0))
    return found
