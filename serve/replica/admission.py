"""Admit requests: by key, by how much one client may ask for, and by how much may wait at once."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import time
from collections.abc import Callable, Iterator, Sequence

from serve.replica.refusals import Refusal
from serve.settings import ApiKey

NEWEST = 0.2  # weight of the newest batch in the running estimate of speed
# Refused before the deadline is certain to be missed, because answers that come just too late are the dearest of all
MARGIN = 0.8


class Queue:
    """Counts the texts that wait in this replica and refuses what could not be answered in time.

    With no measure of the speed yet only the number of texts is a limit. Used from one event loop.
    """

    def __init__(self, most: int) -> None:
        self.most, self.waiting, self.speed = most, 0, 0.0

    def measured(self, texts: float, seconds: float) -> None:
        """Note that so many texts took so long in the engine."""
        found = texts / max(seconds, 1e-6)
        self.speed = found if not self.speed else (1 - NEWEST) * self.speed + NEWEST * found

    def wait(self) -> float:
        """Estimate the seconds until what waits now is answered; 0 while the speed is unknown."""
        return self.waiting / self.speed if self.speed else 0.0

    def free(self, texts: int, deadline: float) -> bool:
        """Return whether so many more texts could be answered within `deadline` seconds."""
        if self.waiting and self.waiting + texts > self.most:
            return False
        return not self.waiting or self.wait() < MARGIN * deadline

    def check(self, texts: int, deadline: float) -> None:
        """Raise the Refusal `overloaded` where so many more texts could not be answered within `deadline` seconds."""
        if not self.free(texts, deadline):
            message = "too much is waiting to answer this in time; try again later"
            raise Refusal(503, "overloaded", message, self.wait())

    @contextlib.contextmanager
    def enter(self, texts: int, deadline: float) -> Iterator[None]:
        """Count texts in, and out again; raises what `check` raises."""
        self.check(texts, deadline)
        self.waiting += texts
        try:
            yield
        finally:
            self.waiting -= texts


class Keys:
    """Identifies clients by their keys, of which only the SHA-256 is known, and holds each to its rate.

    A key of 32 random bytes cannot be guessed from its hash, so no slow password hash is needed on every request.
    `replicas` returns over how many replicas a client's rate is shared.
    """

    def __init__(
        self,
        keys: Sequence[ApiKey],
        replicas: Callable[[], int] = lambda: 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys, self._replicas, self._now = tuple(keys), replicas, now
        self._left: dict[str, tuple[float, float]] = {}  # name -> (texts left, when that was so)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def client(self, authorization: str, x_api_key: str) -> str:
        """Name the client of a request by its headers; raise a Refusal of 401. Without keys everybody is `anyone`."""
        if not self._keys:
            return "anyone"
        scheme, _, token = authorization.partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else x_api_key
        digest = hashlib.sha256(given.encode("utf-8", errors="replace")).hexdigest()
        found = ""
        for key in self._keys:  # all of them, always, so that the time taken reveals nothing
            if hmac.compare_digest(key.sha256, digest):
                found = key.name
        if not found:
            raise Refusal(401, "unauthorised", "give a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        return found

    @contextlib.contextmanager
    def charged(self, client: str, texts: int) -> Iterator[None]:
        """Take texts from a client's allowance, as `spend`, and put them back where what is done here is refused."""
        self.spend(client, texts)
        try:
            yield
        except Refusal:
            if client in self._left:
                left, since = self._left[client]
                self._left[client] = left + texts, since
            raise

    def spend(self, client: str, texts: int) -> None:
        """Take texts from a client's allowance of a minute; raise a Refusal of 429 where it is used up."""
        rate = next((key.texts_per_minute for key in self._keys if key.name == client), None)
        if rate is None:
            return
        rate /= max(1, self._replicas())
        now = self._now()
        left, since = self._left.get(client, (rate, now))
        left = min(rate, left + (now - since) * rate / 60)
        # a burst larger than the allowance is admitted from a full one and leaves it negative
        if left < min(texts, rate):
            wait = (min(texts, rate) - left) * 60 / rate
            raise Refusal(429, "rate_limited", f"{client} may classify {rate:g} texts a minute here", wait)
        self._left[client] = left - texts, now
