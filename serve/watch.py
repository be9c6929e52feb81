"""How the rankers of each version do, counted by every ingress and put together by the recorder, for canaries."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from serve.messages import Scores

SEND_SECONDS = 0.5
Counts = dict[str, dict[str, float]]
"""By version: answered, failed and empty requests, sum and sum of squares of their seconds; the same of copies, with
`copy_` before; compared copies, sum and sum of squares of the rank correlations with what callers got."""


class Watch:
    """Counts of one ingress, since it started."""

    def __init__(self, recorder: Callable[[], DeploymentHandle]) -> None:
        """`recorder` gives the deployment that puts them together."""
        self._id, self._recorder = uuid.uuid4().hex, recorder
        self._counts: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._sender: asyncio.Task[None] | None = None

    def answered(self, version: str, seconds: float, scores: Scores, copy: bool = False) -> None:
        """Scores came."""
        kind = "copy_" if copy else ""
        self._add(version, **{f"{kind}answered": 1, f"{kind}seconds": seconds, f"{kind}squares": seconds**2})
        if is_empty(scores):
            self._add(version, **{f"{kind}empty": 1})

    def failed(self, version: str, copy: bool = False) -> None:
        """None came."""
        self._add(version, **{"copy_failed" if copy else "failed": 1})

    def compared(self, version: str, own: Scores, shown: Scores) -> None:
        """A copy was answered as `own`, and the caller got `shown`."""
        if len(own.logits_N) < 3 or is_empty(own) or is_empty(shown):
            return
        value = float(np.corrcoef(_ranks(own.logits_N), _ranks(shown.logits_N))[0, 1])
        self._add(version, compared=1, agreement=value, agreement_squares=value**2)

    def _add(self, version: str, **counts: float) -> None:
        own = self._counts[version]
        for name, value in counts.items():
            own[name] += value
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Tell the recorder, a little later."""
        try:
            await asyncio.sleep(SEND_SECONDS)
        finally:
            self._sender = None
        with suppress(Exception):  # the next one tells these too
            await self._recorder().watched.remote(self._id, {name: dict(one) for name, one in self._counts.items()})

    async def seen(self) -> Counts:
        """What all ingresses counted, together; nothing where the recorder doesn't answer."""
        try:
            return await self._recorder().seen.remote()
        except Exception:  # see asking.py
            return {}


def is_empty(scores: Scores) -> bool:
    """Whether scores tell nothing: several documents, and all scores equal or no numbers."""
    values = scores.logits_N
    return len(values) > 1 and not float(np.ptp(values)) > 0


def _ranks(values_N: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(values_N, kind="stable"))


def together(every: dict[str, Counts]) -> Counts:
    """The sums of all ingresses' counts."""
    found: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for counts in every.values():
        for version, own in counts.items():
            for name, value in own.items():
                found[version][name] += value
    return {version: dict(own) for version, own in found.items()}
