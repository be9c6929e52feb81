"""A gate that one ranking passes in each turn of the event loop, and how many may be behind it."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LATE = 0.25
"""Seconds after which a ranking should have passed, beside what the quickest of late took: clocks may differ."""
OF_LATE = 60.0
"""Seconds, which are one to two of these."""
CUT, GROWTH, FEW = 0.95, 0.005, 16
"""Share of what is here that may be here where one was late, at least FEW; and what each adds that was in time."""


class Gate:
    """Rankings of this process, of which one is read in each turn of the event loop, in their order.

    To read a request takes long beside what it takes to refuse one. Where many come at once and each is read as it
    comes, the last are looked at when all others were read.

    Where there are more than this process can read, those that are let in wait longer and longer. So there is a limit,
    which is cut where one was late, and grows where it wasn't (Chiu and Jain, 1989).
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False
        """Whether somebody passes in this turn."""
        self._quickest, self._quickest_before, self._renewed = math.inf, math.inf, time.monotonic()
        self.began: float | None = None
        """`time.monotonic` when the first passed. What came before waited for this process to start."""
        self.here = 0
        """Rankings that wait, or passed and weren't answered yet."""
        self.limit = math.inf

    @property
    def waiting(self) -> int:
        """Rankings that haven't passed."""
        return len(self._waiting)

    @property
    def free(self) -> float:
        """How many more may come."""
        return max(0.0, self.limit - self.here)

    @asynccontextmanager
    async def passed(self, waited: float) -> AsyncIterator[None]:
        """Wait for one's turn, which is this one where nobody else's is; it waited for some seconds before."""
        self.here += 1
        came = time.monotonic() - waited
        try:
            await self._enter()
            self._judge(came)
            yield
        finally:
            self.here -= 1

    def _judge(self, came: float) -> None:
        """Set the limit by how long one took to pass, beyond what the quickest of late took."""
        now = time.monotonic()
        self.began = self.began or now
        if came < self.began:
            return
        took = now - came
        if now > self._renewed + OF_LATE:
            self._quickest_before, self._quickest, self._renewed = self._quickest, math.inf, now
        self._quickest = min(self._quickest, took)
        if took - min(self._quickest, self._quickest_before) > LATE:
            self.limit = min(self.limit, max(FEW, CUT * self.here))
        else:
            self.limit = math.inf if self.here < self.limit / 2 else self.limit + GROWTH

    async def _enter(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next)
            return
        future = loop.create_future()
        self._waiting.append(future)
        await future

    def _next(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():  # else its caller went away
                future.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._taken = False
