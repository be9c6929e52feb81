"""The deployment of a version, in a module of its own: the model and all that it imports are loaded in idle time."""

import gc
from dataclasses import dataclass

from rankstill.priority import RANKER, come_first, in_idle_time
from serve.messages import GREETING, Refusal, ScoreRequest, Scores

WARM_UP = 5
"""Requests that a replica answers before it is ready."""


@dataclass(frozen=True)
class RankerSettings:
    """What a replica needs to know."""

    folder: str
    """Artifact."""
    runtime: str
    threads: int
    token_budget: int
    batch_wait_ms: float
    max_wait_ms: float
    cache_bytes: int = 0
    index: str = ""
    """Folder of an item index."""


class Replica:
    """Loads a student without disturbing those that answer, and then is its ranker, and comes first itself."""

    async def __init__(self, settings: RankerSettings) -> None:
        with in_idle_time():
            from serve.ranker import Ranker

            self._ranker = Ranker(settings)
            for _ in range(WARM_UP):
                await self._ranker.score(GREETING)
            gc.freeze()  # what was imported stays, and collections needn't look at it while requests wait
        come_first(RANKER)

    async def ready(self) -> bool:
        """True once the student is loaded and warm; a replica that isn't can't answer."""
        return True

    async def score(self, request: ScoreRequest) -> Scores | Refusal:
        """Scores of a request's documents, or why there are none."""
        return await self._ranker.score(request)
