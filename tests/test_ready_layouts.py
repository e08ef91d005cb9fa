"""A ready configuration trains on its corpus's own layout with no code written: a small copy of AfriSenti's."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from xlt_ray.cli import app

ROOT = Path(__file__).parents[1]
FOLDERS = ("amh", "arq", "ary", "hau", "ibo", "kin", "oro", "pcm", "por", "swa", "tir", "tso", "twi", "yor")
WITHOUT_TRAIN = ("oro", "tir")  # the task's zero-shot languages


def _afrisenti(folder: Path) -> Path:
    for number, language in enumerate(FOLDERS):
        for split, rows in (("train", 12 + number), ("dev", 6), ("test", 9)):
            if split == "train" and language in WITHOUT_TRAIN:
                continue
            labels = ("positive", "neutral", "negative")
            lines = [f"eng{i} deu{i % 7} {language} {split} {i}\t{labels[i % 3]}" for i in range(rows)]
            file = folder / language / f"{split}.tsv"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(["tweet\tlabel", *lines]) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_afrisenti_trains_by_configuration_alone(tmp_path: Path, tiny_encoder: Path) -> None:
    folder = _afrisenti(tmp_path / "afrisenti")
    overrides = [
        f"corpus.path={folder}",
        f"corpus.cache_dir={tmp_path / 'cache'}",
        f"network.init={tiny_encoder}",
        "network.freeze=[]",
        "network.max_length=32",
        "training.epochs=1",
        "tracking.uri=off",
        f"storage={tmp_path / 'runs'}",
    ]
    done = CliRunner().invoke(
        app,
        [
            "train",
            str(
                ROOT / "jobs" / "configs" / "afrisenti_files.yaml",
            ),
            *overrides,
        ],
    )
    assert done.exit_code == 0, done.output
    (run,) = (tmp_path / "runs").iterdir()
    table = (run / "scores.tsv").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 1 + len(FOLDERS)
    assert "gaz_Latn" in table and "tir_Ethi" in table  # Oromo and Tigrinya: no train split, measured all the same
    assert (run / "bundle" / "bundle.json").is_file() and (run / "report.html").is_file()
