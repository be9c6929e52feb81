"""The rankers of every version, as the ingress sees them: asks them, again where one died, and says what is wrong.

Serve talks gRPC here, over which whatever a replica raises comes as it is: any exception is a failure of the replica.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from rankstill.served import Version
from serve.guard import retry_after
from serve.messages import GREETING, Refusal, ScoreRequest, Scores
from serve.observed import Observed
from serve.room import Room
from serve.traffic import Traffic
from serve.watch import Watch

RANKER = "Ranker"
"""Deployment of a version's application that scores."""
READY_SECONDS = 2.0
"""Within which a ranker that is ready says so, or at least something to somebody."""
GREETINGS, GREET_SECONDS = 16, 30.0
MOST_COPIES = 32
"""Copies under way at a time; where there are more, no further ones are made."""


class Rankers:
    """Handles to the rankers of the versions that are served."""

    def __init__(self, observed: Observed, watch: Watch, longest_wait: float) -> None:
        """`longest_wait` are the seconds for which rankers let a request wait."""
        self._observed, self._watch = observed, watch
        self._handles: dict[str, DeploymentHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._copies = 0
        self._rooms: defaultdict[str, Room] = defaultdict(lambda: Room(longest_wait))
        self._heard: dict[str, float] = {}
        """When each version's rankers last said anything."""

    def know(self, versions: Iterable[Version]) -> None:
        """Have handles to these versions' rankers, which are greeted, so that no request is the first."""
        own = serve.get_replica_context().app_name
        for one in versions:
            if one.app not in self._handles:
                # Not checked, for the ingress may start before its versions do; who asks meanwhile waits.
                handle = serve.get_deployment_handle(RANKER, one.app or own, _check_exists=False)
                self._handles[one.app] = handle
                if not one.reference:  # a teacher takes long, and nobody waits for it
                    self._start(self._greet(handle))

    async def ready(self, version: Version) -> None:
        """See that a replica of a version is loaded and warm.

        Raises:
            HTTPException: none is.
        """
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._handles[version.app].ready.remote()
        except Exception as error:
            raise HTTPException(503, "no ranker replica is ready; try again shortly") from error

    def full(self, version: Version, waiting: int) -> Refusal | None:
        """What a version's rankers would say, where they would refuse a request after those that wait to be sent."""
        return self._rooms[version.version].full(waiting)

    def free(self, version: Version, waiting: int) -> float:
        """Requests that a version's rankers would take after those that wait to be sent; infinite where none knows."""
        return self._rooms[version.version].free(waiting)

    async def score(self, version: Version, request: ScoreRequest, traffic: Traffic) -> Scores:
        """Ask a version's rankers, and once more where a replica died with the request; `traffic` is told how it went.

        Raises:
            HTTPException: they can't answer, or not in time.
        """
        observed, name, room = self._observed, version.version, self._rooms[version.version]
        if full := room.full():
            raise self._refused(name, full)
        began, documents = time.monotonic(), len(request.texts)
        with observed.under_way.labels(name).track_inprogress(), room.send(documents) as ahead:
            try:
                try:
                    found = await self._ask(version, request)
                except RayActorError:
                    found = await self._ask(version, request)
            except BackPressureError as error:
                observed.rankings.labels(name, "overloaded").inc()
                raise HTTPException(429, "queues are full; try again later", headers=retry_after(1)) from error
            except TimeoutError as error:
                if request.seconds >= READY_SECONDS and self._heard.get(name, 0.0) < began:  # nobody is there
                    raise self._failed(version, traffic) from error
                observed.rankings.labels(name, "late").inc()
                raise HTTPException(504, "the time for this request is over; allow more, or send less") from error
            except Exception as error:
                raise self._failed(version, traffic) from error
        self._heard[name] = time.monotonic()
        if isinstance(found, Refusal):
            if found.reason == "overloaded" and found.seconds < request.seconds:  # not for its own haste
                room.refused(ahead, found)
            raise self._refused(name, found)
        seconds = time.monotonic() - began
        room.answered(ahead, documents, seconds, found.busy)
        observed.scored(name, found)
        traffic.tell(version, well=True)
        self._watch.answered(name, seconds, found)
        return found

    def copy(self, version: Version, request: ScoreRequest, shown: Scores) -> None:
        """Send a version a request whose answer nobody waits for; `shown` is what the caller got."""
        if self._copies < MOST_COPIES:
            self._copies += 1
            self._start(self._shadow(version, request, shown))

    async def _ask(self, version: Version, request: ScoreRequest) -> Scores | Refusal:
        async with asyncio.timeout(request.seconds):
            return await self._handles[version.app].score.remote(request)

    async def _shadow(self, version: Version, request: ScoreRequest, shown: Scores) -> None:
        name, outcome, began = version.version, "shadow", time.monotonic()
        try:
            found = await self._ask(version, request)
            if isinstance(found, Scores):
                self._watch.answered(name, time.monotonic() - began, found, copy=True)
                self._watch.compared(name, found, shown)
        except Exception:
            outcome = "shadow failed"
            self._watch.failed(name, copy=True)
        finally:
            self._observed.rankings.labels(name, outcome).inc()
            self._copies -= 1

    async def _greet(self, handle: DeploymentHandle) -> None:
        """Reach all replicas of a version, as far as chance has it."""
        with suppress(Exception):
            async with asyncio.timeout(GREET_SECONDS):
                for _ in range(GREETINGS):
                    await handle.score.remote(GREETING)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that nobody waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _failed(self, version: Version, traffic: Traffic) -> HTTPException:
        self._observed.rankings.labels(version.version, "failed").inc()
        traffic.tell(version, well=False)
        self._watch.failed(version.version)
        return HTTPException(503, "no ranker replica could answer; try again shortly")

    def _refused(self, name: str, refusal: Refusal) -> HTTPException:
        self._observed.rankings.labels(name, refusal.reason).inc()
        if refusal.reason == "overloaded":
            return HTTPException(429, "queues are full; try again later", headers=retry_after(refusal.seconds))
        if refusal.reason == "late":
            return HTTPException(504, "the time for this request is over; allow more, or send less")
        places = ", ".join(map(str, refusal.places[:5])) + (", …" if len(refusal.places) > 5 else "")
        return HTTPException(
            422, f"documents[{places}]: an id that is not indexed, and no text; send the fields too, or index the items"
        )
