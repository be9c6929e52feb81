"""Scoring with this library's runtimes against sentence-transformers' CrossEncoder.predict, in one run.

    python -m tests.benchmarks.scoring [--pairs 4000] [--repeats 3] [--model FOLDER]

Without --model, a model of six layers x 384 with random weights scores generated pairs. All runtimes use every core.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from rankstill.artifacts import export_artifact
from rankstill.cli import format_table
from rankstill.cross_encoder import load_cross_encoder
from tests.benchmarks.workload import generated_pairs, random_cross_encoder

PEER = "sentence-transformers"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", help="a cross-encoder folder")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    pairs = generated_pairs(arguments.pairs)
    queries, texts = pairs["query"].to_list(), pairs["text"].to_list()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.model:
            encoder = load_cross_encoder(arguments.model, "--model")
            encoder.save(Path(temporary, "model"))
        else:
            encoder = random_cross_encoder(pairs, 6, 384, Path(temporary, "model"))
        folder = Path(temporary, "artifact")
        folder.mkdir()
        artifact = export_artifact(encoder, folder, {}, ["title"])
        peer = CrossEncoder(str(Path(temporary, "model")), activation_fn=torch.nn.Identity(), device="cpu")
        torch_scorer, onnx_scorer = (artifact.scorer(runtime, cores) for runtime in ("torch", "onnx"))
        contestants: dict[str, Callable[[], np.ndarray]] = {
            PEER: lambda: peer.predict(list(zip(queries, texts, strict=True)), show_progress_bar=False),
            "torch": lambda: torch_scorer.score(queries, texts),
            "onnx": lambda: onnx_scorer.score(queries, texts),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        expected = contestants[PEER]()
        for _ in range(arguments.repeats):
            for name, score in contestants.items():
                start = time.perf_counter()
                scores = score()
                rates[name].append(len(texts) / (time.perf_counter() - start))
                assert np.allclose(scores, expected, atol=1e-4), f"{name} gives other scores"
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = [["runtime", "pairs/s (median)", f"times {PEER}"]]
    rows += [[name, f"{rate:.0f}", f"{rate / medians[PEER]:.2f}"] for name, rate in medians.items()]
    print(format_table(rows))


if __name__ == "__main__":
    main()
