"""From shoppers' feedback to a fresher student: lists, labels, a warm start from the champion, and the gate."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankstill.artifacts import Artifact, load_artifact
from rankstill.compression import quantise_artifact
from rankstill.config import Config
from rankstill.errors import ModelError
from rankstill.evaluation import PRIMARY
from rankstill.model_config import Prune, Student
from rankstill.registry import CHAMPION, Registry, Version
from rankstill.steps.accept import Verdict, accept
from rankstill.steps.begin import begin, soft_labels
from rankstill.steps.export import export, register
from rankstill.steps.fresh import Fresh, Upto, fresh_lists
from rankstill.steps.run import Run, step_key
from rankstill.steps.train import train


@dataclass(frozen=True)
class Refreshed:
    """A student that learnt from feedback."""

    version: Version
    champion: Version
    """The one that it was held against."""
    fresh: Fresh
    verdict: Verdict

    @property
    def told(self) -> dict[str, Any]:
        """What it learnt from and what the gate found, as JSON has it."""
        learnt = json.loads((self.fresh.folder / "fresh.json").read_text(encoding="utf-8"))
        gate = {"gate": str(self.verdict.folder / "gate.json"), **self.verdict.report}
        return {"version": str(self.version), "champion": str(self.champion), "learnt": learnt, **gate}


def refresh(run: Run, upto: Upto) -> Refreshed:
    """Distil a student from the champion with what feedback tells up to some point, judge and register it.

    A refresh that was stopped goes on where it was, given the same `upto`. One that the gate refuses is registered with
    the reasons, and is not challenger.

    Raises:
        InputError: no champion to start from, or nothing to learn from.
    """
    champion = Registry(run.root).resolve(f"{run.config.name}@{CHAMPION}", "refresh")
    before = load_artifact(champion.folder, str(champion))
    prepared, taught = begin(run)
    _, labelled = soft_labels(run, prepared, taught)
    fresh = fresh_lists(run, prepared, taught, labelled, upto)
    again = Run(refreshing(run.config, before, run.root), run.reporter)
    trained = train(again, prepared, taught, fresh.lists)
    made = {"refreshed_from": str(champion), "impressions": upto.impressions, "events": upto.events}
    folder = export(again, prepared, taught, fresh.lists, trained, made, "refresh")
    if before.precision == "int8":
        folder = _small(run, load_artifact(folder))
    verdict = accept(run, prepared, fresh, before, load_artifact(folder))
    report = verdict.report
    gained = next(check["value"] for check in report["checks"] if check["name"] == f"judgements, {PRIMARY}")
    tags = {"refreshed_from": str(champion), "gate": "passed" if verdict.passed else "refused"}
    tags |= {"reasons": "; ".join(report["refused"])} if report["refused"] else {}
    ndcg = before.manifest["made_from"].get("metrics", {}).get(PRIMARY, {}).get("value")
    metric = ndcg + gained if ndcg is not None and gained is not None else None
    version = register(run, folder, trained.folder, metric, tags, challenger=verdict.passed)
    return Refreshed(version, champion, fresh, verdict)


def refreshing(config: Config, champion: Artifact, root: Path) -> Config:
    """The config with which the champion learns on: its own shape, its weights, and the settings of `refresh`.

    Raises:
        ModelError: its manifest doesn't say what these are.
    """
    made = champion.manifest["made_from"]
    if "config" not in made or "student" not in made:
        raise ModelError(
            f"refresh: the manifest of champion {str(champion.folder)!r} doesn't say how it was trained; promote a"
            " version that jobs.pipeline or tune.sweep registered"
        )
    start = root / "students" / made["student"] if champion.precision == "int8" else champion.folder
    student = Student.model_validate(made["config"]["student"])
    student = student.model_copy(update={"init": str(start), "prune": Prune()})
    wanted = config.refresh
    learning = {"epochs": wanted.epochs, "learning_rate": wanted.learning_rate, "max_steps": 0}
    return config.model_copy(update={"student": student, "train": config.train.model_copy(update=learning)})


def _small(run: Run, artifact: Artifact) -> Path:
    """Its int8 form."""
    key = step_key(artifact.folder.name, "int8")
    return run.step("artifacts", key, lambda folder: quantise_artifact(artifact, folder))
