"""The replica that holds a student and scores batches of requests."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve

from rankstill.artifacts import load_artifact
from rankstill.cross_encoder import TokenisedPairs, join_pairs
from rankstill.text import normalise, normalise_query


@dataclass(frozen=True)
class ScoreRequest:
    """Documents of one request, as texts."""

    query: str
    texts: list[str]
    max_tokens_per_doc: int | None = None


@dataclass(frozen=True)
class Scores:
    """Answer to a ScoreRequest, in the order of its texts."""

    relevance_N: NDArray[np.float64]
    """In [0, 1]."""
    tokens: int
    truncated: int


@dataclass(frozen=True)
class RankerSettings:
    """What a replica needs to know."""

    folder: str
    """Artifact."""
    runtime: str
    threads: int
    token_budget: int
    batch_requests: int
    batch_wait_ms: float


class Ranker:
    """Loads an artifact, warms up, then scores; requests that arrive together are scored in one pass."""

    def __init__(self, settings: RankerSettings) -> None:
        artifact = load_artifact(Path(settings.folder))
        self._scorer = artifact.scorer(settings.runtime, settings.threads, settings.token_budget)
        # One thread: the forward pass already uses every core that the replica has.
        self._executor = ThreadPoolExecutor(max_workers=1)
        batching: Any = self.score  # the decorator's own methods are not in its type
        batching.set_max_batch_size(settings.batch_requests)
        batching.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)
        self._score_all([ScoreRequest("warm up", ["an item", "an item of a few more words"] * 8)])

    @serve.batch
    async def score(self, requests: list[ScoreRequest]) -> list[Scores]:
        """Scores of each request."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._score_all, requests)

    async def ready(self) -> bool:
        """True once the student is loaded and warm; a replica that isn't can't answer."""
        return True

    def _score_all(self, requests: list[ScoreRequest]) -> list[Scores]:
        parts = [self._tokenise(request) for request in requests]
        logits = self._scorer.score_tokens(join_pairs(parts)).astype(np.float64)
        relevance = 1.0 / (1.0 + np.exp(-logits))
        ends = np.cumsum([len(part.input_ids) for part in parts])
        return [
            Scores(relevance[end - len(part.input_ids) : end], int(part.lengths_B.sum()), int(part.truncated.sum()))
            for part, end in zip(parts, ends, strict=True)
        ]

    def _tokenise(self, request: ScoreRequest) -> TokenisedPairs:
        query = normalise_query(request.query)
        limit = None
        if request.max_tokens_per_doc is not None:
            limit = request.max_tokens_per_doc + self._scorer.overhead(query)
        texts = [normalise(text) for text in request.texts]
        return self._scorer.tokenise([query] * len(texts), texts, limit)
