"""What a replica holds: a student, which tokenises, computes in batches across requests, and answers.

Cross-encoders compute pairs. Students of two towers encode items, which an index or a cache may know already, and
queries, and compare them.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from rankstill.artifacts import WEIGHTS, Artifact, load_artifact
from rankstill.cross_encoder import TokenisedPairs
from rankstill.item_index import MANIFEST, ItemEncoder, ItemIndex, open_index
from rankstill.scoring import PairScorer
from rankstill.text import digest, normalise, normalise_query
from rankstill.vector_cache import VectorCache
from serve.batcher import Batcher, Overloaded, TooLate
from serve.messages import Refusal, ScoreRequest, Scores
from serve.replica import RankerSettings

TOKENISERS = 2
"""Threads that tokenise; what they take is the interpreter's, not a core's."""
WARM_UP_WORDS = (40, 20, 10, 1, 4)
"""Lengths of the items that a replica scores before it is ready; the last tells its rate."""
WARM_UP_QUERIES = (1, 2, 3, 4, 5, 6, 7, 8, 3)
"""Lengths of the queries that it encodes; likewise."""
INDEX_SECONDS = 1.0
"""How often a replica looks whether the item index has changed."""

Floats = NDArray[np.float32]


class Ranker:
    """Loads an artifact, warms up, then scores."""

    def __init__(self, settings: RankerSettings) -> None:
        artifact = load_artifact(Path(settings.folder))
        runtime = artifact.resolve(settings.runtime)
        # One thread computes: the forward pass already uses every core that the replica has.
        self._computing, self._tokenising = ThreadPoolExecutor(1), ThreadPoolExecutor(TOKENISERS)
        if artifact.family != "cross" and runtime == "torch":
            student: Student = TowerStudent(artifact, settings)
        else:
            student = PairStudent(artifact.scorer(settings.runtime, settings.threads, settings.token_budget))
        self._student = student
        self._scale, self._offset = artifact.calibration
        texts = [[f"item {'of more words ' * words}"] * 16 for words in WARM_UP_WORDS]
        of_items = list(self._tokenising.map(student.tokenise, ["warm up"] * len(texts), texts))
        self._batcher = self._make_batcher(student.compute, of_items, settings, settings.batch_wait_ms / 1000)
        self._queries: Batcher | None = None
        if isinstance(student, TowerStudent):
            of_queries = [student.tokenise("", ["word " * words]) for words in WARM_UP_QUERIES]
            self._queries = self._make_batcher(student.encode, of_queries, settings, wait=0.0)

    def _make_batcher(
        self,
        compute: Callable[[TokenisedPairs], Floats],
        batches: Sequence[TokenisedPairs],
        settings: RankerSettings,
        wait: float,
    ) -> Batcher:
        """One that has computed `batches`, for runtimes are slow with shapes, and in threads, that are new to them."""
        for tokens in batches:
            self._computing.submit(compute, tokens).result()
        start, tokens = time.monotonic(), batches[-1]
        self._computing.submit(compute, tokens).result()
        rate = int(tokens.lengths_B.sum()) / (time.monotonic() - start)
        budget, longest = settings.token_budget, settings.max_wait_ms / 1000
        return Batcher(compute, self._computing, budget, wait, longest, rate)

    async def score(self, request: ScoreRequest) -> Scores | Refusal:
        """Scores of a request's documents, or why there are none."""
        began = time.monotonic()
        due = began + request.seconds
        loop = asyncio.get_running_loop()
        student = self._student
        try:
            for batcher in filter(None, (self._batcher, self._queries)):
                batcher.check(due)  # before anything is spent on it
            work = await loop.run_in_executor(self._tokenising, student.prepare, request)
            prepared = time.monotonic()
            if work.unknown:
                return Refusal("unknown", places=work.unknown)
            found = await self._batcher.submit(work.tokens, due) if work.tokens.input_ids else None
            query = await self._queries.submit(work.query, due) if self._queries and work.query else None
        except Overloaded as full:
            return Refusal("overloaded", full.seconds)
        except TooLate:
            return Refusal("late")
        computed = time.monotonic()
        logits_N = await student.finish(work, found, query)
        seconds = {"tokenise": prepared - began, "forward": computed - prepared, "answer": time.monotonic() - computed}
        return Scores(
            logits_N=logits_N,
            relevance_N=expit(self._scale * logits_N.astype(np.float64) + self._offset),
            tokens=int(work.tokens.lengths_B.sum()),
            truncated=int(work.tokens.truncated.sum()),
            known=len(request.texts) - len(work.places),
            seconds=seconds,
            fill=self._batcher.fill,
            busy=int(work.tokens.lengths_B.sum()) / self._batcher.rate,
        )


@dataclass(frozen=True)
class Work:
    """What a request asks of a student."""

    places: list[int]
    """Documents that are to be computed."""
    tokens: TokenisedPairs
    """Theirs."""
    query: TokenisedPairs | None = None
    """Of the query, where that is encoded by itself."""
    vectors: list[Floats | None] = field(default_factory=list)
    """Of each document, where they are known."""
    keys: list[str] = field(default_factory=list)
    """Under which the cache keeps those that are to be computed."""
    unknown: tuple[int, ...] = ()


class Student(ABC):
    """A student as replicas use it: `prepare` and `finish` are a request's, `compute` is a batch's."""

    @abstractmethod
    def tokenise(self, query: str, texts: list[str], limit: int | None = None) -> TokenisedPairs:
        """Tokens of normalised texts."""

    @abstractmethod
    def compute(self, tokens: TokenisedPairs) -> NDArray[np.float32]:
        """What each row of tokens comes to."""

    @abstractmethod
    async def finish(self, work: Work, found: Floats | None, query: Floats | None) -> Floats:
        """Logits of all documents, from what was computed of them and of the query."""

    def prepare(self, request: ScoreRequest) -> Work:
        """What is to be computed."""
        query, texts = normalise_query(request.query), [normalise(text) for text in request.texts]
        tokens = self.tokenise(query, texts, request.max_tokens_per_doc)
        return Work(list(range(len(texts))), tokens, unknown=request.bare)


class PairStudent(Student):
    """Query and document go through the model together."""

    def __init__(self, scorer: PairScorer) -> None:
        self._scorer = scorer

    def tokenise(self, query: str, texts: list[str], limit: int | None = None) -> TokenisedPairs:
        """Tokens of pairs, of which `limit` may be the document's."""
        most = None if limit is None else limit + self._scorer.overhead(query)
        return self._scorer.tokenise([query] * len(texts), texts, most)

    def compute(self, tokens: TokenisedPairs) -> NDArray[np.float32]:
        """Logits."""
        return self._scorer.score_tokens(tokens)

    async def finish(self, work: Work, found: Floats | None, query: Floats | None) -> Floats:  # noqa: ARG002
        """What was computed."""
        assert found is not None
        return found


class TowerStudent(Student):
    """Documents are encoded by themselves, where neither the index nor the cache knows them."""

    def __init__(self, artifact: Artifact, settings: RankerSettings) -> None:
        torch.set_num_threads(settings.threads)
        student = artifact.encoder()
        self._encoder = (
            ItemEncoder(student) if settings.runtime == "torch" else ItemEncoder.fast(student, settings.threads)
        )
        self._budget = settings.token_budget
        self._comparing = ThreadPoolExecutor(1)
        self._cache = VectorCache(settings.cache_bytes)
        self._hash = artifact.manifest["files"][WEIGHTS]["sha256"]
        self._folder = Path(settings.index) if settings.index else None
        self._index: ItemIndex | None = None
        self._looked = self._changed = 0.0

    def tokenise(self, query: str, texts: list[str], limit: int | None = None) -> TokenisedPairs:  # noqa: ARG002
        """Tokens of documents, of which `limit` count beside the two special ones."""
        return self._encoder.tokenise(texts, None if limit is None else limit + 2)

    def prepare(self, request: ScoreRequest) -> Work:
        """What the index and the cache don't know."""
        query = self.tokenise("", [normalise_query(request.query)])
        vectors: list[Floats | None] = [None] * len(request.texts)
        index = self._current_index()
        if request.ids and index:
            rows = index.rows(request.ids)
            known = np.flatnonzero(rows >= 0)
            for place, one in zip(known.tolist(), index.vectors(rows[known]).floats, strict=True):
                vectors[place] = one
        open_places = [place for place, one in enumerate(vectors) if one is None]
        texts = [normalise(request.texts[place]) for place in open_places]
        unknown = tuple(place for place in request.bare if vectors[place] is None)
        keys = [digest(text, str(request.max_tokens_per_doc)) for text in texts]
        cached = self._cache.get(keys)
        for place, one in zip(open_places, cached, strict=True):
            vectors[place] = None if one is None else one.astype(np.float32)
        left = [number for number, one in enumerate(cached) if one is None]
        tokens = self.tokenise("", [texts[number] for number in left], request.max_tokens_per_doc)
        places = [open_places[number] for number in left]
        return Work(places, tokens, query, vectors, [keys[number] for number in left], unknown)

    def compute(self, tokens: TokenisedPairs) -> NDArray[np.float32]:
        """Vectors of items."""
        return self._encoder.items(tokens, self._budget)

    def encode(self, tokens: TokenisedPairs) -> Floats:
        """Vectors of queries."""
        return self._encoder.queries(tokens)

    async def finish(self, work: Work, found: Floats | None, query: Floats | None) -> Floats:
        """Compare all documents with the query, beside the batches, of which two may be under way."""
        return await asyncio.get_running_loop().run_in_executor(self._comparing, self._compare, work, found, query)

    def _compare(self, work: Work, found: Floats | None, query: Floats | None) -> Floats:
        assert query is not None
        vectors = list(work.vectors)
        if found is not None:
            self._cache.put(work.keys, found.astype(np.float16))
            for place, one in zip(work.places, found, strict=True):
                vectors[place] = one
        return self._encoder.compare(query[0], np.stack([one for one in vectors if one is not None]))

    def _current_index(self) -> ItemIndex | None:
        """The item index as it stands, opened again where it has changed."""
        if self._folder and time.monotonic() > self._looked + INDEX_SECONDS:
            self._looked = time.monotonic()
            changed = (self._folder / MANIFEST).stat().st_mtime
            if changed != self._changed:
                self._index, self._changed = open_index(self._folder, "serve.index", self._hash), changed
        return self._index
