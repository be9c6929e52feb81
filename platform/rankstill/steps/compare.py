"""Evaluate teacher, student and BM25 side by side on the held-out queries."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from rankstill.evaluation import PRIMARY, evaluate
from rankstill.metrics import paired_difference, slices
from rankstill.rankers import load_ranker, pick_device
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import Taught, judged_split
from rankstill.steps.train import Trained
from rankstill.storage import write_json


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
        pairs = judged_split(prepared.pairs, "test")
        reports, tables = {}, {}
        for role, reference in (("teacher", str(taught.folder)), ("student", str(trained.folder)), ("bm25", "bm25")):
            run.reporter.event("reports", state="evaluating", model=role, pairs=pairs.height)
            device = pick_device(run.config.resources.device)
            ranker = load_ranker(reference, role, run.root, device, run.config.labels.budget(device))
            reports[role], tables[role], _ = evaluate(ranker, pairs, "test split")
        student, teacher = reports["student"], reports["teacher"]
        report = {
            "models": reports,
            "differences": _differences(tables),
            "slices": {
                name: _differences(
                    {role: t.filter(pl.col("query_id").is_in(ids.implode())) for role, t in tables.items()}
                )
                for name, ids in slices(pairs).items()
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
