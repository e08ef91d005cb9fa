"""The server over real sockets: answers, every refusal and its form, headers, keys, streams, and what reaches a log."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import local_server
import numpy as np
import pytest

from serve.replica.model import Model
from serve.replica.service import Service

TEXTS = ["eng1 eng2 eng3", "deu4", "swh5 swh6 swh7 swh8 swh9", "hin1 und ein langer deutscher Satz dazu", "1 2 3"]
SECRET = "geheimnis"


class Slow:
    """The engine of a model, with something before every batch."""

    def __init__(self, engine: Any, before: Any) -> None:
        self._engine, self._before = engine, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def probabilities(self, rows: Any, codes: Any = None) -> Any:
        self._before(rows)
        return self._engine.probabilities(rows, codes)


@pytest.fixture(scope="module")
def model(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return local_server.loaded(local_server.artefact_of(tiny_encoder, tmp_path_factory.mktemp("api")))


@pytest.fixture(scope="module")
def service(model: Model) -> Service:
    return local_server.service(model, limits={"texts": 8, "characters": 500, "body_bytes": 20_000, "line_bytes": 2000})


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with local_server.client(service) as client:
        yield client
    assert service.queue.waiting == 0


@pytest.fixture
def start() -> Iterator[Any]:
    """Start servers of a test's own: `start(service)` returns a client."""
    with ExitStack() as stack:
        yield lambda made: stack.enter_context(local_server.client(made))


def quick(model: Model, **settings: Any) -> Service:
    """Make a service without the model of languages, which takes a second to load."""
    return local_server.service(model, identify=False, **settings)


def slow(model: Model, before: Any) -> Model:
    return Model(Slow(model.engine, before), model.artefact, model.name, model.version)


def key(name: str, secret: str, rate: float | None = None) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), "texts_per_minute": rate}


def told(response: httpx.Response) -> tuple[int, str]:
    """Return status and code of a refusal, after checking its form."""
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"code", "message"}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert ("retry-after" in response.headers) is (response.status_code in (429, 503))
    return response.status_code, error["code"]


# answers


def test_answers_are_the_engines_with_what_was_measured_beside_them(client: httpx.Client, model: Model) -> None:
    found = client.post("/v1/classify", json={"texts": TEXTS, "top_k": 2, "languages": ["en", "DE", None, None, None]})
    assert found.status_code == 200
    body = found.json()
    assert body["model"] == {"name": "models:/tiny/1", "version": "1", "precision": "float32"}
    wanted = model.engine.probabilities(model.engine.encode(TEXTS))
    assert [one["label"] for one in body["results"]] == [local_server.LABELS[i] for i in wanted.argmax(1)]
    for one, row in zip(body["results"], wanted, strict=True):
        assert [score["score"] for score in one["scores"]] == pytest.approx(sorted(row, reverse=True)[:2], abs=1e-4)
        assert one["scores"][0]["label"] == one["label"]
    first, second, *_, last = body["results"]
    assert first["language"] == {"code": "eng_Latn", "name": "English", "confidence": 1.0}
    assert first["expected_accuracy"] | {"low": 0, "high": 0} == {
        "accuracy": 0.9, "low": 0, "high": 0, "rows": 60, "trained_on": True, "supervision": None,
        "calibration_error": first["expected_accuracy"]["calibration_error"],
    }  # fmt: skip
    assert second["language"]["code"] == "deu_Latn"
    assert last["language"] == {"code": None, "name": None, "confidence": 0.0}
    assert last["expected_accuracy"] is None
    for one in body["results"]:
        assert one["confidence"] == one["scores"][0]["score"] and one["abstained"] is False
        assert one["reliability"]["low"] <= one["confidence"] <= one["reliability"]["high"]
    assert first["reliability"]["language"] == "eng_Latn" and last["reliability"]["language"] is None
    assert 0 < first["expected_accuracy"]["calibration_error"] < 0.4


def test_below_min_confidence_there_is_no_label(client: httpx.Client, model: Model) -> None:
    sure = model.engine.probabilities(model.engine.encode(TEXTS)).max(axis=1)
    least = float(np.median(sure))
    asked = {"texts": TEXTS, "min_confidence": least}
    results = client.post("/v1/classify", json=asked).json()["results"]
    assert [one["abstained"] for one in results] == (sure.round(4) < least).tolist()
    assert {one["abstained"] for one in results} == {True, False}
    assert all((one["label"] is None) is one["abstained"] for one in results)
    assert all(one["scores"][0]["label"] in local_server.LABELS for one in results)
    streamed = client.post(
        f"/v1/classify/stream?min_confidence={least}",
        content="\n".join(map(json.dumps, TEXTS)),
        headers={"Content-Type": "application/x-ndjson"},
    )
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert [line["label"] for line in lines] == [one["label"] for one in results]
    for wrong in (-0.1, 1.1, "0.5"):
        refused = client.post("/v1/classify", json=asked | {"min_confidence": wrong})
        assert refused.status_code == 422 and "min_confidence" in refused.json()["error"]["message"]
    assert client.get("/v1/model").json()["min_confidence"] == 0


def test_more_labels_than_there_are_gives_all(client: httpx.Client) -> None:
    found = client.post("/v1/classify", json={"texts": ["eng1"], "top_k": 1000}).json()
    assert sorted(one["label"] for one in found["results"][0]["scores"]) == sorted(local_server.LABELS)


@pytest.mark.parametrize("text", ["", " ", "\n", "\u0000", "😀", "\u202e\u2066", "a" * 500, "\ufeff", "e\u0301" * 250])
def test_any_text_of_unicode_is_answered(client: httpx.Client, text: str) -> None:
    found = client.post("/v1/classify", json={"texts": [text]})
    assert found.status_code == 200
    assert found.json()["results"][0]["label"] in local_server.LABELS


def test_feedback_counts_who_was_right(client: httpx.Client) -> None:
    labels = [one["label"] for one in client.post("/v1/classify", json={"texts": TEXTS}).json()["results"]]
    wrong = next(label for label in local_server.LABELS if label != labels[0])
    found = client.post("/v1/feedback", json={"texts": TEXTS, "labels": [wrong, *labels[1:]]})
    assert found.json() == {"models": {"models:/tiny/1": {"version": "1", "texts": 5, "right": 4}}}


def test_the_model_is_described_with_every_language(client: httpx.Client) -> None:
    found = client.get("/v1/model").json()
    assert found["labels"] == list(local_server.LABELS)
    assert {row["code"]: row["expected_accuracy"]["accuracy"] for row in found["languages"]} == local_server.MEASURED
    assert [row["code"] for row in found["languages"] if row["right_to_left"]] == ["arb_Arab", "heb_Hebr"]
    assert found["limits"]["texts"] == 8
    assert found["provenance"]["sources"] == ["eng_Latn", "deu_Latn"]
    assert found["texts_logged"] is False
    assert found["challenger"] is None


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/page.css", "/healthz", "/readyz", "/metrics", "/docs", "/v1/model"]
)
def test_what_can_be_got_has_headers_and_a_head(client: httpx.Client, path: str) -> None:
    found, head = client.get(path), client.head(path)
    assert found.status_code == head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(found.content))
    for response in (found, head):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")
        assert ("'unsafe-inline'" in policy) is (path == "/docs")
        assert "access-control-allow-origin" not in response.headers


# refusals of what is asked

JSON = {"content-type": "application/json"}
BODIES: list[tuple[bytes | str, int, str]] = [
    (b"", 422, "body"),
    (b"nope", 422, "not JSON"),
    (b"\xff\xfe", 422, "not JSON"),
    (b"\x80abc", 422, "not JSON"),
    (b"[" * 9000, 422, "not JSON"),
    (b'{"a":' * 3000, 422, "not JSON"),
    (b"null", 422, "body"),
    (b"[]", 422, "body"),
    (b'"x"', 422, "body"),
    (b"{}", 422, "texts: Field required"),
    ('{"texts": "eng1"}', 422, "texts"),
    ('{"texts": []}', 422, "at least 1 item"),
    ('{"texts": [1]}', 422, "texts.0"),
    ('{"texts": [null]}', 422, "texts.0"),
    ('{"texts": ["\\ud800"]}', 422, "texts.0"),
    ('{"texts": ["a"], "\\ud800": 1}', 422, "body"),
    ('{"texts": ["a"], "text": 1}', 422, "text: Extra inputs"),
    (json.dumps({"texts": ["a"], **{str(i): 1 for i in range(1500)}}), 422, "1501 keys; known are texts"),
    (json.dumps({"texts": ["a"] * 9}), 422, "at most 8 items"),
    (json.dumps({"texts": ["a" * 501]}), 422, "at most 500 characters"),
    ('{"texts": ["a"], "top_k": 0}', 422, "top_k"),
    ('{"texts": ["a"], "top_k": 1001}', 422, "top_k"),
    ('{"texts": ["a"], "top_k": "1"}', 422, "top_k"),
    ('{"texts": ["a"], "top_k": true}', 422, "top_k"),
    ('{"texts": ["a"], "top_k": 1.5}', 422, "top_k"),
    ('{"texts": ["a"], "top_k": NaN}', 422, "top_k"),
    ('{"texts": ["a"], "top_k": 1e999}', 422, "top_k"),
    ('{"texts": ["a"], "top_k": ' + "9" * 5000 + "}", 422, "not JSON"),
    ('{"texts": ["a"], "languages": ["en", "de"]}', 422, "2 of them for 1 texts"),
    ('{"texts": ["a"], "languages": ["qqq"]}', 422, "languages[0]: 'qqq' is not a language code"),
    ('{"texts": ["a"], "languages": ["\\u0131"]}', 422, "languages[0]"),
    (json.dumps({"texts": ["a"], "languages": ["a-" * 21]}), 422, "at most 40 characters"),
    ('{"texts": ["a"], "pairs": ["b"]}', 422, "this model classifies one text"),
    (b'{"texts": ["' + b"a" * 20_000 + b'"]}', 413, "larger than 20000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "says"), BODIES, ids=[str(body)[:40] for body, *_ in BODIES])
def test_a_body_that_cannot_be_meant_is_refused_with_its_fault(
    client: httpx.Client, body: bytes | str, status: int, says: str
) -> None:
    found = client.post("/v1/classify", content=body, headers=JSON)
    assert told(found) == (status, {413: "too_large", 422: "unprocessable"}[status])
    assert says in found.json()["error"]["message"]
    assert len(found.content) < 600


def test_a_body_that_hides_its_size_is_refused_once_it_is_too_large(client: httpx.Client) -> None:
    raw = open_chunked(client, "/v1/classify", "application/json")
    for _ in range(21):  # and no end
        raw.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
    assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")
    raw.close()


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/feedback", "/v1/classify/stream"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"},
     {"content-type": "multipart/form-data; boundary=x"}, JSON | {"content-encoding": "gzip"}],
)  # fmt: skip
def test_a_body_that_a_page_elsewhere_could_send_is_refused(client: httpx.Client, path: str, headers: Any) -> None:
    found = client.post(path, content=b'{"texts": ["eng1"], "labels": ["food"]}', headers=headers)
    assert told(found) == (415, "unsupported_media_type")


def test_json_is_read_with_a_mark_before_it_and_of_two_like_keys_the_last(client: httpx.Client) -> None:
    body = b'\xef\xbb\xbf{"texts": ["a"], "texts": ["b", "c"]}'
    found = client.post("/v1/classify", content=body, headers={"content-type": "Application/JSON; charset=utf-8"})
    assert len(found.json()["results"]) == 2


@pytest.mark.parametrize("deadline", ["abc", "0", "-1", "nan", "inf", "1e999", "3601", ""])
def test_a_deadline_is_a_sane_number(client: httpx.Client, deadline: str) -> None:
    found = client.post("/v1/classify", json={"texts": ["a"]}, headers={"X-Deadline-Seconds": deadline})
    assert told(found) == (422, "unprocessable")
    assert found.json()["error"]["message"].startswith("X-Deadline-Seconds: ")


def test_feedback_names_labels_that_the_model_lacks(client: httpx.Client) -> None:
    found = client.post("/v1/feedback", json={"texts": ["a"], "labels": ["<b>"]})
    assert told(found) == (422, "unprocessable")
    assert "labels[0]: '<b>' is not a label" in found.json()["error"]["message"]
    found = client.post("/v1/feedback", json={"texts": ["a"], "labels": ["food", "food"]})
    assert "2 of them for 1 texts" in found.json()["error"]["message"]


def test_unknown_places_and_methods_are_refused_in_the_same_form(client: httpx.Client) -> None:
    for path in ("/nope", "/docs/assets/../../pyproject.toml", "/docs/assets/%2e%2e/x", "/docs/assets/%00", "/%ff"):
        assert told(client.get(path)) == (404, "http_404")
    for method, path, allowed in (("GET", "/v1/classify", "POST"), ("DELETE", "/v1/model", "GET"), ("PUT", "/", "GET")):
        found = client.request(method, path)
        assert told(found) == (405, "http_405")
        assert found.headers["allow"] == allowed
    assert client.post("/v1/classify/", json={"texts": ["a"]}).headers["location"].endswith("/v1/classify")


def test_pairs_are_wanted_where_the_model_compares(tiny_encoder: Path, tmp_path: Path, start: Any) -> None:
    model = local_server.loaded(local_server.artefact_of(tiny_encoder, tmp_path, pairs=True))
    client = start(quick(model))
    good = client.post("/v1/classify", json={"texts": ["eng1", "eng2"], "pairs": ["deu1", "deu2"]}).json()
    wanted = model.engine.probabilities(model.engine.encode(["eng1", "eng2"], ["deu1", "deu2"]))
    assert [one["scores"][0]["score"] for one in good["results"]] == pytest.approx(wanted.max(1), abs=1e-4)
    for body in ({"texts": ["eng1"]}, {"texts": ["eng1"], "pairs": ["a", "b"]}):
        assert told(client.post("/v1/classify", json=body)) == (422, "unprocessable")
    lines = stream(client, '"eng1"\n{"text": "eng1", "pair": "deu1"}\n')
    assert "classifies pairs" in lines[0]["error"]
    assert lines[1]["label"] == good["results"][0]["label"]


# refusals because of what else goes on


def test_no_model_no_answer(client: httpx.Client, service: Service) -> None:
    model, service.model = service.model, None
    try:
        for path in ("/readyz", "/v1/model"):
            assert told(client.get(path)) == (503, "not_ready")
        for path in ("/v1/classify", "/v1/classify/stream"):
            assert told(client.post(path, json={"texts": ["a"]})) == (503, "not_ready")
        assert client.get("/healthz").text == "ok\n"
    finally:
        service.model = model
    assert client.get("/readyz").text == "ready\n"


def test_what_cannot_be_answered_in_time_is_refused_at_once_or_at_the_deadline(model: Model, start: Any) -> None:
    made = quick(slow(model, lambda rows: time.sleep(0.4)), limits={"waiting_texts": 3})
    client = start(made)
    late = client.post("/v1/classify", json={"texts": ["a"]}, headers={"X-Deadline-Seconds": "0.1"})
    assert told(late) == (503, "deadline_exceeded")
    assert late.elapsed.total_seconds() < 0.35
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(client.post("/v1/classify", json={"texts": ["a"]}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 3 + [503] * 5
    assert made.queue.waiting == 0


def test_a_full_queue_refuses_before_it_reads(model: Model, start: Any) -> None:
    made = quick(model, limits={"waiting_texts": 3})
    client = start(made)
    made.queue.waiting = 3
    for path in ("/v1/classify", "/v1/feedback"):
        nonsense = client.post(path, content="{", headers={"Content-Type": "application/json"})
        assert told(nonsense) == (503, "overloaded")
        assert int(nonsense.headers["retry-after"]) >= 1
    assert client.get("/v1/model").status_code == client.get("/readyz").status_code == 200
    made.queue.waiting = 0
    nonsense = client.post("/v1/classify", content="{", headers={"Content-Type": "application/json"})
    assert nonsense.status_code == 422


def test_a_failure_of_the_model_is_told_and_logged_and_over(
    model: Model, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(rows: Any) -> None:
        if any(len(row) == 5 for row in rows):
            raise ValueError("the arithmetic broke")

    made = quick(slow(model, fail))
    client = start(made)
    found = client.post("/v1/classify", json={"texts": ["eng1", f"eng1 eng2 {SECRET}"]})
    assert told(found) == (503, "model_failed")
    assert "the arithmetic broke" in caplog.text
    assert client.post("/v1/classify", json={"texts": ["eng1"]}).status_code == 200
    lines = stream(client, f'"eng1 {SECRET} eng3"\n')
    assert "the model failed" in lines[0]["error"]
    assert made.queue.waiting == 0
    assert SECRET not in caplog.text


def test_numbers_that_are_none_are_a_failure(model: Model, start: Any) -> None:
    class Broken(Slow):
        def probabilities(self, rows: Any, codes: Any = None) -> Any:
            return np.full((len(rows), 3), np.nan, dtype=np.float32)

    broken = Model(Broken(model.engine, None), model.artefact, model.name, model.version)
    assert told(start(quick(broken)).post("/v1/classify", json={"texts": ["a"]})) == (503, "model_failed")


def test_a_fault_of_ours_is_a_500_in_the_same_form_and_its_log_holds_no_text(
    model: Model, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = quick(model)

    def count(*given: Any) -> None:
        raise KeyError(SECRET)

    made.telemetry.texts = count  # type: ignore[method-assign]
    client = start(made)
    assert told(client.post("/v1/classify", json={"texts": [SECRET]})) == (500, "internal")
    with pytest.raises(httpx.HTTPError):  # a stream that has begun can only be broken off
        stream(client, f'"{SECRET}"\n')
    assert "failed with KeyError" in caplog.text
    assert SECRET not in caplog.text
    assert made.queue.waiting == 0


# who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]", "localhost."]
)
def test_other_names_are_not_answered(client: httpx.Client, host: str) -> None:
    for path in ("/", "/v1/model", "/healthz"):
        assert told(client.get(path, headers={"host": host})) == (421, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:80", "[::1]:8000", "[::1]"])
def test_the_names_of_this_machine_are(client: httpx.Client, host: str) -> None:
    assert client.get("/healthz", headers={"host": host}).status_code == 200


def test_allowed_hosts_may_be_set(model: Model, start: Any) -> None:
    client = start(quick(model, allowed_hosts=["Models.Example"]))
    assert client.get("/healthz", headers={"host": "models.example:8000"}).status_code == 200
    assert told(client.get("/healthz")) == (421, "wrong_host")
    assert start(quick(model, allowed_hosts=["*"])).get("/", headers={"host": "x"}).status_code == 200


def test_keys_open_what_they_should(model: Model, start: Any) -> None:
    client = start(quick(model, api_keys=[key("ada", "one"), key("bob", "two")]))
    asked = {"json": {"texts": ["eng1"]}}
    wrong = ("Bearer three", "Basic one", "Bearer", "Bearer one two", f"Bearer {'x' * 5000}", "one", "")
    for headers in ({}, {"x-api-key": ""}, {"x-api-key": "öne"}, *({"authorization": value} for value in wrong)):
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        for found in (client.post("/v1/classify", headers=raw, **asked), client.get("/v1/model", headers=raw),
                      client.get("/metrics", headers=raw), client.get("/nope", headers=raw)):  # fmt: skip
            assert told(found) == (401, "unauthorised")
            assert found.headers["www-authenticate"] == "Bearer"
    for headers in ({"authorization": "Bearer one"}, {"authorization": "bearer  two"}, {"x-api-key": "two"}):
        assert client.post("/v1/classify", headers=headers, **asked).status_code == 200
    for path in ("/", "/healthz", "/readyz", "/page.js", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css"):
        assert client.get(path).status_code == 200
    assert client.get("/openapi.json").json()["components"]["securitySchemes"].keys() == {"bearer", "header"}


def test_each_key_has_its_own_allowance(model: Model, start: Any) -> None:
    client = start(quick(model, api_keys=[key("ada", "one", 5), key("bob", "two")]))

    def ask(secret: str, texts: int) -> httpx.Response:
        return client.post("/v1/classify", json={"texts": ["a"] * texts}, headers={"x-api-key": secret})

    assert [ask("one", 3).status_code, ask("one", 2).status_code] == [200, 200]
    refused = ask("one", 1)
    assert told(refused) == (429, "rate_limited")
    assert 10 <= int(refused.headers["retry-after"]) <= 12
    assert ask("two", 100).status_code == 200


def test_pages_of_other_origins_may_call_where_allowed(model: Model, client: httpx.Client, start: Any) -> None:
    def preflight(of: httpx.Client, origin: str) -> httpx.Response:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-api-key"}
        return of.options("/v1/classify", headers={"Origin": origin, **asked})

    assert preflight(client, "https://a.example").status_code == 405
    allowed = start(quick(model, cors_origins=["https://a.example"], api_keys=[key("ada", "one")]))
    good, bad = preflight(allowed, "https://a.example"), preflight(allowed, "https://b.example")
    assert good.status_code == 200
    assert good.headers["access-control-allow-origin"] == "https://a.example"
    assert bad.status_code == 400
    assert "access-control-allow-origin" not in bad.headers
    refused = allowed.get("/v1/model", headers={"Origin": "https://a.example"})
    assert told(refused) == (401, "unauthorised")
    assert refused.headers["access-control-allow-origin"] == "https://a.example"
    assert refused.headers["access-control-expose-headers"] == "Retry-After"
    assert "access-control-allow-credentials" not in refused.headers


def test_texts_reach_the_log_only_where_that_was_asked(
    model: Model, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "ray.serve")  # a Ray that ran in this process has made its loggers quieter
    for asked in (False, True):
        client = start(quick(model, log_texts=asked, limits={"texts": 2}))
        client.post("/v1/classify", json={"texts": [f"{SECRET}\n2"]})
        client.post("/v1/classify", json={"texts": [SECRET] * 3})
        client.post("/v1/classify", json={SECRET: SECRET})
        client.post("/v1/classify", content=SECRET.encode(), headers=JSON)
        client.post("/v1/feedback", json={"texts": [SECRET], "labels": [SECRET]})
        stream(client, f'"{SECRET}"\n{SECRET}\n{{"text": "{SECRET}", "language": "{SECRET}"}}\n')
        mine = [record for record in caplog.records if SECRET in record.getMessage()]
        assert len(mine) == (2 if asked else 0)
        assert client.get("/v1/model").json()["texts_logged"] is asked
    assert json.loads(mine[0].getMessage())["text"] == f"{SECRET}\n2"


def test_below_a_prefix_everything_is_where_it_was(model: Model) -> None:
    app = local_server.application(quick(model, api_keys=[key("ada", "one")]))

    async def ask() -> None:
        transport = httpx.ASGITransport(app, root_path="/xlt")
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/xlt/")).status_code == 200
            assert (await client.get("/xlt")).headers["location"] == "http://localhost/xlt/"
            assert (await client.get("/xlt/healthz")).status_code == 200
            assert told(await client.get("/xlt/v1/model")) == (401, "unauthorised")
            good = JSON | {"x-api-key": "one"}
            assert (await client.get("/xlt/v1/model", headers=good)).status_code == 200
            lines = (b"1" * 50_000 + b"\n") * 21
            assert (await client.post("/xlt/v1/classify/stream", content=lines, headers=good)).status_code == 200
            assert told(await client.post("/xlt/v1/classify", content=lines, headers=good)) == (413, "too_large")

    asyncio.run(ask())


# streams


def stream(client: httpx.Client, body: str | bytes, **asked: Any) -> list[dict[str, Any]]:
    """Send lines and read the lines that come back."""
    headers = {"content-type": "application/x-ndjson"}
    found = client.post("/v1/classify/stream", content=body, headers=headers, params=asked)
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in found.text.splitlines()]


def test_a_stream_answers_every_line_in_order(client: httpx.Client) -> None:
    texts = [f"eng{i % 50} " * (1 + i % 7) for i in range(100)]
    lines = stream(client, "\n".join(json.dumps({"text": text, "id": -i}) for i, text in enumerate(texts)), top_k=2)
    assert [line["line"] for line in lines] == list(range(1, 101))
    assert [line["id"] for line in lines] == [-i for i in range(100)]
    for start in range(0, 100, 8):
        asked = client.post("/v1/classify", json={"texts": texts[start : start + 8], "top_k": 2}).json()["results"]
        for line, one in zip(lines[start : start + 8], asked, strict=True):
            assert line == one | {
                "line": line["line"],
                "id": line["id"],
                "model_version": "1",
                "scores": line["scores"],
            }
            assert line["scores"][0]["score"] == pytest.approx(one["scores"][0]["score"], abs=1e-3)


FAULTS = [
    ("nope", "not JSON"),
    ("[1]", "neither"),
    ("1", "neither"),
    ("null", "neither"),
    ("{}", "neither"),
    ('{"text": 1}', "neither"),
    ('{"text": "a", "texts": 1}', "unknown key 'texts'"),
    ('{"text": "a", "\\ud800": 1}', "not JSON"),
    ('"\\ud800"', "not JSON"),
    ('{"text": "a", "id": NaN}', "not JSON"),
    ('{"text": "a", "id": 1e999}', "not JSON"),
    ('{"text": "a", "id": [1]}', "id is"),
    ('{"text": "a", "id": "' + "x" * 1001 + '"}', "id is"),
    ('{"text": "a", "id": ' + "[" * 900 + "]" * 900 + "}", ""),
    ("[" * 1900, "not JSON"),
    ('{"text": "a", "pair": 1}', "are strings"),
    ('{"text": "a", "pair": "b"}', "classifies one text"),
    ('{"text": "a", "language": 1}', "are strings"),
    ('{"text": "a", "language": "qqq"}', "'qqq' is not a language code"),
    ('{"text": "a", "language": "' + "a-" * 900 + '"}', "is not a language code"),
    ('"' + "a" * 501 + '"', "longer than 500 characters"),
    ('"' + "a" * 2001 + '"', "longer than 2000 bytes"),
    ('"a" "b"', "not JSON"),
]


def test_faults_of_lines_are_told_and_the_others_go_on(client: httpx.Client) -> None:
    body = "".join(f'{line}\n"eng1"\r\n' for line, _ in FAULTS)
    lines = stream(client, body)
    assert [line["line"] for line in lines] == list(range(1, 2 * len(FAULTS) + 1))
    for (sent, fault), line, good in zip(FAULTS, lines[::2], lines[1::2], strict=True):
        assert fault in line["error"], sent
        assert "label" in good
        assert "error" not in good


def test_lines_are_bytes_of_utf8_and_empty_ones_are_counted_only(client: httpx.Client) -> None:
    body = b'\xef\xbb\xbf"eng1"\r\n\r\n \t\n"\x80"\n' + '"eng1"'.encode("utf-16") + b'\n{"text": "eng2", "id": 0}'
    lines = stream(client, body)
    assert [(line["line"], "error" in line) for line in lines] == [(1, False), (4, True), (5, True), (6, False)]
    assert lines[-1]["id"] == 0
    assert stream(client, b"") == []
    assert stream(client, b"\n\n") == []


@pytest.mark.parametrize("top_k", ["0", "1001", "x", "", "1.5", "９９９９"])
def test_a_stream_is_refused_before_it_begins(client: httpx.Client, top_k: str) -> None:
    found = client.post("/v1/classify/stream", params={"top_k": top_k}, content=b'"a"\n', headers=JSON)
    assert told(found) == (422, "unprocessable")


def test_lines_are_answered_before_the_body_ends(client: httpx.Client) -> None:
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=20)
    connection.putrequest("POST", "/v1/classify/stream")
    connection.putheader("Content-Type", "application/x-ndjson")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for number, half in enumerate(('{"text": ', '"eng1"}\n', '"eng2"\n"en'), 1):
        connection.send(f"{len(half):x}\r\n{half}\r\n".encode())
        if number == 2:
            response = connection.getresponse()
            assert json.loads(response.readline())["line"] == 1
    assert json.loads(response.readline())["line"] == 2
    connection.send(b'3\r\ng3"\r\n0\r\n\r\n')
    assert json.loads(response.readline())["line"] == 3
    assert response.read() == b""
    connection.close()


def test_a_stream_waits_where_a_request_would_be_refused(model: Model, start: Any) -> None:
    made = quick(model, api_keys=[key("ada", "one", 600)], limits={"texts": 4})
    client = start(made)
    client.headers["x-api-key"] = "one"
    made.queue.waiting, made.queue.speed = 10_000, 1.0
    threading.Timer(0.3, lambda: setattr(made.queue, "waiting", 0)).start()
    began = time.monotonic()
    assert "label" in stream(client, '"eng1"\n')[0]
    assert time.monotonic() - began > 0.25
    # 600 at once, then ten a second
    began = time.monotonic()
    assert all("label" in line for line in stream(client, '"eng1"\n' * 603))
    assert time.monotonic() - began < 5


def open_chunked(client: httpx.Client, path: str, kind: str) -> socket.socket:
    raw = socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw.sendall(head.encode())
    return raw


def open_stream(client: httpx.Client) -> socket.socket:
    return open_chunked(client, "/v1/classify/stream", "application/x-ndjson")


def test_a_client_that_does_not_read_is_not_read_from_and_holds_up_nobody(
    client: httpx.Client, service: Service
) -> None:
    raw = open_stream(client)
    raw.settimeout(0.7)
    lines = b"1\n" * 8000
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 50_000_000:
            raw.sendall(b"%x\r\n%b\r\n" % (len(lines), lines))
            sent += len(lines)
    assert sent < 50_000_000
    began = time.monotonic()
    assert client.post("/v1/classify", json={"texts": ["eng1"]}).status_code == 200
    assert time.monotonic() - began < 2
    raw.close()
    assert service.queue.waiting == 0


def test_clients_that_go_away_leave_nothing_behind(model: Model, start: Any) -> None:
    made = quick(slow(model, lambda rows: time.sleep(0.05)))
    client = start(made)
    body = b'{"texts": ["eng1"]}'
    head = (
        b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    for sent in (b"", b"POST /v1/cl", head % 19, head % 19 + body[:7], head % 19 + body, head % 10**12 + body):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            raw.sendall(sent)
    for sent in (b"", b'8\r\n"eng1"\n\r\n', b'4\r\n"eng\r\n'):
        with open_stream(client) as raw:
            raw.sendall(sent)
            time.sleep(0.02)
    assert client.post("/v1/classify", json={"texts": ["eng1"]}).status_code == 200
    until = time.monotonic() + 5
    while made.queue.waiting and time.monotonic() < until:
        time.sleep(0.02)
    assert made.queue.waiting == 0


# the document


def test_the_document_tells_of_every_route_and_what_it_refuses(client: httpx.Client, model: Model) -> None:
    document = client.get("/openapi.json").json()
    routes = {path: set(operations) for path, operations in document["paths"].items()}
    assert routes == {
        "/v1/classify": {"post"}, "/v1/classify/stream": {"post"}, "/v1/feedback": {"post"}, "/v1/model": {"get"},
        "/healthz": {"get"}, "/readyz": {"get"}, "/metrics": {"get"},
    }  # fmt: skip
    classify = document["paths"]["/v1/classify"]["post"]
    assert set(classify["responses"]) == {"200", "401", "413", "415", "421", "422", "429", "500", "503"}
    for status in ("429", "503"):
        assert "Retry-After" in classify["responses"][status]["headers"]
    form = document["components"]["schemas"]["ClassifyRequest"]
    assert form["properties"]["texts"]["maxItems"] == 8
    assert form["properties"]["texts"]["items"]["maxLength"] == 500
    text = json.dumps(document)
    names = {name.split('"')[0] for name in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in text


def test_the_page_of_the_document_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    for asset in ("docs/assets/swagger-ui-bundle.js", "docs/assets/swagger-ui.css", "openapi.json"):
        assert asset in page
        assert client.get(f"/{asset}").status_code == 200
