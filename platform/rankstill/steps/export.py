"""Export the student as an artifact and register it."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankstill.artifacts import load_artifact
from rankstill.calibration import calibrate
from rankstill.cross_encoder import load_cross_encoder
from rankstill.exporting import export_artifact
from rankstill.registry import Record, Registry, Version
from rankstill.scoring import torch_scorer
from rankstill.steps.compare import Compared
from rankstill.steps.fit import history
from rankstill.steps.label import Labelled
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import Taught, judged_split, label_max, some_queries
from rankstill.steps.train import Trained

ORIGINS = ("data", "teacher", "teacher_fingerprint", "labels", "lists", "git_commit")
"""What a manifest says a student was made from."""
CALIBRATION_PAIRS = 4000
"""Valid pairs, about, from which scores become probabilities."""


def export(
    run: Run,
    prepared: Prepared,
    taught: Taught,
    labelled: Labelled,
    trained: Trained,
    measured: Mapping[str, Any],
    basis: str,
) -> Path:
    """The artifact folder of a run's student.

    `measured` goes into the manifest; `basis` names what it was measured on.
    """
    made_from = {
        "name": run.config.name,
        "data": prepared.key,
        "teacher": taught.key,
        "teacher_fingerprint": labelled.fingerprint,
        "labels": labelled.store,
        "lists": labelled.key,
        "student": trained.key,
        "git_commit": _git_commit(),
        "config": run.config.model_dump(mode="json"),
        **measured,
    }

    def build(folder: Path) -> None:
        student = load_cross_encoder(trained.folder, "student")
        pairs = some_queries(judged_split(prepared.pairs, "valid"), CALIBRATION_PAIRS)
        budget = run.config.labels.budget("cpu")
        scorer = torch_scorer(student, "cpu", "float32", budget)
        scores = scorer.score(pairs["query"].to_list(), pairs["text"].to_list()).astype(np.float64)
        calibration = calibrate(scores, pairs["label"].to_numpy() / label_max(prepared.pairs))
        export_artifact(student, folder, made_from, list(run.config.data.fields), calibration)

    return run.step("artifacts", step_key(trained.key, basis), build)


def export_compared(
    run: Run, prepared: Prepared, taught: Taught, labelled: Labelled, trained: Trained, compared: Compared
) -> Path:
    """`export` with what the student came to on the test split."""
    report = compared.report
    measured = {"metrics": report["models"]["student"]["metrics"], "retention": report["retention"]}
    return export(run, prepared, taught, labelled, trained, measured, compared.folder.name)


def register(
    run: Run, artifact: Path, student: Path, metric: float | None, tags: Mapping[str, str], challenger: bool = True
) -> Version:
    """Register an artifact under the run's name, with the MLflow run of the student folder that it was made of.

    `metric` is its nDCG@10 on the test split, where that is known; `challenger` whether it becomes that.
    """
    made = load_artifact(artifact).manifest["made_from"]
    record = Record(
        title=made["student"],
        params=_flat({name: made["config"][name] for name in ("student", "distill", "train")}),
        epochs=history(student),
        tags={
            **{name: made[name] for name in ORIGINS},
            "artifact": str(artifact),
            "config": json.dumps(made["config"]),
        },
    )
    known = {} if metric is None else {"test_ndcg": f"{metric:.6f}"}
    version = Registry(run.root).register(run.config.name, artifact, {**known, **tags}, record, challenger)
    run.reporter.event("registry", state="registered", version=str(version), aliases=",".join(version.aliases))
    return version


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _git_commit() -> str:
    """The commit that this code is at, empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
