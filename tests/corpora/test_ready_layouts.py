"""A ready configuration reads its corpus's own layout with no code written: small copies of the repositories."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from xlt_ray import config
from xlt_ray.cli import app
from xlt_ray.training import checks
from xlt_ray.training.setup import Setup

ROOT = Path(__file__).parents[2]
FOLDERS = ("amh", "arq", "ary", "hau", "ibo", "kin", "orm", "pcm", "por", "swa", "tir", "tso", "twi", "yor")
SPLITS = {"train": "eng", "dev": "deu", "test": "hin"}  # words that the tiny encoder knows, others in every split
WITHOUT_TRAIN = ("orm", "tir")  # the task's zero-shot languages


def _afrisenti(folder: Path) -> Path:
    for number, language in enumerate(FOLDERS):
        for split, rows in (("train", 12 + number), ("dev", 6), ("test", 9)):
            file = folder / language / f"{split}.tsv"
            file.parent.mkdir(parents=True, exist_ok=True)
            if split == "train" and language in WITHOUT_TRAIN:
                # as the repository has them, the one with a header, the other without
                file.write_text("tweet\tlabel" if language == "tir" else "", encoding="utf-8")
                continue
            labels = ("positive", "neutral", "negative")
            lines = [f"eng{i} deu{i % 7} swh{number} {SPLITS[split]}{i}\t{labels[i % 3]}" for i in range(rows)]
            file.write_text("\n".join(["tweet\tlabel", *lines]) + "\n", encoding="utf-8")
    return folder


def _masakhanews(folder: Path) -> Path:
    topics = ["business", "health", "politics", "sports"]
    for language in ("eng", "fra", "hau", "swa", "yor", "lug"):
        for split, rows in (("train", 12), ("dev", 6), ("test", 9)):
            # Luganda's files hold no quote, and English and Xhosa alone line breaks
            texts = [
                f"{language} {split} {i}" if language == "lug" else f'{language} {split} {i} "so"' for i in range(rows)
            ]
            if language == "eng":
                texts = [f"{text}\n\nA second\tparagraph." for text in texts]
            frame = {
                "category": [topics[i % 4] for i in range(rows)],
                "headline": texts,
                "text": texts,
                "url": "https://x",
            }
            file = folder / language / f"{split}.tsv"
            file.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(frame).to_csv(file, sep="\t", index=False)
    return folder


def _prepared(name: str, folder: Path, cache: Path) -> Setup:
    overrides = [f"corpus.path={folder}", f"corpus.cache_dir={cache}"]
    return checks.prepare(config.load(ROOT / "jobs" / "configs" / name, overrides))


def test_the_layout_of_afrisenti_is_sound(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"orm/train.tsv: empty, taken as no rows"):
        prepared = _prepared("afrisenti_files.yaml", _afrisenti(tmp_path / "afrisenti"), tmp_path / "cache")
    assert len(prepared.measured) == len(FOLDERS)
    assert {"gaz_Latn", "tir_Ethi"} <= set(prepared.zero_shot)
    assert not {"gaz_Latn", "tir_Ethi"} & set(prepared.corpus.languages("train"))


def test_the_layout_of_masakhanews_is_sound(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"eng/train.tsv and 14 more files: double quotes are read as enclosing"):
        prepared = _prepared("masakhanews_files.yaml", _masakhanews(tmp_path / "news"), tmp_path / "cache")
    assert prepared.corpus.sizes("train") == dict.fromkeys(prepared.measured, 12)
    first = 'eng test 0 "so"\n\nA second\tparagraph.'
    assert prepared.corpus.table("test", "eng_Latn")["text"][0].as_py() == f"{first} {first}"


@pytest.mark.slow
@pytest.mark.long
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
