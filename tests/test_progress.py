import io
import json

import pytest

from rankstill import progress
from rankstill.progress import Reporter
from rankstill.schema import ProgressEvent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move on."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def advance(reporter: Reporter, step: int, total: int = 100, task: str = "label", **fields) -> None:
    reporter.advance(ProgressEvent(task, step, total, "pairs", fields))


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_where_there_is_no_terminal():
    stream = io.StringIO()
    with Reporter(stream) as reporter:
        reporter.event("skipped", step="label", why="it stands\nalready")
    assert lines(stream) == [{"event": "skipped", "step": "label", "why": "it stands\nalready"}]


def test_progress_tells_rate_and_time_left(clock):
    stream = io.StringIO()
    reporter = Reporter(stream)
    advance(reporter, 0)
    clock[0] += 10
    advance(reporter, 20, loss=0.5)
    assert lines(stream)[-1] == {
        "event": "progress",
        "task": "label",
        "done": 20,
        "total": 100,
        "unit": "pairs",
        "per_second": 2.0,
        "seconds_left": 40,
        "loss": 0.5,
    }


def test_what_takes_minutes_has_a_rate(clock):
    stream = io.StringIO()
    reporter = Reporter(stream)
    advance(reporter, 0)
    clock[0] += 160
    advance(reporter, 2)
    assert lines(stream)[-1]["per_second"] == 0.013


def test_progress_is_told_now_and_then_and_at_the_end(clock):
    stream = io.StringIO()
    reporter = Reporter(stream)
    for _ in range(100):
        clock[0] += 0.25
        advance(reporter, 1)
    told = [line["done"] for line in lines(stream)]
    assert told == [1, 21, 41, 61, 81, 100]


def test_tasks_are_counted_apart(clock):
    stream = io.StringIO()
    reporter = Reporter(stream)
    advance(reporter, 5, task="one")
    advance(reporter, 7, task="two")
    clock[0] += 6
    advance(reporter, 5, task="one")
    assert [(line["task"], line["done"]) for line in lines(stream)] == [("one", 5), ("two", 7), ("one", 10)]


def test_a_value_that_json_does_not_know_is_told_as_text(tmp_path):
    stream = io.StringIO()
    Reporter(stream).event("made", folder=tmp_path)
    assert lines(stream) == [{"event": "made", "folder": str(tmp_path)}]


def test_a_terminal_shows_bars_and_no_json():
    stream = Terminal()
    with Reporter(stream) as reporter:
        reporter.event("made", model="shop/1")
        advance(reporter, 40)
        advance(reporter, 60)
    shown = stream.getvalue()
    assert "made" in shown
    assert "model shop/1" in shown
    assert "100/100" in shown
    assert "{" not in shown


def test_marks_of_the_terminal_library_in_a_value_are_shown_as_they_are():
    stream = Terminal()
    with Reporter(stream) as reporter:
        reporter.event("read", path="data[0].jsonl", note="[/] [red]")
    assert "data[0].jsonl" in stream.getvalue()
    assert "[/] [red]" in stream.getvalue()


def test_a_worker_that_takes_over_counts_anew(clock):
    stream = io.StringIO()
    reporter = Reporter(stream)
    advance(reporter, 70)
    reporter.advance(ProgressEvent("label", 0, 50, "pairs", {}, anew=True))
    clock[0] += 10
    advance(reporter, 10, total=50)
    assert (lines(stream)[-1]["done"], lines(stream)[-1]["seconds_left"]) == (10, 40)
