"""A real headless Chromium, the machine's own, driven over its DevTools protocol with nothing to install beside it."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# the last line keeps it from calling hosts of its maker
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--lang=en-US", "--no-first-run"),
    *("--disable-quic", "--disable-sync", "--disable-background-networking", "--disable-component-update"),
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "ArrowDown": 40, "End": 35}


def binary() -> str | None:
    """Find a Chromium: CHROMIUM names one, else the first of the usual names that is on the path."""
    return next(
        (found for name in (os.environ.get("CHROMIUM"), *NAMES) if name and (found := shutil.which(name))), None
    )


class Page:
    """One tab. `faults` gathers what its console and its scripts complained of, `asked` the addresses it fetched."""

    def __init__(self, socket: ClientConnection) -> None:
        self.faults: list[str] = []
        self.asked: list[str] = []
        self._socket, self._numbers = socket, itertools.count(1)
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.faults.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.faults.append(told["entry"]["text"] + " " + told["entry"].get("url", ""))

    def js(self, expression: str) -> Any:
        """Evaluate JavaScript; promises are awaited."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 15) -> Any:
        """Wait until JavaScript gives something true."""
        until = time.monotonic() + seconds
        while not (found := self.js(expression)):
            assert time.monotonic() < until, (
                f"{expression} stayed {found!r}: {self.js('document.body.innerText')[:2000]}"
            )
            time.sleep(0.02)
        return found

    def open(self, address: str, ready: str = "true") -> None:
        """Go to an address and wait for its page, until JavaScript in `ready` gives something true."""
        self.send("Page.navigate", url=address)
        self.wait(f"location.href === {json.dumps(address)} && document.readyState === 'complete' && ({ready})")

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key; `modifiers` are 2 for Ctrl, 8 for Shift."""
        text = {"text": {"Enter": "\r", "Space": " "}[key]} if key in ("Enter", "Space") and not modifiers else {}
        code = {"windowsVirtualKeyCode": KEYS[key], "key": " " if key == "Space" else key, "code": key}
        self.send("Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **code)

    def write(self, text: str) -> None:
        """Put text where the focus is, as a paste does."""
        self.send("Input.insertText", text=text)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def scheme(self, name: str) -> None:
        """Ask for `light` or `dark`."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def tree(self) -> list[dict[str, Any]]:
        """Give what a screen reader is told: role, name and properties of every node that is not ignored."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [
            {
                "role": node["role"]["value"],
                "name": node.get("name", {}).get("value", ""),
                **{one["name"]: one["value"].get("value") for one in node.get("properties", ())},
            }
            for node in nodes
            if not node["ignored"]
        ]

    def picture(self, file: Path) -> None:
        """Write a screenshot as PNG of what is to be seen."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """Start Chromium with a folder of its own and give its one tab."""
    path = binary()
    assert path, "no Chromium on this machine"
    folder = tempfile.mkdtemp(prefix="chromium-")
    command = [path, *FLAGS, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(process, Path(folder) / "DevToolsActivePort")
        with connect(f"ws://127.0.0.1:{port}{_tab(port)}", max_size=None, proxy=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _port(process: subprocess.Popen[bytes], file: Path) -> int:
    until = time.monotonic() + 60
    while not (file.is_file() and file.read_text().count("\n")):
        assert process.poll() is None and time.monotonic() < until, "Chromium did not start"
        time.sleep(0.02)
    return int(file.read_text().split()[0])


def _tab(port: int) -> str:
    import httpx

    with httpx.Client(trust_env=False) as client:
        while True:
            tabs = [tab for tab in client.get(f"http://127.0.0.1:{port}/json").json() if tab["type"] == "page"]
            if tabs:
                return "/devtools/page/" + str(tabs[0]["id"])
            time.sleep(0.02)
