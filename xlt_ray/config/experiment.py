"""Define a run as a frozen pydantic model of its sections, and name it by a digest of what decides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from xlt_ray.config import keys
from xlt_ray.config.sections import (
    CorpusConfig,
    EvaluationConfig,
    MixtureConfig,
    NetworkConfig,
    ResourcesConfig,
    Section,
    TrackingConfig,
    TrainingConfig,
)
from xlt_ray.languages.codes import resolve


class Experiment(Section):
    """One run: what is trained on what, how it is measured, and where it is written."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(0, ge=0, lt=2**63)
    task: str = Field("classification", min_length=1, description="what is asked of a text; see xlt catalogue")
    corpus: CorpusConfig = Field(default_factory=CorpusConfig)
    sources: tuple[str, ...] = Field(min_length=1, description="languages whose train rows are used")
    targets: tuple[str, ...] | Literal["all"] = Field("all", description="languages measured besides the sources")
    mixture: MixtureConfig = MixtureConfig()
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    techniques: Mapping[str, Mapping[str, Any]] = Field(
        {}, description="what helps transfer, in this order: a name, or a name with its parameters; see xlt catalogue"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    storage: str = Field("runs", description="directory or fsspec URL; each run has its own folder in it")

    @field_validator("sources", "targets")
    @classmethod
    def _canonical(cls, codes: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if isinstance(codes, str):
            return codes
        resolved = tuple(resolve(code) for code in codes)
        if twice := keys.repeated(resolved):
            raise ValueError(f"{', '.join(twice)} given twice; name each language once")
        return resolved

    @field_validator("techniques", mode="before")
    @classmethod
    def _named(cls, techniques: Any) -> Any:
        return keys.named(techniques)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        strangers = sorted(set(self.mixture.weights) - set(self.sources))
        if strangers:
            raise ValueError(f"mixture.weights: {', '.join(strangers)} not among sources; add or remove")
        if all(self.mixture.weights.get(code, 1.0) == 0 for code in self.sources):
            raise ValueError("mixture.weights: every source has weight 0; give at least one a positive weight")
        if self.training.average_last > self.training.epochs:
            raise ValueError(
                f"training.average_last: {self.training.average_last} epochs to average but training.epochs is "
                f"{self.training.epochs}; lower the first or raise the second"
            )
        if self.training.average_last > 1 and self.training.select != "last":
            raise ValueError("training.average_last: averaging needs training.select: last")
        if self.training.refit != "none" and self.training.method != "probe":
            raise ValueError(
                f"training.refit: {self.training.refit} fits a probe once more, but training.method is "
                f"{self.training.method}; set training.method to probe, or training.refit to none"
            )
        if self.training.probe_select != "source_dev" and self.training.method != "probe":
            raise ValueError(
                f"training.probe_select: {self.training.probe_select} is for a probe, but training.method is "
                f"{self.training.method}; set training.method to probe, or leave it out"
            )
        self._consistent_without_labels()
        return self

    def _consistent_without_labels(self) -> None:
        if self.training.labelled:
            return
        why = "but training.method: adapt learns no task"
        if self.training.select != "last":
            raise ValueError(f"training.select: {self.training.select} asks for labels of dev, {why}; leave it out")
        if self.network.head != "fresh":
            raise ValueError(f"network.head: {self.network.head}, {why}, so that no head is kept; leave it out")
        if self.mixture.weights or self.mixture.label_balance:
            name = "weights" if self.mixture.weights else "label_balance"
            raise ValueError(f"mixture.{name}: of labelled rows, {why}; leave it out, and set mixture.alpha")
        if self.tracking.register_as is not None:
            raise ValueError(
                f"tracking.register_as: {self.tracking.register_as}, {why}, so that there is nothing to serve; "
                "register the run that begins from it"
            )

    @property
    def oracle(self) -> bool:
        """Whether target labels chose the model, which makes its scores an upper bound and not a zero-shot result."""
        return self.training.select == "target_dev"

    def key(self, fingerprint: str = "") -> str:
        """Return the name of the run: its own, and a digest of the configuration and of the corpus' `fingerprint`.

        So the same command finds the same run again, and another one where rows have changed. Where a run is tracked,
        stored and cached, how often it may fail, how long it waits and who keeps the optimiser's state change no
        result and are left out; the number of workers stays in, because floating-point sums depend on it.
        """
        deciding = self.model_dump(mode="json", exclude={"tracking": True, "storage": True, "name": True})
        for name in ("max_failures", "wait_minutes", "shard_optimizer"):
            deciding["resources"].pop(name)
        deciding["corpus"].pop("cache_dir")
        if deciding["task"] == type(self).model_fields["task"].default:
            del deciding["task"]  # so that a run made before there were others is found again
        for name in ("parallel", "unlabelled", "words"):
            if deciding["corpus"][name] is None:
                del deciding["corpus"][name]  # so that a run made before there was any is found again
        if deciding["network"]["layers"] is None:
            del deciding["network"]["layers"]  # so that a run made before some could be left out is found again
        for name, before in (("refit", "none"), ("probe_select", "source_dev"), ("all_reduce", "float32")):
            if deciding["training"][name] == before:
                del deciding["training"][name]  # so that a run made before there was a choice is found again
        # a list, because they compose in their order, which sorted keys would hide
        deciding["techniques"] = list(deciding["techniques"].items())
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode() + fingerprint.encode()).hexdigest()
        return f"{self.name}-{digest[:10]}"
