"""Connects to Ray and decides what a run uses of it."""

import logging
import os
import signal
import threading
from dataclasses import dataclass

import ray

from rankstill.config import Resources
from rankstill.errors import ConfigError, RunError, in_brief

PREEMPTION = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Of Ray Train, which starts a process for each training that asks whether the nodes are to be taken away."""
HEALTH_CHECK = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""Of Ray Train, whose controller takes what workers report so often; until then they wait with their next report."""


@dataclass(frozen=True)
class Share:
    """What one run takes from the cluster."""

    device: str
    """cpu or cuda."""
    workers: int
    """Training workers."""
    worker_cpus: int
    """CPUs, and so threads, of one training worker."""
    actors: tuple[int, int]
    """Labelling actors: the fewest and the most."""
    actor_cpus: int
    """CPU threads of one labelling actor."""
    actor_gpus: float
    """GPUs of one labelling actor."""


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (inside a Ray job it does), or start a local one on loopback.

    A local cluster asks for a token, as Ray does by default; RAY_AUTH_MODE is left alone, since setting it after
    ray's import changes the cluster but not this client.

    SIGTERM is a KeyboardInterrupt from then on, where Ray would print its stack.

    Raises:
        RunError: the cluster doesn't answer or can't be started.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            os.environ.setdefault(PREEMPTION, "0")
            os.environ.setdefault(HEALTH_CHECK, "0.3")
            ray.init(address="local", dashboard_host="127.0.0.1", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        reason = in_brief(error)
        where = f"RAY_ADDRESS={address!r} doesn't answer" if address else "a local Ray cluster doesn't start"
        raise RunError(f"{where} ({reason}); start a cluster with `ray start --head` and set RAY_ADDRESS") from error
    _interrupt_on_sigterm()


def leave() -> None:
    """Leave the cluster that this process has joined, and stop it where `connect` started it."""
    ray.shutdown()
    _interrupt_on_sigterm()


def _interrupt_on_sigterm() -> None:
    """Make SIGTERM a KeyboardInterrupt again, after Ray had a handler of its own, or took away any."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def dashboard() -> str:
    """Address of the dashboard of the cluster that this process has joined."""
    url = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url
    if not url:
        raise RunError("the Ray cluster has no dashboard, through which Serve is told what to run; start it with one")
    return f"http://{url}"


def share_of(resources: Resources) -> Share:
    """Resolve "auto" against the connected cluster; call `connect` first.

    Raises:
        ConfigError: GPUs are asked for and the cluster has none, or more workers or actors than it has room for.
    """
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
    largest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
    if resources.device == "cuda" and not gpus:
        raise ConfigError("resources.device is 'cuda' but the cluster has no GPU; use auto or cpu")
    on_gpu = resources.device == "cuda" or (resources.device == "auto" and gpus > 0)
    workers = resources.workers if resources.workers != "auto" else (gpus if on_gpu else 1)
    room, unit = (gpus, "GPUs") if on_gpu else (cpus, "CPUs")
    actor_room = max(1, int(gpus / resources.actor_gpus)) if on_gpu else cpus
    actors = resources.actors if resources.actors != "auto" else actor_room
    for field, count, limit in (("workers", workers, room), ("actors", actors, actor_room)):
        if count > limit:
            raise ConfigError(f"resources.{field} is {count} but the cluster has {room} {unit}; give {limit} or fewer")
    most = actors if resources.max_actors == "auto" else resources.max_actors
    if most < actors:
        raise ConfigError(f"resources.max_actors is {most}, fewer than the {actors} actors; give {actors} or more")
    return Share(
        device="cuda" if on_gpu else "cpu",
        workers=workers,
        worker_cpus=max(1, min(largest, cpus // workers)),
        actors=(actors, most),
        actor_cpus=max(1, min(largest, cpus // actors)),
        actor_gpus=resources.actor_gpus,
    )
