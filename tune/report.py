"""What the report of a sweep holds, while it runs and at its end."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rankstill.config import Config
from rankstill.evaluation import PRIMARY
from rankstill.lineage import Link
from rankstill.metrics import per_query, retention, slices
from rankstill.report import write_report
from rankstill.training import METRIC
from tune.finals import FinalLook
from tune.select import pareto
from tune.trials import Trial, Variant, variants_of

WORST, SHOWN_ITEMS, SHOWN_TEXT = 20, 8, 160
"""Queries that are told one by one, items of each, characters of a text."""
COMPARED = ("student", "teacher")
SCATTERED = 1500
"""Pairs of the agreement's scatter."""


def report_sweep(
    folder: Path,
    config: Config,
    dimensions: Sequence[str],
    trials: list[Trial],
    teacher: float | None,
    variants: list[Variant] | None = None,
    winner: Variant | None = None,
    look: FinalLook | None = None,
    links: Sequence[Link] = (),
) -> Path:
    """Write the report; what isn't known yet is left open. `teacher` is the teacher's valid nDCG@10.

    `variants` are forms with means over seeds, where there are such.
    """
    candidates = config.sweep.budget.candidates
    variants = variants_of([one for one in trials if not one.repeats]) if variants is None else variants
    front = {one.name for one in pareto(variants, candidates)}
    return write_report(
        folder,
        {
            "title": f"Students of {config.name}",
            "state": "done" if winner else "under way",
            "written_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "asked": len([one for one in trials if one.repeats]) + config.sweep.trials,
            "candidates": candidates,
            "budget": config.sweep.budget.model_dump(),
            "winner": winner.name if winner else None,
            "teacher": teacher,
            "dimensions": list(dimensions),
            "variants": [_variant(one, candidates, one.name in front) for one in variants],
            "trials": [_trial(one) for one in trials],
            "test": _test(look) if look else None,
            "slices": _slices(look) if look else [],
            "queries": _queries(look) if look else None,
            "agreement": _agreement(look) if look else [],
            "lineage": [vars(link) for link in links],
        },
    )


def _variant(one: Variant, candidates: int, in_front: bool) -> dict[str, Any]:
    latency = one.timing["latency"][str(candidates)]
    return {
        "name": one.name,
        "precision": one.precision,
        "ndcg": one.ndcg["value"],
        "low": one.ndcg["low"],
        "high": one.ndcg["high"],
        "p50": latency["p50_ms"],
        "p99": latency["p99_ms"],
        "latency": one.timing["latency"],
        "pairs_per_second": one.timing["pairs_per_second"],
        "load": one.timing["load_seconds"],
        "bytes": one.bytes,
        "resident": one.timing["resident_bytes"],
        "pareto": in_front,
    }


def _trial(one: Trial) -> dict[str, Any]:
    epochs = [{"epoch": epoch["epoch"], "ndcg": epoch[METRIC]} for epoch in one.epochs]
    told = {"name": one.name, "state": one.state, "params": one.params, "best": one.best, "epochs": epochs}
    return {**told, "seconds": one.seconds, "reason": one.reason, "repeats": one.repeats}


def _test(look: FinalLook) -> dict[str, Any]:
    values = {role: report["metrics"][PRIMARY]["value"] for role, report in look.reports.items()}
    return {**values, "retention": look.retention.value}


def _slices(look: FinalLook) -> list[dict[str, Any]]:
    """Retention of every slice, of all queries first; also by how sure the teacher is, and of unseen items alone."""
    pairs = look.pairs.with_columns(score=pl.Series(look.scores["teacher"]))
    spread = pairs.group_by("query_id", maintain_order=True).agg(pl.col("score").std()).drop_nulls().sort("score")
    third = max(1, spread.height // 3)
    parts = {
        "all queries": pairs["query_id"].unique(maintain_order=True),
        **slices(look.pairs),
        "teacher least sure": spread["query_id"].head(third),
        "teacher most sure": spread["query_id"].tail(third),
    }
    tables = {
        name: [look.tables[role].filter(pl.col("query_id").is_in(ids.implode())) for role in COMPARED]
        for name, ids in parts.items()
    }
    if look.unseen.any():
        mask = look.unseen.to_numpy()
        tables["unseen items"] = [per_query(look.pairs.filter(look.unseen), look.scores[one][mask]) for one in COMPARED]
    shares = {name: (len(student), retention(student, teacher, PRIMARY)) for name, (student, teacher) in tables.items()}
    return [
        {"name": name, "queries": count, **share.as_dict()}
        for name, (count, share) in shares.items()
        if not np.isnan(share.value)
    ]


def _queries(look: FinalLook) -> dict[str, Any]:
    """Queries that the student ranks better than the teacher or worse, the worst with their items."""
    ours, theirs = (look.tables[role].select("query_id", PRIMARY) for role in ("student", "teacher"))
    both = ours.join(theirs, on="query_id", suffix=" teacher").drop_nulls()
    both = both.with_columns(difference=pl.col(PRIMARY) - pl.col(f"{PRIMARY} teacher")).sort("difference")
    pairs = look.pairs.with_columns(
        teacher=pl.Series(look.scores["teacher"]).rank("ordinal", descending=True),
        student=pl.Series(look.scores["student"]).rank("ordinal", descending=True),
    )
    worst = []
    for query, difference in both.filter(pl.col("difference") < 0).head(WORST).select("query_id", "difference").rows():
        items = pairs.filter(pl.col("query_id") == query).with_columns(
            pl.col("teacher").rank("ordinal"), pl.col("student").rank("ordinal")
        )
        shown = items.sort("teacher").head(SHOWN_ITEMS).select("text", "label", "teacher", "student").to_dicts()
        worst.append(
            {
                "query": items["query"][0],
                "difference": difference,
                "items": [{**item, "text": item["text"][:SHOWN_TEXT]} for item in shown],
            }
        )
    counts = {
        "wins": both.filter(pl.col("difference") > 0).height,
        "losses": both.filter(pl.col("difference") < 0).height,
    }
    return {**counts, "ties": both.height - sum(counts.values()), "worst": worst}


def _agreement(look: FinalLook) -> list[list[float]]:
    """Standardised scores of teacher and student, of pairs drawn at random."""
    places = np.random.default_rng(0).permutation(look.pairs.height)[:SCATTERED]
    columns = []
    for role in ("teacher", "student"):
        scores = look.scores[role]
        columns.append(((scores - scores.mean()) / max(scores.std(), 1e-9))[places])
    return np.stack(columns, axis=1).round(3).tolist()
