"""An open-loop load generator: requests leave at their times, whether or not the ones before were answered.

    python -m tests.benchmarks.load --url http://127.0.0.1:8000/v1/rerank --bodies bodies.jsonl --rate 20 --seconds 10

Latencies count from the moment at which a request was to leave, so that a slow server isn't spared the requests that it
kept from leaving (the "coordinated omission" of closed loops). The process comes before all others where it may, for
clients have machines of their own, and aren't slow when the server is. Prints one line of JSON, and writes the answers,
where they are wanted, as lines of JSON of their own.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import numpy as np

from rankstill.priority import FIRST, come_first

AT_ONCE_MS = 50
"""Within which who can't be answered should hear so."""
PATIENCE = 20.0
"""Seconds after which an answer isn't waited for any more."""


@dataclass(frozen=True)
class Answer:
    """To one request."""

    body: int
    """Its place among the bodies."""
    due: float
    """Seconds after the first at which it was to leave."""
    ms: float
    """From then to the answer."""
    status: str
    """Of HTTP, or the kind of failure."""
    text: str = ""
    """What was answered, where it is kept."""


async def generate(url: str, bodies: list[bytes], rate: float, seconds: float, keep: bool = False) -> list[Answer]:
    """Send bodies, again and again, at a rate."""
    answers: list[Answer] = []
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def send(number: int, due: float) -> None:
            headers = {"content-type": "application/json"}
            place, text = number % len(bodies), b""
            try:
                async with session.post(url, data=bodies[place], headers=headers) as answer:
                    text, status = await answer.read(), str(answer.status)
            except (aiohttp.ClientError, TimeoutError) as error:
                status = type(error).__name__
            ms = (time.monotonic() - due) * 1000
            answers.append(Answer(place, due - begun, ms, status, text.decode() if keep else ""))

        begun = time.monotonic()
        tasks = []
        for number in range(round(rate * seconds)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(send(number, due)))
        await asyncio.gather(*tasks)
    return answers


def told(answers: Sequence[Answer], rate: float) -> dict[str, object]:
    """Counts by status, and percentiles of latency in ms."""
    latencies = [one.ms for one in answers if one.status == "200"]
    refused = [one.ms for one in answers if one.status == "429"]
    taken = max(one.due + one.ms / 1000 for one in answers)
    found: dict[str, object] = {"rate": rate, "sent": len(answers)}
    found["statuses"] = dict(Counter(one.status for one in answers))
    found["answered_per_second"] = round(len(latencies) / taken, 2)
    if latencies:
        p50, p99, worst = np.percentile(latencies, [50, 99, 100])
        found |= {"p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1), "worst_ms": round(float(worst), 1)}
    if refused:
        p50, p99 = np.percentile(refused, [50, 99])
        found |= {"refused_p50_ms": round(float(p50), 1), "refused_p99_ms": round(float(p99), 1)}
        found["refused_at_once"] = round(sum(ms <= AT_ONCE_MS for ms in refused) / len(refused), 4)
    return found


def main() -> None:
    """Send and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="one JSON body a line")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--answers", type=Path, help="file for the answers")
    arguments = parser.parse_args()
    come_first(FIRST)
    bodies = arguments.bodies.read_bytes().splitlines()
    keep = arguments.answers is not None
    answers = asyncio.run(generate(arguments.url, bodies, arguments.rate, arguments.seconds, keep))
    if keep:
        arguments.answers.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in answers))
    print(json.dumps(told(answers, arguments.rate)))


if __name__ == "__main__":
    main()
