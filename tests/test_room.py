import math
from collections import Counter

from serve.messages import Refusal
from serve.room import Room

SAID = Refusal("overloaded", 1.0)


def rush(room: Room, takes: int, requests: int) -> Counter[str]:
    """What becomes of requests that come ten for each that is answered, where rankers hold `takes`."""
    told: Counter[str] = Counter()
    for number in range(requests):
        if room.full:
            told["full"] += 1
        elif room.under_way < takes:
            room.under_way += 1
        else:
            told["refused"] += 1
            room.refused(room.under_way, SAID)
        if number % 10 == 0:
            room.under_way -= 1
            room.answered(room.under_way, 1.0)
    return told


def test_what_would_be_refused_is_hardly_sent_and_queues_stay_full():
    room = Room(longest_wait=100.0)
    told = rush(room, takes=50, requests=20_000)
    assert 0 < told["refused"] < 0.01 * told["full"]
    assert 0.9 * 50 < room.under_way <= 50


def test_nothing_is_full_before_a_refusal_and_after_the_rush():
    room = Room(longest_wait=100.0)
    with room.send(), room.send() as ahead:
        assert (ahead, room.under_way, room.full) == (1, 2, None)
        room.refused(2, SAID)
        assert room.full is SAID
    assert (room.under_way, room.full) == (0, None)
    room.answered(1, 1.0)
    assert room.limit == math.inf


def test_one_request_passes_whatever_was_refused():
    room = Room(longest_wait=100.0)
    room.refused(0, SAID)
    assert room.full is None
    with room.send():
        assert room.full is SAID


def test_a_rush_is_foreseen_by_the_pace_of_the_answers_before():
    room = Room(longest_wait=1.0)
    for _ in range(3):
        room.answered(0, 0.02)
    room.answered(0, 30.0)  # one was a giant
    taken = 0
    while not room.full:
        room.under_way += 1
        taken += 1
    assert 60 < taken <= 76, "1.5 seconds' worth"
    assert room.full.reason == "overloaded"
    assert 1.5 < room.full.seconds < 1.6
    room.answered(taken, 0.2)  # there are more rankers than one
    assert room.full is None


def test_a_few_are_sent_however_slow_the_answers():
    room = Room(longest_wait=1.0)
    room.answered(0, 30.0)
    taken = 0
    while not room.full:
        room.under_way += 1
        taken += 1
    assert taken == 16
