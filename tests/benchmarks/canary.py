"""What canaries decide about simulated challengers, and what that costs.

    python -m tests.benchmarks.canary [--runs 200] [--rate 0.3] [--look 250]

SIMULATION: requests are clicked with a rate that drifts over the day, the challenger's by so much more or less. Each
canary looks after every few requests. Prints how often each kind of challenger was promoted or refused, and the
traffic that it got until then.
"""

import argparse

import numpy as np

from rankstill.canary import Rules, Tally, share, verdict
from rankstill.cli import format_table

GAINS = (0.0, -0.05, 0.05)
DAY = 200_000
"""Requests of a day, over which the rate rises and falls by a fifth."""


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.3, help="of requests with a click")
    parser.add_argument("--look", type=int, default=250, help="requests between two looks")
    arguments = parser.parse_args()
    rows = [["challenger", "promoted", "refused: worse", "refused: no better", "median requests", "of the challenger"]]
    for gain in GAINS:
        ends = [run(gain, arguments.rate, arguments.look, seed) for seed in range(arguments.runs)]
        counts = [sum(end == kind for end, _, _ in ends) / len(ends) for kind in ("better", "worse", "equal")]
        medians = [f"{np.median([end[place] for end in ends]):,.0f}" for place in (1, 2)]
        rows.append([f"{gain:+.0%}", *(f"{count:.1%}" for count in counts), *medians])
    print(f"SIMULATION, {arguments.runs} canaries each, {arguments.rate:.0%} of the requests with a click")
    print(format_table(rows))


def run(gain: float, rate: float, look: int, seed: int) -> tuple[str, float, float]:
    """One canary: how it ended, and the requests in all and of the challenger until then."""
    generator, rules = np.random.default_rng(seed), Rules()
    stages: list[tuple[Tally, Tally]] = []
    total = 0
    while True:
        stage, portion = share(stages, rules)
        if stage == len(stages):
            stages.append((Tally(0, 0, 0), Tally(0, 0, 0)))
        now = rate * (1 + 0.2 * np.sin(2 * np.pi * total / DAY))
        challenger = int(generator.binomial(look, portion))
        clicks = [generator.binomial(n, p) for n, p in ((look - challenger, now), (challenger, now * (1 + gain)))]
        added = (Tally(look - challenger, clicks[0], clicks[0]), Tally(challenger, clicks[1], clicks[1]))
        stages[stage] = (stages[stage][0] + added[0], stages[stage][1] + added[1])
        total += look
        found, seen = verdict(stages, rules)
        if found != "open":
            return found, total, seen.requests


if __name__ == "__main__":
    main()
