"""Carries progress events from Ray workers to the driver's reporter."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from rankstill.progress import Reporter
from rankstill.schema import ProgressEvent

POLL_SECONDS = 0.5


class Mailbox:
    """Holds events until the driver fetches them."""

    def __init__(self) -> None:
        self._events: list[ProgressEvent] = []

    def put(self, event: ProgressEvent) -> None:
        """Add one event."""
        self._events.append(event)

    def take(self) -> list[ProgressEvent]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events


@contextlib.contextmanager
def relay(reporter: Reporter) -> Iterator[Any]:
    """A handle for workers (`handle.put.remote(event)`), whose events reach `reporter` until the block ends."""
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
    done = threading.Event()

    def pump() -> None:
        while not done.wait(POLL_SECONDS):
            show()

    def show() -> None:
        for event in ray.get(mailbox.take.remote()):
            reporter.advance(event)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(RayError):
            show()
        ray.kill(mailbox)
