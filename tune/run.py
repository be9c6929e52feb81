"""A sweep: Ray Tune over trials, the Pareto set, the winner, its one look at the test split, its registration."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler

from rankstill.cluster import Share
from rankstill.config import Config
from rankstill.configfile import dump_config
from rankstill.errors import ConfigError, RunError
from rankstill.evaluation import PRIMARY
from rankstill.lineage import lineage
from rankstill.progress import Reporter
from rankstill.registry import Registry
from rankstill.schema import ProgressEvent
from rankstill.steps.begin import begin, soft_labels
from rankstill.steps.export import register
from rankstill.steps.run import Run, step_key
from rankstill.steps.train import running_name
from rankstill.storage import write_json, write_text
from rankstill.sweep_config import Budget, Sweep
from rankstill.training import METRIC
from tune.finals import Choice, look_at_test, repeats_of_finalists, settle
from tune.report import report_sweep
from tune.search import StudentSearch
from tune.space import Space
from tune.trial import TrialPlan, run_trial
from tune.trials import Trial, TrialFiles

FREE = {"budget", "measured", "max_concurrent", "trials", "loggers", "stability", "finalists", "failures"}
"""Settings with which a sweep may go on that was begun without them."""


def winner_rows(swept: "Swept", budget: Budget) -> list[list[str]]:
    """Table rows of the Pareto set, best first, the winner marked; header first."""
    rows = [["student", "nDCG@10 (valid)", "95 % interval", f"p99 ms, {budget.candidates} items", "MB", ""]]
    front, winner = swept.choice.pareto, swept.choice.winner
    for one in front if winner in front else [*front, winner]:
        interval = f"{one.ndcg['low']:.4f} to {one.ndcg['high']:.4f}"
        cost = [f"{one.p99_ms(budget.candidates):.1f}", f"{one.bytes / 1e6:.1f}"]
        rows.append([one.name, f"{one.ndcg['value']:.4f}", interval, *cost, "winner" if one == winner else ""])
    return rows


@dataclass(frozen=True)
class Swept:
    """What a sweep came to."""

    choice: Choice
    test: dict[str, Any]
    """The winner, the teacher and BM25 on the test split."""
    places: dict[str, str]


def sweep(config: Config, space: Space) -> Swept:
    """Run a sweep, or what is left of it.

    Raises:
        BudgetError: no student is within the budget.
        RunError: trials fail, again and again, for the same reason.
    """
    with Reporter() as reporter, ExitStack() as held:
        run = Run(config, reporter)
        registry = Registry(run.root)  # which is refused now, where it can't be used, and not after the last trial
        check_room(run.share, config.sweep)
        prepared, taught = begin(run, space.students())
        gated, labelled = soft_labels(run, prepared, taught)
        told = {"student": True, "distill": True, "train": True, "serve": {"runtime"}}
        described = config.model_dump(mode="json", include=told)
        searched = config.sweep.model_dump(mode="json", exclude=FREE)
        key = step_key(labelled.key, described, searched, config.sweep.counts)
        held.enter_context(run.sole("sweeps", key))
        files = TrialFiles(run.root / "sweeps" / key)
        write_text(files.folder / "config.yaml", dump_config(config))
        storage = config.storage.model_copy(update={"root": str(run.root)})  # Tune gives trials folders to work in
        plan = TrialPlan(config.model_copy(update={"storage": storage}), prepared, taught, labelled, files.folder)
        reporter.event("sweep", state="started", folder=str(files.folder), stands=len(_ended(files)))
        teacher = gated.report["models"]["teacher"][PRIMARY]["value"]
        tell = Chronicle(registry, key, files, config, list(space.dimensions), teacher)
        _search(run, space, files, plan, tell)
        if repeats := repeats_of_finalists(config, files):
            _tune(run, files, plan, len(repeats), {}, {"trial": ray.tune.grid_search(repeats)}, tell)
        choice = settle(run, plan, files)
        winner = choice.winner
        look = look_at_test(run, plan, winner)
        test = look.told()
        value = look.reports["student"]["metrics"][PRIMARY]["value"]
        student = run.root / "students" / files.read(winner.trial).student
        version = register(run, winner.folder, student, value, {"sweep": key})
        report = tell(variants=choice.variants, winner=winner, look=look, links=list(lineage(run.root, version)))
        places = {
            "sweep": str(files.folder),
            "report": str(report),
            "winner": winner.artifact,
            "registered": f"{version} ({', '.join(version.aliases)})",
        }
        write_json(
            files.folder / "winner.json",
            {
                "winner": vars(winner),
                "params": files.read(winner.trial).params,
                "equal": [one.name for one in choice.equal],
                "pareto": [one.name for one in choice.pareto],
                "budget": config.sweep.budget.model_dump(),
                "test": test,
                "version": str(version),
            },
        )
        return Swept(choice, test, places)


def check_room(share: Share, settings: Sweep) -> None:
    """See that trials find what they need on the machines that the cluster has.

    Raises:
        ConfigError: they would wait for ever.
    """
    machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    most = int(max(one.get("CPU", 0) for one in machines))
    if share.workers == 1 and settings.cpus > most:
        raise ConfigError(
            f"sweep.cpus is {settings.cpus} but no machine has more than {most} CPUs; give {most} or fewer"
        )
    if settings.measure_on and not any(settings.measure_on in one for one in machines):
        raise ConfigError(
            f"sweep.measure_on is {settings.measure_on!r} but no machine of the cluster has that resource; start one"
            f" with ray start --resources '{{\"{settings.measure_on}\": 1}}', or drop it"
        )


class Chronicle:
    """Tells of a sweep as it goes on: in the report, and in MLflow of each trial that ended."""

    def __init__(
        self, registry: Registry, key: str, files: TrialFiles, config: Config, dimensions: list[str], teacher: float
    ) -> None:
        self._registry, self._key, self._files, self._config = registry, key, files, config
        self._dimensions, self._teacher = dimensions, teacher
        self._recorded: set[str] = set()

    def __call__(self, **outcome: Any) -> Path:
        """Tell how things stand, with the outcome where it is known; returns the report's path."""
        config, trials = self._config, self._files.all()
        for trial in trials:
            if trial.state != "begun" and trial.name not in self._recorded:
                self._registry.record(config.name, trial.record(self._key, config.sweep.budget.candidates))
                self._recorded.add(trial.name)
        return report_sweep(self._files.folder, config, self._dimensions, trials, self._teacher, **outcome)


def _ended(files: TrialFiles) -> list[Trial]:
    return [trial for trial in files.all() if trial.state != "begun" and not trial.repeats]


def _search(run: Run, space: Space, files: TrialFiles, plan: TrialPlan, tell: Callable[[], object]) -> None:
    settings = run.config.sweep
    left = settings.trials - len(_ended(files))
    if left <= 0:
        return
    scheduler = None
    if settings.stop_early and run.config.train.epochs > settings.grace_epochs:
        scheduler = ASHAScheduler(
            time_attr="epoch",
            max_t=run.config.train.epochs + 1,  # the last report comes after the last epoch
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction,
        )
    stopper = FailureStop()
    search = StudentSearch(space, settings, files, ending=stopper.stop_all)
    options = {"search_alg": search, "scheduler": scheduler, "metric": METRIC, "mode": "max", "num_samples": left}
    _tune(run, files, plan, left, options, {}, tell, stopper)


def _tune(
    run: Run,
    files: TrialFiles,
    plan: TrialPlan,
    count: int,
    options: dict[str, Any],
    params: dict[str, Any],
    tell: Callable[[], object],
    stopper: "FailureStop | None" = None,
) -> None:
    """Let Ray Tune run trials; `tell` is called after each.

    Raises:
        RunError: trials fail, again and again, for the same reason.
    """
    settings, share = run.config.sweep, run.share
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    os.environ |= {"TUNE_DISABLE_STRICT_METRIC_CHECKING": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # where relative paths of the config would be others
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    on_gpu, spread = share.device == "cuda", share.workers > 1
    room = ray.cluster_resources().get("CPU", 1) // (share.workers * share.worker_cpus if spread else settings.cpus)
    if on_gpu:
        room = ray.cluster_resources().get("GPU", 1) // share.workers
    concurrent = settings.max_concurrent if settings.max_concurrent != "auto" else max(1, int(room))
    watch = Watch(run, files, count, tell, stopper or FailureStop())
    folder = files.folder / "ray"
    if not settings.loggers:  # whose files these are; what counts otherwise is in those of the trials
        shutil.rmtree(folder, ignore_errors=True)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(partial(run_trial, plan=plan), trial_needs(share, settings.cpus)),
        param_space=params,
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=concurrent,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            reuse_actors=not spread,  # a process that starts imports for seconds, beside what is timed
            **options,
        ),
        run_config=ray.tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            callbacks=[watch, *_loggers(settings.loggers, run.config.name)],
            stop=watch.stopper,
            verbose=0,
        ),
    )
    tuner.fit()
    for left in (*([] if settings.loggers else [folder]), *_given_up(run, files)):
        shutil.rmtree(left, ignore_errors=True)
    if watch.stopper.stopped:
        raise RunError(
            f"sweep: {settings.failures} trials in a row failed for the same reason: {watch.reasons[-1]}; what is done"
            " stands, mend that and start again"
        )


def trial_needs(share: Share, cpus: int) -> dict[str, float]:
    """Resources of one trial. Where several workers train for it, they take them; but it has to ask for something."""
    if share.workers > 1:
        return {"memory": 1.0}
    return {"cpu": float(cpus), "gpu": 1.0 if share.device == "cuda" else 0.0}


def _given_up(run: Run, files: TrialFiles) -> Iterator[Path]:
    """Folders of trainings that nobody goes on with."""
    for trial in files.all():
        if trial.state in ("stopped", "failed") and trial.student:
            yield run.root / "runs" / running_name(trial.student)


def _kind(reason: str) -> str:
    """A reason without its numbers."""
    return re.sub(r"\d+", "#", reason)


def _name(trial: TuneTrial) -> str:
    return trial.config["trial"]["name"]


def _loggers(names: tuple[str, ...], project: str) -> list[Callback]:
    made: list[Callback] = []
    if "tensorboard" in names:
        from ray.tune.logger import TBXLoggerCallback

        made.append(TBXLoggerCallback())
    if "wandb" in names:
        from ray.air.integrations.wandb import WandbLoggerCallback

        made.append(WandbLoggerCallback(project=project))
    return made


class FailureStop(Stopper):
    """Ends a sweep once it is told to."""

    stopped = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        """No trial by itself."""
        return False

    def stop_all(self) -> bool:
        """All."""
        return self.stopped


class Watch(Callback):
    """Tells of trials as they end, and ends a sweep whose trials all fail alike."""

    def __init__(
        self, run: Run, files: TrialFiles, count: int, tell: Callable[[], object], stopper: FailureStop
    ) -> None:
        self._run, self._failures = run, run.config.sweep.failures
        self._files, self._count, self._tell, self.stopper = files, count, tell, stopper
        self.reasons: list[str] = []
        run.reporter.advance(ProgressEvent("sweep", 0, count, "student", {}))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray keeps callbacks beside its experiment, from which no sweep goes on."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:  # noqa: ARG002
        """It finished, failed, or was given up."""
        ended = self._ended(trial)
        if self.reasons and (ended.state != "failed" or _kind(self.reasons[-1]) != _kind(ended.reason)):
            self.reasons.clear()
        if ended.state == "failed":
            self.reasons.append(ended.reason)
        self.stopper.stopped = len(self.reasons) >= self._failures

    on_trial_error = on_trial_complete  # its process died

    def _ended(self, trial: TuneTrial) -> Trial:
        ended = self._files.read(trial.config["trial"]["name"])
        shown = {"ndcg@10": round(ended.best, 4)} if ended.epochs else {}
        reporter = self._run.reporter
        reporter.event("trial", state=ended.state, student=ended.name, **shown, reason=ended.reason)
        reporter.advance(ProgressEvent("sweep", 1, self._count, "student", {}))
        with self._run.turn():
            self._tell()
        return ended
