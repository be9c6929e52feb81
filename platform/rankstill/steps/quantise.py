"""A teacher in int8, for labelling on CPUs where its scores hold."""

import tempfile
from dataclasses import replace
from pathlib import Path

from rankstill.artifacts import Artifact
from rankstill.compression import quantise_artifact
from rankstill.cross_encoder import load_cross_encoder
from rankstill.errors import ConfigError
from rankstill.evaluation import check_fidelity
from rankstill.exporting import export_artifact
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import judged_split, some_queries
from rankstill.storage import write_json
from rankstill.teachers.cross_encoder import hash_folder
from rankstill.teachers.kinds import TeacherModel

CHECKED_PAIRS = 2000
"""Valid pairs, at most, on which both forms are compared."""


def quantised(run: Run, prepared: Prepared, model: TeacherModel) -> TeacherModel:
    """The int8 form of a teacher, made once.

    Raises:
        ConfigError: a model, or a device, that has no int8 form.
        GateError: its scores aren't close enough to the original's on the valid judgements.
    """
    key = quantised_key(prepared, model)

    def build(folder: Path) -> None:
        sample = some_queries(judged_split(prepared.pairs, "valid"), CHECKED_PAIRS)
        with tempfile.TemporaryDirectory() as aside:
            whole, small = quantise(run, model, Path(aside), folder / "model")
            measured = check_fidelity(whole, small, sample, "the valid split", run.config.labels.budget("cpu"))
        write_json(folder / "fidelity.json", measured)

    return replace(model, folder=str(run.step("quantised", key, build) / "model"))


def quantised_key(prepared: Prepared, model: TeacherModel) -> str:
    """Key of the int8 form's folder."""
    return step_key(hash_folder(Path(model.folder)), model.max_length, prepared.key)


def quantise(run: Run, model: TeacherModel, aside: Path, folder: Path) -> tuple[Artifact, Artifact]:
    """A teacher as an artifact in the empty folder `aside`, and its int8 form in the new `folder`.

    Raises:
        ConfigError: a model, or a device, that has no int8 form.
    """
    if run.share.device != "cpu":
        raise ConfigError(f"labels.precision is 'int8', which device {run.share.device} doesn't have; use auto")
    encoder = load_cross_encoder(model.folder, "teacher", model.max_length)
    if not encoder.scores:
        raise ConfigError("labels.precision is 'int8', but the teacher tells grades apart; use auto")
    whole = export_artifact(encoder, aside, {}, list(run.config.data.fields))
    folder.mkdir()
    return whole, quantise_artifact(whole, folder)
