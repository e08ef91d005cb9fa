"""What happens before any work starts: load and check the corpus, lay out the mixture, count what will be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xlt_ray import corpora, mixture, soundness
from xlt_ray.config import Experiment, InputError
from xlt_ray.corpus import Corpus
from xlt_ray.mixture import Share


@dataclass(frozen=True)
class Prepared:
    """A corpus found fit for an experiment, the languages to be measured on it and the mixture of its sources."""

    experiment: Experiment
    corpus: Corpus
    measured: tuple[str, ...]
    mixture: list[Share]
    dropped: dict[str, dict[str, int]]  # split -> language -> rows that also stood in test

    @property
    def zero_shot(self) -> tuple[str, ...]:
        """The measured languages that training sees no label of."""
        return tuple(code for code in self.measured if code not in self.experiment.sources)

    @property
    def updates(self) -> int:
        """How many times fine-tuning will change the weights."""
        draws = sum(share.draws for share in self.mixture)
        return self.experiment.training.epochs * -(-round(draws) // self.experiment.training.batch_size)


def absolute(experiment: Experiment) -> Experiment:
    """Make local paths absolute, because Ray's workers have working folders of their own."""

    def fixed(path: str | None) -> str | None:
        local = (
            path is not None
            and "://" not in path
            and not path.startswith("bundled:")
            and Path(path).expanduser().exists()
        )
        return str(Path(path).expanduser().resolve()) if path is not None and local else path

    init = fixed(experiment.network.init)
    # a pattern such as data/{language}/{split}.tsv does not exist as such: its fixed part decides
    path = experiment.corpus.path
    if path is not None and experiment.corpus.loader == "files" and "://" not in path:
        path = str(Path(path).expanduser().absolute())
    elif experiment.corpus.loader == "hub":
        path = fixed(path)
    cache = experiment.corpus.cache_dir  # one that begins with ~ is meant for whatever home a worker has
    cache = cache if cache.startswith("~") else str(Path(cache).absolute())
    return experiment.model_copy(
        update={
            "network": experiment.network.model_copy(update={"init": init}),
            "corpus": experiment.corpus.model_copy(update={"path": path, "cache_dir": cache}),
        }
    )


def load_corpus(experiment: Experiment) -> tuple[Corpus, dict[str, dict[str, int]]]:
    """Load an experiment's corpus as training sees it: with the overlap with test dropped where that is asked for."""
    corpus = corpora.load(experiment.corpus)
    return soundness.drop_overlap(corpus) if experiment.corpus.overlap == "drop_train" else (corpus, {})


def prepare(experiment: Experiment) -> Prepared:
    """Load and check everything that can be checked without Ray; raise InputError with all faults found."""
    experiment = absolute(experiment)
    corpus, dropped = load_corpus(experiment)
    soundness.check(corpus, experiment.sources, experiment.targets, dev=_dev_needed(experiment, corpus))
    measured = corpus.measured(experiment.sources, experiment.targets)
    sizes = {code: corpus.table("train", code).num_rows for code in experiment.sources}
    return Prepared(experiment, corpus, measured, mixture.table(sizes, experiment.mixture), dropped)


def _dev_needed(experiment: Experiment, corpus: Corpus) -> tuple[str, ...]:
    training = experiment.training
    if training.method == "probe":
        return experiment.sources if len(training.probe_strengths) > 1 else ()
    if training.select == "last":
        return ()
    if training.select == "source_dev":
        return experiment.sources
    others = tuple(code for code in corpus.measured((), experiment.targets) if code not in experiment.sources)
    if not others:
        raise InputError(
            "training.select: target_dev, but every target is a source; name another, or select source_dev"
        )
    return others
