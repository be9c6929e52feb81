"""Learning from clicks: how likely a position is to be looked at, and what clicks then say of an item.

`shown` tables have a row for each item that was shown: `request_id`, `query`, `item_id`, `position` (from 0) and
`clicked`; where two neighbours were put in random order, `swap` is the upper one's position, in all the request's rows.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rankstill.errors import DataError

Floats = NDArray[Any]
Whole = NDArray[Any]

ITERATIONS, TOLERANCE = 5000, 1e-6
"""Of the position-based model's maximisation; it ends when no examination moves by more."""
LEAN = 5.0
"""Clicks that a position's examination leans on 1 / (position + 1) with, while it got few of its own."""
RESAMPLES = 40
"""Of requests, for intervals."""
Z = 1.959964
"""Of a two-sided 95 % interval of a normal distribution."""
SMALLEST = 1e-9
PRECISE = 1.5


@dataclass(frozen=True)
class Examination:
    """How likely each position is to be looked at, as a share of the first one, with 95 % intervals."""

    value_K: Floats
    low_K: Floats
    high_K: Floats
    method: str
    """Which experiment, or click model, it comes from."""
    requests: int
    """From which it was estimated."""

    def at(self, positions_N: Whole) -> Floats:
        """Of each position; those further down than the last are as likely as the last."""
        return self.value_K[np.minimum(positions_N, len(self.value_K) - 1)]

    def weights(self, positions_N: Whole, clip: float) -> Floats:
        """One over each position's examination, cut off at `clip`."""
        return np.minimum(1 / np.maximum(self.at(positions_N), SMALLEST), clip)

    @property
    def width(self) -> float:
        """The widest interval's upper end, over its lower one."""
        return float((self.high_K / np.maximum(self.low_K, SMALLEST)).max())

    def rows(self) -> list[list[str]]:
        """For a table, with its head."""
        curves = enumerate(zip(self.value_K, self.low_K, self.high_K, strict=True))
        told = [[str(place), f"{value:.3f}", f"{low:.3f} to {high:.3f}"] for place, (value, low, high) in curves]
        return [["position", "share", "95 % interval"], *told]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        curves = {name: np.round(vars(self)[f"{name}_K"], 4).tolist() for name in ("value", "low", "high")}
        return {"method": self.method, "requests": self.requests, **curves}


@dataclass(frozen=True)
class WeightedMean:
    """A mean under inverse-propensity weights, with its 95 % interval."""

    value: float
    low: float
    high: float
    effective: float
    """Size of an unweighted sample that says as much: (sum of weights)^2 / sum of squares (Kish, 1965)."""


def examination(shown: pl.DataFrame, positions: int) -> Examination:
    """Examination of the first positions: from neighbours in random order where there are enough, else from a model.

    A model assumes more, but learns from all requests; while swaps leave more than a factor of PRECISE open, whichever
    is more certain counts.

    Raises:
        DataError: neither can tell.
    """
    swaps = None
    if "swap" in shown.columns and shown["swap"].count():
        with suppress(DataError):  # of too few yet
            swaps = by_swaps(shown, positions)
    if swaps and swaps.width < PRECISE:
        return swaps
    try:
        return min((one for one in (by_model(shown, positions), swaps) if one), key=lambda one: one.width)
    except DataError:
        if swaps:
            return swaps
        raise


def by_swaps(shown: pl.DataFrame, positions: int) -> Examination:
    """Examination of the first positions, from neighbours whose order was drawn.

    Where positions k and k + 1 got their two items in random order, both show the same items on average, and their
    clicks are as their examinations: p(k+1) / p(k) = clicks(k+1) / clicks(k) (the swaps of Joachims, Swaminathan and
    Schnabel, "Unbiased Learning-to-Rank with Biased Feedback", 2017). Intervals are those of sums of logs of ratios of
    Poisson counts.

    Raises:
        DataError: too few clicks on a pair of neighbours.
    """
    drawn = shown.filter(pl.col("swap").is_not_null())
    below = pl.col("position") - pl.col("swap")
    clicks = drawn.filter(pl.col("clicked") & below.is_in([0, 1])).group_by("swap", below.alias("below")).len()
    count = {(upper, lower): number for upper, lower, number in clicks.iter_rows()}
    logs, variances = [0.0], [0.0]
    for upper in range(positions - 1):
        first, second = count.get((upper, 0), 0), count.get((upper, 1), 0)
        if not first or not second:
            raise DataError(
                f"positions {upper} and {upper + 1}, in random order, got {first} and {second} clicks; collect more, or"
                " estimate fewer positions"
            )
        logs.append(logs[-1] + float(np.log(second / first)))
        variances.append(variances[-1] + 1 / first + 1 / second)
    value_K, spread_K = np.exp(logs), np.exp(Z * np.sqrt(variances))
    return Examination(value_K, value_K / spread_K, value_K * spread_K, "swaps", drawn["request_id"].n_unique())


def by_model(shown: pl.DataFrame, positions: int, seed: int = 0) -> Examination:
    """Examination of the first positions under the position-based model.

    P(click on d for q at k) = p(k) * attraction(q, d) (Chuklin, Markov and de Rijke, "Click Models for Web Search",
    2015, section 3.3), with counts of clicks taken as Poisson's of these means. Pairs that were shown a few times only
    would otherwise flatter the positions where they were clicked; Poisson's likelihood is, but for a constant, that of
    where the clicks of a pair fell, given how many it got, without attractions, and its estimate is right whatever the
    distribution (Hausman, Hall and Griliches, "Econometric Models for Count Data", 1984; Wooldridge,
    "Distribution-Free Estimation of Some Nonlinear Panel Data Models", 1999). Examinations lean on 1 / (k + 1), as LEAN
    clicks at the first position would tell. Intervals are percentiles over resampled requests.

    Raises:
        DataError: there is a position that no clicked item shares with the others, so that nothing ties it to them.
    """
    rows = shown.filter(pl.col("position") < positions).select(
        request=pl.col("request_id").rank("dense") - 1,
        pair=pl.struct("query", "item_id").rank("dense") - 1,
        position=pl.col("position"),
        clicked=pl.col("clicked").cast(pl.Float64),
    )
    cells = rows.group_by("pair", "position", maintain_order=True).len().drop("len").with_row_index("cell")
    rows = rows.join(cells, on=["pair", "position"], how="left", maintain_order="left")
    requests = int(rows["request"].n_unique())
    cell_N, request_N = rows["cell"].to_numpy(), rows["request"].to_numpy()
    counts = _Counts(cells["pair"].to_numpy(), cells["position"].to_numpy(), positions)
    clicked_N = rows["clicked"].to_numpy()

    def fit(weight_N: Floats, start_K: Floats) -> Floats:
        shown_C = np.bincount(cell_N, weight_N, cells.height)
        return counts.fit(shown_C, np.bincount(cell_N, weight_N * clicked_N, cells.height), start_K)

    counts.require_tied(np.bincount(cell_N, clicked_N, cells.height))
    value_K = fit(np.ones(rows.height), counts.usual_K)
    generator = np.random.default_rng(seed)
    resampled = [fit(generator.poisson(1.0, requests).astype(float)[request_N], value_K) for _ in range(RESAMPLES)]
    low_K, high_K = np.percentile(resampled, [2.5, 97.5], axis=0)
    return Examination(value_K, low_K, high_K, "position-based model", requests)


@dataclass(frozen=True)
class _Counts:
    """Which pair was shown where: a cell for each that ever was."""

    pair_C: Whole
    position_C: Whole
    positions: int

    @property
    def usual_K(self) -> Floats:
        """Examinations that one would expect before any click."""
        return 1.0 / np.arange(1, self.positions + 1)

    def fit(self, shown_C: Floats, clicks_C: Floats, start_K: Floats) -> Floats:
        """The examinations under which the clicks are likeliest, the first being 1."""
        pair_C, position_C, value_K = self.pair_C, self.position_C, start_K
        clicks_P = np.bincount(pair_C, clicks_C)
        clicks_K = np.bincount(position_C, clicks_C, self.positions) + LEAN * self.usual_K
        for _ in range(ITERATIONS):
            looked_P = np.bincount(pair_C, shown_C * value_K[position_C])
            attraction_P = clicks_P / np.maximum(looked_P, SMALLEST)
            drawn_K = np.bincount(position_C, shown_C * attraction_P[pair_C], self.positions) + LEAN
            new_K = clicks_K / drawn_K
            new_K = new_K / new_K[0]  # only the product of both is known
            moved, value_K = np.abs(new_K - value_K).max(), new_K
            if moved < TOLERANCE:
                break
        return value_K

    def require_tied(self, clicks_C: Floats) -> None:
        """Check that clicked pairs tie all positions together."""
        clicked = np.isin(self.pair_C, self.pair_C[clicks_C > 0])
        pairs = int(self.pair_C.max()) + 1
        size = self.positions + pairs
        edges = (self.position_C[clicked], self.positions + self.pair_C[clicked])
        graph = coo_matrix((np.ones(clicked.sum()), edges), shape=(size, size))
        _, part_K = connected_components(graph, directed=False)
        apart = np.flatnonzero(part_K[: self.positions] != part_K[0])
        if len(apart):
            raise DataError(
                f"position {apart[0]} shares no clicked item with the others, so nothing tells how likely it is to be"
                " looked at; put neighbours in random order now and then (serve.swap_rate)"
            )


def cascade(shown: pl.DataFrame) -> pl.DataFrame:
    """How often each pair was clicked when it was looked at, if shoppers look from the top until they click.

    The cascade model of Craswell, Zoeter, Taylor and Ramsey, "An Experimental Comparison of Click Position-Bias
    Models", 2008. Columns query, item_id, looked (times), clicks, relevance.
    """
    first = pl.col("position").filter(pl.col("clicked")).min().over("request_id")
    looked = shown.filter(first.is_null() | (pl.col("position") <= first))
    counts = looked.group_by("query", "item_id", maintain_order=True).agg(
        looked=pl.len(), clicks=pl.col("clicked").sum().cast(pl.Int64)
    )
    return counts.with_columns(relevance=pl.col("clicks") / pl.col("looked"))


def relevance(shown: pl.DataFrame, seen: Examination, clip: float = 10.0, strength: float = 5.0) -> pl.DataFrame:
    """How often each pair would be clicked at the first position, by clicks weighted by 1 / examination.

    Weights are cut off at `clip`, which bounds what one click at the bottom can do. Rates lean on the mean of all pairs
    as if it had been seen `strength` times more. Columns query, item_id, shown (times), clicks, relevance, its 95 %
    interval low and high, and effective, the number of unweighted rows that say as much.
    """
    weight_N = seen.weights(shown["position"].to_numpy(), clip)
    rows = shown.select("query", "item_id", "clicked").with_columns(
        weight=pl.Series(weight_N), gained=pl.Series(weight_N * shown["clicked"].to_numpy())
    )
    mean = float(rows["gained"].mean() or 0.0)  # pyright: ignore[reportArgumentType] (of floats)
    found = rows.group_by("query", "item_id", maintain_order=True).agg(
        shown=pl.len(),
        clicks=pl.col("clicked").sum().cast(pl.Int64),
        gained=pl.col("gained").sum(),
        squares=(pl.col("gained") ** 2).sum(),
        effective=pl.col("weight").sum() ** 2 / (pl.col("weight") ** 2).sum(),
    )
    size = pl.col("shown") + strength
    found = found.with_columns(relevance=(pl.col("gained") + strength * mean) / size)
    rest = (pl.col("squares") + strength * mean * clip) / size - pl.col("relevance") ** 2
    spread = Z * (rest.clip(0.0) / size).sqrt()
    return found.with_columns(low=(pl.col("relevance") - spread).clip(0.0), high=pl.col("relevance") + spread).select(
        "query", "item_id", "shown", "clicks", "relevance", "low", "high", "effective"
    )


def click_targets(shown: pl.DataFrame, seen: Examination, clip: float = 10.0, strength: float = 5.0) -> pl.DataFrame:
    """What a student is to learn from clicks: columns query, item_id, and `clicks`, each shown item's share.

    The share is that of its query's debiased clicks, sum of gain / examination over the requests that showed it, whose
    weights are cut off at `clip`. Of a query's clicks, which count as n = (sum w)^2 / sum w^2 (Kish's effective sample
    size: one click far down is no more than one), the shares sum to n / (n + strength), as if `strength` further ones
    had gone nowhere: to little where there were few.
    """
    weight_N = seen.weights(shown["position"].to_numpy(), clip)
    rows = shown.select("query", "item_id", gained=pl.Series(weight_N) * shown["gain"])
    rows = rows.with_columns(squares=pl.col("gained") ** 2)
    found = rows.group_by("query", "item_id", maintain_order=True).agg(pl.col("gained", "squares").sum())
    total, squares = (pl.col(name).sum().over("query") for name in ("gained", "squares"))
    # gained / total * n / (n + strength), which is 0 where nothing was clicked
    return found.select(
        "query", "item_id", clicks=(pl.col("gained") * total / (total**2 + strength * squares)).fill_nan(0.0)
    )


def weighted_mean(values_N: Floats, weights_N: Floats, clip: float = np.inf) -> WeightedMean:
    """The mean of values under another policy than the one that was logged.

    `weights_N` is the probability under the other policy over that under the logged one, self-normalised (Swaminathan
    and Joachims, "The Self-Normalized Estimator for Counterfactual Learning", 2015). The interval is that of a ratio of
    means.

    Raises:
        DataError: all weights are zero.
    """
    weights_N = np.minimum(weights_N, clip)
    total = float(weights_N.sum())
    if total <= 0:
        raise DataError("all weights are 0: the logged policy never did what the other one would; log more")
    value = float(values_N @ weights_N) / total
    spread = Z * float(np.sqrt(np.sum((weights_N * (values_N - value)) ** 2))) / total
    return WeightedMean(value, value - spread, value + spread, total**2 / float(np.sum(weights_N**2)))
