"""Distil the teacher into a student."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import polars as pl

from rankstill.batches import tokenise_lists
from rankstill.config import Config
from rankstill.cross_encoder import CrossEncoder, load_cross_encoder
from rankstill.encoders import find_encoder
from rankstill.errors import ConfigError, InputError
from rankstill.features import FeatureMatcher
from rankstill.labels import store_at
from rankstill.model_config import Student, TeacherMember
from rankstill.objective import Objective
from rankstill.registry import find_version
from rankstill.steps.fit import Fit, fit
from rankstill.steps.label import Labelled
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import Taught, label_max, teacher_model
from rankstill.students import make_student
from rankstill.students.pruning import prunable, prune
from rankstill.students.towers import continues_towers, match_scale
from rankstill.teachers.cross_encoder import model_identity, untrained_teacher
from rankstill.teachers.kinds import load_teacher

ALL = 1 << 30
"""Layers: as many as there are."""
SAMPLE_LISTS = 128
"""Lists, drawn at random, that tell what of a student matters, and on which scale its teacher scores."""


@dataclass(frozen=True)
class Trained:
    """A trained student folder."""

    key: str
    folder: Path


def resolved_student(config: Config, student: Student | None = None) -> Student:
    """A student's settings, with names in place of "base" and folders in place of registry references.

    A cross-encoder that starts from a model of its own takes all of its layers.
    """
    student = student or config.student
    if student.init == "base":
        return student.model_copy(update={"init": config.teacher.base})
    if student.init not in ("teacher", "random") and student.family == "cross":
        student = student.model_copy(update={"layers": ALL})
    version = find_version(student.init, config.storage.folder, "student.init")
    return student.model_copy(update={"init": str(version.folder)}) if version else student


def student_identity(config: Student) -> str:
    """What the student starts from; its weights' hash where these are its own."""
    own = config.init not in ("teacher", "random")
    return model_identity(config.init, "student.init") if own else config.init


def start_student(run: Run, taught: Taught, labelled: Labelled) -> CrossEncoder:
    """The student before training; new towers score on the teacher's scale."""
    config, student = run.config, resolved_student(run.config)
    teacher = None
    if student.init in ("teacher", "random"):
        teacher = load_cross_encoder(taught.main, "teacher", fresh_head=config.teacher.kind != "cross")
    made = make_student(student, teacher, config.train.seed)
    if student.family != "cross" and not continues_towers(student):
        match_scale(made, _sample(run, labelled).explode("items").unnest("items"))
    return made


def _sample(run: Run, labelled: Labelled) -> pl.DataFrame:
    table = pl.read_parquet(labelled.train)
    return table.sample(min(SAMPLE_LISTS, table.height), seed=run.config.train.seed)


def prune_student(run: Run, student: CrossEncoder, labelled: Labelled, objective: Objective) -> CrossEncoder:
    """The student without what matters least to its loss on some of the lists."""
    run.reporter.event("students", state="pruning", **run.config.student.prune.model_dump())
    lists = tokenise_lists(_sample(run, labelled), student.tokenise)
    parts = [rows[: run.config.train.list_size] for rows in lists.rows]
    return prune(student, run.config.student.prune, lists, parts, objective)


def check_models(config: Config, further: Mapping[str, Student] = MappingProxyType({})) -> None:
    """Refuse, before hours of work, a teacher that can't be loaded and students that can't be made.

    Further students than the config's are told by where their settings are from.

    Raises:
        InputError: a folder is no model, or what the settings ask of teacher and student doesn't fit them.
    """
    teacher, student = config.teacher, resolved_student(config)
    if config.storage.labels:
        store_at(config.storage.labels, "")
    kinds = {teacher.kind, *(member.kind for member in teacher.ensemble)} - {"cross"}
    if config.labels.precision == "int8" and kinds:
        raise ConfigError(f"labels.precision is 'int8', which a model of kind {min(kinds)} doesn't have; use auto")
    for place, member in enumerate(teacher.ensemble):
        _load_ready(member, teacher.base if member.model == "base" else member.model, f"teacher.ensemble.{place}.model")
    main, grades = None, 0
    if teacher.kind != "cross":
        _load_ready(teacher, teacher.model, "teacher.model")
        grades = len(teacher.answers) if teacher.kind == "causal" else 0
    elif teacher.model:
        main = load_cross_encoder(teacher.model, "teacher.model")
        grades = 0 if main.scores else main.grades
    else:
        main = untrained_teacher(teacher, ["any text"])
    if student.grades and config.distill.grades.soft and grades != student.grades:
        raise ConfigError(
            f"student.grades is {student.grades} and distill.grades.alpha asks for the teacher's, which tells"
            f" {grades or 'no'} grades apart; give that number, or set distill.grades.alpha=0"
        )
    _check_student(config, student, main)
    for place, other in further.items():
        try:
            _check_student(config, resolved_student(config, other), main)
        except InputError as error:
            raise type(error)(f"{place}: {error}") from error


def _check_student(config: Config, student: Student, main: CrossEncoder | None) -> None:
    if main is None and student.init in ("teacher", "random"):
        return
    made = make_student(student, main, config.train.seed)
    if student.prune.any:
        prunable(made)
    if config.distill.features.any and main is not None:
        FeatureMatcher(made, main, config.distill.features)


def _load_ready(member: TeacherMember, name: str, field: str) -> None:
    """Load a ready model and forget it."""
    model = teacher_model(member, find_encoder(name, field), max_length=64)
    load_teacher(model, field, "cpu", "float32", token_budget=64)


def student_key(config: Config, labelled: Labelled) -> str:
    """Key of the student's folder."""
    settings = config.model_dump(include={"student", "distill"})
    return step_key(labelled.key, student_identity(resolved_student(config)), settings, config.train.key())


def running_name(key: str) -> str:
    """Name of a student's training while it runs."""
    return f"student-{key}"


Fitter = Callable[[Run, CrossEncoder, Fit, Path], None]
"""What trains: `fit`, or `fit_here` with its arguments."""


def train(run: Run, prepared: Prepared, taught: Taught, labelled: Labelled, fitter: Fitter = fit) -> Trained:
    """The student of a run."""
    config, key = run.config, student_key(run.config, labelled)

    def build(folder: Path) -> None:
        objective = Objective(config.distill, label_max(prepared.pairs))
        with run.turn():
            student = start_student(run, taught, labelled)
            if config.student.prune.any:
                student = prune_student(run, student, labelled, objective)
        plan = Fit(
            task="train",
            name=running_name(key),
            train_lists=labelled.train,
            valid_lists=labelled.valid,
            train=config.train,
            objective=objective,
            teacher=taught.main if config.distill.features.any else None,
        )
        fitter(run, student, plan, folder)

    return Trained(key, run.step("students", key, build))
