"""The assembly of a run: what may be trained on, what may be looked at, and the network that is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.training.setup import Setup

TARGETS = ("hin_Deva", "swh_Latn")


@pytest.fixture
def settings(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_settings, "targets": list(TARGETS), "techniques": ["centre"]}


def pool_alone(corpus: Corpus) -> tuple[Corpus, dict[str, pa.Table]]:
    """Split a corpus as a search does: labels of the pool alone, and texts of the targets beside it."""
    return replace(corpus.for_training(("eng_Latn", "deu_Latn"))), corpus.unlabelled(TARGETS, ids=True)


def test_texts_of_targets_are_looked_at_and_are_in_no_table_called_train(settings: dict[str, Any]) -> None:
    experiment = build(settings)
    whole = loaders.load(experiment.corpus)
    corpus, texts = pool_alone(whole)
    setup = Setup.of(experiment, corpus, texts)
    assert set(setup.material.texts) == {"eng_Latn", "deu_Latn", *TARGETS} == set(setup.languages)
    assert all("label" not in table.column_names for table in setup.material.texts.values())
    for held in (setup.corpus, setup.visible):
        assert set(held.languages("train")) == {"eng_Latn", "deu_Latn"}
        assert all("label" in table.column_names for split, _, table in held.tables())
    assert setup.material.texts["swh_Latn"].equals(texts["swh_Latn"])


def test_the_whole_corpus_gives_the_same_as_its_parts(settings: dict[str, Any]) -> None:
    experiment = build(settings)
    whole = loaders.load(experiment.corpus)
    one, other = Setup.of(experiment, whole), Setup.of(experiment, *pool_alone(whole))
    assert list(one.material.texts) == list(other.material.texts), "their order decides which rows are drawn"
    assert all(table.equals(other.material.texts[code]) for code, table in one.material.texts.items())
    assert one.languages == other.languages and one.material.trained == other.material.trained
    assert one.visible.languages("train") == other.visible.languages("train")


def test_the_network_knows_the_languages_of_the_setup_and_the_labels_of_the_corpus(settings: dict[str, Any]) -> None:
    experiment = build(settings)
    setup = Setup.of(experiment, loaders.load(experiment.corpus))
    net, tokenize, identity = setup.build()
    assert net.languages == setup.languages and net.head.out_features == len(setup.corpus.labels)
    assert list(net.steps) == ["centre"], "techniques attach to it"
    assert tokenize.max_length == experiment.network.max_length
    assert identity.startswith("directory@")


def test_what_was_read_follows_from_techniques_and_is_tagged(settings: dict[str, Any]) -> None:
    whole = loaders.load(build(settings).corpus)
    shots = [{"few_shot": {"languages": ["swh_Latn"]}}, "centre"]
    expected = {
        (): ("zero-shot", "zero-shot"),
        ("centre",): ("+ unlabelled text", "+ unlabelled text"),
        ("code_switch", "centre"): ("+ parallel text", "+ parallel text"),
        "few": ("few-shot", "+ unlabelled text"),
    }
    for chosen, (highest, zero_shot) in expected.items():
        found = Setup.of(build({**settings, "techniques": shots if chosen == "few" else list(chosen)}), whole)
        assert found.rungs == {"xlt.supervision": highest, "xlt.supervision.zero_shot": zero_shot}
    oracle = build({**settings, "training": {**settings["training"], "select": "target_dev"}})
    assert set(Setup.of(oracle, whole).rungs.values()) == {"oracle"}
