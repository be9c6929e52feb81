"""The deployment that clients reach, in a module of its own: its replicas start without torch."""

import gc
from typing import Any

from rankstill.priority import INGRESS, come_first
from serve.endpoint import Endpoint, EndpointSettings
from serve.guard import Guard


class Ingress:
    """The deployment that clients reach. Its `user_config` says which versions answer, and how much of the traffic."""

    def __init__(self, settings: EndpointSettings, *_own: Any) -> None:
        """`_own` is what else is in the same application, which Serve deploys because it is bound here."""
        self._endpoint = _ENDPOINTS["here"] = Endpoint(settings)
        gc.freeze()  # see Replica
        come_first(INGRESS)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve what `user_config` says; nothing restarts."""
        self._endpoint.reconfigure(user_config)


_ENDPOINTS: dict[str, Endpoint] = {}
"""The endpoint of this process, for `make_api`, which Ray calls after the constructor and gives nothing."""


def make_api() -> Guard:
    """The ASGI application of this process's endpoint."""
    return _ENDPOINTS["here"].api()
