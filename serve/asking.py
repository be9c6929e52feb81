"""The rankers of every version, as the ingress sees them: asks them, again where one died, and says what is wrong."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from rankstill.served import Version
from serve.guard import retry_after
from serve.messages import Refusal, ScoreRequest, Scores
from serve.observed import Observed
from serve.traffic import Traffic

RANKER = "Ranker"
"""Deployment of a version's application that scores."""
READY_SECONDS = 2.0
FULL_SECONDS = 0.05
"""For so long after a version's rankers refused a request, others are refused without asking them."""
MOST_COPIES = 32
"""Copies under way at a time; where there are more, no further ones are made."""


class Rankers:
    """Handles to the rankers of the versions that are served."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._handles: dict[str, DeploymentHandle] = {}
        self._copies: set[asyncio.Task[Any]] = set()
        self._full: dict[str, tuple[float, Refusal]] = {}
        """Until when the rankers of a version take nothing, and what they said."""

    def know(self, versions: Iterable[Version]) -> None:
        """Have handles to these versions' rankers."""
        own = serve.get_replica_context().app_name
        for one in versions:
            if one.app not in self._handles:
                self._handles[one.app] = serve.get_deployment_handle(RANKER, one.app or own)

    async def ready(self, version: Version) -> None:
        """See that a replica of a version is loaded and warm.

        Raises:
            HTTPException: none is.
        """
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._handles[version.app].ready.remote()
        except (TimeoutError, RayError, RayServeException) as error:
            raise HTTPException(503, "no ranker replica is ready; try again shortly") from error

    async def score(self, version: Version, request: ScoreRequest, traffic: Traffic) -> Scores:
        """Ask a version's rankers, and once more where a replica died with the request; `traffic` is told how it went.

        Raises:
            HTTPException: they can't answer, or not in time.
        """
        observed, name = self._observed, version.version
        until, full = self._full.get(name, (0.0, None))
        if full and time.monotonic() < until:
            raise self._refused(name, full)
        with observed.under_way.labels(name).track_inprogress():
            try:
                try:
                    found = await self._ask(version, request)
                except RayActorError:
                    found = await self._ask(version, request)
            except BackPressureError as error:
                observed.rankings.labels(name, "overloaded").inc()
                raise HTTPException(429, "queues are full; try again later", headers=retry_after(1)) from error
            except TimeoutError as error:
                observed.rankings.labels(name, "late").inc()
                raise HTTPException(504, "the time for this request is over; allow more, or send less") from error
            except (RayError, RayServeException) as error:
                observed.rankings.labels(name, "failed").inc()
                traffic.tell(version, well=False)
                raise HTTPException(503, "no ranker replica could answer; try again shortly") from error
        if isinstance(found, Refusal):
            if found.reason == "overloaded" and found.seconds < request.seconds:  # not for its own haste
                self._full[name] = (time.monotonic() + FULL_SECONDS, found)
            raise self._refused(name, found)
        observed.scored(name, found)
        traffic.tell(version, well=True)
        return found

    def copy(self, version: Version, request: ScoreRequest) -> None:
        """Send a version a request whose answer nobody waits for."""
        if len(self._copies) < MOST_COPIES:
            task = asyncio.create_task(self._shadow(version, request))
            self._copies.add(task)
            task.add_done_callback(self._copies.discard)

    async def _ask(self, version: Version, request: ScoreRequest) -> Scores | Refusal:
        async with asyncio.timeout(request.seconds):
            return await self._handles[version.app].score.remote(request)

    async def _shadow(self, version: Version, request: ScoreRequest) -> None:
        try:
            await self._ask(version, request)
            self._observed.rankings.labels(version.version, "shadow").inc()
        except (TimeoutError, RayError, RayServeException):
            self._observed.rankings.labels(version.version, "shadow failed").inc()

    def _refused(self, name: str, refusal: Refusal) -> HTTPException:
        self._observed.rankings.labels(name, refusal.reason).inc()
        if refusal.reason == "overloaded":
            return HTTPException(429, "queues are full; try again later", headers=retry_after(refusal.seconds))
        if refusal.reason == "late":
            return HTTPException(504, "the time for this request is over; allow more, or send less")
        places = ", ".join(map(str, refusal.places[:5])) + (", …" if len(refusal.places) > 5 else "")
        return HTTPException(
            422, f"documents: {places} have an id that is not indexed and no text; send their fields, or index them"
        )
