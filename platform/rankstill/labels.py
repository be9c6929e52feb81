"""The label store: soft labels of one teacher, Parquet files under its fingerprint.

labels/<fingerprint>/teacher.json        what the fingerprint stands for
labels/<fingerprint>/part-*.parquet      rows of schema LABELS
labels/<fingerprint>/commit-*.json       the files and rows of each commit; a file no commit names isn't there
"""

import json
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from rankstill.schema import LABELS
from rankstill.storage import write_json


class LabelStore:
    """All soft labels of one teacher."""

    def __init__(self, root: Path, fingerprint: str, teacher: dict[str, Any]) -> None:
        self.folder = root / fingerprint
        self.fingerprint = fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        described = self.folder / "teacher.json"
        if not described.exists():
            write_json(described, teacher)

    def files(self) -> list[Path]:
        """Label files of all commits."""
        commits = sorted(self.folder.glob("commit-*.json"))
        return [self.folder / name for commit in commits for name in json.loads(commit.read_text())["files"]]

    def scan(self) -> pl.LazyFrame:
        """All labels, lazily."""
        files = self.files()
        return pl.scan_parquet(files) if files else pl.LazyFrame(LABELS.empty_table())

    def missing(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """The pairs, each id once, that have no label yet."""
        stored = self.scan().select("pair_id").collect()
        return pairs.unique("pair_id", keep="first", maintain_order=True).join(stored, on="pair_id", how="anti")

    def append(self, folder: Path) -> int:
        """Take the Parquet files of `folder` (a finished write on the same disk) as one commit; return its rows."""
        commit = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        files = {}
        for place, source in enumerate(sorted(folder.glob("*.parquet"))):
            name = f"part-{commit}-{place:05d}.parquet"
            files[name] = pq.read_metadata(source).num_rows
            shutil.move(source, self.folder / name)
        rows = sum(files.values())
        write_json(self.folder / f"commit-{commit}.json", {"rows": rows, "files": files})
        return rows
