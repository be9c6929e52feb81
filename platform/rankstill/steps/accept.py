"""Whether a refreshed student may be tried on shoppers: judgements, fresh traffic and time, beside the champion's."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from rankstill.artifacts import Artifact
from rankstill.calibration import expected_error
from rankstill.evaluation import PRIMARY
from rankstill.metrics import paired_difference, per_query, slices
from rankstill.rankers import load_ranker
from rankstill.steps.fresh import Fresh
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import judged_split, label_max
from rankstill.storage import number, write_json
from rankstill.timing import Timing, choose_rankings, time_alone

SLICE_QUERIES = 20
"""A slice of fewer queries tells nothing."""
MEDIAN_PART = 20
"""Rankings of a part that is timed, where only medians count."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One thing that is asked of a challenger, as a difference to the champion or on its own."""

    name: str
    value: float
    low: float
    high: float
    """95 % interval over queries; of a time or a size, the value."""
    limit: float
    asks: Literal["at least", "not surely below", "at most"]
    """Of the interval's lower end (non-inferiority), of its upper one, or of the value."""

    @property
    def passed(self) -> bool:
        """Whether it holds; what can't be measured does."""
        if np.isnan(self.value):
            return True
        found = {"at least": self.low, "not surely below": self.high, "at most": -self.value}[self.asks]
        return found >= (-self.limit if self.asks == "at most" else self.limit)

    def row(self) -> dict[str, Any]:
        """As JSON has it: null for what can't be measured."""
        numbers = {"value": number(self.value), "low": number(self.low), "high": number(self.high)}
        return {**asdict(self), **numbers, "passed": self.passed}

    def line(self) -> str:
        """In words, for the registry."""
        if self.asks == "at most":
            return f"{self.name} {self.value:.4g}, {self.asks} {self.limit:.4g}"
        return f"{self.name} {self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}], {self.asks} {self.limit:+.4f}"


@dataclass(frozen=True)
class Verdict:
    """What the gate found."""

    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        """`passed`, `refused` (lines), and `checks`."""
        return json.loads((self.folder / "gate.json").read_text(encoding="utf-8"))

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return self.report["passed"]


def accept(run: Run, prepared: Prepared, fresh: Fresh, champion: Artifact, challenger: Artifact) -> Verdict:
    """Hold a challenger against the champion.

    On judgements of the test split and their slices; on held-out fresh queries, by pairwise agreement with the teacher
    and by debiased clicks; by calibration, time and bytes.
    """
    wanted = run.config.refresh.model_dump(mode="json", exclude={"canary"})
    files = [one.manifest["files"] for one in (champion, challenger)]
    key = step_key(fresh.lists.key, prepared.key, files, wanted, run.config.sweep.budget.model_dump())

    def build(folder: Path) -> None:
        both = (champion, challenger)
        run.reporter.event("accepted", state="measuring")
        checks = [*_judged(run, prepared, both), *_fresh(run, fresh, both), *_costs(run, prepared, both)]
        refused = [check.line() for check in checks if not check.passed]
        rows = [check.row() for check in checks]
        write_json(folder / "gate.json", {"passed": not refused, "refused": refused, "checks": rows})

    return Verdict(run.step("accepted", key, build))


def _score(run: Run, artifact: Artifact, pairs: pl.DataFrame) -> Floats:
    return load_ranker(str(artifact.folder), "refresh", run.root, "cpu", run.config.labels.budget("cpu")).score(pairs)


def _judged(run: Run, prepared: Prepared, both: Sequence[Artifact]) -> list[Check]:
    """Golden judgements: all, by slice, and calibration."""
    wanted, pairs = run.config.refresh, judged_split(prepared.pairs, "test")
    scores = [_score(run, one, pairs) for one in both]
    champion, challenger = (per_query(pairs, one) for one in scores)
    checks = [_check(f"judgements, {PRIMARY}", challenger, champion, -wanted.margin)]
    learnt = prepared.pairs.filter(pl.col("split") == "train")["item_id"].unique()
    unseen = pairs.group_by("query_id").agg(pl.col("item_id").is_in(learnt.implode()).mean())
    named = slices(pairs) | {"unseen items": unseen.filter(pl.col("item_id") < 0.5)["query_id"]}
    for name, ids in named.items():
        if len(ids) >= SLICE_QUERIES:
            one, other = (t.filter(pl.col("query_id").is_in(ids.implode())) for t in (challenger, champion))
            checks.append(_check(f"{name}, {PRIMARY}", one, other, -wanted.slice_margin))
    targets = pairs["label"].to_numpy() / label_max(prepared.pairs)
    errors = []
    for artifact, values in zip(both, scores, strict=True):
        scale, offset = artifact.calibration
        errors.append(expected_error(expit(scale * values + offset), targets))
    checks.append(_cost("calibration error", errors[1], errors[0] + wanted.calibration))
    return checks


def _fresh(run: Run, fresh: Fresh, both: Sequence[Artifact]) -> list[Check]:
    """Held-out fresh queries: agreement with the teacher, and whether clicked items come first."""
    held = fresh.held.filter(pl.col("teacher").is_not_null())
    if held.is_empty():
        return []
    scores = [_score(run, one, held) for one in both]
    wanted, checks = run.config.refresh, []
    clicks = (pl.col("clicks").fill_null(0.0) + 1.0).log(2)  # whose gain, 2^label - 1, is the share of the clicks
    for name, label, metric, margin in (
        ("teacher, fresh queries", pl.col("teacher"), "pairwise_accuracy", wanted.agreement_margin),
        ("clicks, fresh queries", clicks, PRIMARY, wanted.slice_margin),
    ):
        champion, challenger = (per_query(held.with_columns(label=label), one) for one in scores)
        found = paired_difference(challenger, champion, metric)
        checks.append(Check(f"{name}, {metric}", found.value, found.low, found.high, -margin, "not surely below"))
    return checks


def _costs(run: Run, prepared: Prepared, both: Sequence[Artifact]) -> list[Check]:
    """Median time of a ranking as served, p99 and bytes where the budget of sweeps says so."""
    budget = run.config.sweep.budget
    rankings = choose_rankings(judged_split(prepared.pairs, "test"), budget.candidates)
    artifacts = tuple((str(one.folder), one.resolve(run.config.serve.runtime)) for one in both)
    part = {} if budget.p99_ms else {"part": MEDIAN_PART}
    timed = time_alone(
        run.root, Timing(artifacts, run.config.sweep.measure_cpus, (budget.candidates,), rankings, **part)
    )
    before, now = (one["latency"][str(budget.candidates)] for one in timed)
    checks = [_cost("p50 ms", now["p50_ms"], before["p50_ms"] * run.config.refresh.slower)]
    if budget.p99_ms:
        checks.append(_cost("p99 ms", now["p99_ms"], budget.p99_ms))
    if budget.bytes:
        checks.append(_cost("bytes", timed[1]["bytes"], budget.bytes))
    return checks


def _check(name: str, left: pl.DataFrame, right: pl.DataFrame, limit: float) -> Check:
    found = paired_difference(left, right, PRIMARY)
    return Check(name, found.value, found.low, found.high, limit, "at least")


def _cost(name: str, value: float, limit: float) -> Check:
    return Check(name, value, value, value, limit, "at most")
