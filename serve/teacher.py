"""A teacher that ranks beside the versions, for those who want to compare; it gets no traffic."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import expit

from rankstill.text import normalise, normalise_query
from serve.messages import Refusal, ScoreRequest, Scores

PIECE = 64
"""Documents that are scored before it is asked again whether anybody still waits."""


class Teacher:
    """Anything that `jobs.evaluate` can load, as a version's rankers answer."""

    def __init__(self, reference: str, root: str) -> None:
        from rankstill.rankers import load_ranker, pick_device  # with torch, which `serve.app` has no use for

        self._ranker = load_ranker(reference, "serve.teacher", Path(root), pick_device("auto"))
        self._computing = ThreadPoolExecutor(1)

    async def ready(self) -> bool:
        """True once it is loaded."""
        return True

    async def score(self, request: ScoreRequest) -> Scores | Refusal:
        """Scores of a request's documents, or why there are none."""
        began = time.monotonic()
        if request.bare:
            return Refusal("unknown", places=request.bare)
        texts = [normalise(text) for text in request.texts]
        pairs = pl.DataFrame({"query": [normalise_query(request.query)] * len(texts), "text": texts})
        parts = []
        for piece in pairs.iter_slices(PIECE):
            if time.monotonic() > began + request.seconds:
                return Refusal("late")
            parts.append(await asyncio.get_running_loop().run_in_executor(self._computing, self._ranker.score, piece))
        logits_N = np.concatenate(parts)
        return Scores(
            logits_N=logits_N.astype(np.float32),
            relevance_N=expit(logits_N),
            tokens=0,
            truncated=0,
            seconds={"forward": time.monotonic() - began},
        )
