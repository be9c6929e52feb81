"""Which version answers a request: by weight, the same for the same caller, or the one that is asked for."""

import hashlib
import math
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from rankstill.served import Served, Version

WINDOW_SECONDS, FEWEST, WORST = 30.0, 20, 0.2
"""A version is taken out where, within so many seconds, of at least so many requests more than this share failed."""
OUT_SECONDS = 60.0
"""After so long it is tried again."""


class Traffic:
    """Chooses versions, and takes out those that fail."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._outcomes = {one.version: Outcomes() for one in served.versions}
        self._draw = random.Random()  # noqa: S311 (no secret)

    @property
    def champion(self) -> Version:
        """The version that callers get by default."""
        return self.served.champion

    @property
    def names(self) -> list[str]:
        """What callers may ask for."""
        return [self.served.name, self.served.alias, *(one.version for one in self.served.versions)]

    def choose(self, key: str = "") -> Version:
        """A version for a caller: by weighted rendezvous, so that shares are exact, a key sticks to its version, and a
        change of weights moves no more keys than it must (Schindelhauer and Schomaker 2005).
        """
        open_ = [one for one in self.served.versions if one.weight and not self._outcomes[one.version].out]
        if len(open_) < 2:
            return open_[0] if open_ else self.champion
        return max(open_, key=lambda one: one.weight / -math.log(self._unit(key, one.version)))

    def shadows(self, chosen: Version) -> Sequence[Version]:
        """Versions that get a copy of a request that `chosen` answers."""
        return [one for one in self.served.versions if one is not chosen and self._draw.random() < one.shadow]

    def tell(self, version: Version, well: bool) -> None:
        """Note how a request went."""
        self._outcomes[version.version].add(well)

    def taken_out(self, version: Version) -> bool:
        """Whether a version gets no traffic because it failed."""
        return self._outcomes[version.version].out

    def keep(self, before: "Traffic") -> None:
        """Remember what is known of versions that were served before."""
        for name in self._outcomes.keys() & before._outcomes.keys():
            self._outcomes[name] = before._outcomes[name]

    def told(self) -> list[dict[str, Any]]:
        """How things stand, for those who look."""
        return [
            {
                "id": one.version,
                "object": "model",
                "owned_by": "rankstill",
                "names": [self.served.alias] if one is self.champion else [],
                "weight": one.weight,
                "shadow": one.shadow,
                "taken_out": self.taken_out(one),
                "reference": one.reference,
            }
            for one in self.served.versions
        ]

    def _unit(self, key: str, version: str) -> float:
        """A number in (0, 1) of a key and a version; a new one each time where there is no key."""
        if not key:
            return 1.0 - self._draw.random()
        data = hashlib.blake2b(f"{version}\x00{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return (int.from_bytes(data) + 0.5) / 2**64


class Outcomes:
    """How the requests of the last seconds went."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, bool]] = deque()
        self._failed = 0
        self._until = 0.0

    def add(self, well: bool) -> None:
        """One more."""
        now = time.monotonic()
        self._recent.append((now, well))
        self._failed += not well
        while self._recent[0][0] < now - WINDOW_SECONDS:
            self._failed -= not self._recent.popleft()[1]
        if len(self._recent) >= FEWEST and self._failed > WORST * len(self._recent):
            self._until = now + OUT_SECONDS
            self._recent.clear()
            self._failed = 0

    @property
    def out(self) -> bool:
        """Whether too many failed."""
        return time.monotonic() < self._until
