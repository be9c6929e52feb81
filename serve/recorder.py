"""The deployment that keeps what was shown and what shoppers did: on disk before it answers."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rankstill.event_log import EventLog, Log, Row
from serve.watch import Counts, together


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
    """Writes to one table: those who ask while it writes are served together by the next write."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._writer, self._compactor = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._waiting: list[tuple[Sequence[Row], asyncio.Future[int]]] = []

    async def add(self, rows: Sequence[Row]) -> int:
        """Store rows; how many are new."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._waiting.append((rows, future))
        await loop.run_in_executor(self._writer, self._write_all, loop)
        return await future

    def _write_all(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write what waits; whoever comes later may find it written already."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            new = iter(self._log.add([row for rows, _ in waiting for row in rows]))
            counts = [sum(next(new) for _ in rows) for rows, _ in waiting]
        except Exception as error:  # whatever it is, those who wait must hear of it
            for _, future in waiting:
                loop.call_soon_threadsafe(_settle, future, error)
            return
        for (_, future), count in zip(waiting, counts, strict=True):
            loop.call_soon_threadsafe(_settle, future, count)
        if self._log.wants_compaction:
            self._compactor.submit(self._log.compact)


def _settle(future: "asyncio.Future[int]", outcome: int | Exception) -> None:
    if future.done():  # whoever waited for it went away
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
