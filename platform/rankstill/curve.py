"""How shoppers take to each version, over time."""

from datetime import UTC, datetime
from typing import Any

import polars as pl

BUCKETS, SHORTEST = 120, 5.0
"""Points of a curve, at most about, and seconds of one at least."""


def curve(outcomes: pl.DataFrame) -> dict[str, Any]:
    """Points of `EventLog.outcomes`: by version and time its requests, and the share of them with a click.

    `seconds` is the length of one; a point is at its middle, in seconds of Unix time.
    """
    if outcomes.is_empty():
        return {"seconds": SHORTEST, "points": []}
    at = outcomes["at"].dt.timestamp("ms") / 1000
    first, last = float(at.min()), float(at.max())  # pyright: ignore[reportArgumentType] (of numbers)
    seconds = max(SHORTEST, (last - first) / BUCKETS)
    table = outcomes.with_columns(bucket=((at - first) / seconds).floor(), clicked=pl.col("gain") > 0)
    found = table.group_by("model_version", "bucket").agg(requests=pl.len(), rate=pl.col("clicked").mean())
    points = [
        {
            "version": version,
            "at": round(first + (bucket + 0.5) * seconds, 1),
            "requests": count,
            "rate": round(rate, 4),
        }
        for version, bucket, count, rate in found.sort("bucket", "model_version").iter_rows()
    ]
    return {"seconds": seconds, "points": points, "written": datetime.now(UTC).isoformat()}
