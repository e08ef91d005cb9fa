"""Centring with maps: what they bring nearer to the pivot, which languages have one, and that they are kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_catalogue import parallel_corpus, run_of, trained

from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.inference import adapt, bundle
from xlt_ray.model import network as networks
from xlt_ray.runs import run
from xlt_ray.supervision import PARALLEL, UNLABELLED
from xlt_ray.techniques.centre import FEWEST, Shift
from xlt_ray.techniques.feature_maps import PENALTIES, procrustes, ridge
from xlt_ray.techniques.technique import Available, Material
from xlt_ray.training import checks, loop
from xlt_ray.training.setup import Setup

Settings = dict[str, Any]
__all__ = ["parallel_corpus"]
WIDTH = 32  # of the tiny encoder
CODES = ("eng_Latn", "hin_Deva", "swh_Latn")
PAIRS = 300


def distorted(noise: float = 0.3, rows: int = 2 * PAIRS) -> dict[str, np.ndarray]:
    """Make features of a source, and of translations that lie elsewhere, stretched and turned, with noise."""
    rng = np.random.default_rng(3)
    english = rng.normal(size=(rows, WIDTH)) @ (np.eye(WIDTH) + 0.2 * rng.normal(size=(WIDTH, WIDTH)))
    found = {"eng_Latn": english}
    for code in CODES[1:]:
        turned = english @ (np.eye(WIDTH) + 0.15 * rng.normal(size=(WIDTH, WIDTH)))
        found[code] = turned + rng.normal(size=WIDTH) + noise * rng.normal(size=(rows, WIDTH))
    return {code: one.astype(np.float32) for code, one in found.items()}


def texts(rows: dict[str, range]) -> dict[str, pa.Table]:
    ids = {code: [str(row) for row in of] for code, of in rows.items()}
    return {code: pa.table({"text": [f"{code} {one}" for one in of], "id": of}) for code, of in ids.items()}


def calibrated(
    settings: Settings,
    found: dict[str, np.ndarray],
    rows: dict[str, range] | None = None,
    method: str = "probe",
    **parameters: Any,
) -> tuple[networks.Network, dict[str, float]]:
    """Calibrate on made-up features of rows by their ids, by default the first PAIRS of all languages."""
    changed = copy.deepcopy(settings) | {"sources": ["eng_Latn"], "techniques": [{"centre": parameters}]}
    changed["training"]["method"] = method
    experiment = build(changed)
    (made,) = techniques.build(experiment)
    tables = texts(rows or dict.fromkeys(found, range(PAIRS)))
    material = Material(experiment, tables, {}, trained=experiment.sources, languages=CODES)
    net, _, _ = techniques.network((made,), experiment, 3, CODES, material)
    before = {name: one.shape for name, one in networks.trained(net).items()}
    figures = made.calibrate(
        net,
        lambda of: {code: found[code][[int(i) for i in table["id"].to_pylist()]] for code, table in of.items()},
        material,
    )
    assert {name: one.shape for name, one in networks.trained(net).items()} == before, "as it was attached"
    return net, figures


def transformed(net: networks.Network, code: str | None, rows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net.transform(torch.from_numpy(rows), torch.full((len(rows),), net.index(code))).numpy()


def apart(net: networks.Network, found: dict[str, np.ndarray], code: str) -> float:
    """Return the mean squared distance of held-out rows from what they translate, both as the head sees them."""
    mine, theirs = (transformed(net, one, found[one][PAIRS:]) for one in (code, "eng_Latn"))
    return float(((mine - theirs) ** 2).sum(1).mean())


# what the estimators do


def test_a_map_brings_unseen_rows_nearer_to_their_translations_where_a_shift_does_not(tiny_settings: Settings) -> None:
    found = distorted()
    shifted, _ = calibrated(tiny_settings, found)
    mapped, figures = calibrated(tiny_settings, found, map="ridge")
    for code in CODES[1:]:
        assert apart(mapped, found, code) < 0.5 * apart(shifted, found, code)
        np.testing.assert_allclose(
            transformed(mapped, code, found[code][:PAIRS]).mean(0),
            transformed(mapped, "eng_Latn", found["eng_Latn"][:PAIRS]).mean(0),
            atol=1e-4,
        )
    assert figures["maps"] == 2 and 0 < figures["distance_left"] < 0.5
    assert np.array_equal(
        transformed(mapped, "eng_Latn", found["eng_Latn"]), transformed(shifted, "eng_Latn", found["eng_Latn"])
    )


def test_a_large_penalty_leaves_the_shift() -> None:
    found = distorted()
    assert np.abs(ridge(found["swh_Latn"], found["eng_Latn"], (1e12,)).added).max() < 1e-9
    assert np.abs(ridge(found["swh_Latn"], found["eng_Latn"]).added).max() > 0.1


def test_where_pairs_say_nothing_the_largest_penalty_is_taken() -> None:
    found, rng = distorted(), np.random.default_rng(0)
    estimate = ridge(found["swh_Latn"], rng.permutation(found["eng_Latn"]) + found["swh_Latn"])
    assert estimate.figures["penalty_log10"] == np.log10(max(PENALTIES))


@pytest.mark.parametrize("pairs", [20, 60], ids=["fewer pairs than directions", "more"])
def test_the_penalty_is_the_one_of_the_least_error_of_maps_that_have_not_seen_the_pair(pairs: int) -> None:
    found = distorted(noise=1.0)
    x, y = (found[code][:pairs].astype(np.float64) for code in ("swh_Latn", "eng_Latn"))
    unit = ((x - x.mean(0)) ** 2).sum() / pairs

    def left_out(penalty: float, at: int) -> float:
        mine, theirs = np.delete(x, at, 0), np.delete(y, at, 0)
        a, b = mine - mine.mean(0), theirs - theirs.mean(0)
        added = np.linalg.solve(a.T @ a + penalty * unit * np.eye(WIDTH), a.T @ (b - a))
        moved = theirs.mean(0) + (x[at] - mine.mean(0)) @ (np.eye(WIDTH) + added)
        return float(((moved - y[at]) ** 2).sum())

    errors = {one: sum(left_out(one, at) for at in range(pairs)) for one in (*PENALTIES, 1e15)}
    estimate = ridge(x, y)
    best = min(PENALTIES, key=errors.__getitem__)
    assert estimate.figures["penalty_log10"] == np.log10(best)
    assert estimate.figures["distance_left"] == pytest.approx(errors[best] / errors[1e15], rel=1e-6)
    a, b = x - x.mean(0), y - y.mean(0)
    wanted = np.linalg.solve(a.T @ a + best * unit * np.eye(WIDTH), a.T @ (b - a))
    np.testing.assert_allclose(estimate.added, wanted, atol=1e-8)


def test_procrustes_rotates_and_finds_a_rotation() -> None:
    found, rng = distorted(), np.random.default_rng(1)
    for pairs in (20, PAIRS):  # fewer than there are directions, and more
        turn = np.eye(WIDTH) + procrustes(found["swh_Latn"][:pairs], found["eng_Latn"][:pairs]).added
        np.testing.assert_allclose(turn @ turn.T, np.eye(WIDTH), atol=1e-8)
    wanted = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    turned = found["eng_Latn"] @ wanted
    np.testing.assert_allclose(procrustes(found["eng_Latn"], turned + 3.0).added, wanted - np.eye(WIDTH), atol=1e-4)
    few = found["eng_Latn"][:20]
    np.testing.assert_allclose(procrustes(few, few).added, 0, atol=1e-6)  # what no pair speaks of stays


def test_features_that_are_all_alike_have_no_map() -> None:
    alike = np.ones((FEWEST, WIDTH), dtype=np.float32)
    for estimate in (ridge, procrustes):
        np.testing.assert_allclose(estimate(alike, alike).added, 0, atol=1e-12)


# who has a map


def test_without_maps_the_state_is_what_it_was(tiny_settings: Settings) -> None:
    net, figures = calibrated(tiny_settings, distorted())
    assert set(net.steps["centre"].state_dict()) == {"shift", "origin", "directions"}
    assert set(figures) == {"languages", "shift_in_deviations"}


def test_a_language_of_few_pairs_and_an_unknown_one_are_shifted_alone(tiny_settings: Settings) -> None:
    found = distorted()
    rows = {"eng_Latn": range(PAIRS), "hin_Deva": range(FEWEST - 1), "swh_Latn": range(FEWEST)}
    net, figures = calibrated(tiny_settings, found, rows, map="ridge")
    assert figures["maps"] == 1 and figures["languages"] == 3
    step = net.steps["centre"]
    assert isinstance(step, Shift) and step.places.tolist() == [-1, -1, 0, -1] and step.maps.shape == (1, WIDTH, WIDTH)
    for code in ("hin_Deva", None):
        moved = transformed(net, code, found["hin_Deva"]) - found["hin_Deva"]
        np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-5)
    both = np.concatenate([found["hin_Deva"][:4], found["swh_Latn"][:4]])  # rows of one batch are each their language's
    with torch.inference_mode():
        mixed = net.transform(torch.from_numpy(both), torch.tensor([1] * 4 + [2] * 4)).numpy()
    alone = [transformed(net, code, found[code][:4]) for code in ("hin_Deva", "swh_Latn")]
    np.testing.assert_allclose(mixed, np.concatenate(alone), atol=1e-5)


def test_every_language_has_the_rows_of_the_same_ids(tiny_settings: Settings) -> None:
    (made,) = techniques.build(build({**tiny_settings, "techniques": [{"centre": {"map": "ridge", "rows": 120}}]}))
    experiment = build({**tiny_settings, "sources": ["eng_Latn"]})
    of = texts(
        {"eng_Latn": range(50, 400), "hin_Deva": range(300), "swh_Latn": range(330, 400), "deu_Latn": range(300)}
    )
    tables = made.texts(Material(experiment, of, {}))
    ids = {code: table["id"].to_pylist() for code, table in tables.items()}
    assert ids["hin_Deva"] == ids["deu_Latn"] == ids["eng_Latn"] and len(ids["hin_Deva"]) == 120
    assert all(50 <= int(one) < 300 for one in ids["hin_Deva"])
    assert len(ids["swh_Latn"]) == 70  # too few pairs, so all of its rows


def test_a_fine_tuned_head_keeps_its_sources_and_a_probe_maps_all_but_the_pivot(
    tiny_settings: Settings, parallel_corpus: Path
) -> None:
    for method, places in (("fine_tune", [-1, 0, -1]), ("probe", [-1, 0, 1])):
        settings = copy.deepcopy(tiny_settings) | {"sources": ["eng_Latn", "swh_Latn"]}
        settings["corpus"]["path"] = str(parallel_corpus)
        settings["training"]["method"] = method
        run = run_of(build(settings | {"techniques": [{"centre": {"map": "ridge"}}]}))
        step = run.network.steps["centre"]
        assert isinstance(step, Shift) and run.network.languages == CODES
        assert step.places.tolist() == [*places, -1]


# what is refused, and what is said


def test_what_no_map_can_be_made_of_is_refused(tiny_settings: Settings) -> None:
    experiment = build({**tiny_settings, "sources": ["eng_Latn"]})
    available = Available.of(experiment, checks.prepare(experiment).corpus)
    (made,) = techniques.build(build({**tiny_settings, "techniques": [{"centre": {"map": "ridge"}}]}))
    with pytest.raises(
        InputError, match=r"centre\.map: ridge: no target has 100 rows that are translations .* eng_Latn"
    ):
        made.check(available)
    with pytest.raises(InputError, match=r"centre\.rows: 50 are too few for a map; give 100 or more"):
        made.model_copy(update={"rows": 50}).check(available)
    made.model_copy(update={"map": "none"}).check(available)


def test_a_language_without_a_map_is_read_as_unlabelled_text(tiny_settings: Settings, parallel_corpus: Path) -> None:
    settings = copy.deepcopy(tiny_settings) | {"sources": ["eng_Latn"], "techniques": [{"centre": {"map": "ridge"}}]}
    settings["corpus"]["path"] = str(parallel_corpus)
    setup = Setup.of(build(settings), checks.prepare(build(settings)).corpus)
    assert setup.supervision == {"hin_Deva": PARALLEL, "swh_Latn": PARALLEL}
    fewer = {"hin_Deva": setup.material.texts["hin_Deva"].slice(0, 50)}
    assert Setup.of(build(settings), setup.corpus, fewer).supervision == {"hin_Deva": UNLABELLED, "swh_Latn": PARALLEL}
    assert techniques.supervised(build(settings), CODES)["hin_Deva"] == PARALLEL  # the most, where it is not known


# kept


@pytest.fixture
def settings(tiny_settings: Settings, parallel_corpus: Path) -> Settings:
    changed = copy.deepcopy(tiny_settings) | {"sources": ["eng_Latn"], "techniques": [{"centre": {"map": "ridge"}}]}
    changed["corpus"]["path"] = str(parallel_corpus)
    return changed


def test_fine_tuned_weights_go_into_a_network_built_anew(settings: Settings) -> None:
    done = run_of(build(settings))
    loop.fit(done)
    step = done.network.steps["centre"]
    assert isinstance(step, Shift) and step.maps.abs().max() > 1e-3
    again = done.setup.build().network
    networks.restore_weights(again, networks.trained(done.network))
    rows = np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)
    for code in (*CODES, None):
        assert np.array_equal(transformed(done.network, code, rows), transformed(again, code, rows))


def test_a_language_added_from_text_has_no_map_and_the_others_stay(settings: Settings, tmp_path: Path) -> None:
    model, identity = trained(settings)
    bundle.save(tmp_path / "bundle", model, identity)
    (tmp_path / "text").write_text("\n".join(f"swh{i} swh{i * 7 % 60}" for i in range(40)), encoding="utf-8")
    asked = ["swh4 swh5", "hin7 eng4"]

    def answers() -> dict[str, np.ndarray]:
        loaded = bundle.load(tmp_path / "bundle")
        return {code: loaded.probabilities(asked, languages=[code] * 2) for code in (*CODES, "wol_Latn")}

    before = answers()
    for code in (*CODES, "wol_Latn"):
        assert np.array_equal(before[code], model.probabilities(asked, languages=[code] * 2)), "it came back as it was"
    assert adapt.adapt(tmp_path / "bundle", "wo", tmp_path / "text").new
    assert bundle.load(tmp_path / "bundle").supervision["wol_Latn"] == UNLABELLED
    after = answers()
    assert all(np.array_equal(before[code], after[code]) for code in CODES)
    assert not np.array_equal(before["wol_Latn"], after["wol_Latn"])
    adapt.adapt(tmp_path / "bundle", "hi", tmp_path / "text")
    step = bundle.load(tmp_path / "bundle").network.steps["centre"]
    assert isinstance(step, Shift) and step.places.tolist() == [-1, -1, 0, -1, -1] and len(step.maps) == 1
    last = answers()
    assert np.array_equal(last["swh_Latn"], before["swh_Latn"]) and not np.array_equal(
        last["hin_Deva"], before["hin_Deva"]
    )


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_runs_end_to_end(settings: Settings) -> None:
    settings["training"]["epochs"] = 1
    for method in ("probe", "fine_tune"):
        settings["training"]["method"] = method
        outcome = run.run(build(settings | {"name": method}))
        loaded = bundle.load(outcome.folder.local / "bundle")
        step = loaded.network.steps["centre"]
        assert isinstance(step, Shift) and step.maps.abs().max() > 1e-3 and len(step.maps) == 2
        assert loaded.supervision == {"hin_Deva": PARALLEL, "swh_Latn": PARALLEL}
