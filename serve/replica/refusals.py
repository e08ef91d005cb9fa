"""Refuse a request: a status, a code for programs, a sentence for people, and when to come back."""

from __future__ import annotations

import math
from typing import Any


class Refusal(Exception):
    """A request that is not answered; `retry_after` is in seconds, None where coming back would change nothing."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """What stands in the response."""
        return {"error": {"code": self.code, "message": plain(self.message)}}

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After`, in whole seconds, where coming back makes sense; who may ask, where a key is missing."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def plain(text: str) -> str:
    """Write as a backslash and its number what no UTF-8 file can hold, such as half of a surrogate pair."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def not_ready(reason: str) -> Refusal:
    """Return a 503: nothing can be answered yet, or for the time being, for a `reason`."""
    return Refusal(503, "not_ready", reason, 5)


def unfit(place: str, reason: str) -> Refusal:
    """Return a 422: something in the request is not what it must be; `place` is where, such as `texts[3]`."""
    return Refusal(422, "unprocessable", f"{place}: {reason}")
