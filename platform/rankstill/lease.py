"""One writer at a time, on any filesystem: a small file that its holder renews."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

import psutil
from pyarrow import fs

from rankstill.errors import RunError
from rankstill.trees import is_file, read_json, write_whole

RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
"""After so long without a renewal the holder counts as dead. Judged by the watcher's clock alone."""
LOOK_SECONDS = 0.5
SETTLE_SECONDS = 0.1
"""Two that take a free lease at once: the one whose file stands after this holds it."""


class Lease:
    """A lease under `path` of a tree, as {holder, host, pid, started, beat}."""

    def __init__(self, tree: fs.SubTreeFileSystem, path: str) -> None:
        self._tree = tree
        self._path = path
        process = psutil.Process()
        self._own = {
            "holder": uuid4().hex,
            "host": socket.gethostname(),
            "pid": process.pid,
            "started": process.create_time(),
        }

    @contextmanager
    def held(self, waiting: Callable[[str], None] | None = None) -> Iterator["Lease"]:
        """Hold it; `waiting` is told once whom it is that holds it."""
        self._acquire(waiting)
        done = threading.Event()
        thread = threading.Thread(target=self._renew, args=(done,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()
            if self._is_own(self._read()):
                self._tree.delete_file(self._path)

    def check(self) -> None:
        """Make sure that it is still held.

        Raises:
            RunError: another process, to which this one seemed dead, has taken it.
        """
        if not self._is_own(self._read()):
            raise RunError(f"{self._path} was taken by another process while this one stood still; run it again")

    def _acquire(self, waiting: Callable[[str], None] | None) -> None:
        seen, since = None, 0.0
        while True:
            held = self._read()
            if held is None or _is_dead(held) or (held == seen and time.monotonic() - since > STALE_SECONDS):
                self._write(0)
                time.sleep(SETTLE_SECONDS)
                if self._is_own(self._read()):
                    return
                continue
            if held != seen:
                if seen is None and waiting:
                    waiting(f"process {held['pid']} of {held['host']}")
                seen, since = held, time.monotonic()
            time.sleep(LOOK_SECONDS)

    def _renew(self, done: threading.Event) -> None:
        beat = 0
        while not done.wait(RENEW_SECONDS):
            beat += 1
            with suppress(OSError):  # a store that is away for a moment
                if self._is_own(self._read()):
                    self._write(beat)

    def _write(self, beat: int) -> None:
        write_whole(self._tree, self._path, json.dumps({**self._own, "beat": beat}).encode())

    def _read(self) -> dict | None:
        try:
            held = read_json(self._tree, self._path) if is_file(self._tree, self._path) else None
        except (FileNotFoundError, ValueError):  # gone between the two, or damaged
            return None
        return held if isinstance(held, dict) and self._own.keys() <= held.keys() else None

    def _is_own(self, held: dict | None) -> bool:
        return held is not None and held["holder"] == self._own["holder"]


def _is_dead(held: dict) -> bool:
    """Whether the holder was a process of this host that has ended."""
    if held["host"] != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(held["pid"]).create_time() - held["started"]) > 1
    except psutil.NoSuchProcess:
        return True
