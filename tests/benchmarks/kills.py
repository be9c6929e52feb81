"""Kills workers of a two-worker training at random moments, and says what became of it.

    python -m tests.benchmarks.kills [--kills 20] [--steps 3000] [--seed 0]

A small model learns scores of generated pairs under ZeRO 1 on two workers, with a checkpoint every fifty steps. Every
few seconds one of the workers gets SIGKILL. Printed are the kills, the optimizer steps that the history accounts for,
and the final loss beside that of the same training left alone.
"""

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa

from rankstill.cli import format_table
from rankstill.configfile import parse_config
from rankstill.model_config import Distill, Train
from rankstill.objective import Objective
from rankstill.progress import Reporter
from rankstill.steps.fit import Fit, fit, history
from rankstill.steps.run import Run
from tests.benchmarks.training import LIST_SIZE, LISTS, scored_lists
from tests.benchmarks.workload import random_cross_encoder

SHORTEST, LONGEST = 2.0, 12.0
"""Seconds between a worker that trains and its death."""


class Killer(threading.Thread):
    """Kills a training worker now and then, until it has killed enough."""

    def __init__(self, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.left, self.done = kills, 0
        self._draw = random.Random(seed)
        self._stopped = threading.Event()

    def run(self) -> None:
        """Kill."""
        while self.done < self.left and not self._stopped.is_set():
            self._stopped.wait(self._draw.uniform(SHORTEST, LONGEST))
            workers = [process for process in psutil.Process().children(recursive=True) if _trains(process)]
            if workers and not self._stopped.is_set():
                os.kill(self._draw.choice(workers).pid, signal.SIGKILL)
                self.done += 1

    def stop(self) -> None:
        """Kill no more."""
        self._stopped.set()
        self.join()


def _trains(process: psutil.Process) -> bool:
    """Whether a process is a training worker of Ray's."""
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it just went
        return False


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lists = scored_lists([], 100)
    table: pa.Table = lists.to_arrow()
    train = Train(
        epochs=1000,
        patience=1000,
        max_steps=arguments.steps,
        lists=LISTS,
        list_size=LIST_SIZE,
        zero_stage=1,
        checkpoint_steps=50,
        max_failures=10 * arguments.kills,
        learning_rate=1e-3,
    )
    rows = [["run", "kills", "steps", "last loss", "seconds"]]
    with tempfile.TemporaryDirectory() as folder:
        encoder = random_cross_encoder(lists.explode("items").unnest("items"), 2, 64, Path(folder, "initial"))
        for name, kills in (("left alone", 0), ("killed", arguments.kills)):
            tree = {"data": {"shop": {}}, "storage": {"root": folder}, "resources": {"device": "cpu", "workers": 2}}
            out = Path(folder, name.replace(" ", "-"))
            out.mkdir()
            plan = Fit(
                task=name,
                name=out.name,
                train_lists=table,
                valid_lists=table.slice(0, 4),
                train=train,
                objective=Objective(Distill(), label_max=3.0),
                best=False,
            )
            killer = Killer(kills, arguments.seed)
            start = time.monotonic()
            killer.start()
            with Reporter() as reporter:
                fit(Run(parse_config(tree), reporter), encoder, plan, out)
            killer.stop()
            told = history(out)
            seconds = time.monotonic() - start
            steps = int(sum(epoch["steps"] for epoch in told))
            rows.append([name, str(killer.done), str(steps), f"{told[-1]['loss']:.5f}", f"{seconds:.0f}"])
            print(rows[-1], flush=True)
    print(format_table(rows))


if __name__ == "__main__":
    main()
