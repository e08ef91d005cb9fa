"""Translation language modelling: fill in words that are masked in a text and in its translation behind it.

Lample and Conneau 2019 ("Cross-lingual language model pretraining"), section 3.3. What is masked in one language may
stand in the other, so filling it in asks the encoder to find it there. Their positions begin anew in the second text;
where texts are read alone later, as here, that is another input than the encoder will see, and can be left.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from xlt_ray.corpora.arrow import take
from xlt_ray.corpora.streams import Singles, held_out, pairs
from xlt_ray.errors import InputError
from xlt_ray.events import OnProgress
from xlt_ray.model import collate
from xlt_ray.model.network import positions
from xlt_ray.techniques.losses import mlm, translations
from xlt_ray.techniques.losses.mlm import NEAR, Counts, Filling
from xlt_ray.techniques.losses.translations import OfTranslations
from xlt_ray.techniques.technique import Compute, Embed, Material
from xlt_ray.techniques.term import Term

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

PLACE = "techniques.tlm"
HELD = 50  # pairs a language by which filling in is measured; half of the fewest that there may be
RESAMPLES = 1000  # of texts, for an interval
TRANSLATED, UNRELATED = "translated", "unrelated"  # what stands beside a text that is measured


class Tlm(OfTranslations):
    """Teach the encoder to fill in words that are masked in a text and in its translation beside it."""

    name: ClassVar[str] = "tlm"
    of_words: ClassVar[bool] = True
    paper: ClassVar[str] = "Lample and Conneau 2019, arXiv 1901.07291"
    needs: ClassVar[str] = (
        "100 or more unlabelled train (else dev) rows of targets with the ids of rows of the first source, or "
        "corpus.parallel; a tokenizer with a mask"
    )
    cost: ClassVar[str] = (
        "rows (else training.batch_size) pairs an update, each as long as two texts; 1 s a language to judge its rows, "
        "on every worker; before and after it each of 50 pairs a language is encoded fourteen times"
    )

    rate: float = Field(0.15, gt=0, le=0.5, description="share of the pieces of both texts that are asked for")
    rows: int | None = Field(None, ge=1, description="pairs an update; default: training.batch_size")
    positions: Literal["continued", "restarted"] = Field(
        "continued", description="of the second text: behind those of the first, or as if it stood alone"
    )
    weight: float = Field(1.0, gt=0, description="beside other losses")

    def check_encoder(self, network: Network, tokenizer: Any) -> None:
        """Refuse a tokenizer without a mask, and positions that cannot begin anew."""
        mlm.refuse_without_mask(PLACE, tokenizer)
        if self.positions == "restarted" and positions(network.encoder) is None:
            raise InputError(
                f"{PLACE}.positions: restarted, but a {type(network.encoder).__name__} has no embeddings of positions; "
                "set it to continued"
            )

    def loss_term(
        self,
        network: Network,
        material: Material,
        compute: Compute,
        on_progress: OnProgress = lambda done, total: None,
    ) -> Term:
        """Return the loss with a head, after measuring how well it fills in pairs that are not learned from."""
        texts, pivot = material.bitext, material.experiment.sources[0]
        judged, faults = translations.translated(material.experiment, texts, on_progress)
        whole = {code: _beside(texts[code], texts[pivot], pairs(texts[code], texts[pivot])) for code in judged}
        ids = {code: held_out(table, HELD) for code, table in whole.items()}
        apart = {one for code, table in whole.items() for one in take(table, ids[code])["id"].to_pylist()}
        learned = {code: _without(table, apart) for code, table in whole.items()}
        few = {code for code, table in learned.items() if table.num_rows < HELD or len(ids[code]) < HELD}
        faults |= dict.fromkeys(few, "few pairs are left to learn from, without texts that stand twice")
        self.tell(faults, pivot)
        learned = {code: table for code, table in learned.items() if code not in few}
        held = {code: take(whole[code], ids[code]) for code in learned}
        masking, counts = mlm.vocabulary(network, learned, held, compute.tokenize, self.rate)
        there = positions(network.encoder)
        if self.positions == "restarted" and there is not None:
            masking = replace(masking, restart=True, first=there.start)
        head = mlm.head_of(network, material, learned, masking, counts, compute)
        measured = {}
        for code in learned:
            firsts, seconds = collate.texts_of(held[code])
            assert seconds is not None
            others = [*seconds[1:], seconds[0]]
            measured[f"{code} {TRANSLATED}"] = masking.each_once(compute.tokenize, firsts, seconds)
            measured[f"{code} {UNRELATED}"] = masking.each_once(compute.tokenize, firsts, others)
        stream = Singles(learned, self.rows or material.experiment.training.batch_size, masking)
        return Filling(self.weight, stream, head, measured).begin(network, compute)

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Measure how often words are found with their translation in view and with another text's, before and after.

        `gain` is the difference, with its 95% interval of a bootstrap over texts.
        """
        term = network.terms[self.name]
        assert isinstance(term, Filling)
        figures: dict[str, float] = {}
        for when, found in {"before": term.before, "after": term.measure(network)}.items():
            codes = [key.removesuffix(f" {TRANSLATED}") for key in found if key.endswith(TRANSLATED)]
            each = {code: _gain(found, code) for code in codes}
            for name in each[codes[0]]:
                figures |= {f"{name}_{when}/{code}": figures_of[name] for code, figures_of in each.items()}
            for name in (f"top{NEAR}_{TRANSLATED}", f"top{NEAR}_{UNRELATED}", "gain"):
                figures[f"{name}_{when}"] = float(np.mean([figures_of[name] for figures_of in each.values()]))
        return figures


def _beside(rows: pa.Table, others: pa.Table, places: np.ndarray) -> pa.Table:
    """Return texts with their translations as second texts, and the ids that both have."""
    first, second = take(rows, places[:, 0]), take(others, places[:, 1])
    return pa.table({"id": first["id"], "text": first["text"], "text_pair": second["text"]})


def _without(table: pa.Table, ids: Collection[str]) -> pa.Table:
    return take(table, np.flatnonzero([one not in ids for one in table["id"].to_pylist()]))


def _gain(found: Counts, code: str) -> dict[str, float]:
    """Return the shares of answers found in a language, their difference, and its interval."""
    both = [found[f"{code} {name}"] for name in (TRANSLATED, UNRELATED)]
    draws = np.random.default_rng(0).integers(len(both[0]), size=(RESAMPLES, len(both[0])))
    shares = [one[:, 2].sum() / one[:, 1].sum() for one in both]
    drawn = [one[draws, 2].sum(1) / one[draws, 1].sum(1) for one in both]
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    names = (f"top{NEAR}_{TRANSLATED}", f"top{NEAR}_{UNRELATED}", "gain", "gain_low", "gain_high")
    return dict(zip(names, map(float, (*shares, shares[0] - shares[1], low, high)), strict=True))
