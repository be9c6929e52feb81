"""Events of shoppers, kept in SQLite until they are learnt from: on disk before they are acknowledged, each once."""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from serve.api import Event

BUSY_SECONDS = 30.0


class FeedbackStore:
    """Events of one storage root; those that arrive together are written together."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._writer = ThreadPoolExecutor(1)
        self._waiting: list[tuple[Sequence[Event], asyncio.Future[int]]] = []
        self._database: sqlite3.Connection | None = None

    async def store(self, events: Sequence[Event]) -> int:
        """Store events; returns how many of them are new. They are on disk when this returns."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._waiting.append((events, future))
        await loop.run_in_executor(self._writer, self._write_all, loop)
        return await future

    def _write_all(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write what waits, in one transaction; whoever comes later may find it written already."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            database = self._open()
            with database:
                new = [sum(self._insert(database, event) for event in events) for events, _ in waiting]
        except sqlite3.Error as error:
            for _, future in waiting:
                loop.call_soon_threadsafe(_settle, future, error)
        else:
            for (_, future), count in zip(waiting, new, strict=True):
                loop.call_soon_threadsafe(_settle, future, count)

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level="IMMEDIATE")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS events (event_id TEXT PRIMARY KEY, at TEXT, told TEXT) WITHOUT ROWID"
            )
        return self._database

    @staticmethod
    def _insert(database: sqlite3.Connection, event: Event) -> int:
        told = event.model_dump(mode="json", exclude={"event_id"}, exclude_none=True)
        at = (event.at or datetime.now(UTC)).isoformat()
        row = (event.event_id, at, json.dumps(told))
        return database.execute("INSERT OR IGNORE INTO events VALUES (?, ?, ?)", row).rowcount


def _settle(future: "asyncio.Future[int]", outcome: int | Exception) -> None:
    if future.done():  # whoever waited for it went away
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
