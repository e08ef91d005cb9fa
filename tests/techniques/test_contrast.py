"""Contrastive alignment: which texts meet in a group, the loss in it, and that workers and budgets change neither."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_adversarial import outputs_of, train
from test_catalogue import parallel_corpus, run_of
from test_distil import MadeUp, made_up
from workers import on_workers

from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.corpora.streams import Groups, pairs
from xlt_ray.errors import InputError
from xlt_ray.supervision import PARALLEL, ZERO_SHOT
from xlt_ray.techniques.losses.contrast import HELD, Alignment, Contrast
from xlt_ray.techniques.technique import Available, Material
from xlt_ray.training import loop, setup
from xlt_ray.training.batches import Feed
from xlt_ray.training.checkpoint import Progress

Settings = dict[str, Any]
__all__ = ["parallel_corpus"]
CODES = ("eng_Latn", "hin_Deva", "swh_Latn")


@pytest.fixture
def settings(tiny_settings: Settings, parallel_corpus: Path, tmp_path: Path) -> Settings:
    changed = copy.deepcopy(tiny_settings) | {"sources": ["eng_Latn"]}
    changed["corpus"] |= {"path": str(parallel_corpus), "cache_dir": str(tmp_path / "cache")}
    changed["training"] |= {"method": "fine_tune", "epochs": 1}
    changed["network"] |= {"dropout": 0.0}
    return changed


def aligned(settings: Settings, **parameters: Any) -> Settings:
    return {**settings, "techniques": [{"contrast": {"group": 4, "groups": 3, **parameters}}]}


def alignment(settings: Settings, material: Material | None = None, embed: Any = made_up) -> tuple[Alignment, Any]:
    run = run_of(build(settings))
    term = run.setup.techniques[0].loss_term(run.network, material or run.setup.material, embed)
    assert isinstance(term, Alignment)
    return term, run


# which texts meet


def test_a_pair_is_a_row_and_the_one_of_its_id_and_no_text_stands_twice() -> None:
    rows = pa.table({"id": ["a", "b", "c", "d", "e", "e"], "text": ["1", "2", "1", "4", "5", "6"]})
    others = pa.table({"id": ["d", "c", "b", "x", "a", "e"], "text": ["D", "C", "D", "X", "A", "E"]})
    # c has the text of a, and the translation of d is that of b; e is not known
    assert pairs(rows, others).tolist() == [[0, 4], [1, 2]]


def test_rows_that_differ_in_their_second_text_are_different() -> None:
    rows = pa.table({"id": ["a", "b", "c"], "text": ["1", "1", "1"], "text_pair": ["x", "y", "y"]})
    assert pairs(rows, rows.set_column(1, "text", pa.array(["A", "B", "C"]))).tolist() == [[0, 0], [1, 1]]


@pytest.fixture
def stream() -> Groups:
    tables = {code: pa.table({"id": [str(i) for i in range(40)]}) for code in CODES}
    found = {"hin_Deva": np.stack([np.arange(40)] * 2, 1), "swh_Latn": np.stack([np.arange(20), 39 - np.arange(20)], 1)}
    return Groups(tables, "eng_Latn", found, group=8, groups=50)


def test_a_group_is_of_one_language_and_of_pairs_that_are_all_different(stream: Groups) -> None:
    drawn = stream.draw(1.0, seed=0, step=3, salt=2)
    assert len(drawn) == 50 and sum(map(len, drawn)) == stream.rows
    for one in drawn:
        codes = [one.languages[index] for index in one.language]
        assert len({*codes[:8]}) == 1 and codes[0] != "eng_Latn" and codes[8:] == ["eng_Latn"] * 8
        assert len({*one.row[:8].tolist()}) == 8
        wanted = one.row[:8] if codes[0] == "hin_Deva" else 39 - one.row[:8]
        assert np.array_equal(one.row[8:], wanted)


def test_groups_are_drawn_by_seed_update_and_stream(stream: Groups) -> None:
    def rows(**address: int) -> list[list[int]]:
        return [one.row.tolist() for one in stream.draw(1.0, **({"seed": 0, "step": 3, "salt": 2} | address))]

    assert rows() == rows()
    assert all(rows() != rows(**other) for other in ({"seed": 1}, {"step": 4}, {"salt": 3}))


@pytest.mark.parametrize(("alpha", "share"), [(1.0, 2 / 3), (0.0, 0.5)])
def test_languages_are_drawn_by_their_pairs_and_alpha(stream: Groups, alpha: float, share: float) -> None:
    drawn = [one for step in range(40) for one in stream.draw(alpha, 0, step, 2)]
    hindi = np.mean([one.languages[one.language[0]] == "hin_Deva" for one in drawn])
    assert hindi == pytest.approx(share, abs=0.04)


def test_pairs_that_are_measured_are_not_learned_from(settings: Settings) -> None:
    term, run = alignment(aligned(settings))
    assert isinstance(term.stream, Groups)
    assert term.measured.keys() == term.stream.pairs.keys() == {"hin_Deva", "swh_Latn"}
    for code, (rows, others) in term.measured.items():
        learned = run.setup.material.texts[code]["id"].take(pa.array(term.stream.pairs[code][:, 0])).to_pylist()
        held = rows["id"].to_pylist()
        assert held == others["id"].to_pylist() and len(held) == HELD
        assert len(learned) == 120 - HELD and not {*held} & {*learned}


def test_frozen_anchors_are_features_of_the_whole_encoder_and_trained_ones_begin_at_its_own(settings: Settings) -> None:
    term, run = alignment(aligned(settings))
    texts = {"eng_Latn": pa.table({"text": term.stream.tables["eng_Latn"]["text"]})}
    np.testing.assert_allclose(term.anchors.numpy(), made_up.whole()(texts)["eng_Latn"], rtol=1e-5)
    term, _ = alignment(aligned(settings, anchor="trained"))
    np.testing.assert_allclose(term.anchors.numpy(), made_up(texts)["eng_Latn"], rtol=1e-5)


def test_no_translation_that_is_held_out_is_learned_by_way_of_another_language(settings: Settings) -> None:
    run = run_of(build(aligned(settings)))
    texts = dict(run.setup.material.texts)
    texts["swh_Latn"] = texts["swh_Latn"].slice(0, 110)  # other ids are the first of these
    term, _ = alignment(aligned(settings), Material(run.experiment, texts, {}, languages=CODES))
    assert isinstance(term.stream, Groups)
    english = term.stream.tables["eng_Latn"]["id"].to_pylist()
    learned = {english[place] for pairs in term.stream.pairs.values() for place in pairs[:, 1]}
    held = {one for _, others in term.measured.values() for one in others["id"].to_pylist()}
    assert learned and not learned & held


# the batches


def batches(run: setup.Run, rank: int, world: int, step: int = 2) -> list[dict[str, Any]]:
    feed = Feed(run, rank, world)
    return [dict(one) for one in feed.batches(feed.epoch(0).draws(0, 16), Progress(step=step), total=10)]


@pytest.mark.parametrize("budget", [16, 4096])
@pytest.mark.parametrize("world", [2, 4])
def test_no_worker_and_no_budget_cuts_a_group(settings: Settings, world: int, budget: int) -> None:
    settings["training"]["tokens_per_step"] = budget
    run = run_of(build(aligned(settings)))
    loop.begin(run)

    def groups(found: list[dict[str, Any]]) -> list[list[tuple[int, int]]]:
        whole = []
        for batch in found:
            if not (batch["stream"] == 2).any():
                continue
            assert (batch["stream"] == 2).all() and not batch["weight"].any()
            for rows in zip(*(batch[key].unflatten(0, (-1, 8)).tolist() for key in ("language", "row")), strict=True):
                whole.append(list(zip(*rows, strict=True)))
        return whole

    alone = groups(batches(run, 0, 1))
    parts = [groups(batches(run, rank, world)) for rank in range(world)]
    assert len(alone) == 3
    assert sorted(alone) == sorted(group for part in parts for group in part)
    assert [len(part) for part in parts] == ([2, 1] if world == 2 else [1, 1, 1, 0])
    counts = batches(run, 0, world)[0]["counts"].tolist()
    assert counts == [16, 0, 24]


# the loss


def expected(rows: np.ndarray, anchors: np.ndarray, margin: float, temperature: float) -> np.ndarray:
    """Return the loss of every pair of a group, one text at a time."""
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (rows, anchors)]
    found = []
    for place in range(len(rows)):
        both = 0.0
        for one, other in (unit, unit[::-1]):
            scores = np.array([(one[place] @ other[k] - margin * (k == place)) / temperature for k in range(len(rows))])
            both += np.log(np.exp(scores).sum()) - scores[place]
        found.append(both / 2)
    return np.array(found)


@pytest.mark.parametrize("anchor", ["frozen", "trained"])
def test_the_loss_is_softmax_with_a_margin_both_ways_within_each_group(settings: Settings, anchor: str) -> None:
    rng = np.random.default_rng(0)
    anchors = rng.normal(size=(10, 8)).astype(np.float32) + 3
    asked = Contrast(temperature=0.5, margin=0.2, group=3, groups=2, anchor=anchor, weight=2.0)
    term = Alignment(asked, Groups({}, "eng_Latn", {}, 3, 2), anchors, {})
    features = rng.normal(size=(12, 8)).astype(np.float32) + 3
    row = torch.tensor([0, 1, 2, 4, 9, 2, 5, 6, 7, 0, 1, 8])
    net: Any = None  # not looked at
    mine = torch.ones(12, dtype=torch.bool)
    losses = term(net, {"row": row}, outputs_of(torch.from_numpy(features)), mine)
    centred, frozen = features - anchors.mean(0), anchors - anchors.mean(0)
    for start in (0, 6):
        rows, own = centred[start : start + 3], centred[start + 3 : start + 6]
        others = frozen[row[start + 3 : start + 6].numpy()]
        pairs_of = [(rows, own), (rows, own)] if anchor == "trained" else [(rows, others), (own, others)]
        wanted = 2.0 * np.concatenate([expected(one, other, 0.2, 0.5) for one, other in pairs_of])
        np.testing.assert_allclose(losses[start : start + 6].numpy(), wanted, rtol=1e-4)
    assert not term(net, {"row": row}, outputs_of(torch.from_numpy(features)), ~mine).any()


@pytest.mark.parametrize("parameters", [{}, {"anchor": "trained"}], ids=["frozen", "trained"])
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_one_loss_curve_on_any_number_of_workers(settings: Settings, world: int, parameters: Settings) -> None:
    settings = aligned(settings, **parameters)
    settings["mixture"] = {"draws_per_epoch": 65}  # the last update has one row, and a worker of four has no group
    losses, weights, facts = train(settings)
    workers = on_workers(world, train, settings)
    assert all(one[0] == workers[0][0] for one in workers) and workers[0][0] == pytest.approx(losses, rel=1e-4)
    assert max(float(np.abs(array - weights[name]).max()) for name, array in workers[0][1].items()) < 1e-3
    assert workers[0][2] == pytest.approx(facts, abs=0.05)


def test_another_budget_changes_nothing(settings: Settings) -> None:
    losses, weights, _ = train(aligned(settings))
    settings["training"]["tokens_per_step"] = 16
    small, other, _ = train(aligned(settings))
    assert small == pytest.approx(losses, rel=1e-4)
    assert max(float(np.abs(array - weights[name]).max()) for name, array in other.items()) < 1e-3


def test_it_counts_as_much_as_the_task_whatever_the_rows_of_an_update(settings: Settings) -> None:
    """The sum over an update, divided by its draws, is the mean of the task and the mean of the term."""
    found = []
    for groups in (1, 3):
        run = run_of(build(aligned(settings, groups=groups)))
        state = loop.begin(run)
        run.network.eval()
        parts = batches(run, 0, 1)
        total = float(sum(state.forward(batch) for batch in parts)) / 16
        term, losses = run.network.terms["contrast"], []
        task = float(sum(_task(run, batch) for batch in parts)) / 16
        for batch in parts:
            mine = batch["stream"] == 2
            losses += term(run.network, batch, outputs_of(run.network.features(batch)), mine)[mine].tolist()
        assert len(losses) == 8 * groups
        assert total == pytest.approx(task + np.mean(losses), rel=1e-4)
        found.append(total)
    assert found[0] != found[1]


def _task(run: setup.Run, batch: dict[str, Any]) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(run.network(batch), batch["label"], reduction="none")
    return (losses * batch["weight"]).sum()


@pytest.mark.parametrize("anchor", ["frozen", "trained"])
def test_translations_are_found_after_it(settings: Settings, anchor: str) -> None:
    settings["training"] |= {"epochs": 6, "learning_rate": 3e-3}
    *_, facts = train(aligned(settings, anchor=anchor, group=16, groups=4))
    figures = {name.removeprefix("contrast/"): value for name, value in facts.items()}
    assert figures.keys() == {"retrieval_before", "retrieval_after", "xsim_before", "xsim_after"}
    assert figures["retrieval_after"] > figures["retrieval_before"] + 0.1
    assert figures["xsim_after"] < figures["xsim_before"] - 0.1


# what it reads, and what is refused


def test_a_language_without_translations_takes_no_part_and_owes_it_nothing(settings: Settings, tmp_path: Path) -> None:
    rows = [f"eng{i % 60} eng{i * 7 % 60} engp{i}\tswh{i % 60} swh{i * 7 % 60} swhp{i}" for i in range(110)]
    (tmp_path / "beside.tsv").write_text("\n".join(["eng_Latn\tswh_Latn", *rows]) + "\n")
    settings["corpus"] |= {"id": None, "parallel": str(tmp_path / "beside.tsv")}
    with pytest.warns(UserWarning, match="1 of 2 languages have no translations, and take no part in the loss"):
        term, run = alignment(aligned(settings))
    assert isinstance(term.stream, Groups) and term.stream.pairs.keys() == {"swh_Latn"}
    found = techniques.supervised(run.experiment, CODES, run.setup.material.texts, {}, run.setup.material.bitext)
    assert found == {"swh_Latn": PARALLEL, "hin_Deva": ZERO_SHOT}


def test_rows_of_equal_ids_that_are_no_translations_are_left_out(settings: Settings) -> None:
    run = run_of(build(aligned(settings)))
    texts = dict(run.setup.material.texts)
    shuffled = texts["swh_Latn"]["id"].combine_chunks().take(np.random.default_rng(0).permutation(120))
    place = texts["swh_Latn"].schema.get_field_index("id")
    texts["swh_Latn"] = texts["swh_Latn"].set_column(place, "id", shuffled)
    with pytest.warns(UserWarning, match="do not look like translations"):
        term, _ = alignment(aligned(settings), Material(run.experiment, texts, {}, languages=CODES))
    assert isinstance(term.stream, Groups) and term.stream.pairs.keys() == {"hin_Deva"}


def test_a_run_without_translations_is_refused(settings: Settings) -> None:
    settings["corpus"] |= {"id": None}
    experiment = build(aligned(settings))
    (made,) = techniques.build(experiment)
    with pytest.raises(InputError, match="no language has rows that can be learned from as translations of 100"):
        made.check(Available.of(experiment, loaders.load(experiment.corpus)))


def test_an_encoder_that_tells_no_texts_apart_is_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match="the features of all 70 texts of eng_Latn are the same"):
        alignment(aligned(settings), embed=MadeUp(all_ones=True))


def test_a_group_that_no_language_could_fill_is_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match=r"techniques\.contrast\.group"):
        techniques.build(build(aligned(settings, group=51)))
