"""What Ray Serve is told of HAProxy: a script of ours, and ports that nobody asked for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from serve import loopback


@pytest.mark.parametrize("asked", [4001, 4002, 4003, 8000])
def test_ports_of_its_own_are_never_the_one_asked_for(
    asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "free_ports", lambda count: [4001, 4002, 4003][:count])
    told = loopback.install(tmp_path / "new", asked)
    own = {told["RAY_SERVE_HAPROXY_STATS_PORT"], told["RAY_SERVE_HAPROXY_METRICS_PORT"]}
    assert len(own) == 2 and str(asked) not in own
    deep = loopback.install(tmp_path / "deep" / ("x" * 40), asked)
    assert "RAY_SERVE_HAPROXY_SOCKET_PATH" not in deep, "a socket's path would be too long there"
    with tempfile.TemporaryDirectory(prefix="x") as short:
        assert loopback.install(Path(short), asked)["RAY_SERVE_HAPROXY_SOCKET_PATH"] == f"{short}/admin.sock"
    script = Path(told["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert os.access(script, os.X_OK) and str(Path(loopback.__file__).resolve()) in script.read_text()


def test_a_configuration_corrected_twice_is_corrected_once(tmp_path: Path) -> None:
    config = (
        "global\n    log 127.0.0.1:514 local0 info\nfrontend http_frontend\n    bind 127.0.0.1:8000\n"
        "    errorfile 503 /else/500.http\n  bind *:8404\n"
    )
    once = loopback.correct(config, tmp_path / "503.http")
    assert loopback.correct(once, tmp_path / "503.http") == once
    assert once.count("wait-for-body") == 1 and f"errorfile 503 {tmp_path / '503.http'}" in once
    assert "514" not in once and once.startswith("global\nfrontend")
    assert "bind 127.0.0.1:8404" in once and "*" not in once.replace("unless", "")
