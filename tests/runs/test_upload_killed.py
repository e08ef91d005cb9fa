"""A run whose storage is an S3 bucket is killed between the files that it sends, and another machine goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest
from object_storage import bucket
from ray_runs import Command, environment, results, settings, until
from search_runs import write

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_what_a_kill_leaves_in_a_bucket_is_gone_on_with(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"epochs": 2, "batch_size": 16, "checkpoint_every": 4}
    plain, killed, sent = tmp_path / "plain", tmp_path / "killed", tmp_path / "sent"
    for place in (plain, killed):
        place.mkdir()
    undisturbed = Command(
        plain / "log", environment(), "train",
        write(settings(tiny_encoder, tiny_corpus, plain, training=training), plain / "tiny.yaml"),
    )  # fmt: skip
    assert undisturbed.process.wait(200) == 0, undisturbed.told
    with bucket(monkeypatch) as url:
        data = settings(tiny_encoder, tiny_corpus, killed, training=training, storage=url)
        config = write(data, killed / "tiny.yaml")
        files, path = fsspec.core.url_to_fs(url)

        def there(part: str) -> bool:
            files.invalidate_cache()
            return any(part in name for name in files.find(path))

        for number, part in enumerate(("/training.pt", "/bundle/")):
            assert not there(part), "the kill before came too late"
            command = Command(killed / f"log{number}", environment(), "train", config)
            command.until(lambda part=part: there(part), f"the first {part} in the bucket")
            command.end()
            until(lambda one=command: not one.left(), "the end of what was killed")
            shutil.rmtree(killed / "cache" / "runs")  # another machine has the bucket alone
        last = Command(killed / "log", environment(), "train", config)
        assert last.process.wait(200) == 0, last.told
        files.invalidate_cache()
        names = [Path(name).name for name in files.find(path)]
        assert "result.json" in names and not [name for name in names if name.startswith("lease-")]
        files.get(f"{path}/", f"{sent}/", recursive=True)
    assert results(next(sent.glob("tiny-*"))) == results(next((plain / "runs").glob("tiny-*")))
