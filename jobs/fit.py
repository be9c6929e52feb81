"""Trains one model, teacher or student, with Ray Train."""

import json
import logging
import shutil
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from jobs.run import Run
from rankstill.cross_encoder import CrossEncoder
from rankstill.errors import RankstillError, RunError
from rankstill.model_config import Train
from rankstill.objective import Objective
from rankstill.relay import relay
from rankstill.storage import write_json
from rankstill.training import COURSE, METRIC, TrainJob, train_worker


@dataclass(frozen=True)
class Fit:
    """One training: what it learns from and how."""

    task: str
    """Name shown with progress."""
    name: str
    """Run name; the same name continues where it was."""
    train_lists: pa.Table
    valid_lists: pa.Table
    train: Train
    objective: Objective
    teacher: Path | None = None
    """Folder of a cross-encoder whose inside the objective compares with."""
    best: bool = True
    """Whether the best epoch is taken; else the last."""


def fit(run: Run, encoder: CrossEncoder, plan: Fit, out: Path) -> None:
    """Train `encoder` and write its best epoch, with the history of all epochs, to the folder `out`.

    Raises:
        RunError: the training failed for a reason that isn't the user's.
    """
    share = run.share
    folder = run.root / "runs" / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    encoder.save(folder / "initial")
    for split, table in (("train", plan.train_lists), ("valid", plan.valid_lists)):
        pq.write_table(table, folder / f"{split}.parquet")
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with relay(run.reporter) as mailbox:
        job = TrainJob(
            task=plan.task,
            initial=str(folder / "initial"),
            train_lists=str(folder / "train.parquet"),
            valid_lists=str(folder / "valid.parquet"),
            max_length=encoder.max_length,
            train=plan.train,
            objective=plan.objective,
            teacher=str(plan.teacher or ""),
            device=share.device,
            threads=share.worker_cpus,
            mailbox=mailbox,
        )
        trainer = TorchTrainer(
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
                failure_config=FailureConfig(max_failures=plan.train.max_failures),
                checkpoint_config=CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute=METRIC, checkpoint_score_order="max"
                ),
            ),
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
        except SystemExit as stop:  # how Ray's own handler, which `fit` installs and leaves behind, ends an interrupt
            raise KeyboardInterrupt from stop
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)
    best = result.get_best_checkpoint(METRIC, "max") if plan.best else result.checkpoint
    if best is None or result.checkpoint is None:
        raise RunError(f"{plan.task}: the run in {str(folder)!r} left no checkpoint; remove that folder and run again")
    with best.as_directory() as checkpoint:
        shutil.copytree(Path(checkpoint, "model"), out, dirs_exist_ok=True)
    with result.checkpoint.as_directory() as checkpoint:
        write_json(out / "history.json", json.loads(Path(checkpoint, COURSE).read_text())["history"])
    shutil.rmtree(folder)


def history(folder: Path) -> list[dict[str, float]]:
    """What each epoch of a trained model came to."""
    return json.loads((folder / "history.json").read_text())


def _cause(error: TrainingFailedError) -> RankstillError:
    """The error that a worker raised on purpose, or a one-line account of what stopped it."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    for failure in failures:
        original = getattr(failure, "_base_exc", failure)
        if isinstance(original, RankstillError):
            return original
    reason = " ".join(str(failures[0] if failures else error).split())[-300:]
    return RunError(f"training stopped: {reason}; run again to continue at the last checkpoint")
