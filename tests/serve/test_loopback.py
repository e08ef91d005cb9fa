"""How Ray Serve's HAProxy is configured: by a script of ours, and without ports that nobody asked for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from serve import loopback


def test_a_script_of_ours_stands_where_ray_finds_haproxy(tmp_path: Path) -> None:
    told = loopback.install(tmp_path / "new")
    deep = loopback.install(tmp_path / "deep" / ("x" * 40))
    assert "RAY_SERVE_HAPROXY_SOCKET_PATH" not in deep, "a socket's path would be too long there"
    with tempfile.TemporaryDirectory(prefix="x") as short:
        assert loopback.install(Path(short))["RAY_SERVE_HAPROXY_SOCKET_PATH"] == f"{short}/admin.sock"
    script = Path(told["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert os.access(script, os.X_OK) and str(Path(loopback.__file__).resolve()) in script.read_text()


def test_a_configuration_corrected_twice_is_corrected_once(tmp_path: Path) -> None:
    config = (
        "global\n    log 127.0.0.1:514 local0 info\nfrontend prometheus\n    bind :9101\n    mode http\n"
        "frontend http_frontend\n    bind 127.0.0.1:8000\n    errorfile 503 /else/500.http\n"
        "listen stats\n  bind *:8404\n  stats enable"
    )
    once = loopback.correct(config, tmp_path / "503.http")
    assert loopback.correct(once, tmp_path / "503.http") == once
    assert once.count("wait-for-body") == 1 and f"errorfile 503 {tmp_path / '503.http'}" in once
    assert "514" not in once and once.startswith("global\nfrontend http_frontend\n")
    assert [line.split() for line in once.splitlines() if "bind" in line] == [["bind", "127.0.0.1:8000"]]


def test_what_ray_would_open_besides_is_still_called_as_it_was() -> None:
    """Ray's own template, filled in: a section renamed there would open a port again."""
    from ray.serve._private import haproxy_templates

    template = haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    left = loopback.correct(template, Path("503.http"))
    assert template.count("\n    bind :") + template.count("\n  bind *") == 2
    assert "bind :" not in left and "bind *" not in left and "frontend http_frontend" in left
    assert template.count("return status 404") == 1 and "return status 404" not in left
    assert "\nbackend default_backend\n" in left, "without a server, which is our refusal"
