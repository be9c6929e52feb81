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
from rankstill.progress import Reporter
from rankstill.quiet import QuietLock
from rankstill.storage import make_root, work_folder
from rankstill.text import digest


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

    def turn(self) -> AbstractContextManager[None]:
        """Beside other work of this root, but not while something is timed; never within another turn."""
        return QuietLock(self.root).shared()

    def step(self, kind: str, key: str, build: Callable[[Path], object]) -> Path:
        """The folder <root>/<kind>/<key>, built unless it stands.

        `build` fills a folder aside, which is renamed when it is whole: what stands is complete.
        """
        folder = self.root / kind / key
        if folder.is_dir():
            self.reporter.event(kind, state="stands", path=str(folder))
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.reporter.event(kind, state="started")
        with work_folder(self.root, f"{kind}-{key}") as aside:
            (aside / "config.yaml").write_text(dump_config(self.config), encoding="utf-8")
            build(aside)
            try:
                os.replace(aside, folder)
            except OSError:
                if not folder.is_dir():
                    raise
                # Another run made the same meanwhile; its output is as good.
        self.reporter.event(kind, state="done", path=str(folder))
        return folder


def step_key(*inputs: object) -> str:
    """A short name for a step's output, from everything that determines it."""
    return digest(*(json.dumps(part, sort_keys=True, default=str) for part in inputs), size=8)
