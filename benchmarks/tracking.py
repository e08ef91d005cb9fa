"""What a tracking server that never answers costs training: the same run with tracking off and with a dead server.

    python benchmarks/tracking.py            interleaved, medians; about 8 minutes on 2 cores

The server accepts connections on 127.0.0.1 and stays silent, the worst kind: a refused connection fails at once.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import threading
import time
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from xlt_ray.config.read import build
from xlt_ray.runs import run


def main() -> None:
    """Run both arms in turn and print the ratio of their training times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with _silent_server() as address, tempfile.TemporaryDirectory() as folder:
        seconds: dict[str, list[float]] = {"off": [], address: []}
        for number in range(args.rounds):
            for uri, found in seconds.items():
                elapsed, unsent = _train(uri, folder, number)
                found.append(elapsed)
                print(
                    f"round {number + 1} {'off' if uri == 'off' else 'silent'}: {elapsed:.1f} s, {unsent} unsent",
                    flush=True,
                )
    off, silent = (statistics.median(found) for found in seconds.values())
    print(f"training with a silent server takes {silent / off:.3f} x the time with tracking off (medians)")


def _train(uri: str, folder: str, number: int) -> tuple[float, int]:
    experiment = build(
        {
            "name": f"tracking-{number}-{'off' if uri == 'off' else 'silent'}",
            "sources": ["eng_Latn", "hin_Deva"],
            "targets": ["deu_Latn"],
            "training": {"epochs": 3},
            "tracking": {"uri": uri, "flush_seconds": 1},
            "resources": {"workers": 2},
            "storage": folder,
        }
    )
    times: list[float] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["stage"] == "train":
            times.append(time.monotonic())

    outcome = run.run(experiment, on_event)
    return times[-1] - times[0], outcome.unsent


class _silent_server:
    def __enter__(self) -> str:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.kept: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                self.kept.append(self.socket.accept()[0])
            except OSError:  # closed
                return

    def __exit__(self, *_: object) -> None:
        self.socket.close()


if __name__ == "__main__":
    main()
