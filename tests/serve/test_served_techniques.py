"""What techniques leave in a bundle reaches whoever is served: LoRA merged, centring as numbers added to logits."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import local_server
import numpy as np
import pyarrow as pa
import pytest
from artefacts import LABELS, TEXTS, changed

from serve.replica.model import Question
from xlt_ray.errors import InputError
from xlt_ray.export import agreement, export
from xlt_ray.inference import artefact, bundle, engine
from xlt_ray.inference.bundle import Bundle
from xlt_ray.languages import identify
from xlt_ray.registry import publish

KNOWN = ("deu_Latn", "eng_Latn", "swh_Latn")
GERMAN = "Bitte mach sofort das Licht in der Küche an"
BOTH = ["lora", {"centre": {"remove": 1}}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Bundles with each technique and with both, and their artefacts."""
    folder = tmp_path_factory.mktemp("served")
    for name, chosen in {"lora": ["lora"], "centre": ["centre"], "both": BOTH}.items():
        changed(folder / name / "bundle", tiny_encoder, chosen, KNOWN)
        export.export(folder / name / "bundle", folder / name / "artefact", texts=TEXTS)
    return folder


@pytest.mark.parametrize("name", ["lora", "centre", "both"])
@pytest.mark.parametrize("kind", ["artefact", "bundle"])
def test_an_engine_answers_as_the_bundle_in_every_language(place: Path, name: str, kind: str) -> None:
    model = bundle.load(place / name / "bundle")
    one = engine.load(place / name / kind, device="cpu", precision="float32")
    if kind == "artefact":
        assert set(one.artefact.offsets) == (set() if name == "lora" else set(KNOWN))
    assert one.artefact.provenance["techniques"] == list(model.experiment.techniques)
    found = {}
    for code in (None, *KNOWN, "xxx_Latn"):
        found[code] = one.probabilities(one.encode(TEXTS), [code] * len(TEXTS))
        assert found[code].dtype == np.float32
        np.testing.assert_allclose(found[code], model.probabilities(TEXTS, None, [code] * len(TEXTS)), atol=1e-5)
    moved = [np.abs(found[code] - found[None]).max() for code in KNOWN]
    assert min(moved) > 0.01 if name != "lora" else max(moved) == 0
    assert (found["xxx_Latn"] == found[None]).all()


def test_matrices_that_are_merged_change_answers_and_no_file(place: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = place / "lora" / "bundle"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    export.export(folder, tmp_path / "artefact", precisions=["float32"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert "changes.safetensors" in before and not (folder / "encoder").exists()
    changed(tmp_path / "bundle", tiny_encoder, [], KNOWN)
    other = bundle.load(tmp_path / "bundle").probabilities(TEXTS)
    assert np.abs(other - bundle.load(folder).probabilities(TEXTS)).max() > 0.01


def test_what_adds_otherwise_in_a_language_is_not_exported(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = export._plain

    def off(found: Bundle) -> Any:
        made = plain(found)
        return made._replace(added=made.added | {"swh_Latn": [0.5, 0.0, 0.0]})

    monkeypatch.setattr(export, "_plain", off)
    with pytest.raises(InputError, match="exported, it answers otherwise"):
        export.export(place / "centre" / "bundle", tmp_path / "artefact", precisions=["float32"])


# artefact.json


def rewritten(place: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(place / "centre" / "artefact", folder)
    content = json.loads((folder / artefact.FILE).read_text()) | changes
    (folder / artefact.FILE).write_text(json.dumps({key: one for key, one in content.items() if one is not None}))
    return folder


def test_offsets_are_kept_where_anything_else_is_recorded(place: Path, tmp_path: Path) -> None:
    folder = rewritten(place, tmp_path / "artefact")
    offsets = artefact.read(folder).offsets
    artefact.record(folder, {"float32": {"passed": True}})
    assert artefact.read(folder).offsets == offsets and np.abs(offsets["swh_Latn"]).max() > 0.01


def test_an_artefact_of_before_there_were_offsets_is_read(place: Path, tmp_path: Path) -> None:
    assert artefact.read(rewritten(place, tmp_path / "artefact", offsets=None)).offsets == {}


@pytest.mark.parametrize(
    "offsets",
    [
        [],
        {"swh_Latn": None},
        {"swh_Latn": [0.0, 1.0]},
        {"swh_Latn": [0.0, 1.0, 2.0, 3.0]},
        {"swh_Latn": [0.0, 1.0, "2"]},
        {"swh_Latn": [0.0, 1.0, True]},
        {"swh_Latn": [0.0, 1.0, float("nan")]},
        {"swh_Latn": [0.0, 1.0, float("-inf")]},
        {"swh_Latn": [0, 1, 10**400]},
    ],
)
def test_damaged_offsets_are_refused(place: Path, tmp_path: Path, offsets: Any) -> None:
    with pytest.raises(InputError, match=r"artefact\.json: offsets: .* export the bundle again"):
        artefact.read(rewritten(place, tmp_path / "artefact", offsets=offsets))


def test_int8_asks_float32_where_it_is_in_doubt_in_a_language(place: Path) -> None:
    found = artefact.read(place / "centre" / "artefact")
    exact, rough = (engine.OnnxEngine(found, precision) for precision in ("float32", "int8"))
    rows = exact.encode([f"eng{i} swh{j}" for i in range(60) for j in range(0, 60, 6)])
    logits = rough.logits(rough.session, rows)
    asked = {}
    for code in (None, *KNOWN):
        moved = logits + np.array(found.offsets.get(code or "", [0.0] * 3), dtype=np.float32)
        near = np.quantile(engine.margins(moved), 0.25)
        doubting = engine.OnnxEngine(replace(found, margin=float(near)), "int8")
        answers = doubting.probabilities(rows, [code] * len(rows))
        wanted = exact.probabilities(rows, [code] * len(rows))
        asked[code] = (answers == wanted).all(1)
        assert doubting.asked == len(rows) // 4 and asked[code][engine.margins(moved) < near].all()
    assert (asked["swh_Latn"] != asked[None]).any()


def test_rows_of_one_batch_may_be_in_several_languages(place: Path) -> None:
    for kind in ("artefact", "bundle"):
        one = engine.load(place / "centre" / kind, device="cpu", precision="float32")
        rows = one.encode(TEXTS)
        codes = [None, "swh_Latn", "xxx_Latn", "eng_Latn", "swh_Latn", None, "deu_Latn"]
        alone = [one.probabilities([row], [code])[0] for row, code in zip(rows, codes, strict=True)]
        np.testing.assert_allclose(one.probabilities(rows, codes), alone, atol=1e-6)
        assert one.probabilities([], []).shape == (0, 3)


# served


def test_a_service_answers_in_the_language_given_or_guessed(place: Path) -> None:
    model = bundle.load(place / "both" / "bundle")
    texts: list[str] = ["eng1 eng2", "eng1 eng2", "eng1 eng2", GERMAN, "12 + 3", "swh1 swh2"]
    given = ["swh_Latn", "eng_Latn", "fra_Latn", None, None, "deu_Latn"]
    codes = ["swh_Latn", "eng_Latn", "fra_Latn", "deu_Latn", None, "deu_Latn"]
    for kind in ("artefact", "bundle"):
        service = local_server.service(local_server.loaded(place / "both" / kind))
        answer = asyncio.run(service.classify(Question(texts, None, given)))
        assert [guess.code for guess in answer.guesses] == codes
        np.testing.assert_allclose(answer.probabilities, model.probabilities(texts, None, codes), atol=1e-5)
        np.testing.assert_allclose(
            asyncio.run(service.classify(Question([GERMAN]))).probabilities, model.probabilities([GERMAN]), atol=1e-5
        )


def test_without_guesses_a_service_answers_as_if_the_language_were_unknown(place: Path) -> None:
    service = local_server.service(local_server.loaded(place / "centre" / "artefact"), identify=False)
    wanted = bundle.load(place / "centre" / "bundle").probabilities([GERMAN], None, [None])
    np.testing.assert_allclose(asyncio.run(service.classify(Question([GERMAN]))).probabilities, wanted, atol=1e-5)


# checked before


def test_agreement_is_measured_in_the_language_of_a_table(place: Path) -> None:
    bundled, folder = place / "centre" / "bundle", place / "centre" / "artefact"
    model, onnx = bundle.load(bundled), engine.load(folder, precision="float32")
    texts = [f"{word}{i} {word}{i % 7}" for word in ("eng", "hin") for i in range(40)]
    best = {code: model.probabilities(texts, None, [code] * 80).argmax(1) for code in ("swh_Latn", "deu_Latn")}
    assert (best["swh_Latn"] != best["deu_Latn"]).any()
    tables = {code: pa.table({"text": texts, "label": best[code]}) for code in best}
    for code, table in tables.items():
        assert (agreement.answers(onnx, table, code) == best[code]).all()
    verdict = agreement.check(bundled, folder, tables)["float32"]
    assert verdict["passed"] and verdict["agreement"] == verdict["groups"]["all"]["after"] == 1
    # a table of texts in several languages names them row by row
    several = pa.table({"text": texts, "language": ["swh_Latn", "deu_Latn"] * 40})
    rows = np.arange(80) % 2 == 0
    assert (agreement.answers(onnx, several, "texts") == np.where(rows, *best.values())).all()


def test_texts_to_check_on_are_answered_in_their_guessed_language(place: Path, tmp_path: Path) -> None:
    lines = [GERMAN, "please turn on all of the lights in the kitchen", "12 + 3"]
    (tmp_path / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    found, _ = publish._tables(bundle.load(place / "centre" / "bundle"), tmp_path / "texts.txt")
    assert found["texts"]["language"].to_pylist() == ["deu_Latn", "eng_Latn", None]
    one = engine.load(place / "centre" / "artefact", precision="float32")
    assert agreement.answers(one, found["texts"], "texts").tolist() == found["texts"]["label"].to_pylist()
    found, _ = publish._tables(bundle.load(place / "lora" / "bundle"), tmp_path / "texts.txt")
    assert "language" not in found["texts"].column_names


def test_an_artefact_on_trial_answers_by_the_language_it_guesses(place: Path, tmp_path: Path) -> None:
    folder, code = place / "centre" / "artefact", identify.Identifier().guess(GERMAN).code
    found = artefact.read(folder)
    for label in (0, 2):  # whatever is asked, its language decides
        shutil.copytree(folder, tmp_path / str(label))
        row = [100.0 * (i == label) for i in range(len(LABELS))]
        artefact.write(replace(found, folder=tmp_path / str(label), offsets={str(code): row}))
        done = publish._python("-c", publish.ASK, str(tmp_path / str(label)), json.dumps([GERMAN, None]), cwd=tmp_path)
        assert json.loads(done.stdout) == LABELS[label], done.stderr
