import math
from collections import Counter
from contextlib import ExitStack

import pytest

from serve.messages import Refusal
from serve.room import FEW, PIECE, Room

SAID = Refusal("overloaded", 1.0)


def rush(room: Room, takes: int, requests: int) -> Counter[str]:
    """What becomes of requests that come ten for each that is answered, where rankers hold `takes`."""
    told: Counter[str] = Counter()
    for number in range(requests):
        if room.full():
            told["full"] += 1
        elif room.under_way < takes:
            room.under_way += 1  # one document each
        else:
            told["refused"] += 1
            room.refused(room.under_way, SAID)
        if number % 10 == 0:
            room.under_way -= 1
            room.answered(room.under_way, 1, 1.0, 0.0)
    return told


def test_what_would_be_refused_is_hardly_sent_and_queues_stay_full():
    room = Room(longest_wait=100.0)
    told = rush(room, takes=50, requests=20_000)
    assert 0 < told["refused"] < 0.01 * told["full"]
    assert 0.9 * 50 < room.under_way <= 50


def test_nothing_is_full_before_a_refusal_and_after_the_rush(monkeypatch):
    now = [50.0]
    monkeypatch.setattr("serve.room.time.monotonic", lambda: now[0])
    room = Room(longest_wait=100.0)
    with room.send(1), room.send(1) as ahead:
        assert (ahead, room.under_way, room.full()) == (1, 2, None)
        room.refused(2, SAID)
        assert room.full() is SAID
    assert (room.under_way, room.full()) == (0, None)
    room.answered(1, 1, 1.0, 0.0)
    assert room.limit == pytest.approx(1.9, abs=0.01), "a lull of a rush isn't its end"
    now[0] += 0.9
    with room.send(1):
        room.answered(1, 1, 1.0, 0.0)
    now[0] += 0.9
    room.answered(1, 1, 1.0, 0.0)
    assert room.limit < 2, "half of it was under way since"
    now[0] += 0.2
    room.answered(1, 1, 1.0, 0.0)
    assert room.limit == math.inf


def test_one_request_passes_whatever_was_refused():
    room = Room(longest_wait=100.0)
    room.refused(0, SAID)
    assert room.full() is None
    with room.send(1):
        assert room.full() is SAID


def taken(room: Room, documents: int) -> int:
    """Requests that come at once and aren't refused."""
    with ExitStack() as under_way:
        while not room.full():
            under_way.enter_context(room.send(documents))
        return room.under_way // documents


def test_a_rush_is_foreseen_by_the_pace_of_the_answers_before():
    room = Room(longest_wait=1.0)
    for _ in range(3):
        room.answered(0, 50, seconds=0.08, busy=0.05)
    room.answered(0, 10_000, seconds=30.0, busy=30.0)  # a giant
    assert 20 <= taken(room, 50) <= 21, "a second's worth"
    with room.send(1600):
        assert room.full() is None, "its later pieces come behind what others send"
        assert room.under_way == PIECE
    room.answered(1500, 50, seconds=0.31, busy=0.05)  # there are five rankers
    assert 100 <= taken(room, 50) <= 101


def test_a_few_are_sent_however_slow_the_answers():
    room = Room(longest_wait=1.0)
    room.answered(0, 1, seconds=30.0, busy=30.0)
    assert taken(room, 1) == FEW
    assert room.full() is None


def test_nothing_is_foreseen_of_what_costs_nothing():
    room = Room(longest_wait=1.0)
    room.answered(0, 100, seconds=0.01, busy=0.0)
    with room.send(PIECE), ExitStack() as others:
        for _ in range(1000):
            others.enter_context(room.send(PIECE))
        assert room.full() is None


def test_those_that_wait_to_be_sent_count_as_requests_of_late_do():
    room = Room(longest_wait=1.0)
    for documents in (50, 40, 60):
        with room.send(documents):
            pass
    room.answered(0, 50, seconds=0.05, busy=0.05)
    assert room.full(waiting=19) is None
    refusal = room.full(waiting=21)
    assert refusal
    assert refusal.seconds == pytest.approx(21 * 0.05, rel=0.05)
    room.refused(1000, SAID)
    assert (room.full(waiting=18), room.full(waiting=20)) == (None, SAID)


def test_what_is_free_is_left_of_what_is_foreseen_or_was_learnt():
    room = Room(longest_wait=1.0)
    assert room.free(0) == math.inf
    with room.send(50):
        assert room.free(0) == math.inf
        room.answered(0, 50, seconds=0.05, busy=0.05)
        assert (room.free(0), room.free(9), room.free(30)) == pytest.approx((19, 10, 0))
        room.refused(1000, SAID)
        assert room.free(0) == pytest.approx(18)
    room.limit, room.pace = math.inf, 1.0
    assert room.free(0) == pytest.approx(FEW / 50)
    with room.send(10_000):
        assert room.free(0) == pytest.approx((FEW - PIECE) / room.usual)
        assert 50 < room.usual < 60
