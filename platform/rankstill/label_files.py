"""Files of a label store: labels as Parquet, rejected pairs as JSON lines, and what a commit tells of them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from rankstill.schema import LABELS
from rankstill.trees import local_folder, read_bytes, write_whole

BUCKET_ROWS = 1_000_000
"""Pairs that one process holds at a time: there are as many buckets as this takes."""
HEX = "0123456789abcdef"


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit."""

    path: str
    """From the store's folder."""
    rows: int
    bytes: int
    sha256: str

    @property
    def bucket(self) -> str:
        """How the ids of its pairs begin."""
        return Path(self.path).name.split("-")[1]

    def meets(self, bucket: str) -> bool:
        """Whether it may hold pairs of a bucket."""
        return self.bucket.startswith(bucket) or bucket.startswith(self.bucket)

    @property
    def rejects(self) -> bool:
        """Whether it holds rejected pairs."""
        return self.path.endswith(".jsonl")


@dataclass(frozen=True)
class Commit:
    """What one run added."""

    run: str
    files: tuple[StoredFile, ...]
    told: Mapping[str, Any]
    """What else its manifest says: the time, the data, the speed."""
    replaces: tuple[str, ...] = ()
    """Runs whose files it holds in place of theirs."""
    teacher: str = ""
    """Fingerprint of whose labels they are."""

    @property
    def rows(self) -> int:
        """Labels in it."""
        return sum(file.rows for file in self.files if not file.rejects)


def bucket_depth(rows: int) -> int:
    """Hexadecimal digits of a pair id that name its bucket, where so many pairs are to be cut into buckets."""
    depth = 0
    while rows > BUCKET_ROWS * len(HEX) ** depth:
        depth += 1
    return depth


def buckets(depth: int) -> Iterator[str]:
    """All buckets whose names have so many digits; the one of every pair has none."""
    return map("".join, product(HEX, repeat=depth))


def scan_files(tree: fs.SubTreeFileSystem, files: Sequence[StoredFile], bucket: str = "") -> pl.LazyFrame:
    """Labels in files, lazily, of pairs whose ids begin with `bucket`."""
    paths = [file.path for file in files if not file.rejects and file.meets(bucket)]
    if not paths:
        return pl.LazyFrame(LABELS.empty_table())
    if folder := local_folder(tree):
        frame = pl.scan_parquet([folder / path for path in paths])
    else:
        frame = pl.scan_pyarrow_dataset(ds.dataset(paths, schema=LABELS, format="parquet", filesystem=tree))
    return frame.filter(pl.col("pair_id").str.starts_with(bucket)) if bucket else frame


def in_groups(files: Sequence[StoredFile]) -> Iterator[list[StoredFile]]:
    """Files in groups of at most `BUCKET_ROWS` rows (at least one file each)."""
    group: list[StoredFile] = []
    for file in files:
        if group and sum(one.rows for one in group) + file.rows > BUCKET_ROWS:
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def labels_of(pending: str, attempt: str) -> str:
    """Path of the labels of a pending block. Attempts write files of their own, so that none changes another's."""
    return pending.replace("/pending/", "/").removesuffix(".parquet") + f"-{attempt}.parquet"


def rejects_of(pending: str, attempt: str) -> str:
    """Path of the rejected pairs of a pending block."""
    return labels_of(pending, attempt).replace("/labels-", "/rejects-").removesuffix(".parquet") + ".jsonl"


def done_of(pending: str) -> str:
    """Path of the note that a pending block is done, which tells its files."""
    return pending.removesuffix(".parquet") + ".json"


def one_attempt(paths: Sequence[str]) -> list[str]:
    """Of the files of a run, those of one attempt at each block."""
    parts = [Path(path).stem.split("-")[1:] for path in paths]
    first: dict[tuple[str, ...], list[str]] = {}
    for bucket, number, *attempt in parts:
        first.setdefault((bucket, number), attempt)
    return [path for path, (bucket, number, *attempt) in zip(paths, parts, strict=True)
            if attempt == first[bucket, number]]  # fmt: skip


def write_labels(tree: fs.SubTreeFileSystem, path: str, table: pa.Table) -> StoredFile:
    """Write labels (schema LABELS) as one file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(LABELS), sink, compression="zstd")
    return _write(tree, path, sink.getvalue(), table.num_rows)


def write_rejects(tree: fs.SubTreeFileSystem, path: str, rows: Sequence[Mapping[str, Any]]) -> StoredFile:
    """Write rejected pairs, each with its `pair_id` and `reason`, as JSON lines."""
    text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    return _write(tree, path, text.encode(), len(rows))


def read_rejects(tree: fs.SubTreeFileSystem, path: str) -> list[dict[str, Any]]:
    """Rejected pairs of a file."""
    return [json.loads(line) for line in read_bytes(tree, path).splitlines()]


def stored_file(tree: fs.SubTreeFileSystem, path: str) -> StoredFile:
    """What a commit tells of a file that stands.

    Raises:
        OSError, pyarrow.ArrowInvalid: it can't be read.
    """
    data = read_bytes(tree, path)
    rows = data.count(b"\n") if path.endswith(".jsonl") else pq.read_metadata(pa.BufferReader(data)).num_rows
    return StoredFile(path, rows, len(data), hashlib.sha256(data).hexdigest())


def _write(tree: fs.SubTreeFileSystem, path: str, data: bytes | pa.Buffer, rows: int) -> StoredFile:
    view = memoryview(data)
    write_whole(tree, path, view)
    return StoredFile(path, rows, len(view), hashlib.sha256(view).hexdigest())
