"""The same command started twice at once works once, on disk and on object storage, and a killed one is taken over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from object_storage import bucket
from ray_runs import Command, environment, settings
from search_runs import write

pytestmark = [pytest.mark.slow, pytest.mark.long]

EPOCHS = 36  # the second command has come before they are over


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "storage")
        return
    with bucket(monkeypatch) as url:  # which the commands below learn of by their environment
        yield url


def test_two_commands_train_once_and_the_second_goes_on_when_the_first_is_killed(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, storage: str
) -> None:
    training = {"epochs": EPOCHS, "batch_size": 16, "checkpoint_every": 4}
    data = settings(tiny_encoder, tiny_corpus, tmp_path, training=training, storage=storage)
    config = write(data, tmp_path / "tiny.yaml")
    first = Command(tmp_path / "first.log", environment(), "train", config)
    second = third = None
    try:
        first.until("epoch 1 done")
        second = Command(tmp_path / "second.log", environment(), "train", config)
        second.until(f"process {first.process.pid} on ")
        second.until("training ")  # the progress of the first
        first.end()
        second.until("going on from update")
        third = Command(tmp_path / "third.log", environment(), "train", config)
        third.until(f"process {second.process.pid} on ")
        assert second.process.wait(200) == third.process.wait(200) == 0, (second.told, third.told)
    finally:
        for one in (first, second, third):
            if one is not None:
                one.end()
    assert "loading the encoder" not in third.told.split("does this work already")[0], "the third did no work"
    assert "This run was finished before" in third.told
    assert (
        second.told[second.told.index("tiny: test scores") :].splitlines()[:3]
        == (third.told[third.told.index("tiny: test scores") :].splitlines()[:3])
    )
    files, path = fsspec.core.url_to_fs(storage)
    files.invalidate_cache()
    (folder,) = files.ls(path, detail=False)
    names = {Path(name).name for name in files.ls(folder, detail=False)}
    assert "result.json" in names and not [name for name in names if name.startswith("lease-")]
    history = json.loads(files.cat_file(f"{folder}/history.json"))
    assert [row["epoch"] for row in history] == list(range(1, EPOCHS + 1)), "no epoch is missing or there twice"
