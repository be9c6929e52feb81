"""The label store: soft labels of one teacher, in a folder or under a URL such as s3://bucket/labels.

<fingerprint>/teacher.json                        what the fingerprint stands for
<fingerprint>/lease.json                          who writes; gone when nobody does
<fingerprint>/commits/<run>.json                  what a run wrote: files with rows, bytes and SHA-256
<fingerprint>/runs/<run>/labels-<bucket>-<n>*.parquet  schema LABELS, pairs whose id begins with the bucket
<fingerprint>/runs/<run>/rejects-<bucket>-<n>*.jsonl   pairs that can't be scored, with the reason
<fingerprint>/runs/<run>/pending/                 blocks that are still to be scored

A file that no commit names isn't there. Files are written whole, each attempt at a block under names of its own, so
that nothing that was ever named changes; what a killed run finished is known by its name, and the next run commits it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pyarrow as pa
from pyarrow import fs

from rankstill.errors import ConfigError, DamagedError, DataError
from rankstill.label_files import (
    Commit,
    StoredFile,
    bucket_depth,
    buckets,
    in_groups,
    one_attempt,
    read_rejects,
    scan_files,
    stored_file,
    write_labels,
)
from rankstill.lease import Lease
from rankstill.trees import (
    below,
    is_file,
    list_files,
    list_folders,
    open_tree,
    read_json,
    remove_folder,
    shown,
    write_whole,
)

COMMITS, RUNS, LEASE, TEACHER = "commits", "runs", "lease.json", "teacher.json"


class LabelStore:
    """All soft labels of one teacher."""

    def __init__(self, tree: fs.SubTreeFileSystem, where: str) -> None:
        self.tree = tree
        self.where = where
        """Folder or URL, for messages."""

    @property
    def fingerprint(self) -> str:
        """The teacher's."""
        return self.where.rsplit("/", 1)[-1]

    @property
    def teacher(self) -> dict[str, Any]:
        """What the fingerprint stands for.

        Raises:
            DamagedError: it can't be read.
        """
        try:
            return read_json(self.tree, TEACHER)
        except ValueError as error:
            raise DamagedError(
                f"the label store {self.where!r} is damaged: {TEACHER} can't be read; remove it, and jobs.label writes"
                " it again"
            ) from error

    def commits(self, replaced: bool = False) -> list[Commit]:
        """All commits that count, oldest first; with those that others have replaced if wanted.

        Raises:
            DamagedError: one can't be read.
        """
        found = [self._read_commit(path) for path in list_files(self.tree, COMMITS, ".json")]
        gone = set() if replaced else {run for commit in found for run in commit.replaces}
        return [commit for commit in found if commit.run not in gone]

    def _read_commit(self, path: str) -> Commit:
        try:
            record = read_json(self.tree, path)
            known = {"run", "fingerprint", "rows", "files", "replaces"}
            files = tuple(StoredFile(**file) for file in record["files"])
            told = {name: value for name, value in record.items() if name not in known}
            return Commit(record["run"], files, told, tuple(record["replaces"]), record["fingerprint"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.damaged(path, error) from error

    def damaged(self, what: str, error: Exception) -> DamagedError:
        """What is raised where a part of the store can't be read."""
        reason = (str(error).splitlines() or [""])[0][:120]
        return DamagedError(
            f"the label store {self.where!r} is damaged: {what} can't be read ({reason}); see `jobs.labels verify`;"
            " `jobs.labels compact` keeps what is sound, and jobs.label labels the rest again"
        )

    @contextmanager
    def reading(self, what: str = "a file of labels") -> Iterator[None]:
        """Turns what libraries raise on damaged files into one error.

        Raises:
            DamagedError: a file can't be read.
        """
        try:
            yield
        except (pl.exceptions.PolarsError, pa.ArrowException, OSError, ValueError) as error:
            raise self.damaged(what, error) from error

    def files(self, bucket: str = "", rejects: bool = False) -> list[StoredFile]:
        """Files of all commits that may hold pairs of a bucket."""
        return [
            file for commit in self.commits() for file in commit.files if file.rejects == rejects and file.meets(bucket)
        ]

    def scan(self, bucket: str = "") -> pl.LazyFrame:
        """Labels whose pair ids begin with `bucket`, lazily; every pair is there once."""
        return scan_files(self.tree, self.files(bucket), bucket)

    def missing(self, pairs: pl.LazyFrame, aside: Path) -> Iterator[tuple[str, pl.DataFrame]]:
        """The pairs, each id once, that are neither labelled nor rejected, bucket by bucket.

        `pairs` is read once and spilt to the folder `aside` where it is more than one bucket. What is held at a time
        is one bucket of it, and the ids of one stored file.
        """
        rows = pairs.select(pl.len()).collect(engine="streaming").item()
        depth = bucket_depth(rows)
        commits = self.commits()
        if not depth:
            yield "", self._lacking(pairs.collect(engine="streaming"), "", commits)
            return
        key = {"bucket": pl.col("pair_id").str.slice(0, depth)}
        pairs.sink_parquet(pl.PartitionBy(aside, key=key, include_key=False), mkdir=True)
        for bucket in buckets(depth):
            if (aside / f"bucket={bucket}").is_dir():
                frame = pl.read_parquet(aside / f"bucket={bucket}" / "*.parquet")
                yield bucket, self._lacking(frame, bucket, commits)

    def _lacking(self, frame: pl.DataFrame, bucket: str, commits: Sequence[Commit]) -> pl.DataFrame:
        frame = frame.unique("pair_id", keep="first", maintain_order=True)
        files = [file for commit in commits for file in commit.files if file.meets(bucket)]
        for part in in_groups([file for file in files if not file.rejects]):
            with self.reading():
                ids = scan_files(self.tree, part).select("pair_id").collect()
            frame = frame.join(ids, on="pair_id", how="anti", maintain_order="left")
        for file in (file for file in files if file.rejects):
            with self.reading(file.path):
                rejected = [row["pair_id"] for row in read_rejects(self.tree, file.path)]
            frame = frame.filter(~pl.col("pair_id").is_in(rejected))
        return frame

    @contextmanager
    def writing(self, waiting: Callable[[str], None] | None = None) -> Iterator["LabelRun"]:
        """A run that writes, one at a time.

        Another's end is waited for, of which `waiting` is told; what killed runs finished is committed first.
        """
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid4().hex[:8]}"
        with Lease(self.tree, LEASE).held(waiting) as lease:
            self._recover(lease)
            writer = LabelRun(self, run, lease)
            try:
                yield writer
            finally:
                remove_folder(self.tree, f"{RUNS}/{run}/pending")

    def append(self, table: pa.Table, **told: Any) -> Commit:
        """Add labels (schema LABELS) as one commit."""
        with self.writing() as run:
            return run.commit([write_labels(self.tree, run.labels("", 0), table)], **told)

    def _recover(self, lease: Lease) -> None:
        """Commit the files of runs that ended without a commit, or whose commit can't be read."""
        known = set()
        for path in list_files(self.tree, COMMITS, ".json"):
            try:
                known.add(self._read_commit(path).run)
            except DamagedError:
                self.tree.move(path, f"{path}.broken")
        for run in list_folders(self.tree, RUNS):
            if run not in known:
                remove_folder(self.tree, f"{RUNS}/{run}/pending")
                files = []
                for path in one_attempt(list_files(self.tree, f"{RUNS}/{run}")):
                    with suppress(pa.ArrowException, OSError):  # what isn't whole isn't labelled
                        files.append(stored_file(self.tree, path))
                # Even where there are none, so that what its last actors may yet write doesn't count.
                LabelRun(self, run, lease).commit(files, recovered=True)


@dataclass(frozen=True)
class LabelRun:
    """What one writer writes."""

    store: LabelStore
    run: str
    lease: Lease

    def labels(self, bucket: str, number: int) -> str:
        """Path of a file of labels."""
        return f"{RUNS}/{self.run}/labels-{bucket}-{number:06d}.parquet"

    def rejects(self, bucket: str, number: int) -> str:
        """Path of a file of rejected pairs."""
        return f"{RUNS}/{self.run}/rejects-{bucket}-{number:06d}.jsonl"

    def pending(self, bucket: str, number: int) -> str:
        """Path of a block to be scored, whose labels go to `labels_of` it."""
        return self.labels(bucket, number).replace("/labels-", "/pending/labels-")

    def commit(self, files: Sequence[StoredFile], replaces: Sequence[str] = (), **told: Any) -> Commit:
        """Make the files count.

        Raises:
            RunError: another writer has taken over.
        """
        self.lease.check()
        made = Commit(self.run, tuple(files), {"committed_at": _now(), **told}, tuple(replaces), self.store.fingerprint)
        record = {"run": self.run, "fingerprint": made.teacher, "rows": made.rows, **made.told}
        record |= {"replaces": list(replaces), "files": [asdict(file) for file in files]}
        write_whole(self.store.tree, f"{COMMITS}/{self.run}.json", json.dumps(record, indent=1).encode())
        return made


def open_store(
    location: str, fingerprint: str = "", teacher: Mapping[str, Any] | None = None, field: str = "storage.labels"
) -> LabelStore:
    """The store of one teacher under a folder or URL; made where `teacher` says what the fingerprint stands for.

    Without a fingerprint the location is the store's own.

    Raises:
        ConfigError: the location can't be used.
        DataError: no store is there, or one of another teacher.
    """
    store = store_at(location, fingerprint, teacher is not None, field)
    try:
        there = is_file(store.tree, TEACHER)
    except OSError as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{field}: {store.where!r} can't be reached ({reason}); see its credentials") from error
    if not there:
        if teacher is None:
            raise DataError(f"{store.where!r} is no label store (it has no {TEACHER}); give the folder of one teacher")
        write_whole(store.tree, TEACHER, json.dumps(dict(teacher), indent=1, ensure_ascii=False).encode())
    if fingerprint and (others := {commit.teacher for commit in store.commits()} - {fingerprint}):
        raise DataError(
            f"{field}: {store.where!r} holds labels of another teacher, {min(others)}; move the folder away, or rename"
            " it to that"
        )
    return store


def store_at(location: str, fingerprint: str, make: bool = False, field: str = "storage.labels") -> LabelStore:
    """The store at a place, whether anything is there or not; empty where not.

    Raises:
        ConfigError: the location can't be used.
    """
    where = below(location, fingerprint) if fingerprint else location
    return LabelStore(open_tree(where, field, make), shown(where))


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
