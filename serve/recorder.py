"""The deployment that keeps what was shown and what shoppers did: on disk before it answers."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from rankstill.event_log import EventLog, Log, Row
from serve.watch import Counts, together

WRITE_SECONDS = 0.1
"""Between the beginnings of two writes, for which rows are gathered: a commit takes 20 ms of a core however few."""


class Recorder:
    """Writes the tables of one storage root."""

    def __init__(self, location: str) -> None:
        """Raises what `EventLog` does."""
        log = EventLog(location)
        self._watched: dict[str, Counts] = {}
        self._events, self._impressions = Groups(log.events), Groups(log.impressions)

    async def events(self, rows: Sequence[Row]) -> int:
        """Store events; how many are new. They are on disk when this returns."""
        return await self._events.add(rows)

    async def impressions(self, rows: Sequence[Row]) -> int:
        """Store impressions; how many are new."""
        return await self._impressions.add(rows)

    async def watched(self, ingress: str, counts: Counts) -> None:
        """Take over what an ingress has counted since it started."""
        self._watched[ingress] = counts

    async def seen(self) -> Counts:
        """What all ingresses have counted since this started."""
        return together(self._watched)


class Groups:
    """Writes to one table: those who ask within a moment, or while it writes, are served together by the next write."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._writer, self._compactor = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._waiting: list[tuple[Sequence[Row], asyncio.Future[int]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._next = 0.0

    async def add(self, rows: Sequence[Row]) -> int:
        """Store rows; how many are new."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await future

    async def _write(self) -> None:
        """Write what waits, group after group, until nothing does."""
        while self._waiting:
            await asyncio.sleep(self._next - time.monotonic())
            self._next = time.monotonic() + WRITE_SECONDS
            waiting, self._waiting = self._waiting, []
            rows = [row for rows, _ in waiting for row in rows]
            try:
                new = iter(await asyncio.get_running_loop().run_in_executor(self._writer, self._log.add, rows))
                outcomes: list[int | Exception] = [sum(islice(new, len(rows))) for rows, _ in waiting]
            except Exception as error:  # whatever it is, those who wait must hear of it
                outcomes = [error] * len(waiting)
            for (_, future), outcome in zip(waiting, outcomes, strict=True):
                _settle(future, outcome)
            if self._log.wants_compaction:
                self._compactor.submit(self._log.compact, aside=True)
        self._writing = None


def _settle(future: "asyncio.Future[int]", outcome: int | Exception) -> None:
    if future.done():  # whoever waited for it went away
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
