"""A run: its config, its storage, and steps that are done once for the same inputs."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rankstill.cluster import Share, connect, share_of
from rankstill.config import Config
from rankstill.configfile import dump_config
from rankstill.lease import Lease
from rankstill.progress import Reporter
from rankstill.quiet import QuietLock
from rankstill.storage import check_sizes, make_root, work_folder, write_sizes
from rankstill.text import digest
from rankstill.trees import open_tree


@dataclass(frozen=True)
class Run:
    """What every step works with."""

    config: Config
    reporter: Reporter

    @cached_property
    def root(self) -> Path:
        """Storage root, absolute, there and writable."""
        return make_root(self.config.storage.root)

    @cached_property
    def share(self) -> Share:
        """The part of the cluster that this run uses; connects on first use."""
        self.reporter.event("cluster", state="connecting")
        connect()
        share = share_of(self.config.resources)
        self.reporter.event("cluster", state="connected", **vars(share))
        return share

    @cached_property
    def _quiet(self) -> QuietLock:
        return QuietLock(self.root)

    def turn(self) -> AbstractContextManager[None]:
        """Beside other work of this root, but not while something is timed; never within another turn."""
        return self._quiet.shared()

    @property
    def waited(self) -> float:
        """Seconds that this process spent waiting for its turns, so far."""
        return self._quiet.waited

    def sole(self, kind: str, key: str) -> AbstractContextManager[object]:
        """No other run makes the same meanwhile; one that does is waited for, of which the reporter is told.

        Within a turn only where what is made takes none, or both would wait for each other.
        """
        lease = Lease(open_tree(str(self.root), "storage.root"), f"partial/{kind}-{key}.lease")
        return lease.held(lambda holder: self.reporter.event(kind, state="waiting", maker=holder))

    def step(self, kind: str, key: str, build: Callable[[Path], object]) -> Path:
        """The folder <root>/<kind>/<key>, built unless it stands.

        `build` fills a folder aside, which is renamed when it is whole: what stands is complete.

        Raises:
            DamagedError: it stands, but what is in it was cut off or removed.
        """
        folder = self.root / kind / key
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with self.sole(kind, key):
                if not folder.is_dir():
                    self._make(kind, key, folder, build)
                    return folder
        check_sizes(folder, self._sizes(kind, key))
        self.reporter.event(kind, state="stands", path=str(folder))
        return folder

    def _sizes(self, kind: str, key: str) -> Path:
        """Apart from the folders of its kind, whose files others may list and hash."""
        return self.root / "sizes" / kind / f"{key}.json"

    def _make(self, kind: str, key: str, folder: Path, build: Callable[[Path], object]) -> None:
        self.reporter.event(kind, state="started")
        with work_folder(self.root, f"{kind}-{key}") as aside:
            (aside / "config.yaml").write_text(dump_config(self.config), encoding="utf-8")
            build(aside)
            write_sizes(aside, self._sizes(kind, key))
            try:
                os.replace(aside, folder)
            except OSError:
                if not folder.is_dir():
                    raise
                # Another host made the same, since this one had seemed dead; its output is as good.
        self.reporter.event(kind, state="done", path=str(folder))


def step_key(*inputs: object) -> str:
    """A short name for a step's output, from everything that determines it."""
    return digest(*(json.dumps(part, sort_keys=True, default=str) for part in inputs), size=8)
