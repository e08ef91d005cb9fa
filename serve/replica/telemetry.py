"""Count for Prometheus: through Ray, which adds up the processes of a machine and exports them.

On a machine's Ray metrics endpoint every name gets `ray_` in front.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Sequence
from typing import Any

EVERY = 1.0  # seconds between two hand-overs of counts
SECOND_BUCKETS: list[float] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
TEXT_BUCKETS: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256]
TOKEN_BUCKETS: list[float] = [16, 64, 128, 256, 512, 1024, 2048, 4096, 16384]


class Telemetry:
    """Counts nothing; what a service outside Ray gets."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered or refused."""

    def batch(self, texts: float, rows: int, tokens: int, seconds: float) -> None:
        """Count a batch that the engine worked on: its `rows` are readings, of which a text may have several."""

    def texts(self, version: str, languages: Sequence[str], labels: Sequence[str | None]) -> None:
        """Count texts by language and by the label they got, None for none, so that a drift of either shows."""

    def words(self, version: str, languages: Sequence[str], tags: Sequence[Sequence[str | None]]) -> None:
        """Count texts by language, and by language the tags that their words got."""

    def waiting(self, texts: int) -> None:
        """Note how many texts wait."""


class ServeTelemetry(Telemetry):
    """Counts in Ray's metrics, tagged by Serve with deployment and replica.

    Counts are handed over once a second, not one by one. Used from one event loop.
    """

    def __init__(self) -> None:
        from ray.serve import metrics

        Counter: Any = metrics.Counter  # whose annotation has room for one tag only
        Gauge, Histogram = metrics.Gauge, metrics.Histogram

        self._requests = Counter("xlt_requests", "Requests by route and status", ("route", "status"))
        self._seconds = Histogram("xlt_request_seconds", "Time to answer a request", SECOND_BUCKETS, ("route",))
        self._batch_texts = Histogram("xlt_batch_texts", "Texts of a batch", TEXT_BUCKETS)
        self._batch_rows = Histogram("xlt_batch_rows", "Readings of the texts of a batch", TEXT_BUCKETS)
        self._batch_tokens = Histogram("xlt_batch_tokens", "Tokens of a batch", TOKEN_BUCKETS)
        self._batch_seconds = Histogram("xlt_batch_seconds", "Time of a batch in the engine", SECOND_BUCKETS)
        self._texts = Counter("xlt_texts", "Texts by language", ("version", "language"))
        self._abstained = Counter("xlt_abstained", "Texts given no label, by language", ("version", "language"))
        self._labels = Counter("xlt_labels", "Labels given, by language", ("version", "language", "label"))
        self._waiting: Any = Gauge("xlt_waiting_texts", "Texts that wait or are being worked on")
        self._held: Tally[tuple[Any, tuple[tuple[str, str], ...]]] = Tally()

    def _hold(self, counter: Any, count: int, **tags: str) -> None:
        if not self._held:
            asyncio.get_running_loop().call_later(EVERY, self._hand_over)
        self._held[counter, tuple(tags.items())] += count

    def _hand_over(self) -> None:
        held, self._held = self._held, Tally()
        for (counter, tags), count in held.items():
            counter.inc(count, dict(tags))

    def request(self, route: str, status: int, seconds: float) -> None:
        self._hold(self._requests, 1, route=route, status=str(status))
        self._seconds.observe(seconds, {"route": route})

    def batch(self, texts: float, rows: int, tokens: int, seconds: float) -> None:
        self._batch_texts.observe(texts)
        self._batch_rows.observe(rows)
        self._batch_tokens.observe(tokens)
        self._batch_seconds.observe(seconds)

    def texts(self, version: str, languages: Sequence[str], labels: Sequence[str | None]) -> None:
        self.words(version, languages, [[label] for label in labels])

    def words(self, version: str, languages: Sequence[str], tags: Sequence[Sequence[str | None]]) -> None:
        for language, count in Tally(languages).items():
            self._hold(self._texts, count, version=version, language=language)
        each = ((language, tag) for language, own in zip(languages, tags, strict=True) for tag in own)
        for (language, label), count in Tally(each).items():
            if label is None:
                self._hold(self._abstained, count, version=version, language=language)
            else:
                self._hold(self._labels, count, version=version, language=language, label=label)

    def waiting(self, texts: int) -> None:
        self._waiting.set(texts)
