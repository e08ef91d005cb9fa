"""xlt_ray: distributed cross-lingual transfer on Ray.

Labels in a few languages go in; a measured, tracked, loadable model for many languages comes out. Read, in this order,
`config/experiment.py` for what a run is, `corpora/corpus.py` and `corpora/mixture.py` for what it learns from (alpha
acts there), `model/network.py`, `training/setup.py` and `training/loop.py` for how it learns, `evaluation/metrics.py`
for what is claimed about it, then `runs/run.py`, where a run begins and ends. A technique plugs in at
`techniques/technique.py`, and a checkpoint is made in `training/checkpoint.py`.

In Python, `train`, `tune`, `evaluate` and `compare` do what the commands of these names do, `load` opens a model and
`plot` draws scores (`api.py`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlt_ray.api import Model, Run, SearchResult, compare, evaluate, load, plot, train, tune
    from xlt_ray.config.experiment import Experiment
    from xlt_ray.errors import InputError, RegistryError, TrainingError
    from xlt_ray.evaluation.scores import Scores

__all__ = [  # noqa: F822 - made on first use
    "Experiment",
    "InputError",
    "Model",
    "RegistryError",
    "Run",
    "Scores",
    "SearchResult",
    "TrainingError",
    "compare",
    "evaluate",
    "load",
    "plot",
    "train",
    "tune",
]


_HOMES = {  # of what is not in `api`, so that an error can be caught without loading torch
    "Experiment": "config.experiment",
    "InputError": "errors",
    "RegistryError": "errors",
    "Scores": "evaluation.metrics",
    "TrainingError": "errors",
}


def __getattr__(name: str) -> Any:
    # on first use, as torch, Ray and pandas take seconds to import and `xlt --help` needs none of them
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("xlt-ray")
    if name not in __all__:
        raise AttributeError(f"module 'xlt_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(f"xlt_ray.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return __all__
