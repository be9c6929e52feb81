"""Fine-tune a cross-encoder on the judgements, or take a ready one."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from rankstill.cross_encoder import load_cross_encoder
from rankstill.data import build_lists
from rankstill.encoders import find_encoder
from rankstill.errors import DataError
from rankstill.model_config import Teacher, TeacherMember
from rankstill.objective import Objective
from rankstill.rankers import pick_device
from rankstill.steps.fit import Fit, fit
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.teachers.cross_encoder import model_identity, untrained_teacher
from rankstill.teachers.ensemble import Ensemble, Member, read_ensemble
from rankstill.teachers.kinds import LoadedTeacher, TeacherModel, load_teacher

STANDARDISED_PAIRS = 2000
"""Valid pairs, at most, on whose scores the members of an ensemble are standardised."""


@dataclass(frozen=True)
class Taught:
    """A teacher, ready to label."""

    key: str
    folder: Path
    """The main model, or the ensemble."""
    ensemble: Ensemble
    """The main model first, and alone where there is no other."""

    @property
    def main(self) -> Path:
        """Folder of the main model."""
        return Path(self.ensemble.members[0].model.folder)


def teacher_key(config: Teacher, data_key: str) -> str:
    """Key of the main model's folder."""
    if config.model:
        return step_key(model_identity(config.model, "teacher.model"), config.max_length)
    settings = config.model_dump(include={"random", "max_length"})
    return step_key(data_key, model_identity(config.base, "teacher.base"), settings, config.train.key())


def teach(run: Run, prepared: Prepared) -> Taught:
    """The teacher of a run."""
    config = run.config.teacher
    key = teacher_key(config, prepared.key)

    def build(folder: Path) -> None:
        if not config.model:
            _fine_tune(run, prepared, key, folder)
        elif config.kind == "cross":
            load_cross_encoder(config.model, "teacher.model", config.max_length).save(folder)

    if config.model and config.kind != "cross":  # stays where it is
        main = find_encoder(config.model, "teacher.model")
    else:
        main = run.step("teachers", key, build)
    models = [teacher_model(config, main, config.max_length), *member_models(config)]
    if not config.ensemble and config.kind == "cross":  # other kinds need the manifest that says what they are
        return Taught(key, main, Ensemble((Member(models[0], 1.0),)))
    weights = [config.weight, *(member.weight for member in config.ensemble)]
    described = [[model_identity(model.folder, "teacher"), model.kind, model.prompt, model.answers] for model in models]
    key = step_key(key, prepared.key, described, weights)
    folder = run.step("ensembles", key, lambda folder: _standardise(run, prepared, models, weights).write(folder))
    return Taught(key, folder, read_ensemble(folder, "teacher"))


def member_models(config: Teacher) -> list[TeacherModel]:
    """The further members of an ensemble."""
    models = []
    for place, member in enumerate(config.ensemble):
        name = config.base if member.model == "base" else member.model
        folder = find_encoder(name, f"teacher.ensemble.{place}.model")
        models.append(teacher_model(member, folder, config.max_length))
    return models


def teacher_model(config: TeacherMember, folder: Path, max_length: int) -> TeacherModel:
    """A configured model at its place; prompts are for causal models only."""
    asked = {"prompt": config.prompt, "answers": config.answers} if config.kind == "causal" else {}
    return TeacherModel(config.kind, str(folder), max_length, **asked)


def _standardise(run: Run, prepared: Prepared, models: list[TeacherModel], weights: list[float]) -> Ensemble:
    pairs = judged_split(prepared.pairs, "valid").sort("pair_id").head(STANDARDISED_PAIRS)
    queries, texts = pairs["query"].to_list(), pairs["text"].to_list()
    scores = []
    for model in models:
        run.reporter.event("ensembles", state="scoring", model=model.folder, pairs=pairs.height)
        scores.append(open_teacher(run, model).score(queries, texts))
    return Ensemble.standardised(models, weights, scores, pairs["label"].to_numpy() / label_max(pairs))


def open_teacher(run: Run, model: TeacherModel) -> LoadedTeacher:
    """A model in this process."""
    labels = run.config.labels
    precision = "float32" if labels.precision == "int8" else labels.precision  # which only the labelling form has
    device = pick_device(run.config.resources.device)
    return load_teacher(model, "teacher", device, precision, labels.budget(device))


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


def some_queries(pairs: pl.DataFrame, most: int) -> pl.DataFrame:
    """The pairs of queries drawn at random, about `most` in all and one query at least."""
    queries = pairs["query_id"].unique(maintain_order=True)
    kept = queries.sample(min(len(queries), max(1, most * len(queries) // pairs.height)), seed=0)
    return pairs.filter(pl.col("query_id").is_in(kept.implode()))


def label_max(pairs: pl.DataFrame) -> float:
    """The largest judgement, which counts as fully relevant.

    Raises:
        DataError: every judgement is zero.
    """
    largest = pairs["label"].max()
    if not isinstance(largest, float) or largest <= 0:
        raise DataError("data: every label of the train split is 0; give judgements with relevant items")
    return largest
