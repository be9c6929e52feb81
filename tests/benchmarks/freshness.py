"""How long it takes from the last event of shoppers to a promoted student, and how much the teacher has to label anew.

    python -m tests.benchmarks.freshness [--events 5000] [--rate 8] [dotted.key=value ...]

SIMULATION of shoppers; the rest is real. A student is distilled from the judgements of a generated shop, briefly
(--steps), so that clicks have something to teach. So many events are logged of shoppers who saw its rankings, and the
clock starts: jobs.refresh --canary learns, judges, and tries the refreshed student on live shoppers until that is
decided.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from jobs.demo import endpoint
from jobs.demo_loop import QUIET, SHARING, Traffic, judged
from jobs.pipeline import run_until
from rankstill.cli import format_table
from rankstill.config import Config
from rankstill.configfile import load_config
from rankstill.event_log import EventLog
from rankstill.loop import Loop, table
from rankstill.rankers import load_ranker
from rankstill.simulation import SimulatedShop, logged

CONFIG = "jobs/configs/loop.yaml"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=8.0, help="shoppers a second, while the student is tried")
    parser.add_argument("--steps", type=int, default=10, help="training steps of the first student")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    arguments = parser.parse_intermixed_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory(prefix="freshness-") as name:
        folder, shop = Path(name), SimulatedShop(quiet=QUIET)
        settings = [*arguments.overrides, *judged(shop, folder), f"storage.root={folder / 'root'}"]
        first = load_config(CONFIG, [*settings, f"train.max_steps={arguments.steps}"])
        run_until(first)
        config = load_config(CONFIG, settings)
        visits = log_events(config, shop, arguments.events)
        with endpoint(config, f"{config.name}@champion") as (url, dashboard):
            traffic, begun = Traffic(shop, url, arguments.rate), time.monotonic()
            with traffic.running():
                traffic.mark("live")
                command = [sys.executable, "-m", "jobs.refresh", "--config", CONFIG, "--canary", *settings]
                subprocess.run(command, env={**os.environ, **SHARING, "RAY_DASHBOARD_ADDRESS": dashboard}, check=True)
            seconds = time.monotonic() - begun
        report(config, visits, seconds)


def log_events(config: Config, shop: SimulatedShop, count: int) -> int:
    """Log shoppers who saw the champion's rankings until there are so many events; how many shoppers."""
    log, rng = EventLog(config.storage.feedback_log), random.Random(0)
    pairs = shop.judgements().rename({"title": "text"})
    values = load_ranker(f"{config.name}@champion", "benchmark", config.storage.folder).score(pairs)
    scores = dict(zip(pairs.select("query", "item_id").iter_rows(), values, strict=True))
    impressions, events = [], []
    while len(events) < count:
        visit = shop.visit(rng)
        order = np.argsort([-scores[visit.query, one["id"]] for one in visit.items], kind="stable").tolist()
        request = f"logged-{len(impressions)}"
        impression, clicked = logged(rng, visit, order, f"{config.name}/1", request, datetime.now(UTC))
        impressions.append(impression)
        events += clicked
    log.impressions.add(impressions)
    log.events.add(events[:count])
    return len(impressions)


def report(config: Config, visits: int, seconds: float) -> None:
    """Print what came of it."""
    decisions = Loop(config.storage.folder, config.name).state.decisions
    learnt = decisions[0].numbers["learnt"]
    print(format_table(table(decisions)))
    anew, pairs = learnt["labelled anew"], learnt["pairs"]
    print(f"{visits:,} visits logged; from the last event to the decision {seconds:.0f} s, on {os.cpu_count()} cores")
    print(f"{anew:,} of {pairs:,} pairs labelled anew: {anew / pairs:.1%}")
    print(json.dumps({name: value for name, value in decisions[-1].numbers.items() if name != "stages"}))


if __name__ == "__main__":
    main()
