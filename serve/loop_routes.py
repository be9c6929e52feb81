"""Routes of the loop that refreshes a model: where it is, and what people want of it."""

from collections.abc import Callable
from pathlib import Path

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rankstill.errors import DamagedError
from rankstill.loop import Loop
from serve.api import LoopOrder
from serve.wire import JSON, encoded


class LoopRoutes:
    """`GET` and `POST /v1/loop`."""

    def __init__(self, root: str, name: Callable[[], str]) -> None:
        """`root` is the storage root, empty where there is none; `name` tells the name whose versions are served."""
        self._root, self._name = root, name

    async def show(self) -> Response:
        """Where the loop is that refreshes the model, what it decided, and how shoppers take to each version; nulls
        where there is none.
        """
        loop = self._loop()
        try:
            told = loop.told() if loop else dict.fromkeys(("state", "control", "curve"))
        except DamagedError as error:
            raise HTTPException(503, "the loop's files can't be read; jobs.deploy loop tells which") from error
        return Response(encoded(told), media_type=JSON)

    async def want(self, request: Request, body: LoopOrder) -> Response:
        """Hold the loop back, or tell it to promote or roll back; for admins."""
        if not request.state.caller.may("admin"):
            raise HTTPException(403, "this key has not the role 'admin'; ask with one that has")
        loop = self._loop()
        if loop is None:
            raise HTTPException(404, "no loop refreshes this model; start python -m jobs.refresh --every 15m")
        control = loop.want(**body.model_dump(exclude_unset=True))
        return Response(encoded(control.model_dump()), media_type=JSON)

    def _loop(self) -> Loop | None:
        """The loop's files; None where none ever ran."""
        loop = Loop(Path(self._root), self._name())
        return loop if self._root and loop.exists else None
