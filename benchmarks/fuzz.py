"""Send a server ten thousand requests that nobody would write, and count what it answers.

    python benchmarks/fuzz.py                  # 10,000 cases against a tiny model, about five minutes on two cores
    python benchmarks/fuzz.py --artefact FOLDER --cases 100000 --seed 1

Six tenths come from schemathesis, which reads the server's own OpenAPI document and makes requests that follow it and
requests that break it; every response is held against the document (status, media type, schema, headers), what breaks
the document must be refused, and without a key nothing may be answered. The rest are hypothesis' own: bodies of JSON
and of bytes, lines of a stream, paths, methods and headers. A status of 500 or more other than 503, a response that
takes ten seconds, a refusal in another form than the documented one, or a stream that lacks a line fails the run, with
the smallest request found that does it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from schemathesis.core.errors import InvalidSchema
from schemathesis.core.result import Err, Ok
from schemathesis.specs.openapi import checks as conformance

ROOT = Path(__file__).parents[1]
KEY = "the key of the fuzzer"
SECONDS = 10  # after which a request hangs
CHECKS = [
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
    conformance.response_headers_conformance,
    conformance.negative_data_rejection,
]
POSTED = ("/v1/classify", "/v1/feedback", "/v1/classify/stream")
Tally = Counter[tuple[str, int]]


class Client:
    """Sends what is asked and counts what comes back: (kind of case, status) -> how often."""

    def __init__(self, address: str) -> None:
        self.tally: Tally = Counter()
        self.place = (httpx.URL(address).host, httpx.URL(address).port)
        self._http = httpx.Client(base_url=address, timeout=SECONDS, trust_env=False)

    def post(self, kind: str, path: str, body: bytes) -> httpx.Response:
        """Post JSON, with the key."""
        headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
        response = self._http.post(path, content=body, headers=headers)
        self.count(kind, response.status_code)
        sound(response.status_code, dict(response.headers), response.content)
        return response

    def raw(self, kind: str, sent: bytes, whole: bool) -> int:
        """Send bytes; return the status, 0 where the server hung up; only what is not `whole` may have no answer."""
        with socket.create_connection(self.place, timeout=SECONDS if whole else 0.5) as connection:
            response = http.client.HTTPResponse(connection, method=sent[:5].partition(b" ")[0].decode("latin-1"))
            try:
                connection.sendall(sent)
                response.begin()
                headers = {name.lower(): value for name, value in response.getheaders()}
                sound(response.status, headers, response.read())
                status = response.status
            except (ConnectionError, http.client.BadStatusLine):
                status = 0
            except TimeoutError:
                assert not whole, "no answer"
                status = 0
        self.count(kind, status)
        return status

    def count(self, kind: str, status: int) -> None:
        self.tally[kind, status] += 1
        assert status < 500 or status == 503, f"{kind}: answered {status}"


def sound(status: int, headers: dict[str, str], body: bytes) -> None:
    """Check that a refusal has the form that is promised; what is no HTTP is refused by uvicorn, in its own form."""
    if status < 400 or not body or body.startswith(b"Invalid HTTP request"):
        return
    assert set(json.loads(body)["error"]) == {"code", "message"}
    assert ("retry-after" in headers) is (status in (429, 503))


def run(cases: int, seed: int, test: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Try so many cases; hypothesis shrinks the first that fails and raises what it raised."""
    settings = hypothesis.settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(*strategies)(test)))()


# requests made of the document


@schemathesis.serializer("application/x-ndjson")
def lines_of(context: Any, value: Any) -> bytes:
    """Write what schemathesis draws for a stream, to whose parser any bytes are lines."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", errors="surrogatepass")


def documented(client: Client, address: str, cases: int, seed: int) -> None:
    checks.load_all_checks()
    refused = {"expected-statuses": ["413", "415", "422", "503"]}
    config = schemathesis.Config.from_dict(
        {"generation": {"with-security-parameters": False}, "checks": {"negative_data_rejection": refused}}
    )
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", config=config)
    operations = [_operation(found) for found in schema.get_all_operations()]
    share = {operation.path: 12 if operation.path in POSTED else 1 for operation in operations}
    for operation in operations:
        for mode in GenerationMode:
            number = max(1, cases * share[operation.path] // sum(share.values()) // 2)

            # where a request has no parts, nothing can be wrong with it
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):
                run(number, seed, conforming(client, mode.value), operation.as_strategy(mode))


def _operation(found: Ok[Any] | Err[InvalidSchema]) -> Any:
    if isinstance(found, Err):
        raise found.err()
    return found.ok()


def conforming(client: Client, mode: str) -> Callable[[Any], None]:
    """Return a test that sends a case of schemathesis and holds the response against the document."""

    def one(case: Any) -> None:
        response = case.call(timeout=SECONDS, headers={"X-API-Key": KEY})
        client.count(f"document, {mode}", response.status_code)
        # a stream answers faults in its lines, line by line, so that its body cannot break the document
        excluded = [conformance.negative_data_rejection] if case.path.endswith("stream") else []
        case.validate_response(response, checks=CHECKS, excluded_checks=excluded, headers={"X-API-Key": KEY})

    return one


# requests made of nothing

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)  # half surrogates as well
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
CODE = st.sampled_from(["en", "deu_Latn", "zh-TW", "qqq", "", "a-b-c", None]) | TEXT
SHARED = {
    "languages": st.lists(CODE, max_size=4) | VALUE,
    "pairs": st.lists(TEXT, max_size=4) | VALUE,
    "x": VALUE,
}
TEXTS = st.lists(st.text(max_size=60), min_size=1, max_size=4) | st.lists(TEXT, max_size=4) | VALUE
LABELS = st.lists(st.sampled_from(["sport", "food"]), min_size=1, max_size=4) | st.lists(TEXT, max_size=4) | VALUE
FORMS = {
    "/v1/classify": st.fixed_dictionaries(
        {"texts": TEXTS}, optional={**SHARED, "top_k": st.integers(-1, 1001) | VALUE}
    ),
    "/v1/feedback": st.fixed_dictionaries({"texts": TEXTS, "labels": LABELS}, optional=SHARED),
}
ENCODINGS = st.sampled_from(
    [("utf-8", "surrogatepass")] * 4 + [("utf-8-sig", "replace"), ("utf-16", "surrogatepass"), ("latin-1", "replace")]
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a path and a body: JSON of the form that is wanted there, JSON of any, either with some bytes changed."""
    path = draw(st.sampled_from(sorted(FORMS)))
    text = json.dumps(draw(FORMS[path] | VALUE), ensure_ascii=draw(st.booleans()))
    body = text.encode(*draw(ENCODINGS))
    if draw(st.integers(0, 3)) == 0:
        at, until = sorted((draw(st.integers(0, len(body))), draw(st.integers(0, len(body)))))
        body = body[:at] + draw(st.binary(max_size=8)) + body[until:]
    return path, body


LINE = st.fixed_dictionaries({"text": TEXT}, optional={"id": SCALAR, "language": CODE, "pair": TEXT, "x": SCALAR})
LINES = st.lists((LINE | TEXT | VALUE).map(json.dumps).map(str.encode) | st.binary(max_size=30), max_size=12)
NAMES = [
    *(
        "Host",
        "Content-Type",
        "Content-Length",
        "Content-Encoding",
        "Transfer-Encoding",
        "Origin",
        "X-Deadline-Seconds",
    ),
    *("Authorization", "X-API-Key", "Expect", "Connection", "Accept", "Range", "Upgrade", "X", "", "X y", "X-\xe9"),
]
VALUES = [
    *(
        "0",
        "-1",
        "1e9",
        "nan",
        "chunked",
        "gzip",
        "application/json",
        "close",
        "localhost:1",
        "100-continue",
        "Bearer x",
    ),
    *("websocket", "*", "bytes=0-1", "99999999999999999999", "localhost, evil", "x" * 70_000, "", "\xe9", "\t"),
]
PATHS = [
    *("/", "/v1/classify", "/v1/classify/", "/v1/classify/stream?top_k=x", "/v1/classify/stream", "/v1/model", "/docs"),
    *("/docs/assets/", "/docs/assets/swagger-ui.css", "/docs/assets/..%2f..%2fx", "/docs/assets/../../x", "/metrics"),
    *(
        "/openapi.json",
        "/readyz",
        "//",
        "//evil.example/..",
        "/%00",
        "/%ff",
        "*",
        "http://evil.example/",
        "/" + "a" * 70_000,
    ),
]
METHODS = ["GET", "GET", "POST", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "PATCH", "CONNECT", "X"]


@st.composite
def heads(draw: st.DrawFn) -> tuple[bytes, bool]:
    """Draw a request without a key as bytes, and whether it is whole: nothing is left that a server could wait for."""
    pick = st.sampled_from
    odd = draw(st.integers(0, 3)) == 0  # bytes that are no HTTP; else what is likely only to be no sense
    value = st.binary(max_size=40) if odd else pick(VALUES).map(lambda text: text.encode("latin-1"))
    path = st.binary(max_size=20) if odd else pick(PATHS).map(str.encode)
    lines = draw(st.lists(st.tuples(pick(NAMES if odd else NAMES[1:-4]), value), max_size=4))
    host = draw(pick([[("Host", b"localhost")]] * 4 + [[]]))
    end = draw(pick([b"\n", b"\r", b"\r\n"])) if odd else b"\r\n"
    first = draw(pick(METHODS)).encode() + b" /"[: 1 + odd] + draw(path) + b" HTTP/1.1"
    head = end.join([first, *(name.encode("latin-1") + b": " + value for name, value in host + lines)])
    waits = odd or any(name in ("Content-Length", "Transfer-Encoding", "Upgrade", "Connection") for name, _ in lines)
    return head + end + end + draw(st.just(b"") | st.binary(max_size=20)), not waits


def parsed(client: Client, cases: int, seed: int) -> None:
    """Try bodies, lines and heads that the parsers must stand."""

    def body(asked: tuple[str, bytes]) -> None:
        client.post("bodies", *asked)

    def lines(sent: list[bytes], end: bytes) -> None:
        whole = end.join(sent)
        response = client.post("lines", "/v1/classify/stream", whole)
        assert response.status_code == 200
        wanted = [i for i, line in enumerate(whole.split(b"\n"), 1) if line.strip()]
        answers = [json.loads(line) for line in response.text.split("\n") if line]
        assert [answer["line"] for answer in answers] == wanted
        assert all(("label" in answer) is not ("error" in answer) for answer in answers)

    def head(asked: tuple[bytes, bool]) -> None:
        status = client.raw("heads", *asked)
        path = asked[0].split(b" ")[1] if b" " in asked[0] else b""
        assert not (200 <= status < 300 and path.startswith((b"/v1", b"/metrics"))), "answered without a key"

    run(cases // 2, seed, body, bodies())
    run(cases // 4, seed, lines, LINES, st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]))
    run(cases // 4, seed, head, heads())


def fuzz(address: str, cases: int, seed: int) -> Tally:
    """Try so many cases in all, a few more at most; raises what the first that fails raises."""
    client = Client(address)
    documented(client, address, cases * 6 // 10, seed)
    parsed(client, cases + 4 - client.tally.total(), seed)
    return client.tally


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import conftest
    import local_server

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--artefact", type=Path, help="folder of a model; default: a tiny one of random weights")
    args = parser.parse_args()
    key = {"name": "fuzzer", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tiny = args.artefact or local_server.artefact_of(conftest.save_encoder(Path(folder)), Path(folder))
        service = local_server.service(local_server.loaded(tiny), api_keys=[key])
        with local_server.running(service) as address:
            tally = fuzz(address, args.cases, args.seed)
    for kind in sorted({kind for kind, _ in tally}):
        counts = ", ".join(f"{status or 'hung up'} {n}" for (k, status), n in sorted(tally.items()) if k == kind)
        print(f"{kind:20} {counts}")
    print(f"{tally.total()} requests in {time.monotonic() - began:.0f} s, seed {args.seed}; waiting at the end: "
          f"{service.queue.waiting}")  # fmt: skip
    assert service.queue.waiting == 0


if __name__ == "__main__":
    main()
