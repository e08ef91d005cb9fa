"""Who may come in, and how much: the queue of a replica and the allowances of keys, by a clock of the tests' own."""

from __future__ import annotations

import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.replica.admission import MARGIN, Keys, Queue
from serve.replica.refusals import Refusal, plain
from serve.settings import ApiKey


def key(name: str, rate: float | None = None) -> ApiKey:
    return ApiKey(name=name, sha256=hashlib.sha256(f"secret of {name}".encode()).hexdigest(), texts_per_minute=rate)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# the queue


def test_the_queue_counts_in_and_out_whatever_happens() -> None:
    queue = Queue(10)
    with queue.enter(4, 1.0), queue.enter(6, 1.0):
        assert queue.waiting == 10
        with pytest.raises(Refusal) as refused, queue.enter(1, 1.0):
            pytest.fail("there was no room")
        assert (refused.value.status, refused.value.code) == (503, "overloaded")
    with pytest.raises(KeyError), queue.enter(3, 1.0):
        raise KeyError
    assert queue.waiting == 0


def test_a_request_larger_than_the_queue_is_let_in_when_nothing_waits() -> None:
    queue = Queue(10)
    with queue.enter(50, 1.0):
        assert not queue.free(1, 1.0)
    assert queue.free(50, 1.0)


def test_what_would_come_too_late_is_refused_with_the_time_to_wait() -> None:
    queue = Queue(1000)
    queue.measured(100, 1.0)
    with queue.enter(300, 10.0):
        assert queue.wait() == pytest.approx(3.0)
        assert queue.free(1, 3.0 / MARGIN + 0.1)
        assert not queue.free(1, 3.0 / MARGIN - 0.1)
        with pytest.raises(Refusal) as refused, queue.enter(1, 1.0):
            pytest.fail("it would have been too late")
    assert refused.value.headers == {"Retry-After": "3"}


def test_the_speed_follows_what_is_measured() -> None:
    queue = Queue(1000)
    assert queue.wait() == 0
    queue.measured(100, 1.0)
    assert queue.speed == pytest.approx(100)
    for _ in range(50):
        queue.measured(10, 1.0)
    assert queue.speed == pytest.approx(10, rel=0.01)
    queue.measured(5, 0.0)
    assert math.isfinite(queue.speed)


# keys


def test_without_keys_everybody_is_let_in_and_nobody_counted() -> None:
    keys = Keys([])
    assert not keys
    assert keys.client("", "") == "anyone"
    keys.spend("anyone", 10**9)


def test_a_key_is_known_by_either_header() -> None:
    keys = Keys([key("ada"), key("bob")])
    assert keys.client("Bearer secret of ada", "") == "ada"
    assert keys.client("bEARER   secret of bob ", "") == "bob"
    assert keys.client("", "secret of bob") == "bob"
    assert keys.client("Basic xyz", "secret of ada") == "ada"


@pytest.mark.parametrize(
    ("authorization", "x_api_key"),
    [("", ""), ("Bearer", ""), ("Bearer ", "secret of ada"), ("Bearer wrong", "secret of ada"), ("secret of ada", ""),
     ("", "SECRET OF ADA"), ("", key("ada").sha256), ("Bearer \udcff", ""), ("", "x" * 100_000)],
)  # fmt: skip
def test_anything_else_is_not(authorization: str, x_api_key: str) -> None:
    with pytest.raises(Refusal) as refused:
        Keys([key("ada"), key("bob")]).client(authorization, x_api_key)
    assert (refused.value.status, refused.value.code) == (401, "unauthorised")
    assert refused.value.headers == {"WWW-Authenticate": "Bearer"}


def test_an_allowance_is_used_up_and_comes_back() -> None:
    clock = Clock()
    keys = Keys([key("ada", 60)], now=clock)
    keys.spend("ada", 50)
    keys.spend("ada", 10)
    with pytest.raises(Refusal) as refused:
        keys.spend("ada", 5)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "5")
    clock.now += 5.01
    keys.spend("ada", 5)
    clock.now += 3600
    keys.spend("ada", 60)
    with pytest.raises(Refusal):
        keys.spend("ada", 1)


def test_refusals_cost_nothing() -> None:
    clock = Clock()
    keys = Keys([key("ada", 60)], now=clock)
    keys.spend("ada", 60)
    for _ in range(100):
        with pytest.raises(Refusal):
            keys.spend("ada", 60)
    clock.now += 60
    keys.spend("ada", 60)


def test_more_than_a_minutes_worth_passes_once_and_is_owed() -> None:
    clock = Clock()
    keys = Keys([key("ada", 60)], now=clock)
    keys.spend("ada", 120)
    clock.now += 60
    with pytest.raises(Refusal) as refused:
        keys.spend("ada", 1)
    assert refused.value.retry_after == pytest.approx(1)
    clock.now += 1
    keys.spend("ada", 1)


def test_replicas_share_a_rate_and_keys_do_not() -> None:
    keys = Keys([key("ada", 60), key("bob", 60), key("eve")], replicas=lambda: 3, now=Clock())
    keys.spend("ada", 20)
    with pytest.raises(Refusal):
        keys.spend("ada", 1)
    keys.spend("bob", 20)
    keys.spend("eve", 10**9)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 30)), min_size=1, max_size=60))
def test_nobody_gets_more_than_the_rate_over_any_time(asked: list[tuple[int, float]]) -> None:
    clock = Clock()
    keys = Keys([key("ada", 60)], now=clock)
    began, spent = clock.now, 0
    for texts, pause in asked:
        try:
            keys.spend("ada", texts)
            spent += texts
        except Refusal as refusal:
            assert refusal.retry_after is not None
            clock.now += refusal.retry_after + 1e-6
            keys.spend("ada", texts)  # what was promised holds
            spent += texts
        assert spent <= 60 + (clock.now - began) + 1e-3
        clock.now += pause


# refusals


def test_a_refusal_says_what_can_be_written_in_a_header_and_in_utf8() -> None:
    refusal = Refusal(503, "overloaded", "half \ud800", 0.01)
    assert refusal.headers == {"Retry-After": "1"}
    assert refusal.body == {"error": {"code": "overloaded", "message": "half \\ud800"}}
    assert plain("日本") == "日本"
