"""What the ingress tells the recorder: events, which are waited for, and impressions, which are sent now and then."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from rankstill.text import digest, encodable, made_id, normalise_query, user_digest
from serve.api import Event
from serve.guard import retry_after
from serve.messages import ScoreRequest
from serve.observed import Observed
from serve.ranking import Ranked

RECORDER = "Recorder"
"""Deployment that writes, in the ingress's application."""
FLUSH_SECONDS, MOST_WAITING, GROUP = 0.5, 20_000, 500
"""Impressions are sent so often, in groups of so many; where more wait than that, because the recorder doesn't keep up,
further ones are dropped."""


@dataclass(frozen=True)
class Kept:
    """What is kept of rankings."""

    impressions: int
    """Items of each answer; 0 is none."""
    queries: Literal["keep", "hash", "drop"]
    hide: tuple[str, ...]
    """Patterns of queries that are dropped."""


class Recording:
    """The recorder, as the ingress sees it."""

    def __init__(self, kept: Kept, observed: Observed) -> None:
        self._kept, self._observed = kept, observed
        self._hidden = [re.compile(one) for one in kept.hide]
        self._handle: DeploymentHandle | None = None
        self._waiting: list[dict[str, Any]] = []
        self._sender: asyncio.Task[None] | None = None

    async def events(self, events: Sequence[Event]) -> int:
        """Have events stored; how many are new.

        Raises:
            HTTPException: they can't be stored, or not now.
        """
        rows = [self._event(one) for one in events]
        try:
            try:
                stored = await self.recorder.events.remote(rows)
            except RayActorError:  # what it stored before it died isn't stored again
                stored = await self.recorder.events.remote(rows)
        except BackPressureError as error:
            raise HTTPException(429, "too many events wait to be stored", headers=retry_after(1)) from error
        except Exception as error:  # see asking.py
            raise HTTPException(503, "events can't be stored now; send them again shortly") from error
        self._observed.events.labels("stored").inc(stored)
        self._observed.events.labels("known").inc(len(rows) - stored)
        return stored

    def impression(self, request_id: str, user: str, request: ScoreRequest, ranked: Ranked) -> None:
        """Remember what a caller is shown; it is stored a little later."""
        if not self._kept.impressions:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._observed.impressions.labels("dropped").inc()
            return
        items = []
        for position, place in enumerate(ranked.order[: self._kept.impressions]):
            text, own = request.texts[place], request.ids[place] if request.ids else ""
            item = {"item_id": own or made_id(text), "text": text or None, "position": position}
            items.append({**item, "score": float(ranked.scores.logits_N[place])})
        self._waiting.append(
            {
                "request_id": request_id,
                "query": self._query(request.query),
                "model_version": ranked.version.version,
                "user": user_digest(user) if user else None,
                "at": datetime.now(UTC),
                "items": items,
                "swap": ranked.swap,
                "propensity": 1.0 if ranked.swap is None else 0.5,
            }
        )
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Send what waits, group after group, until nothing does."""
        try:
            while self._waiting:
                await asyncio.sleep(FLUSH_SECONDS)
                group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
                outcome = "failed"
                with suppress(Exception):  # the next ones may get through
                    await self.recorder.impressions.remote(group)
                    outcome = "stored"
                self._observed.impressions.labels(outcome).inc(len(group))
        finally:
            self._sender = None

    @property
    def recorder(self) -> DeploymentHandle:
        """The deployment that writes."""
        if self._handle is None:
            self._handle = serve.get_deployment_handle(RECORDER, serve.get_replica_context().app_name)
        return self._handle

    def _event(self, event: Event) -> dict[str, Any]:
        given = event.model_dump(exclude={"user", "query"}, exclude_none=True)
        texts = {name: encodable(value) for name, value in given.items() if isinstance(value, str)}
        return {
            **given,
            **texts,
            "at": event.at or datetime.now(UTC),
            "query": self._query(event.query) if event.query else None,
            "user": user_digest(event.user) if event.user else None,
        }

    def _query(self, query: str) -> str:
        """What is kept of a query."""
        query = normalise_query(encodable(query))
        if self._kept.queries == "drop" or any(one.search(query) for one in self._hidden):
            return ""
        return f"query-{digest(query)}" if self._kept.queries == "hash" else query
