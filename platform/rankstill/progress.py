"""Progress for people and programs: bars on a terminal, one JSON line an event elsewhere. Both go to stderr."""

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

import orjson
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rankstill.schema import ProgressEvent

QUIET_SECONDS = 5.0
"""Between two JSON lines of one task."""


class Reporter:
    """Shows what a command does. Use as a context manager."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._started: dict[str, float] = {}
        self._said: dict[str, float] = {}
        if self._stream.isatty():
            self._bars = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def event(self, name: str, **fields: Any) -> None:
        """Something happened once."""
        if self._bars:
            details = ", ".join(f"{key} {value}" for key, value in fields.items())
            self._bars.console.print(f"[bold]{escape(name)}[/bold] {escape(details)}", highlight=False)
        else:
            self._line({"event": name, **fields})

    def advance(self, event: ProgressEvent) -> None:
        """A task moved on."""
        now = time.monotonic()
        if event.anew:
            self._started.pop(event.task, None)
            self._done.pop(event.task, None)
        start = self._started.setdefault(event.task, now)
        done = self._done[event.task] = self._done.get(event.task, 0) + event.step
        rate = done / (now - start) if now > start else 0.0
        shown = round(rate, 1) if rate >= 1 else float(f"{rate:.2g}")
        if self._bars:
            note = " ".join([f"{shown:,} {event.unit}/s", *(f"{k} {v}" for k, v in event.fields.items())])
            if event.task not in self._tasks:
                self._tasks[event.task] = self._bars.add_task(event.task, total=event.total, note="")
            self._bars.update(self._tasks[event.task], completed=done, total=event.total, note=note)
            return
        finished = done >= event.total
        if not finished and now - self._said.get(event.task, -QUIET_SECONDS) < QUIET_SECONDS:
            return
        self._said[event.task] = now
        left = round((event.total - done) / rate) if rate else None
        self._line(
            {
                "event": "progress",
                "task": event.task,
                "done": done,
                "total": event.total,
                "unit": event.unit,
                "per_second": shown,
                "seconds_left": left,
                **event.fields,
            }
        )

    def _line(self, fields: dict[str, Any]) -> None:
        self._stream.write(orjson.dumps(fields, default=str).decode() + "\n")
        self._stream.flush()
