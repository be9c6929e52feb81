"""What stands before every route: who asks, how often, how much, and a line in the access log."""

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rankstill.config import is_loopback
from rankstill.errors import ConfigError
from rankstill.storage import make_parent
from rankstill.text import encodable
from serve.gate import Gate
from serve.keys import ANYONE, Key, Keys, Role
from serve.observed import Observed

LOG = logging.getLogger("rankstill.access")
DOCS = "/docs/files"
"""Where the scripts of /docs are, which come from the endpoint itself."""
_OPEN = {"/healthz", "/readyz", "/docs", "/openapi.json", "/"}
RANKED = {"/v1/rerank", "/v2/rerank", "/rerank"}
"""Routes that rankers answer."""
LIMITED = RANKED | {"/v1/feedback"}
"""Routes with a name of their own in numbers and access log, also where a request was refused before it was routed."""
BODY_SECONDS = 20.0
"""Within which a body has to arrive."""
LONGEST_MESSAGE = 1000
TRACE = ("traceparent", "tracestate")
_PLAIN = re.compile(r"[\x21-\x7e]{1,200}")


@dataclass(frozen=True)
class Shedding:
    """What the guard asks before it lets a ranking in."""

    overloaded: Callable[[int], float] = lambda _: 0.0
    """Seconds after which to send a ranking again, where it would be refused behind so many that wait; else 0."""
    free: Callable[[int], float] = lambda _: math.inf
    """Rankings that may come after so many that wait."""


class Guard:
    """ASGI middleware around all routes. It sets `caller`, `request_id` and `began` in the request's state.

    Without keys, and unless it is `open`, it answers callers on this machine only, whatever address Serve listens on.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        body_limit: int,
        observed: Observed,
        open_: bool = False,
        shedding: Shedding = Shedding(),
    ) -> None:
        self._app, self._keys, self._limit, self._observed = app, keys, body_limit, observed
        self._open, self._shedding = open_, shedding
        self._gate = Gate()
        self._here = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500
        self._here += 1
        headers = {  # of those that are sent twice the first, as Serve has it
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reversed(scope["headers"])
        }
        waited = waited_before(headers)
        given = headers.get("x-request-id", "")
        request_id = given if _PLAIN.fullmatch(given) else uuid.uuid4().hex
        passed = [(name.encode(), headers[name].encode("latin-1")) for name in TRACE if name in headers]
        if not given:  # else Serve's proxy, which gives every request one, repeats it
            passed.append((b"x-request-id", request_id.encode()))
        caller, problem = self._admit(scope["path"], headers, (scope.get("client") or ("",))[0])
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(caller=caller, request_id=request_id, began=began, told={})

        ranked = scope["path"] in RANKED and "x-model-version" not in headers

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = [*passed, *self._takes()] if ranked else passed
                message = {**message, "headers": [*message.get("headers", []), *told]}
            await send(message)

        try:
            if problem is None:
                self._observed.refused.inc(digits(headers, "x-refused"))
                if ranked:
                    problem = self._shed(scope["path"])
            if problem is None:
                problem, replay = await self._read(scope["path"], headers, receive)
                if problem is None:
                    async with self._gate.passed(waited) if ranked else nullcontext():
                        await self._app(scope, replay, answer)
                    return
            await problem(scope, receive, answer)
        finally:
            self._here -= 1
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", scope["path"] if scope["path"] in LIMITED else "")
            self._observed.request(route or "none", status, seconds)
            if LOG.isEnabledFor(logging.INFO):
                line = {
                    "at": round(time.time(), 3),
                    "request_id": request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 2),
                    "caller": caller.name if caller else "",
                    "trace": headers.get("traceparent", "")[:100],
                    **state["told"],
                }
                LOG.info(orjson.dumps(line).decode())

    def _admit(self, path: str, headers: dict[str, str], address: str) -> tuple[Key | None, Response | None]:
        """Who asks, and the answer to whoever may not."""
        if not self._keys.asked_for:
            if self._open or is_loopback(address) or _is_open(path):
                return ANYONE, None
            what = (
                "without keys (serve.keys), and unless serve.open is set, only this machine's own callers are answered"
            )
            return None, problem(403, what, path)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        presented = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        caller = self._keys.find(presented) if presented else None
        if _is_open(path):
            return caller, None
        if caller is None:
            wanted = {"WWW-Authenticate": "Bearer"}
            what = "this key is not known here" if presented else "a key is needed: Authorization: Bearer KEY"
            return None, problem(401, what, path, wanted)
        role: Role = "feedback" if path == "/v1/feedback" else "rank"
        if not caller.may(role):
            return caller, problem(403, f"this key has not the role {role!r}", path)
        if wait := self._keys.wait(caller):
            return caller, problem(429, "too many requests of this key", path, retry_after(wait))
        return caller, None

    def _shed(self, path: str) -> Response | None:
        """The answer where there is too much to do, before anything is spent on a body."""
        wait = max(self._shedding.overloaded(self._gate.waiting), float(not self._gate.free))
        return problem(429, "queues are full; try again later", path, retry_after(wait)) if wait else None

    def _takes(self) -> list[tuple[bytes, bytes]]:
        """A header for HAProxy: how many requests may be under way here, above which it refuses rankings itself."""
        free = min(self._shedding.free(self._gate.waiting), self._gate.free)
        others = self._here - 1  # than the one that is being answered
        return [] if math.isinf(free) else [(b"x-takes", b"%d" % (others + math.ceil(free)))]

    async def _read(self, path: str, headers: dict[str, str], receive: Receive) -> tuple[Response | None, Receive]:
        """The whole body, which has its bounds, as what the routes receive."""
        too_large = problem(413, f"the body has more than {self._limit} bytes; send fewer documents a request", path)
        if headers.get("content-length", "").isdigit() and int(headers["content-length"]) > self._limit:
            return too_large, receive
        chunks, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return problem(400, "the body ended early", path), receive
                    size += len(message.get("body", b""))
                    if size > self._limit:
                        return too_large, receive
                    chunks.append(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            return problem(408, f"the body took more than {BODY_SECONDS:g} s to arrive", path), receive
        body: list[Message] = [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]

        async def replay() -> Message:
            return body.pop() if body else await receive()

        return None, replay


def check_access_log(path: str) -> None:
    """See that the access log can be written.

    Raises:
        ConfigError: it can't.
    """
    make_parent(Path(path), "serve.access_log")
    try:
        with Path(path).open("a"):
            pass
    except OSError as error:
        raise ConfigError(
            f"serve.access_log={path!r} can't be written ({error.strerror}); give a file that can"
        ) from error


def write_access_log(path: str) -> None:
    """Write the access log to a file, which may be moved away while it is written."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    LOG.handlers = [WatchedFileHandler(path)]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


def _is_open(path: str) -> bool:
    """Whether a route needs no key."""
    return path in _OPEN or path.startswith(f"{DOCS}/")


def waited_before(headers: dict[str, str]) -> float:
    """Seconds since HAProxy had a request's headers, by its clock; 0 where there is no HAProxy."""
    received = digits(headers, "x-received")  # microseconds since 1970
    return time.time() - received / 1e6 if received else 0.0


def digits(headers: dict[str, str], name: str) -> int:
    """The number that a header holds; 0 where it holds none."""
    given = headers.get(name, "")[:20]
    return int(given) if given.isascii() and given.isdigit() else 0


def retry_after(seconds: float) -> dict[str, str]:
    """The header, in whole seconds."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


TEI_TYPES = {400: "Empty", 413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
"""TEI's words for what is wrong."""


def problem(status: int, message: str, path: str, headers: dict[str, str] | None = None) -> Response:
    """The body of every error; on TEI's route it has TEI's fields too."""
    message = encodable(message)[:LONGEST_MESSAGE]
    body = {"message": message}
    if path == "/rerank":
        body |= {"error": message, "error_type": TEI_TYPES.get(status, "Backend")}
    return Response(orjson.dumps(body), status, headers, "application/json")
