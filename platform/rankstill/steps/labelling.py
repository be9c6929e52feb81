"""Scores blocks of pairs with one model on an actor pool, into a label store."""

import io
import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import fs

from rankstill.errors import RankstillError, RunError
from rankstill.label_files import StoredFile, done_of, labels_of, rejects_of, write_labels, write_rejects
from rankstill.labels import LabelRun, LabelStore, open_store, store_at
from rankstill.schema import LABELS, ProgressEvent
from rankstill.scoring import is_bfloat16
from rankstill.steps.pool import BlockActor, map_blocks
from rankstill.steps.run import Run
from rankstill.storage import work_folder
from rankstill.teachers.cross_encoder import fingerprint
from rankstill.teachers.kinds import LoadedTeacher, Runtime, TeacherModel, gain_scores, load_teacher
from rankstill.text import normalise
from rankstill.trees import is_file, read_json, write_whole

LONGEST_TEXT = 1_000_000
"""Characters of a query or text; a longer one isn't a product."""
MOST_FAILURES = 16
"""Pairs of one block that may fail; where more do, it is not the pairs that are at fault."""
SMALLEST_BLOCK = 256
SHOWN, SHOWN_TEXT = 3, 500
"""Pairs that an error names, and characters that a rejects file keeps of a text."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LabelJob:
    """What a labelling actor needs to know."""

    model: TeacherModel
    precision: str
    runtime: Runtime
    token_budget: int
    device: str
    threads: int
    gpus: float
    tree: fs.SubTreeFileSystem
    """The label store's, where the blocks lie and the labels go."""


@dataclass(frozen=True)
class Scored:
    """Scores of the rows of a block that could be scored, with logits where the model gives grades."""

    rows: list[int]
    scores: Floats
    logits: Floats | None
    failures: dict[int, str]
    """Reasons by row, of those that could not."""


class LabelActor(BlockActor):
    """Holds a labelling model and turns blocks of pairs into files of labels and of rejected pairs."""

    def __init__(self, job: LabelJob) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        self._teacher = self.load()
        with suppress(RankstillError):  # which is told when it is about a pair
            self._teacher.score(["warm"], ["up"])
        self._told = replace(self._teacher.work)
        self._telling = threading.Lock()

    def load(self) -> LoadedTeacher:
        """The model."""
        job = self._job
        return load_teacher(job.model, "teacher", job.device, job.precision, job.token_budget, job.runtime, job.threads)

    def work(self, block: str) -> dict[str, Any]:
        """Score one block, unless that was done; tells pairs, files, and what was computed since the last one."""
        tree = self._job.tree
        if is_file(tree, done_of(block)):  # by an actor that was lost before the driver was told
            return {**read_json(tree, done_of(block)), **self._since()}
        with tree.open_input_file(block) as source:
            table = pq.read_table(source)
        start = time.perf_counter()
        scored = score_rows(self._teacher, table["query"].to_pylist(), table["text"].to_pylist())
        seconds = time.perf_counter() - start
        rejected = [_reject(table, row, reason) for row, reason in sorted(scored.failures.items())]
        attempt, files = uuid4().hex[:8], []
        if scored.rows:
            files.append(write_labels(tree, labels_of(block, attempt), as_labels(table, scored)))
        if rejected:
            files.append(write_rejects(tree, rejects_of(block, attempt), rejected))
        done = {"pairs": table.num_rows, "seconds": seconds, "files": [asdict(file) for file in files]}
        write_whole(tree, done_of(block), json.dumps(done).encode())
        return {**done, **self._since()}

    def _since(self) -> dict[str, Any]:
        """Tokens, padded tokens and floating-point operations since the last call."""
        with self._telling:
            done = replace(self._teacher.work)
            new, self._told = done - self._told, done
        return {"tokens": new.tokens, "padded": new.padded, "flops": self._teacher.flops(new)}


def score_rows(teacher: LoadedTeacher, queries: Sequence[Any], texts: Sequence[Any]) -> Scored:
    """Score what can be scored; a pair that can't doesn't take the others along.

    Raises:
        RunError: a score that isn't finite, or more than `MOST_FAILURES` pairs that fail.
    """
    failures = {row: why for row, pair in enumerate(zip(queries, texts, strict=True)) if (why := _unusable(*pair))}
    parts, waiting = [], [[row for row in range(len(queries)) if row not in failures]]
    tried = 0
    while waiting:
        rows = waiting.pop()
        if not rows:
            continue
        try:
            parts.append((rows, *_score(teacher, [queries[row] for row in rows], [texts[row] for row in rows])))
        except (RankstillError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a tokenizer or a model doesn't take
            if len(rows) > 1:
                waiting += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
                continue
            failures[rows[0]] = f"{type(error).__name__}: {error}"
            tried += 1
            if tried > MOST_FAILURES:
                raise RunError(
                    f"the teacher fails on more than {MOST_FAILURES} pairs of one block ({failures[rows[0]]});"
                    " see whether it scores at all with jobs.evaluate"
                ) from error
    order = [row for rows, _, _ in parts for row in rows]
    scores = np.concatenate([np.empty(0, np.float32), *(part for _, part, _ in parts)])
    logits = [part for _, _, part in parts if part is not None]
    _check_finite(scores, order, queries, texts)
    return Scored(order, scores, np.concatenate(logits) if logits else None, failures)


def _score(teacher: LoadedTeacher, queries: list[str], texts: list[str]) -> tuple[Floats, Floats | None]:
    if teacher.logits:
        logits = teacher.logits(queries, texts)
        return gain_scores(logits).astype(np.float32), logits
    return teacher.score(queries, texts).astype(np.float32), None


def _check_finite(scores: Floats, order: list[int], queries: Sequence[str], texts: Sequence[str]) -> None:
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        named = "; ".join(
            f"{scores[place]} of {queries[order[place]][:60]!r} with {texts[order[place]][:60]!r}"
            for place in wrong[:SHOWN]
        )
        more = f" and {wrong.size - SHOWN} more" if wrong.size > SHOWN else ""
        raise RunError(f"the teacher's scores aren't finite: {named}{more}; use labels.precision=float32")


def _unusable(query: str | None, text: str | None) -> str | None:
    """Why a pair isn't even tried."""
    for name, value in (("query", query), ("text", text)):
        if value is None or not normalise(value):
            return f"the {name} is empty"
        if len(value) > LONGEST_TEXT:
            return f"the {name} has {len(value):,} characters, more than {LONGEST_TEXT:,}"
    return None


def as_labels(table: pa.Table, scored: Scored) -> pa.Table:
    """Scored pairs as schema LABELS."""
    kept = table.select(["pair_id", "query", "item_id"]).take(scored.rows)
    count = len(scored.rows)
    now = pa.scalar(datetime.now(UTC), LABELS.field("labelled_at").type)
    logits = pa.nulls(count) if scored.logits is None else pa.array(list(scored.logits))
    columns = {"score": pa.array(scored.scores), "logits": logits, "labelled_at": pa.repeat(now, count)}
    return pa.table({**{name: kept[name] for name in kept.column_names}, **columns}).cast(LABELS)


def _reject(table: pa.Table, row: int, reason: str) -> dict[str, Any]:
    (pair,) = table.slice(row, 1).to_pylist()
    return {name: (value or "")[:SHOWN_TEXT] for name, value in pair.items()} | {"reason": reason}


@dataclass(frozen=True)
class Labeller:
    """A model that labels, and the store that its labels go to."""

    model: TeacherModel
    precision: str
    store: LabelStore

    @property
    def task(self) -> str:
        """Name shown with progress."""
        return "label" if self.model.kind == "cross" else f"label ({self.model.kind} {Path(self.model.folder).name})"

    def job(self, run: Run, tree: fs.SubTreeFileSystem) -> LabelJob:
        """Of its actors, with blocks and labels in `tree`."""
        return LabelJob(
            model=self.model,
            precision=self.precision,
            runtime=run.config.labels.runtime,
            token_budget=run.config.labels.budget(run.share.device),
            device=run.share.device,
            threads=run.share.actor_cpus,
            gpus=run.share.actor_gpus,
            tree=tree,
        )


def open_labeller(run: Run, model: TeacherModel, make: bool = True) -> Labeller:
    """A model with the store under its fingerprint, which is made if need be; where not, what isn't there is empty."""
    fields = run.config.data.fields
    precision = run.config.labels.precision
    if precision != "int8":
        precision = "bfloat16" if is_bfloat16(precision, run.share.device) else "float32"
    described = {**asdict(model), "fields": list(fields), "precision": precision}
    location = run.config.storage.labels or str(run.config.storage.folder / "labels")
    name = fingerprint(model, fields, precision)
    store = open_store(location, name, described) if make else store_at(location, name)
    return Labeller(model, precision, store)


def label_missing(
    run: Run, labeller: Labeller, pairs: pl.LazyFrame, data: str, actor: type[LabelActor] = LabelActor
) -> dict[str, Any]:
    """Score the pairs (pair_id, query, item_id, text) that the store lacks; returns what the commit tells.

    `data` is the key of what they come from. What a killed run had finished is taken over.
    """
    reporter, store, share = run.reporter, labeller.store, run.share

    def waiting(holder: str) -> None:
        reporter.event("labels", state="waiting", writer=holder, store=store.where)

    with work_folder(run.root, "labels") as aside, store.writing(waiting) as writer:
        pairs = pairs.select("pair_id", "query", "item_id", "text")
        part = run.config.labels.part(share.device, share.actors[1])
        blocks = write_pending(writer, pairs, aside, part, share.actors[1])
        total = sum(blocks.values())
        reporter.event("labels", state="counted", model=labeller.model.folder, missing=total)
        if not blocks:
            return {"pairs": 0}
        tally = Tally()
        reporter.advance(ProgressEvent(labeller.task, 0, total, "pair", {}, anew=True))  # from here on the rate counts
        for row in map_blocks(actor, labeller.job(run, store.tree), list(blocks), share.actors):
            tally.add(row)
            reporter.advance(ProgressEvent(labeller.task, row["pairs"], total, "pair", tally.shown()))
        told = {**tally.told(), "data": data}
        if tally.rejected:
            reporter.event("labels", state="rejected", pairs=tally.rejected, folder=f"{store.where}/runs/{writer.run}")
        writer.commit(tally.files, **told)
        return told


class Tally:
    """What the blocks of a run add up to."""

    def __init__(self) -> None:
        self.files: list[StoredFile] = []
        self.pairs = self.rejected = 0
        self._tokens = self._padded = 0
        self._flops = 0.0
        self._start = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one block."""
        self.pairs += row["pairs"]
        self._tokens += row["tokens"]
        self._padded += row["padded"]
        self._flops += row["flops"]
        files = [StoredFile(**file) for file in row["files"]]
        self.files += files
        self.rejected += sum(file.rows for file in files if file.rejects)

    def shown(self) -> dict[str, str]:
        """What a bar shows beside the rate."""
        padding = 1 - self._tokens / self._padded if self._padded else 0.0
        return {"padding": f"{padding:.1%}", "GFLOP/s": f"{self._flops / self._seconds / 1e9:,.1f}"}

    def told(self) -> dict[str, Any]:
        """What a commit keeps."""
        return {
            "pairs": self.pairs,
            "rejected": self.rejected,
            "seconds": round(self._seconds, 1),
            "pairs_per_second": round(self.pairs / self._seconds, 1),
            "tokens": self._tokens,
            "padding": round(1 - self._tokens / self._padded, 4) if self._padded else 0.0,
            "useful_flops_per_second": round(self._flops / self._seconds),
        }

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)


def write_pending(writer: LabelRun, pairs: pl.LazyFrame, aside: Path, block: int, actors: int) -> dict[str, int]:
    """Write what the store lacks as blocks of so many pairs; returns their paths with their pairs."""
    blocks = {}
    for bucket, lacking in writer.store.missing(pairs, aside / "buckets"):
        # By text, so that sentence encoders, which encode each text of a block once, meet an item in one block.
        lacking = lacking.sort("text", maintain_order=True)
        # A run of few pairs is cut so that every actor has some and none waits long for the last.
        rows = block if bucket else min(block, max(SMALLEST_BLOCK, math.ceil(lacking.height / actors / 4)))
        for number, part in enumerate(lacking.iter_slices(rows)):
            path = writer.pending(bucket, number)
            write_block(writer.store.tree, path, part)
            blocks[path] = part.height
    return blocks


def write_block(tree: fs.SubTreeFileSystem, path: str, pairs: pl.DataFrame) -> None:
    """Write pairs (pair_id, query, item_id, text) to be scored."""
    with io.BytesIO() as buffer:
        pairs.write_parquet(buffer)
        write_whole(tree, path, buffer.getvalue())
