"""The deployment that keeps what was shown and what shoppers did: on disk before it answers."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from rankstill.event_log import EventLog, Log, Row
from serve.watch import Counts, together

Result = TypeVar("Result")

GATHER_SECONDS = 0.01
"""For so long rows are gathered for a write to the disk, which takes about as long however few they are."""
SETTLE_SECONDS = 0.5
"""After so long what was written is committed to the table, which takes 20 ms of a core however few rows there are."""


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
        self._settling: asyncio.Task[None] | None = None
        self._trouble: Exception | None = None
        """Why what was written can't be had in the table; until it can, nothing is taken."""

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
            await asyncio.sleep(GATHER_SECONDS)
            waiting, self._waiting = self._waiting, []
            rows = [row for rows, _ in waiting for row in rows]
            try:
                new = iter(await self._in_turn(self._keep, rows))
                outcomes: list[int | Exception] = [sum(islice(new, len(rows))) for rows, _ in waiting]
            except Exception as error:  # whatever it is, those who wait must hear of it
                outcomes = [error] * len(waiting)
            for (_, future), outcome in zip(waiting, outcomes, strict=True):
                _answer(future, outcome)
            if self._settling is None:
                self._settling = asyncio.create_task(self._settle())
        self._writing = None

    def _keep(self, rows: Sequence[Row]) -> list[bool]:
        if self._trouble:
            raise self._trouble
        return self._log.keep(rows)

    async def _settle(self) -> None:
        """A little later, have in the table what was written, until all is."""
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            self._trouble = None
            try:
                await self._in_turn(self._log.settle)
            except Exception as error:  # which those who come next hear of
                self._trouble = error
            if self._log.wants_compaction:
                self._compactor.submit(self._log.compact, aside=True)
            if not self._log.unsettled:
                break
        self._settling = None

    async def _in_turn(self, write: Callable[..., Result], *given: Any) -> Result:
        """One write after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, write, *given)


def _answer(future: "asyncio.Future[int]", outcome: int | Exception) -> None:
    if future.done():  # whoever waited for it went away
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
