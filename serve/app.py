"""Builds and runs the ranking endpoint: an ingress before versions of a student, each with a pool of replicas.

python -m serve.app --model shop@champion serve.port=8000
serve run serve.app:build model=shop@champion
serve deploy serve/config.yaml

Each version is a Serve application of its own, `version`, beside that of the ingress, `ingress`, so that `jobs.deploy`
can add, weigh and remove versions while the endpoint runs. `build` is both in one, with one version.
"""

import os
import signal
import socket
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve

from rankstill.artifacts import WEIGHTS, Artifact, load_artifact
from rankstill.cli import add_config_arguments, make_parser, run_command
from rankstill.cluster import connect, dashboard
from rankstill.config import Serve
from rankstill.configfile import load_config
from rankstill.errors import AddressError, ConfigError, ModelError
from rankstill.event_log import EventLog
from rankstill.progress import Reporter
from rankstill.registry import find_version
from rankstill.served import Served, Version
from rankstill.serving import APP, INGRESS, Serving, app_of, with_served
from serve.asking import RANKER
from serve.catalogue import read_catalogue
from serve.endpoint import EndpointSettings
from serve.environment import inner_host, serve_environment
from serve.guard import check_access_log
from serve.ingress import Ingress, make_api
from serve.keys import read_keys
from serve.recorder import Recorder
from serve.recording import RECORDER, Kept
from serve.replica import RankerSettings, Replica
from serve.teacher import Teacher

TEACHER = "teacher"
"""Name of the teacher among the versions, and of its application."""
HEALTH_SECONDS = 2.0
"""How often it is seen whether a replica lives."""
VERSIONS = 4
"""Versions that fit beside each other: each replica reserves so much less than it uses."""
LOGGING = {"enable_access_log": False}
"""Serve logs each request in every replica that it passes, some 15 % of what an endpoint computes; ours is
`serve.access_log`."""
deployment: Any = partial(serve.deployment, logging_config=LOGGING)
WITHOUT_DATA = {"data": {"shop": {}}}
"""What stands in for a config file: serving reads no data."""


class BuildArguments(Serve):
    """What `build` takes: the endpoint's settings, and which model to serve."""

    model: str
    """Registry name (shop@champion, shop/7) or artifact folder."""
    root: str = ".rankstill"
    """Storage root, whose registry knows the names."""
    feedback: str = ""
    """Folder or URL of what was shown and what shoppers did; empty is the folder feedback of the root."""


@dataclass(frozen=True)
class Found:
    """The model that arguments name."""

    version: str
    """Its name: that of a registered version, or of the artifact's folder."""
    registered: bool
    artifact: Artifact

    @property
    def name(self) -> str:
        """What callers ask for."""
        return self.version.partition("/")[0]

    def served(self, app: str = "") -> Served:
        """The model alone behind an ingress."""
        own = Version(version=self.version, fields=tuple(self.artifact.fields), app=app)
        return Served(name=self.name, versions=(own,))


def find(arguments: BuildArguments) -> Found:
    """The model that arguments name.

    Raises:
        ModelError: no such model, an artifact that isn't whole, or one that the runtime doesn't run.
    """
    root = Path(arguments.root).expanduser().resolve()
    if version := find_version(arguments.model, root, "--model"):
        found = Found(str(version), True, load_artifact(version.folder, "model"))
    else:
        folder = Path(arguments.model).expanduser().resolve()
        if not arguments.model or not folder.is_dir():
            raise ModelError(
                f"--model {arguments.model!r}: no version and no folder; name shop@champion, shop/7 or an artifact"
            )
        found = Found(folder.name, False, load_artifact(folder, "model"))
    found.artifact.resolve(arguments.runtime)
    return found


def build(arguments: BuildArguments) -> serve.Application:
    """Ingress and one version in one Serve application.

    Raises:
        InputError: a model, an item index or a file of keys that can't be used.
    """
    if arguments.teacher:
        raise ConfigError(
            "teacher takes an application of its own, which build has not; start with python -m serve.app"
        )
    found = find(arguments)
    front = ingress_deployment(arguments).options(user_config=found.served().model_dump(mode="json"))
    return front.bind(endpoint_settings(arguments, found), recorder(arguments), ranker(arguments, found.artifact))


def ingress(arguments: BuildArguments) -> serve.Application:
    """The ingress alone; the `user_config` of its deployment says what it serves.

    Raises:
        InputError: a model or a file of keys that can't be used.
    """
    return ingress_deployment(arguments).bind(endpoint_settings(arguments, find(arguments)), recorder(arguments))


def version(arguments: BuildArguments) -> serve.Application:
    """The replicas of one version.

    Raises:
        ModelError: no such model, an artifact that isn't whole, or an item index of another student.
    """
    return ranker(arguments, find(arguments).artifact)


def teacher(arguments: BuildArguments) -> serve.Application:
    """The teacher, which reserves nothing, for it has nothing to do but when somebody compares."""
    options = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": arguments.queue}
    return deployment(Teacher, name=RANKER, **options).bind(arguments.teacher, arguments.root)


def whole_config(arguments: BuildArguments) -> dict[str, Any]:
    """Ingress, one version and perhaps its teacher, each an application of its own, for Serve's REST interface.

    Raises:
        InputError: a model, an item index, a catalogue or a file that can't be used.
    """
    found = find(arguments)
    settings = endpoint_settings(arguments, found)
    item_index(arguments, found.artifact)
    if settings.catalogue:
        read_catalogue(settings.catalogue, settings.fields)
    app, given = app_of(found.version), arguments.model_dump(mode="json")
    front = {"name": APP, "route_prefix": "/", "import_path": "serve.app:ingress", "args": given}
    model = found.version if found.registered else arguments.model
    back = {"name": app, "route_prefix": None, "import_path": "serve.app:version", "args": {**given, "model": model}}
    applications, served = [front, back], found.served(app)
    if arguments.teacher:
        from rankstill.rankers import load_ranker

        reference = arguments.teacher if not Path(arguments.teacher).exists() else absolute(arguments.teacher)
        fields = load_ranker(reference, "serve.teacher", Path(arguments.root)).fields or found.artifact.fields
        own = {"name": TEACHER, "import_path": "serve.app:teacher", "args": {**given, "teacher": reference}}
        applications.append({**back, **own})
        served = served.joined(Version(version=TEACHER, app=TEACHER, fields=tuple(fields), weight=0.0, reference=True))
    config = {"http_options": {"host": arguments.host, "port": arguments.port}, "applications": applications}
    return with_served(config, served)


def ingress_deployment(arguments: BuildArguments) -> Any:
    """The ingress's deployment, not yet bound."""
    return deployment(
        serve.ingress(make_api)(Ingress),
        name=INGRESS,
        health_check_period_s=HEALTH_SECONDS,
        # More than the rankers hold and let wait: what is too much for them must get here to be answered 429.
        max_ongoing_requests=4 * arguments.queue * arguments.replicas,
        ray_actor_options={"num_cpus": 0},
    )


def endpoint_settings(arguments: BuildArguments, found: Found) -> EndpointSettings:
    """What the ingress is told.

    Raises:
        ConfigError: a file of keys that can't be read, or an access log that can't be written.
    """
    keys, access_log = absolute(arguments.keys), absolute(arguments.access_log)
    read_keys(keys)
    if access_log:
        check_access_log(access_log)
    return EndpointSettings(
        max_documents=arguments.max_documents,
        max_body_bytes=arguments.max_body_bytes,
        timeout_ms=arguments.timeout_ms,
        max_wait_ms=arguments.max_wait_ms,
        keys=keys,
        kept=Kept(arguments.impressions, arguments.queries, arguments.hide),
        swap_rate=arguments.swap_rate,
        open=arguments.open,
        access_log=access_log,
        catalogue=arguments.catalogue,
        root=absolute(arguments.root),
        fields=tuple(found.artifact.fields),
    )


def ranker(arguments: BuildArguments, artifact: Artifact) -> serve.Application:
    """The replicas of an artifact.

    Raises:
        ModelError: the item index isn't there, or is another student's.
    """
    cpus = os.cpu_count() or 1
    size: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.max_replicas > arguments.replicas:
        least, most = arguments.replicas, arguments.max_replicas
        target = {"target_ongoing_requests": arguments.target_requests}
        size = {"autoscaling_config": {"min_replicas": least, "max_replicas": most, **target}}
    return deployment(
        Replica,
        name=RANKER,
        **size,
        health_check_period_s=HEALTH_SECONDS,
        max_ongoing_requests=arguments.queue,
        max_queued_requests=arguments.queue,
        ray_actor_options={"num_cpus": min(1.0, cpus / arguments.replicas) / VERSIONS},
    ).bind(
        RankerSettings(
            folder=str(artifact.folder),
            runtime=arguments.runtime,
            threads=max(1, cpus // arguments.replicas),
            token_budget=arguments.token_budget,
            batch_wait_ms=arguments.batch_wait_ms,
            max_wait_ms=arguments.max_wait_ms,
            cache_bytes=arguments.cache_bytes,
            index=item_index(arguments, artifact),
        )
    )


def recorder(arguments: BuildArguments) -> serve.Application:
    """What keeps impressions and events."""
    feedback = arguments.feedback or str(Path(absolute(arguments.root)) / "feedback")
    options = {"ray_actor_options": {"num_cpus": 0}, "health_check_period_s": HEALTH_SECONDS}
    queue = {"max_ongoing_requests": arguments.queue, "max_queued_requests": arguments.queue}
    return deployment(Recorder, name=RECORDER, **options, **queue).bind(feedback)


def item_index(arguments: BuildArguments, artifact: Artifact) -> str:
    """Folder of the item index; empty where there is none.

    Raises:
        ModelError: it isn't there, or is another student's.
    """
    folder = absolute(arguments.index)
    if folder:
        from rankstill.item_index import open_index

        open_index(Path(folder), "serve.index", artifact.manifest["files"].get(WEIGHTS, {}).get("sha256", "none"))
    return folder


def absolute(path: str) -> str:
    """A path that other processes find too; nothing stays nothing."""
    return str(Path(path).expanduser().absolute()) if path else ""


def main() -> None:
    """`python -m serve.app`: run until interrupted."""
    parser = make_parser("serve.app", "Serve a student at POST /v1/rerank until interrupted.")
    parser.add_argument("--model", required=True, metavar="MODEL", help="shop@champion, shop/7 or an artifact folder")
    add_config_arguments(parser, required=False)
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config or WITHOUT_DATA, arguments.overrides)
    settings = config.serve
    require_free(settings.host, settings.port)
    root, feedback = str(config.storage.folder), config.storage.feedback
    inner = {"host": inner_host(settings.host)}
    listening: dict[str, Any] = settings.model_dump() | inner
    given = whole_config(BuildArguments(model=arguments.model, root=root, feedback=feedback, **listening))
    EventLog(config.storage.feedback_log)  # before replicas fail on it
    stop = threading.Event()
    with Reporter() as reporter, serve_environment(settings.host) as environment:
        reporter.event("serve", state="starting", model=arguments.model)
        os.environ.update(environment | os.environ)
        connect()
        serve.start(http_options=inner | {"port": settings.port}, logging_config=LOGGING)
        address = dashboard()
        Serving(address).deploy(given, lambda waits: reporter.event("serve", state="waiting", applications=waits))
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own
            signal.signal(number, lambda *_: stop.set())
        url = f"http://{settings.host}:{settings.port}/v1/rerank"
        reporter.event("serve", state="ready", url=url, RAY_DASHBOARD_ADDRESS=address)
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
