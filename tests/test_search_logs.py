from datetime import UTC, datetime

import pytest
from builders import write_jsonl

from rankstill.errors import DataError
from rankstill.search_logs import read_flat, read_ubi
from rankstill.text import user_digest

NOW = datetime(2026, 11, 20, tzinfo=UTC)
COLUMNS = {"request_id": "session"}


def flat(folder, *rows, columns=COLUMNS):
    return read_flat(str(write_jsonl(folder / "log.jsonl", rows)), columns, NOW)


def row(session: str, position: object, item: str, clicked: object = False, **given):
    return {
        "session": session,
        "query": " Red  Drill",
        "position": position,
        "item_id": item,
        "clicked": clicked,
        **given,
    }


def test_rows_become_impressions_and_clicks(tmp_path):
    found = flat(
        tmp_path,
        row("s1", 2, "c", at="2026-11-01T10:00:00+01:00", user="ann"),
        row("s2", 0, "a", clicked="1", at=1_760_000_000),
        row("s1", 0, "a", clicked=True, at="2026-11-01T10:00:00", user="ann"),
    )
    first, second = found.impressions
    assert (first["request_id"], first["query"], first["model_version"]) == ("s1", "red drill", "imported")
    assert [(item["item_id"], item["position"]) for item in first["items"]] == [("a", 0), ("c", 2)]
    assert (first["at"], first["user"]) == (datetime(2026, 11, 1, 9, tzinfo=UTC), user_digest("ann"))
    assert second["at"] == datetime.fromtimestamp(1_760_000_000, UTC)
    assert [(one["request_id"], one["item_id"], one["event"]) for one in found.events] == [
        ("s2", "a", "click"),
        ("s1", "a", "click"),
    ]
    assert (found.rows, found.bad) == (3, [])


def test_the_same_log_gives_the_same_events(tmp_path):
    rows = [row("s1", 0, "a", clicked=1), row("s1", 1, "b", clicked=1), row("s2", 0, "a", clicked=1)]
    first, second = flat(tmp_path, *rows).events, flat(tmp_path, *reversed(rows)).events
    assert {one["event_id"] for one in first} == {one["event_id"] for one in second}
    assert len({one["event_id"] for one in first}) == 3


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("s1", -1, "a"), "position is -1, no whole number from 0"),
        (row("s1", "first", "a"), "position is 'first'"),
        (row("s1", 0, "a", clicked="maybe"), "clicked is 'maybe', neither 1 nor 0"),
        (row("", 0, "a"), "session is missing"),
        (row("s1", 0, "a", at="yesterday"), "time is 'yesterday', neither ISO 8601"),
        (row("s1", 0, "a", at=1e300), "time is 1e"),
        (row("s1", 0, "a", at="0001-01-01T00:00:00+14:00"), "time is '0001-01-01T00:00:00+14:00'"),
        (row("s1", 0, "a", at=True), "time is True"),
        (row("s1", 3_000_000_000, "a"), "position is 3000000000"),
        (row("s1", 1e30, "a"), "position is 1e+30"),
    ],
)
def test_rows_that_can_not_be_used_are_told(tmp_path, bad, says):
    found = flat(tmp_path, row("s0", 0, "a"), bad)
    assert [one["request_id"] for one in found.impressions] == ["s0"]
    assert found.bad[0].startswith("log.jsonl:2: ")
    assert says in found.bad[0]
    found.require_good(0.5)
    with pytest.raises(DataError, match=r"1 of 2 rows can't be used, the first is log\.jsonl:2: .*--columns"):
        found.require_good(0.1)


def test_a_column_that_is_not_ours_is_told(tmp_path):
    with pytest.raises(DataError, match="--columns: 'session' is none of request_id"):
        flat(tmp_path, row("s1", 0, "a"), columns={"session": "request_id"})


def test_a_log_without_a_good_row_is_told(tmp_path):
    with pytest.raises(DataError, match="1 of 1 rows"):
        flat(tmp_path, row("s1", 0, "a"), columns={}).require_good(1.0)


def test_user_behaviour_insights(tmp_path):
    queries = write_jsonl(
        tmp_path / "queries.jsonl",
        [
            {"query_id": "q1", "user_query": "Drill", "client_id": "ann", "timestamp": "2026-11-01T10:00:00Z",
             "query_response_hit_ids": ["a", "b"]},
            {"query_id": "q2", "user_query": "saw", "query_response_hit_ids": []},
        ],
    )  # fmt: skip
    object_ = {"object": {"object_id": "b"}}
    events = write_jsonl(
        tmp_path / "events.jsonl",
        [
            {"query_id": "q1", "action_name": "item_click", "event_attributes": object_},
            {"query_id": "q1", "action_name": "purchase", "event_attributes": object_},
            {"query_id": "q1", "action_name": "mouse_move"},
            {"query_id": "q9", "action_name": "click", "event_attributes": object_},
            {"query_id": "q1", "action_name": "click", "event_attributes": {"object": "b"}},
            {"query_id": "q1", "action_name": "click", "event_attributes": [object_]},
        ],
    )
    found = read_ubi(str(queries), str(events), NOW)
    (one,) = found.impressions
    assert (one["query"], one["user"], one["at"].day) == ("drill", user_digest("ann"), 1)
    assert [(item["item_id"], item["position"]) for item in one["items"]] == [("a", 0), ("b", 1)]
    assert [(event["event"], event["item_id"]) for event in found.events] == [("click", "b"), ("purchase", "b")]
    assert [line.partition(": ")[0] for line in found.bad] == [
        "queries.jsonl:2",
        "events.jsonl:4",
        "events.jsonl:5",
        "events.jsonl:6",
    ]
