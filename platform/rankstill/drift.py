"""How far demand has moved: population stability indices of what was asked, shown and scored."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

NAMED = 50
"""Most frequent queries or items that have a bin of their own; the others share one."""
SCORE_BINS = 10
FEWEST = 50
"""Requests of each side without which nothing is told."""

Floats = NDArray[np.float64]


def population_stability(before_B: Floats, now_B: Floats) -> float:
    """The population stability index of counts by bin: sum of (q - p) log(q / p), every bin with half a count more.

    It is the symmetrised Kullback-Leibler divergence (Jeffreys 1946; as an index, Siddiqi, "Credit Risk Scorecards",
    2006: below 0.1 little has changed, above 0.25 much). What chance alone makes of it, (B - 1) (1/n + 1/m) on average,
    is taken off, down to 0.
    """
    expected = (len(before_B) - 1) * (1 / max(before_B.sum(), 1) + 1 / max(now_B.sum(), 1))
    p_B, q_B = ((counts + 0.5) / (counts + 0.5).sum() for counts in (before_B, now_B))
    return max(0.0, float(np.sum((q_B - p_B) * np.log(q_B / p_B))) - expected)


def drift(before: pl.DataFrame, now: pl.DataFrame) -> dict[str, float | None]:
    """Indices of queries (by request), items (as shown) and scores between two tables of `EventLog.shown`.

    None where one of them has fewer than FEWEST requests.
    """
    sizes = [table["request_id"].n_unique() for table in (before, now)]
    if min(sizes) < FEWEST:
        return {"queries": None, "items": None, "scores": None}
    asked = [table.unique("request_id", keep="first", maintain_order=True) for table in (before, now)]
    edges = np.quantile(before["score"].to_numpy(), np.linspace(0, 1, SCORE_BINS + 1)[1:-1])
    scores = (np.bincount(np.searchsorted(edges, t["score"].to_numpy()), minlength=SCORE_BINS) for t in (before, now))
    return {
        "queries": population_stability(*_counts(*(table["query"] for table in asked))),
        "items": population_stability(*_counts(before["item_id"], now["item_id"])),
        "scores": population_stability(*(counts.astype(np.float64) for counts in scores)),
    }


def drift_since(shown: pl.DataFrame, batch: int) -> dict[str, float | None]:
    """`drift` of what was shown after a group of impressions from what was shown up to it."""
    return drift(shown.filter(pl.col("batch") <= batch), shown.filter(pl.col("batch") > batch))


def unknown(shown: pl.DataFrame, queries: pl.Series, items: pl.Series) -> dict[str, float]:
    """Shares of the requests whose query, and of the items shown that, a student hasn't learnt from."""
    asked = shown.unique("request_id")
    told = ((asked["query"], queries), (shown["item_id"], items))
    shares = [1.0 - float(values.is_in(known.unique().implode()).mean() or 0.0) for values, known in told]  # pyright: ignore[reportArgumentType] (of booleans)
    return {"queries": shares[0], "items": shares[1]}


def moved(report: dict[str, Any], limit: float) -> list[str]:
    """What drifted by more than a limit."""
    return [name for name, value in report.items() if value is not None and value > limit]


def _counts(before: pl.Series, now: pl.Series) -> tuple[Floats, Floats]:
    """Counts by bin: the values that are frequent on either side, and all others."""
    both = pl.DataFrame({"value": pl.concat([before, now]), "late": [0] * len(before) + [1] * len(now)})
    table = both.group_by("value").agg(before=(pl.col("late") == 0).sum(), now=(pl.col("late") == 1).sum())
    table = table.sort(pl.max_horizontal("before", "now"), "value", descending=[True, False])
    rest = table[NAMED:].select("before", "now").sum()
    kept = pl.concat([table[:NAMED].select("before", "now"), rest])
    return kept["before"].cast(pl.Float64).to_numpy(), kept["now"].cast(pl.Float64).to_numpy()
