import multiprocessing
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from rankstill.errors import ConfigError, DamagedError
from rankstill.event_log import PROPERTIES, EventLog
from rankstill.text import user_digest

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def today(monkeypatch):
    """What is stored stays within the days in which it is known."""
    monkeypatch.setattr("rankstill.event_log.KNOWN_DAYS", 10_000)


def event(number: object, **given):
    return {"event_id": f"e{number}", "event": "click", "item_id": "a", "request_id": "r1", "at": NOW, **given}


def impression(request: str, *items: str, at: datetime = NOW, **given):
    shown = [{"item_id": item, "text": item.upper(), "position": n, "score": -float(n)} for n, item in enumerate(items)]
    row = {"request_id": request, "query": "drill", "model_version": "shop/1", "at": at, "items": shown}
    return {**row, "user": None, "swap": None, "propensity": 1.0, **given}


def ids(log: EventLog, after: int = -1) -> list[str]:
    return log.events.read(after)["event_id"].to_list()


def test_an_event_is_stored_once(tmp_path):
    log = EventLog(str(tmp_path))
    assert log.events.add([event(1), event(2), event(1)], NOW) == [True, True, False]
    assert log.events.add([event(2), event(3)], NOW) == [False, True]
    assert log.events.add([event(3)], NOW) == [False]
    assert ids(log) == ["e1", "e2", "e3"]
    assert EventLog(str(tmp_path)).events.add([event(1), event(4)], NOW) == [False, True]


def test_two_writers_double_nothing_and_number_their_groups(tmp_path):
    one, other = EventLog(str(tmp_path)), EventLog(str(tmp_path))
    assert one.events.add([event(1)], NOW) == [True]
    assert other.events.add([event(1), event(2)], NOW) == [False, True]
    assert one.events.add([event(2), event(3)], NOW) == [False, True]
    rows = one.events.read()
    assert rows.select("event_id", "batch").rows() == [("e1", 0), ("e2", 1), ("e3", 2)]
    assert ids(other, after=0) == ["e2", "e3"]


def test_what_is_kept_comes_into_the_table_once(tmp_path):
    log = EventLog(str(tmp_path)).events
    assert log.keep([event(1), event(2), event(1)], NOW) == [True, True, False]
    assert log.keep([event(2), event(3, value=0.5)], NOW + timedelta(seconds=1)) == [False, True]
    assert log.read().height == 0
    log.settle()
    assert log.keep([event(3), event(4)], NOW) == [False, True]
    log.settle()
    rows = log.read().select("event_id", "value", "received", "batch").rows()
    later = NOW + timedelta(seconds=1)
    assert rows == [("e1", None, NOW, 0), ("e2", None, NOW, 0), ("e3", 0.5, later, 0), ("e4", None, NOW, 1)]
    log.settle()
    assert log.last() == 1


def test_what_a_writer_kept_outlives_it_and_nobody_else_takes_it_before(tmp_path):
    one = EventLog(str(tmp_path))
    one.events.keep([event(1), event(2)], NOW)
    one.events.keep([event(3)], NOW)
    one.impressions.keep([impression("r1", "a", "b")], NOW)
    other = EventLog(str(tmp_path))
    assert (ids(other), other.shown().height) == ([], 0)
    assert other.events.add([event(1)], NOW) == [True]  # sent again to another writer
    for log in (one.events, one.impressions):
        log._journal.close()  # as the system does for those who die
    (file,) = (tmp_path / "events" / "_journal").iterdir()
    file.write_bytes(file.read_bytes()[:-20])  # e3, which was being written
    last = EventLog(str(tmp_path))
    assert (ids(last), last.shown()["item_id"].to_list()) == (["e1", "e2"], ["a", "b"])
    assert DeltaTable(tmp_path / "events").to_pyarrow_table().num_rows == 2
    assert not list((tmp_path / "events" / "_journal").iterdir())


def test_a_row_that_no_table_takes_is_not_kept(tmp_path):
    log = EventLog(str(tmp_path)).events
    with pytest.raises(ValueError, match="at is missing"):
        log.keep([event(1), event(2, at=None)], NOW)
    with pytest.raises(OverflowError):  # Arrow can hold it, and Python can't read it back
        log.keep([event(1), event(2, at=datetime.fromisoformat("0001-01-01T00:00:00+14:00"))], NOW)
    assert log.keep([event(1)], NOW) == [True]
    log.settle()
    assert log.read()["event_id"].to_list() == ["e1"]


def test_days_that_are_long_gone_are_not_remembered(tmp_path, monkeypatch):
    log = EventLog(str(tmp_path)).events
    log.add([event(1)], NOW)
    monkeypatch.setattr("rankstill.event_log.KNOWN_DAYS", 1)
    now = datetime.now(UTC)
    assert log.add([event(1), event(2)], now) == [False, True]  # known until now
    assert log._known.keys() == {now.date().isoformat()}
    assert log.add([event(1), event(2)], now) == [True, False]
    assert log.read()["event_id"].to_list() == ["e1", "e2"]


@pytest.mark.parametrize("aside", [False, True])
def test_merging_changes_no_rows(tmp_path, aside):
    log = EventLog(str(tmp_path))
    for number in range(12):
        log.events.add([event(number, value=number / 2, position=number)], NOW)
    before = log.events.read()
    log.events.compact(aside)
    assert len(log.events._table.file_uris()) == 1
    assert log.events.add([event(3), event(99)], NOW) == [False, True]
    assert log.events.read().head(12).equals(before)
    (_, *paths) = sorted(path.name for path in (tmp_path / "events").iterdir())
    assert paths == ["day=2026-11-20"]


def test_a_writer_whose_commits_were_cleaned_away_doubles_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(PROPERTIES, "delta.logRetentionDuration", "interval 0 seconds")
    one, behind, reader = (EventLog(str(tmp_path)).events for _ in range(3))
    for number in range(3):
        one.add([event(number)], NOW)
    one.compact()
    assert len(list((tmp_path / "events" / "_delta_log").glob("*.json"))) == 1
    assert behind.add([event(2), event(3)], NOW) == [False, True]
    assert one.add([event(3), event(4)], NOW) == [False, True]
    assert reader.read()["event_id"].to_list() == ["e0", "e1", "e2", "e3", "e4"]


def test_many_groups_ask_to_be_merged(tmp_path, monkeypatch):
    monkeypatch.setattr("rankstill.event_log.COMPACT_COMMITS", 3)
    log = EventLog(str(tmp_path)).events
    wants = []
    for number in range(4):
        log.add([event(number)], NOW)
        wants.append(log.wants_compaction)
    assert wants == [False, False, True, True]
    log.compact()
    assert not log.wants_compaction


def test_a_shopper_and_old_days_are_forgotten(tmp_path):
    log = EventLog(str(tmp_path))
    log.events.add([event(1, user=user_digest("ann")), event(2, user=user_digest("bob"))], NOW - timedelta(days=40))
    log.events.add([event(3, user=user_digest("ann")), event(4)], NOW)
    assert log.events.delete(user=user_digest("ann")) == 2
    assert ids(log) == ["e2", "e4"]
    assert log.events.delete(before="2026-11-01") == 1
    assert ids(log) == ["e4"]


def test_what_is_no_table_is_told(tmp_path):
    (tmp_path / "events").write_text("a file")
    with pytest.raises(ConfigError, match="can't hold a Delta table"):
        EventLog(str(tmp_path))


def test_a_table_that_was_damaged_is_told(tmp_path):
    log = EventLog(str(tmp_path))
    log.events.add([event(1)], NOW)
    for path in tmp_path.rglob("*.parquet"):
        path.write_bytes(b"nonsense")
    with pytest.raises(DamagedError, match="can't be read"):
        log.events.read()


def test_shown_items_know_what_was_done_with_them(tmp_path):
    log = EventLog(str(tmp_path))
    hour = timedelta(hours=1)
    log.impressions.add(
        [impression("r1", "a", "b", "c"), impression("r2", "b", "a", at=NOW + hour, swap=0, propensity=0.5)], NOW
    )
    log.events.add(
        [
            event(1, item_id="b"),
            event(2, item_id="b", event="purchase"),
            event(3, item_id="a", event="reject"),
            event(4, item_id=None, position=2),  # an item without an id, by its place
            event(5, request_id=None, query="drill", at=NOW + 2 * hour),  # a: in r2, the later of both
            event(6, request_id=None, query="saw", at=NOW + 2 * hour),  # never shown
            event(7, request_id=None, query="drill", item_id="b", at=NOW - hour),  # before all was shown
            event(8, request_id="r9"),
        ],
        NOW,
    )
    found = log.shown()
    assert found.select("request_id", "item_id", "position", "gain", "clicked").rows() == [
        ("r1", "a", 0, 0, False),
        ("r1", "b", 1, 3, True),
        ("r1", "c", 2, 1, True),
        ("r2", "b", 0, 0, False),
        ("r2", "a", 1, 1, True),
    ]
    assert found.select("swap", "propensity", "text", "score").rows()[3:] == [(0, 0.5, "B", 0.0), (0, 0.5, "A", -1.0)]
    assert log.shown(after=0).height == 0


def test_a_request_that_is_told_twice_counts_once(tmp_path):
    log = EventLog(str(tmp_path))
    log.impressions.add([impression("r1", "a", "b")], NOW)
    log.impressions.add([impression("r1", "b", "a")], NOW)
    assert log.shown()["item_id"].to_list() == ["a", "b"]


def write_until_killed(folder: str, acknowledged: str) -> None:
    log = EventLog(folder)
    with Path(acknowledged).open("a") as file:
        for number in range(100_000):
            rows = [event(f"{os.getpid()}-{number}-{n}") for n in range(5)]
            (log.events.add if number % 2 else log.events.keep)(rows)
            if number % 5 == 0:
                log.events.settle()
            if number % 7 == 0:
                log.events.compact()
            file.writelines(f"{row['event_id']}\n" for row in rows)
            file.flush()


def test_a_killed_writer_loses_and_doubles_nothing(tmp_path):
    acknowledged = tmp_path / "acknowledged"
    for kill in range(4):
        writer = multiprocessing.get_context("spawn").Process(
            target=write_until_killed, args=(str(tmp_path / "log"), str(acknowledged))
        )
        writer.start()
        lines = len(acknowledged.read_text().splitlines()) if acknowledged.exists() else 0
        while not acknowledged.exists() or len(acknowledged.read_text().splitlines()) < lines + 10:
            assert writer.is_alive()
            time.sleep(0.01)
        time.sleep(0.03 * kill)
        assert writer.pid
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    EventLog(str(tmp_path / "log"))  # takes over what was kept
    table = DeltaTable(tmp_path / "log" / "events").to_pyarrow_table()
    found, told = table["event_id"].to_pylist(), acknowledged.read_text().splitlines()
    assert len(found) == len(set(found))
    assert set(told) <= set(found)
    assert len(set(found) - set(told)) <= 4 * 5  # what was stored, but not yet told
