"""A model of words behind HTTP: tags and spans with their places, those that `Model.tag` gives, however texts come."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import local_server
import numpy as np
import pytest
import torch
from test_service import Watched

from serve.http import api
from serve.replica import words
from serve.replica.admission import Keys
from serve.replica.model import Chunk, Model, Question
from serve.replica.refusals import Refusal
from serve.replica.service import Service, answer_all
from serve.replica.telemetry import Telemetry
from xlt_ray import config, tasks
from xlt_ray.errors import InputError
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.inference import bundle, engine, model, tagging
from xlt_ray.model import network
from xlt_ray.registry import fetch

TAGS = ("O", "B-food", "I-food", "B-place", "I-place")
TEXTS = [
    "eng1 eng2, eng3!",
    "😀 deu4 e\u0301t\u00e9 \U0001d7d8x",  # beyond the first 65,536 code points, and a mark of its own
    " ".join(f"swh{number % 60}" for number in range(150)),  # six windows
    "hin1",
    "台所のライト eng9",
    "  eng5\t\nกัน eng6  ",
]


def saved(folder: Path, encoder: Path, labels: tuple[str, ...] = TAGS, types: bool = False) -> Path:
    """Save an untrained tagger whose answers differ from word to word; it was measured in English and Swahili.

    `types` is for token_type_ids.
    """
    corpus = {"loader": "files", "path": str(folder), "words": "words"}
    experiment = config.build(
        {"name": "tiny", "task": "tag", "corpus": corpus, "sources": ["eng_Latn"],
         "network": {"init": str(encoder), "max_length": 32, "freeze": []}}
    )  # fmt: skip
    net, tokenize, identity = network.build(experiment.network, len(labels), 0)
    if types:
        names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenize.tokenizer.model_input_names = tokenize.tokenizer.init_kwargs["model_input_names"] = names
    with torch.no_grad():
        net.head.weight *= 20
    task, gold, sizes = tasks.build("tag", labels), np.arange(60) % len(labels), np.full(20, 3)
    found = {}
    for code, share in (("eng_Latn", 0.9), ("swh_Latn", 0.5)):
        predicted = np.where(np.arange(60) < 60 * share, gold, (gold + 1) % len(labels))
        sure, ids = np.linspace(0.9, 0.4, 60), [*map(str, range(20))]
        found[code] = Predictions(gold, predicted, ids, sure, sizes, task.ratios(gold, predicted, sizes))
    scores = metrics.score(found, labels, Roles(("eng_Latn",)), 50, 0, "tag")
    net.temperature = 1.5
    bundle.save(folder, bundle.Bundle(net.eval(), tokenize, labels, experiment, scores), identity)
    return folder


@pytest.fixture(scope="module")
def folder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("words") / "bundle", tiny_encoder)


def opened(folder: Path) -> Model:
    running = engine.load(folder, device="cpu")
    return Model(running, running.artefact, "models:/tagger/1", "1")


@pytest.fixture(scope="module")
def tagger(folder: Path) -> Model:
    return opened(folder)


@pytest.fixture(scope="module")
def service(tagger: Model) -> Service:
    return local_server.service(tagger, identify=False, limits={"texts": 8, "characters": 2000})


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with local_server.client(service) as client:
        yield client
    assert service.queue.waiting == 0


def lines(texts: list[Any]) -> dict[str, Any]:
    return {"content": "\n".join(map(json.dumps, texts)), "headers": {"Content-Type": "application/x-ndjson"}}


def test_answers_are_those_of_the_model_in_python(client: httpx.Client, folder: Path) -> None:
    found = client.post("/v1/tag", json={"texts": TEXTS, "languages": ["en", None, "sw", None, None, None]})
    assert found.status_code == 200
    assert found.json()["model"] == {"name": "models:/tagger/1", "version": "1", "precision": "float32"}
    kept = bundle.load(folder)
    table = model.Model("tiny", kept).tag(TEXTS, "eng_Latn")
    types = set()
    for number, (text, result) in enumerate(zip(TEXTS, found.json()["results"], strict=True)):
        rows = table[table["text"] == number]
        tagged = result["words"]
        for key, column in (("text", "word"), ("start", "start"), ("end", "end"), ("tag", "tag")):
            assert [one[key] for one in tagged] == rows[column].tolist()
        assert [one["score"] for one in tagged] == pytest.approx(rows["score"].tolist(), abs=1e-4)
        assert all(text[one["start"] : one["end"]] == one["text"] for one in [*tagged, *result["spans"]])
        (own,) = tagging.tag(kept, [text])
        wanted = [(span.type, span.start, span.end) for span in tagging.spans(kept.task, own)]
        assert [(one["type"], one["start"], one["end"]) for one in result["spans"]] == wanted
        for one, span in zip(result["spans"], rows.dropna(subset="span").groupby("span"), strict=True):
            assert one["score"] == pytest.approx(span[1]["score"].min(), abs=1e-4)
        types |= {one["type"] for one in result["spans"]}
    assert types == {"food", "place"} and len(found.json()["results"][2]["words"]) == 150


def test_the_quality_beside_an_answer_is_f1_of_its_language(client: httpx.Client, tagger: Model) -> None:
    asked = {"texts": ["eng1"] * 3, "languages": ["en", "sw", "fr"]}
    first, second, third = client.post("/v1/tag", json=asked).json()["results"]
    scores = bundle.load(tagger.artefact.folder).scores
    for one, code in ((first, "eng_Latn"), (second, "swh_Latn")):
        measured = scores.languages[code]
        assert one["language"]["code"] == code
        assert one["expected_quality"] == {
            "metric": "f1", "value": round(measured.f1, 4), "low": round(measured.f1_low, 4),
            "high": round(measured.f1_high, 4), "rows": 20, "trained_on": code == "eng_Latn",
            "supervision": measured.supervision, "calibration_error": round(measured.calibration_error, 4),
        }  # fmt: skip
    assert third["expected_quality"] is None
    told = client.get("/v1/model").json()
    assert (told["task"], told["labels"], told["types"]) == ("tag", list(TAGS), ["food", "place"])
    assert [row["code"] for row in told["languages"]] == ["eng_Latn", "swh_Latn"]
    assert told["languages"][0]["expected_quality"] == first["expected_quality"]
    assert client.get("/readyz").status_code == client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"texts": []}, "texts"),
        ({"texts": [""]}, "texts.0"),
        ({"texts": ["eng1", " \n\x1c"]}, "texts.1"),
        ({"texts": ["eng1", "\ud800"]}, "texts.1"),
        ({"texts": ["a" * 2001]}, "texts.0"),
        ({"texts": ["eng1"] * 9}, "texts"),
        ({"texts": "eng1"}, "texts"),
        ({"texts": [1]}, "texts.0"),
        ({"texts": ["eng1"], "languages": ["xx-no"]}, "languages[0]"),
        ({"texts": ["eng1"], "languages": ["en", "en"]}, "languages"),
        ({"texts": ["eng1"], "pairs": ["eng2"]}, "pairs"),
        ({"texts": ["eng1"], "top_k": 2}, "top_k"),
        ({"texts": ["eng1"], "min_confidence": 0.5}, "min_confidence"),
    ],
)
def test_what_cannot_be_tagged_is_refused_with_its_place(client: httpx.Client, body: Any, place: str) -> None:
    found = client.post("/v1/tag", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert found.status_code == 422
    assert found.json()["error"]["code"] == "unprocessable"
    assert found.json()["error"]["message"].startswith(f"{place}: ")


@pytest.mark.parametrize("text", ["\u0000", "😀", "\u202e\u2066", "\u200d", "a" * 2000, "\ufeff", "e\u0301" * 999])
def test_any_text_that_is_not_blank_is_answered(client: httpx.Client, text: str) -> None:
    found = client.post("/v1/tag", json={"texts": [text]})
    assert found.status_code == 200
    tagged = found.json()["results"][0]["words"]
    assert "".join(one["text"] for one in tagged) == text.strip()


def test_a_stream_tags_line_by_line_and_says_which_it_cannot(client: httpx.Client) -> None:
    asked = [
        TEXTS[0],
        {"text": TEXTS[2], "language": "sw", "id": 7},
        " ",
        {"text": "eng1", "pair": "eng2"},
        {"text": 1},
    ]
    found = [json.loads(line) for line in client.post("/v1/tag/stream", **lines(asked)).text.splitlines()]
    whole = client.post("/v1/tag", json={"texts": [TEXTS[0], TEXTS[2]], "languages": [None, "sw"]}).json()["results"]
    assert [one["line"] for one in found] == [1, 2, 3, 4, 5] and found[1]["id"] == 7
    assert [{key: one[key] for key in whole[0]} for one in found[:2]] == [json.loads(json.dumps(one)) for one in whole]
    assert found[0]["model_version"] == "1"
    assert "no word" in found[2]["error"] and "pair" in found[3]["error"] and "string" in found[4]["error"]


def test_each_kind_of_model_has_its_own_routes_and_document(client: httpx.Client, service: Service) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/tag", "/v1/tag/stream", "/v1/model"} <= {*document["paths"]}
    assert not {"/v1/classify", "/v1/classify/stream", "/v1/feedback"} & {*document["paths"]}
    assert "TagRequest" in document["components"]["schemas"] and document["info"]["summary"].startswith("Tag the words")
    for path in ("/v1/classify", "/v1/classify/stream", "/v1/feedback"):
        found = client.post(path, json={"texts": ["eng1"]})
        assert found.status_code == 404 and "/v1/tag" in found.json()["error"]["message"]
    without = local_server.service(None)
    other = api.create(service.args, lambda: without, Keys(()), lambda: "").openapi()
    assert "/v1/classify" in other["paths"] and not [path for path in other["paths"] if "tag" in path]


def test_windows_go_into_batches_of_the_budget_and_come_back_in_order(folder: Path, tagger: Model) -> None:
    watched = replace(tagger, engine=Watched(tagger.engine))
    service = local_server.service(watched, identify=False, tokens_per_batch=128)
    texts = [*TEXTS, *TEXTS[::-1]]
    measured: list[float] = []
    service.queue.measured = lambda texts, seconds: measured.append(texts)  # type: ignore[method-assign]
    answer = asyncio.run(service.classify(Question(texts)))
    batches = watched.engine.batches  # type: ignore[attr-defined]
    assert len(batches) > 3 and all(len(batch) * max(batch) <= 128 for batch in batches)
    # what waits and what was done are told in the same: a text of 869 characters and windows of 32 tokens is 14
    assert sum(map(len, batches)) > len(texts) and sum(measured) == pytest.approx(len(texts) + 2 * 13)
    service.queue.waiting, service.queue.speed = 1, 1.0
    with pytest.raises(Refusal, match="too much is waiting"):
        asyncio.run(service.classify(Question([TEXTS[2]] * 74)))
    service.queue.waiting = 0
    wanted = tagging.tag(bundle.load(folder), texts)
    assert [[word[:3] for word in own] for own in answer.words] == [[word[:3] for word in own] for own in wanted]
    scores, others = ([word.score for own in found for word in own] for found in (answer.words, wanted))
    assert scores == pytest.approx(others, abs=1e-5)


def test_a_request_that_is_lost_is_not_encoded_to_its_end(tagger: Model) -> None:
    service, encoded = local_server.service(tagger, identify=False), list[str]()

    class Slow:
        def __init__(self, words: tagging.Words) -> None:
            self.words = words

        def __getattr__(self, name: str) -> Any:
            return getattr(self.words, name)

        def rows(self, texts: list[str]) -> Any:
            encoded.extend(texts)
            time.sleep(0.2)
            return self.words.rows(texts)

    assert tagger.engine.words is not None
    slow = replace(tagger, engine=copy.copy(tagger.engine))
    slow.engine.words = Slow(tagger.engine.words)  # type: ignore[assignment]
    service.model = slow

    async def asked() -> None:
        with pytest.raises(Refusal) as refused:
            await service.classify(Question(["eng1"] * 50, None, None), 0.5)
        assert refused.value.code == "deadline_exceeded"
        service.model = tagger
        answer = await service.classify(Question(["eng1 eng2"], None, None), 5.0)
        assert len(answer.words[0]) == 2

    asyncio.run(asked())
    time.sleep(0.5)
    assert 1 <= len(encoded) < 5


@pytest.mark.parametrize("types", [False, True])
def test_requests_that_come_together_each_get_their_own_words(tiny_encoder: Path, tmp_path: Path, types: bool) -> None:
    tagger = opened(saved(tmp_path / "bundle", tiny_encoder, types=types))
    assert tagger.engine.words is not None
    until, windows = time.monotonic() + 9, tagger.engine.words.rows(TEXTS)
    found = answer_all([Chunk(tagger, rows, until) for rows in windows])
    assert [len(part) for part in found] == [sum(tagging.sizes(rows)) for rows in windows]
    alone = [tagger.engine.probabilities(rows) for rows in windows]
    assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(found, alone, strict=True))
    wanted = [word.score for own in tagging.tag(bundle.load(tmp_path / "bundle"), TEXTS) for word in own]
    assert np.concatenate(found).max(1).tolist() == pytest.approx(wanted, abs=1e-5)


def test_tags_are_counted_by_language_and_logged_where_asked(tagger: Model, caplog: pytest.LogCaptureFixture) -> None:
    counted: list[Any] = []

    class Counting(Telemetry):
        def words(self, *given: Any) -> None:
            counted.append(given)

    service = local_server.service(tagger, identify=False, log_texts=True)
    service.telemetry = Counting()
    with caplog.at_level("INFO", "ray.serve"):
        answer = asyncio.run(service.classify(Question(["eng1 eng2", "swh3"], None, ["eng_Latn", None])))
    tags = [[word.tag for word in own] for own in answer.words]
    assert counted == [("1", ["eng_Latn", "unknown"], tags)]
    logged = [json.loads(record.message) for record in caplog.records if record.name == "ray.serve"]
    assert [(one["text"], one["tags"]) for one in logged] == [*zip(["eng1 eng2", "swh3"], tags, strict=True)]


def test_tags_that_are_of_no_spans_are_served_with_their_accuracy(tiny_encoder: Path, tmp_path: Path) -> None:
    service = local_server.service(opened(saved(tmp_path / "bundle", tiny_encoder, ("NOUN", "VERB"))), identify=False)
    with local_server.client(service) as client:
        (found,) = client.post("/v1/tag", json={"texts": ["eng1 eng2"], "languages": ["en"]}).json()["results"]
        assert client.get("/v1/model").json()["types"] == []
    assert found["spans"] == [] and {one["tag"] for one in found["words"]} <= {"NOUN", "VERB"}
    assert found["expected_quality"]["metric"] == "accuracy" and found["expected_quality"]["value"] == 0.9


def test_a_bundle_of_words_is_served_as_it_is(folder: Path, tmp_path: Path) -> None:
    found = fetch.fetch(str(folder), cache=tmp_path)
    assert (found.folder, found.model) == (str(folder), str(folder)) and not [*tmp_path.iterdir()]
    for form, fault in (
        (fetch.Form(precision="int8"), "precision: int8"),
        (fetch.Form(vocabulary="trimmed"), "trimmed"),
    ):
        with pytest.raises(InputError, match=f"{fault} is of exported models"):
            fetch.fetch(str(folder), form=form, cache=tmp_path)


def test_a_server_stays_with_its_kind_of_model(tagger: Model, tiny_encoder: Path, tmp_path: Path) -> None:
    texts = local_server.loaded(local_server.artefact_of(tiny_encoder, tmp_path))
    for one, other in ((tagger, texts), (texts, tagger)):
        with pytest.raises(InputError, match="has other routes; start another server"):
            words.refuse_other_kind(one, other, None)
        with pytest.raises(InputError, match=r"challenger: .* is a model of words"):
            words.refuse_other_kind(one, None, other)
    words.refuse_other_kind(tagger, tagger, None)
    words.refuse_other_kind(texts, texts, texts)
