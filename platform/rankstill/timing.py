"""Times artifacts as they will be served: in a process of their own, with nothing beside it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from rankstill.artifacts import load_artifact
from rankstill.errors import RunError
from rankstill.priority import FIRST, come_first
from rankstill.quiet import QuietLock

if TYPE_CHECKING:  # what is timed here loads its models alone
    import polars as pl

WARM_UP = 5
"""Rankings before timing."""
QUIET_SHARE = 25
"""Percent of the parts of a timing that are taken to have had the machine for themselves."""


@dataclass(frozen=True)
class Timing:
    """What is timed: artifacts, by turns, so that other work slows all alike, on rankings of several sizes."""

    artifacts: tuple[tuple[str, str], ...]
    """Folder and runtime (see `Artifact.resolve`) of each."""
    threads: int
    counts: tuple[int, ...]
    """Candidates of a ranking."""
    rankings: tuple[tuple[str, tuple[str, ...]], ...]
    """Queries, each with the texts of as many items as the largest count."""
    part: int = 100
    """Rankings of a part; fewer tell the median alone."""
    parts: int = 9
    """Of each size, at most."""
    seconds: float = 8.0
    """Of an artifact and size, after which fewer parts do."""


def time_alone(root: Path, timing: Timing) -> list[dict[str, Any]]:
    """Time each artifact in a new process, while work of the same storage root on this machine pauses.

    The process comes before all others where it may, for an idle Ray cluster alone wakes some hundred times a second,
    and adds a tenth and more to p99.

    `latency` has p50_ms and p99_ms by count, tokenising included: the lower quartile of those of the parts, so that
    other work on the machine, even half of the time, counts little. `pairs_per_second` is of the largest count;
    `load_seconds` and `resident_bytes` are what loading and warming up take; `bytes` is the model file's size.

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
        names = ", ".join(repr(folder) for folder, _ in timing.artifacts)
        raise RunError(f"timing {names} failed: {done.stderr.strip().splitlines()[-1:]}; load it by hand")
    return json.loads(done.stdout.splitlines()[-1])


def time_here(timing: Timing) -> list[dict[str, Any]]:
    """`time_alone` without the process and the silence."""
    process, scorers, found = psutil.Process(), [], []
    for folder, runtime in timing.artifacts:
        before, start = process.memory_info().rss, time.perf_counter()
        artifact = load_artifact(Path(folder), "artifact")
        scorer = artifact.scorer(runtime, timing.threads)
        for query, texts in timing.rankings[:WARM_UP]:
            scorer.score([query] * len(texts), texts)
        scorers.append(scorer)
        loaded, resident = time.perf_counter() - start, process.memory_info().rss - before
        size = artifact.model_file(runtime).stat().st_size
        told = {"load_seconds": round(loaded, 3), "bytes": size, "resident_bytes": resident}
        found.append({"latency": {}, "pairs_per_second": 0.0, **told})
    for count in sorted(timing.counts):
        for told, taken in zip(found, rank_by_turns([one.score for one in scorers], timing, count), strict=True):
            p50, p99 = quietly(taken, 50), quietly(taken, 99)
            told["latency"][str(count)] = {"p50_ms": round(p50 * 1000, 3), "p99_ms": round(p99 * 1000, 3)}
            told["pairs_per_second"] = round(count / p50, 1)
    return found


def quietly(taken: NDArray[np.float64], percent: int) -> float:
    """A percentile of times, [parts, rankings], as it is while nothing else runs."""
    return float(np.percentile(np.percentile(taken, percent, axis=1), QUIET_SHARE))


def rank_by_turns(scores: Sequence[Any], timing: Timing, count: int) -> NDArray[np.float64]:
    """Seconds of rankings of `count` candidates, [scores, parts, rankings]; each part of one after that of another.

    Not each ranking: the threads of a runtime wait for the next one on the cores, for a while, and so another's ranking
    takes up to twice the time. What a part begins with isn't timed for the same reason.
    """
    parts: list[list[list[float]]] = []
    while not parts or (len(parts) < timing.parts and np.sum(parts) < timing.seconds * len(scores)):
        parts.append([])
        for score in scores:
            taken = []
            for place in range(-1, timing.part):
                query, texts = timing.rankings[place % len(timing.rankings)]
                start = time.perf_counter()
                score([query] * count, texts[:count])
                taken.append(time.perf_counter() - start)
            parts[-1].append(taken[1:])
    return np.array(parts).swapaxes(0, 1)


def choose_rankings(
    pairs: "pl.DataFrame", count: int, rankings: int = 50, seed: int = 0
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Queries drawn from pairs, each with `count` of all their texts (again and again, where there are fewer)."""
    queries, texts = (pairs[name].unique(maintain_order=True).to_list() for name in ("query", "text"))
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
    come_first(FIRST)
    given = json.load(sys.stdin)
    rankings = tuple((query, tuple(texts)) for query, texts in given.pop("rankings"))
    artifacts, counts = tuple(map(tuple, given.pop("artifacts"))), tuple(given.pop("counts"))
    print(json.dumps(time_here(Timing(artifacts, counts=counts, rankings=rankings, **given))))
