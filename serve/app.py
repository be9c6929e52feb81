"""Builds and runs the ranking endpoint: an ingress before a pool of ranker replicas.

python -m serve.app --model shop@champion serve.port=8000
serve run serve.app:build model=shop@champion
serve deploy serve/config.yaml
"""

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from ray import serve

from rankstill.artifacts import load_artifact
from rankstill.cli import add_config_arguments, make_parser, run_command
from rankstill.cluster import connect
from rankstill.config import Serve
from rankstill.configfile import load_config
from rankstill.errors import AddressError
from rankstill.progress import Reporter
from rankstill.registry import find_version
from serve.endpoint import Endpoint, EndpointSettings
from serve.ranker import Ranker, RankerSettings

NAME = "rankstill"
"""Name of the Serve application."""
WITHOUT_DATA = {"data": {"shop": {}}}
"""What stands in for a config file: serving reads no data."""


class BuildArguments(Serve):
    """What `build` takes: the endpoint's settings, and which model to serve."""

    model: str
    """Registry name (shop@champion, shop/7) or artifact folder."""
    root: str = ".rankstill"
    """Storage root, whose registry knows the names."""


def build(arguments: BuildArguments) -> serve.Application:
    """The Serve application, for `serve run`, `serve deploy` and `python -m serve.app`.

    Raises:
        ModelError: no such model, or an artifact that isn't whole.
    """
    folder, names = find_model(arguments.model, Path(arguments.root))
    artifact = load_artifact(folder, "model")
    cpus = os.cpu_count() or 1
    deployment: Any = serve.deployment  # pyright reads the decorated class as a function
    ranker = deployment(
        Ranker,
        num_replicas=arguments.replicas,
        max_ongoing_requests=2 * arguments.batch_requests,
        max_queued_requests=arguments.queue,
        ray_actor_options={"num_cpus": min(1.0, cpus / arguments.replicas)},
    ).bind(
        RankerSettings(
            folder=str(folder),
            runtime=arguments.runtime,
            threads=max(1, cpus // arguments.replicas),
            token_budget=arguments.token_budget,
            batch_requests=arguments.batch_requests,
            batch_wait_ms=arguments.batch_wait_ms,
        )
    )
    settings = EndpointSettings(
        version=names[0],
        aliases=names[1:],
        fields=tuple(artifact.fields),
        max_documents=arguments.max_documents,
        max_body_bytes=arguments.max_body_bytes,
    )

    def make_api():  # noqa: ANN202 (runs on the ingress replica)
        rankers = serve.get_deployment_handle("Ranker", serve.get_replica_context().app_name)
        return Endpoint(rankers, settings).api()

    ingress = deployment(
        serve.ingress(make_api)(),
        name="Ingress",
        # Twice what the rankers hold and let wait: what is too much for them must get here to be answered 429.
        max_ongoing_requests=2 * (arguments.queue + 2 * arguments.batch_requests * arguments.replicas),
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(ranker)


def find_model(reference: str, root: Path) -> tuple[Path, tuple[str, ...]]:
    """The artifact folder behind a reference, and the names that callers may use for it, the version first."""
    if version := find_version(reference, root.expanduser().resolve(), "--model"):
        return version.folder, (str(version), version.name, *(f"{version.name}@{alias}" for alias in version.aliases))
    folder = Path(reference).expanduser().resolve()
    return folder, (folder.name,)


def main() -> None:
    """`python -m serve.app`: run until interrupted."""
    parser = make_parser("serve.app", "Serve a student at POST /v1/rerank until interrupted.")
    parser.add_argument("--model", required=True, metavar="MODEL", help="shop@champion, shop/7 or an artifact folder")
    add_config_arguments(parser, required=False)
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config or WITHOUT_DATA, arguments.overrides)
    settings = config.serve
    require_free(settings.host, settings.port)
    application = build(BuildArguments(model=arguments.model, root=str(config.storage.folder), **settings.model_dump()))
    stop = threading.Event()
    with Reporter() as reporter:
        reporter.event("serve", state="starting", model=arguments.model)
        connect()
        serve.start(http_options={"host": settings.host, "port": settings.port})
        serve.run(application, name=NAME)
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own
            signal.signal(number, lambda *_: stop.set())
        reporter.event("serve", state="ready", url=f"http://{settings.host}:{settings.port}/v1/rerank")
        stop.wait()
        reporter.event("serve", state="stopping")
        serve.shutdown()


def require_free(host: str, port: int) -> None:
    """Check that a port can be listened on.

    Raises:
        AddressError: it is in use, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no name of a host"
        raise AddressError(
            f"serve.port={port} on serve.host={host!r} can't be used ({reason}); free it or choose another"
        ) from error


if __name__ == "__main__":
    # The application is pickled to replicas, so it is built by the importable module and not by this __main__.
    from serve import app

    run_command(app.main)
