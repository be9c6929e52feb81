"""Ranking metrics per query, with confidence intervals over queries."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankstill.text import digest

Floats = NDArray[np.float64]

METRICS = ("ndcg@10", "mrr@10", "map", "auc", "pairwise_accuracy", "spearman")
RELEVANT = 1.0
"""Smallest label that binary metrics (mrr, map, auc) count as relevant."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean over queries with its 95 % bootstrap interval; NaN where no query defines the metric."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        return {k: None if np.isnan(v) else round(v, 6) for k, v in vars(self).items()}


def per_query(pairs: pl.DataFrame, scores: Floats) -> pl.DataFrame:
    """One row a query (`query_id` and each of METRICS), in order of first appearance.

    `pairs` has query_id, item_id and label (row i scored by scores[i]). Items are first ordered by the hash of
    their id and equal scores keep that order, so a constant score gains nothing from the order of input. A metric
    is null where the query leaves it undefined: ndcg, pairwise_accuracy and spearman where all labels are equal,
    mrr and map where nothing is relevant, auc where everything or nothing is.
    """
    ranked = pairs.select("query_id", "item_id", "label").with_columns(
        score=pl.Series(scores, dtype=pl.Float64),
        tie=pl.col("item_id").map_elements(lambda item: digest(item, size=8), return_dtype=pl.String),
    )
    ranked = ranked.sort("tie", maintain_order=True)
    order = {query: place for place, query in enumerate(pairs["query_id"].unique(maintain_order=True))}
    rows = []
    for (query,), group in ranked.group_by("query_id", maintain_order=True):
        values = query_metrics(group["label"].to_numpy(), group["score"].to_numpy())
        rows.append({"query_id": query, "place": order[query], **values})
    schema = {"query_id": pl.String, "place": pl.Int64, **dict.fromkeys(METRICS, pl.Float64)}
    return pl.DataFrame(rows, schema).sort("place").drop("place")


def query_metrics(labels_N: Floats, scores_N: Floats) -> dict[str, float | None]:
    """All metrics of one query; equal scores keep the order of input."""
    labels_N = np.asarray(labels_N, dtype=np.float64)
    order = np.argsort(-np.asarray(scores_N, dtype=np.float64), kind="stable")
    ranked = labels_N[order]
    relevant = ranked >= RELEVANT
    varied = labels_N.size > 1 and labels_N.max() > labels_N.min()
    return {
        "ndcg@10": ndcg(ranked, 10) if varied else None,
        "mrr@10": _reciprocal_rank(relevant, 10) if relevant.any() else None,
        "map": _average_precision(relevant) if relevant.any() else None,
        "auc": _auc(labels_N >= RELEVANT, scores_N) if relevant.any() and not relevant.all() else None,
        "pairwise_accuracy": pairwise_accuracy(labels_N, scores_N) if varied else None,
        "spearman": spearman(labels_N, scores_N) if varied else None,
    }


def ndcg(ranked_N: Floats, k: int) -> float:
    """nDCG@k of labels in ranked order: gain 2^label - 1, discount 1 / log2(rank + 1) (Burges et al. 2005)."""
    gains = np.exp2(ranked_N) - 1.0
    discounts = 1.0 / np.log2(np.arange(2, min(k, gains.size) + 2))
    ideal = np.sort(gains)[::-1][:k] @ discounts
    return float(gains[:k] @ discounts / ideal)


def estimate(values: Iterable[float | None], seed: int = 0) -> Estimate:
    """Mean over the defined values and its percentile bootstrap interval (Efron 1979)."""
    defined = np.array([value for value in values if value is not None], dtype=np.float64)
    if not defined.size:
        return Estimate(float("nan"), float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    means = np.array([defined[generator.integers(0, defined.size, defined.size)].mean() for _ in range(RESAMPLES)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(defined.mean()), float(low), float(high))


def paired_difference(left: pl.DataFrame, right: pl.DataFrame, metric: str, seed: int = 0) -> Estimate:
    """Mean of left - right over the queries of both (frames of `per_query`), with its paired interval."""
    both = left.select("query_id", metric).join(right.select("query_id", other=metric), on="query_id").drop_nulls()
    return estimate((both[metric] - both["other"]).to_list(), seed)


def retention(student: pl.DataFrame, teacher: pl.DataFrame, metric: str, seed: int = 0) -> Estimate:
    """Mean of the student over mean of the teacher, over the queries of both (frames of `per_query`).

    The interval is the percentile bootstrap's, over queries.
    """
    both = student.select("query_id", metric).join(teacher.select("query_id", other=metric), on="query_id").drop_nulls()
    if both.is_empty():
        return Estimate(float("nan"), float("nan"), float("nan"))
    ours, theirs = both[metric].to_numpy(), both["other"].to_numpy()
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, ours.size, ours.size) for _ in range(RESAMPLES))
    low, high = np.percentile([ours[draw].mean() / theirs[draw].mean() for draw in draws], [2.5, 97.5])
    return Estimate(float(ours.mean() / theirs.mean()), float(low), float(high))


def summarise(table: pl.DataFrame) -> dict[str, Estimate]:
    """Every metric of a `per_query` table."""
    return {metric: estimate(table[metric].to_list()) for metric in METRICS}


def slices(pairs: pl.DataFrame) -> dict[str, pl.Series]:
    """Query ids by slice: each source, short (up to two words) and long queries, head and tail where known.

    The head is the most frequent fifth of the queries.
    """
    queries = pairs.group_by("query_id", maintain_order=True).agg(
        words=pl.col("query").first().str.count_matches(r"\S+"),
        frequency=pl.col("frequency").first(),
        source=pl.col("source").first(),
    )
    found = {
        "short query": queries.filter(pl.col("words") <= 2)["query_id"],
        "long query": queries.filter(pl.col("words") > 2)["query_id"],
    }
    if queries["source"].n_unique() > 1:
        found |= {f"source {name}": part["query_id"] for (name,), part in queries.group_by("source")}
    if queries["frequency"].null_count() == 0:
        head = queries.sort("frequency", descending=True, maintain_order=True).head(max(1, queries.height // 5))
        found["head query"] = head["query_id"]
        found["tail query"] = queries.join(head, on="query_id", how="anti")["query_id"]
    return {name: ids for name, ids in sorted(found.items()) if len(ids)}


def _reciprocal_rank(relevant_N: NDArray[np.bool_], k: int) -> float:
    found = np.flatnonzero(relevant_N[:k])
    return 1.0 / (found[0] + 1) if found.size else 0.0


def _average_precision(relevant_N: NDArray[np.bool_]) -> float:
    places = np.flatnonzero(relevant_N) + 1
    return float((np.arange(1, places.size + 1) / places).mean())


def _ranks(values_N: Floats) -> Floats:
    """Ranks from 1, ties' averaged."""
    return pl.Series(values_N).rank().to_numpy()


def _auc(relevant_N: NDArray[np.bool_], scores_N: Floats) -> float:
    """Mann-Whitney form: the chance that a relevant item outscores another, ties counted half."""
    ranks = _ranks(scores_N)
    positives = int(relevant_N.sum())
    negatives = relevant_N.size - positives
    return float((ranks[relevant_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def pairwise_accuracy(labels_N: Floats, scores_N: Floats) -> float:
    """Share of item pairs with different labels that the scores order rightly, ties counted half."""
    upper = np.triu_indices(labels_N.size, 1)
    label_signs = np.sign(labels_N[:, None] - labels_N[None])[upper]
    score_signs = np.sign(scores_N[:, None] - scores_N[None])[upper]
    differ = label_signs != 0
    return float((1.0 + label_signs[differ] * score_signs[differ]).mean() / 2.0)


def spearman(labels_N: Floats, scores_N: Floats) -> float:
    """Correlation of average ranks; zero for constant scores."""
    left, right = _ranks(labels_N), _ranks(scores_N)
    left, right = left - left.mean(), right - right.mean()
    scale = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / scale) if scale > 0 else 0.0
