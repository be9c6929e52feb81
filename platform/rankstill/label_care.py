"""Keeps label stores sound: checks one, merges its small files, compares the labels of two teachers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from rankstill.errors import DamagedError
from rankstill.label_files import (
    StoredFile,
    bucket_depth,
    buckets,
    read_rejects,
    scan_files,
    stored_file,
    write_labels,
    write_rejects,
)
from rankstill.labels import COMMITS, RUNS, TEACHER, LabelRun, LabelStore
from rankstill.metrics import estimate, pairwise_accuracy, spearman
from rankstill.schema import LABELS
from rankstill.trees import is_file, list_files, list_folders, remove_folder

SHOWN = 5
"""Findings of one kind that are told one by one."""
COMPARED_PAIRS = 1_000_000
"""Pairs that a comparison looks at, at most."""
MOVED_PAIRS = 20
"""Pairs told of those on which two teachers differ most."""


@dataclass
class Audit:
    """What a check found."""

    commits: int = 0
    files: int = 0
    rows: int = 0
    rejected: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)
    """Findings by kind; labels are lost, doubled or changed."""
    orphans: list[str] = field(default_factory=list)
    """Files that no commit names: harmless leftovers, which compacting takes away."""

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def found(self, kind: str, what: str) -> None:
        """Note a finding."""
        self.problems.setdefault(kind, []).append(what)

    def lines(self) -> Iterator[str]:
        """One line a kind of finding."""
        for kind, found in self.problems.items():
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            yield f"{kind}: {', '.join(found[:SHOWN])}{more}"


def verify(store: LabelStore) -> Audit:
    """Read all of a store: files against the hashes and counts of their commits, pairs doubled, scores not finite."""
    audit = Audit()
    try:
        commits = store.commits()
    except DamagedError as error:
        audit.found("unreadable commit", str(error).partition("damaged: ")[2].partition(" can't be read")[0])
        return audit
    audit.commits = len(commits)
    try:
        store.teacher  # noqa: B018 (which reads it)
    except DamagedError:
        audit.found("unreadable file", TEACHER)
    sound = []
    for file in (file for commit in commits for file in commit.files):
        audit.files += 1
        if not is_file(store.tree, file.path):
            audit.found("missing file", file.path)
        elif _differs(store, file):
            audit.found("changed file", file.path)
        else:
            sound.append(file)
    named = {file.path for commit in commits for file in commit.files}
    audit.orphans = [path for path in _all_files(store) if path not in named]
    depth = bucket_depth(sum(file.rows for file in sound))
    for bucket in buckets(depth):
        _check_bucket(store, [file for file in sound if file.meets(bucket)], bucket, audit)
    return audit


def compact(store: LabelStore, keep_hours: float = 24.0) -> dict[str, int]:
    """Merge all files into few, sorted by pair id, and remove what was replaced more than `keep_hours` ago.

    One commit switches from the old files to the new ones; readers that have begun keep theirs for that time. Damaged
    files are left out, so that their pairs are missing and can be labelled again.
    """
    with store.writing() as run:
        commits = store.commits()
        files = [file for commit in commits for file in commit.files]
        before = len(files)
        sound = [file for file in files if not _differs(store, file)]
        if before > 1 or len(sound) < before:
            made = list(_merged(store, run, sound))
            history = [
                {"run": one.run, "rows": one.rows, **{k: v for k, v in one.told.items() if k != "history"}}
                for one in commits
            ]
            older = [entry for one in commits for entry in one.told.get("history", [])]
            commit = run.commit(made, [one.run for one in commits], history=older + history)
            rows, after = commit.rows, len(made)
        else:
            rows, after = sum(commit.rows for commit in commits), before
        removed = _purge(store, keep_hours)
    counts = {"rows": rows, "files before": before, "damaged": before - len(sound), "files": after}
    return {**counts, "removed": removed}


def compare(left: LabelStore, right: LabelStore) -> dict[str, Any]:
    """How the labels of two teachers agree on the pairs that both have labelled.

    `order_agreement` is the share of pairs of items of one query that both order alike, with its interval over
    queries. Where both have very many pairs, those of some buckets are compared.
    """
    both, rows = _shared(left, right)
    report: dict[str, Any] = {"left": left.where, "right": right.where, **rows, "compared": both.height}
    if both.height < 2:
        return report
    ours, theirs = (both[name].to_numpy().astype(np.float64) for name in ("score", "other"))
    per_query = [
        pairwise_accuracy(group["score"].to_numpy(), group["other"].to_numpy())
        for _, group in both.group_by("query", maintain_order=True)
        if group["score"].n_unique() > 1
    ]
    standard = [(scores - scores.mean()) / max(scores.std(), 1e-9) for scores in (ours, theirs)]
    moved = both.with_columns(moved=pl.Series(np.abs(standard[0] - standard[1])))
    return report | {
        "spearman": round(spearman(ours, theirs), 6),
        "pearson": round(float(np.corrcoef(ours, theirs)[0, 1]), 6),
        "order_agreement": {"queries": len(per_query), **estimate(per_query).as_dict()},
        "moved_most": moved.sort("moved", descending=True).head(MOVED_PAIRS).to_dicts(),
    }


def _differs(store: LabelStore, file: StoredFile) -> bool:
    try:
        return stored_file(store.tree, file.path) != file
    except (OSError, ValueError):  # pyarrow's errors are these
        return True


def _all_files(store: LabelStore) -> list[str]:
    """Every file of runs that have committed, those of replaced commits left out."""
    replaced = {run for commit in store.commits() for run in commit.replaces}
    runs = [run for run in list_folders(store.tree, RUNS) if run not in replaced]
    return [path for run in runs for path in list_files(store.tree, f"{RUNS}/{run}")]


def _check_bucket(store: LabelStore, files: list[StoredFile], bucket: str, audit: Audit) -> None:
    frames = []
    for file in files:
        if file.rejects:
            ids = [row["pair_id"] for row in read_rejects(store.tree, file.path)]
            frame = pl.DataFrame({"pair_id": ids}, {"pair_id": pl.String}).with_columns(rejected=True)
        else:
            frame = scan_files(store.tree, [file]).select("pair_id", "score").collect().with_columns(rejected=False)
            if frame.filter(~pl.col("score").is_finite()).height:
                audit.found("scores that aren't finite", file.path)
        if frame.filter(~pl.col("pair_id").str.starts_with(file.bucket)).height:
            audit.found("pairs of another bucket", file.path)
        frames.append(frame.filter(pl.col("pair_id").str.starts_with(bucket)).select("pair_id", "rejected"))
    if frames:
        held = pl.concat(frames)
        audit.rows += held.filter(~pl.col("rejected")).height
        audit.rejected += held.filter(pl.col("rejected")).height
        for pair in held.group_by("pair_id").len().filter(pl.col("len") > 1)["pair_id"].sort():
            audit.found("pair stored more than once", pair)


def _merged(store: LabelStore, run: LabelRun, files: list[StoredFile]) -> Iterator[StoredFile]:
    labels = [file for file in files if not file.rejects]
    for bucket in buckets(bucket_depth(sum(file.rows for file in labels))):
        held = scan_files(store.tree, labels, bucket).collect()
        frame = held.unique("pair_id", keep="last").sort("pair_id")
        if frame.height:
            yield write_labels(store.tree, run.labels(bucket, 0), frame.to_arrow().cast(LABELS))
    rejects = {
        row["pair_id"]: row
        for file in files
        if file.rejects
        for row in read_rejects(store.tree, file.path)
    }  # fmt: skip
    if rejects:
        yield write_rejects(store.tree, run.rejects("", 0), list(rejects.values()))


def _purge(store: LabelStore, keep_hours: float) -> int:
    """Remove the commits that were replaced long enough ago, and the files that no commit names; returns how many."""
    removed = 0
    every = store.commits(replaced=True)
    limit = datetime.now(UTC) - timedelta(hours=keep_hours)
    for commit in every:
        if datetime.fromisoformat(commit.told["committed_at"]) <= limit:
            for run in commit.replaces:
                removed += len(list_files(store.tree, f"{RUNS}/{run}"))
                remove_folder(store.tree, f"{RUNS}/{run}")
                if is_file(store.tree, f"{COMMITS}/{run}.json"):
                    store.tree.delete_file(f"{COMMITS}/{run}.json")
    named = {file.path for commit in store.commits(replaced=True) for file in commit.files}
    for path in _all_files(store):
        if path not in named:
            store.tree.delete_file(path)
            removed += 1
    return removed


def _shared(left: LabelStore, right: LabelStore) -> tuple[pl.DataFrame, dict[str, int]]:
    """Pairs that both have labelled, with `score` and `other`; and how many each has."""
    rows = [sum(commit.rows for commit in store.commits()) for store in (left, right)]
    frames = []
    for bucket in buckets(bucket_depth(max(rows))):
        with left.reading():
            ours = left.scan(bucket).select("pair_id", "query", "item_id", "score").collect()
        with right.reading():
            theirs = right.scan(bucket).select("pair_id", other="score").collect()
        frames.append(ours.join(theirs, on="pair_id"))
        if sum(frame.height for frame in frames) >= COMPARED_PAIRS:
            break
    return pl.concat(frames).sort("pair_id"), dict(zip(("left_pairs", "right_pairs"), rows, strict=True))
