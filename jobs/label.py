"""Score pairs with the teacher on a Ray Data actor pool and keep the scores as soft labels."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.pool import map_folder, write_blocks
from jobs.prepare import Prepared
from jobs.run import Run, step_key
from jobs.teach import Taught, judged_split
from rankstill.bm25 import Bm25
from rankstill.candidates import made_pairs, unlabelled_pairs
from rankstill.data import build_lists, with_pair_id
from rankstill.labels import LabelStore
from rankstill.relay import relay
from rankstill.schema import LABELS, ProgressEvent
from rankstill.scoring import is_bfloat16
from rankstill.storage import work_folder, write_json
from rankstill.teachers.cross_encoder import fingerprint
from rankstill.teachers.ensemble import Ensemble
from rankstill.teachers.kinds import TeacherModel, gain_scores, load_teacher


@dataclass(frozen=True)
class Labelled:
    """Candidate lists with soft labels, and the store that these come from."""

    key: str
    folder: Path
    fingerprint: str

    @property
    def train(self) -> Path:
        """Parquet file of the lists to learn from."""
        return self.folder / "train.parquet"

    @property
    def valid(self) -> Path:
        """Parquet file of the lists to choose on."""
        return self.folder / "valid.parquet"


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


@dataclass(frozen=True)
class LabelJob:
    """What a labelling actor needs to know."""

    task: str
    model: TeacherModel
    precision: str
    token_budget: int
    device: str
    threads: int
    total: int
    mailbox: Any = None


class LabelActor:
    """Holds a labelling model and scores blocks of pairs."""

    def __init__(self, job: LabelJob) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        self._teacher = load_teacher(job.model, "teacher", job.device, job.precision, job.token_budget)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Add scores, and logits where the model gives grades; keep the columns of schema LABELS."""
        pairs = batch["query"].to_pylist(), batch["text"].to_pylist()
        logits = self._teacher.logits(*pairs) if self._teacher.logits else None
        scores = (self._teacher.score(*pairs) if logits is None else gain_scores(logits)).astype(np.float32)
        if self._job.mailbox is not None:
            self._job.mailbox.put.remote(ProgressEvent(self._job.task, len(scores), self._job.total, "pair", {}))
        now = np.full(len(scores), np.datetime64(datetime.now(UTC).replace(tzinfo=None), "ms"))
        columns = {name: batch[name] for name in ("pair_id", "query", "item_id")}
        listed = pa.nulls(len(scores)) if logits is None else pa.array(list(logits))
        times = pa.array(now).cast(LABELS.field("labelled_at").type)
        return pa.table({**columns, "score": scores, "logits": listed, "labelled_at": times}).cast(LABELS)


def label(run: Run, prepared: Prepared, taught: Taught) -> Labelled:
    """Label what has no label yet, then join judgements and soft labels to candidate lists."""
    settings = run.config.labels
    labellers = [open_labeller(run, member.model) for member in taught.ensemble.members]
    wanted = settings.model_dump(include={"candidates", "mix", "made_queries", "made_candidates", "made_mix"})
    fingerprints = [one.store.fingerprint for one in labellers]
    combine = run.config.teacher.combine
    key = step_key(prepared.key, taught.key, fingerprints, combine, wanted, run.config.train.seed)

    def build(folder: Path) -> None:
        train, valid = (judged_split(prepared.pairs, split) for split in ("train", "valid"))
        train = pl.concat([train, *further_pairs(run, prepared, train)], how="diagonal")
        both = pl.concat([train, valid], how="diagonal")
        labels = combine_labels(taught.ensemble, both, [label_pairs(run, one, both) for one in labellers], combine)
        for split, pairs in (("train", train), ("valid", valid)):
            pq.write_table(build_lists(pairs, labels), folder / f"{split}.parquet")
        stores = {one.store.fingerprint: [str(file) for file in one.store.files()] for one in labellers}
        write_json(folder / "labels.json", stores)

    return Labelled(key, run.step("lists", key, build), labellers[0].store.fingerprint)


def open_labeller(run: Run, model: TeacherModel) -> Labeller:
    """A model with the store under its fingerprint."""
    fields = run.config.data.fields
    precision = "bfloat16" if is_bfloat16(run.config.labels.precision, run.share.device) else "float32"
    described = {**asdict(model), "fields": list(fields), "precision": precision}
    store = LabelStore(run.root / "labels", fingerprint(model, fields, precision), described)
    return Labeller(model, precision, store)


def combine_labels(
    ensemble: Ensemble, pairs: pl.DataFrame, labels: list[pl.DataFrame], how: Literal["mean", "agreement"]
) -> pl.DataFrame:
    """One score a pair from the members' (each a frame of pair_id, score and logits); logits are the main member's."""
    if len(labels) == 1:
        return labels[0]
    columns = [pairs.join(one, on="pair_id", how="left", maintain_order="left")["score"].to_numpy() for one in labels]
    scores = [column.astype(np.float64) for column in columns]
    combined = ensemble.combine(scores) if how == "mean" else ensemble.choose(pairs, scores)
    found = pairs.select("pair_id", score=pl.Series(combined, dtype=pl.Float32))
    found = found.unique("pair_id", keep="first", maintain_order=True)
    return found.join(labels[0].select("pair_id", "logits"), on="pair_id", how="left", maintain_order="left")


def further_pairs(run: Run, prepared: Prepared, train: pl.DataFrame) -> list[pl.DataFrame]:
    """Unlabelled items for the training queries, and further queries made of the words of items, with items."""
    labels, items, seed = run.config.labels, prepared.items, run.config.train.seed
    further = []
    index = Bm25(items["text"].to_list()) if labels.candidates or labels.made_queries else None
    if index and labels.candidates:
        run.reporter.event("labels", state="searching candidates", queries=train["query_id"].n_unique())
        further.append(unlabelled_pairs(train, items, index, labels.candidates, labels.mix, seed))
    if index and labels.made_queries:
        run.reporter.event("labels", state="making queries", queries=labels.made_queries)
        known = set(prepared.pairs["query"])
        count, mix = labels.made_candidates, labels.made_mix
        further.append(made_pairs(items, index, labels.made_queries, count, mix, known, seed))
    return [with_pair_id(pairs) for pairs in further]


def label_pairs(run: Run, labeller: Labeller, pairs: pl.DataFrame) -> pl.DataFrame:
    """Score the pairs that the store lacks and append them as one commit; returns pair_id, score and logits of all."""
    missing = labeller.store.missing(pairs).select("pair_id", "query", "item_id", "text")
    run.reporter.event(
        "labels", state="counted", model=labeller.model.folder, pairs=pairs.height, missing=missing.height
    )
    if missing.height:
        with work_folder(run.root, "labels") as aside:
            # By text, so that sentence encoders, which encode each text of a block once, meet an item in one block.
            write_blocks(missing.sort("text", maintain_order=True), aside / "pending", run.config.labels.block)
            with relay(run.reporter) as mailbox:
                share = run.share
                job = LabelJob(
                    task=labeller.task,
                    model=labeller.model,
                    precision=labeller.precision,
                    token_budget=run.config.labels.token_budget,
                    device=share.device,
                    threads=share.actor_cpus,
                    total=missing.height,
                    mailbox=mailbox,
                )
                map_folder(LabelActor, job, aside / "pending", aside / "done", share.actors, run.config.labels.block)
            labeller.store.append(aside / "done")
    scores = labeller.store.scan().select("pair_id", "score", "logits").unique("pair_id")
    return scores.join(pairs.lazy().select("pair_id"), on="pair_id", how="semi").collect()


if __name__ == "__main__":
    from jobs.pipeline import command

    command("label")
