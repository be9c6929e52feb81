"""Read, validate and split the data."""

from dataclasses import dataclass
from pathlib import Path

import orjson
import polars as pl

from jobs.run import Run
from rankstill.data import fingerprint_data, prepare


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
        prepare(run.config.data, folder)

    return Prepared(key, run.step("data", key, build))
