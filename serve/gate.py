"""A gate that one request passes in each turn of the event loop, so that what comes meanwhile is looked at between."""

import asyncio
import time
from collections import deque


class Gate:
    """Those who wait, in their order.

    To read a request takes long beside what it takes to refuse one. Where many come at once and each is read as it
    comes, the last are looked at when all others were read.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._taken = False
        """Whether somebody passes in this turn."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def wait(self) -> float:
        """Seconds for which the first has waited; 0 where nobody waits."""
        return time.monotonic() - self._waiting[0][0] if self._waiting else 0.0

    async def enter(self) -> None:
        """Wait for one's turn, which is this one where nobody else's is."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next)
            return
        future = loop.create_future()
        self._waiting.append((time.monotonic(), future))
        await future

    def _next(self) -> None:
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():  # else its caller went away
                future.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._taken = False
