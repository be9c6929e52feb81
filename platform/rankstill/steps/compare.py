"""Evaluate teacher, student and BM25 side by side on the held-out queries."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from rankstill.evaluation import PRIMARY, time_scoring
from rankstill.metrics import paired_difference, slices
from rankstill.steps.held_out import HeldOut
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import Taught
from rankstill.steps.train import Trained
from rankstill.storage import write_json

TIMED_PAIRS = 1000
"""Of the test split, on which teacher and student are timed one after the other."""


@dataclass(frozen=True)
class Compared:
    """The report of a run."""

    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        """Metrics of each model, paired differences (overall and by slice), retention and speed-up."""
        return json.loads((self.folder / "report.json").read_text())


def compare(run: Run, prepared: Prepared, taught: Taught, trained: Trained) -> Compared:
    """The report on the test split."""

    def build(folder: Path) -> None:
        held_out = HeldOut(run, prepared)
        model = held_out.load("student", str(trained.folder))
        found = {
            "teacher": held_out.teacher(taught),
            "student": held_out.evaluate("student", trained.key, lambda: model),
            "bm25": held_out.bm25(),
        }
        reports = {role: one.report for role, one in found.items()}
        tables = {role: one.table for role, one in found.items()}
        # Evaluations may be of another day; speeds that are compared are of the same minute.
        timed = held_out.pairs.head(TIMED_PAIRS)
        for role, ranker in (("teacher", held_out.load("teacher", str(taught.folder))), ("student", model)):
            reports[role]["pairs_per_second"] = time_scoring(ranker, timed)[1]
        student, teacher = reports["student"], reports["teacher"]
        report = {
            "models": reports,
            "differences": _differences(tables),
            "slices": {
                name: _differences(
                    {role: t.filter(pl.col("query_id").is_in(ids.implode())) for role, t in tables.items()}
                )
                for name, ids in slices(held_out.pairs).items()
            },
            "retention": student["metrics"][PRIMARY]["value"] / teacher["metrics"][PRIMARY]["value"],
            "speed_up": student["pairs_per_second"] / teacher["pairs_per_second"],
        }
        write_json(folder / "report.json", report)

    return Compared(run.step("reports", step_key(trained.key, taught.key, prepared.key), build))


def _differences(tables: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """Paired differences of the student to the others."""
    return {
        f"student - {other}": paired_difference(tables["student"], tables[other], PRIMARY).as_dict()
        for other in ("teacher", "bm25")
    }
