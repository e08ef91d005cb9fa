"""Ask a server on this machine over HTTP, by a fixed number of clients or at a fixed rate, and time every answer.

Sockets and HTTP/1.1 by hand, because a client library costs a millisecond a request, which on two cores the server
would pay for. Bounded in time; only addresses of the loopback interface are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LOOPBACK = ("127.0.0.1", "localhost")


@dataclass
class Taken:
    """What came back: statuses, and per answer seconds since the request was due and (start, end) of the body."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    refused_seconds: list[float] = field(default_factory=list)
    bodies: list[tuple[int, bytes]] = field(default_factory=list)  # (which request, body) of status 200
    wall: float = 0.0
    texts: int = 0  # in answers of status 200

    @property
    def texts_per_second(self) -> float:
        return self.texts / self.wall

    def quantiles(self) -> dict[str, float]:
        """Return p50, p95 and p99 of good answers in milliseconds."""
        if not self.seconds:
            return {"p50": float("nan"), "p95": float("nan"), "p99": float("nan")}
        found = np.quantile(self.seconds, [0.5, 0.95, 0.99]) * 1000
        return dict(zip(("p50", "p95", "p99"), found.tolist(), strict=True))


def requests(path: str, bodies: Sequence[object], host: str = "127.0.0.1") -> list[bytes]:
    """Write the bytes of POST requests with JSON bodies."""
    written = []
    for body in bodies:
        content = json.dumps(body, ensure_ascii=False).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        written.append((head + f"Content-Length: {len(content)}\r\n\r\n").encode() + content)
    return written


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Read one response: status, body, and whether the connection may be used again."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, headers = int(head[9:12]), head.lower()
    keep = b"connection: close" not in headers
    if b"content-length:" in headers:
        at = headers.index(b"content-length:") + 15
        return status, await reader.readexactly(int(headers[at : headers.index(b"\r\n", at)])), keep
    body = b""
    if b"transfer-encoding: chunked" in headers:
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return status, body, keep
    return status, await reader.read(), False


class Client:
    """One keep-alive connection, opened anew when it was closed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes, timeout: float) -> tuple[int, bytes]:
        """Send one request; status -1 for a connection that broke, -2 for no answer in time."""
        try:
            async with asyncio.timeout(timeout):
                if self.streams is None:
                    self.streams = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
                reader, writer = self.streams
                writer.write(request)
                status, body, keep = await answer(reader)
                if not keep:
                    await self.close()
                return status, body
        except TimeoutError:
            await self.close()
            return -2, b""
        except (OSError, asyncio.IncompleteReadError, ValueError):
            await self.close()
            return -1, b""

    async def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            with contextlib.suppress(OSError):
                await self.streams[1].wait_closed()
            self.streams = None


def _note(taken: Taken, which: int, texts: int, due: float, found: tuple[int, bytes], keep: bool) -> None:
    status, body = found
    seconds = time.perf_counter() - due
    taken.statuses[status] += 1
    if status == 200:
        taken.seconds.append(seconds)
        taken.texts += texts
        if keep:
            taken.bodies.append((which, body))
    else:
        taken.refused_seconds.append(seconds)


async def closed(
    port: int, asked: Sequence[bytes], texts: int, clients: int, seconds: float, keep: bool = False, timeout: float = 60
) -> Taken:
    """Let so many clients ask one request after another for so long (a request begun is waited for)."""
    taken, numbers, began = Taken(), itertools.count(), time.perf_counter()
    end = began + seconds

    async def work() -> None:
        client = Client(port)
        while time.perf_counter() < end:
            which = next(numbers) % len(asked)
            due = time.perf_counter()
            _note(taken, which, texts, due, await client.ask(asked[which], timeout), keep)
        await client.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    taken.wall = time.perf_counter() - began
    return taken


async def opened(
    port: int, asked: Sequence[bytes], texts: int, rate: float, seconds: float, keep: bool = False, timeout: float = 60
) -> Taken:
    """Send requests at a fixed rate a second, whatever comes back, and time each from when it was due."""
    taken, idle, began = Taken(), list[Client](), time.perf_counter()

    async def one(number: int, due: float) -> None:
        client = idle.pop() if idle else Client(port)
        which = number % len(asked)
        _note(taken, which, texts, due, await client.ask(asked[which], timeout), keep)
        idle.append(client)

    tasks = []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    taken.wall = max(seconds, time.perf_counter() - began)
    for client in idle:
        await client.close()
    return taken
