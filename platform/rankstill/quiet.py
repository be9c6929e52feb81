"""A machine at rest: what is timed waits until other work pauses, and other work waits until it was timed."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankstill.text import digest


class QuietLock:
    """Work of one storage root on this machine takes it shared, a step at a time; what times something, alone.

    Two files, each locked by the kernel, which frees them when a process ends: whoever wants to be alone holds the
    first, which the others pass, so that new steps don't begin, and waits at the second until the last one is over.
    """

    def __init__(self, root: Path) -> None:
        folder = Path(tempfile.gettempdir(), f"rankstill-quiet-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        name = digest(str(root), size=8)
        self._gate, self._floor = (folder / f"{name}.{part}" for part in ("gate", "floor"))
        self.waited = 0.0
        """Seconds that `shared` waited, so far."""

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Beside other work."""
        start = time.monotonic()
        with _locked(self._gate, fcntl.LOCK_SH):
            pass
        with _locked(self._floor, fcntl.LOCK_SH):
            self.waited += time.monotonic() - start
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing else runs."""
        with _locked(self._gate, fcntl.LOCK_EX), _locked(self._floor, fcntl.LOCK_EX):
            yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as stream:
        fcntl.flock(stream, how)
        yield
