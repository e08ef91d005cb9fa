"""What stands behind the routes: batches, deadlines, a change of the model in the middle, a challenger beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import local_server
import numpy as np
import pytest

from serve.replica import challenge
from serve.replica.challenge import Challenge, ChallengeArgs
from serve.replica.measured import expected, reliability, zero_shot
from serve.replica.model import Chunk, Model, Question, Wanted
from serve.replica.refusals import Refusal
from serve.replica.service import Service, answer_all, shown
from serve.replica.telemetry import Telemetry
from xlt_ray.evaluation import calibration
from xlt_ray.languages.identify import Guess

TEXTS = [f"eng{i} " * (1 + (7 * i) % 20) for i in range(40)]


class Watched:
    """An engine that notes its batches and can be made slow or failing."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.batches, self.pause, self.fails_at = engine, [], 0.0, -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def probabilities(self, rows: Any, codes: Any = None) -> Any:
        self.batches.append([len(row) for row in rows])
        time.sleep(self.pause)
        if any(len(row) == self.fails_at for row in rows):
            raise MemoryError("no room")
        return self._engine.probabilities(rows, codes)


@pytest.fixture(scope="module")
def two(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    folders = [
        local_server.artefact_of(tiny_encoder, tmp_path_factory.mktemp(f"service{seed}"), seed) for seed in (0, 1)
    ]
    first, second = (local_server.loaded(folder, f"models:/tiny/{i}", str(i)) for i, folder in enumerate(folders, 1))
    assert (labels(first, TEXTS) != labels(second, TEXTS)).any()
    return first, second


@pytest.fixture
def model(two: tuple[Model, Model]) -> Any:
    return replace(two[0], engine=Watched(two[0].engine))


def labels(model: Model, texts: list[str]) -> np.ndarray:
    found = model.engine.probabilities(model.engine.encode(texts))
    return np.asarray(model.artefact.labels)[found.argmax(1)]


def made(model: Model | None, **settings: Any) -> Service:
    return local_server.service(model, **{"identify": False, **settings})


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


# batches


def test_a_request_is_cut_by_tokens_and_put_together_in_order(model: Any) -> None:
    service = made(model, tokens_per_batch=128)
    answer = run(service.classify(Question(TEXTS)))
    assert len(model.engine.batches) > 3
    assert all(len(batch) * max(batch) <= 128 for batch in model.engine.batches)
    wanted = model.engine._engine.probabilities(model.engine.encode(TEXTS))
    assert np.allclose(answer.probabilities, wanted, atol=1e-5)
    assert answer.labels.tolist() == labels(model, TEXTS).tolist()


def test_what_comes_together_is_answered_together_and_each_gets_its_own(model: Any) -> None:
    chunks = [
        Chunk(model, model.engine.encode(part), time.monotonic() + 9) for part in (TEXTS[:3], TEXTS[3:4], TEXTS[4:9])
    ]
    found = answer_all(chunks)
    assert len(model.engine.batches) == 1
    wanted = model.engine._engine.probabilities(model.engine.encode(TEXTS[:9]))
    assert np.allclose(np.concatenate(found), wanted, atol=1e-5)
    assert [len(part) for part in found] == [3, 1, 5]


def test_what_nobody_waits_for_any_more_is_not_computed(model: Any) -> None:
    rows = model.engine.encode(TEXTS[:2])
    now = time.monotonic()
    late, in_time = answer_all([Chunk(model, rows, now - 1), Chunk(model, rows[:1], now + 9)])
    assert isinstance(late, TimeoutError)
    assert isinstance(in_time, np.ndarray)
    assert model.engine.batches == [[len(rows[0])]]
    assert all(isinstance(one, TimeoutError) for one in answer_all([Chunk(model, rows, now - 1)]))
    assert answer_all([]) == []


def test_a_batch_of_two_models_is_answered_by_each_its_own(two: tuple[Model, Model]) -> None:
    first, second = two
    until = time.monotonic() + 9
    chunks = [Chunk(model, model.engine.encode(TEXTS), until) for model in (first, second, first)]
    found = [np.asarray(first.artefact.labels)[part.argmax(1)].tolist() for part in answer_all(chunks)]
    assert found == [labels(model, TEXTS).tolist() for model in (first, second, first)]


def test_one_bad_chunk_does_not_spoil_a_batch(model: Any) -> None:
    model.engine.fails_at = len(model.engine.encode(TEXTS[1:2])[0])
    until = time.monotonic() + 9
    found = answer_all([Chunk(model, model.engine.encode([text]), until) for text in TEXTS[:3]])
    assert [type(one) for one in found] == [np.ndarray, MemoryError, np.ndarray]


# time


def test_a_deadline_ends_the_waiting_and_the_count(model: Any) -> None:
    model.engine.pause = 0.2
    service = made(model, limits={"deadline_s": 0.05})

    async def ask() -> None:
        for deadline in (None, 0.01, 100):  # a client cannot ask for more than the server gives
            began = time.monotonic()
            with pytest.raises(Refusal) as refused:
                await service.classify(Question(TEXTS[:1]), deadline=deadline)
            assert refused.value.code == "deadline_exceeded"
            assert time.monotonic() - began < 0.15
            assert service.queue.waiting == 0

    run(ask())


def test_tokenising_counts_against_the_deadline(model: Any) -> None:
    class Thick(Watched):
        def encode(self, *given: Any) -> Any:
            time.sleep(0.3)
            return self._engine.encode(*given)

    service = made(replace(model, engine=Thick(model.engine)), limits={"deadline_s": 0.05})

    async def ask() -> float:
        began = time.monotonic()
        with pytest.raises(Refusal):
            await service.classify(Question(TEXTS[:1]))
        return time.monotonic() - began

    assert run(ask()) < 0.25


def test_a_client_that_goes_away_leaves_the_queue_empty(model: Any) -> None:
    model.engine.pause = 0.1
    service = made(model)

    async def ask() -> None:
        tasks = [asyncio.create_task(service.classify(Question(TEXTS[:3]))) for _ in range(4)]
        await asyncio.sleep(0.05)
        assert service.queue.waiting == 12
        for task in tasks[:3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert service.queue.waiting == 0

    run(ask())


def test_the_patient_wait_for_room_and_give_up_only_when_the_server_does(model: Any) -> None:
    service = made(model)

    async def ask() -> None:
        service.queue.waiting = 10**6
        with pytest.raises(Refusal):
            await service.classify(Question(TEXTS[:1]))
        waiting = asyncio.create_task(service.classify(Question(TEXTS[:1]), patient=True))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        service.queue.waiting = 0
        assert len((await waiting).labels) == 1
        service.queue.waiting = 10**6
        waiting = asyncio.create_task(service.classify(Question(TEXTS[:1]), patient=True))
        await asyncio.sleep(0.05)
        service.model = None
        with pytest.raises(Refusal) as refused:
            await waiting
        assert refused.value.code == "not_ready"

    run(ask())


# a change of the model


def test_each_answer_is_wholly_of_the_model_it_names(two: tuple[Model, Model]) -> None:
    slow: Any = [replace(model, engine=Watched(model.engine)) for model in two]
    for model in slow:
        model.engine.pause = 0.01
    service = made(slow[0], tokens_per_batch=128)
    wanted = {model.version: labels(model, TEXTS).tolist() for model in two}

    async def ask() -> list[str]:
        async def one() -> str:
            answer = await service.classify(Question(TEXTS))
            assert answer.labels.tolist() == wanted[answer.model.version]
            return answer.model.version

        tasks = []
        for i in range(12):
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(0.005)
            if i % 3 == 2:
                service.model = slow[(i // 3 + 1) % 2]
        return list(await asyncio.gather(*tasks))

    assert set(run(ask())) == {"1", "2"}
    assert service.queue.waiting == 0


# languages and what was measured


def test_accuracy_is_told_for_the_language_named_or_guessed(two: tuple[Model, Model]) -> None:
    service = local_server.service(two[0])
    texts = ["eng1", "Bitte mach sofort das Licht in der Küche an", "12 + 3", "eng1", "eng1"]
    answer = run(service.classify(Question(texts, None, ["swh_Latn", None, None, "fra_Latn", "heb_Hebr"])))
    assert [guess.code for guess in answer.guesses] == ["swh_Latn", "deu_Latn", None, "fra_Latn", "heb_Hebr"]
    found = shown(answer, 1)
    assert [one["expected_accuracy"] and one["expected_accuracy"]["accuracy"] for one in found] == [
        0.4,
        0.8,
        None,
        None,
        0.6,
    ]
    assert [one["expected_accuracy"]["trained_on"] for one in (*found[:2], found[4])] == [False, True, True], (
        "zero-shot, source, few-shot"
    )
    assert found[3]["language"] == {"code": "fra_Latn", "name": "French", "confidence": 1.0}
    for row in two[0].artefact.languages.values():
        told = expected(row)
        assert told["low"] <= told["accuracy"] <= told["high"]
    assert run(made(two[0]).classify(Question(["Bitte mach das Licht an"]))).guesses == [Guess(None, 0.0)]


def test_how_often_as_confident_answers_were_right_is_told_for_the_language_or_for_zero_shot_ones(
    two: tuple[Model, Model],
) -> None:
    answer = run(made(two[0]).classify(Question(["eng1"] * 3, None, ["swh_Latn", "fra_Latn", None])))
    own, *others = [one["reliability"] for one in shown(answer, 1)]
    table = two[0].artefact.languages["swh_Latn"]["reliability"]
    sure = float(answer.probabilities[0].max())
    assert own == {**calibration.like(table, sure), "language": "swh_Latn"}  # type: ignore[dict-item]
    pooled = [row["reliability"] for row in two[0].artefact.languages.values() if row["role"] == "zero-shot"]
    together = calibration.like(calibration.pooled(pooled), sure)
    assert together is not None and others == [{**together, "language": None}] * 2
    bare = {code: dict.fromkeys(row) | {"role": row["role"]} for code, row in two[0].artefact.languages.items()}
    assert reliability(bare, zero_shot(bare), "swh_Latn", sure) is None
    assert reliability({}, zero_shot({}), None, sure) is None
    older = dict(two[0].artefact.languages["swh_Latn"])
    del older["reliability"], older["calibration_error"]
    assert reliability({"swh_Latn": older}, zero_shot({"swh_Latn": older}), "swh_Latn", sure) is None
    assert (expected(older) or {})["calibration_error"] is None


def test_the_servers_least_confidence_holds_where_a_request_names_none(two: tuple[Model, Model]) -> None:
    counted: list[Any] = []

    class Noting(Telemetry):
        def texts(self, version: str, languages: Any, labels: Any) -> None:
            counted.extend(labels)

    texts = TEXTS[:5]
    sure = two[0].engine.probabilities(two[0].engine.encode(texts)).max(axis=1)
    service = made(two[0], min_confidence=float(np.median(sure)) - 1e-3)
    service.telemetry = Noting()
    wanted = labels(two[0], texts).tolist()
    some = [label if one >= np.median(sure) else None for label, one in zip(wanted, sure, strict=True)]
    assert None in some
    assert [one["label"] for one in shown(run(service.classify(Question(texts))), 1)] == some == counted
    given = [one["label"] for one in shown(run(service.classify(Question(texts), min_confidence=0.0)), 1)]
    assert given == wanted == counted[5:]


def test_texts_are_counted_by_language_and_label(two: tuple[Model, Model]) -> None:
    counted: list[Any] = []

    class Counting(Telemetry):
        def texts(self, *given: Any) -> None:
            counted.append(given)

    service = made(two[0])
    service.telemetry = Counting()
    run(service.classify(Question(TEXTS[:3], None, ["swh_Latn", "fra_Latn", None])))
    assert counted == [("1", ["swh_Latn", "unmeasured", "unknown"], labels(two[0], TEXTS[:3]).tolist())]


# a challenger


def challenged(two: tuple[Model, Model], mode: str, share: float) -> Service:
    service = made(two[0])
    service.challenge = Challenge(ChallengeArgs(model="models:/tiny/2", mode=mode, share=share), two[1])
    return service


async def asked(service: Service, requests: int) -> list[str]:
    versions = []
    for i in range(requests):
        question = Question([f"eng{i % 60} deu{i // 60}", "swh1"], None, ["eng_Latn", "swh_Latn"])
        answer = await service.classify(question)
        service.follow_up(answer)
        versions.append(answer.model.version)
    await asyncio.gather(*service._background)
    return versions


def test_a_split_gives_the_challenger_its_share_and_each_text_the_same_model(two: tuple[Model, Model]) -> None:
    service = challenged(two, "split", 0.3)
    versions = run(asked(service, 200))
    assert 40 <= versions.count("2") <= 80
    assert run(asked(service, 200)) == versions
    tally = service.challenge.tally()
    assert tally["languages"]["eng_Latn"] == {
        "answered_by_champion": 2 * versions.count("1"),
        "answered_by_challenger": 2 * versions.count("2"),
    }


def test_a_shadow_answers_nobody_and_is_compared(two: tuple[Model, Model]) -> None:
    service = challenged(two, "shadow", 1.0)
    assert set(run(asked(service, 60))) == {"1"}
    texts = [f"eng{i} deu0" for i in range(60)]
    agreed = int((labels(two[0], texts) == labels(two[1], texts)).sum())
    counts = service.challenge.tally()["languages"]["eng_Latn"]
    assert counts == {"answered_by_champion": 60, "compared": 60, "agreed": agreed}
    assert service.queue.waiting == 0


def test_a_shadow_that_fails_or_finds_no_room_costs_nobody_an_answer(two: tuple[Model, Model]) -> None:
    broken: Any = replace(two[1], engine=Watched(two[1].engine))
    broken.engine.fails_at = 4
    service = challenged((two[0], broken), "shadow", 1.0)
    assert run(asked(service, 5)) == ["1"] * 5
    assert "compared" not in service.challenge.tally()["languages"]["eng_Latn"]
    assert service.queue.waiting == 0
    service.queue.waiting = service.queue.most // 2
    run(asked(service, 3))
    assert service.queue.waiting == service.queue.most // 2


def test_feedback_judges_both_on_the_same_texts(two: tuple[Model, Model]) -> None:
    service = challenged(two, "split", 1.0)
    right = labels(two[1], TEXTS).tolist()
    same = labels(two[0], TEXTS) == labels(two[1], TEXTS)
    found = run(service.feedback(Question(TEXTS, None, ["deu_Latn"] * len(TEXTS)), right))
    assert found["models:/tiny/1"] == {"version": "1", "texts": 40, "right": int(same.sum())}
    assert found["models:/tiny/2"] == {"version": "2", "texts": 40, "right": 40}
    counts = service.challenge.tally()["languages"]["deu_Latn"]
    assert counts["judged"] == 40
    assert counts["only_challenger_right"] == 40 - int(same.sum())
    assert counts["only_champion_right"] == 0


def test_tallies_of_replicas_add_up(two: tuple[Model, Model]) -> None:
    tallies = [
        {"languages": {"a": {"judged": 2}, "b": {"agreed": 1}}},
        {"languages": {"a": {"judged": 3, "agreed": 1}}},
    ]
    assert challenge.total(tallies) == {"a": {"judged": 5, "agreed": 1}, "b": {"agreed": 1}}


def test_streams_count_for_the_challenger_as_well(two: tuple[Model, Model]) -> None:
    from serve.http.stream import answer_lines

    service = challenged(two, "shadow", 1.0)

    async def lines() -> None:
        async def body() -> Any:
            yield b'"eng1"\n"eng2"\n'

        found = [piece async for piece in answer_lines(service, body(), lambda texts: None, Wanted())]
        assert b"".join(found).count(b"\n") == 2
        await asyncio.gather(*service._background)

    run(lines())
    assert service.challenge.tally()["languages"]["unknown"]["compared"] == 2
