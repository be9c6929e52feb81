"""Models on the held-out judgements, each scored once for all runs and sweeps of a storage root."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from rankstill.evaluation import Evaluated, evaluate
from rankstill.rankers import Ranker, load_ranker, pick_device
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import Taught, judged_split
from rankstill.storage import write_json


@dataclass(frozen=True)
class HeldOut:
    """The test split of a run, and what models make of it."""

    run: Run
    prepared: Prepared

    @cached_property
    def pairs(self) -> pl.DataFrame:
        """Judged pairs that nothing was learnt from or chosen on (schema PAIRS)."""
        return judged_split(self.prepared.pairs, "test")

    def teacher(self, taught: Taught) -> Evaluated:
        """The teacher's evaluation."""
        return self.evaluate("teacher", taught.key, lambda: self.load("teacher", str(taught.folder)))

    def bm25(self) -> Evaluated:
        """The baseline's evaluation."""
        return self.evaluate("bm25", "bm25", lambda: self.load("bm25", "bm25"))

    def load(self, role: str, reference: str) -> Ranker:
        """A model of the run, on its device."""
        device = pick_device(self.run.config.resources.device)
        return load_ranker(reference, role, self.run.root, device, self.run.config.labels.budget(device))

    def evaluate(self, role: str, identity: str, make: Callable[[], Ranker]) -> Evaluated:
        """See `evaluation.evaluate`; `identity` is the model's, and `make` loads it where it wasn't evaluated yet."""
        pairs = self.pairs

        def build(folder: Path) -> None:
            self.run.reporter.event("tests", state="evaluating", model=role, pairs=pairs.height)
            found = evaluate(make(), pairs, "test split")
            write_json(folder / "report.json", found.report)
            found.table.write_parquet(folder / "table.parquet")
            pairs.select("pair_id", score=pl.Series(found.scores_B)).write_parquet(folder / "scores.parquet")

        folder = self.run.step("tests", step_key(identity, self.prepared.key), build)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        scores_B = pl.read_parquet(folder / "scores.parquet")["score"].to_numpy()
        return Evaluated(report, pl.read_parquet(folder / "table.parquet"), scores_B)
