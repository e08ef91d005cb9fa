"""Centring: subtract from features the mean of their language, so that a head learned in one language fits the others.

Much of the difference between the features of a sentence and of its translation is common to all of a language.
Libovicky et al. 2020 ("On the language neutrality of pre-trained multilingual representations") subtract the mean of
each language; Zhao et al. 2021 ("Inducing language-agnostic multilingual representations") align and normalise
likewise. The means are estimated on unlabelled train text, after training, and are buffers of the network.

Where classes are more or less frequent from language to language, means differ by that too, and centring does harm.

Where a language has rows that are translations of rows of the first source, the pivot, an affine map can bring its
features nearer to theirs than a shift does: x -> origin + (x - mean) (I + D), see `feature_maps`. D = 0 is centring.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import nn

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora import mixture
from xlt_ray.errors import InputError
from xlt_ray.languages import word_alignment
from xlt_ray.techniques.feature_maps import Estimate, procrustes, ridge
from xlt_ray.techniques.technique import Available, Embed, Material, Reads, Technique
from xlt_ray.translation.readings import is_first, language_of

if TYPE_CHECKING:
    from xlt_ray.model.network import Network

FEWEST = 100  # pairs that a map is estimated from


class Centre(Technique):
    """Subtract from the features of a text the mean of its language, estimated on unlabelled text."""

    name: ClassVar[str] = "centre"
    paper: ClassVar[str] = "Libovicky et al. 2020, arXiv 2004.05160; Zhao et al. 2021, arXiv 2008.09112"
    needs: ClassVar[str] = (
        "some hundred unlabelled train (else dev) texts of every target, classes about as frequent as in the sources; "
        "for a map they have the ids of the first source's rows that they translate, 100 or more"
    )
    cost: ClassVar[str] = (
        "one pass of the encoder over those texts; a map is width x width numbers a language in checkpoints and "
        "bundles, 0.6 MB at width 384, and classes x width in an artefact"
    )
    adds_languages: ClassVar[bool] = True

    rows: int = Field(
        500, ge=1, description="texts a language from which its mean, and its map, are estimated; all, where fewer"
    )
    map: Literal["none", "ridge", "procrustes"] = Field(
        "none",
        description="onto features of translations in the first source, estimated where there are 100 or more pairs: "
        "ridge (towards the identity, its penalty by leave-one-out error) or procrustes (a rotation)",
    )
    remove: int = Field(
        0,
        ge=0,
        description="directions to project out along which the means of languages differ most; for a probe only",
    )

    @property
    def reads(self) -> Reads:
        """Texts, and for a map their translations."""
        return "unlabelled" if self.map == "none" else "parallel"

    def reads_each(
        self, experiment: Experiment, targets: Collection[str], there: Collection[str]
    ) -> Mapping[str, Reads]:
        """Return what it reads of each target: of one that gets no map, texts alone."""
        found = dict(super().reads_each(experiment, targets, there))
        if self.map != "none" and isinstance(there, Mapping):
            paired = self._paired(experiment, there)
            found |= {code: "unlabelled" for code in found if code not in paired}
        return found

    @property
    def attaches_from_data(self) -> bool:
        """Whether there are maps, whose number depends on the pivot and on what is trained on."""
        return self.map != "none"

    def check(self, available: Available) -> None:
        """Refuse a corpus without text to estimate a mean, or pairs to estimate a map, and too many directions."""
        codes = available.measured
        there = [code for code in codes if code in available.texts]
        if not set(there) & set(available.targets):
            raise InputError(
                f"techniques.centre: none of the targets ({', '.join(codes[:5])} ...) has train or dev rows to "
                "estimate its mean from; add some, their labels are not looked at"
            )
        if self.remove and available.experiment.training.method != "probe":
            raise InputError(
                f"techniques.centre.remove: {self.remove}: directions cannot be taken from a head that was fine-tuned "
                "with them; set remove to 0, or training.method to probe"
            )
        if self.remove and self.remove >= len(there):
            raise InputError(
                f"techniques.centre.remove: {self.remove} directions of {len(there)} languages; give less than that"
            )
        if self.map != "none" and self.rows < FEWEST:
            raise InputError(
                f"techniques.centre.rows: {self.rows} are too few for a map; give {FEWEST} or more, or set map to none"
            )
        if self.map != "none" and not {*self._paired(available.experiment, available.texts)} & {*available.targets}:
            pivot = available.experiment.sources[0]
            raise InputError(
                f"techniques.centre.map: {self.map}: no target has {FEWEST} rows that are translations of rows of "
                f"{pivot}; give parallel rows (equal ids, corpus.id), put a source that has some first in sources, or "
                "set map to none"
            )

    def attach(self, network: Network, tokenizer: Any, material: Material | None) -> None:
        """Add the subtraction as a step behind the pooling; until `calibrate` it changes nothing."""
        mapped: list[int] | None = None
        if self.map != "none":
            mapped = [network.index(code) for code in (self._mapped(network, material) if material else ())]
        network.steps[self.name] = Shift(len(network.languages), network.head.in_features, self.remove, mapped)

    def texts(self, material: Material) -> Mapping[str, pa.Table]:
        """Return a sample of the texts of every language, in each of its readings.

        For a map, the sample of a language as it stands is of rows that translate rows of the pivot, and that of the
        pivot is of all these rows: pairs give means too, without the chance of two samples.
        """
        read = [material.to_estimate(code, table) for code, table in material.texts.items()]
        found = {key: self._sample(language_of(key), table) for one in read for key, table in one.items()}
        return found | self._paired(material.experiment, material.texts)

    def _paired(self, experiment: Experiment, texts: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
        """Return of every language with enough pairs its rows of pairs, and those of the pivot; {} without maps."""
        pivot = experiment.sources[0]
        if self.map == "none" or pivot not in texts:
            return {}
        shared = {code: word_alignment.shared(texts[pivot], one)[1] for code, one in texts.items() if code != pivot}
        found = {code: _by_id(table, self.rows) for code, table in shared.items() if table.num_rows >= FEWEST}
        if not found:
            return {}
        wanted = pa.chunked_array([chunk for table in found.values() for chunk in _ids(table).chunks]).unique()
        return found | {pivot: texts[pivot].filter(pc.is_in(_ids(texts[pivot]), value_set=wanted))}

    def _mapped(self, network: Network, material: Material) -> dict[str, pa.Table]:
        """Return the rows of pairs of all languages that get a map: not of the pivot, and of none that is fixed."""
        left = (material.experiment.sources[0], *_fixed(material))
        paired = self._paired(material.experiment, material.texts)
        return {code: one for code, one in paired.items() if code not in left and code in network.languages}

    def _sample(self, code: str, table: pa.Table) -> pa.Table:
        if table.num_rows <= self.rows:
            return table
        order = np.random.default_rng(zlib.crc32(code.encode())).permutation(table.num_rows)
        return table.take(np.sort(order[: self.rows]))

    def calibrate(self, network: Network, embed: Embed, material: Material) -> dict[str, float]:
        """Estimate the means with the trained encoder.

        Languages are moved onto the mean of the sources, each counted by its share of the mixture. The sources of a
        fine-tuned head stay, as it has learned them where they are; a probe is fitted after this, and all move. Those
        with pairs are mapped besides, but the pivot.
        """
        tables = self.texts(material)
        features = embed(tables)
        means: dict[str, Any] = {c: rows.mean(0, dtype=np.float64) for c, rows in features.items() if len(rows)}
        experiment = material.experiment
        sizes = {code: material.texts[code].num_rows for code in experiment.sources if code in means}
        if not sizes:
            raise InputError("techniques.centre: no source has text to estimate its mean from; add train rows")
        share = mixture.shares(sizes, experiment.mixture.alpha, experiment.mixture.weights)
        origin = sum(share[code] * means[code] for code in share)
        step = network.steps[self.name]
        assert isinstance(step, Shift)
        step.estimate(network.languages, means, origin, _fixed(material))
        within = np.mean([float(rows.std(0).mean()) for rows in features.values()])
        as_they_stand = {code: mean for code, mean in means.items() if is_first(code)}
        apart = [float(np.abs(mean - origin).mean()) for code, mean in as_they_stand.items() if code not in sizes]
        maps = {} if self.map == "none" else self._calibrate_maps(network, tables, features, material)
        shift = float(np.mean(apart or [0.0]) / within)
        return {"languages": float(len(as_they_stand)), "shift_in_deviations": shift, **maps}

    def _calibrate_maps(
        self, network: Network, tables: Mapping[str, pa.Table], features: Mapping[str, np.ndarray], material: Material
    ) -> dict[str, float]:
        """Estimate the maps; return how many there are, and means over them of what their estimator says of itself."""
        pivot, estimate = material.experiment.sources[0], {"ridge": ridge, "procrustes": procrustes}[self.map]
        found: dict[str, Estimate] = {}
        for code, table in self._mapped(network, material).items():
            places = pc.index_in(_ids(table), value_set=_ids(tables[pivot]).combine_chunks()).to_numpy()
            found[code] = estimate(features[code], features[pivot][places])
        step = network.steps[self.name]
        assert isinstance(step, Shift)
        step.set_maps([network.index(code) for code in found], [one.added for one in found.values()])
        names = next(iter(found.values())).figures if found else ()
        means = {name: float(np.mean([one.figures[name] for one in found.values()])) for name in names}
        return {"maps": float(len(found)), **means}

    def add_language(self, network: Network, code: str, features: np.ndarray) -> None:
        """Estimate the mean of one more language, or anew that of a known one.

        It has no map after that, also where it had one: a map needs pairs, and these are texts of one language.
        """
        step = network.steps[self.name]
        assert isinstance(step, Shift)
        step.add(network.index(code), features.mean(0, dtype=np.float64))


def _fixed(material: Material) -> tuple[str, ...]:
    """Return the languages whose features stay as they are, since a head has learned them so."""
    return material.trained if material.experiment.training.method == "fine_tune" else ()


def _ids(table: pa.Table) -> pa.ChunkedArray:
    return table["id"].cast(pa.large_string())


def _by_id(table: pa.Table, rows: int) -> pa.Table:
    """Return at most so many rows, chosen by their ids: languages that share their ids get the same ones."""
    if table.num_rows <= rows:
        return table
    order = np.argsort([zlib.crc32(one.encode()) for one in _ids(table).to_pylist()], kind="stable")
    return table.take(np.sort(order[:rows]))


class Shift(nn.Module):
    """Subtract a vector that depends on the language, map what has a map, then project out directions common to all.

    `shift` is (languages + 1, width); its last row is for every other language and for an unknown one. `maps` (mapped,
    width, width) are added to the identity; `places` (languages + 1,) int64 name that of a language, -1 for none.
    """

    shift: torch.Tensor
    origin: torch.Tensor
    directions: torch.Tensor
    maps: torch.Tensor
    places: torch.Tensor

    def __init__(self, languages: int, width: int, remove: int, mapped: Sequence[int] | None = None) -> None:
        """Begin with no effect; `mapped` are the languages that are to have a map, None where none ever has one."""
        super().__init__()
        self.register_buffer("shift", torch.zeros(languages + 1, width))
        self.register_buffer("origin", torch.zeros(width))
        self.register_buffer("directions", torch.zeros(remove, width))
        # of a centring without maps the state is as it was before there were any
        self.register_buffer("maps", torch.zeros(0, width, width), persistent=mapped is not None)
        self.register_buffer("places", torch.full((languages + 1,), -1), persistent=mapped is not None)
        if mapped:
            self.set_maps(mapped, [np.zeros((width, width))] * len(mapped))

    def forward(self, features: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
        """Map features (rows, width) of languages (rows,), -1 where unknown, to features of the same shape."""
        features = features - self.shift[language]
        if len(self.maps):
            places = self.places[language]
            # a matrix for every row would be some hundred times the memory of the features
            for place in places[places >= 0].unique().tolist():
                rows = places == place
                added = (features[rows] - self.origin) @ self.maps[place]
                features[rows] = features[rows] + added.to(features.dtype)
        if len(self.directions):
            features = features - ((features - self.origin) @ self.directions.T) @ self.directions
        return features

    def estimate(
        self, languages: Sequence[str], means: Mapping[str, np.ndarray], origin: np.ndarray, fixed: Sequence[str]
    ) -> None:
        """Set the buffers from the means (width,) of languages; those in `fixed` are not shifted."""
        shifts: dict[str, np.ndarray] = {code: mean - origin for code, mean in means.items()}
        everywhere: np.ndarray = np.mean([shift for code, shift in shifts.items() if is_first(code)], axis=0)
        rows: list[np.ndarray] = [
            np.zeros_like(origin) if code in fixed else shifts.get(code, everywhere) for code in languages
        ]
        self.shift.copy_(torch.from_numpy(np.stack([*rows, everywhere])))
        self.origin.copy_(torch.from_numpy(np.asarray(origin)))
        if len(self.directions):
            spread = np.stack([shift for code, shift in shifts.items() if is_first(code)]) - everywhere
            self.directions.copy_(
                torch.from_numpy(np.linalg.svd(spread, full_matrices=False)[2][: len(self.directions)])
            )

    def set_maps(self, languages: Sequence[int], maps: Sequence[np.ndarray]) -> None:
        """Set the maps (width, width) of languages, and take those of all others away."""
        width = self.shift.shape[1]
        self.maps = torch.from_numpy(np.array(maps).reshape(len(maps), width, width)).to(self.maps)
        self.places = torch.full_like(self.places, -1)
        self.places[list(languages)] = torch.arange(len(maps)).to(self.places)

    def add(self, index: int, mean: np.ndarray) -> None:
        """Set the shift of one language from its mean (width,), and take away its map, if it has one.

        An `index` that is new is put before the last row.
        """
        row = torch.from_numpy(mean).to(self.shift) - self.origin
        if index == len(self.shift) - 1:
            self.shift = torch.cat([self.shift[:-1], row[None], self.shift[-1:]])
            self.places = torch.cat([self.places[:-1], self.places.new_full((1,), -1), self.places[-1:]])
            return
        self.shift[index] = row
        if (place := int(self.places[index])) >= 0:
            self.maps = torch.cat([self.maps[:place], self.maps[place + 1 :]])
            self.places = self.places - (self.places > place).long()
            self.places[index] = -1
