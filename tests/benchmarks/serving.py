"""The endpoint against other servers, on one machine, in one run.

    python -m tests.benchmarks.serving --model ARTIFACT --judgements crowdflower.jsonl.gz [--infinity COMMAND]

For each server: the same model and the same requests (a query of the judgements with 50 of their titles), sent at fixed
rates by a process of its own (`tests.benchmarks.load`); the highest rate at which 99 of 100 answers come within 500 ms
and none fails. An artifact of family late is served from an index of the items, `--steady` sends 100 of them at 20
requests a second, and the other servers get the model of `--peer-model`.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rankstill.artifacts import load_artifact
from rankstill.cli import format_table
from rankstill.config import Data, Source
from rankstill.data import prepare
from rankstill.steps.prepare import Prepared

LIMIT_MS = 500.0
START_SECONDS = 240.0
REFINEMENTS = 3
REQUESTS = 200


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="artifact folder")
    parser.add_argument("--judgements", required=True)
    parser.add_argument("--peer-model", type=Path, help="model folder of the other servers; the artifact where absent")
    parser.add_argument("--infinity", help="command of Infinity, in a virtual environment of its own")
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each rate")
    parser.add_argument("--rounds", type=int, default=1, help="starts of every server, by turns")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--steady", action="store_true", help="also 100 known items at 20 requests a second")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as name:
        folder = Path(name)
        pairs = read_pairs(arguments.judgements, folder)
        known = load_artifact(arguments.model).family != "cross"
        index = make_index(arguments.model, pairs, folder) if known else None
        bodies = write_bodies(folder / "plain.jsonl", pairs, arguments.candidates)
        own = write_bodies(folder / "own.jsonl", pairs, arguments.candidates, ids=known)
        hundred = write_bodies(folder / "hundred.jsonl", pairs, 100, ids=known) if arguments.steady else None
        rounds = []
        for number in range(arguments.rounds):
            root = folder / f"root{number}"
            rounds.append(measure_peers(arguments, bodies) | measure_own(arguments, own, hundred, index, root))
            print(format_table(rows_of(rounds)), flush=True)


PLAIN = "FastAPI, sentence-transformers"
Seen = dict[str, dict[str, Any]]
"""What the load generator saw, by what it was sent to."""


def measure_peers(arguments: argparse.Namespace, bodies: Path) -> Seen:
    """The other servers, one after the other."""
    peer, port, seen = str(arguments.peer_model or arguments.model), free_port(), {}
    command = [sys.executable, "-m", "tests.benchmarks.plain_server", "--model", peer, "--port", str(port)]
    with server(command, port, "/readyz"):
        seen[PLAIN] = capacity(port, "/v1/rerank", bodies, arguments.seconds)
    if arguments.infinity:
        port = free_port()
        command = [arguments.infinity, "v2", "--model-id", peer, "--engine", "torch", "--device", "cpu"]
        with server([*command, "--port", str(port), "--no-bettertransformer"], port, "/health"):
            seen["Infinity"] = capacity(port, "/rerank", bodies, arguments.seconds)
    return seen


def measure_own(
    arguments: argparse.Namespace, bodies: Path, hundred: Path | None, index: Path | None, root: Path
) -> Seen:
    """The endpoint, from an index where there is one; first at a steady rate, where that is wanted."""
    port, seen = free_port(), {}
    settings = [f"serve.replicas={arguments.replicas}", f"serve.runtime={arguments.runtime}", f"storage.root={root}"]
    if index:
        settings.append(f"serve.index={index}")
    command = [sys.executable, "-m", "serve.app", "--model", str(arguments.model), f"serve.port={port}"]
    with server([*command, *settings], port, "/readyz"):
        if hundred:
            seen["rankstill, 100 items at 20/s"] = load(port, "/v1/rerank", hundred, 20.0, 3 * arguments.seconds)
        seen["rankstill"] = capacity(port, "/v1/rerank", bodies, arguments.seconds)
    return seen


def rows_of(rounds: Sequence[Seen]) -> list[list[str]]:
    """Medians over the rounds, and the least and most times of the plain server's rate."""
    rows = [["server", "requests/s", "p50 ms", "p99 ms", "times plain", "least", "most"]]
    for name in rounds[0]:
        cells = [
            f"{np.median([seen[name][key] for seen in rounds]):.1f}"
            for key in ("answered_per_second", "p50_ms", "p99_ms")
        ]
        times = [seen[name]["answered_per_second"] / seen[PLAIN]["answered_per_second"] for seen in rounds]
        rows.append([name, *cells, *(f"{how(times):.2f}" for how in (np.median, min, max))])
    return rows


def read_pairs(path: str, folder: Path) -> pl.DataFrame:
    """Pairs of the judgements, by title."""
    (folder / "data").mkdir()
    prepare(Data(sources=(Source(path=path),), fields=("title",)), folder / "data")
    return Prepared("", folder / "data").pairs


def write_bodies(path: Path, pairs: pl.DataFrame, candidates: int, ids: bool = False) -> Path:
    """Requests of random queries with random items of all."""
    generator = np.random.default_rng(0)
    items = pairs.unique("item_id", maintain_order=True).select("item_id", "text")
    queries = pairs["query"].unique(maintain_order=True)
    lines = []
    for _ in range(REQUESTS):
        chosen = items[generator.choice(items.height, candidates, replace=False).tolist()]
        documents = [{"id": one} for one in chosen["item_id"]] if ids else chosen["text"].to_list()
        query = queries[int(generator.integers(len(queries)))]
        lines.append(json.dumps({"query": query, "documents": documents}))
    path.write_text("\n".join(lines) + "\n")
    return path


def make_index(model: Path, pairs: pl.DataFrame, folder: Path) -> Path:
    """An index of all items."""
    items = pairs.unique("item_id", maintain_order=True).select("item_id", title="text")
    items.write_parquet(folder / "items.parquet")
    command = [sys.executable, "-m", "jobs.index", "--model", str(model), "--items", str(folder / "items.parquet")]
    settings = [f"storage.root={folder / 'index_root'}", "data.fields=[title]"]
    subprocess.run([*command, "--out", str(folder / "index"), *settings], check=True, stdout=subprocess.DEVNULL)
    return folder / "index"


@contextmanager
def server(command: Sequence[str], port: int, ready: str) -> Iterator[Path]:
    """A server, from when it is ready; gives the file that it writes to."""
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(f"http://127.0.0.1:{port}{ready}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command[:3]} did not start: {Path(log.name).read_text()[-2000:]}")
                time.sleep(0.5)
            yield Path(log.name)
        finally:
            with suppress(ProcessLookupError):  # it has ended
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    """Whether a server answers well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def load_command(port: int, path: str, bodies: Path, rate: float, seconds: float) -> list[str]:
    """The load generator, as a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.load", "--url", f"http://127.0.0.1:{port}{path}"]
    return [*command, "--bodies", str(bodies), "--rate", str(rate), "--seconds", str(seconds)]


def load(port: int, path: str, bodies: Path, rate: float, seconds: float) -> dict[str, Any]:
    """What the load generator saw."""
    command = load_command(port, path, bodies, rate, seconds)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    print(json.dumps(told), file=sys.stderr, flush=True)
    return told


def capacity(port: int, path: str, bodies: Path, seconds: float) -> dict[str, Any]:
    """The highest rate that is answered as it should be, found by doubling and then halving the gap."""
    load(port, path, bodies, 1.0, 5.0)
    good: dict[str, Any] = {"rate": 0.0, "answered_per_second": 0.0, "p50_ms": float("nan"), "p99_ms": float("nan")}
    rate = 1.0
    while within(told := load(port, path, bodies, rate, seconds)):
        good, rate = told, rate * 2
    low, high = float(good["rate"]), rate
    for _ in range(REFINEMENTS):
        rate = (low + high) / 2
        told = load(port, path, bodies, rate, seconds)
        if within(told):
            good, low = told, rate
        else:
            high = rate
    return good


def within(told: dict[str, Any]) -> bool:
    """Whether all was answered, and fast enough."""
    return set(told["statuses"]) == {"200"} and told["p99_ms"] <= LIMIT_MS


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
