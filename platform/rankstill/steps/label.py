"""Score pairs with the teacher on a Ray Data actor pool and keep the scores as soft labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from rankstill.bm25 import Bm25
from rankstill.candidates import made_pairs, unlabelled_pairs
from rankstill.data import build_lists, with_pair_id
from rankstill.schema import SPLITS
from rankstill.steps.labelling import Labeller, label_missing, open_labeller
from rankstill.steps.prepare import Prepared
from rankstill.steps.quantise import quantised
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import Taught, judged_split
from rankstill.storage import write_json
from rankstill.teachers.ensemble import Ensemble


@dataclass(frozen=True)
class Labelled:
    """Candidate lists with soft labels, and the store that these come from."""

    key: str
    folder: Path
    fingerprint: str
    store: str
    """Folder or URL."""

    @property
    def train(self) -> Path:
        """Parquet file of the lists to learn from."""
        return self.folder / "train.parquet"

    @property
    def valid(self) -> Path:
        """Parquet file of the lists to choose on."""
        return self.folder / "valid.parquet"


def label(run: Run, prepared: Prepared, taught: Taught) -> Labelled:
    """Label what has no label yet, then join judgements and soft labels to candidate lists."""
    settings = run.config.labels
    labellers = open_labellers(run, prepared, taught)
    wanted = settings.model_dump(include={"candidates", "mix", "made_queries", "made_candidates", "made_mix"})
    fingerprints = [one.store.fingerprint for one in labellers]
    combine = run.config.teacher.combine
    key = step_key(prepared.key, taught.key, fingerprints, combine, wanted, settings.seed)

    def build(folder: Path) -> None:
        pairs = pairs_to_label(run, prepared)
        labels = labels_of(run, taught, labellers, pl.concat(pairs.values(), how="diagonal"), prepared.key)
        for split in ("train", "valid"):
            pq.write_table(build_lists(pairs[split], labels), folder / f"{split}.parquet")
        write_stores(labellers, folder)

    store = labellers[0].store
    return Labelled(key, run.step("lists", key, build), store.fingerprint, store.where)


def open_labellers(run: Run, prepared: Prepared, taught: Taught) -> list[Labeller]:
    """The teacher's members, each with its store of labels."""
    models = [member.model for member in taught.ensemble.members]
    if run.config.labels.precision == "int8":
        models = [quantised(run, prepared, model) for model in models]
    return [open_labeller(run, model) for model in models]


def labels_of(run: Run, taught: Taught, labellers: list[Labeller], pairs: pl.DataFrame, data: str) -> pl.DataFrame:
    """The teacher's label of each pair; what no store has yet is scored. `data` is the key of what pairs come from."""
    found = [labels_for(run, one, pairs, data) for one in labellers]
    return combine_labels(taught.ensemble, pairs, found, run.config.teacher.combine)


def write_stores(labellers: list[Labeller], folder: Path) -> None:
    """Write down which commits of which stores lists were made from."""
    stores = {one.store.where: [commit.run for commit in one.store.commits()] for one in labellers}
    write_json(folder / "labels.json", stores)


def pairs_to_label(run: Run, prepared: Prepared) -> dict[str, pl.DataFrame]:
    """Pairs of each split, and with those to learn from the unjudged ones.

    No student sees labels of the test split. They are there for refreshes, whose gate asks how far champion and
    challenger agree with the teacher on held-out queries that shoppers ask.
    """
    pairs: dict[str, pl.DataFrame] = {split: judged_split(prepared.pairs, split) for split in SPLITS}
    further = further_pairs(run, prepared, pairs["train"])
    return pairs | {"train": pl.concat([pairs["train"], *further], how="diagonal")}


def combine_labels(
    ensemble: Ensemble, pairs: pl.DataFrame, labels: list[pl.DataFrame], how: Literal["mean", "agreement"]
) -> pl.DataFrame:
    """One score a pair from the members' (each a frame of pair_id, score and logits); logits are the main member's.

    A pair that a member couldn't score has none.
    """
    if len(labels) == 1:
        (alone,) = labels
        scores = ensemble.combine([alone["score"].to_numpy().astype(np.float64)])
        return alone.with_columns(score=pl.Series(scores, dtype=pl.Float32))
    for one in labels:
        pairs = pairs.join(one, on="pair_id", how="semi", maintain_order="left")
    columns = [pairs.join(one, on="pair_id", how="left", maintain_order="left")["score"].to_numpy() for one in labels]
    scores = [column.astype(np.float64) for column in columns]
    combined = ensemble.combine(scores) if how == "mean" else ensemble.choose(pairs, scores)
    found = pairs.select("pair_id", score=pl.Series(combined, dtype=pl.Float32))
    found = found.unique("pair_id", keep="first", maintain_order=True)
    return found.join(labels[0].select("pair_id", "logits"), on="pair_id", how="left", maintain_order="left")


def further_pairs(run: Run, prepared: Prepared, train: pl.DataFrame) -> list[pl.DataFrame]:
    """Unlabelled items for the training queries, and further queries made of the words of items, with items."""
    labels, items = run.config.labels, prepared.items
    further = []
    index = Bm25(items["text"].to_list()) if labels.candidates or labels.made_queries else None
    if index and labels.candidates:
        run.reporter.event("labels", state="searching candidates", queries=train["query_id"].n_unique())
        further.append(unlabelled_pairs(train, items, index, labels.candidates, labels.mix, labels.seed))
    if index and labels.made_queries:
        run.reporter.event("labels", state="making queries", queries=labels.made_queries)
        known = set(prepared.pairs["query"])
        count, mix = labels.made_candidates, labels.made_mix
        further.append(made_pairs(items, index, labels.made_queries, count, mix, known, labels.seed))
    return [with_pair_id(pairs) for pairs in further]


def labels_for(run: Run, labeller: Labeller, pairs: pl.DataFrame, data: str) -> pl.DataFrame:
    """pair_id, score and logits of all pairs that can be scored, of which the store keeps those that it lacked."""
    label_missing(run, labeller, pairs.lazy(), data)
    scores = labeller.store.scan().select("pair_id", "score", "logits")
    with labeller.store.reading():
        return scores.join(pairs.lazy().select("pair_id").unique(), on="pair_id", how="semi").collect()
