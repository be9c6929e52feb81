"""What one trial does: train a student, export it in each form, judge it on the valid queries, time it."""

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from rankstill.artifacts import Artifact, load_artifact
from rankstill.compression import quantise_artifact
from rankstill.config import Config
from rankstill.errors import RankstillError, in_brief
from rankstill.evaluation import PRIMARY, evaluate
from rankstill.progress import Reporter
from rankstill.rankers import artifact_ranker
from rankstill.steps.export import export
from rankstill.steps.fit import fit, fit_here, history
from rankstill.steps.label import Labelled
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run
from rankstill.steps.teach import Taught, judged_split
from rankstill.steps.train import Trained, student_key, train
from rankstill.timing import Timing, choose_rankings, time_alone
from rankstill.training import METRIC
from tune.space import Params, with_settings
from tune.trials import Trial, TrialFiles, Variant


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep share."""

    config: Config
    prepared: Prepared
    taught: Taught
    labelled: Labelled
    folder: Path
    """The sweep's."""


def run_trial(given: dict[str, Any], plan: TrialPlan) -> None:
    """Ray Tune's function: one student, from its settings to its costs. What is done stands, and isn't done again.

    What goes wrong is noted, and ends this trial alone.
    """
    gc.collect()  # what the process's last trial left, whose engine and model refer to each other
    files, name = TrialFiles(plan.folder), given["trial"]["name"]
    try:
        trial = _student(files, name, given["trial"]["params"], plan)
    except Exception as error:
        reason = str(error) if isinstance(error, RankstillError) else f"{type(error).__name__}: {in_brief(error, 500)}"
        trial = replace(files.read(name), state="failed", reason=reason)
    files.write(trial)
    ray.tune.report({METRIC: trial.best, "epoch": len(trial.epochs)})


def _student(files: TrialFiles, name: str, params: Params, plan: TrialPlan) -> Trial:
    config = with_settings(plan.config, params)
    settings = config.sweep
    with Path(os.devnull).open("w") as nowhere:
        run = Run(config, Reporter(nowhere))
        begun = _worked(run)

        def told(metrics: dict[str, float]) -> None:
            nonlocal begun
            trial = files.read(name)
            now = _worked(run)
            files.write(replace(trial, epochs=(*trial.epochs, metrics), seconds=trial.seconds + now - begun))
            begun = now
            ray.tune.report({METRIC: metrics[METRIC], "epoch": int(metrics["epoch"])})

        files.write(replace(files.read(name), student=student_key(config, plan.labelled)))
        if run.share.workers > 1:
            fitter = partial(fit, callbacks=[TuneReportCallback()])
        else:
            fitter = partial(fit_here, device=run.share.device, threads=settings.cpus, told=told)
        trained = train(run, plan.prepared, plan.taught, plan.labelled, fitter)
        trial = files.read(name)
        epochs = tuple(history(trained.folder))
        seconds = trial.seconds if trial.epochs else _worked(run) - begun
        forms = _forms(run, plan, trained)
        variants = tuple(_measure(run, plan, files, name, artifact) for artifact in forms)
    return replace(trial, state="finished", epochs=epochs, seconds=seconds, variants=variants)


def _worked(run: Run) -> float:
    """Seconds, of which only differences mean anything; they stand still while the trial waits for its turn."""
    return time.monotonic() - run.waited


def _forms(run: Run, plan: TrialPlan, trained: Trained) -> list[Artifact]:
    """The student's artifacts."""
    with run.turn():
        measured = {"valid": max(epoch[METRIC] for epoch in history(trained.folder))}
        folder = export(run, plan.prepared, plan.taught, plan.labelled, trained, measured, "valid")
        whole, forms = load_artifact(folder), []
        for precision in run.config.sweep.precisions:
            if precision == "int8":
                small = run.step("artifacts", f"{folder.name}-int8", lambda aside: quantise_artifact(whole, aside))
                forms.append(load_artifact(small))
            else:
                forms.append(whole)
        return forms


def _measure(run: Run, plan: TrialPlan, files: TrialFiles, name: str, artifact: Artifact) -> Variant:
    """Judge one form on the valid queries, and time it alone."""
    config = run.config
    pairs = judged_split(plan.prepared.pairs, "valid")
    runtime = artifact.resolve(config.serve.runtime)
    with run.turn():
        ranker = artifact_ranker(
            name, artifact.folder, runtime, run.share.device, config.labels.budget(run.share.device)
        )
        report, table, _ = evaluate(ranker, pairs, "valid split")
    files.write_table(f"{name} {artifact.precision}", table)
    (timed,) = time_forms(run, plan, [(str(artifact.folder), runtime)], config.sweep.counts)
    return Variant(name, artifact.precision, str(artifact.folder), runtime, report["metrics"][PRIMARY], timed)


def time_forms(
    run: Run, plan: TrialPlan, forms: Sequence[tuple[str, str]], counts: tuple[int, ...], **thoroughness: Any
) -> list[dict[str, Any]]:
    """Time artifacts, each a folder and a runtime, side by side on the machines that the sweep is to measure on.

    `thoroughness` is `parts` and `seconds` of a `Timing`.
    """
    settings = run.config.sweep
    rankings = choose_rankings(judged_split(plan.prepared.pairs, "valid"), max(settings.counts))
    timing = Timing(tuple(forms), settings.measure_cpus, counts, rankings, **thoroughness)
    if not settings.measure_on:
        return time_alone(run.root, timing)
    # not within what the trial has been given
    options = {"num_cpus": 0, "resources": {settings.measure_on: 0.001}, "scheduling_strategy": "DEFAULT"}
    there = ray.remote(**options)(time_alone)
    return ray.get(there.remote(run.root, timing))
