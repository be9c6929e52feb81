"""How many requests a version's rankers take at a time, as the ingress learns it from what they refuse."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve.messages import Refusal

CUT, GROWTH = 0.95, 0.005
"""Share of what was under way at a refusal that is sent afterwards; and what every answer adds to it, in requests."""


@dataclass
class Room:
    """Requests that were sent to rankers and not answered yet, and how many of them there may be.

    Rankers take a while to refuse a request, for they have enough to do; the ingress needs none. So it keeps what is
    under way a little below what they refused last, which leaves their queues as full as they may be. (The control of
    congestion by additive increase and multiplicative decrease: Chiu and Jain, 1989.)
    """

    under_way: int = 0
    limit: float = math.inf
    said: Refusal | None = None
    """What was refused last."""

    @property
    def full(self) -> Refusal | None:
        """What rankers would say to another request; None where they would take it."""
        return self.said if self.under_way >= self.limit else None

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

    def answered(self) -> None:
        """Rankers answered a request."""
        eased = self.under_way < self.limit / 2
        self.limit = math.inf if eased else self.limit + GROWTH
