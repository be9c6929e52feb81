"""How many documents a version's rankers take at a time, as the ingress learns it from what they refuse."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve.messages import Refusal

CUT, GROWTH = 0.95, 0.005
"""Share of what was under way at a refusal that is sent afterwards; and what every document answered adds to it."""
CALM = 1.0
"""Seconds with less than half of the limit under way, after which it holds no more."""
EASE = 1.01
"""Factor by which an answer may lengthen the pace; quicker ones shorten it at once."""
FEW = 256
"""Documents that are always sent, whatever wait is foreseen."""
SMOOTHING = 0.1
"""Share of the newest request in the average."""
PIECE = 100
"""Documents of a request that others may wait for: rankers cut it into pieces, whose later ones come behind others."""


@dataclass
class Room:
    """Documents that were sent to rankers and not answered yet, at most PIECE of a request, and how many may be.

    Rankers take a while to refuse a request, for they have enough to do; the ingress needs none. So it keeps what is
    under way a little below what they refused last, which leaves their queues as full as they may be. (The control of
    congestion by additive increase and multiplicative decrease: Chiu and Jain, 1989.) What it has to learn, the first
    of a rush would wait for; they are told by the pace of the answers before, which is rougher.
    """

    longest_wait: float
    """Seconds for which a request may wait in a ranker's queue."""
    under_way: int = 0
    limit: float = math.inf
    said: Refusal | None = None
    """What was refused last."""
    busy: float = 0.0
    """`time.monotonic` when something was refused last, or half of the limit was under way."""
    usual: float = 0.0
    """Documents of a request, on average of late."""
    pace: float = 0.0
    """Seconds for which a document keeps the rankers busy, at the least of late; 0 is unknown."""

    def full(self, waiting: int = 0) -> Refusal | None:
        """What rankers would say to another request, after some that wait to be sent; None where they would take it."""
        before = self.under_way + waiting * self.usual
        if before >= self.limit:
            return self.said
        seconds = before * self.pace
        return Refusal("overloaded", seconds) if before >= FEW and seconds > self.longest_wait else None

    def free(self, waiting: int) -> float:
        """Requests like those of late that may come after some that wait; infinite where nothing is known."""
        foreseen = max(FEW, self.longest_wait / self.pace) if self.pace else math.inf
        left = min(self.limit, foreseen) - self.under_way
        return max(0.0, left / self.usual - waiting) if self.usual else math.inf

    @contextmanager
    def send(self, documents: int) -> Iterator[int]:
        """Count a request as under way; gives how many documents were before it."""
        ahead, own = self.under_way, min(documents, PIECE)
        self.usual += (SMOOTHING if self.usual else 1) * (own - self.usual)
        self.under_way += own
        try:
            yield ahead
        finally:
            self.under_way -= own

    def refused(self, ahead: int, said: Refusal) -> None:
        """Rankers refused a request behind so many documents."""
        self.limit, self.said = min(self.limit, max(1.0, CUT * ahead)), said
        self.busy = time.monotonic()

    def answered(self, ahead: int, documents: int, seconds: float, busy: float) -> None:
        """Rankers answered a request behind so many documents after `seconds`, and it kept one of them `busy` for some.

        What one is busy for is too much where there are several, and what it took is where nobody was before it.
        """
        pace = min(seconds / (ahead + documents), busy / documents)
        self.pace = min(pace, EASE * self.pace) if self.pace else pace
        now = time.monotonic()
        if self.under_way >= self.limit / 2:
            self.busy = now
        self.limit = math.inf if now > self.busy + CALM else self.limit + GROWTH * min(documents, PIECE)
