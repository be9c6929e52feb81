"""Read, validate and split the data."""

from dataclasses import dataclass
from pathlib import Path

import orjson
import polars as pl

from rankstill.data import fingerprint_data, prepare
from rankstill.errors import DataError
from rankstill.steps.run import Run


@dataclass(frozen=True)
class Prepared:
    """Pairs and items, ready for every later step."""

    key: str
    folder: Path

    @property
    def pairs(self) -> pl.DataFrame:
        """Judged pairs (schema PAIRS)."""
        return pl.read_parquet(self.folder / "pairs.parquet")

    @property
    def items(self) -> pl.DataFrame:
        """Items (schema ITEMS)."""
        return pl.read_parquet(self.folder / "items.parquet")

    @property
    def summary(self) -> dict:
        """Counts of rows, rejects, pairs and splits."""
        return orjson.loads((self.folder / "summary.json").read_bytes())


def prepare_data(run: Run) -> Prepared:
    """The prepared data of a run."""
    key = fingerprint_data(run.config.data)[:16]

    def build(folder: Path) -> None:
        try:
            summary = prepare(run.config.data, folder)
            for remark in summary["remarks"]:
                run.reporter.event("data", state="noticed", what=remark)
        except DataError as error:
            kept = _keep_rejects(folder, run.root / "data" / f"{key}.rejects.jsonl")
            raise DataError(f"{error}; all of them are in {str(kept)!r}" if kept else str(error)) from error

    return Prepared(key, run.step("data", key, build))


def _keep_rejects(folder: Path, place: Path) -> Path | None:
    """Save the rejects file of a folder that is about to go; None where nothing was rejected."""
    rejects = folder / "rejects.jsonl"
    if not rejects.exists() or not rejects.stat().st_size:
        return None
    return rejects.replace(place)
