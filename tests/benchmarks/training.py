"""Training speed against sentence-transformers' CrossEncoderTrainer: same model, batch size, optimizer and cores.

    python -m tests.benchmarks.training [--judgements FILE ...] [--steps 40] [--repeats 3] [--precision float32]

Both learn scores of pairs, generated or those of judgement files, with 128 pairs a step, one after the other in each
repeat. What warms up isn't counted: the peer's first step, our first epoch, after which a second of as many steps is
timed. Both compute in the same number format.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from rankstill.cli import format_table
from rankstill.config import Data, Shop, Source
from rankstill.configfile import parse_config
from rankstill.cross_encoder import CrossEncoder
from rankstill.data import read_judgements
from rankstill.model_config import Distill, Train
from rankstill.objective import Objective
from rankstill.progress import Reporter
from rankstill.steps.fit import Fit, fit, history
from rankstill.steps.run import Run
from tests.benchmarks.peers import train_peer
from tests.benchmarks.workload import generated_pairs, random_cross_encoder

LISTS, LIST_SIZE = 8, 16
MAX_LENGTH = 128


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judgements", nargs="*", default=[], metavar="FILE", help="real pairs, of which titles count")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "auto"), default="auto")
    arguments = parser.parse_args()
    train = Train(epochs=2, patience=2, lists=LISTS, list_size=LIST_SIZE, dropout=0.1, precision=arguments.precision)
    lists = scored_lists(arguments.judgements, arguments.steps)
    rows, ratios = [["repeat", "sentence-transformers pairs/s", "ours pairs/s", "ratio"]], []
    with tempfile.TemporaryDirectory() as folder:
        pairs = lists.explode("items").unnest("items")
        encoder = random_cross_encoder(pairs, arguments.layers, arguments.width, Path(folder, "initial"))
        for repeat in range(arguments.repeats):
            out = Path(folder, f"peer{repeat}")
            peer = train_peer(
                "mse",
                Path(folder, "initial"),
                pairs,
                train.model_copy(update={"max_steps": arguments.steps + 1}),
                LISTS * LIST_SIZE,
                MAX_LENGTH,
                out,
            )
            ours = our_rate(Path(folder), f"ours{repeat}", encoder, lists, train)
            ratios.append(ours / peer)
            rows.append([str(repeat), f"{peer:.0f}", f"{ours:.0f}", f"{ratios[-1]:.2f}"])
            print(rows[-1], flush=True)
    print(f"{arguments.layers} layers x {arguments.width}, {os.cpu_count()} cores, {arguments.precision}")
    print(format_table(rows))
    print(f"median ratio ours / sentence-transformers: {statistics.median(ratios):.2f}")


def scored_lists(files: Sequence[str], steps: int) -> pl.DataFrame:
    """Lists of pairs, generated or from files, with random scores: as many as one epoch takes."""
    count = steps * LISTS * LIST_SIZE
    data = Data(shop=Shop(), fields=("title",))
    if files:
        pairs = read_judgements([Source(path=file) for file in files], data).sample(count, seed=0, shuffle=True)
    else:
        pairs = generated_pairs(count)
    scores = np.random.default_rng(0).normal(size=pairs.height).astype(np.float32)
    numbered = pairs.with_row_index("row").with_columns(
        query_id=(pl.col("row") // LIST_SIZE).cast(pl.String),
        score=pl.Series(scores),
        label=pl.lit(None, pl.Float32),
        logits=pl.lit(None, pl.List(pl.Float32)),
    )
    return numbered.group_by("query_id", maintain_order=True).agg(
        pl.col("query").first(), items=pl.struct("item_id", "text", "label", "score", "logits")
    )


def our_rate(folder: Path, name: str, encoder: CrossEncoder, lists: pl.DataFrame, train: Train) -> float:
    """Pairs a second of our training."""
    tree = {"data": {"shop": {}}, "storage": {"root": str(folder)}, "resources": {"device": "cpu", "workers": 1}}
    table: pa.Table = lists.to_arrow(compat_level=pl.CompatLevel.oldest())
    plan = Fit(
        task="train",
        name=name,
        train_lists=table,
        valid_lists=table.slice(0, 4),
        train=train,
        objective=Objective(Distill(), label_max=3.0),
        best=False,
    )
    with Reporter() as reporter:
        (folder / name).mkdir()
        fit(Run(parse_config(tree), reporter), encoder, plan, folder / name)
    return history(folder / name)[-1]["pairs_per_second"]


if __name__ == "__main__":
    main()
