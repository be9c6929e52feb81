"""Kills labelling runs at random moments, and counts what became of every pair.

    python -m tests.benchmarks.label_kills [--runs 25] [--pairs 20000] [--victim driver|actor|node]

Each run labels generated pairs, with scores that are hashes, on two nodes in this machine. At a random moment the
driver, an actor or the second node (its raylet and all its workers) gets SIGKILL; a driver is started again, a node
is replaced by a new one, and an actor is Ray's to replace. Told are, for each run, how much was scored when the kill
came, how often a pair is in the store, what `verify` says, and how many pairs were scored twice beside the pairs of one
block.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from ray.cluster_utils import Cluster

from rankstill.cli import format_table
from rankstill.config import AUTO_BLOCK
from rankstill.label_care import verify
from rankstill.labels import open_store
from rankstill.scoring import Work
from rankstill.steps.labelling import LabelActor
from rankstill.teachers.kinds import LoadedTeacher
from rankstill.text import pair_id
from tests.benchmarks.workload import label_hashed, write_hashed

VICTIMS = ("driver", "actor", "node")
BLOCK = AUTO_BLOCK["cpu"]
STRIDE, STRIDE_SECONDS = 50, 0.1
"""Pairs that are noted as scored together, and how long they take."""
SHORTEST, LONGEST = 0.0, 8.0
"""Seconds between the first scored pair and the kill."""


class SlowActor(LabelActor):
    """Scores by hash, slowly, and notes every pair that it has scored."""

    def load(self) -> LoadedTeacher:
        """A teacher without weights, which takes notes."""
        turn = threading.Lock()  # as models' forward passes have
        notes = Path(self._job.model.folder, "notes", f"{os.getpid()}-{uuid4().hex[:8]}.txt")

        def score(queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float64]:
            if len(texts) == 1:  # the warm-up
                return np.zeros(1)
            ids = [pair_id(*pair) for pair in zip(queries, texts, strict=True)]
            with turn:
                for start in range(0, len(ids), STRIDE):
                    time.sleep(STRIDE_SECONDS)
                    with notes.open("a") as stream:
                        stream.write("".join(f"{one}\n" for one in ids[start : start + STRIDE]))
            return np.array([int(one[:8], 16) / 2**32 for one in ids])

        return LoadedTeacher(None, score, Work())


def main() -> None:
    """Run, or be the driver that is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--victim", choices=VICTIMS, help="always this one")
    parser.add_argument("--after", type=float, help="seconds after the first scored pair, instead of a random moment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        label_hashed(arguments.drive, SlowActor)
        return
    draw = random.Random(arguments.seed)
    rows = [["run", "killed", "after s", "scored by then", "drivers", "labels", "in store twice", "verify"]]
    rows[0] += ["scored twice", "of a block"]
    sound = True
    for run in range(arguments.runs):
        victim = arguments.victim or VICTIMS[run % len(VICTIMS)]
        after = arguments.after or draw.uniform(SHORTEST, LONGEST)
        rows.append([str(run), *one_run(arguments.pairs, victim, after, draw)])
        sound &= rows[-1][5:8] == [f"{arguments.pairs}", "0", "clean"]
        print(rows[-1], flush=True)
    print(format_table(rows))
    print("every pair is there once" if sound else "NOT every pair is there once")
    sys.exit(0 if sound else 1)


def one_run(count: int, victim: str, after: float, draw: random.Random) -> list[str]:
    """Label, kill, go on; returns the cells of a row."""
    folder = Path(tempfile.mkdtemp(prefix="label-kills-"))
    write_hashed(folder, count)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    try:
        drivers = 1
        driver = start_driver(folder, cluster.address)
        while driver.poll() is None and not any((folder / "notes").iterdir()):
            time.sleep(0.05)
        time.sleep(after)
        by_then = len(noted(folder)) if driver.poll() is None else count
        if victim == "driver":
            driver.kill()
        elif victim == "actor":
            pids = [int(path.name.partition("-")[0]) for path in (folder / "notes").iterdir()]
            with suppress(ProcessLookupError):  # all is done
                os.kill(draw.choice(pids), signal.SIGKILL)
        else:
            cluster.remove_node(other, allow_graceful=False)
            cluster.add_node(num_cpus=1)
        while driver.wait() != 0:
            drivers += 1
            assert drivers <= 3, (folder / "driver.log").read_text()[-3000:]
            driver = start_driver(folder, cluster.address)
    finally:
        cluster.shutdown()
    store = open_store(str(folder / "labels"), "f00")
    labels, audit = store.scan().select("pair_id").collect()["pair_id"], verify(store)
    scored = noted(folder)
    twice = len(scored) - len(set(scored))
    shutil.rmtree(folder)
    found = "clean" if audit.clean else "; ".join(audit.lines())
    doubled = len(labels) - labels.n_unique()
    return [
        victim,
        f"{after:.1f}",
        f"{by_then / count:.0%}",
        str(drivers),
        str(len(labels)),
        str(doubled),
        found,
        str(twice),
        f"{twice / BLOCK:.2f}",
    ]


def noted(folder: Path) -> list[str]:
    """Ids of the pairs that were scored, as often as they were."""
    return [line for path in (folder / "notes").iterdir() for line in path.read_text().split()]


def start_driver(folder: Path, address: str) -> subprocess.Popen[bytes]:
    """A process that labels."""
    command = [sys.executable, "-m", "tests.benchmarks.label_kills", "--drive", str(folder)]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": address}, stdout=log, stderr=log)


if __name__ == "__main__":
    main()
