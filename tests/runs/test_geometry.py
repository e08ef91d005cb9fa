"""Geometry of a run: what each measure can and cannot be, which rows are looked at, and what the command shows."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from artefacts import changed, word_by_word
from hypothesis import strategies as st
from registered import made_bundle, settings
from scipy import stats
from typer.testing import CliRunner

from xlt_ray import cli
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate, geometry, metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions, save_predictions
from xlt_ray.inference import bundle
from xlt_ray.inference.layers import Reader
from xlt_ray.model import collate, network
from xlt_ray.runs import anchors
from xlt_ray.runs import geometry as measuring

RNG = np.random.default_rng


def noisy(rows: int, width: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = RNG(0)
    one = rng.normal(size=(rows, width)) + 5
    return one, one + noise * rng.normal(size=(rows, width)), np.arange(rows) % 2 == 0


def test_alignment_does_not_change_with_rotation_shift_and_scale() -> None:
    one, other, _ = noisy(30, 50, 1.0)
    turn = np.linalg.qr(RNG(1).normal(size=(50, 50)))[0]
    assert geometry.cka(one, -3 * one @ turn + 8) == pytest.approx(1)
    assert (
        geometry.cka(one @ turn, other) == pytest.approx(geometry.cka(one, 2 * other + 1)) != pytest.approx(1, abs=0.1)
    )
    assert geometry.cka(one.astype(np.float32), other.astype(np.float32)) == pytest.approx(geometry.cka(one, other))


def plain(one: np.ndarray, other: np.ndarray) -> float:
    """The index with the biased products of Kornblith et al. 2019."""
    k, m = ((side - side.mean(0)) @ (side - side.mean(0)).T for side in (one, other))
    return float((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m))


@pytest.mark.parametrize("seed", range(3))
def test_alignment_of_unrelated_features_is_nought_where_the_plain_index_is_near_one(seed: int) -> None:
    one, other = RNG(seed).normal(size=(2, 40, 384))
    assert abs(geometry.cka(one, other)) < 0.1 < 0.85 < plain(one, other)


def test_alignment_is_by_the_unbiased_estimator() -> None:
    def hsic(k: np.ndarray, m: np.ndarray) -> float:  # HSIC_1 of Song et al. 2012, as they write it
        n, ones = len(k), np.ones(len(k))
        k, m = k - np.diag(k.diagonal()), m - np.diag(m.diagonal())
        both = np.trace(k @ m) + ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return float((both - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3)))

    one, other, _ = noisy(12, 7, 2.0)
    k, m = one @ one.T, other @ other.T
    assert geometry.cka(one, other) == pytest.approx(hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m)))


def test_information_grows_with_what_is_shared_and_stops_at_its_most() -> None:
    found = [geometry.information(*noisy(400, 32, noise)) for noise in (0.0, 1.0, 3.0, 50.0)]
    bounds = [one.bound for one in found]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[1] + 0.05 and bounds[1] > bounds[2] + 1
    assert bounds[0] == pytest.approx(found[0].most, abs=0.01) and abs(bounds[3]) < 0.2
    assert all(one.bound <= one.most == math.log(200) for one in found)


def test_the_critic_of_information_is_chosen_on_other_rows_than_it_is_judged_by() -> None:
    one, other, fit = noisy(100, 16, 1.0)
    before, moved = geometry.information(one, other, fit), other.copy()
    moved[~fit] = RNG(2).normal(size=moved[~fit].shape)
    after = geometry.information(one, moved, fit)
    assert after.temperature == before.temperature and after.bound < 0 < before.bound


def test_a_probe_recognises_languages_that_lie_apart_and_no_others() -> None:
    rng = RNG(0)
    alike = {code: rng.normal(size=(200, 150)) for code in "abcd"}  # as many dimensions as could learn rows by heart
    fit = dict.fromkeys("abcd", np.arange(200) % 2 == 0)
    assert np.mean([*geometry.language_probe(alike, fit).values()]) == pytest.approx(0.25, abs=0.08)
    lying_apart = {code: rows + 3 * rng.normal(size=150) for code, rows in alike.items()}
    assert geometry.language_probe(lying_apart, fit) == dict.fromkeys("abcd", 1.0)


def test_spread_is_that_of_all_pairs_and_of_principal_axes() -> None:
    one, _, _ = noisy(20, 6, 0)
    cosines = np.corrcoef(one - 0) * 0 + [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in one] for a in one]
    assert geometry.mean_cosine(one) == pytest.approx(cosines[~np.eye(20, dtype=bool)].mean())
    variances = np.linalg.eigvalsh(np.cov(one.T))
    assert geometry.dimensions(one) == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
    assert geometry.plane(one).var(0) == pytest.approx(variances[::-1][:2] * 19 / 20)


def test_a_rank_correlation_is_within_its_interval_and_of_three_languages_or_more() -> None:
    one, other, _ = noisy(60, 1, 0.7)
    found = geometry.spearman(one[:, 0], other[:, 0], 500, 0)
    assert found.value == pytest.approx(stats.spearmanr(one, other).statistic)
    assert found.low < found.value < found.high < 1 and found.high - found.low < 0.4
    assert np.isnan(geometry.spearman(one[:2, 0], other[:2, 0], 10, 0)).all()
    few = geometry.spearman(np.arange(7.0), np.arange(7.0), 100, 0)
    assert few.value == 1 and np.isnan([few.low, few.high]).all()  # in order however they are drawn


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=20, max_size=60), st.randoms(use_true_random=False)
)
def test_no_gap_exceeds_the_disagreement_on_the_same_rows(rows: list[tuple[int, int, int]], random: Any) -> None:
    gold, mine, theirs = np.array(rows).T
    order = np.array(random.sample(range(len(rows)), len(rows)))
    ids = np.array([str(number) for number in range(len(rows))])
    both = {"b": Predictions(gold, mine, ids), "a": Predictions(gold[order], theirs[order], ids[order])}
    (found,) = geometry.gaps(both, "a").values()
    assert found.lost.mean() == pytest.approx(both["a"].score - both["b"].score)
    assert found.apart.mean() == pytest.approx((mine != theirs).mean())
    assert abs(found.lost.mean()) <= found.apart.mean() and (abs(found.lost) <= found.apart).all()


def test_rows_of_one_id_and_two_labels_are_no_translations() -> None:
    gold, ids = np.arange(20) % 2, np.arange(20).astype(str)
    other = np.r_[gold[:19], 0]  # of the last row another label
    found = geometry.gaps({"a": Predictions(gold, gold, ids), "b": Predictions(other, 1 - gold, ids)}, "a")
    assert found["b"].ids.tolist() == sorted(ids[:19]) and found["b"].lost.tolist() == [1] * 19


def tables(**ids: range) -> dict[str, pa.Table]:
    return {code: pa.table({"id": [*map(str, own)], "text": [f"{code} {i}" for i in own]}) for code, own in ids.items()}


def test_the_same_ids_are_looked_at_in_all_languages_and_on_the_same_side() -> None:
    notes: list[dict[str, Any]] = []
    found = measuring.select(
        tables(a=range(90), b=range(90), c=range(50, 90), d=range(75, 90)), "a", 30, 0, notes.append
    )
    ids = {code: table["id"].to_pylist() for code, table in found.tables.items()}
    sides = {code: dict(zip(ids[code], found.fit[code].tolist(), strict=True)) for code in ids}
    assert ids.keys() == {"a", "b", "c"} and len(ids["b"]) == len(ids["c"]) == 30
    assert [ids["a"][place] for place in found.places["c"]] == ids["c"]
    assert all(sides[code][one] == sides["a"][one] for code in "bc" for one in ids[code])
    assert len({*ids["b"]} & {*ids["c"]}) > 10 and 5 < sum(sides["c"].values()) < 25
    assert notes[-1]["note"] == "left out: languages with fewer than 20 translations of rows of a (1): d"
    with pytest.raises(InputError, match=r"fewer than 20 translations of rows of a \(1\): d; give --split"):
        measuring.select(tables(a=range(90), d=range(75, 90)), "a", 30, 0, notes.append)


def test_layers_are_the_embeddings_and_every_block(tiny_encoder: Path, t5: Path) -> None:
    for encoder in (tiny_encoder, t5):
        experiment = build({"sources": ["eng_Latn"], "network": {"init": str(encoder), "max_length": 32}})
        net, tokenize, _ = network.build(experiment.network, 3, 0)
        batch = collate.pad(tokenize(["eng1 eng2", "eng3 eng4 eng5 eng6 eng7"]), 0)
        with torch.no_grad():
            found = net.eval().pooled(batch, (0, 2)).split(32, dim=1)
            assert torch.equal(found[1], net.features(batch))
            if encoder == tiny_encoder:
                assert torch.allclose(found[0], net.pool(net.encoder.embeddings(batch["input_ids"]), batch))
        assert measuring.chosen(net, ()) == (0, 1, 2) and measuring.chosen(net, (0,)) == (0, 2)
        with pytest.raises(InputError, match="--layers: 3: give numbers from 0, the embeddings, to 2, the last block"):
            measuring.chosen(net, (1, 3))


@pytest.mark.parametrize("chosen", [[], ["centre", "lora"], [{"centre": {"map": "ridge"}}]], ids=str)
@pytest.mark.parametrize("read", [False, True], ids=["as it stands", "read in translation"])
def test_answers_are_those_of_the_bundle(chosen: list[Any], read: bool, tiny_encoder: Path, tmp_path: Path) -> None:
    known = ("eng_Latn", "swh_Latn")
    kept = word_by_word() if read else None
    model = bundle.load(changed(tmp_path / "bundle", tiny_encoder, chosen, known, kept))
    experiment = build(
        {"sources": ["eng_Latn"], "corpus": {"cache_dir": str(tmp_path)}, "training": {"precision": "float32"}}
    )
    asked = {code: pa.table({"text": [f"{code[:3]}{i} {code[:3]}{3 * i}" for i in range(20)]}) for code in known}
    laid = Reader.of(model, experiment).features(evaluate.read(asked, model.readings), (2,), lambda done, total: None)
    found = measuring.answered(model, {key: one[2] for key, one in laid.items()}, asked)
    for code, table in asked.items():
        wanted = model.probabilities(table["text"].to_pylist(), languages=[code] * 20).argmax(1)
        assert found[code].tolist() == wanted.tolist() and len({*wanted}) > 1


def test_rows_whose_ids_are_equal_by_chance_are_not_compared() -> None:
    rng, ids = RNG(0), np.arange(60).astype(str)
    one, other = rng.integers(3, size=(2, 60))
    assert geometry.gaps({"a": Predictions(one, one, ids), "b": Predictions(other, other, ids)}, "a") == {}
    few = ids[:19]
    assert geometry.gaps({"a": Predictions(one, one, ids), "b": Predictions(one[:19], one[:19], few)}, "a") == {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, tiny_corpus: Path) -> Path:
    """The folder of a finished run: bundle, scores and predictions of the four languages."""
    folder = tmp_path_factory.mktemp("run")
    data = settings(tiny_encoder, tiny_corpus, folder / "cache") | {"sources": ["eng_Latn"]}
    model = bundle.load(made_bundle(folder / "made", data))
    test = loaders.load(model.experiment.corpus).splits["test"]
    found = evaluate.predict(model.network, model.task, test, evaluate.Inputs(model.tokenize, "float32"))
    scores = metrics.score(found, model.labels, Roles(model.experiment.sources, ("deu_Latn",)), 200)
    identity = json.loads((folder / "made" / "bundle.json").read_text(encoding="utf-8"))["encoder"]
    bundle.save(folder / "bundle", replace(model, scores=scores), identity)
    save_predictions(folder / "predictions.npz", found)
    return folder


def asked(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["geometry", *map(str, arguments)], env={"COLUMNS": "80"})


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return [*csv.DictReader(stream, delimiter="\t")]


def test_the_command_shows_means_and_the_bound_and_writes_all_languages(run: Path, tmp_path: Path) -> None:
    done = asked(run, "--split", "test", "--rows", "40", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "2 zero-shot: " in done.stdout and "Spearman" not in done.stdout and "nan" not in done.stdout
    shown = [line.split() for line in done.stdout.splitlines()]
    rows = lines(tmp_path / "out" / "geometry.tsv")
    assert [(row["language"], row["layer"]) for row in rows[:5]] == [
        *((code, "0") for code in ("eng_Latn", "deu_Latn", "hin_Deva", "swh_Latn")), ("eng_Latn", "1")
    ]  # fmt: skip
    mean = np.mean([float(row["cka"]) for row in rows if row["layer"] == "2" and row["language"] != "eng_Latn"])
    assert ["2", "all", "(3)", f"{mean:.2f}"] in [words[:4] for words in shown]
    found = {row["language"]: row for row in lines(tmp_path / "out" / "disagreement.tsv")}
    assert found.keys() == {"deu_Latn", "hin_Deva", "swh_Latn"} and found["deu_Latn"]["role"] == "few-shot"
    for row in found.values():  # disagreement is of 40 of the 45 test rows here
        assert (row["rows"], row["test_rows"]) == ("40", "45")
        assert abs(float(row["gap"])) <= float(row["test_disagreement"])
        assert abs(float(row["disagreement"]) - float(row["test_disagreement"])) < 0.12
        for name in ("disagreement", "gap"):
            assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
        assert float(row["excess"]) == pytest.approx(abs(float(row["gap"])) - float(row["disagreement"]), abs=2e-4)
        assert row["excess_low"] == row["excess_high"] == ""  # of rows of test it is a theorem
    for name in ("layers", "map", "gap"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def measured(place: Path, *overrides: str, **changes: Any) -> measuring.Geometry:
    return measuring.of_bundle(place, overrides, measuring.Asked(**{"split": "test", **changes}), lambda event: None)


def test_of_a_language_without_test_labels_accuracy_is_estimated_and_said_to_be(run: Path, tmp_path: Path) -> None:
    model = bundle.load(run / "bundle")
    corpus = loaders.load(model.experiment.corpus).splits["test"]
    gold, ids = (corpus["eng_Latn"][name].to_numpy(zero_copy_only=False) for name in ("label", "id"))
    right = Predictions(gold, np.where(np.arange(45) < 36, gold, (gold + 1) % 3), ids)
    save_predictions(tmp_path / "predictions.npz", {"eng_Latn": right})
    answers = {code: np.zeros(45, np.int64) for code in corpus}
    answers["swh_Latn"][:9], answers["hin_Deva"][:] = 1, 2  # other labels than in English: of a fifth, and of all
    pairs = measuring.select(corpus, "eng_Latn", 45, 0, print)
    asked = (model.experiment, pairs, "eng_Latn", answers)
    known = measuring.disagreements(model, *asked, tmp_path / "predictions.npz")
    assert known["estimated"].isna().all() and known["gap"].notna().all(), "the scores hold all of them"
    unknown = replace(model, scores=None)
    found = measuring.disagreements(unknown, *asked, tmp_path / "predictions.npz").set_index("language")
    assert found["gap"].isna().all()
    assert found["estimated"].to_dict() == pytest.approx({"deu_Latn": 0.8, "swh_Latn": 0.6, "hin_Deva": 0})
    assert 0.4 < found["estimated_low"]["swh_Latn"] < 0.6 < found["estimated_high"]["swh_Latn"] < 0.8
    alone = measuring.disagreements(unknown, *asked, tmp_path / "nothing.npz")
    assert alone["estimated"].isna().all(), "nothing is known in English"
    whole = measured(run / "bundle", layers=(2,))
    told = replace(whole, languages=found.reset_index()).sentences()
    assert told[-2].startswith(
        "estimated, from disagreement on 45 parallel rows: accuracy in swh_Latn about 60.0 or more ["
    )
    assert not any("estimated" in line for line in whole.sentences())


def test_no_text_is_computed_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured(run / "bundle").layers.query("layer == 2").reset_index(drop=True)
    monkeypatch.setattr(evaluate, "outputs", None)
    again = measured(run / "bundle", layers=(0,)).layers.query("layer == 2").reset_index(drop=True)
    assert len(first) == 4 and again.equals(first)


def test_a_bundle_alone_holds_its_scores_against_disagreement_without_intervals(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(run / "bundle")
    alone, beside = measured(tmp_path / "bundle"), measured(run / "bundle")
    for name in ("gap", "disagreement", "excess"):
        assert alone.languages[name].to_numpy() == pytest.approx(beside.languages[name].to_numpy())
    assert alone.languages["gap_low"].isna().all() and alone.languages["test_rows"].isna().all()
    assert beside.languages["gap_low"].notna().all()
    assert alone.transfer.held == beside.transfer.held and alone.transfer.surely == alone.transfer.broken == 0
    few = measured(run / "bundle", "targets=[deu_Latn]")
    assert few.sentences() == [
        "no zero-shot language of these was measured on test, so there is nothing to hold this against"
    ]


def test_ranks_are_told_only_where_there_are_some(run: Path) -> None:
    whole = measured(run / "bundle")
    assert whole.transfer.languages == 2 and "Spearman" not in " ".join(whole.sentences()), "two are always in order"
    lines = [whole.languages.assign(language=f"{place}") for place in range(3)]  # every one of three languages thrice
    for each, more in zip(lines, (0.0, 0.1, 0.2), strict=True):
        each["gap"] += more
    layers = [whole.layers[whole.layers["language"] == "swh_Latn"].assign(language=f"{place}") for place in range(3)]
    many = replace(whole, languages=pd.concat(lines), layers=pd.concat(layers))
    told = many.sentences()[2]
    assert told.startswith("Spearman with the gap on test, figures of the last layer: disagreement ")
    assert "nan" not in told and "cka" not in told, "which is the same in all of them here"


def test_rows_that_the_run_may_have_read_are_pointed_out(run: Path) -> None:
    model = bundle.load(run / "bundle")
    learned = replace(model, supervision={"swh_Latn": "+ unlabelled text"})
    pairs = measuring.Pairs({}, {code: np.arange(2) for code in ("swh_Latn", "hin_Deva")}, {})
    (note,) = measuring._notes(learned, model.experiment, "unlabelled", pairs)
    assert "read texts of 1 of these languages" in note
    assert not [*measuring._notes(learned, model.experiment, "test", pairs)]


def test_where_the_first_token_is_pooled_there_is_no_layer_of_embeddings(run: Path) -> None:
    net = bundle.load(run / "bundle").network
    assert measuring.chosen(net, ()) == (0, 1, 2)
    net.pooling = "first"
    assert measuring.chosen(net, ()) == (1, 2)
    with pytest.raises(InputError, match="--layers: 0: give numbers from 1, the first block, to 2"):
        measuring.chosen(net, (0,))


def test_features_are_kept_by_tokenizer_and_configuration_too(run: Path) -> None:
    model = bundle.load(run / "bundle")
    kept = Reader.of(model, model.experiment).settings
    assert Reader.of(model, model.experiment).settings == kept
    model.network.encoder.config.layer_norm_eps = 1e-3
    assert Reader.of(model, model.experiment).settings != kept


def test_texts_are_those_of_sources_and_targets_without_labels_and_never_of_test(run: Path) -> None:
    experiment = build({**bundle.load(run / "bundle").experiment.model_dump(mode="json"), "targets": ["swh_Latn"]})
    corpus = loaders.load(experiment.corpus)
    found = measuring.texts(experiment, corpus, "unlabelled")
    assert {code: table.column_names for code, table in found.items()} == {
        "eng_Latn": ["text", "id"], "swh_Latn": ["text", "id"]
    }  # fmt: skip
    assert found["swh_Latn"]["id"].to_pylist() == corpus.table("train", "swh_Latn")["id"].to_pylist()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--split", "tset"], ["--split: 'tset'; give one of unlabelled, train, dev, test, parallel"]),
        (["--pivot", "fra_Latn"], ["--pivot: fra_Latn: has no texts there; there are deu_Latn, eng_Latn"]),
        (["--layers", "0,7"], ["--layers: 7: give numbers from 0, the embeddings, to 2"]),
        (["--layers", "last"], ["--layers: 'last'; give whole numbers joined by commas"]),
        (
            ["--anchors", "--rows", "40"],
            ["--rows: is of layers, and --anchors looks at test texts alone; leave it out"],
        ),
        (["targets=[swh_Latn]"], ["fewer than 20 translations of rows of eng_Latn (1): swh_Latn; give --split"]),
        (["corpus.id=null"], ["no two languages have 10 texts with the same ids"]),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    run: Path, arguments: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "outputs", None)
    done = asked(run, *arguments)
    assert done.exit_code == 2, done.output
    assert all(part in " ".join(done.stderr.split()) for part in parts), done.stderr


def test_a_folder_without_a_head_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    done = asked(tmp_path / "none")
    assert done.exit_code == 2 and "no such folder; give that of a finished run" in done.stderr
    content = json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    del content["sha256"]["head.safetensors"]
    (tmp_path / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    done = asked(tmp_path)
    assert done.exit_code == 2 and "holds an encoder that learned no task (training.method: adapt)" in done.stderr


def test_anchors_are_words_of_the_pivot_and_numbers_and_the_control_loses_as_many_others() -> None:
    text = "Habari za LONDON: watu 2019, na the mji."
    removed, control, count = anchors.without(text, {"london", "the"}, RNG(0))
    assert removed == "Habari za watu na mji" and count == 3
    kept = control.split()
    assert {"LONDON", "2019", "the"} < {*kept} and len(kept) == 8 - 3
    assert anchors.without(text, {"london", "the"}, RNG(0)) == (removed, control, count)
    assert len({anchors.without(text, {"london", "the"}, RNG(seed))[1] for seed in range(9)}) > 2
    assert anchors.without("1 2 3 nne", set(), RNG(0)) == ("nne", "1 2 3", 3)


def test_a_run_that_reads_anchors_alone_loses_by_them(run: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for file in tiny_corpus.rglob("*.tsv"):  # Swahili test texts get the English words, and their own behind these
        own = file.read_text(encoding="utf-8").splitlines()
        if file.parent.name == "swh_Latn" and file.name == "test.tsv":
            cells = (line.split("\t") for line in own[1:])
            own[1:] = [
                f"{number}\t{words.replace('swh', 'eng')} ana {words}\t{label}" for number, words, label in cells
            ]
        (corpus / file.parent.name).mkdir(parents=True, exist_ok=True)
        (corpus / file.parent.name / file.name).write_text("\n".join(own) + "\n", encoding="utf-8")
    done = asked(run, f"corpus.path={corpus}", "targets=[swh_Latn,deu_Latn]", "--anchors", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    german, swahili, mean = lines(tmp_path / "out" / "anchors.tsv")
    assert float(swahili["anchors"]) == pytest.approx(0.5, abs=0.1) and float(german["anchors"]) == 0
    assert german["original"] == german["removed"] == german["control"] and german["low"] == german["high"] == "0.0000"
    assert float(swahili["low"]) <= float(swahili["loss"]) <= float(swahili["high"]) != float(swahili["low"])
    assert float(mean["loss"]) == pytest.approx((float(swahili["loss"]) + float(german["loss"])) / 2, abs=2e-4)
    assert f"{100 * float(mean['removed']):.1f}" in done.stdout
    done = asked(run, "targets=[eng_Latn]", "--anchors")
    assert done.exit_code == 2 and "--anchors: no target but eng_Latn is written with spaces" in done.stderr
