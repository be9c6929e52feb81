"""SIGKILLs the loop and the writer of events under load, and counts what became of events and versions.

    python -m tests.benchmarks.loop_kills [--kills 25] [--rate 6]

A tiny student is served, and simulated shoppers ask and click all the while; each event is sent until it is
acknowledged, one in five once more. jobs.refresh runs beside it with its canaries; at random moments it gets SIGKILL
and is started again, or the replica that writes events does. At the end each acknowledged event has to be stored once,
endpoint and registry have to name the same champion, which alone has traffic, and every version has to have one fate.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from jobs.demo import endpoint
from jobs.demo_loop import SHARING, Traffic, judged
from jobs.pipeline import run_until
from rankstill.artifacts import load_artifact
from rankstill.cli import format_table
from rankstill.config import Config
from rankstill.configfile import load_config
from rankstill.loop import Loop
from rankstill.registry import Registry
from rankstill.simulation import SimulatedShop
from tests.benchmarks.events import stored_ids

CONFIG = "jobs/configs/tiny.yaml"
SETTINGS = ["name=shop", "data.fields=[title]", "serve.swap_rate=0.3", "serve.replicas=1"]
SETTINGS += ["refresh.least_events=40", "refresh.candidates=1", "refresh.new_queries=4", "refresh.epochs=1"]
SETTINGS += ["refresh.margin=1", "refresh.slice_margin=1", "refresh.slower=9", "refresh.calibration=1"]
SETTINGS += ["refresh.agreement_margin=1", "refresh.canary.shares=[0.3,0.5]", "refresh.canary.requests=[20]"]
SETTINGS += ["refresh.canary.effect=0.4", "refresh.canary.copies=20", "refresh.canary.agreement=-1"]
SETTINGS += ["refresh.canary.attribution=1", "refresh.canary.slower_ms=5000", "refresh.canary.poll=0.5"]
SHORTEST, LONGEST = 2.0, 75.0
"""Seconds between kills."""
WRITER_SHARE, AGAIN = 0.3, 0.2
"""Kills of the writer; events that are sent though they are acknowledged."""
ATTEMPTS = 300
END_SECONDS = 600.0


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--rate", type=float, default=6.0, help="shoppers a second")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory(prefix="loop-kills-") as name:
        folder = Path(name)
        shop = SimulatedShop(items=300, queries=90, candidates=6)
        settings = [*SETTINGS, *judged(shop, folder), f"storage.root={folder / 'root'}"]
        config = load_config(CONFIG, settings)
        run_until(config)
        with endpoint(config, "shop@champion") as (url, dashboard):
            killed(config, settings, Shoppers(shop, url, arguments.rate), dashboard, arguments)


def killed(
    config: Config, settings: list[str], shoppers: "Shoppers", dashboard: str, arguments: argparse.Namespace
) -> None:
    """Kill, let the loop end what it was doing, and count."""
    rng, loop = random.Random(arguments.seed), Loop(config.storage.folder, "shop")
    job = Job(settings, dashboard, config.storage.folder / "refresh.log")
    rows = [["kill", "victim", "phase", "decisions before"]]
    with shoppers.running():
        job.start()
        try:
            for number in range(arguments.kills):
                time.sleep(rng.uniform(SHORTEST, LONGEST))
                victim = "writer" if rng.random() < WRITER_SHARE else "loop"
                rows.append([str(number), victim, loop.state.phase, str(len(loop.state.decisions))])
                if victim == "loop":
                    job.kill()
                    job.start()
                else:
                    kill_writer()
                print("  ".join(rows[-1]), flush=True)
            wait_for(lambda: loop.state.phase == "idle" and len(loop.state.decisions) > int(rows[-1][3]))
        finally:
            job.stop()
    print(format_table(rows))
    print(format_table([["phase when the loop was killed", "kills"], *phases(rows)]))
    for line in outcome(config, shoppers):
        print(line)


def phases(rows: list[list[str]]) -> list[list[str]]:
    """How often the loop was killed in which phase."""
    return [[phase, str(count)] for phase, count in Counter(row[2] for row in rows[1:] if row[1] == "loop").items()]


def outcome(config: Config, shoppers: "Shoppers") -> list[str]:
    """What became of events, champion and versions."""
    stored = stored_ids(config.storage.feedback_log)
    lost, doubled = shoppers.acknowledged - set(stored), len(stored) - len(set(stored))
    registry, loop = Registry(config.storage.folder), Loop(config.storage.folder, "shop")
    champion = str(registry.resolve("shop@champion", "benchmark"))
    serving = {one["id"]: one["weight"] for one in httpx.get(f"{shoppers.url}/v1/models").json()["data"]}
    versions = registry.versions("shop")
    for one in versions:
        load_artifact(one.folder)  # whose files are hashed
    fates = Counter(one.version for one in loop.state.decisions if one.what in ("promoted", "withdrawn"))
    twice = sum(count > 1 for count in fates.values())
    return [
        f"{len(shoppers.acknowledged):,} events acknowledged, {len(lost)} lost, {doubled} stored twice; "
        f"{shoppers.refused:,} answers to events were no 200, and {shoppers.failed} rankings failed",
        f"{len(versions)} versions, all whole; {len(fates)} decided, {twice} twice",
        f"champion {champion} in the registry; shares at the endpoint {serving}; loop {loop.state.phase}",
    ]


class Job:
    """jobs.refresh, again and again."""

    def __init__(self, settings: list[str], dashboard: str, log: Path) -> None:
        command = [sys.executable, "-m", "jobs.refresh", "--config", CONFIG, "--every", "2s"]
        self._command, self._log = [*command, *settings], log
        self._environment = {**os.environ, **SHARING, "RAY_DASHBOARD_ADDRESS": dashboard}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start one."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)

    def kill(self, sign: int = signal.SIGKILL) -> None:
        """Kill it."""
        if self._process:
            self._process.send_signal(sign)
            self._process.wait()

    def stop(self) -> None:
        """End it."""
        self.kill(signal.SIGTERM)


def kill_writer() -> None:
    """Kill the replica that writes events, where it is up."""
    for one in psutil.process_iter(["cmdline"]):
        if ":Recorder" in " ".join(one.info["cmdline"] or []):
            one.kill()


def wait_for(done: Callable[[], bool]) -> None:
    """Wait.

    Raises:
        SystemExit: for too long.
    """
    end = time.monotonic() + END_SECONDS
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"the loop decided nothing within {END_SECONDS:g} s after the last kill; see its log")
        time.sleep(0.5)


class Shoppers(Traffic):
    """Those who tell the endpoint until it says that it knows."""

    acknowledged: set[str]
    refused: int

    def __init__(self, shop: SimulatedShop, url: str, rate: float) -> None:
        super().__init__(shop, url, rate, drifted=0.5)
        self.acknowledged, self.refused = set(), 0

    def tell(self, client: httpx.Client, events: list[dict[str, Any]]) -> None:
        """Send each event until it is acknowledged, and every fifth once more."""
        for event in events:
            for _ in range(1 + (random.random() < AGAIN)):
                self._insist(client, event)

    def _insist(self, client: httpx.Client, event: dict[str, Any]) -> None:
        for _ in range(ATTEMPTS):
            with suppress(httpx.HTTPError):
                if client.post("/v1/feedback", json=event).status_code == 200:
                    self.acknowledged.add(event["event_id"])
                    return
            self.refused += 1
            time.sleep(0.2)


if __name__ == "__main__":
    main()
