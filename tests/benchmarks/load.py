"""An open-loop load generator: requests leave at their times, whether or not the ones before were answered.

    python -m tests.benchmarks.load --url http://127.0.0.1:8000/v1/rerank --bodies bodies.jsonl --rate 20 --seconds 10

Latencies count from the moment at which a request was to leave, so that a slow server isn't spared the requests that it
kept from leaving (the "coordinated omission" of closed loops). Prints one line of JSON.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import aiohttp
import numpy as np

PATIENCE = 20.0
"""Seconds after which an answer isn't waited for any more."""


async def generate(url: str, bodies: list[bytes], rate: float, seconds: float) -> dict[str, object]:
    """Send bodies, again and again, at a rate; returns counts by status and percentiles of latency in ms."""
    latencies: list[float] = []
    refused: list[float] = []
    statuses: Counter[str] = Counter()
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def send(number: int, due: float) -> None:
            headers = {"content-type": "application/json"}
            try:
                async with session.post(url, data=bodies[number % len(bodies)], headers=headers) as answer:
                    await answer.read()
                    statuses[str(answer.status)] += 1
                    if answer.status == 200:
                        latencies.append(time.monotonic() - due)
                    elif answer.status == 429:
                        refused.append(time.monotonic() - due)
            except (aiohttp.ClientError, TimeoutError) as error:
                statuses[type(error).__name__] += 1

        begun = time.monotonic()
        tasks = []
        for number in range(round(rate * seconds)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(send(number, due)))
        await asyncio.gather(*tasks)
        taken = time.monotonic() - begun
    told: dict[str, object] = {"rate": rate, "sent": len(tasks), "statuses": dict(statuses)}
    told["answered_per_second"] = round(len(latencies) / taken, 2)
    if latencies:
        p50, p99, worst = np.percentile(latencies, [50, 99, 100]) * 1000
        told |= {"p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1), "worst_ms": round(float(worst), 1)}
    if refused:
        told["refused_p99_ms"] = round(float(np.percentile(refused, 99)) * 1000, 1)
    return told


def main() -> None:
    """Send and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="one JSON body a line")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    bodies = arguments.bodies.read_bytes().splitlines()
    print(json.dumps(asyncio.run(generate(arguments.url, bodies, arguments.rate, arguments.seconds))))


if __name__ == "__main__":
    main()
