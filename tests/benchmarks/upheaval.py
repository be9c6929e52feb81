"""The endpoint while its versions change, its processes are killed, and far too much is asked of it.

    python -m tests.benchmarks.upheaval --model ARTIFACT --other ARTIFACT --judgements crowdflower.jsonl.gz
        [--rounds 10] [--rate 10] [--capacity REQUESTS_A_SECOND]

Requests (a query with 50 titles of the judgements) leave at a steady rate, from a process of its own. Meanwhile the
second artifact is promoted and the first one brought back, again and again; then a ranker replica, the ingress, Serve's
controller, its proxy and HAProxy, where that is used, get SIGKILL. Each answer is compared with the scores of the
version that it names. Then the second artifact gets a tenth of the callers, and 10,000 of them ask twice. At the end
five times the capacity is asked for, for a minute; without `--capacity` it is measured as `tests.benchmarks.serving`
does.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from rankstill.artifacts import Artifact, load_artifact
from rankstill.cli import format_table
from rankstill.registry import Registry
from rankstill.served import Version
from rankstill.serving import Endpoint, Serving, app_of
from rankstill.text import normalise, normalise_query
from tests.benchmarks.load import Answer, told
from tests.benchmarks.serving import capacity, free_port, load, load_command, read_pairs, server, write_bodies

ROUTE = "/v1/rerank"
TOLERANCE = 1e-3
STEADY_SECONDS, AROUND_KILL, OVERLOAD_SECONDS, AFTER_SECONDS = 40.0, 50.0, 60.0, 15.0
TIMES = 5
CALLERS, CALLERS_RATE = 10_000, 80.0
VICTIMS = {
    "replica": r"Ranker",
    "ingress": r":Ingress",
    "controller": r"ray::ServeController",
    "proxy": r"ray::(ProxyActor|HAProxyManager)",
    "HAProxy": r"/haproxy -db",
}
"""What the processes that are killed are called."""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="artifact folder of the champion")
    parser.add_argument("--other", required=True, type=Path, help="artifact folder of the version that is promoted")
    parser.add_argument("--judgements", required=True)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="promotions, each with a rollback")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second, but for the overload")
    parser.add_argument("--capacity", type=float, help="requests a second that it can answer")
    parser.add_argument("--only", choices=("changes", "kills", "shares", "overload"))
    arguments = parser.parse_args()
    if os.environ.get("RAY_AUTH_MODE") != "token":  # as the endpoint's cluster asks; Ray read it at import
        os.environ["RAY_AUTH_MODE"] = "token"
        os.execv(sys.executable, [sys.executable, "-m", "tests.benchmarks.upheaval", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="upheaval-") as name:
        folder = Path(name)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        registry = Registry(folder / "root")
        artifacts = {f"shop/{n}": load_artifact(one) for n, one in enumerate((arguments.model, arguments.other), 1)}
        for artifact in artifacts.values():
            registry.register("shop", artifact.folder, {})
        bodies = write_bodies(folder / "bodies.jsonl", read_pairs(arguments.judgements, folder), arguments.candidates)
        expected = {name: scores_of(artifact, bodies) for name, artifact in artifacts.items()}
        port = free_port()
        command = [sys.executable, "-m", "serve.app", "--model", "shop/1", f"serve.port={port}"]
        settings = [f"serve.replicas={arguments.replicas}", f"storage.root={folder / 'root'}"]
        with server([*command, *settings], port, "/readyz") as log:
            bench = Bench(port, bodies, expected, arguments.rate, folder, dashboard_of(log))
            if arguments.only in (None, "changes"):
                changes(bench, artifacts, arguments.rounds)
            if arguments.only in (None, "kills"):
                kills(bench)
            if arguments.only in (None, "shares"):
                shares(bench, artifacts)
            if arguments.only in (None, "overload"):
                overload(bench, arguments.capacity)


@dataclass(frozen=True)
class Bench:
    """An endpoint, and requests to it."""

    port: int
    bodies: Path
    expected: dict[str, np.ndarray]
    """Relevance of each body's documents, by version."""
    rate: float
    """Requests a second."""
    folder: Path
    dashboard: str

    def under_load(self, work: Callable[[], None], seconds: float) -> list[Answer]:
        """Answers to requests of so many seconds, in the middle of which something is done."""
        path = self.folder / "answers.jsonl"
        command = load_command(self.port, ROUTE, self.bodies, self.rate, seconds)
        process = subprocess.Popen([*command, "--answers", str(path)], stdout=subprocess.DEVNULL)
        time.sleep(3.0)
        work()
        if process.poll() is not None:
            raise SystemExit(f"requests ended after {seconds:g} s, before what was to be done under them")
        process.wait()
        return [Answer(**json.loads(line)) for line in path.read_text().splitlines()]

    def steady(self, seconds: float) -> list[Answer]:
        """Answers with nothing else going on."""
        return self.under_load(lambda: None, seconds)

    def wrong(self, answers: Sequence[Answer]) -> int:
        """Answers that aren't the scores of the version that they name."""
        return sum(one.status == "200" and not self._right(one) for one in answers)

    def _right(self, answer: Answer) -> bool:
        given = json.loads(answer.text)
        expected = self.expected[given["model_version"]][answer.body]
        found = np.empty(len(expected))
        for result in given["results"]:
            found[result["index"]] = result["relevance_score"]
        return bool(np.abs(found - expected).max() < TOLERANCE)


def version_of(answer: Answer) -> str:
    """Which one answered, or the status where none did."""
    return json.loads(answer.text)["model_version"] if answer.status == "200" else answer.status


def changes(bench: Bench, artifacts: dict[str, Artifact], rounds: int) -> None:
    """Promote and roll back, and print what requests saw of it."""
    versions, endpoint = versions_of(artifacts), Endpoint(Serving(bench.dashboard), lambda _: None)
    steady = told(bench.steady(STEADY_SECONDS), bench.rate)
    taken: list[float] = []
    moments: list[str] = []
    begun = time.monotonic()

    def work() -> None:
        for _ in range(rounds):
            for version in (versions[1], versions[0]):
                start = time.monotonic()
                endpoint.promote(version, window=3600)
                taken.append(time.monotonic() - start)
                moments.append(f"{start - begun:.1f} to {time.monotonic() - begun:.1f}")

    seconds = 12.0 * rounds
    begun = time.monotonic()
    answers = bench.under_load(work, seconds)
    seen = told(answers, bench.rate)
    names = Counter(map(version_of, answers))
    rows = [["", "requests", "statuses", "p50 ms", "p99 ms", "worst ms", "wrong"]]
    for what, found in (("steady", steady), (f"{rounds} promotions and {rounds} rollbacks", seen)):
        cells = [str(found.get(key)) for key in ("sent", "statuses", "p50_ms", "p99_ms", "worst_ms")]
        rows.append([what, *cells, str(bench.wrong(answers)) if found is seen else "-"])
    print(format_table(rows))
    slowest = sorted(answers, key=lambda one: -one.ms)[:8]
    print("changes, in seconds:", ", ".join(moments))
    by_version = {name: np.median([one.ms for one in answers if version_of(one) == name]) for name in names}
    print("slowest:", ", ".join(f"{one.ms:.0f} ms at {one.due:.1f} s ({version_of(one)})" for one in slowest))
    print("p50 by version:", ", ".join(f"{name} {value:.1f} ms" for name, value in by_version.items()))
    print(
        f"answers by version: {dict(names)}; a change took {np.median(taken):.1f} s (median), the first loads replicas"
    )


def kills(bench: Bench) -> None:
    """Kill one process of each kind, and print what requests saw of it."""
    rows = [["killed", "requests", "statuses", "p99 ms", "worst ms", "wrong", "failed for s"]]
    for victim, called in VICTIMS.items():
        processes = psutil.process_iter(["cmdline"])
        found = [one for one in processes if re.search(called, " ".join(one.info["cmdline"] or []))]
        if not found:
            continue
        answers = bench.under_load(found[0].kill, AROUND_KILL)
        seen = told(answers, bench.rate)
        failed = [one.due for one in answers if one.status != "200"]
        cells = [str(seen.get(key)) for key in ("sent", "statuses", "p99_ms", "worst_ms")]
        rows.append([victim, *cells, str(bench.wrong(answers)), f"{max(failed) - min(failed):.1f}" if failed else "0"])
    print(format_table(rows))


def shares(bench: Bench, artifacts: dict[str, Artifact]) -> None:
    """Give the second version a tenth of the callers, and count who gets it."""
    Endpoint(Serving(bench.dashboard), lambda _: None).share(versions_of(artifacts)[1], {"weight": 10}, window=3600)
    small = {"query": "drill", "documents": ["cordless drill"]}
    path = bench.folder / "callers.jsonl"
    path.write_text("".join(f"{json.dumps({**small, 'user': f'caller {n}'})}\n" for n in range(CALLERS)))
    answers = replace(bench, bodies=path, rate=CALLERS_RATE).steady(2 * CALLERS / CALLERS_RATE)
    seen: dict[int, set[str]] = {}
    for one in answers:
        seen.setdefault(one.body, set()).add(version_of(one))
    second = sum(names == {"shop/2"} for names in seen.values())
    split = sum(len(names) > 1 for names in seen.values())
    print(f"{len(answers):,} requests of {len(seen):,} callers: {dict(Counter(one.status for one in answers))};")
    print(f"{second / len(seen):.2%} of the callers got the second version, {split} got more than one")


def versions_of(artifacts: dict[str, Artifact]) -> list[Version]:
    """Artifacts as an endpoint serves them."""
    return [
        Version(version=name, app=app_of(name), fields=tuple(artifact.fields), weight=0.0)
        for name, artifact in artifacts.items()
    ]


def overload(bench: Bench, given: float | None) -> None:
    """Ask for far too much, and print what is answered, refused and remembered."""
    most = given or float(capacity(bench.port, ROUTE, bench.bodies, 10.0)["answered_per_second"])
    before = resident()
    seen = load(bench.port, ROUTE, bench.bodies, TIMES * most, OVERLOAD_SECONDS)
    after = resident()
    answers = replace(bench, rate=most / 2).steady(AFTER_SECONDS)
    bad = [one.due for one in answers if one.status != "200" or one.ms > 500]
    goodput = float(seen["answered_per_second"])
    head = ["capacity/s", "asked/s", "answered/s", "of capacity", "statuses", "p99 ms"]
    head += ["429 p50 ms", "p99 ms", "in 50 ms"]
    told = ("statuses", "p99_ms", "refused_p50_ms", "refused_p99_ms", "refused_at_once")
    cells = [str(seen.get(key)) for key in told]
    row = [f"{most:.1f}", f"{TIMES * most:.1f}", f"{goodput:.1f}", f"{goodput / most:.2f}", *cells]
    print(format_table([head, row]))
    print(f"resident memory of the endpoint: {before / 1e6:,.0f} MB before, {after / 1e6:,.0f} MB after")
    print(f"well again {max(bad, default=0.0):.1f} s after the end")


def resident() -> int:
    """Bytes of the processes of Serve, without what they share."""
    found = 0
    for process in psutil.process_iter(["cmdline"]):
        if any(part.startswith(("ray::Serve", "ray::Proxy", "ray::HAProxy")) for part in process.info["cmdline"] or []):
            found += process.memory_info().rss - process.memory_info().shared
    return found


def scores_of(artifact: Artifact, bodies: Path) -> np.ndarray:
    """Relevance of each body's documents, [bodies, documents]."""
    scorer, (scale, offset) = artifact.scorer(threads=psutil.cpu_count() or 1), artifact.calibration
    rows = []
    for line in bodies.read_text().splitlines():
        body = json.loads(line)
        texts = [normalise(text) for text in body["documents"]]
        logits = scorer.score([normalise_query(body["query"])] * len(texts), texts).astype(np.float64)
        rows.append(1 / (1 + np.exp(-scale * logits - offset)))
    return np.array(rows)


def dashboard_of(log: Path) -> str:
    """Address of the dashboard, which the endpoint tells when it is ready."""
    while True:
        for line in log.read_text().splitlines():
            if '"state":"ready"' in line:
                return json.loads(line)["RAY_DASHBOARD_ADDRESS"]
        time.sleep(0.2)


if __name__ == "__main__":
    main()
