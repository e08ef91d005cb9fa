"""Check every request before a route sees it, by host, key and size, and add headers to every response."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.replica.admission import Keys
from serve.replica.refusals import Refusal
from serve.replica.service import Service
from serve.settings import ServeArgs

OPEN = {"/", "/healthz", "/readyz", "/page.js", "/page.css", "/favicon.ico", "/docs", "/openapi.json"}  # without a key
ASSETS = "/docs/assets/"  # neither need one
STREAMED = ("/v1/classify/stream", "/v1/tag/stream")  # their bodies may be of any length
# What a body must be declared to be. A page of another site can make a browser post only what is none of these.
JSON = ("application/json",)
LINES = (*JSON, "application/ndjson", "application/jsonl", "application/x-ndjson")
KINDS = dict.fromkeys(("/v1/classify", "/v1/feedback", "/v1/tag"), JSON) | dict.fromkeys(STREAMED, LINES)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'",
}
# Swagger UI sets itself up in an inline script, and nothing of a user's is shown there
DOCS_POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
logger = logging.getLogger("ray.serve")


class Guard:
    """ASGI middleware; the client's name is left in `scope["state"]["client"]`."""

    def __init__(self, app: ASGIApp, args: ServeArgs, keys: Keys, service: Callable[[], Service]) -> None:
        self.app, self.args, self.keys, self.service = app, args, keys, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, headers, state = time.perf_counter(), Headers(scope=scope), {"status": 0}
        path, method = scope["path"].removeprefix(scope.get("root_path", "")) or "/", scope["method"]
        if method == "HEAD":  # what GET would answer, without the body
            scope = {**scope, "method": "GET"}  # a copy: the server below reads its own to know what it may send

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                _add_headers(message, docs=path.startswith("/docs"))
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            self._admit(scope, headers, path)
            limit = None if path in STREAMED else self.args.limits.body_bytes
            await self.app(scope, _limited(receive, limit), sending)
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else _failed(error, path)
            if state["status"]:  # the response has begun: all that is left is to break it off
                raise ConnectionAbortedError("the answer could not be finished") from None
            await respond(refusal)(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.service().telemetry.request(route, state["status"], time.perf_counter() - began)

    def _admit(self, scope: Scope, headers: Headers, path: str) -> None:
        names = [name.lower() for name in self.args.allowed_hosts]
        if "*" not in names and _name(headers.get("host", "")) not in names:
            raise Refusal(421, "wrong_host", "this server does not answer to that name; see `allowed_hosts`")
        client = "anyone"
        if self.keys and path not in OPEN and not path.startswith(ASSETS) and scope["method"] != "OPTIONS":
            client = self.keys.client(headers.get("authorization", ""), headers.get("x-api-key", ""))
        scope.setdefault("state", {})["client"] = client
        if scope["method"] == "POST" and path in KINDS:
            _check_kind(headers, KINDS[path])
        length = headers.get("content-length", "")
        if path not in STREAMED and length.isdecimal() and int(length[:20]) > self.args.limits.body_bytes:
            raise _too_large(self.args.limits.body_bytes)
        if path in KINDS and path not in STREAMED:
            # before the body is read: under overload most of the work is refusing
            self.service().queue.check(1, self.args.limits.deadline_s)


def _check_kind(headers: Headers, kinds: Sequence[str]) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        raise Refusal(415, "unsupported_media_type", f"send the body with `Content-Type: {kinds[-1]}`")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(415, "unsupported_media_type", "send the body as it is, with no Content-Encoding")


def _failed(error: Exception, path: str) -> Refusal:
    """Log where something went wrong that should not, but not its message: it could hold a part of a text."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s failed with %s:\n%s", path[:200], type(error).__name__, frames)
    return Refusal(500, "internal", "a fault of the server, which its log describes")


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"the body is larger than {limit} bytes; send fewer texts at once, or stream them")


def _limited(receive: Receive, limit: int | None) -> Receive:
    """Break off a body that turns out larger than its limit, whatever its headers declare."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if limit is not None and received > limit:
            raise _too_large(limit)
        return message

    return limited


def _name(host: str) -> str:
    """Take the port off a Host header: `[::1]:8000` to `[::1]`."""
    end = host.rfind(":")
    return (host[:end] if end > host.rfind("]") else host).lower()


def _add_headers(message: Message, docs: bool) -> None:
    headers = MutableHeaders(scope=message)
    for key, value in HEADERS.items():
        headers.setdefault(key, value)
    if docs:
        headers["Content-Security-Policy"] = DOCS_POLICY


def respond(refusal: Refusal) -> JSONResponse:
    """Make the response that refuses a request."""
    return JSONResponse(refusal.body, refusal.status, refusal.headers)
