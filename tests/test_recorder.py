import asyncio
import json
from datetime import UTC, datetime

import numpy as np
import pytest
from pydantic import ValidationError

from rankstill.errors import DamagedError
from rankstill.event_log import EventLog
from rankstill.served import Version
from rankstill.text import made_id, user_digest
from serve.api import Event
from serve.messages import ScoreRequest, Scores
from serve.observed import Observed
from serve.ranking import Ranked
from serve.recorder import Groups, Recorder
from serve.recording import Kept, Recording

EMAIL_ONLY = (r"\S+@\S+",)


def event(number: int, **given) -> Event:
    return Event.model_validate(
        {"event_id": f"e{number}", "event": "click", "item_id": f"i{number}", "request_id": "r1", **given}
    )


async def settled(groups: Groups) -> None:
    """Wait until all that was taken is in the table."""
    while groups._settling:
        await asyncio.sleep(0.01)


class Here:
    """A recorder in this process, behind what a handle to one offers."""

    def __init__(self, recorder: Recorder) -> None:
        for name in ("events", "impressions"):
            setattr(self, name, Here._Method(getattr(recorder, name)))
        self._groups = (recorder._events, recorder._impressions)

    async def settled(self) -> None:
        for one in self._groups:
            await settled(one)

    class _Method:
        def __init__(self, method) -> None:
            self.remote = method


def recording(folder, kept: Kept) -> Recording:
    own = Recording(kept, Observed())
    own._handle = Here(Recorder(str(folder)))
    return own


KEPT = Kept(impressions=100, queries="keep", hide=EMAIL_ONLY)


def test_events_are_there_once_and_what_they_told(tmp_path):
    async def main():
        own = recording(tmp_path, KEPT)
        first = await own.events([event(1), event(2, event="dwell", value=3.5, position=0, user="ann")])
        again = await own.events([event(2), event(3), event(3)])
        await own._handle.settled()
        return first, again

    assert asyncio.run(main()) == (2, 1)
    found = EventLog(str(tmp_path)).events.read()
    assert found["event_id"].to_list() == ["e1", "e2", "e3"]
    row = found.row(1, named=True)
    assert {key: row[key] for key in ("event", "value", "position", "item_id", "request_id", "user")} == {
        "event": "dwell",
        "value": 3.5,
        "position": 0,
        "item_id": "i2",
        "request_id": "r1",
        "user": user_digest("ann"),
    }


def test_those_who_ask_at_once_are_written_together(tmp_path):
    log = EventLog(str(tmp_path)).events

    def rows(number: int):
        return [{**event(n).model_dump(), "at": datetime.now(UTC)} for n in range(number, number + 10)]

    async def main():
        groups, counts = Groups(log), 0
        for first in (0, 30):
            counts += sum(await asyncio.gather(*(groups.add(rows(n)) for n in range(first, first + 30))))
            await settled(groups)
        return counts

    counts = asyncio.run(main())
    found = log.read()
    assert (counts, found.height) == (69, 69)
    assert found["batch"].n_unique() == 2


def test_what_can_not_be_stored_is_not_acknowledged(tmp_path):
    log = EventLog(str(tmp_path)).events

    async def main():
        groups = Groups(log)
        await groups.add([{**event(1).model_dump(), "at": None}])  # which no row may be without

    with pytest.raises(ValueError, match="at is missing"):
        asyncio.run(main())
    log.settle()
    assert log.read().height == 0


def test_nothing_is_taken_while_the_table_can_not_be_written(tmp_path):
    log = EventLog(str(tmp_path)).events
    commits = tmp_path / "events" / "_delta_log"

    async def main():
        groups = Groups(log)
        assert await groups.add([event(1).model_dump() | {"at": datetime.now(UTC)}]) == 1
        commits.rename(tmp_path / "away")
        commits.write_text("no folder")
        await settled(groups)
        with pytest.raises(DamagedError, match="can't be"):
            await groups.add([event(2).model_dump() | {"at": datetime.now(UTC)}])
        commits.unlink()
        (tmp_path / "away").rename(commits)
        await settled(groups)
        assert await groups.add([event(3).model_dump() | {"at": datetime.now(UTC)}]) == 1
        await settled(groups)

    asyncio.run(main())
    assert log.read()["event_id"].to_list() == ["e1", "e3"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"event": "look"}, "event"),
        ({"item_id": ""}, "item_id"),
        ({"request_id": None}, "neither request_id nor query"),
        ({"value": float("inf")}, "isn't finite"),
        ({"position": -1}, "position"),
        ({"position": 2**31}, "position"),
        ({"at": "0001-01-01T00:00:00+14:00"}, "no time from 1970 to 2199"),
        ({"at": "9999-12-31T23:59:59-14:00"}, "no time from 1970 to 2199"),
        ({"colour": "red"}, "colour"),
        ({"event_id": "x" * 201}, "event_id"),
        ({"item_id": None}, "neither item_id nor position"),
        ({"item_id": None, "position": 1, "request_id": None, "query": "q"}, "neither item_id nor position"),
    ],
)
def test_events_that_say_too_little_are_refused(given, says):
    with pytest.raises(ValidationError, match=says):
        event(1, **given)
    model = event(1, item_id=None, position=3)
    assert model.position == 3


def ranked(order: list[int], swap: int | None = None) -> Ranked:
    scores = Scores(np.array([0.5, 2.0, -1.0], np.float32), np.array([0.6, 0.9, 0.2]), tokens=9, truncated=0)
    return Ranked(Version(version="shop/3", fields=("title",)), scores, order, swap)


def shown(folder, kept: Kept, query: str = "Red  Drill", swap: int | None = None):
    request = ScoreRequest(query, ["drill", "red drill", ""], ids=["", "", "i9"])

    async def main():
        own = recording(folder, kept)
        own.impression("r1", "ann", request, ranked([1, 0, 2], swap))
        while own._sender:
            await asyncio.sleep(0.05)
        await own._handle.settled()

    asyncio.run(main())
    return EventLog(str(folder)).impressions.read()


def test_a_ranking_is_kept_as_it_was_shown(tmp_path):
    (row,) = shown(tmp_path, KEPT, swap=1).rows(named=True)
    assert (row["query"], row["model_version"], row["user"]) == ("red drill", "shop/3", user_digest("ann"))
    assert (row["swap"], row["propensity"]) == (1, 0.5)
    assert row["items"] == [
        {"item_id": made_id("red drill"), "text": "red drill", "position": 0, "score": 2.0},
        {"item_id": made_id("drill"), "text": "drill", "position": 1, "score": 0.5},
        {"item_id": "i9", "text": None, "position": 2, "score": -1.0},
    ]
    assert "ann" not in json.dumps(row, default=str)


def test_only_the_best_are_kept_or_none(tmp_path):
    assert len(shown(tmp_path / "two", Kept(2, "keep", ()))["items"][0]) == 2
    assert shown(tmp_path / "none", Kept(0, "keep", ())).height == 0


@pytest.mark.parametrize(
    ("kept", "query", "expected"),
    [
        (KEPT, "ann@example.org drill", ""),
        (Kept(9, "drop", ()), "drill", ""),
        (Kept(9, "keep", ()), "ann@example.org", "ann@example.org"),
    ],
)
def test_queries_are_kept_as_far_as_they_may(tmp_path, kept, query, expected):
    assert shown(tmp_path, kept, query)["query"].to_list() == [expected]


def test_hashed_queries_still_tell_equal_ones(tmp_path):
    first = shown(tmp_path / "a", Kept(9, "hash", ()), "Red drill")["query"][0]
    second = shown(tmp_path / "b", Kept(9, "hash", ()), " red  DRILL ")["query"][0]
    assert first == second
    assert "drill" not in first


def test_a_damaged_table_is_told(tmp_path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "_delta_log").mkdir()
    (tmp_path / "events" / "_delta_log" / f"{0:020}.json").write_text("nonsense")
    with pytest.raises((DamagedError, ValueError), match="events"):
        Recorder(str(tmp_path))
