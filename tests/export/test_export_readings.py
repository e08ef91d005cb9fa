"""An artefact reads texts as its bundle does, whatever its vocabulary, and is compared with it as it is served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from artefacts import TEXTS, changed, word_by_word

from xlt_ray import durable
from xlt_ray.export import agreement, export
from xlt_ray.inference import artefact, bundle, engine

KNOWN = ("deu_Latn", "eng_Latn", "swh_Latn")
ROWS = [*TEXTS, "swh1 swh2 swh3", "mach das Licht in der Küche an"]


@pytest.fixture(scope="module")
def place(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export_readings")
    changed(folder / "bundle", tiny_encoder, ["translate_test", "centre"], KNOWN, word_by_word())
    export.export(folder / "bundle", folder / "artefact", texts=ROWS)
    return folder


@pytest.mark.parametrize("code", ["swh_Latn", "deu_Latn", "eng_Latn", "fra_Latn", None])
def test_it_answers_as_the_bundle_in_languages_with_and_without_a_lexicon(place: Path, code: str | None) -> None:
    whole = bundle.load(place / "bundle")
    wanted = whole.probabilities(ROWS, None, [code] * len(ROWS))
    for kind in ("artefact", "bundle"):
        one = engine.load(place / kind, device="cpu", precision="float32")
        np.testing.assert_allclose(engine.classify(one, ROWS, None, [code] * len(ROWS)), wanted, atol=1e-4)
    alone = whole.answer(whole.tokenize(ROWS), [code] * len(ROWS))
    assert bool(np.abs(wanted - alone).max() > 0.01) is (code in ("swh_Latn", "deu_Latn"))


def test_every_reading_of_a_language_has_its_own_offset(place: Path) -> None:
    offsets = artefact.read(place / "artefact").offsets
    assert set(offsets) == {key for code in KNOWN for key in word_by_word().keys(code)}
    assert offsets["swh_Latn"] != offsets["swh_Latn/1"] != offsets["swh_Latn/2"]


def test_pairs_are_read_text_by_text(place: Path) -> None:
    codes = ["swh_Latn"] * len(ROWS)
    wanted = bundle.load(place / "bundle").probabilities(ROWS, ROWS[::-1], codes)
    one = engine.load(place / "artefact", precision="float32")
    np.testing.assert_allclose(engine.classify(one, ROWS, ROWS[::-1], codes), wanted, atol=1e-4)


def test_a_trimmed_vocabulary_keeps_the_script_that_texts_are_read_in(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path / "bundle", tiny_encoder, ["translate_test"], KNOWN, word_by_word())
    file = folder / "encoder" / "tokenizer.json"
    # Swahili is written in Devanagari here, so that the script of English is in no language that is served
    file.write_text(file.read_text().replace('"swh', '"है').replace('"hin', '"кот'))
    content = json.loads((folder / "bundle.json").read_text())
    content["sha256"]["encoder/tokenizer.json"] = durable.digest(file)
    (folder / "bundle.json").write_text(json.dumps(content))
    made = export.export(
        folder, tmp_path / "small", vocabulary="trimmed", languages=["hin_Deva"], precisions=["float32"], texts=ROWS
    )
    assert {"Deva", "Latn"} <= set(made.vocabulary["scripts"]) and made.vocabulary["kept"] < made.vocabulary["pieces"]
    small, codes = engine.load(made.folder), ["swh_Latn"] * 3
    texts = ["है1 है2", "swh2 swh4", "eng1 swh6 है3"]
    wanted = bundle.load(folder).probabilities(texts, None, codes)
    np.testing.assert_allclose(engine.classify(small, texts, None, codes), wanted, atol=1e-4)


def test_agreement_is_measured_on_texts_as_they_are_read(place: Path) -> None:
    whole, onnx = bundle.load(place / "bundle"), engine.load(place / "artefact", precision="float32")
    texts = [f"swh{i} swh{i * 3 % 60}" for i in range(60)]
    best = whole.probabilities(texts, None, ["swh_Latn"] * 60).argmax(1)
    alone = whole.answer(whole.tokenize(texts), ["swh_Latn"] * 60).argmax(1)
    assert (best != alone).any(), "the readings decide nothing here"
    table = pa.table({"text": texts, "label": best})
    assert (agreement.answers(onnx, table, "swh_Latn") == best).all()
    verdict = agreement.check(place / "bundle", place / "artefact", {"swh_Latn": table})["float32"]
    assert verdict["agreement"] == verdict["groups"]["all"]["after"] == 1
