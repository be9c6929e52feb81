"""Challengers that are broken on purpose, and what becomes of them and of shoppers' requests.

    python -m tests.benchmarks.sabotage --model ARTIFACT --judgements crowdflower.jsonl.gz [--only random]

One has random weights, one takes 300 ms longer, one fails in 5 of 100 requests; each is tried as refresh.canary says by
default. Counted: the seconds from its first request, a copy, to its end, and the requests that it answered to shoppers.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from ray import serve

from rankstill.artifacts import load_artifact
from rankstill.cli import format_table
from rankstill.configfile import load_config
from rankstill.event_log import EventLog
from rankstill.exporting import export_artifact
from rankstill.loop import Loop
from rankstill.registry import Registry
from rankstill.rollout import Rollout, described
from rankstill.serving import Endpoint, Serving, with_version
from serve.app import BuildArguments, find, ranker
from serve.messages import Refusal, ScoreRequest, Scores
from serve.replica import Replica
from tests.benchmarks.serving import free_port, read_pairs, server, write_bodies
from tests.benchmarks.upheaval import Bench, dashboard_of

SLOWER, FAILING = 0.3, 0.05
LEAD_SECONDS = 5.0
SABOTAGES = (("random", 2, ""), ("slower", 3, "slow"), ("errors", 4, "failing"))
"""What they are called, their numbers in the registry, and what builds their replicas."""
deployment: Any = serve.deployment


class Slow(Replica):
    """Answers late."""

    async def score(self, request: ScoreRequest) -> Scores | Refusal:
        """As it would have, but for the time."""
        await asyncio.sleep(SLOWER)
        return await super().score(request)


class Failing(Replica):
    """Fails now and then."""

    async def score(self, request: ScoreRequest) -> Scores | Refusal:
        """As it would have, most of the time."""
        if random.random() < FAILING:
            raise RuntimeError("sabotage")
        return await super().score(request)


def sabotaged(arguments: BuildArguments, kind: type[Replica]) -> serve.Application:
    """The replicas of a version, in another class."""
    own = ranker(arguments, find(arguments).artifact)
    given = own._bound_deployment  # what Serve binds has no public way back
    return given.options(func_or_class=kind).bind(*given.init_args)


def slow(arguments: BuildArguments) -> serve.Application:
    """For Serve's REST interface."""
    return sabotaged(arguments, Slow)


def failing(arguments: BuildArguments) -> serve.Application:
    """For Serve's REST interface."""
    return sabotaged(arguments, Failing)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="artifact folder of the champion")
    parser.add_argument("--judgements", required=True)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--rate", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=75.0)
    parser.add_argument("--only", choices=[what for what, *_ in SABOTAGES])
    arguments = parser.parse_args()
    if os.environ.get("RAY_AUTH_MODE") != "token":  # as the endpoint's cluster asks; Ray read it at import
        own = str(Path(__file__).parents[2])
        os.environ |= {"RAY_AUTH_MODE": "token", "PYTHONPATH": f"{own}:{os.environ.get('PYTHONPATH', '')}"}
        os.execv(sys.executable, [sys.executable, "-m", "tests.benchmarks.sabotage", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="sabotage-") as name:
        run(arguments, Path(name))


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Start the endpoint, and try one after the other."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    root = folder / "root"
    registry = Registry(root)
    for number, artifact in enumerate([arguments.model, scrambled(arguments.model, folder / "random")]):
        registry.register("shop", artifact, {"number": str(number)})
    for kind in ("slow", "failing"):
        shutil.copytree(arguments.model, folder / kind)
        registry.register("shop", folder / kind, {})
    bodies = write_bodies(folder / "bodies.jsonl", read_pairs(arguments.judgements, folder), arguments.candidates)
    port = free_port()
    command = [sys.executable, "-m", "serve.app", "--model", "shop/1", f"serve.port={port}", "serve.replicas=1"]
    rows = [["sabotage", "requests", "statuses", "answered by it", "share", "ended after s", "why"]]
    with server([*command, f"storage.root={root}"], port, "/readyz") as log:
        bench = Bench(port, bodies, {}, arguments.rate, folder, dashboard_of(log))
        serving = Serving(bench.dashboard)
        for what, number, target in SABOTAGES:
            if arguments.only not in (None, what):
                continue
            if target:
                version = described(registry.resolve(f"shop/{number}", "benchmark"))
                config = with_version(serving.config(), version, version.version)
                config["applications"][-1]["import_path"] = f"tests.benchmarks.sabotage:{target}"
                serving.deploy(config)
            rows.append([what, *tried(bench, registry, serving, root, number, arguments.seconds)])
            print(format_table([rows[0], rows[-1]]), flush=True)
    print(format_table(rows))


def tried(bench: Bench, registry: Registry, serving: Serving, root: Path, number: int, seconds: float) -> list[str]:
    """Try one while shoppers ask; a row of the table."""
    moments: dict[str, float] = {}
    loop, log = Loop(root, "shop"), EventLog(str(root / "feedback"))

    def say(_: str, **told: Any) -> None:
        moments.setdefault(str(told["state"]), time.monotonic())

    config = load_config({"data": {"shop": {}}}, [])
    rollout = Rollout(config, loop, registry, Endpoint(serving, lambda _: None), log, say)
    version = registry.resolve(f"shop/{number}", "benchmark")

    def work() -> None:
        time.sleep(LEAD_SECONDS)
        rollout.begin(version)
        rollout.see_through()

    thread = threading.Thread(target=work)
    answers = bench.under_load(thread.start, seconds)
    thread.join()
    names = Counter(json.loads(one.text)["model_version"] for one in answers if one.status == "200")
    failed = sum(one.status != "200" for one in answers)
    touched = names[str(version)] + failed
    decision = loop.state.decisions[-1]
    spent = moments["withdrawn"] - moments["shadow"]
    statuses = dict(Counter(one.status for one in answers))
    return [
        str(len(answers)),
        str(statuses),
        str(touched),
        f"{touched / len(answers):.2%}",
        f"{spent:.1f}",
        decision.why,
    ]


def scrambled(model: Path, folder: Path) -> Path:
    """An artifact with the same shape, and random weights."""
    artifact = load_artifact(model)
    encoder = artifact.encoder()
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    folder.mkdir()
    export_artifact(encoder, folder, artifact.manifest["made_from"], artifact.fields)
    return folder


if __name__ == "__main__":
    main()
