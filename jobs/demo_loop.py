"""The loop, live, with simulated shoppers: demand drifts, a fresher student is distilled, tried and promoted.

SIMULATION: a generated shop, shoppers who click by a position-based model, and drift that is put on (`simulation`).
Everything else is the real thing: the pipeline, the endpoint, the event log, jobs.refresh and its canary.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from jobs.demo import endpoint
from jobs.pipeline import run_until
from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.config import Config
from rankstill.configfile import load_config
from rankstill.errors import ConfigError, RunError
from rankstill.loop import Loop, table
from rankstill.simulation import SimulatedShop, clicks

CALM, RAMP, DRIFTED = 30.0, 5.0, 1.0
"""Seconds before demand drifts, and until all of the drift is there; share of the shoppers who ask for what is new."""
AFTER = 45.0
"""Seconds that the promoted student is watched."""
MOST = 1500.0
"""Seconds after which the demo ends, whatever was decided."""
TELL = 15.0
QUIET = 80
"""Judged queries that nobody asks, from which the gate tells who ranks better."""
SHARING = {"RAY_worker_niceness": "2", "OMP_WAIT_POLICY": "passive"}
"""Environment of what learns, beside what serves: with Ray's niceness of 15 it would get next to nothing of two cores
that are both wanted, and threads that wait for one another would spin on them."""


def main() -> None:
    """`python -m jobs.demo_loop`."""
    parser = make_parser("jobs.demo_loop", str(__doc__))
    parser.add_argument("--rate", type=float, default=10.0, metavar="N", help="shoppers a second (10)")
    add_config_arguments(parser)
    arguments = parser.parse_intermixed_args()
    if not arguments.rate > 0:
        raise ConfigError(f"--rate is {arguments.rate:g}; give shoppers a second, more than 0")
    config = load_config(arguments.config, arguments.overrides)
    root = config.storage.folder
    if Loop(root, config.name).exists:
        raise ConfigError(f"storage.root={str(root)!r} has seen this demo; remove it, or give another one")
    began, shop = time.monotonic(), SimulatedShop(quiet=QUIET)
    settings = [*arguments.overrides, *judged(shop, root / "shop")]
    config = load_config(arguments.config, settings)
    run_until(config)
    command = [sys.executable, "-m", "jobs.refresh", "--config", str(arguments.config), "--every", "10s", *settings]
    with endpoint(config, f"{config.name}@champion") as (url, dashboard), refreshing(command, root, dashboard):
        print(f"SIMULATION. The curve is live at {url}; Ctrl-C ends it.", flush=True)
        traffic = Traffic(shop, url, arguments.rate)
        watch(config, traffic, began)
    print()
    print(traffic.summary())
    print(format_table(table(Loop(root, config.name).state.decisions)))
    print(f"in {time.monotonic() - began:.0f} s; all of it simulated but the loop itself")


def judged(shop: SimulatedShop, folder: Path) -> list[str]:
    """Write what somebody judged in a shop; the settings with which that is the data."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "judgements.jsonl"
    shop.judgements().write_ndjson(path)
    return ["data.shop=null", f"data.sources=[{{path: {json.dumps(str(path))}}}]"]


def watch(config: Config, traffic: "Traffic", began: float) -> None:
    """Send shoppers until a student was promoted and has been seen at work.

    Raises:
        RunError: nothing was promoted in time.
    """
    loop, start, told = Loop(config.storage.folder, config.name), time.monotonic(), 0.0
    known, promoted = len(loop.state.decisions), 0.0
    print(f"{'time':>5}  {'drift':>5}  {'clicked':>8}  {'loop':10}  last decision", flush=True)
    with traffic.running():
        while True:
            time.sleep(0.5)
            now = time.monotonic()
            traffic.drifted = DRIFTED * min(1.0, max(0.0, now - start - CALM) / RAMP)
            state = loop.state
            decided = state.decisions[known:]
            if not promoted and any(one.what == "promoted" for one in decided):
                promoted = now
                traffic.mark("after")
            elif not promoted:
                traffic.mark("calm" if now - start < CALM else "drifted" if now - start > CALM + RAMP else "")
            if now - told > TELL:
                told = now
                last = f"{decided[-1].version} {decided[-1].what}: {decided[-1].why[:70]}" if decided else ""
                rate = traffic.recent()
                shown = "-" if rate is None else f"{rate:.1%}"
                print(f"{now - start:5.0f}  {traffic.drifted:5.0%}  {shown:>8}  {state.phase:10}  {last}", flush=True)
            if promoted and now - promoted > AFTER:
                return
            if now - began > MOST:
                raise RunError("nothing was promoted in time; see the decisions with python -m jobs.deploy loop")


@contextmanager
def refreshing(command: Sequence[str], root: Path, dashboard: str) -> Iterator[None]:
    """Run jobs.refresh beside the endpoint."""
    log_path = root / "refresh.log"
    environment = {**os.environ, **SHARING, "RAY_DASHBOARD_ADDRESS": dashboard}
    with log_path.open("wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            yield
            if job.poll() is not None:
                raise RunError(f"jobs.refresh ended by itself; see {str(log_path)!r}")
        finally:
            job.terminate()
            job.wait()


@dataclass
class Traffic:
    """Shoppers who ask, look, click now and then, and tell the endpoint."""

    shop: SimulatedShop
    url: str
    rate: float
    """A second."""
    threads: int = 24
    drifted: float = 0.0
    _phase: str = ""
    _totals: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    _recent: list[tuple[float, bool]] = field(default_factory=list)
    refused: int = 0
    failed: int = 0

    def mark(self, phase: str) -> None:
        """Count what comes under this name; under none where it is empty."""
        self._phase = phase

    def recent(self) -> float | None:
        """Share of the last seconds' shoppers who clicked."""
        since = time.monotonic() - 2 * TELL
        self._recent = [one for one in self._recent if one[0] > since]
        return sum(clicked for _, clicked in self._recent) / len(self._recent) if self._recent else None

    def summary(self) -> str:
        """A table of the phases."""
        rows = [["SIMULATION", "shoppers", "clicked"]]
        names = {"calm": "before the drift", "drifted": "drifted, old champion", "after": "drifted, new champion"}
        for phase, name in names.items():
            count, clicked = self._totals[phase]
            rows.append([name, f"{count:,}", f"{clicked / count:.1%}" if count else "-"])
        return f"{format_table(rows)}\n{self.refused} requests were refused (429), {self.failed} failed"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let them come."""
        done, due = threading.Event(), queue.Queue[int]()
        threads = [threading.Thread(target=self._serve, args=(due, done), daemon=True) for _ in range(self.threads)]
        threads.append(threading.Thread(target=self._open, args=(due, done), daemon=True))
        for one in threads:
            one.start()
        try:
            yield
        finally:
            done.set()
            for one in threads:
                one.join(10)

    def _open(self, due: "queue.Queue[int]", done: threading.Event) -> None:
        """Shoppers come at random times."""
        rng, number, next_ = Random(1), 0, time.monotonic()  # noqa: S311 (a simulation)
        while not done.is_set():
            next_ += rng.expovariate(self.rate)
            time.sleep(max(0.0, next_ - time.monotonic()))
            due.put(number)
            number += 1

    def _serve(self, due: "queue.Queue[int]", done: threading.Event) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not done.is_set():
                try:
                    number = due.get(timeout=0.5)
                except queue.Empty:
                    continue
                try:
                    self._shop(client, Random(number), self._phase)  # noqa: S311 (a simulation)
                except (httpx.HTTPError, json.JSONDecodeError, KeyError):
                    self.failed += 1

    def _shop(self, client: httpx.Client, rng: Random, phase: str) -> None:
        """One shopper."""
        visit = self.shop.visit(rng, self.drifted)
        documents = [{"id": one["id"], "title": one["title"]} for one in visit.items]
        response = client.post("/v1/rerank", json={"query": visit.query, "documents": documents})
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self.refused += 1
            return
        answer = response.json()
        order = [result["index"] for result in answer["results"]]
        chosen = clicks(rng, [visit.grades[place] for place in order])
        self._recent.append((time.monotonic(), bool(chosen)))
        self._totals[phase][0] += 1
        self._totals[phase][1] += bool(chosen)
        if chosen:
            request = answer["request_id"]
            events = [
                {"event_id": f"{request}-{place}", "event": "click", "request_id": request, "position": place}
                | {"item_id": documents[order[place]]["id"]}
                for place in chosen
            ]
            self.tell(client, events)

    def tell(self, client: httpx.Client, events: list[dict[str, Any]]) -> None:
        """Tell the endpoint what a shopper did."""
        client.post("/v1/feedback", json={"events": events})


if __name__ == "__main__":
    run_command(main)
