"""Times an artifact as it will be served: in a process of its own, with nothing beside it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from rankstill.artifacts import load_artifact
from rankstill.errors import RunError
from rankstill.quiet import QuietLock

WARM_UP, PARTS, SECONDS = 5, 9, 8.0
"""Rankings before timing; parts timed of each size, at most; and the time after which fewer do."""


@dataclass(frozen=True)
class Timing:
    """What is timed: an artifact in a runtime, on rankings of several sizes."""

    artifact: str
    runtime: str
    """torch or onnx."""
    threads: int
    counts: tuple[int, ...]
    """Candidates of a ranking."""
    rankings: tuple[tuple[str, tuple[str, ...]], ...]
    """Queries, each with the texts of as many items as the largest count."""
    part: int = 100
    """Rankings of a part; fewer tell the median alone."""


def time_alone(root: Path, timing: Timing) -> dict[str, Any]:
    """Time in a new process, while work of the same storage root on this machine pauses.

    `latency` has p50_ms and p99_ms by count, tokenising included; p99 is the median of those of up to nine parts, so
    that a burst of other work on the machine doesn't count. `pairs_per_second` is of the largest
    count; `load_seconds` and `resident_bytes` are what loading and warming up take; `bytes` is the model file's size.

    Raises:
        RunError: the process failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(timing.threads), "TOKENIZERS_PARALLELISM": "false"}
    with QuietLock(root).alone():
        done = subprocess.run(
            [sys.executable, "-m", "rankstill.timing"],
            input=json.dumps(asdict(timing)),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    if done.returncode:
        raise RunError(f"timing {timing.artifact!r} failed: {done.stderr.strip().splitlines()[-1:]}; load it by hand")
    return json.loads(done.stdout.splitlines()[-1])


def time_here(timing: Timing) -> dict[str, Any]:
    """`time_alone` without the process and the silence."""
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    artifact = load_artifact(Path(timing.artifact), "artifact")
    scorer = artifact.scorer(timing.runtime, timing.threads)
    for query, texts in timing.rankings[:WARM_UP]:
        scorer.score([query] * len(texts), texts)
    loaded, resident = time.perf_counter() - start, process.memory_info().rss - before
    latency, rate = {}, 0.0
    for count in sorted(timing.counts):
        taken = _rankings(scorer.score, timing, count)
        p50, p99 = float(np.median(taken)), float(np.median(np.percentile(taken, 99, axis=1)))
        latency[str(count)] = {"p50_ms": round(p50 * 1000, 3), "p99_ms": round(p99 * 1000, 3)}
        rate = count / p50
    return {
        "latency": latency,
        "pairs_per_second": round(rate, 1),
        "load_seconds": round(loaded, 3),
        "bytes": artifact.model_file(timing.runtime).stat().st_size,
        "resident_bytes": resident,
    }


def _rankings(score: Any, timing: Timing, count: int) -> NDArray[np.float64]:
    """Seconds of rankings of `count` candidates, one after the other, [parts, rankings]."""
    parts: list[list[float]] = []
    while not parts or (len(parts) < PARTS and sum(map(sum, parts)) < SECONDS):
        parts.append([])
        for place in range(timing.part):
            query, texts = timing.rankings[place % len(timing.rankings)]
            start = time.perf_counter()
            score([query] * count, texts[:count])
            parts[-1].append(time.perf_counter() - start)
    return np.array(parts)


def choose_rankings(
    queries: list[str], texts: list[str], count: int, rankings: int = 50, seed: int = 0
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Queries drawn at random, each with `count` texts drawn at random (again and again, where there are fewer)."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(queries), min(rankings, len(queries)), replace=False)
    return tuple(
        (
            queries[query],
            tuple(texts[place] for place in generator.choice(len(texts), count, replace=count > len(texts))),
        )
        for query in chosen
    )


if __name__ == "__main__":
    given = json.load(sys.stdin)
    rankings = tuple((query, tuple(texts)) for query, texts in given.pop("rankings"))
    print(json.dumps(time_here(Timing(**{**given, "counts": tuple(given["counts"])}, rankings=rankings))))
