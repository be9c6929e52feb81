"""Scoring items whose vectors are known, against scoring their texts: milliseconds for one query, in process.

    python -m tests.benchmarks.known_items [--items 5000] [--candidates 100] [--layers 2] [--width 384] [--queries 200]

A late student and a cross-encoder of the same encoder, random weights, answer the same requests in turn. Each request
is a query with as many candidates as told, drawn at random.
"""

import argparse
import os
import statistics
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
from tests.benchmarks.workload import generated_pairs, random_cross_encoder

WARM_UP = 10


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
        ids, texts = items["item_id"].to_list(), items["text"].to_list()
        draw = np.random.default_rng(0)
        times: dict[str, list[float]] = {"cross, texts": [], "late, known items": []}
        for number, query in enumerate(pairs["query"].head(arguments.queries + WARM_UP)):
            chosen = draw.choice(len(ids), arguments.candidates, replace=False)
            wanted, shown = [ids[place] for place in chosen], [texts[place] for place in chosen]
            for name, call in (
                ("cross, texts", lambda: scorer.score([query] * len(shown), shown)),  # noqa: B023 - called at once
                ("late, known items", lambda: known.score(query, wanted)),  # noqa: B023
            ):
                start = time.perf_counter()
                call()
                if number >= WARM_UP:
                    times[name].append(1000 * (time.perf_counter() - start))
        size = sum(path.stat().st_size for path in index.folder.iterdir())
    print(f"{arguments.layers} layers x {arguments.width}, {arguments.candidates} candidates, {os.cpu_count()} cores")
    rows = [["scorer", "median ms", "p99 ms"]]
    rows += [[name, f"{statistics.median(one):.2f}", f"{np.percentile(one, 99):.2f}"] for name, one in times.items()]
    print(format_table(rows))
    print(f"indexing: {rate:,.0f} items/s, {size / items.height:,.0f} bytes an item")


if __name__ == "__main__":
    main()
