"""Engines answer as the bundle does, from many threads, and the one for CPUs loads no torch."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from artefacts import LABELS, TEXTS, bundled
from scipy.special import softmax

from xlt_ray.errors import InputError
from xlt_ray.export import export
from xlt_ray.inference import artefact, bundle, engine
from xlt_ray.inference.engine import OnnxEngine, TorchEngine


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> tuple[Path, Path]:
    """A bundle and the artefact made of it."""
    place = tmp_path_factory.mktemp("engine")
    bundled(place / "bundle", tiny_encoder, "network.prefix='eng5 '", types=True)
    export.export(place / "bundle", place / "artefact", texts=TEXTS)
    return place / "bundle", place / "artefact"


@pytest.fixture(scope="module")
def onnx(folders: tuple[Path, Path]) -> OnnxEngine:
    return OnnxEngine(artefact.read(folders[1]), "float32", threads=2)


def test_a_folder_decides_its_engine(folders: tuple[Path, Path]) -> None:
    torch_engine, onnx_engine = (engine.load(folder, device="cpu") for folder in folders)
    assert isinstance(torch_engine, TorchEngine) and isinstance(onnx_engine, OnnxEngine)
    for one in (torch_engine, onnx_engine):
        assert one.artefact.digest == artefact.bundle_digest(folders[0]) and one.artefact.provenance["name"] == "tiny"
        assert (one.labels, one.precision, one.device, one.max_length) == (LABELS, "float32", "cpu", 32)


def test_texts_are_encoded_as_in_training(folders: tuple[Path, Path], onnx: OnnxEngine) -> None:
    tokenize = bundle.load(folders[0]).tokenize
    for pairs in (None, TEXTS[::-1], ["deu1 " * 50] * len(TEXTS)):
        wanted = tokenize(TEXTS, pairs)
        for one in (onnx, engine.load(folders[0], device="cpu")):
            for row, by_training in zip(one.encode(TEXTS, pairs), wanted, strict=True):
                assert row[:, 0].tolist() == by_training["input_ids"] and len(row) <= 32
                assert row[:, 1].tolist() == by_training["token_type_ids"]


def test_torch_answers_exactly_as_the_bundle(folders: tuple[Path, Path]) -> None:
    one = engine.load(folders[0], device="cpu")
    found = one.probabilities(one.encode(TEXTS, TEXTS[::-1]))
    assert np.array_equal(found, bundle.load(folders[0]).probabilities(TEXTS, TEXTS[::-1]))


def test_a_temperature_reaches_every_engine_and_older_files_do_without(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = bundle.load(folders[0])
    before = plain.probabilities(TEXTS)
    plain.network.temperature = 2.5
    bundle.save(tmp_path / "bundle", plain, "tiny")
    export.export(tmp_path / "bundle", tmp_path / "artefact", texts=TEXTS)
    wanted = bundle.load(tmp_path / "bundle").probabilities(TEXTS)
    assert np.abs(wanted - before).max() > 0.05
    np.testing.assert_allclose(wanted, softmax(np.log(before) / 2.5, axis=1), atol=1e-5)
    for name in ("bundle", "artefact"):
        one = engine.load(tmp_path / name, device="cpu", precision="float32")
        np.testing.assert_allclose(one.probabilities(one.encode(TEXTS)), wanted, atol=1e-4)
        assert one.artefact.temperature == 2.5
    for file in (tmp_path / "bundle" / "bundle.json", tmp_path / "artefact" / "artefact.json"):
        content = json.loads(file.read_text())
        assert content.pop("temperature") == 2.5
        file.write_text(json.dumps(content))
    assert artefact.read(tmp_path / "artefact").temperature == 1
    assert np.array_equal(bundle.load(tmp_path / "bundle").probabilities(TEXTS), before)
    for damaged in (0, -1.0, True, "1", None, float("nan"), 10**400):
        file.write_text(json.dumps(content | {"temperature": damaged}))
        with pytest.raises(InputError, match=r"artefact\.json: temperature: .* export the bundle again"):
            artefact.read(tmp_path / "artefact")


def test_batches_change_no_answer(folders: tuple[Path, Path], onnx: OnnxEngine) -> None:
    texts = [f"eng{i} " * (i % 25) for i in range(60)]
    wanted = onnx.probabilities(onnx.encode(texts))
    np.testing.assert_allclose(wanted.sum(1), 1, rtol=1e-5)
    for threads, tokens in ((1, 1), (3, 64), (2, 100_000)):
        one = OnnxEngine(onnx.artefact, "float32", threads, tokens)
        np.testing.assert_allclose(one.probabilities(one.encode(texts)), wanted, atol=1e-6)


def test_int8_answers_do_not_depend_on_the_other_rows(folders: tuple[Path, Path]) -> None:
    one = OnnxEngine(artefact.read(folders[1]), "int8", 1)
    rows = one.encode(TEXTS)
    together = one.logits(one.session, rows)
    alone = np.concatenate([one.logits(one.session, [row]) for row in rows])
    np.testing.assert_allclose(alone, together, atol=2e-3 * together.std())


def test_no_row_gives_no_answer(folders: tuple[Path, Path], onnx: OnnxEngine) -> None:
    for one in (onnx, engine.load(folders[0], device="cpu"), engine.load(folders[1], precision="int8")):
        assert one.encode([]) == [] and one.probabilities([]).shape == (0, 3)


def test_many_threads_may_ask_at_once(onnx: OnnxEngine) -> None:
    texts = [[f"eng{i} swh{j}" for j in range(9)] for i in range(40)]
    wanted = [onnx.probabilities(onnx.encode(part)) for part in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda part: onnx.probabilities(onnx.encode(part)), texts))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_what_is_no_text_is_refused(onnx: OnnxEngine) -> None:
    for texts, pairs in ((["a\ud800"], None), (["a", "b"], ["c"])):
        with pytest.raises(InputError, match="texts: cannot be encoded"):
            onnx.encode(texts, pairs)


def test_what_does_not_go_together_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an artefact computes on cpu, not cuda; give its bundle"):
        engine.load(folders[1], device="cuda")
    with pytest.raises(InputError, match="has no bfloat16 network"):
        engine.load(folders[1], precision="bfloat16")
    with pytest.raises(InputError, match="int8 needs an artefact"):
        engine.load(folders[0], precision="int8")
    with pytest.raises(InputError, match="device: 'tpu'; give auto, cpu or cuda"):
        engine.load(folders[0], device="tpu")
    with pytest.raises(InputError, match="not an artefact"):
        engine.load(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="cuda, but torch finds no GPU here; give cpu or auto"):
        engine.load(folders[0], device="cuda")


def test_a_broken_network_is_refused_by_its_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for file in folders[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = artefact.read(tmp_path)
    (tmp_path / "model.float32.onnx").write_bytes(b"no network")
    artefact.write(found)
    with pytest.raises(InputError, match=r"model\.float32\.onnx: onnxruntime cannot load it .*export the bundle again"):
        engine.load(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_answers_alike(folders: tuple[Path, Path]) -> None:
    gpu, cpu = (engine.load(folders[0], device=device) for device in ("cuda", "cpu"))
    assert gpu.precision == "bfloat16"
    np.testing.assert_allclose(gpu.probabilities(gpu.encode(TEXTS)), cpu.probabilities(cpu.encode(TEXTS)), atol=0.1)


def test_answering_on_a_cpu_loads_no_torch(folders: tuple[Path, Path]) -> None:
    code = f"""
import sys
from xlt_ray.inference import engine
one = engine.load({str(folders[1])!r}, precision="int8")
print(one.probabilities(one.encode(["eng1 eng2"])).shape)
print(sorted({{"torch", "transformers", "scipy", "pandas", "pyarrow", "onnx", "sklearn"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines() == ["(1, 3)", "[]"]


def test_an_engine_gives_back_only_pages_of_its_own(folders: tuple[Path, Path]) -> None:
    """Where another engine's table lay, memory of this process may lie by now."""
    first, second = (OnnxEngine(artefact.read(folders[1]), "float32", threads=1) for _ in range(2))
    assert second.mapped and not set(first.mapped) & set(second.mapped)
    rows = second.encode([f"eng{i} deu{i}" for i in range(50)])
    before = second.probabilities(rows)
    del first
    gc.collect()
    held = [bytearray(b"x") * 2**16 for _ in range(500)]
    for _ in range(3 * engine.RELEASE):
        second.probabilities(rows[:1])
    assert all(one.count(b"x") == 2**16 for one in held)
    np.testing.assert_array_equal(second.probabilities(rows), before)
