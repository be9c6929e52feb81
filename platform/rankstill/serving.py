"""Changes what a running endpoint serves, through the REST interface of Ray Serve."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.exceptions import AuthenticationError

from rankstill.errors import RunError, in_brief
from rankstill.served import Served, Version

APP, INGRESS = "rankstill", "Ingress"
"""The Serve application that clients reach, and its deployment."""
ADDRESS = "http://127.0.0.1:8265"
POLL_SECONDS, DEPLOY_SECONDS = 0.25, 600.0
SETTLE_SECONDS = 0.8
"""After a change of traffic, until the next one. The ingress greets a new version's rankers meanwhile, and HAProxy is
told of an ingress that Serve had counted out while it took the change; told in the middle of the next change, it would
do without it for a while.
"""
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
"""States of applications and deployments that don't get better by themselves."""
ERRORS = "rankstill.errors."
"""What a line of ours in a traceback begins with."""
FAILURES = (requests.RequestException, RuntimeError, AuthenticationError)
"""What the client raises where Serve doesn't answer, or says no."""
Config = dict[str, Any]


class Serving:
    """The endpoint of one Ray cluster; RAY_DASHBOARD_ADDRESS, where set, is that of its dashboard."""

    def __init__(self, address: str = "") -> None:
        """Raises RunError where nothing answers."""
        self.address = address or os.environ.get("RAY_DASHBOARD_ADDRESS", ADDRESS)
        try:
            self._client = ServeSubmissionClient(self.address)
        except (*FAILURES, ConnectionError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RunError:
        reason = in_brief(error)
        return RunError(
            f"Ray Serve can't be reached at {self.address} ({reason}); start it, or set RAY_DASHBOARD_ADDRESS"
        )

    def details(self) -> dict[str, Any]:
        """What Serve tells of all applications."""
        try:
            return self._client.get_serve_details()
        except FAILURES as error:
            raise self._failed(error) from error

    def config(self) -> Config:
        """What is deployed, as it can be deployed again.

        Raises:
            RunError: something was not deployed by a config, and so would be lost.
        """
        details = self.details()
        for name, one in details["applications"].items():
            if not one["deployed_app_config"]:
                raise RunError(
                    f"Serve application {name!r} was started by `serve run`, and can't be changed through its REST"
                    " interface; start the endpoint with python -m serve.app, or with `serve deploy`"
                )
        kept = {key: details[key] for key in ("http_options", "proxy_location") if details.get(key)}
        return {**kept, "applications": [one["deployed_app_config"] for one in details["applications"].values()]}

    def served(self) -> Served | None:
        """The versions that the endpoint serves; None where there is no endpoint."""
        found = self.details()["applications"].get(APP)
        if found is None or INGRESS not in found["deployments"]:
            return None
        return Served.model_validate(found["deployments"][INGRESS]["deployment_config"]["user_config"])

    def deploy(self, config: Config, waiting: Callable[[str], None] = lambda _: None) -> None:
        """Deploy, and wait until it is true; `waiting` is told what isn't yet, once a change.

        Raises:
            RunError: it fails, or takes too long.
        """
        try:
            self._client.deploy_applications(config)
        except FAILURES as error:
            raise self._failed(error) from error
        wanted, told = {one["name"] for one in config["applications"]}, ""
        end = time.monotonic() + DEPLOY_SECONDS
        while True:
            found = self.details()["applications"]
            states = {name: found.get(name, {"status": "NOT_STARTED"})["status"] for name in wanted}
            for name, state in states.items():
                if state in FAILED:
                    raise RunError(f"Serve application {name!r} is {state}: {_why(found[name])}")
            waits = ", ".join(sorted(name for name, state in states.items() if state != "RUNNING"))
            if not waits and not found.keys() - wanted:
                return
            if waits != told:
                waiting(waits)
                told = waits
            if time.monotonic() > end:
                raise RunError(f"Serve applications {waits} are not running after {DEPLOY_SECONDS:g} s; see their logs")
            time.sleep(POLL_SECONDS)


def _why(application: Mapping[str, Any]) -> str:
    """Why an application failed: our own error, where that is in what Serve tells, else the end of that."""
    said = [one["message"] for one in application["deployments"].values() if one["status"] in FAILED]
    text = "\n".join(said).strip() or str(application.get("message", ""))
    lines = [line.strip() for line in text.splitlines()]
    ours = [line for line in lines if line.startswith(ERRORS)]
    return ours[-1].removeprefix(ERRORS) if ours else " ".join(lines)[-400:]


def with_traffic(config: Config, served: Served) -> Config:
    """The config with other versions behind the ingress."""
    deployments = [{"name": INGRESS, "user_config": served.model_dump(mode="json")}]
    applications = [
        {**one, "deployments": deployments} if one["name"] == APP else one for one in config["applications"]
    ]
    return {**config, "applications": applications}


def with_served(config: Config, served: Served) -> Config:
    """`with_traffic`, and without the applications of versions that are gone."""
    needed = {APP, *(one.app for one in served.versions)}
    kept = [one for one in config["applications"] if one["name"] in needed]
    return with_traffic({**config, "applications": kept}, served)


def with_version(config: Config, version: Version, model: str) -> Config:
    """The config with the application of one more version, whose settings are the endpoint's."""
    if any(one["name"] == version.app for one in config["applications"]):
        return config
    (front,) = [one for one in config["applications"] if one["name"] == APP]
    own = {"name": version.app, "route_prefix": None, "import_path": "serve.app:version", "deployments": []}
    added = {**front, **own, "args": {**front["args"], "model": model}}
    return {**config, "applications": [*config["applications"], added]}


def app_of(version: str) -> str:
    """Name of the Serve application of a version."""
    return version.replace("/", "-").replace("@", "-")


class Endpoint:
    """A running endpoint, whose versions change one step at a time: what is not warm gets no traffic."""

    def __init__(self, serving: Serving, waiting: Callable[[str], None]) -> None:
        self._serving, self._waiting = serving, waiting

    @property
    def url(self) -> str:
        """Where it answers, for those who reach the dashboard.

        Raises:
            RunError: it doesn't say.
        """
        options = self._serving.details().get("http_options") or {}
        host, port = options.get("host"), options.get("port")
        if not host or not port:
            raise RunError("Ray Serve tells no HTTP address; start the endpoint with python -m serve.app")
        if host in ("0.0.0.0", "::"):  # noqa: S104 (every address, the dashboard's too)
            host = urlsplit(self._serving.address).hostname
        return f"http://{host}:{port}"

    @property
    def served(self) -> Served | None:
        """Its versions; None where none runs."""
        return self._serving.served()

    def serves(self, name: str) -> bool:
        """Whether it runs, and serves versions of this name."""
        served = self.served
        return served is not None and served.name == name

    def promote(self, version: Version, window: float) -> None:
        """Give all traffic to a version; the others stay loaded, but those that have been idle for `window` seconds."""
        self._load(version)
        self._change(lambda served: served.promoted(version.version, time.time()), window)

    def share(self, version: Version, percent: Mapping[str, float], window: float) -> None:
        """Give a version a share of the traffic (weight), or of copies (shadow)."""
        self._load(version)

        def change(served: Served) -> Served:
            if "shadow" in percent:
                served = served.shadowed(version.version, percent["shadow"] / 100)
            return served.shared(version.version, percent["weight"] / 100) if "weight" in percent else served

        self._change(change, window)

    def drain(self, version: str) -> None:
        """Take a version out: first its traffic, then its replicas."""
        config, served = self._now()
        left = served.without(version)
        parked = served.joined(served.known(version).model_copy(update={"weight": 0.0, "shadow": 0.0}))
        self._direct(with_traffic(config, parked))
        self._direct(with_served(config, left))

    def _load(self, version: Version) -> None:
        """Have a version's replicas up and warm."""
        config, served = self._now()
        if served.find(version.version) is None:
            config = with_version(config, version, version.version)
            self._serving.deploy(config, self._waiting)
            self._direct(with_served(config, served.joined(version)))

    def _change(self, change: Callable[[Served], Served], window: float) -> None:
        """Change the traffic; then remove what has been without any for long."""
        config, served = self._now()
        changed = change(served)
        told = with_traffic(config, changed)
        self._direct(told)
        for one in changed.idle(time.time() - window):
            changed = changed.without(one.version)
        left = with_served(config, changed)
        if left != told:
            self._direct(left)

    def _direct(self, config: Config) -> None:
        """Have traffic go as a config says."""
        self._serving.deploy(config, self._waiting)
        time.sleep(SETTLE_SECONDS)

    def _now(self) -> tuple[Config, Served]:
        served = self.served
        if served is None:
            raise RunError("the endpoint is gone; start it again")
        return self._serving.config(), served


def running_endpoint(waiting: Callable[[str], None]) -> Endpoint | None:
    """The running endpoint; None where nothing answers at the usual address.

    Raises:
        RunError: an address was given, and nothing answers there.
    """
    try:
        return Endpoint(Serving(), waiting)
    except RunError:
        if "RAY_DASHBOARD_ADDRESS" in os.environ:
            raise
        return None
