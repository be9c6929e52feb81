"""SIGKILLs the loop and the writer of events under load, and counts what became of events and versions.

    python -m tests.benchmarks.loop_kills [--kills 25] [--rate 6]

A tiny student is served, and simulated shoppers ask and click all the while; each event is sent until it is
acknowledged, one in five once more. jobs.refresh runs beside it with its canaries. It gets SIGKILL in one of its steps
after the other, at a random moment of each, and is started again; now and then the replica that writes events gets it
instead. What is tried is promoted by order in one round and withdrawn in the next. At the end each acknowledged event
has to be stored once, endpoint and registry have to name the same champion, which alone has traffic, and every version
has to have one fate.
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
from itertools import cycle
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
from serve.recorder import SETTLE_SECONDS
from tests.benchmarks.events import stored_ids

CONFIG = "jobs/configs/tiny.yaml"
SETTINGS = ["name=shop", "data.fields=[title]", "serve.swap_rate=0.3", "serve.replicas=1"]
SETTINGS += ["refresh.least_events=40", "refresh.candidates=1", "refresh.new_queries=4", "refresh.epochs=1"]
SETTINGS += ["refresh.margin=1", "refresh.slice_margin=1", "refresh.slower=9", "refresh.calibration=1"]
SETTINGS += ["refresh.agreement_margin=1", "refresh.canary.shares=[0.3,0.5]", "refresh.canary.requests=[20]"]
SETTINGS += ["refresh.canary.effect=0.02", "refresh.canary.copies=20", "refresh.canary.agreement=-1"]
SETTINGS += ["refresh.canary.attribution=1", "refresh.canary.slower_ms=5000", "refresh.canary.poll=0.5"]
LOGGED = {
    "lists": '"event":"lists","state":"started"',
    "labelling": '"task":"label"',
    "training": '"event":"students","state":"started"',
    "learning": '"task":"train"',
    "export": '"event":"artifacts","state":"started"',
    "gate": '"event":"accepted","state":"measuring"',
}
"""What the loop says where these steps begin."""
STEPS = (*LOGGED, "shadow", "canary", "ending")
"""Of a round; the last ones are phases of the loop."""
ENDING = ("promoting", "withdrawing")
WITHIN = 4.0
"""Seconds within which a step that began is killed."""
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
    rows, place, orders = [["kill", "victim", "step", "phase", "decisions before"]], 0, cycle(("promote", "rollback"))
    with shoppers.running():
        job.start()
        try:
            for number in range(arguments.kills):
                if place == 0:
                    job.listen()
                elif STEPS[place] == "ending":
                    loop.want(order=next(orders))
                place = reached(job, loop, place)
                step, place = STEPS[place], (place + 1) % len(STEPS)
                time.sleep(rng.uniform(0.0, WITHIN if step in LOGGED else 1.0))
                victim = "writer" if rng.random() < WRITER_SHARE else "loop"
                rows.append([str(number), victim, step, loop.state.phase, str(len(loop.state.decisions))])
                if victim == "loop":
                    job.kill()
                    job.start()
                else:
                    kill_writer()
                print("  ".join(rows[-1]), flush=True)
            before = len(loop.state.decisions)
            wait_for(lambda: ended(loop, before))
        finally:
            job.stop()
    print(format_table(rows))
    for line in outcome(config, shoppers):
        print(line)


def ended(loop: Loop, before: int) -> bool:
    """Whether the loop has decided something since; what is still tried is promoted."""
    state = loop.state
    if state.phase in ("shadow", "canary") and not loop.control.order:
        loop.want(order="promote")
    return state.phase == "idle" and len(state.decisions) > before


def reached(job: "Job", loop: Loop, place: int) -> int:
    """Wait until the loop has come to a step, or beyond it in this round; its place."""
    found: list[int] = []

    def look() -> bool:
        said, phase = job.said(), loop.state.phase
        now = {step for step, words in LOGGED.items() if words in said}
        if place:  # else it is still what the last round came to
            now |= {phase, "ending"} if phase in ENDING else {phase}
        found[:] = [number for number, step in enumerate(STEPS) if number >= place and step in now]
        return bool(found)

    wait_for(look)
    return found[0]


def outcome(config: Config, shoppers: "Shoppers") -> list[str]:
    """What became of events, champion and versions."""
    time.sleep(4 * SETTLE_SECONDS)
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
        self._before = 0

    def start(self) -> None:
        """Start one."""
        with self._log.open("ab") as log:
            self.listen()
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)

    def kill(self, sign: int = signal.SIGKILL) -> None:
        """Kill it."""
        if self._process:
            self._process.send_signal(sign)
            self._process.wait()

    def listen(self) -> None:
        """Leave aside what was told so far."""
        self._before = self._log.stat().st_size

    def said(self) -> str:
        """What it has told since then."""
        return self._log.read_bytes()[self._before :].decode(errors="replace")

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
        time.sleep(0.05)


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
