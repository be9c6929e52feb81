"""Fine-tune a cross-encoder on the judgements, or take a ready one."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from jobs.fit import Fit, fit
from jobs.prepare import Prepared
from jobs.run import Run, step_key
from rankstill.config import Teacher
from rankstill.cross_encoder import load_cross_encoder
from rankstill.data import build_lists
from rankstill.errors import DataError
from rankstill.objective import Objective
from rankstill.teachers.cross_encoder import model_identity, untrained_teacher


@dataclass(frozen=True)
class Taught:
    """A teacher, ready to label."""

    key: str
    folder: Path


def teacher_key(config: Teacher, data_key: str) -> str:
    """Key of the teacher's folder."""
    if config.model:
        return step_key(model_identity(config.model, "teacher.model"), config.max_length)
    settings = config.model_dump(exclude={"train": {"max_failures"}})
    return step_key(data_key, model_identity(config.base, "teacher.base"), settings)


def teach(run: Run, prepared: Prepared) -> Taught:
    """The teacher of a run."""
    config = run.config.teacher
    key = teacher_key(config, prepared.key)

    def build(folder: Path) -> None:
        if config.model:
            load_cross_encoder(config.model, "teacher.model", config.max_length).save(folder)
        else:
            _fine_tune(run, prepared, key, folder)

    return Taught(key, run.step("teachers", key, build))


def _fine_tune(run: Run, prepared: Prepared, key: str, folder: Path) -> None:
    config = run.config.teacher
    train, valid = (judged_split(prepared.pairs, split) for split in ("train", "valid"))
    encoder = untrained_teacher(config, train["query"].to_list() + train["text"].to_list())
    plan = Fit(
        task="teach",
        name=f"teacher-{key}",
        train_lists=build_lists(train, None),
        valid_lists=build_lists(valid, None),
        train=config.train,
        objective=Objective.judgements_only(label_max(train)),
    )
    fit(run, encoder, plan, folder)


def judged_split(pairs: pl.DataFrame, split: str) -> pl.DataFrame:
    """The pairs of one split.

    Raises:
        DataError: the split is empty, or measures nothing because all labels of each of its queries are equal.
    """
    part = pairs.filter(pl.col("split") == split)
    if part.is_empty():
        raise DataError(
            f"data: no query fell into the {split!r} split; give more queries, or set split in the rows or"
            " data.valid and data.test"
        )
    if split != "train" and part.group_by("query_id").agg(pl.col("label").n_unique())["label"].max() == 1:
        raise DataError(
            f"data: all labels of each query of the {split!r} split are equal, so that it can't tell rankings apart;"
            " give more queries, or judgements that differ"
        )
    return part


def label_max(pairs: pl.DataFrame) -> float:
    """The largest judgement, which counts as fully relevant.

    Raises:
        DataError: every judgement is zero.
    """
    largest = pairs["label"].max()
    if not isinstance(largest, float) or largest <= 0:
        raise DataError("data: every label of the train split is 0; give judgements with relevant items")
    return largest


if __name__ == "__main__":
    from jobs.pipeline import command

    command("teach")
