"""The space of a search: what may be varied, what is refused and how it is put right, and points as experiments."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xlt_ray import config
from xlt_ray.errors import InputError
from xlt_ray.search import space
from xlt_ray.search.space import Search, describe, mix_of, point_key

POOL = ["eng_Latn", "deu_Latn", "swh_Latn", "hin_Deva"]
SUBSET = {"sources": {"at_most": 3}}
EVERYTHING = {
    "sources": {"at_least": 2, "at_most": 3},
    "mixture.alpha": {"uniform": [0, 1]},
    "mixture.weights": "simplex",
    "training.learning_rate": {"loguniform": [1e-5, 1e-3]},
    "network.max_length": {"integers": [32, 64]},
    "training.decay": {"choice": ["linear", "cosine"]},
    "network.freeze": {"choice": [["embeddings"], ["embeddings", 0]]},
}


def plain(ranges: Any = SUBSET, base: dict[str, Any] | None = None, **asked: Any) -> dict[str, Any]:
    return {"name": "mixes", "sources": POOL, **(base or {}), "search": {"space": ranges, **asked}}


def search(ranges: Any = SUBSET, base: dict[str, Any] | None = None, **asked: Any) -> Search:
    return space.build(plain(ranges, base, **asked))


# what is refused

FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": (
        plain({**SUBSET, "training.learning_rat": {"uniform": [0, 1]}}),
        ["search.space.training.learning_rat", "cannot be searched", "training.learning_rate"],
    ),
    "a key that is none of a search's": (
        plain({**SUBSET, "training.epochs": {"integers": [1, 8]}}),
        ["search.space.training.epochs", "cannot be searched", "these can: sources, mixture.alpha"],
    ),
    "misspelt setting": (
        plain(screening={"trails": 3}),
        ["search.screening.trails: unknown key", "did you mean screening.trials?"],
    ),
    "a setting out of range": (plain(fine_tuning={"trials": -1}), ["search.fine_tuning.trials", "-1", "0"]),
    "no range": (plain({**SUBSET, "mixture.alpha": 0.5}), ["search.space.mixture.alpha", "0.5", "{uniform: [0, 1]}"]),
    "unknown kind of range": (
        plain({**SUBSET, "mixture.alpha": {"normal": [0, 1]}}),
        ["search.space.mixture.alpha", "normal", "{uniform: [0, 1]}"],
    ),
    "three numbers": (
        plain({**SUBSET, "mixture.alpha": {"uniform": [0, 1, 2]}}),
        ["search.space.mixture.alpha", "[0, 1, 2]", "{uniform: [0, 1]}"],
    ),
    "no choice": (plain({**SUBSET, "training.decay": {"choice": []}}), ["search.space.training.decay", "{choice:"]),
    "a choice twice": (
        plain({**SUBSET, "training.batch_size": {"choice": [16, 32, 16]}}),
        ["search.space.training.batch_size", "[16, 32, 16]", "name each once"],
    ),
    "whole numbers that are not": (
        plain({**SUBSET, "network.max_length": {"integers": [32.5, 64.5]}}),
        ["search.space.network.max_length", "32.5", "{integers: [1, 8]}"],
    ),
    "empty range": (
        plain({**SUBSET, "mixture.alpha": {"uniform": [1, 0]}}),
        ["search.space.mixture.alpha", "[1, 0]", "is empty", "the first number is the smaller"],
    ),
    "logarithm of 0": (
        plain({**SUBSET, "training.learning_rate": {"loguniform": [0, 1]}}),
        ["search.space.training.learning_rate", "[0, 1]", "above 0 for loguniform"],
    ),
    "endless range": (
        plain({**SUBSET, "training.learning_rate": {"uniform": [1e-5, math.inf]}}),
        ["search.space.training.learning_rate", "inf", "endless"],
    ),
    "range past what the key allows": (
        plain({**SUBSET, "mixture.alpha": {"uniform": [0, 7]}}),
        ["search.space", "mixture.alpha", "less than or equal to 5", "7"],
    ),
    "fractions for a key of whole numbers": (
        plain({**SUBSET, "training.batch_size": {"uniform": [8, 16]}}),
        ["search.space", "training.batch_size", "integer", "10.4"],
    ),
    "choice that the key does not allow": (
        plain({**SUBSET, "training.decay": {"choice": ["linear", "cubic"]}}),
        ["search.space", "training.decay", "'linear', 'cosine' or 'constant'", "cubic"],
    ),
    "a technique as a range": (
        plain({**SUBSET, "techniques.centre": {"uniform": [0, 1]}}),
        ["search.space.techniques.centre", "{'uniform': [0, 1]} is no choice", "{choice: [false, true]}"],
    ),
    "a technique that is neither on nor off": (
        plain({**SUBSET, "techniques.centre": {"choice": [False, "sometimes"]}}),
        ["search.space.techniques.centre", "'sometimes' is neither false, true nor parameters", "{choice: [false"],
    ),
    "a technique on twice": (
        plain({**SUBSET, "techniques.centre": {"choice": [True, {}]}}),
        ["search.space.techniques.centre", "names a value twice", "name each once"],
    ),
    "a parameter of a technique that is never on": (
        plain({**SUBSET, "techniques.centre.rows": {"integers": [10, 20]}}),
        ["search.space.techniques.centre.rows: centre is on in no mix", "add it to `techniques`", "{choice: [false"],
    ),
    "a parameter of a technique that the space keeps off": (
        plain({**SUBSET, "techniques.lora": {"choice": [False]}, "techniques.lora.rank": {"integers": [1, 2]}}),
        ["search.space.techniques.lora.rank: lora is on in no mix"],
    ),
    "a parameter given by an option as well": (
        plain({**SUBSET, "techniques.lora": {"choice": [{"rank": 2}]}, "techniques.lora.rank": {"integers": [1, 2]}}),
        ["search.space.techniques.lora.rank", "techniques.lora, {'rank': 2}, sets rank as well", "leave it out of one"],
    ),
    "a parameter of a parameter": (
        plain({**SUBSET, "techniques.lora.rank.high": {"integers": [1, 2]}}, {"techniques": ["lora"]}),
        ["search.space.techniques.lora.rank.high: cannot be searched", "techniques.NAME.PARAMETER"],
    ),
    "sizes as a number": (plain({"sources": 2}), ["search.space.sources: 2", "{at_most: 3}"]),
    "sizes beyond the pool": (plain({"sources": {"at_most": 5}}), ["search.space.sources", "at_most <= 4", "5"]),
    "no size": (plain({"sources": {"at_least": 3, "at_most": 2}}), ["search.space.sources", "at_least <= at_most"]),
    "size 0": (plain({"sources": {"at_least": 0, "at_most": 2}}), ["search.space.sources", "1 <= at_least"]),
    "no largest size": (plain({"sources": {"at_least": 2}}), ["search.space.sources", "{at_most: 3}"]),
    "yes as a size": (plain({"sources": {"at_most": True}}), ["search.space.sources", "True", "{at_most: 3}"]),
    "unknown word for sizes": (plain({"sources": {"most": 2}}), ["search.space.sources", "most", "{at_most: 3}"]),
    "weights that are no simplex": (
        plain({**SUBSET, "mixture.weights": "dirichlet"}),
        ["search.space.mixture.weights", "'dirichlet'", "write simplex"],
    ),
    "held-out sources where a mix may take all": (
        plain({"sources": {"at_most": 4}}),
        ["search.selection.languages", "held_out_sources", "at_most below 4", "rank by sources"],
    ),
    "held-out sources where every mix takes all": (
        plain({"mixture.alpha": {"uniform": [0, 1]}}),
        ["search.selection.languages", "held_out_sources", "at_most below 4"],
    ),
    "an objective twice": (
        plain(selection={"objectives": ["mean", "mean"]}),
        ["search.selection.objectives", "twice", "name each once"],
    ),
    "no trials": (
        plain(screening={"trials": 0}, fine_tuning={"trials": 0}),
        ["search", "no trial of any kind", "raise screening.trials or fine_tuning.trials"],
    ),
    "screening that can compare nothing, and no fine-tuning": (
        plain({"training.clip": {"uniform": [0.5, 1]}}, selection={"languages": "sources"}, fine_tuning={"trials": 0}),
        ["search", "no trial of any kind"],
    ),
    "a grid over a continuous range": (
        plain({**SUBSET, "mixture.alpha": {"uniform": [0, 1]}}, searcher="grid"),
        ["search.space.mixture.alpha", "uniform", "search.searcher is grid", "{choice: [...]}"],
    ),
    "another epoch than the last": (
        plain(base={"training": {"select": "source_dev"}}),
        ["training.select", "set it to last"],
    ),
    "a fault of the experiment": (plain(base={"training": {"epochs": 0}}), ["training.epochs", "(got 0)"]),
    "nothing to search": (plain({}), ["search.space", "at least 1"]),
    "no section search": ({"name": "mixes", "sources": POOL}, ["search: missing", "section `search`", "`xlt train`"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_by_key_value_and_way_out(fault: str) -> None:
    data, expected = FAULTS[fault]
    with pytest.raises(InputError) as refused:
        space.build(data)
    missing = [words for words in expected if words not in str(refused.value)]
    assert not missing, f"{refused.value!s} does not say {missing}"


def test_the_file_and_every_wrong_setting_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mixes.yaml"
    file.write_text(yaml.safe_dump(plain(minutes=0, screening={"strengths": [-1]})), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        space.load(file)
    assert all(words in str(refused.value) for words in (str(file), "search.minutes", "search.screening.strengths"))


def test_training_on_a_search_file_is_told_to_tune() -> None:
    with pytest.raises(InputError, match="search: this file describes a search, which `xlt tune` runs"):
        config.build(plain())


def test_overrides_reach_the_search(tmp_path: Path) -> None:
    file = tmp_path / "mixes.yaml"
    file.write_text(yaml.safe_dump(plain()), encoding="utf-8")
    found = space.load(file, ["search.searcher=random", "search.space.sources.at_most=2", "seed=7"])
    assert (found.settings.searcher, found.dimensions[0].high, found.base.seed) == ("random", 2, 7)


# points and parameters

SUBSETS = [sorted(s) for size in (2, 3) for s in itertools.combinations(POOL, size)]


@st.composite
def points(draw: st.DrawFn) -> dict[str, Any]:
    sources = draw(st.sampled_from(SUBSETS))
    tickets = [draw(st.integers(1, 1000)) for _ in sources]
    return {
        "sources": sources,
        "mixture.weights": {c: ticket / sum(tickets) for c, ticket in zip(sources, tickets, strict=True)},
        "mixture.alpha": draw(st.floats(0, 1)),
        "training.learning_rate": draw(st.floats(1e-5, 1e-3)),
        "network.max_length": draw(st.integers(32, 64)),
        "training.decay": draw(st.sampled_from(["linear", "cosine"])),
        "network.freeze": draw(st.sampled_from([["embeddings"], ["embeddings", 0]])),
    }


@settings(deadline=None, max_examples=60)
@given(points())
def test_a_point_comes_back_from_its_parameters(point: dict[str, Any]) -> None:
    found = search(EVERYTHING).decode(search(EVERYTHING).encode(point))
    weights = found.pop("mixture.weights")
    assert weights == pytest.approx(point.pop("mixture.weights"), abs=1e-4)
    assert found == point


def test_parameters_stay_where_a_searcher_may_put_them() -> None:
    asked = search(EVERYTHING)
    outside = {"sources": POOL, "mixture.alpha": 3.0, "training.learning_rate": 1.0, "network.max_length": 8}
    parameters = asked.encode({**outside, "mixture.weights": {"eng_Latn": 1.0, "deu_Latn": 0.0}})
    assert parameters["use"] == 3
    assert (parameters["mixture.alpha"], parameters["training.learning_rate"]) == (1, 1e-3)
    assert parameters["network.max_length"] == 32
    assert all(0 <= parameters[f"{kind}:{code}"] <= 1 for kind in ("use", "weight") for code in POOL)


def test_what_a_point_does_not_name_is_as_configured() -> None:
    base = {"mixture": {"alpha": 0.7}, "training": {"learning_rate": 2e-4, "decay": "cosine"}}
    varied = ("sources", "mixture.alpha", "training.learning_rate", "training.decay")
    asked = search({key: EVERYTHING[key] for key in varied}, base)
    found = asked.decode(asked.encode({"sources": ["deu_Latn", "eng_Latn"]}))
    assert found == {
        "sources": ["deu_Latn", "eng_Latn"],
        "mixture.alpha": 0.7,
        "training.learning_rate": 2e-4,
        "training.decay": "cosine",
    }


def drawn(asked: Search, count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    low, high = int(asked.dimensions[0].low), int(asked.dimensions[0].high)
    names = [f"{kind}:{code}" for kind in ("use", "weight") for code in POOL]
    return [
        asked.decode({"use": int(rng.integers(low, high + 1))} | {name: rng.random() for name in names})
        for _ in range(count)
    ]


def test_subsets_of_one_size_are_equally_likely() -> None:
    counts = Counter(tuple(point["sources"]) for point in drawn(search({"sources": {"at_most": 3}}), 6000))
    for size, chance in ((1, 1 / 12), (2, 1 / 18), (3, 1 / 12)):
        each = [counts[tuple(sorted(codes))] for codes in itertools.combinations(POOL, size)]
        spread = math.sqrt(6000 * chance * (1 - chance))
        assert np.abs(np.array(each) - 6000 * chance).max() < 4 * spread
    assert sum(counts.values()) == 6000 and len(counts) == 4 + 6 + 4


def test_weights_are_uniform_on_the_simplex() -> None:
    ranges = {"sources": {"at_least": 3, "at_most": 3}, "mixture.weights": "simplex"}
    weights = np.array(
        [[point["mixture.weights"][c] for c in point["sources"]] for point in drawn(search(ranges), 6000)]
    )
    assert weights.sum(axis=1) == pytest.approx(np.ones(6000), abs=2e-4)
    # on the triangle a share is below x with probability 1 - (1 - x)^2, and all three are below a half with 1/4
    for x in (0.1, 0.3, 0.6):
        assert (weights < x).mean(axis=0) == pytest.approx([1 - (1 - x) ** 2] * 3, abs=0.025)
    assert (weights.max(axis=1) < 0.5).mean() == pytest.approx(0.25, abs=0.025)


def test_a_grid_has_every_point_once() -> None:
    ranges = {
        "sources": {"at_most": 2},
        "network.max_length": {"integers": [32, 34]},
        "training.decay": {"choice": ["linear", "cosine"]},
    }
    found = search(ranges, searcher="grid").grid()
    subsets = [[code] for code in POOL] + [sorted(pair) for pair in itertools.combinations(POOL, 2)]
    wanted = itertools.product(subsets, (32, 33, 34), ("linear", "cosine"))
    assert sorted(map(str, found)) == sorted(str(dict(zip(ranges, each, strict=True))) for each in wanted)


# points as experiments


def test_an_experiment_is_what_the_point_says_and_else_the_base() -> None:
    base = {"mixture": {"weights": {"eng_Latn": 2.0, "hin_Deva": 3.0}}, "training": {"clip": 2.0}, "seed": 5}
    asked = search({**SUBSET, "mixture.alpha": {"uniform": [0, 1]}}, base)
    point = {"sources": ["eng_Latn", "swh_Latn"], "mixture.alpha": 0.8, "network.max_length": 48}
    found = asked.experiment(point)
    assert (found.sources, found.mixture.alpha) == (("eng_Latn", "swh_Latn"), 0.8)
    assert (found.network.max_length, found.training.clip, found.seed, found.name) == (48, 2.0, 5, "mixes")
    assert found.mixture.weights == {"eng_Latn": 2.0}, "a weight of a language that is not in the mix"
    assert asked.experiment({}) == asked.base
    again = asked.experiment(point, seed=9, name="mixes-9")
    assert (again.seed, again.name, again.sources) == (9, "mixes-9", found.sources)


def test_an_experiment_takes_the_weights_of_the_point() -> None:
    weights = {"eng_Latn": 0.25, "swh_Latn": 0.75}
    found = search().experiment({"sources": ["eng_Latn", "swh_Latn"], "mixture.weights": weights})
    assert found.mixture.weights == weights


def test_an_unsound_point_is_refused() -> None:
    with pytest.raises(InputError, match="mixture.alpha: Input should be less than"):
        search().experiment({"mixture.alpha": 9.0})


# techniques

SWITCHED = {
    "techniques.code_switch": {"choice": [True, False]},
    "techniques.code_switch.rate": {"uniform": [0.1, 0.5]},
    "techniques.centre": {"choice": [False, {"remove": 1}]},
    "techniques.lora.rank": {"integers": [2, 8]},
}
ADAPTED = {"techniques": [{"lora": {"alpha": 4}}]}


def test_techniques_are_as_the_point_says_and_else_as_in_the_base_in_its_order() -> None:
    asked = search({**SUBSET, **SWITCHED}, ADAPTED)
    found = asked.experiment(
        {"techniques.centre": {"remove": 1}, "techniques.code_switch": True, "techniques.code_switch.rate": 0.2}
    )
    assert list(found.techniques.items()) == [
        ("lora", {"alpha": 4}),
        ("code_switch", {"rate": 0.2}),
        ("centre", {"remove": 1}),
    ]
    assert asked.experiment({"techniques.lora.rank": 3}).techniques == {"lora": {"alpha": 4, "rank": 3}}
    assert asked.experiment({"techniques.lora": False, "techniques.lora.rank": 3}).techniques == {}
    assert asked.experiment({"techniques.lora": {"rank": 5}}).techniques == {"lora": {"rank": 5}}, "an option is whole"
    assert asked.experiment({}) == asked.base


def test_parameters_of_a_technique_that_is_off_are_no_part_of_a_point() -> None:
    asked = search({**SUBSET, **SWITCHED}, ADAPTED)
    usual = asked.encode({"sources": ["eng_Latn"]})
    off = asked.decode({**usual, "techniques.code_switch.rate": 0.2})
    assert off["techniques.code_switch"] is False and "techniques.code_switch.rate" not in off
    assert off == asked.decode({**usual, "techniques.code_switch.rate": 0.4})
    on = asked.decode({**usual, "techniques.code_switch": 1, "techniques.code_switch.rate": 0.2})
    assert (on["techniques.code_switch"], on["techniques.code_switch.rate"]) == (True, 0.2)
    assert (off["techniques.centre"], off["techniques.lora.rank"]) == (False, 5), "as the base has it, or the middle"
    for point in (off, on):
        assert asked.decode(asked.encode(point)) == point


@pytest.mark.parametrize(
    ("configured", "options", "usual"),
    [
        ([], [False, True], False),
        (["centre"], [True, False], True),
        ([{"centre": {"rows": 9}}], [False, True], True),
        ([{"centre": {"rows": 9}}], [False, {"rows": 9}, {"rows": 8}], {"rows": 9}),
    ],
)
def test_a_technique_is_usually_as_configured(configured: list[Any], options: list[Any], usual: Any) -> None:
    asked = search({**SUBSET, "techniques.centre": {"choice": options}}, {"techniques": configured})
    found = asked.decode(asked.encode({"sources": ["eng_Latn"]}))
    assert found["techniques.centre"] == usual
    assert asked.experiment(found).techniques == asked.base.techniques


def test_a_grid_has_every_mix_of_techniques_once() -> None:
    ranges = {
        "sources": {"at_least": 3, "at_most": 3},
        "techniques.lora": {"choice": [False, True]},
        "techniques.lora.rank": {"choice": [2, 4]},
    }
    found = search(ranges, searcher="grid").grid()
    made = [{key: value for key, value in point.items() if key != "sources"} for point in found]
    for each in (
        {"techniques.lora": False},
        {"techniques.lora": True, "techniques.lora.rank": 2},
        {"techniques.lora": True, "techniques.lora.rank": 4},
    ):
        assert made.count(each) == 4
    assert len(made) == 3 * 4


def test_every_option_and_bound_is_tried_with_its_technique_on() -> None:
    asked = search({**SUBSET, **SWITCHED}, ADAPTED)
    found = [(key, asked.experiment(point).techniques) for key, point in asked.extremes()]
    rates = [made["code_switch"]["rate"] for key, made in found if key == "techniques.code_switch.rate"]
    assert rates == pytest.approx([0.1, 0.5, 0.22])
    assert [made["lora"]["rank"] for key, made in found if key == "techniques.lora.rank"] == [2, 8]
    assert [made.get("centre") for key, made in found if key == "techniques.centre"] == [None, {"remove": 1}]


# names


def test_equal_files_have_one_key_and_what_matters_changes_it() -> None:
    usual = search().key()
    assert usual.startswith("mixes-search-")
    assert search(dict(SUBSET)).key() == usual
    assert search(fine_tuning={"concurrent": 2}).key() == usual
    assert search(base={"storage": "elsewhere"}).key() == usual
    others = [
        search({"sources": {"at_most": 2}}),
        search(searcher="random"),
        search(base={"seed": 1}),
        search(base={"training": {"learning_rate": 1e-4}}),
        search(selection={"languages": "targets"}),
        search(screening={"trials": 10}),
        search(fine_tuning={"trials": 10}),
        search(retraining={"seeds": 1}),
    ]
    assert len({usual, *(one.key() for one in others)}) == 1 + len(others)


def test_a_point_has_one_name_whatever_its_order() -> None:
    one = {"sources": ["eng_Latn", "deu_Latn"], "mixture.weights": {"eng_Latn": 0.2, "deu_Latn": 0.8}}
    other = {"mixture.weights": {"deu_Latn": 0.8, "eng_Latn": 0.2}, "sources": ["deu_Latn", "eng_Latn"]}
    assert point_key(one) == point_key(other)
    assert point_key(one) != point_key({**one, "mixture.weights": {"eng_Latn": 0.8, "deu_Latn": 0.2}})
    assert point_key(one) != point_key({**one, "sources": ["eng_Latn"]})


def test_a_mix_is_a_point_without_what_frozen_features_cannot_tell() -> None:
    mix = {"sources": ["eng_Latn"], "mixture.alpha": 0.5, "mixture.weights": {"eng_Latn": 1.0}}
    assert mix_of({**mix, "training.learning_rate": 1e-4, "network.dropout": 0.1}) == mix
    asked = search({**SUBSET, "mixture.alpha": {"uniform": [0, 1]}, "training.clip": {"uniform": [1, 2]}})
    assert [one.key for one in asked.mix_dimensions] == ["sources", "mixture.alpha"]


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ({"sources": ["swh_Latn", "eng_Latn"]}, "eng_Latn + swh_Latn"),
        ({"mixture.alpha": 0.25}, "alpha 0.25"),
        ({"sources": ["eng_Latn"], "mixture.weights": {"eng_Latn": 1.0}}, "eng_Latn 1.00"),
        ({"sources": ["eng_Latn"], "network.dropout": None, "training.batch_size": 16}, "eng_Latn, dropout None, bat"),
        (
            {"techniques.lora": True, "techniques.lora.alpha": 4, "techniques.centre": False},
            "lora, lora.alpha 4, no ce",
        ),
        ({}, "as configured"),
    ],
)
def test_a_point_is_described_in_words(point: dict[str, Any], expected: str) -> None:
    assert describe(point).startswith(expected)


def test_a_search_ranked_by_targets_is_an_oracle_and_no_other_is() -> None:
    assert search(selection={"languages": "targets"}).oracle
    assert not search(selection={"languages": "sources"}).oracle and not search().oracle


def test_a_mix_has_as_many_languages_as_the_space_allows_and_else_all_of_the_pool() -> None:
    subsets, whole = search(), search({"mixture.alpha": {"uniform": [0, 1]}}, selection={"languages": "sources"})
    assert (list(subsets.sizes), list(whole.sizes)) == ([1, 2, 3], [4])
    assert subsets.sources({"sources": ["eng_Latn"]}) == ["eng_Latn"] and whole.sources({}) == tuple(POOL)
    assert subsets.varies("sources") and not whole.varies("sources")
