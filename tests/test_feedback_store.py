import asyncio
import json
import sqlite3

import pytest
from pydantic import ValidationError

from serve.api import Event
from serve.feedback_store import FeedbackStore


def event(number: int, **given) -> Event:
    return Event.model_validate(
        {"event_id": f"e{number}", "event": "click", "item_id": f"i{number}", "request_id": "r1", **given}
    )


def kept(path) -> dict[str, dict]:
    with sqlite3.connect(path) as database:
        return {row[0]: json.loads(row[1]) for row in database.execute("SELECT event_id, told FROM events")}


def test_events_are_there_once_and_what_they_told(tmp_path):
    path = tmp_path / "feedback" / "events.db"

    async def main():
        store = FeedbackStore(path)
        first = await store.store([event(1), event(2, event="dwell", value=3.5, position=0)])
        again = await store.store([event(2), event(3), event(3)])
        return first, again

    assert asyncio.run(main()) == (2, 1)
    found = kept(path)
    assert sorted(found) == ["e1", "e2", "e3"]
    assert found["e2"] == {"event": "dwell", "value": 3.5, "position": 0, "item_id": "i2", "request_id": "r1"}


def test_stores_of_several_processes_and_many_callers_lose_nothing(tmp_path):
    path = tmp_path / "events.db"

    async def main():
        stores = [FeedbackStore(path) for _ in range(3)]
        counts = await asyncio.gather(
            *(stores[n % 3].store([event(number) for number in range(n, n + 10)]) for n in range(60))
        )
        return sum(counts)

    assert asyncio.run(main()) == 69
    assert len(kept(path)) == 69


def test_what_can_not_be_stored_is_not_acknowledged(tmp_path):
    (tmp_path / "events.db").write_text("garbage " * 1000)

    async def main():
        await FeedbackStore(tmp_path / "events.db").store([event(1)])

    with pytest.raises(sqlite3.DatabaseError):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"event": "look"}, "event"),
        ({"item_id": ""}, "item_id"),
        ({"request_id": None}, "neither request_id nor query"),
        ({"value": float("inf")}, "isn't finite"),
        ({"position": -1}, "position"),
        ({"colour": "red"}, "colour"),
        ({"event_id": "x" * 201}, "event_id"),
    ],
)
def test_events_that_say_too_little_are_refused(given, says):
    with pytest.raises(ValidationError, match=says):
        event(1, **given)
