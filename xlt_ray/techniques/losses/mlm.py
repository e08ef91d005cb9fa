"""Language-adaptive pre-training: go on filling in masked words, in texts of the languages that will be served.

Devlin et al. 2019 ("BERT") for the loss; Chau et al. 2020 ("Parsing with multilingual BERT, a small corpus, and a small
treebank") and Alabi et al. 2022 ("Adapting pre-trained language models to African languages via multilingual adaptive
fine-tuning") for going on with it in chosen languages, which are drawn by p ~ rows ** alpha here. Alone in a stage
(`training.method: adapt`), or beside a task.

Scored are the pieces that the texts hold, not the whole vocabulary, of which most languages use little: perplexities
are over these. Measured are some texts a language that this loss does not learn from, each word of which is masked
once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import distributed
from torch.nn import functional

from xlt_ray.corpora.arrow import take
from xlt_ray.corpora.streams import Encoded, Singles, held_out
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.model import collate
from xlt_ray.model.network import encoder_source
from xlt_ray.techniques.losses import lm_head
from xlt_ray.techniques.losses.lm_head import Examples, Head
from xlt_ray.techniques.losses.masking import Masking
from xlt_ray.techniques.technique import Available, Compute, Embed, Material, Reads, Technique
from xlt_ray.techniques.term import Batch, Outputs, Term

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

HELD = 40  # texts a language by which filling in is measured, and no more than a fifth of them
EXAMPLES = 3000  # texts, of all languages alike, at whose masks a head in closed form is fitted
FITTED = 8  # masks of each of these, at most
COUNTED, CHUNK = 100_000, 4096  # texts a language whose pieces are counted at most, and at once
NEAR = 10  # best pieces among which an answer counts as found
Tables = Mapping[str, pa.Table]


class Mlm(Technique):
    """Teach the encoder to fill in words that are masked in unlabelled texts."""

    name: ClassVar[str] = "mlm"
    of_words: ClassVar[bool] = True
    paper: ClassVar[str] = "Devlin et al. 2019, arXiv 1810.04805; Alabi et al. 2022, arXiv 2204.06487"
    needs: ClassVar[str] = (
        "unlabelled train (else dev) texts of sources and targets, or corpus.unlabelled; a tokenizer with a mask"
    )
    cost: ClassVar[str] = (
        "rows (else training.batch_size) an update besides labelled ones, and a score for each piece of the texts at "
        "every mask; before it 100,000 texts a language are tokenised at most, and before and after it each of 40 is "
        "encoded seven times"
    )
    methods: ClassVar[tuple[str, ...]] = ("fine_tune", "adapt")
    reads: ClassVar[Reads] = "unlabelled"
    wants_texts: ClassVar[bool] = True

    rate: float = Field(0.15, gt=0, le=0.5, description="share of the pieces of a text that are asked for, whole words")
    rows: int | None = Field(None, ge=1, description="texts an update; default: training.batch_size")
    weight: float = Field(1.0, gt=0, description="beside other losses")

    def check(self, available: Available) -> None:
        """Refuse a run without texts."""
        if not available.all_texts:
            raise InputError(
                f"techniques.{self.name}: no source or target has train or dev rows, or plain text; give it some "
                "(corpus.unlabelled), or take it out"
            )

    def check_encoder(self, network: Network, tokenizer: Any) -> None:
        """Refuse a tokenizer without a mask."""
        refuse_without_mask(f"techniques.{self.name}", tokenizer)

    def loss_term(
        self,
        network: Network,
        material: Material,
        compute: Compute,
        on_progress: OnProgress = lambda done, total: None,
    ) -> Term:
        """Return the loss with a head, after measuring how well it fills in texts that are not learned from."""
        texts = material.all_texts
        learned, held = apart(texts)
        masking, counts = vocabulary(network, learned, held, compute.tokenize, self.rate, on_progress)
        head = head_of(network, material, learned, masking, counts, compute)
        drawn = self.rows or material.experiment.training.batch_size
        measured = {code: masking.each_once(compute.tokenize, *collate.texts_of(one)) for code, one in held.items()}
        return Filling(self.weight, Singles(learned, drawn, masking), head, measured).begin(network, compute)

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Measure filling in before training and after, in each language and as means over languages."""
        term = network.terms[self.name]
        assert isinstance(term, Filling)
        figures: dict[str, float] = {}
        for when, found in {"before": term.before, "after": term.measure(network)}.items():
            summed = {code: counts.sum(0) for code, counts in found.items()}
            nats = {code: float(one[0] / one[1]) for code, one in summed.items()}
            hits = {code: float(one[2] / one[1]) for code, one in summed.items()}
            figures |= {f"perplexity_{when}": math.exp(np.mean([*nats.values()]))}
            figures |= {f"top{NEAR}_{when}": float(np.mean([*hits.values()]))}
            figures |= {f"perplexity_{when}/{code}": math.exp(value) for code, value in nats.items()}
            figures |= {f"top{NEAR}_{when}/{code}": value for code, value in hits.items()}
        return figures


def refuse_without_mask(place: str, tokenizer: Any) -> None:
    """Raise InputError where a tokenizer has nothing to put in place of words."""
    if tokenizer.mask_token_id is None:
        raise InputError(
            f"{place}: the tokenizer of the encoder (network.init) has no mask to put in place of words; take an "
            "encoder that was trained with one, such as bundled:e5-small, or take the technique out"
        )


def apart(texts: Tables) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """Return the rows that are learned from and those that are measured, by language, where there are some.

    Rows of one id are on one side, and so are equal texts.
    """
    learned, held = {}, {}
    for code, table in texts.items():
        chosen = held_out(table, min(HELD, table.num_rows // 5))
        if len(chosen) <= table.num_rows // 2:  # else ids tell no rows apart
            held[code] = take(table, chosen)
        stands = pc.is_in(table["text"], value_set=held[code]["text"]) if code in held else None
        learned[code] = table if stands is None else table.filter(pc.invert(stands))
    return _filled(learned), _filled(held)


def _filled(tables: Tables) -> dict[str, pa.Table]:
    return {code: table for code, table in tables.items() if table.num_rows}


def vocabulary(
    network: Network,
    learned: Tables,
    held: Tables,
    tokenize: Any,
    rate: float,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[Masking, np.ndarray]:
    """Return what may be masked, pieces of the texts, and how often each stands where is learned from, (pieces,).

    Counted are COUNTED texts a language at most, spread over its table, each by one worker.
    """
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    device = next(network.parameters()).device
    found = []
    for kind, tables in enumerate((learned, held)):
        counts = np.zeros(len(tokenize.tokenizer), dtype=np.int64)
        for number, table in enumerate(tables.values(), start=1):
            rows = np.unique(np.linspace(0, table.num_rows - 1, min(COUNTED, table.num_rows)).astype(np.int64))[
                rank::world
            ]
            for start in range(0, len(rows), CHUNK):
                encoded, words, _ = tokenize.words(*collate.texts_of(take(table, rows[start : start + CHUNK])))
                ids = np.concatenate([row["input_ids"] for row in encoded])
                counts += np.bincount(ids[np.concatenate(words) >= 0], minlength=len(counts))
            on_progress(number + kind * len(learned), len(learned) + len(held))
        whole = torch.from_numpy(counts).to(device)
        if world > 1:
            distributed.all_reduce(whole)
        found.append(whole.cpu().numpy())
    counts, more = found
    there = counts + more > 0
    there[tokenize.tokenizer.all_special_ids] = False
    pieces = np.flatnonzero(there)
    return Masking(pieces, tokenize.tokenizer.mask_token_id, rate), counts[pieces]


def head_of(
    network: Network, material: Material, learned: Tables, masking: Masking, counts: np.ndarray, compute: Compute
) -> Head:
    """Return the head of the encoder's checkpoint, else one in closed form, fitted to texts that are learned from."""
    config, pieces = material.experiment.network, masking.vocabulary
    own = lm_head.prediction_head(encoder_source(config), config.revision)
    if own is not None:
        tied = torch.equal(own.weight, network.encoder.get_input_embeddings().weight.cpu())
        return Head(pieces, own.transform, own.bias[pieces].clone(), own=None if tied else own.weight[pieces].clone())
    each = max(1, EXAMPLES // len(learned))
    encoded: list[Encoded] = []
    for _, table in sorted(learned.items()):
        texts = collate.texts_of(table.slice(0, each))
        rngs = [np.random.default_rng([material.experiment.seed, 7, row]) for row in range(len(texts[0]))]
        encoded += masking(compute.tokenize, *texts, rngs)
    answers = [[answer - 1 for answer in row["answers"] if answer][:FITTED] for row in encoded]
    width = network.head.in_features
    hidden = compute.rows(lambda batch: _at_masks(network, batch), encoded, FITTED * width)
    found = [one.reshape(FITTED, width)[: len(wanted)] for one, wanted in zip(hidden, answers, strict=True)]
    examples = Examples(np.concatenate(found), np.array([*chain.from_iterable(answers)], dtype=np.int64))
    embeddings = network.encoder.get_input_embeddings().weight.detach()[torch.from_numpy(pieces)].float().cpu().numpy()
    return lm_head.closed_form(examples, pieces, embeddings, counts)


def _at_masks(network: Network, batch: Batch) -> torch.Tensor:
    """Return the hidden states of the first pieces asked for of each row, end to end: (rows, FITTED x width)."""
    hidden, asked = network.encode(batch), batch["answers"] > 0
    found = hidden.new_zeros(len(hidden), FITTED, hidden.shape[2])
    place = asked.cumsum(1) - 1
    rows, at = torch.nonzero(asked & (place < FITTED), as_tuple=True)
    found[rows, place[rows, at]] = hidden[rows, at]
    return found.flatten(1)


Counts = Mapping[str, np.ndarray]  # (texts, 3): nats, pieces asked for, and answers among the NEAR best


class Filling(Term):
    """The cross-entropy of the pieces that are asked for of a row, their mean.

    `measured` are texts that are not learned from, by language: each encoded several times, see `Masking.each_once`.
    """

    def __init__(
        self, weight: float, stream: Singles, head: Head, measured: Mapping[str, Sequence[Sequence[Encoded]]]
    ) -> None:
        super().__init__()
        self.weight, self.stream, self.head, self.measured = weight, stream, head, measured
        self.before: Counts = {}

    def begin(self, network: Network, compute: Compute) -> Filling:
        """Measure the encoder as it begins, and return the term."""
        self.head.to(next(network.parameters()).device)
        self.compute = compute
        self.before = self.measure(network)
        return self

    def forward(self, network: Network, batch: Batch, outputs: Outputs, mine: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row, (rows,), and 0 for rows of other streams."""
        touched = sum(0.0 * parameter.sum() for parameter in self.head.parameters())  # DDP wants a gradient of each
        if not mine.any():  # the rows of this stream are in batches of their own
            return outputs.features.new_zeros(len(mine)) + touched
        rows, scores, answers = self._scores(network, outputs.hidden, batch)
        losses = functional.cross_entropy(scores, answers, reduction="none")
        asked = (batch["answers"] > 0).sum(1).clamp(min=1)
        return self.weight * losses.new_zeros(len(mine)).index_add(0, rows, losses) / asked + touched

    def measure(self, network: Network) -> Counts:
        """Count, in each text that is measured, nats, pieces and answers found, each piece asked for once."""
        texts = [(code, text) for code, found in self.measured.items() for text in found]
        encoded = [row for _, text in texts for row in text]
        counted = self.compute.rows(lambda batch: self._counts(network, batch), encoded, 3).astype(np.float64)
        ends = np.cumsum([len(text) for _, text in texts])
        each = np.stack([part.sum(0) for part in np.split(counted, ends[:-1])])
        codes = np.array([code for code, _ in texts])
        return {code: each[codes == code] for code in self.measured}

    def _scores(
        self, network: Network, hidden: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return of each piece that is asked for its row, the scores of all pieces, and its place among these."""
        rows, at = torch.nonzero(batch["answers"], as_tuple=True)
        scores = self.head(hidden[rows, at], network.encoder.get_input_embeddings().weight)
        return rows, scores, batch["answers"][rows, at] - 1

    def _counts(self, network: Network, batch: Batch) -> torch.Tensor:
        rows, scores, answers = self._scores(network, network.encode(batch), batch)
        own = scores.gather(1, answers[:, None])
        nats = scores.logsumexp(1) - own[:, 0]
        found = ((scores > own).sum(1) < NEAR).float()
        counts = torch.stack([nats, torch.ones_like(nats), found], dim=1)
        return counts.new_zeros(len(batch["answers"]), 3).index_add(0, rows, counts)
