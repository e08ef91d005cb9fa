"""A language whose features are mapped has a head of its own in an artefact, which answers as the bundle does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from artefacts import LABELS, TEXTS, changed, word_by_word

from xlt_ray.errors import InputError
from xlt_ray.export import agreement, export
from xlt_ray.inference import artefact, bundle, engine

KNOWN = ("deu_Latn", "eng_Latn", "swh_Latn")
MAPPED = ("deu_Latn", "swh_Latn")
MAP = {"centre": {"map": "ridge"}}
ROWS = [f"eng{i} swh{j}" for i in range(60) for j in range(0, 60, 6)]


@pytest.fixture(scope="module")
def place(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export_maps")
    changed(folder / "bundle", tiny_encoder, [MAP], KNOWN)
    export.export(folder / "bundle", folder / "artefact", texts=TEXTS)
    return folder


@pytest.mark.parametrize("kind", ["artefact", "bundle"])
def test_an_engine_answers_as_the_bundle_in_every_language(place: Path, kind: str) -> None:
    model, one = bundle.load(place / "bundle"), engine.load(place / kind, device="cpu", precision="float32")
    found = {}
    for code in (None, *KNOWN, "xxx_Latn"):
        found[code] = one.probabilities(one.encode(TEXTS), [code] * len(TEXTS))
        wanted = model.probabilities(TEXTS, None, [code] * len(TEXTS))
        assert found[code].shape == (len(TEXTS), len(LABELS))
        np.testing.assert_allclose(found[code], wanted, atol=1e-5)
    assert (found["xxx_Latn"] == found[None]).all()
    together = one.probabilities(one.encode(TEXTS), [None, "swh_Latn", "xxx_Latn", "eng_Latn", "deu_Latn", None, None])
    for row, code in enumerate([None, "swh_Latn", "xxx_Latn", "eng_Latn", "deu_Latn", None, None]):
        np.testing.assert_allclose(together[row], found[code][row], atol=1e-6)
    assert one.probabilities([], []).shape == (0, 3)
    assert np.array_equal(
        one.probabilities(one.encode(TEXTS)), one.probabilities(one.encode(TEXTS), [None] * len(TEXTS))
    )


def test_a_map_is_no_shift(place: Path) -> None:
    model = bundle.load(place / "bundle")
    logs = [np.log(model.probabilities(ROWS, None, [code] * len(ROWS))) for code in ("swh_Latn", "eng_Latn", None)]
    odds = [one[:, 0] - one[:, 1] for one in logs]
    assert np.std(odds[0] - odds[2]) > 0.1 and np.std(odds[1] - odds[2]) < 1e-3


def test_languages_that_are_mapped_have_heads_and_all_others_offsets(place: Path) -> None:
    found = artefact.read(place / "artefact")
    assert found.heads == MAPPED and set(found.offsets) == {"eng_Latn"}
    assert json.loads((place / "artefact" / artefact.FILE).read_text())["format"] == artefact.FORMAT_OF_HEADS
    assert artefact.record(place / "artefact", {}).heads == MAPPED


def test_an_artefact_without_heads_is_one_that_earlier_versions_read(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path / "bundle", tiny_encoder, ["centre"], KNOWN)
    export.export(folder, tmp_path / "artefact", precisions=["float32"], texts=TEXTS)
    content = json.loads((tmp_path / "artefact" / artefact.FILE).read_text())
    assert content["format"] == artefact.FORMAT and "heads" not in content
    assert artefact.read(tmp_path / "artefact").heads == ()


@pytest.mark.parametrize("heads", [["swh_Latn"], ["swh_Latn", "deu_Latn", "fra_Latn"], ["a", "a"], [1, 2], "ab", None])
def test_heads_that_the_network_has_not_are_refused(place: Path, tmp_path: Path, heads: Any) -> None:
    shutil.copytree(place / "artefact", tmp_path / "artefact")
    file = tmp_path / "artefact" / artefact.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"heads": heads}))
    with pytest.raises(InputError, match=r"artefact\.json: heads: .*export the bundle again"):
        engine.load(tmp_path / "artefact")


def test_int8_asks_float32_by_the_head_of_the_language(place: Path) -> None:
    found = artefact.read(place / "artefact")
    exact, rough = (engine.OnnxEngine(found, precision) for precision in ("float32", "int8"))
    rows = exact.encode(ROWS)
    for code in (None, *KNOWN):
        codes = [code] * len(rows)
        logits = rough.logits(rough.session, rows, codes) + engine.language_offsets(found, codes)
        near = np.quantile(engine.margins(logits), 0.25)
        doubting = engine.OnnxEngine(replace(found, margin=float(near)), "int8")
        answers, wanted = (one.probabilities(rows, codes) for one in (doubting, exact))
        assert doubting.asked == len(rows) // 4
        assert (answers == wanted).all(1)[engine.margins(logits) < near].all()
        assert (answers.argmax(1) == wanted.argmax(1)).mean() > 0.99


def test_agreement_is_measured_by_the_head_of_the_language(place: Path) -> None:
    model = bundle.load(place / "bundle")
    best = {code: model.probabilities(ROWS, None, [code] * len(ROWS)).argmax(1) for code in MAPPED}
    assert (best["swh_Latn"] != best["deu_Latn"]).any()
    tables = {code: pa.table({"text": ROWS, "label": best[code]}) for code in best}
    verdict = agreement.check(place / "bundle", place / "artefact", tables)["float32"]
    assert verdict["passed"] and verdict["agreement"] == verdict["groups"]["all"]["after"] == 1


def test_with_readings_and_directions_taken_out_it_answers_alike(tiny_encoder: Path, tmp_path: Path) -> None:
    both = {"centre": {"map": "procrustes", "remove": 1}}
    changed(tmp_path / "bundle", tiny_encoder, ["translate_test", both], KNOWN, word_by_word())
    made = export.export(tmp_path / "bundle", tmp_path / "artefact", precisions=["float32"], texts=TEXTS)
    assert made.heads == MAPPED and "swh_Latn/1" in made.offsets
    model, one = bundle.load(tmp_path / "bundle"), engine.load(made.folder)
    for code in (None, *KNOWN):
        wanted = model.probabilities(TEXTS, None, [code] * len(TEXTS))
        np.testing.assert_allclose(engine.classify(one, TEXTS, None, [code] * len(TEXTS)), wanted, atol=1e-4)
