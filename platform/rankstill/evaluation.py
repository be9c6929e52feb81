"""Evaluates rankers on judgements: the JSON report of one, and comparisons of several."""

import statistics
import time
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankstill.artifacts import Artifact
from rankstill.errors import DataError, GateError
from rankstill.metrics import METRICS, Estimate, paired_difference, per_query, slices, summarise
from rankstill.rankers import Ranker, onnx_ranker

WARM_UP_PAIRS = 64
PASSES, PASSES_SECONDS = 5, 2.0
PRIMARY = "ndcg@10"
LEAST_CORRELATION = 0.99
"""Of the scores of an int8 form with the original's."""


class Evaluated(NamedTuple):
    """A ranker on judged pairs."""

    report: dict[str, Any]
    table: pl.DataFrame
    """See `per_query`."""
    scores_B: NDArray[np.float64]


def evaluate(ranker: Ranker, pairs: pl.DataFrame, judgements: str) -> Evaluated:
    """The report of one ranker on B judged pairs (schema PAIRS), its `per_query` table, and its scores.

    The report's `pairs_per_second` is that of `time_scoring`.
    """
    scores, rate = time_scoring(ranker, pairs)
    table = per_query(pairs, scores)
    report = {
        "model": ranker.name,
        "judgements": judgements,
        "queries": table.height,
        "pairs": pairs.height,
        "metrics": _as_json(summarise(table)),
        "slices": {
            name: {"queries": len(ids), **_as_json(summarise(table.filter(pl.col("query_id").is_in(ids.implode()))))}
            for name, ids in slices(pairs).items()
        },
        "pairs_per_second": rate,
        "parameters": ranker.parameters,
        "bytes": ranker.bytes,
    }
    return Evaluated(report, table, scores)


def time_scoring(ranker: Ranker, pairs: pl.DataFrame) -> tuple[NDArray[np.float64], float]:
    """Scores of B pairs, and the pairs a second that they took.

    That is the median of up to five passes (of one, where that takes long), tokenising included, after a short warm-up.
    """
    ranker.score(pairs.head(WARM_UP_PAIRS))
    passes: list[float] = []
    scores_B = np.empty(0)
    while not passes or (len(passes) < PASSES and sum(passes) < PASSES_SECONDS):
        start = time.perf_counter()
        scores_B = ranker.score(pairs)
        passes.append(time.perf_counter() - start)
    return scores_B, round(pairs.height / statistics.median(passes), 1)


def check_fidelity(
    artifact: Artifact, small: Artifact, pairs: pl.DataFrame, judgements: str, token_budget: int
) -> dict[str, Any]:
    """Both forms' reports on judged pairs, the rank correlation of their scores, and the difference of their nDCG@10.

    Raises:
        GateError: the small one loses quality.
        DataError: the judgements measure nothing.
    """
    reports, tables, scores = {}, {}, {}
    for name, form in (("float32", artifact), ("int8", small)):
        ranker = onnx_ranker(name, form, token_budget)
        reports[name], tables[name], scores[name] = evaluate(ranker, pairs, judgements)
    correlation = pl.select(pl.corr(*map(pl.Series, scores.values()), method="spearman")).item()
    if tables["int8"][PRIMARY].null_count() == tables["int8"].height:
        raise DataError(
            f"--judgements: all labels of each query of {judgements!r} are equal, so that a loss of quality can't"
            " be told; give judgements that differ"
        )
    loss = paired_difference(tables["int8"], tables["float32"], PRIMARY)
    if not correlation >= LEAST_CORRELATION or loss.high < 0:
        raise GateError(
            f"int8: rank correlation with float32 {correlation:.4f} (at least {LEAST_CORRELATION}), {PRIMARY}"
            f" {loss.value:+.4f} [{loss.low:+.4f}, {loss.high:+.4f}]; it is not kept; use float32"
            " (for a teacher labels.precision=float32)"
        )
    return {"models": reports, "correlation": correlation, "difference": loss.as_dict()}


def comparison_rows(reports: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Table rows of reports by role: metrics, speed and size; header first."""
    rows = [["model", "nDCG@10", "95 % interval", "pairwise", "pairs/s", "parameters", "MB"]]
    for role, report in reports.items():
        primary, pairwise = report["metrics"][PRIMARY], report["metrics"]["pairwise_accuracy"]
        rows.append(
            [
                role,
                _number(primary["value"]),
                f"{_number(primary['low'])} to {_number(primary['high'])}",
                _number(pairwise["value"]),
                f"{report['pairs_per_second']:,.0f}",
                f"{report['parameters'] / 1e6:.2f} M" if report["parameters"] else "-",
                f"{report['bytes'] / 1e6:.1f}" if report["bytes"] else "-",
            ]
        )
    return rows


def metric_rows(report: dict[str, Any]) -> list[list[str]]:
    """Table rows of one report: every metric, nDCG@10 of every slice, and differences; header first."""
    rows = [["metric", "value", "95 % interval"]]
    named = [(name, report["metrics"][name]) for name in METRICS]
    named += [(f"{PRIMARY}, {name}", part[PRIMARY]) for name, part in report["slices"].items()]
    if other := report.get("against"):
        named += [(f"{name}, minus {other['model']}", value) for name, value in other["differences"].items()]
    for name, value in named:
        rows.append([name, _number(value["value"]), f"{_number(value['low'])} to {_number(value['high'])}"])
    return rows


def _as_json(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {name: value.as_dict() for name, value in estimates.items()}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
