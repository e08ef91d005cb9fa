"""A Ray cluster of several machines, all of them on this one: a head without CPUs, and nodes that come and die."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ray_runs import environment, free_ports, offspring, until

BIN = Path(sys.executable).parent
# a dead node is found within seconds instead of half a minute
QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


@dataclass
class Machines:
    """The cluster; `address` is what RAY_ADDRESS wants."""

    address: str
    folder: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a driver of this cluster."""
        return environment(RAY_ADDRESS=self.address, RAY_AUTH_MODE="disabled", **QUICK, **more)

    def add(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """Start a node, and wait until it has joined."""
        log = self.folder / f"node{len(self.nodes)}.log"
        ports = free_ports(1)
        node = _start(
            log, f"--address={self.address}", f"--num-cpus={cpus}", f"--dashboard-agent-listen-port={ports[0]}"
        )
        self.nodes.append(node)
        until(lambda: node.poll() is not None or "Ray runtime started" in log.read_text(), "a node")
        assert node.poll() is None, log.read_text()
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kill a node and all that runs on it, as a power cut would."""
        family = offspring(node.pid)
        node.kill()
        for process in family:
            process.kill()
        node.wait()


def _start(log: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [str(BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *options]
    variables = environment(RAY_AUTH_MODE="disabled", HF_HUB_OFFLINE="1", **QUICK)
    with log.open("wb") as out:
        return subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


@contextlib.contextmanager
def machines() -> Iterator[Machines]:
    """Start a head without CPUs; kill it and all nodes afterwards."""
    names = ("port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    # the paths of Ray's sockets are limited to about 100 characters, and those of pytest's folders are long
    with tempfile.TemporaryDirectory(prefix="xlt") as temp:
        folder = Path(temp)
        options = [f"--{name}={port}" for name, port in ports.items()]
        log = folder / "head.log"
        head = _start(log, "--head", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={temp}/ray", *options)
        found = Machines(f"127.0.0.1:{ports['port']}", folder)
        try:
            until(lambda: head.poll() is not None or "Ray runtime started" in log.read_text(), "the head")
            assert head.poll() is None, log.read_text()
            yield found
        finally:
            for node in (*found.nodes, head):
                if node.poll() is None:
                    found.kill(node)
