"""Labelling: how fast the teacher's runtimes are, and what Ray and the label store take of it.

    python -m tests.benchmarks.labelling runtimes [--judgements FILE ...] [--model FOLDER]
    python -m tests.benchmarks.labelling ray [--pairs 50000]
    python -m tests.benchmarks.labelling large [--pairs 200000 1000000]

runtimes  scores the same pairs with sentence-transformers' CrossEncoder.predict, at the best of its batch sizes, and
          with ours; the share is of the fastest product of dense float32 matrices that this machine was seen to do.
          All but int8 and bfloat16 must give sentence-transformers' scores within 1e-4.
ray       labels generated pairs into a store, with an actor a core, and scores them in a plain loop in this process.
          The steady ratio counts from the first block on; what comes before is start-up.
large     labels very many pairs with a teacher that costs nothing; peak memory is the driver's.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino.opset13 as operators
import polars as pl
import ray
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder as Peer

from rankstill.cli import format_table
from rankstill.compression import quantise_artifact
from rankstill.config import Data, Source
from rankstill.configfile import load_config
from rankstill.cross_encoder import CrossEncoder, load_cross_encoder
from rankstill.data import read_judgements
from rankstill.exporting import export_artifact
from rankstill.labels import open_store
from rankstill.progress import Reporter
from rankstill.schema import ProgressEvent
from rankstill.scoring import PairScorer, Work, onnx_forward, openvino_scorer, torch_scorer
from rankstill.steps.labelling import LabelActor, Labeller, label_missing
from rankstill.steps.run import Run
from rankstill.teachers.kinds import LoadedTeacher, TeacherModel
from tests.benchmarks.workload import generated_pairs, label_hashed, random_cross_encoder, write_hashed

PEER = "sentence-transformers"
PEER_BATCHES = (8, 16, 32, 64, 128)
BLOCK = 4096
TOKEN_BUDGET = 2048
MAX_LENGTH = 128


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("runtimes")
    one.add_argument("--judgements", nargs="*", metavar="FILE", help="real pairs, of title and description")
    one.add_argument("--model", help="an encoder's folder; random weights of its shape of six layers otherwise")
    one.add_argument("--pairs", type=int, default=5000)
    one.add_argument("--repeats", type=int, default=3)
    two = parts.add_parser("ray")
    two.add_argument("--pairs", type=int, default=50_000)
    two.add_argument("--repeats", type=int, default=3)
    two.add_argument("--layers", type=int, default=6)
    two.add_argument("--width", type=int, default=384)
    three = parts.add_parser("large")
    three.add_argument("--pairs", type=int, nargs="+", default=[200_000, 1_000_000])
    three.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"runtimes": runtimes, "ray": ray_share, "large": large}[arguments.part](arguments)


def runtimes(arguments: argparse.Namespace) -> None:
    """Rates of sentence-transformers and of ours."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    pairs = judged_pairs(arguments.judgements) if arguments.judgements else generated_pairs(arguments.pairs)
    pairs = pairs.sample(min(arguments.pairs, pairs.height), seed=0)
    queries, texts = pairs["query"].to_list(), pairs["text"].to_list()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        if arguments.model:
            torch.manual_seed(0)
            encoder = load_cross_encoder(arguments.model, "--model", MAX_LENGTH, fresh_head=True)
            encoder.model.classifier.weight.data.mul_(20.0)  # so that scores differ visibly
            encoder.save(folder)
        else:
            encoder = random_cross_encoder(pairs, 6, 384, folder)
        rates, differ = measure(contestants(encoder, folder, cores, queries, texts), arguments.repeats, len(texts))
        lengths = encoder.tokenise(queries, texts).lengths_B
        flops = Work(int(lengths.sum()), 0, int((lengths**2).sum())).flops(encoder.backbone) / len(texts)
    peak = dense_peak(cores)
    base = statistics.median(rates[PEER])
    rows = [["runtime", "pairs/s", f"times {PEER}", "GFLOP/s", "share of peak", "largest difference"]]
    for name, values in rates.items():
        rate = statistics.median(values)
        speed = rate * flops / 1e9
        shares = (f"{rate / base:.2f}", f"{speed:.0f}", f"{speed / peak:.2f}")
        rows.append([name, f"{rate:.0f}", *shares, f"{differ[name]:.1g}"])
    print(f"{len(texts)} pairs of {lengths.mean():.0f} tokens, {cores} cores, peak {peak:.0f} GFLOP/s in float32")
    print(format_table(rows))


def contestants(
    encoder: CrossEncoder, folder: Path, cores: int, queries: list[str], texts: list[str]
) -> dict[str, Callable[[], NDArray[np.float32]]]:
    """What scores the pairs, by name; sentence-transformers first."""
    peer = Peer(str(folder), activation_fn=torch.nn.Identity(), device="cpu", max_length=MAX_LENGTH)
    given = list(zip(queries, texts, strict=True))

    def predict(batch: int, count: int) -> NDArray[np.float32]:
        return peer.predict(given[:count], batch_size=batch, show_progress_bar=False)

    def seconds(batch: int) -> float:
        start = time.perf_counter()
        predict(batch, 1000)
        return time.perf_counter() - start

    predict(PEER_BATCHES[0], 100)
    best = min(PEER_BATCHES, key=seconds)
    print(f"{PEER} is fastest with batches of {best}", flush=True)
    (folder.parent / "artifact").mkdir()
    (folder.parent / "small").mkdir()
    artifact = export_artifact(encoder, folder.parent / "artifact", {}, ["title"])
    small = quantise_artifact(artifact, folder.parent / "small")
    scorers: dict[str, PairScorer] = {
        "torch": torch_scorer(encoder, "cpu", "float32", TOKEN_BUDGET),
        "ONNX Runtime": artifact.scorer("onnx", cores, TOKEN_BUDGET),
        "OpenVINO": openvino_scorer(encoder, cores, "float32", TOKEN_BUDGET),
        "OpenVINO, bfloat16": openvino_scorer(encoder, cores, "bfloat16", TOKEN_BUDGET),
        "ONNX Runtime, int8": PairScorer(
            onnx_forward(small.folder / "model.onnx", cores), encoder.tokenizer, MAX_LENGTH, TOKEN_BUDGET
        ),
    }
    ours = {name: (lambda scorer=scorer: scorer.score(queries, texts)) for name, scorer in scorers.items()}
    return {PEER: lambda: predict(best, len(texts)), **ours}


def measure(
    scores: dict[str, Callable[[], NDArray[np.float32]]], repeats: int, count: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Pairs a second of each, repeat by repeat, and the largest differences to the first one's scores."""
    rates: dict[str, list[float]] = {name: [] for name in scores}
    differ, expected = {}, next(iter(scores.values()))()
    for _ in range(repeats):
        for name, score in scores.items():
            start = time.perf_counter()
            found = score()
            rates[name].append(count / (time.perf_counter() - start))
            differ[name] = float(np.abs(found - expected).max())
            exact = not name.endswith(("int8", "bfloat16"))
            assert not exact or differ[name] < 1e-4, f"{name} gives other scores"
        print({name: round(values[-1]) for name, values in rates.items()}, flush=True)
    return rates, differ


def dense_peak(cores: int) -> float:
    """GFLOP/s of the fastest dense float32 product, of a few sizes and two libraries."""
    return max(
        product_rate(size, product(size)) for size in (768, 1536, 3072) for product in (in_torch, in_openvino(cores))
    )


def in_torch(size: int) -> Callable[[], object]:
    """A product of square matrices in torch."""
    left, right = torch.randn(2, size, size)
    return lambda: torch.mm(left, right)


def in_openvino(cores: int) -> Callable[[int], Callable[[], object]]:
    """The same in OpenVINO."""

    def product(size: int) -> Callable[[], object]:
        left, right = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
        given = operators.parameter([size, size], np.float32)
        model = openvino.Model([operators.matmul(given, operators.constant(right), False, False)], [given])
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cores}
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        return lambda: request.infer([left], share_inputs=True)

    return product


def product_rate(size: int, multiply: Callable[[], object]) -> float:
    """GFLOP/s of the best of five products."""
    multiply()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def judged_pairs(files: Sequence[str]) -> pl.DataFrame:
    """Real pairs, of titles and descriptions."""
    sources = tuple(Source(path=file) for file in files)
    return read_judgements(sources, Data(sources=sources, fields=("title", "description")))


class FirstBlock(Reporter):
    """Notes when the first block came and how many pairs it stood for."""

    when = 0.0
    pairs = 0

    def advance(self, event: ProgressEvent) -> None:
        """Note the first event, show nothing."""
        if event.step and not self.pairs:
            self.when, self.pairs = time.perf_counter(), event.step


def ray_share(arguments: argparse.Namespace) -> None:
    """A plain loop and a label run, one after the other."""
    pairs = generated_pairs(arguments.pairs)
    rows = [["repeat", "plain pairs/s", "Ray pairs/s", "steady ratio", "ratio with start-up", "start-up s", "padding"]]
    steady, whole = [], []
    with tempfile.TemporaryDirectory() as temporary:
        encoder = random_cross_encoder(pairs, arguments.layers, arguments.width, Path(temporary, "model"))
        tree = {"data": {"sources": [{"path": "unused.jsonl"}]}, "storage": {"root": temporary}}
        settings = ["resources.device=cpu", "labels.precision=float32", f"labels.block={BLOCK}"]
        config = load_config(tree, [*settings, f"labels.token_budget={TOKEN_BUDGET}"])
        run = Run(config, Reporter())
        assert run.share.device == "cpu"
        for repeat in range(arguments.repeats):
            plain = plain_rate(encoder, pairs)
            first = FirstBlock()
            store = open_store(str(Path(temporary, "labels")), f"repeat{repeat}", {})
            model = TeacherModel("cross", str(Path(temporary, "model")), MAX_LENGTH)
            start = time.perf_counter()
            told = label_missing(Run(config, first), Labeller(model, "float32", store), pairs.lazy(), "generated")
            end = time.perf_counter()
            rate = (pairs.height - first.pairs) / (end - first.when)
            steady.append(rate / plain)
            whole.append(pairs.height / (end - start) / plain)
            cells = [
                f"{plain:.0f}",
                f"{rate:.0f}",
                f"{steady[-1]:.3f}",
                f"{whole[-1]:.3f}",
                f"{first.when - start:.1f}",
            ]
            rows.append([str(repeat), *cells, f"{told['padding']:.1%}"])
            print(rows[-1], flush=True)
        ray.shutdown()
    print(f"{pairs.height} pairs, {arguments.layers} layers x {arguments.width}, {os.cpu_count()} cores")
    print(format_table(rows))
    print(f"medians: steady {statistics.median(steady):.3f}, with start-up {statistics.median(whole):.3f}")


def plain_rate(encoder: CrossEncoder, pairs: pl.DataFrame) -> float:
    """Pairs a second of the same runtime in this process, with all cores."""
    scorer = openvino_scorer(encoder, os.cpu_count() or 1, "float32", TOKEN_BUDGET)
    scorer.score(pairs["query"].head(256).to_list(), pairs["text"].head(256).to_list())
    start = time.perf_counter()
    for block in pairs.iter_slices(BLOCK):
        scorer.score(block["query"].to_list(), block["text"].to_list())
    return pairs.height / (time.perf_counter() - start)


class TrivialActor(LabelActor):
    """Labels at no cost."""

    def load(self) -> LoadedTeacher:
        """A teacher whose score is the text's length."""
        return LoadedTeacher(None, lambda queries, texts: np.array([float(len(text)) for text in texts]), Work())


def large(arguments: argparse.Namespace) -> None:
    """Label very many pairs, each number of them in a process of its own, then once more."""
    if arguments.drive:
        start = time.perf_counter()
        told = label_hashed(arguments.drive, TrivialActor, "labels.block=16384")
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**told, "wall": seconds, "peak": peak}))
        return
    rows = [["pairs", "pairs/s", "with start-up", "peak MB", "again: pairs", "again: s"]]
    for count in arguments.pairs:
        with tempfile.TemporaryDirectory() as temporary:
            write_hashed(Path(temporary), count)
            one, two = (drive(Path(temporary)) for _ in range(2))
        rate = f"{one['pairs_per_second']:,.0f}"
        cells = [f"{count:,}", rate, f"{count / one['wall']:,.0f}", f"{one['peak'] / 1e6:,.0f}"]
        rows.append([*cells, str(two["pairs"]), f"{two['wall']:.1f}"])
        print(rows[-1], flush=True)
    print(format_table(rows))


def drive(folder: Path) -> dict:
    """A label run in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.labelling", "large", "--drive", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
