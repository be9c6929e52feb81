"""Puts the work of many requests into one order, and computes it in batches of a bounded number of tokens.

What is due first comes first. A request of many texts is cut into pieces, each due a little later than the one before,
so that a giant request neither waits for ever nor keeps small ones waiting. What nobody waits for any more, because its
time is over or its caller went away, is dropped before it is computed.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankstill.cross_encoder import TokenisedPairs, join_pairs, take_pairs

SMOOTHING = 0.2
"""Share of the newest batch in the running rate."""

AT_ONCE = 2
"""Batches under way: one that is computed, and a full one that comes next, for which the executor needn't wait."""

Rows = NDArray[np.int64]


class Overloaded(Exception):  # noqa: N818 (no error of the program's)
    """The queue is so long that a request would not be answered in time; holds the seconds after which to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class TooLate(Exception):  # noqa: N818
    """The time of a request was over before it was computed."""


@dataclass
class Request:
    """What one caller waits for."""

    tokens: TokenisedPairs
    due: float
    """`time.monotonic` at which it is of no use any more."""
    future: asyncio.Future[NDArray[Any]]
    left: int
    """Rows that are still to be computed."""
    found: NDArray[Any] | None = None


@dataclass(order=True)
class Piece:
    """Rows of a request that are computed together."""

    due: float
    number: int
    """Of its submission, so that equals stay in order."""
    request: Request = field(compare=False)
    rows: Rows = field(compare=False)
    size: int = field(compare=False)
    """Tokens."""


class Batcher:
    """Computes rows of tokens, a batch at a time: `compute`, in `executor`, gives an array, a row each."""

    def __init__(
        self,
        compute: Callable[[TokenisedPairs], NDArray[Any]],
        executor: Executor,
        token_budget: int,
        wait: float,
        longest_wait: float,
        rate: float,
    ) -> None:
        """`wait` are the seconds for which an idle batcher waits for more; `rate` is a first guess of tokens a second.

        A request that would wait for more than `longest_wait` seconds for what is due before it is refused.
        """
        self._compute, self._executor, self._budget = compute, executor, token_budget
        self._wait, self._longest_wait, self.rate = wait, longest_wait, rate
        self._heap: list[Piece] = []
        self._numbers = itertools.count()
        self._queued = 0
        self._computing = 0
        self.fill = 0.0
        """Share of the token budget that the last batch used."""
        self._changed = asyncio.Event()
        self._batches: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def ahead(self, due: float) -> float:
        """Seconds that what is being computed, and what is queued and due before, will take."""
        return (sum(piece.size for piece in self._heap if piece.due <= due) + self._computing) / self.rate

    def check(self, due: float) -> None:
        """See whether there is room for a request.

        Raises:
            Overloaded: it would have to wait too long.
        """
        seconds = self.ahead(due)
        if seconds > min(self._longest_wait, due - time.monotonic()):
            raise Overloaded(seconds)

    async def submit(self, tokens: TokenisedPairs, due: float) -> NDArray[Any]:
        """The rows' results, in their order; at least one row.

        Raises:
            Overloaded: they would have to wait too long, or not be done in time.
            TooLate: `due` has passed.
        """
        self.check(due)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        lengths_B = tokens.lengths_B
        own = int(lengths_B.sum()) / self.rate
        if (before := self.ahead(due + own)) and before + own > due - time.monotonic():
            raise Overloaded(before)  # its last pieces would be late, behind those of others
        request = Request(tokens, due, asyncio.get_running_loop().create_future(), left=len(lengths_B))
        turn = due
        for rows in cut(lengths_B, self._budget):
            size = int(lengths_B[rows].sum())
            heapq.heappush(self._heap, Piece(turn, next(self._numbers), request, rows, size))
            self._queued += size
            turn += size / self.rate
        self._changed.set()
        return await request.future

    async def _run(self) -> None:
        while True:
            while not self._may_start():
                self._changed.clear()
                await self._changed.wait()
            if self._wait and not self._batches and self._queued < self._budget:
                await asyncio.sleep(self._wait)
            if pieces := self._take():
                task = asyncio.create_task(self._compute_batch(pieces))
                self._batches.add(task)
                task.add_done_callback(self._done)

    def _may_start(self) -> bool:
        """Whether there is something to compute, and either nothing is being computed or a full batch can come next."""
        waiting = len(self._batches)
        return bool(self._heap) and (not waiting or (waiting < AT_ONCE and self._queued >= self._budget))

    async def _compute_batch(self, pieces: list[Piece]) -> None:
        size = sum(piece.size for piece in pieces)
        self._computing += size
        self.fill = min(1.0, size / self._budget)
        try:
            tokens = join_pairs([take_pairs(piece.request.tokens, piece.rows) for piece in pieces])
            found, seconds = await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, tokens)
        except Exception as error:
            for piece in pieces:
                if not piece.request.future.done():
                    piece.request.future.set_exception(error)
        else:
            self.rate += SMOOTHING * (size / seconds - self.rate)
            self._give(pieces, found)
        finally:
            self._computing -= size

    def _done(self, batch: asyncio.Task[None]) -> None:
        self._batches.discard(batch)
        self._changed.set()

    def _timed(self, tokens: TokenisedPairs) -> tuple[NDArray[Any], float]:
        start = time.monotonic()
        return self._compute(tokens), max(time.monotonic() - start, 1e-6)

    def _take(self) -> list[Piece]:
        """The pieces that come next, of as many tokens as a batch may have (one piece at least)."""
        taken: list[Piece] = []
        left = self._budget
        now = time.monotonic()
        while self._heap and (not taken or self._heap[0].size <= left):
            piece = heapq.heappop(self._heap)
            self._queued -= piece.size
            if piece.request.future.done():  # its caller went away, or another piece of it failed
                continue
            if piece.request.due < now:
                piece.request.future.set_exception(TooLate())
                continue
            taken.append(piece)
            left -= piece.size
        return taken

    @staticmethod
    def _give(pieces: list[Piece], found: NDArray[Any]) -> None:
        start = 0
        for piece in pieces:
            part, request = found[start : start + len(piece.rows)], piece.request
            start += len(piece.rows)
            if request.found is None:
                request.found = np.empty((len(request.tokens.input_ids), *part.shape[1:]), dtype=part.dtype)
            request.found[piece.rows] = part
            request.left -= len(piece.rows)
            if not request.left and not request.future.done():
                request.future.set_result(request.found)


def cut(lengths_B: NDArray[np.int64], token_budget: int) -> list[Rows]:
    """Rows, longest first, in pieces of about the same size, each of `token_budget` tokens and one row at most."""
    order = np.argsort(-lengths_B, kind="stable")
    ends = np.cumsum(lengths_B[order])
    count = max(1, -(-int(ends[-1]) // token_budget))
    target = int(ends[-1]) / count
    places = np.minimum((ends - lengths_B[order]) // target, count - 1)
    return [order[places == place] for place in range(count) if (places == place).any()]
