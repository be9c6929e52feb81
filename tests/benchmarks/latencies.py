"""What a sweep says that its students take, against a plain timing that shares no code with it.

    python -m tests.benchmarks.latencies --sweep STORAGE_ROOT/sweeps/KEY [--candidates 50] [--students 3] [--rounds 6]

Of the cross-encoders that the sweep timed side by side at its end, so many are timed again, from the quickest to the
slowest, each in a process of its own: with the sweep's own code and, by turns with it, with the tokenizers library and
ONNX Runtime (int8) or OpenVINO (float32) on the exported model, in batches of up to 64 tokens of padding. Rankings and
what is told of them are the sweep's: up to 4 parts of 100 rankings of candidates that are drawn from the valid queries'
pairs, and the lower quartile of their p50 and p99; of several rounds, the quietest. The machine is to do nothing else;
an idle Ray cluster, as it is beside the sweep's timings and beside an endpoint, is started (--without-ray: it isn't).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rankstill.artifacts import load_artifact
from rankstill.cli import format_table
from rankstill.cluster import connect
from rankstill.steps.teach import judged_split
from rankstill.timing import Timing, choose_rankings, time_alone
from tune.finals import THOROUGH
from tune.trials import TrialFiles, Variant, variants_of

PARTS, PART, QUIET_SHARE = 4, 100, 25
PADDING = 64


def main() -> None:
    """Choose students, time each in a process of its own, and print both timings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, metavar="FOLDER")
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--students", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2, help="sweep.measure_cpus of the sweep")
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(_time(**json.load(sys.stdin))))
        return
    if arguments.sweep is None or not (arguments.sweep / "winner.json").exists():
        parser.error(f"--sweep is {str(arguments.sweep)!r}; give the folder of a done sweep, STORAGE_ROOT/sweeps/KEY")
    if not arguments.without_ray:
        connect()
    rows = [["student", "form", "", "sweep ms", "now ms", "plain ms", "sweep / plain", "now / plain"]]
    for variant in _spread(arguments.sweep, arguments.candidates, arguments.students):
        told = variant.timing["latency"][str(arguments.candidates)]
        rankings = _rankings(variant, arguments.sweep)
        rounds = []
        for _ in range(arguments.rounds):
            now = _time_as_sweeps_do(variant, rankings, arguments.candidates, arguments.threads)
            rounds.append((now, _time_alone(variant, rankings, arguments.candidates, arguments.threads)))
        for name in ("p50_ms", "p99_ms"):
            now, plain = (min(one[side][name] for one in rounds) for side in (0, 1))
            form = f"{variant.precision}, {variant.runtime}"
            cells = [f"{value:.1f}" for value in (told[name], now, plain)]
            rows.append([variant.trial, form, name[:3], *cells, f"{told[name] / plain:.2f}", f"{now / plain:.2f}"])
    print(format_table(rows))


def _spread(sweep: Path, candidates: int, count: int) -> list[Variant]:
    """So many of the cross-encoders that were timed side by side, evenly from the quickest to the slowest."""
    files = TrialFiles(sweep)
    settled = files.settled()
    timed = [one.retimed(settled) for one in variants_of(files.all()) if one.name in settled]
    timed = [one for one in timed if load_artifact(one.folder).family == "cross"]
    timed.sort(key=lambda one: one.p99_ms(candidates))
    return [timed[place] for place in sorted({*np.linspace(0, len(timed) - 1, count).round().astype(int).tolist()})]


def _rankings(variant: Variant, sweep: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Those that the sweep timed."""
    data = load_artifact(variant.folder).manifest["made_from"]["data"]
    pairs = judged_split(pl.read_parquet(sweep.parents[1] / "data" / data / "pairs.parquet"), "valid")
    return choose_rankings(pairs, max(map(int, variant.timing["latency"])))


def _time_as_sweeps_do(variant: Variant, rankings: Any, candidates: int, threads: int) -> dict[str, float]:
    timing = Timing(((variant.artifact, variant.runtime),), threads, (candidates,), rankings, **THOROUGH)
    with tempfile.TemporaryDirectory() as root:
        return time_alone(Path(root), timing)[0]["latency"][str(candidates)]


def _time_alone(variant: Variant, rankings: Any, candidates: int, threads: int) -> dict[str, float]:
    given = {
        "folder": variant.artifact,
        "runtime": variant.runtime,
        "threads": threads,
        "max_length": load_artifact(variant.folder).manifest["max_length"],
        "rankings": [[query, list(texts)[:candidates]] for query, texts in rankings],
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.latencies", "--alone"],
        input=json.dumps(given),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
    )
    return json.loads(done.stdout)


def _time(
    folder: str, runtime: str, threads: int, max_length: int, rankings: list[tuple[str, list[str]]]
) -> dict[str, float]:
    """p50 and p99 of ranking, in milliseconds."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    model = str(Path(folder, "model.onnx"))
    if runtime == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(_as_served(model), options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        run = partial(session.run, None)
    else:
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        compiled = openvino.Core().compile_model(model, "CPU", options)
        names = [entry.any_name for entry in compiled.inputs]
        run = compiled

    def rank(query: str, texts: list[str]) -> None:
        encoded = sorted(tokenizer.encode_batch([(query, text) for text in texts]), key=lambda one: -len(one.ids))
        fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        while encoded:
            longest = len(encoded[0].ids)
            size = int((np.cumsum([longest - len(one.ids) for one in encoded]) <= PADDING).sum())
            batch, encoded = encoded[:size], encoded[size:]
            for one in batch:
                one.pad(longest)
            run({name: np.array([getattr(one, fields[name]) for one in batch], dtype=np.int64) for name in names})

    taken_PR = np.empty((PARTS, PART))
    for part in range(PARTS):
        for place in range(-10 if part == 0 else 0, PART):
            query, texts = rankings[place % len(rankings)]
            start = time.perf_counter()
            rank(query, texts)
            taken_PR[part, max(place, 0)] = 1000 * (time.perf_counter() - start)
    p50, p99 = np.percentile(np.percentile(taken_PR, (50, 99), axis=1), QUIET_SHARE, axis=1)
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def _as_served(path: str) -> bytes:
    """The model with signed weights in place of unsigned ones, where the CPU has VNNI."""
    import onnx
    from onnx.numpy_helper import from_array, to_array

    model = onnx.load(path)
    entries = {entry.name: entry for entry in model.graph.initializer}
    if "vnni" in Path("/proc/cpuinfo").read_text():
        products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
        for name in (node.input[place] for node in products for place in (1, 3)):
            if (weights := to_array(entries[name])).dtype == np.uint8:
                entries[name].CopyFrom(from_array((weights ^ 128).view(np.int8), name))
    return model.SerializeToString()


if __name__ == "__main__":
    main()
