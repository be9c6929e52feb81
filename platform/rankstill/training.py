"""The worker loop that trains teachers and students: candidate lists, a DeepSpeed engine, evaluation, checkpoints.

Ray Train starts one `train_worker` a worker; every rank runs the same code on CPU (gloo) and GPU (NCCL).
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from torch.utils import cpp_extension

from rankstill.batches import ListBatch, TokenisedLists, collate_lists, plan_epoch, read_lists
from rankstill.config import Train
from rankstill.cross_encoder import CrossEncoder, collate, load_cross_encoder, model_inputs
from rankstill.errors import RunError
from rankstill.metrics import per_query
from rankstill.objective import Objective
from rankstill.schema import ProgressEvent
from rankstill.scoring import is_bfloat16, plan_batches

METRIC = "ndcg@10"
"""What validation chooses by: the mean over validation queries."""
EVAL_TOKENS = 8192
STALE_SECONDS = 300.0
"""Age at which the lock of a compilation, which takes less than a minute, has lost its owner."""
COURSE = "course.json"


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs to know; plain values, since it crosses processes."""

    task: str
    """Name shown with progress."""
    initial: str
    """Folder of the model before training."""
    train_lists: str
    """Parquet file (schema LISTS) to learn from."""
    valid_lists: str
    """Parquet file (schema LISTS) to choose the best epoch on."""
    max_length: int
    train: Train
    objective: Objective
    device: str
    """cpu or cuda."""
    threads: int
    """CPU threads of one worker."""
    mailbox: Any = None
    """Handle of a relay's mailbox, where progress goes."""


@dataclass
class Course:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0
    """Epochs done."""
    best: float = -1.0
    """Best validation metric so far."""
    stale: int = 0
    """Epochs since then."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Loss and metric of each epoch."""


def train_worker(config: dict[str, TrainJob]) -> None:
    """The loop of one worker (`train_loop_per_worker`); `config` holds one TrainJob under "job"."""
    job = config["job"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.train.seed)
    torch.set_flush_denormal(True)  # Adam's moments of rare tokens fade to denormals, with which CPUs are slow
    encoder = load_cross_encoder(job.initial, "initial model", job.max_length)
    if job.device == "cpu":  # where the fused attention's backward pass takes a third of a step of short texts
        encoder.model.set_attn_implementation("eager")
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = job.train.dropout
    lists, valid = (read_lists(Path(path), encoder) for path in (job.train_lists, job.valid_lists))
    plan = plan_epoch(lists, job.train, epoch=0, workers=workers)
    engine = make_engine(encoder, job, lists_per_worker=len(plan[0]) // workers, steps=len(plan) * job.train.epochs)
    course = _restore(engine)
    remaining = len(plan) * (job.train.epochs - course.epoch)
    while course.epoch < job.train.epochs and course.stale < job.train.patience:
        epoch = course.epoch
        engine.train()
        losses = []
        for step in plan_epoch(lists, job.train, epoch, workers):
            losses.append(train_step(engine, encoder, lists, step[rank::workers], job))
            if rank == 0 and job.mailbox is not None:
                event = ProgressEvent(job.task, 1, remaining, "step", {"loss": round(losses[-1], 4)})
                job.mailbox.put.remote(event)
        loss = _mean_over_ranks(float(np.mean(losses)), engine.device)
        metric = evaluate(engine, encoder, valid, rank, workers)
        metrics = {"epoch": epoch + 1, "loss": loss, METRIC: metric}
        stale = 0 if metric > course.best else course.stale + 1
        course = Course(epoch + 1, max(metric, course.best), stale, [*course.history, metrics])
        _report(engine, encoder, course, rank)


def make_engine(encoder: CrossEncoder, job: TrainJob, lists_per_worker: int, steps: int) -> Any:
    """Hand the model to `deepspeed.initialize`; the engine owns optimizer, schedule, precision and sharding."""
    if job.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # reads DS_ACCELERATOR when it is imported

    _drop_stale_locks()
    deepspeed.utils.logger.setLevel("ERROR")
    train = job.train
    optimizer = {"lr": train.learning_rate, "weight_decay": train.weight_decay, "torch_adam": True, "fused": True}
    rise = max(1, round(steps * train.warmup))

    def rate(step: int) -> float:
        return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))

    def schedule(adam: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(adam, rate)

    initialize: Any = deepspeed.initialize  # its annotations don't admit what its documentation does
    engine, *_ = initialize(
        model=encoder.model,
        model_parameters=[p for p in encoder.model.parameters() if p.requires_grad],
        lr_scheduler=schedule,
        config={
            "train_micro_batch_size_per_gpu": lists_per_worker // train.accumulate,
            "gradient_accumulation_steps": train.accumulate,
            "gradient_clipping": train.clip,
            "optimizer": {"type": "AdamW", "params": optimizer},
            "zero_optimization": {"stage": train.zero_stage},
            "torch_autocast": {"enabled": is_bfloat16(train.precision, job.device), "dtype": "bfloat16"},
            "steps_per_print": 1 << 60,
        },
    )
    return engine


def _drop_stale_locks() -> None:
    """Remove what a process that was killed while it compiled DeepSpeed's op left: all others would wait for it."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    for lock in root.glob("**/deepspeed_*/lock"):
        with contextlib.suppress(FileNotFoundError):  # another worker was first
            if time.time() - lock.stat().st_mtime > STALE_SECONDS:
                lock.unlink()


def train_step(
    engine: Any, encoder: CrossEncoder, lists: TokenisedLists, share: list[np.ndarray], job: TrainJob
) -> float:
    """One optimizer step over this worker's share of the lists; returns the share's mean loss.

    Raises:
        RunError: the loss is not finite.
    """
    micro = len(share) // job.train.accumulate
    total = 0.0
    for start in range(0, len(share), micro):
        batch = collate_lists(lists, share[start : start + micro], encoder.pad_id)
        loss = list_losses(engine, batch, job.objective).mean()
        engine.backward(loss)
        engine.step()
        total += loss.item() / job.train.accumulate
    if not np.isfinite(total):
        raise RunError(f"the training loss became {total}; lower train.learning_rate={job.train.learning_rate:g}")
    return total


def list_losses(model: Any, batch: ListBatch, objective: Objective) -> torch.Tensor:
    """Loss of each list, [Q]."""
    module = getattr(model, "module", model)
    logits_P = model(**model_inputs(module, batch.inputs)).logits[:, 0].float()
    device = logits_P.device
    return objective(
        batch.arrange(logits_P), batch.labels_QN.to(device), batch.teacher_QN.to(device), batch.mask_QN.to(device)
    )


def evaluate(engine: Any, encoder: CrossEncoder, valid: TokenisedLists, rank: int, workers: int) -> float:
    """Mean validation nDCG@10. Each rank scores its share of the pairs; all ranks get the same number."""
    engine.eval()
    scores_P = torch.zeros(len(valid.labels_P), device=engine.device)
    times_P = torch.zeros_like(scores_P)
    for rows in _equal_share(plan_batches(valid.tokens.lengths_B, EVAL_TOKENS), rank, workers):
        batch = collate(valid.tokens, rows.tolist(), encoder.pad_id)
        with torch.no_grad():
            logits_P = engine(**model_inputs(engine.module, batch)).logits[:, 0].float()
        scores_P[torch.from_numpy(rows)] = logits_P
        times_P[torch.from_numpy(rows)] = 1.0
    if workers > 1:
        dist.all_reduce(scores_P)
        dist.all_reduce(times_P)
    table = per_query(valid.pairs, (scores_P / times_P).double().cpu().numpy())
    value = table[METRIC].mean()
    return float(value) if isinstance(value, float) else 0.0


def _equal_share(batches: list[np.ndarray], rank: int, workers: int) -> Iterator[np.ndarray]:
    """Batches of one rank; each rank gets as many (ZeRO-3 forwards are collective), so the first may come twice."""
    for start in range(0, len(batches), workers):
        place = start + rank
        yield batches[place if place < len(batches) else 0]


def _report(engine: Any, encoder: CrossEncoder, course: Course, rank: int) -> None:
    """Report the last epoch with a checkpoint: every rank's engine shard, and from rank 0 the model and the course."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(str(Path(folder, "engine")))
        weights = _whole_weights(engine)
        if rank == 0:
            encoder.tokenizer.save_pretrained(Path(folder, "model"))
            encoder.model.save_pretrained(Path(folder, "model"), state_dict=weights)
            Path(folder, COURSE).write_text(json.dumps(vars(course)))
        ray.train.report(course.history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))


def _whole_weights(engine: Any) -> dict[str, torch.Tensor]:
    """All weights in float32 on every rank; ZeRO-3 gathers them from the ranks."""
    import deepspeed

    parameters = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=engine.zero_optimization_stage() == 3):
        return {
            name: tensor.detach().float().cpu().clone() if tensor.is_floating_point() else tensor.cpu().clone()
            for name, tensor in engine.module.state_dict().items()
        }


def _restore(engine: Any) -> Course:
    """Continue at the last checkpoint of this run, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Course()
    engine.checkpoint_engine.load = _load_tensors
    with checkpoint.as_directory() as folder:
        engine.load_checkpoint(str(Path(folder, "engine")))
        return Course(**json.loads(Path(folder, COURSE).read_text()))


def _load_tensors(path: str, map_location: Any = None) -> Any:
    """What DeepSpeed reads its shards with, kept to tensors and the few DeepSpeed types that they hold: no code."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True)


def _mean_over_ranks(value: float, device: torch.device) -> float:
    tensor = torch.tensor(value, device=device)
    if dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return float(tensor)
