"""Trains one model, teacher or student: with Ray Train, or in this process alone."""

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import (
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from rankstill.cross_encoder import CrossEncoder
from rankstill.errors import RankstillError, RunError
from rankstill.model_config import Train
from rankstill.objective import Objective
from rankstill.relay import relay
from rankstill.steps.run import Run
from rankstill.steps.worker import GiveBack, train_worker
from rankstill.storage import write_json
from rankstill.train_job import TrainJob
from rankstill.training import COURSE, METRIC, NOT_MEASURED, check_checkpoint, learn

METRICS = "metrics.json"

Metrics = dict[str, float]


@dataclass(frozen=True)
class Fit:
    """One training: what it learns from and how."""

    task: str
    """Name shown with progress."""
    name: str
    """Run name; the same name continues where it was."""
    train_lists: pa.Table | Path
    """Schema LISTS; a Parquet file stays where it is."""
    valid_lists: pa.Table | Path
    train: Train
    objective: Objective
    teacher: Path | None = None
    """Folder of a cross-encoder whose inside the objective compares with."""
    best: bool = True
    """Whether the best epoch is taken; else the last."""


def fit(run: Run, encoder: CrossEncoder, plan: Fit, out: Path, callbacks: Sequence[UserCallback] = ()) -> None:
    """Train `encoder` and write its best epoch, with the history of all epochs, to the folder `out`.

    Raises:
        RunError: the training failed for a reason that isn't the user's.
    """
    share = run.share
    folder = _begin(run, encoder, plan)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with relay(run.reporter) as mailbox:
        job = _job(folder, encoder, plan, share.device, share.worker_cpus, mailbox)
        told: Any = [GiveBack(), *callbacks]  # the annotation knows of callbacks for users only
        trainer = partial(
            TorchTrainer,
            train_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=share.workers,
                use_gpu=share.device == "cuda",
                resources_per_worker={"CPU": share.worker_cpus, **({"GPU": 1} if share.device == "cuda" else {})},
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(folder),
                callbacks=told,
                failure_config=FailureConfig(max_failures=plan.train.max_failures),
                checkpoint_config=CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute=METRIC, checkpoint_score_order="max"
                ),
            ),
        )
        try:
            result = _fit(trainer, plan.train.max_failures)
        except TrainingFailedError as error:
            raise _cause(error) from error
    best = result.get_best_checkpoint(METRIC, "max") if plan.best else result.checkpoint
    if best is None or result.checkpoint is None:
        raise RunError(f"{plan.task}: the run in {str(folder)!r} left no checkpoint; remove that folder and run again")
    with best.as_directory() as chosen, result.checkpoint.as_directory() as last:
        _finish(folder, Path(chosen), Path(last), out)
    shutil.rmtree(folder)


def _fit(trainer: Callable[[], TorchTrainer], failures: int) -> Result:
    """Fit, and go on where a worker died while it was handed what to do, which Ray Train takes for its own failure."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    while True:
        try:
            return trainer().fit()
        except SystemExit as stop:  # how Ray's own handler, which `fit` installs and leaves behind, ends an interrupt
            raise KeyboardInterrupt from stop
        except ControllerError as error:
            if failures == 0 or not isinstance(error.controller_failure, RayActorError):
                raise
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)
        failures -= 1


def fit_here(
    run: Run, encoder: CrossEncoder, plan: Fit, out: Path, device: str, threads: int, told: Callable[[Metrics], None]
) -> None:
    """As `fit`, in this process alone; `told` hears of each epoch.

    A training of the same name that was killed is continued at its last checkpoint.
    """
    with run.turn():
        folder = _begin(run, encoder, plan)
    link = LocalLink(folder / "checkpoints", run, told)
    os.environ["LOCAL_RANK"] = "0"  # which DeepSpeed asks for
    if not dist.is_initialized():  # for as long as the process lives, since DeepSpeed keeps the group
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    learn(_job(folder, encoder, plan, device, threads), link)
    best, last = link.kept(plan.best)
    with run.turn():
        _finish(folder, best, last, out)
        shutil.rmtree(folder)


class LocalLink:
    """A training in this process, which keeps its best checkpoint and its last; steps wait for a quiet machine."""

    rank, workers = 0, 1

    def __init__(self, folder: Path, run: Run, told: Callable[[Metrics], None]) -> None:
        self._folder, self._run, self._told = folder, run, told
        folder.mkdir(exist_ok=True)

    @contextmanager
    def last(self) -> Iterator[Path | None]:
        """The last one."""
        yield max(self._folder.iterdir(), default=None)

    def report(self, metrics: Metrics, folder: Path) -> None:
        """Keep it, if it is the best, until there is a better one, else until there is a later one."""
        write_json(folder / METRICS, metrics)
        number = int(max((path.name for path in self._folder.iterdir()), default="-1")) + 1
        os.replace(folder, self._folder / f"{number:06d}")
        kept = self.kept(best=True)
        for path in self._folder.iterdir():
            if path not in kept:
                shutil.rmtree(path)
        if metrics[METRIC] != NOT_MEASURED:
            self._told(metrics)

    def turn(self) -> AbstractContextManager[None]:
        """Beside other work, but not while something is timed."""
        return self._run.turn()

    def kept(self, best: bool) -> tuple[Path, Path]:
        """The best checkpoint, or the last where `best` is false, and the last."""
        found = sorted(self._folder.iterdir())
        return (max(found, key=_metric_of) if best else found[-1]), found[-1]


def _metric_of(checkpoint: Path) -> float:
    return json.loads((checkpoint / METRICS).read_text())[METRIC]


def _begin(run: Run, encoder: CrossEncoder, plan: Fit) -> Path:
    """The folder in which a training runs, with what it starts from."""
    folder = run.root / "runs" / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    encoder.save(folder / "initial")
    for split, lists in (("train", plan.train_lists), ("valid", plan.valid_lists)):
        if isinstance(lists, pa.Table):
            pq.write_table(lists, folder / f"{split}.parquet")
    return folder


def _job(folder: Path, encoder: CrossEncoder, plan: Fit, device: str, threads: int, mailbox: Any = None) -> TrainJob:
    train, valid = (
        str(folder / f"{split}.parquet" if isinstance(lists, pa.Table) else lists)
        for split, lists in (("train", plan.train_lists), ("valid", plan.valid_lists))
    )
    return TrainJob(
        task=plan.task,
        initial=str(folder / "initial"),
        train_lists=train,
        valid_lists=valid,
        max_length=encoder.max_length,
        train=plan.train,
        objective=plan.objective,
        teacher=str(plan.teacher or ""),
        device=device,
        threads=threads,
        mailbox=mailbox,
    )


def _finish(run: Path, best: Path, last: Path, out: Path) -> None:
    """Write the model of one checkpoint and the history of the last, of the training in the folder `run`."""
    for checkpoint in {best, last}:
        check_checkpoint(checkpoint, run)
    shutil.copytree(best / "model", out, dirs_exist_ok=True)
    write_json(out / "history.json", json.loads((last / COURSE).read_text())["history"])


def history(folder: Path) -> list[dict[str, float]]:
    """What each epoch of a trained model came to."""
    return json.loads((folder / "history.json").read_text())


def _cause(error: TrainingFailedError) -> RankstillError:
    """The error that a worker raised on purpose, or a one-line account of what stopped it."""
    if isinstance(error, ControllerError):
        failures = [error.controller_failure]
    else:
        failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]
    for failure in failures:
        original = getattr(failure, "_base_exc", failure)
        if isinstance(original, RankstillError):
            return original
    if any(isinstance(failure, RayActorError) for failure in failures):
        reason = "a worker's process died, of want of memory perhaps"
    else:
        reason = " ".join(str(failures[0]).split())[-300:]
    return RunError(f"training stopped: {reason}; run again to continue at the last checkpoint")
