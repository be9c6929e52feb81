"""How well click models find out who looks where.

    python -m tests.benchmarks.clicks [--open-bandit obd.jsonl.gz] [--sessions sessions.jsonl.gz]

SIMULATION: shoppers under the position-based model, of whom the models get to see what was shown and clicked. Then, of
the Open Bandit data (policy, item_id, position, clicked, propensity): the mean of 1 / propensity, which is the number
of items where propensities are right, and the click rate of the random policy as inverse-propensity weights tell it
from the other policy's log, beside the one that was logged. Of sessions (session, query, position, item_id, clicked):
the examination of the first positions.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import polars as pl

from rankstill.cli import format_table
from rankstill.feedback import by_model, by_swaps, weighted_mean

QUERIES, ITEMS = 40, 12
LOOKED_K = 1 / np.arange(1, 9) ** 0.8
REQUESTS = 400_000
POSITIONS = 10


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-bandit", type=Path)
    parser.add_argument("--sessions", type=Path)
    arguments = parser.parse_args()
    shown, _ = shoppers(REQUESTS, LOOKED_K, swaps=1.0)
    plain = shown.group_by("position").agg(pl.col("clicked").mean()).sort("position")["clicked"].to_numpy()
    rows = [["SIMULATION", *map(str, range(len(LOOKED_K))), "worst error"]]
    rows.append(["truth", *(f"{value:.3f}" for value in LOOKED_K), "-"])
    seen = (by_swaps(shown, len(LOOKED_K)), by_model(shown, len(LOOKED_K)))
    for name, value_K in {**{one.method: one.value_K for one in seen}, "clicks alone": plain / plain[0]}.items():
        rows.append([name, *(f"{value:.3f}" for value in value_K), f"{np.abs(value_K / LOOKED_K - 1).max():.1%}"])
    print(format_table(rows))
    if arguments.open_bandit:
        bandit(read(arguments.open_bandit))
    if arguments.sessions:
        seen = by_model(read(arguments.sessions).rename({"session": "request_id"}), POSITIONS)
        print(f"{seen.requests:,} sessions, {seen.method}")
        print(format_table(seen.rows()))


def shoppers(
    requests: int, looked_K: np.ndarray, swaps: float = 0.0, noise: float = 0.3, seed: int = 0
) -> tuple[pl.DataFrame, np.ndarray]:
    """What simulated shoppers were shown and clicked under the position-based model; and how attractive items are.

    Rankings are by attraction with noise; a share `swaps` of them has two neighbours in random order.
    """
    generator, positions = np.random.default_rng(seed), len(looked_K)
    attraction = generator.beta(2, 3, (QUERIES, ITEMS))
    query_R = generator.integers(QUERIES, size=requests)
    order = np.argsort(-attraction[query_R] - generator.normal(0, noise, (requests, ITEMS)), axis=1)[:, :positions]
    swap_R = np.where(generator.random(requests) < swaps, generator.integers(positions - 1, size=requests), -1)
    turned = np.flatnonzero((swap_R >= 0) & (generator.random(requests) < 0.5))
    upper = swap_R[turned]
    order[turned, upper], order[turned, upper + 1] = order[turned, upper + 1], order[turned, upper]
    clicked = generator.random((requests, positions)) < looked_K * attraction[query_R[:, None], order]
    table = pl.DataFrame(
        {
            "request_id": np.repeat(np.arange(requests), positions),
            "query": np.repeat(query_R, positions).astype(str),
            "item_id": order.ravel().astype(str),
            "position": np.tile(np.arange(positions), requests),
            "clicked": clicked.ravel(),
            "swap": np.repeat(swap_R, positions),
        }
    )
    return table.with_columns(pl.col("swap").replace(-1, None)), attraction


def bandit(log: pl.DataFrame) -> None:
    """Print how the logged propensities and the weights that are made of them agree with what happened."""
    items = log["item_id"].n_unique()
    rows = [["Open Bandit", "shown", "clicks", "mean of 1 / propensity", "items"]]
    for (policy,), part in log.group_by("policy", maintain_order=True):
        inverse = f"{(1 / part['propensity']).mean():.1f}"
        rows.append([str(policy), f"{part.height:,}", f"{part['clicked'].sum():,}", inverse, str(items)])
    print(format_table(rows))
    uniform, other = (log.filter((pl.col("policy") == "random") == same) for same in (True, False))
    clicks = uniform["clicked"].cast(float).to_numpy()
    logged = weighted_mean(clicks, np.ones(len(clicks)))
    weights = 1 / items / other["propensity"].to_numpy()
    weighed = weighted_mean(other["clicked"].cast(float).to_numpy(), weights)
    for name, one in (("logged", logged), ("from the other policy's log", weighed)):
        print(f"click rate of the random policy, {name}: {one.value:.4f} ({one.low:.4f} to {one.high:.4f})")
    print(f"effective size of that log: {weighed.effective:,.0f} of {other.height:,}")


def read(path: Path) -> pl.DataFrame:
    """Rows of JSON."""
    return pl.read_ndjson(gzip.decompress(path.read_bytes()))


if __name__ == "__main__":
    main()
