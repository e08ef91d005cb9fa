"""Texts are served as the model reads them: one answer a text, which says how it was read."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import local_server
import numpy as np
import pytest
from artefacts import changed, word_by_word
from typer.testing import CliRunner

from serve import offline
from serve.http import schemas
from serve.http.stream import answer_lines
from serve.replica.challenge import Challenge, ChallengeArgs
from serve.replica.model import Chunk, Model, Question, Wanted
from serve.replica.service import Service, shown
from serve.replica.telemetry import Telemetry
from xlt_ray import cli
from xlt_ray.export import export
from xlt_ray.inference import bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.translation.readings import asked

KNOWN = ("deu_Latn", "eng_Latn", "hin_Deva", "swh_Latn")
CHOSEN = ["translate_test", "centre"]
GERMAN = "Bitte mach sofort das Licht in der Küche an"
TEXTS = ["swh1 swh2 swh3", "eng4 eng5", "swh7 " * 9, "swh8 eng2", "hin3 hin4", GERMAN, "12 + 3", "swh11"]
LANGUAGES = ["swh_Latn", "eng_Latn", "swh_Latn", "swh_Latn", "hin_Deva", None, None, None]  # None: to be guessed
FOUND = ["swh_Latn", "eng_Latn", "swh_Latn", "swh_Latn", "hin_Deva", "deu_Latn", None]
READ = "original + 2 word-by-word English readings"


@pytest.fixture(scope="module")
def place(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that reads Swahili and German in three ways, one that reads nothing so, and their artefacts."""
    folder = tmp_path_factory.mktemp("readings")
    for name, kept in {"several": word_by_word(), "plain": None}.items():
        chosen = CHOSEN if kept else CHOSEN[1:]
        changed(folder / name / "bundle", tiny_encoder, chosen, KNOWN, kept)
        export.export(folder / name / "bundle", folder / name / "artefact", precisions=["float32"], texts=TEXTS)
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Bundle:
    return bundle.load(place / "several" / "bundle")


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return local_server.loaded(place / "several" / "artefact")


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[httpx.Client]:
    made = local_server.service(model)
    with local_server.running(made) as address, httpx.Client(base_url=address, trust_env=False) as client:
        yield client


def ask(service: Service, *question: Any) -> Any:
    return asyncio.run(service.classify(Question(*question)))


# answers


@pytest.mark.parametrize("kind", ["artefact", "bundle"])
def test_languages_that_are_named_guessed_and_unknown_are_answered_as_by_the_bundle(
    place: Path, whole: Bundle, kind: str
) -> None:
    service = local_server.service(local_server.loaded(place / "several" / kind))
    texts, named = TEXTS[:7], LANGUAGES[:7]
    answer = ask(service, texts, None, named)
    assert [guess.code for guess in answer.guesses] == FOUND
    wanted = whole.probabilities(texts, None, FOUND)
    assert answer.probabilities.dtype == np.float32
    np.testing.assert_allclose(answer.probabilities, wanted, atol=1e-5)
    alone = whole.answer(whole.tokenize(texts), FOUND)
    moved = np.abs(wanted - alone).max(1) > 1e-3
    assert moved.tolist() == [code in ("swh_Latn", "deu_Latn") for code in FOUND]
    np.testing.assert_allclose(ask(service, [GERMAN]).probabilities, whole.probabilities([GERMAN]), atol=1e-5)


def test_the_rows_of_a_text_may_be_in_several_chunks_and_answers_keep_their_order(model: Model, whole: Bundle) -> None:
    seen: list[Chunk] = []
    service = local_server.service(model, identify=False, tokens_per_batch=128)
    infer = service.infer

    async def noting(chunk: Chunk) -> Any:
        seen.append(chunk)
        await asyncio.sleep(0.02 * (len(seen) % 3))  # so that they end in another order
        return await infer(chunk)

    service.infer = noting
    texts = [f"swh{i} " * (1 + 7 * i % 11) for i in range(40)]
    codes = ["swh_Latn" if i % 3 else None for i in range(40)]
    answer = ask(service, texts, None, codes)
    np.testing.assert_allclose(answer.probabilities, whole.probabilities(texts, None, codes), atol=1e-5)
    assert len(seen) > 5 and all(chunk.tokens <= 128 for chunk in seen)
    assert sum(len(chunk.rows) for chunk in seen) == 3 * 26 + 14
    assert sum(chunk.texts for chunk in seen) == pytest.approx(40)
    assert any(chunk.texts % 1 for chunk in seen), "no text was cut"


def test_second_texts_are_read_as_first_ones_are(model: Model, whole: Bundle) -> None:
    pairs = replace(model, artefact=replace(model.artefact, pairs=True))
    answer = ask(local_server.service(pairs), ["swh2 swh4", "eng1"], ["swh6", "swh8"], ["swh_Latn", "eng_Latn"])
    wanted = whole.probabilities(["swh2 swh4", "eng1"], ["swh6", "swh8"], ["swh_Latn", "eng_Latn"])
    np.testing.assert_allclose(answer.probabilities, wanted, atol=1e-5)
    assert [one["pair"] for one in answer.readings[0]] == ["swh6", "eng42", "eng42"]
    assert answer.readings[1] == [{"name": "original", "weight": 1.0, "text": "eng1", "pair": "swh8"}]


def test_a_model_without_readings_computes_its_texts_and_nothing_else(place: Path) -> None:
    model = local_server.loaded(place / "plain" / "artefact")
    seen: list[Chunk] = []
    service = local_server.service(model)
    infer = service.infer

    async def noting(chunk: Chunk) -> Any:
        seen.append(chunk)
        return await infer(chunk)

    service.infer = noting
    answer = ask(service, TEXTS[:7], None, LANGUAGES[:7])
    (chunk,) = seen
    rows = [row.tolist() for row in model.engine.encode(TEXTS[:7])]
    assert sorted(row.tolist() for row in chunk.rows) == sorted(rows)
    wanted = model.engine.probabilities(model.engine.encode(TEXTS[:7]), FOUND)
    np.testing.assert_allclose(answer.probabilities, wanted, atol=1e-6)
    assert {one["read"] for one in shown(answer, 1)} == {"original"} and service.rows_a_text == 1
    assert all("readings" not in one for one in shown(answer, 1))


# what was read


def test_an_answer_says_how_its_text_was_read_and_shows_it_where_that_is_asked_for(client: httpx.Client) -> None:
    asks: dict[str, Any] = {"texts": TEXTS[:7], "languages": LANGUAGES[:7]}
    results = client.post("/v1/classify", json=asks).json()["results"]
    assert [one["read"] for one in results] == [
        READ if code in ("swh_Latn", "deu_Latn") else "original" for code in FOUND
    ]
    assert not any("readings" in one for one in results)
    body = client.post("/v1/classify", json=asks | {"readings": True}).json()
    schemas.ClassifyResponse.model_validate(body, strict=True)
    first, second, *_, german, unknown = [one["readings"] for one in body["results"]]
    assert [one["text"] for one in first] == ["swh1 swh2 swh3", "swh1 eng14 swh3", "eng7 eng14 eng21"]
    assert [one["name"] for one in first] == ["original", "word by word, score 0.3", "word by word, score 0.05"]
    assert [one["weight"] for one in first] == [0.3333] * 3
    assert [one["weight"] for one in german] == [0.1667, 0.3333, 0.5], "those of the language"
    assert second == [{"name": "original", "weight": 1.0, "text": "eng4 eng5"}]
    assert unknown == [{"name": "original", "weight": 1.0, "text": "12 + 3"}]
    for one, after in zip(results, body["results"], strict=True):
        assert one == {name: value for name, value in after.items() if name != "readings"}


def test_the_model_tells_how_it_reads(client: httpx.Client, place: Path) -> None:
    told = client.get("/v1/model").json()
    schemas.ModelResponse.model_validate(told)
    names = ["original", "word by word, score 0.3", "word by word, score 0.05"]
    each = [{"name": name, "weight": 0.3333} for name in names]
    assert told["readings"] == {"into": "eng_Latn", "into_name": "English", "each": each, "languages": 2}
    with local_server.running(local_server.service(local_server.loaded(place / "plain" / "artefact"))) as address:
        assert httpx.get(f"{address}/v1/model", trust_env=False).json()["readings"] is None


def test_the_document_has_the_option_and_what_it_returns(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    forms = document["components"]["schemas"]
    assert forms["ClassifyRequest"]["properties"]["readings"]["default"] is False
    assert {"read", "readings"} <= set(forms["Result"]["properties"]) and "read" in forms["Result"]["required"]
    options = [one["name"] for one in document["paths"]["/v1/classify/stream"]["post"]["parameters"]]
    assert "readings" in options


def test_a_stream_answers_alike(client: httpx.Client, whole: Bundle) -> None:
    lines = [{"text": text, "language": code} for text, code in zip(TEXTS[:7], FOUND, strict=True)]
    content = "".join(json.dumps(line) + "\n" for line in lines)

    def stream(query: str) -> list[Any]:
        kind = {"Content-Type": "application/x-ndjson"}
        found = client.post(f"/v1/classify/stream?{query}", content=content, headers=kind)
        return [json.loads(line) for line in found.text.splitlines()]

    plain, full = stream("top_k=3"), stream("top_k=3&readings=true")
    wanted = whole.probabilities(TEXTS[:7], None, FOUND)
    for one, other, row in zip(plain, full, wanted, strict=True):
        assert [score["score"] for score in one["scores"]] == pytest.approx(sorted(row, reverse=True), abs=2e-4)
        assert other == one | {"readings": other["readings"]}
    assert [len(one["readings"]) for one in full] == [3, 1, 3, 3, 1, 3, 1]


def test_predict_answers_as_a_server_does(place: Path, tmp_path: Path, client: httpx.Client) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": t, "language": "sw"}) + "\n" for t in TEXTS[:4]), encoding="utf-8")
    asks = {"texts": TEXTS[:4], "languages": ["sw"] * 4, "readings": True}
    wanted = client.post("/v1/classify", json=asks).json()["results"]
    for options in (["--readings"], []):
        folder = str(place / "several" / "artefact")
        done = CliRunner().invoke(cli.app, ["predict", folder, str(file), "--jsonl", *options])
        found = [json.loads(line) for line in done.stdout.splitlines()]
        for one, other in zip(found, wanted, strict=True):
            assert one["read"] == other["read"] and one["label"] == other["label"]
            assert one.get("readings") == (other["readings"] if options else None)


# counting and logging


def test_texts_are_counted_and_not_rows(model: Model) -> None:
    counted: list[Any] = []

    class Counting(Telemetry):
        def texts(self, version: str, languages: Any, labels: Any) -> None:
            counted.extend(languages)

    service = local_server.service(model)
    service.telemetry = Counting()
    measured: list[float] = []
    service.queue.measured = lambda texts, seconds: measured.append(texts)  # type: ignore[method-assign]
    ask(service, ["swh2 swh4"] * 3, None, ["swh_Latn"] * 3)
    assert len(counted) == 3 and measured == [pytest.approx(3)] and service.queue.waiting == 0


def test_only_the_text_itself_is_logged(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="ray.serve"):
            ask(local_server.service(model, log_texts=True), ["swh2 swh4"], None, ["swh_Latn"])
    finally:
        logger.removeHandler(caplog.handler)
    (line,) = {record.getMessage() for record in caplog.records}
    assert json.loads(line)["text"] == "swh2 swh4" and "eng" not in line


# beside others


def test_a_challenger_reads_as_it_does_whatever_the_champion_does(place: Path, model: Model, whole: Bundle) -> None:
    other = local_server.loaded(place / "plain" / "artefact", "models:/plain/1")
    service = local_server.service(other)
    service.challenge = Challenge(ChallengeArgs(model=model.name, mode="split", share=1.0), model)
    answer = ask(service, TEXTS[:5], None, FOUND[:5])
    np.testing.assert_allclose(answer.probabilities, whole.probabilities(TEXTS[:5], None, FOUND[:5]), atol=1e-5)
    right = answer.labels.tolist()
    found = asyncio.run(service.feedback(Question(TEXTS[:5], None, FOUND[:5]), right))
    assert found[model.name]["right"] == 5


def test_a_stream_asks_for_fewer_texts_at_once_where_each_is_several_rows(place: Path, model: Model) -> None:
    sizes: dict[int, list[int]] = {}
    for number, one in ((3, model), (1, local_server.loaded(place / "plain" / "artefact"))):
        service = local_server.service(one, identify=False, limits={"texts": 256})
        assert service.rows_a_text == number
        asks = sizes.setdefault(number, [])
        classify = service.classify

        async def noting(question: Question, asks: Any = asks, classify: Any = classify, **options: Any) -> Any:
            asks.append(len(question.texts))
            return await classify(question, **options)

        service.classify = noting  # type: ignore[assignment, method-assign]

        async def work(service: Service = service) -> None:
            async def body() -> Any:
                yield b'"swh1 swh2 swh3 swh4 swh5 swh6 swh7 swh8 swh9"\n' * 250

            async for _ in answer_lines(service, body(), lambda texts: None, Wanted()):
                pass

        asyncio.run(work())
    assert sum(sizes[3]) == sum(sizes[1]) == 250
    assert max(sizes[3]) <= max(sizes[1]) / 3 + 1


def test_offline_lines_keep_their_order(model: Model, whole: Bundle) -> None:
    out = io.StringIO()
    lines = [json.dumps({"text": f"swh{i} swh{i + 1}", "language": "sw"}) for i in range(59)]
    assert offline.classify_lines(model, lines, True, out, Wanted(3)) == 0
    texts = [json.loads(line)["text"] for line in lines]
    best = whole.probabilities(texts, None, ["swh_Latn"] * 59).argmax(1)
    found = [json.loads(line)["label"] for line in out.getvalue().splitlines()]
    assert found == [whole.labels[i] for i in best]


def test_the_parts_of_texts_that_rows_are_sum_to_the_texts() -> None:
    read = asked(word_by_word(), ["swh1", "eng1", "swh2"], None, ["swh_Latn", "eng_Latn", "swh_Latn"])
    np.testing.assert_allclose(read.parts, [1 / 3] * 3 + [1] + [1 / 3] * 3)
    assert asked(None, ["a", "b"]).parts.tolist() == [1, 1] and not len(asked(None, []).parts)
