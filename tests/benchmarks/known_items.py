"""Scoring items whose vectors are known, against scoring their texts: milliseconds for one query, in process.

    python -m tests.benchmarks.known_items [--items 5000] [--candidates 100] [--layers 2] [--width 384] [--queries 200]

A late student and a cross-encoder of the same encoder, random weights, answer the same requests by turns of 100, as
`rankstill.timing` times artifacts. Each request is a query with as many candidates as told, drawn at random.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rankstill.cli import format_table
from rankstill.item_index import ItemEncoder, KnownItemScorer, append_items, create_index, missing_items, tower_of
from rankstill.model_config import Student
from rankstill.scoring import torch_scorer
from rankstill.students import make_student
from rankstill.timing import Timing, choose_rankings, rank_by_turns
from tests.benchmarks.workload import generated_pairs, random_cross_encoder


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--queries", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    pairs = generated_pairs(arguments.items * 4)
    items = pairs.select("item_id", "text").unique("item_id", maintain_order=True)
    with tempfile.TemporaryDirectory() as folder:
        cross = random_cross_encoder(pairs, arguments.layers, arguments.width, Path(folder, "model"))
        late = make_student(Student(family="late", layers=arguments.layers, width=64, max_length=128), cross, 0)
        encoder = ItemEncoder.fast(late, os.cpu_count() or 1)
        index = create_index(Path(folder, "index"), "--out", "random", tower_of(late), ["title"])
        missing = missing_items(index, items)
        start = time.perf_counter()
        index = append_items(index, missing, [encoder.encode(missing["text"].to_list())])
        rate = items.height / (time.perf_counter() - start)
        known, scorer = KnownItemScorer(encoder, index), torch_scorer(cross, "cpu", "float32", 2048)
        text_of = dict(zip(items["item_id"], items["text"], strict=True))
        calls = {
            "cross, texts": lambda queries, ids: scorer.score(queries, [text_of[one] for one in ids]),
            "late, known items": lambda queries, ids: known.score(queries[0], ids),
        }
        rankings = choose_rankings(pairs.with_columns(text="item_id"), arguments.candidates, arguments.queries)
        timing = Timing((), os.cpu_count() or 1, (arguments.candidates,), rankings)
        times = 1000 * rank_by_turns(list(calls.values()), timing, arguments.candidates)
        size = sum(path.stat().st_size for path in index.folder.iterdir())
    print(f"{arguments.layers} layers x {arguments.width}, {arguments.candidates} candidates, {os.cpu_count()} cores")
    rows = [["scorer", "median ms", "p99 ms"]]
    rows += [
        [name, f"{np.median(one):.2f}", f"{np.percentile(one, 99):.2f}"] for name, one in zip(calls, times, strict=True)
    ]
    print(format_table(rows))
    print(f"indexing: {rate:,.0f} items/s, {size / items.height:,.0f} bytes an item")


if __name__ == "__main__":
    main()
