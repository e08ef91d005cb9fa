"""Retrieval between languages: which texts are pairs, what is compared, and what the command shows and writes."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from xlt_ray import cli
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.runs import retrieve
from xlt_ray.runs.retrieve import Compared, Found
from xlt_ray.translation.retrieval import by_scale, retrieval

Settings = dict[str, Any]


def tables(**ids: list[str]) -> dict[str, pa.Table]:
    return {code: pa.table({"id": own, "text": [f"{code} {one}" for one in own]}) for code, own in sorted(ids.items())}


def test_pairs_are_texts_of_one_id_and_two_languages_need_ten() -> None:
    found = retrieve.pairs(
        tables(a=[str(i) for i in range(20)], b=[str(i) for i in range(8, 40)], c=[str(i) for i in range(30, 39)])
    )
    assert found.keys() == {("a", "b")}
    assert found["a", "b"].tolist() == [[i, i - 8] for i in range(8, 20)]
    with pytest.raises(
        InputError, match="no two languages have 10 texts with the same ids; set corpus.id .* --split parallel"
    ):
        retrieve.pairs(tables(a=["1"], b=["1"]))


def test_with_a_pivot_every_language_is_compared_with_that_one_alone() -> None:
    ids = [str(i) for i in range(12)]
    assert retrieve.pairs(tables(a=ids, b=ids, c=ids), "b").keys() == {("a", "b"), ("c", "b")}
    with pytest.raises(InputError, match="--pivot: x: has no texts there; there are a, b"):
        retrieve.pairs(tables(a=ids, b=ids), "x")


def test_a_comparison_is_that_of_the_features_of_its_pairs() -> None:
    rng = np.random.default_rng(0)
    features = {"a": rng.normal(size=(40, 6)), "b": rng.normal(size=(30, 6))}
    places = np.stack([rng.permutation(40)[:15], rng.permutation(30)[:15]], 1)
    features["b"][places[:, 1]] += features["a"][places[:, 0]]
    (one,) = retrieve.compare(features, {("a", "b"): places})
    sides = features["a"][places[:, 0]], features["b"][places[:, 1]]
    assert (one.forward, one.backward, one.xsim) == tuple(retrieval(*sides))
    assert (one.csls_forward, one.csls_backward) == tuple(by_scale(*sides)) and one.pairs == 15


def found() -> Found:
    one = Compared("a", "b", 10, 0.1, 0.2, 0.3, 0.5, 0.9)
    return Found(build({"sources": ["b"]}), (one, Compared("b", "c", 10, 0.5, 0.6, 0.7, 0.9, 0.1)), frozenset("ab"))


def test_directions_are_told_from_each_language_to_the_pivot() -> None:
    into = found().into("b")
    assert into.keys() == {"a", "c"}
    assert (into["a"].forward, into["a"].csls_backward) == (0.1, 0.5)
    assert (into["c"].forward, into["c"].backward, into["c"].csls_forward) == (0.6, 0.5, 0.9)
    assert found().groups(into) == {"seen in pre-training": ["a"], "unseen": ["c"]}
    assert retrieve.means(found().compared) == pytest.approx({"c": 0.8, "b": 0.6, "a": 0.4})


def test_the_files_hold_all_pairs(tmp_path: Path) -> None:
    files = retrieve.write(tmp_path / "new", found().compared)
    with files[0].open(encoding="utf-8", newline="") as stream:
        rows = [*csv.DictReader(stream, delimiter="\t")]
    assert [(row["first"], row["second"], row["csls_backward"]) for row in rows] == [
        ("a", "b", "0.5000"),
        ("b", "c", "0.9000"),
    ]
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def file(tiny_settings: Settings, tmp_path: Path) -> Path:
    settings = copy.deepcopy(tiny_settings)
    (tmp_path / "tatoeba").mkdir()
    for code, word in (("deu", "deu"), ("eng", "eng")):
        lines = [f"{word}{i} {word}{i * 7 % 60} {word}{i * 11 % 60}" for i in range(40)]
        (tmp_path / "tatoeba" / f"tatoeba.deu-eng.{code}").write_text("\n".join(lines) + "\n")
    settings["corpus"]["parallel"] = str(tmp_path / "tatoeba")
    settings["name"] = "found"
    (tmp_path / "found.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "found.yaml"


@pytest.mark.long
def test_the_command_shows_every_language_and_writes_all_pairs(file: Path, tmp_path: Path, local_ray: None) -> None:
    result = CliRunner().invoke(cli.app, ["retrieve", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "into eng_Latn" in result.output and "all (3): " in result.output
    with (tmp_path / "out" / "retrieval.tsv").open(encoding="utf-8", newline="") as stream:
        rows = {(row["first"], row["second"]): row for row in csv.DictReader(stream, delimiter="\t")}
    assert len(rows) == 6 and all(row["pairs"] == "45" for row in rows.values())
    shown = next(line for line in result.output.splitlines() if line.startswith("swh_Latn"))
    assert f"{100 * float(rows['eng_Latn', 'swh_Latn']['backward']):.1f}" in shown


@pytest.mark.long
def test_files_in_the_layout_of_tatoeba_are_compared(file: Path, local_ray: None) -> None:
    made = retrieve.of_file(str(file), (), "parallel", "eng_Latn", lambda event: None)
    (one,) = made.compared
    assert (one.first, one.second, one.pairs) == ("deu_Latn", "eng_Latn", 40)


def test_labels_are_not_looked_at_and_other_languages_are_left_out(tiny_settings: Settings) -> None:
    experiment = build({**tiny_settings, "sources": ["eng_Latn"], "targets": ["swh_Latn"]})
    read = retrieve.texts(experiment, loaders.load(experiment.corpus), "test")
    assert read.keys() == {"eng_Latn", "swh_Latn"}
    assert all(table.column_names == ["id", "text"] for table in read.values())


def test_a_split_that_is_none_is_refused(file: Path) -> None:
    result = CliRunner().invoke(cli.app, ["retrieve", str(file), "--split", "tset"])
    assert result.exit_code == 2 and "give one of train, dev, test, parallel" in result.output
