"""Labelling with Ray Data against the same scoring loop without Ray, on the same cores, in one run.

    python -m tests.benchmarks.labelling [--pairs 50000] [--repeats 3] [--layers 6] [--width 384]

The plain loop scores the same blocks in this process, with as many threads as there are cores; the pool has one
actor a core. Each repeat runs one after the other. Ray's rate counts from the first block that an actor has scored
to the end of the last write; what comes before (actors that load the model) is told apart as start-up.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import polars as pl
import ray
import torch

from jobs.label import LabelActor, LabelJob
from jobs.pool import map_folder, write_blocks
from rankstill.cli import format_table
from rankstill.cluster import connect, share_of
from rankstill.config import Resources
from rankstill.cross_encoder import CrossEncoder
from rankstill.progress import Reporter
from rankstill.relay import relay
from rankstill.schema import ProgressEvent
from rankstill.scoring import torch_scorer
from rankstill.teachers.kinds import TeacherModel
from tests.benchmarks.workload import generated_pairs, random_cross_encoder

BLOCK = 4096
TOKEN_BUDGET = 2048


class FirstBlock(Reporter):
    """Notes when the first progress came and how many pairs it stood for."""

    when = 0.0
    pairs = 0

    def advance(self, event: ProgressEvent) -> None:
        """Note the first event, show nothing."""
        if not self.pairs:
            self.when, self.pairs = time.perf_counter(), event.step


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    arguments = parser.parse_args()
    pairs = generated_pairs(arguments.pairs)
    rows = [["repeat", "plain pairs/s", "Ray pairs/s", "ratio", "start-up s"]]
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        encoder = random_cross_encoder(pairs, arguments.layers, arguments.width, Path(folder, "model"))
        write_blocks(pairs, Path(folder, "pending"), BLOCK)
        connect()
        for repeat in range(arguments.repeats):
            plain = plain_rate(encoder, pairs)
            pooled, start_up = ray_rate(Path(folder), repeat, pairs.height)
            ratios.append(pooled / plain)
            rows.append([str(repeat), f"{plain:.0f}", f"{pooled:.0f}", f"{ratios[-1]:.3f}", f"{start_up:.1f}"])
            print(rows[-1], flush=True)
        ray.shutdown()
    print(f"{pairs.height} pairs, {arguments.layers} layers x {arguments.width}, {os.cpu_count()} cores")
    print(format_table(rows))
    print(f"median ratio Ray / plain: {statistics.median(ratios):.3f}")


def plain_rate(encoder: CrossEncoder, pairs: pl.DataFrame) -> float:
    """Pairs a second of the scoring loop in this process."""
    torch.set_num_threads(os.cpu_count() or 1)
    scorer = torch_scorer(encoder, "cpu", "float32", TOKEN_BUDGET)
    scorer.score(pairs["query"].head(256).to_list(), pairs["text"].head(256).to_list())
    start = time.perf_counter()
    for block in pairs.iter_slices(BLOCK):
        scorer.score(block["query"].to_list(), block["text"].to_list())
    return pairs.height / (time.perf_counter() - start)


def ray_rate(folder: Path, repeat: int, total: int) -> tuple[float, float]:
    """Pairs a second of the actor pool, writing included, and the seconds before its first block."""
    share = share_of(Resources(device="cpu"))
    first = FirstBlock()
    start = time.perf_counter()
    with relay(first) as mailbox:
        job = LabelJob(
            task="label",
            model=TeacherModel("cross", str(folder / "model"), 128),
            precision="float32",
            token_budget=TOKEN_BUDGET,
            device="cpu",
            threads=share.actor_cpus,
            total=total,
            mailbox=mailbox,
        )
        map_folder(LabelActor, job, folder / "pending", folder / f"done{repeat}", share.actors, BLOCK)
        end = time.perf_counter()
    written = pl.scan_parquet(folder / f"done{repeat}" / "*.parquet").select(pl.len()).collect().item()
    assert written == total, f"{written} of {total} pairs written"
    return (total - first.pairs) / (end - first.when), first.when - start


if __name__ == "__main__":
    main()
