"""The section `search` of a configuration: what a search may do, with every default and its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from xlt_ray.config.sections import Section

Rule = Literal["sources", "held_out_sources", "targets"]
Objective = Literal["mean", "worst"]


class SelectionConfig(Section):
    """On which languages' dev rows mixes are ranked, and by what; test rows are out of reach of a search."""

    languages: Rule = Field(
        "held_out_sources",
        description="sources: dev of the mix; held_out_sources: dev of the pool's other languages, which stand in for "
        "unseen targets; targets: dev of the targets, an oracle",
    )
    objectives: tuple[Objective, ...] = Field(("mean",), min_length=1, description="mean, worst, or both: Pareto front")
    standard_errors: float = Field(
        1.0,
        ge=0,
        description="held_out_sources: mixes so near the best score count as equal, and of them the one whose "
        "languages are most similar to the targets is chosen; 0: the best score",
    )
    compare_oracle: bool = Field(
        False,
        description="afterwards, report what target dev would have chosen; reads target labels for that table alone",
    )


class ScreeningConfig(Section):
    """The cheap fidelity: logistic regressions on frozen features, about a second or less each.

    Features are centred where the base has the technique `centre`. Mixes are ranked without the other techniques, and
    without any that only `search.space` switches on: those are compared by fine-tuning alone.
    """

    trials: int = Field(1000, ge=0, description="mixes to try so before any fine-tuning; 0: none")
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.01,),
        min_length=1,
        description="as training.probe_strengths; one, so that mixes are compared and not penalties",
    )


class FineTuningConfig(Section):
    """The real fidelity: fine-tuning on Ray Tune, bad mixes stopped early."""

    trials: int = Field(12, ge=0, description="mixes to begin; 0: screening alone decides")
    workers: int = Field(1, ge=1, description="workers of one trial, each of resources.cpus_per_worker")
    concurrent: int | None = Field(None, ge=1, description="trials at once; default: as many as fit the cluster")
    scheduler: Literal["asha", "none"] = Field("asha", description="none: every trial runs all its epochs")
    grace_epochs: int = Field(1, ge=1, description="asha: epochs before a trial may be stopped")
    reduction: int = Field(3, ge=2, description="asha: one in so many is trained on to the next rung")


class RetrainingConfig(Section):
    """The winner again, with seeds that the search has not used, beside baselines; this is what is reported."""

    seeds: int = Field(3, ge=0, description="new seeds for winner and baselines; 0: no retraining and no test score")
    baselines: tuple[Literal["best_single", "all_alpha_1", "all_alpha_0.3"], ...] = (
        *("best_single", "all_alpha_1", "all_alpha_0.3"),
    )


class SearchConfig(Section):
    """What is searched, by what, and for how long."""

    space: Mapping[str, Any] = Field(
        min_length=1,
        description="dotted key -> its range; sources, mixture.weights: mixes; techniques.NAME: on or off",
    )
    searcher: Literal["tpe", "random", "grid"] = Field("tpe", description="random and grid are for comparison")
    minutes: float | None = Field(
        None, gt=0, description="stop what runs and begin nothing after so long; default: all trials"
    )
    selection: SelectionConfig = SelectionConfig()
    screening: ScreeningConfig = ScreeningConfig()
    fine_tuning: FineTuningConfig = FineTuningConfig()
    retraining: RetrainingConfig = RetrainingConfig()
