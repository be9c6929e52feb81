"""How many requests a version's rankers take at a time, as the ingress learns it from what they refuse."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve.messages import Refusal

CUT, GROWTH = 0.95, 0.005
"""Share of what was under way at a refusal that is sent afterwards; and what every answer adds to it, in requests."""
EASE = 1.01
"""Factor by which an answer may lengthen the pace; quicker ones shorten it at once."""
SLACK, FEW = 1.5, 16
"""How many times the longest wait may be foreseen before rankers needn't be asked; requests that are always sent."""


@dataclass
class Room:
    """Requests that were sent to rankers and not answered yet, and how many of them there may be.

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
    pace: float = 0.0
    """Seconds that each request under way made the next one wait, where that was least of late; 0 is unknown."""

    @property
    def full(self) -> Refusal | None:
        """What rankers would say to another request; None where they would take it."""
        if self.under_way >= self.limit:
            return self.said
        seconds = self.under_way * self.pace
        return Refusal("overloaded", seconds) if self.under_way >= FEW and seconds > SLACK * self.longest_wait else None

    @contextmanager
    def send(self) -> Iterator[int]:
        """Count a request as under way; gives how many were before it."""
        ahead = self.under_way
        self.under_way += 1
        try:
            yield ahead
        finally:
            self.under_way -= 1

    def refused(self, ahead: int, said: Refusal) -> None:
        """Rankers refused a request behind so many others."""
        self.limit, self.said = min(self.limit, max(1.0, CUT * ahead)), said

    def answered(self, ahead: int, seconds: float) -> None:
        """Rankers answered a request behind so many others, after so many seconds."""
        pace = seconds / (ahead + 1)
        self.pace = min(pace, EASE * self.pace) if self.pace else pace
        eased = self.under_way < self.limit / 2
        self.limit = math.inf if eased else self.limit + GROWTH
