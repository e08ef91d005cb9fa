"""What a plain command starts on one machine listens on its loopback interface alone."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from ray_runs import Command, environment, offspring, settings
from search_runs import search_settings, write

pytestmark = [pytest.mark.slow, pytest.mark.long]


def listening(pid: int) -> dict[str, str]:
    """Return the addresses on which a process and its offspring listen, and which of them does."""
    found: dict[str, str] = {}
    for one in (pid, *(process.pid for process in offspring(pid))):
        try:
            process = psutil.Process(one)
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[f"{connection.laddr.ip.removeprefix('::ffff:')}:{connection.laddr.port}"] = " ".join(
                        process.cmdline()
                    )[:80]
        except psutil.Error:
            continue  # it has ended
    return found


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_nothing_listens_beyond_this_machine(tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, verb: str) -> None:
    long = {"epochs": 200, "batch_size": 16}
    if verb == "train":
        data = settings(tiny_encoder, tiny_corpus, tmp_path, training=long, resources={"workers": 2})
        words = "epoch 1 done"
    else:
        asked = {"space": {"sources": {"at_most": 2}}, "screening": {"trials": 0}, "fine_tuning": {"workers": 2}}
        data = search_settings(tiny_encoder, tiny_corpus, tmp_path, training=long, search=asked)
        words = "1 running"
    command = Command(tmp_path / "log", environment(), verb, write(data, tmp_path / "tiny.yaml"))
    try:
        command.until(words)
        found = listening(command.process.pid)
    finally:
        command.end()
    assert len(found) > 5, found
    beyond = {address: who for address, who in found.items() if not address.startswith(("127.0.0.1:", "::1:"))}
    assert beyond == {}
