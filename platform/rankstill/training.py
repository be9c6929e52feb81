"""The loop that trains teachers and students: candidate lists, a DeepSpeed engine, evaluation, checkpoints.

Every worker of Ray Train runs it, the same code on CPU (gloo) and GPU (NCCL); a trial of a sweep runs it in its own
process.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray.train
import torch
import torch.distributed as dist

from rankstill.batches import TokenisedLists, collate_lists, plan_epoch, read_lists
from rankstill.cross_encoder import CrossEncoder, collate, load_cross_encoder, model_inputs
from rankstill.engine import load_tensors, make_engine, one_precision, whole_weights
from rankstill.errors import RunError
from rankstill.features import PROJECTIONS, FeatureMatcher
from rankstill.metrics import per_query
from rankstill.schema import ProgressEvent
from rankstill.scoring import plan_batches
from rankstill.storage import check_sizes, write_sizes
from rankstill.train_job import TrainJob

METRIC = "ndcg@10"
"""What validation chooses by: the mean over validation queries."""
EVAL_TOKENS = 8192
CPU_GROUP = 32
"""Pairs of one forward pass on a CPU, which is kept busy by them, and pays for padding with time."""
CPU_GROUP_OF_EMBEDDINGS = 96
"""The same for a model that is mostly embeddings: each pass adds up a gradient for all of their rows."""
COURSE = "course.json"
SIZES = "sizes-"
"""What a checkpoint's files of lengths, one of each rank, begin with."""
NOT_MEASURED = -1.0
"""Metric of a checkpoint within an epoch, which is never the best."""


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
    """Steps, loss, metric and speed of each epoch."""
    step: int = 0
    """Steps done of the epoch that is under way."""
    loss: float = 0.0
    """Sum of their losses, the mean over ranks."""


class Link(Protocol):
    """Where the loop runs: what it continues from and reports to."""

    rank: int
    workers: int

    def last(self) -> AbstractContextManager[Path | None]:
        """The last checkpoint of this training."""
        ...

    def report(self, metrics: dict[str, float], folder: Path) -> None:
        """Keep a checkpoint, whose folder is no longer the loop's, and tell its metrics; all ranks do."""
        ...

    def turn(self) -> AbstractContextManager[None]:
        """What a step runs under, and whatever else takes long; never within another."""
        ...


class TrainLink:
    """A worker of Ray Train."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()

    @contextmanager
    def last(self) -> Iterator[Path | None]:
        """The last checkpoint that Ray Train holds."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def report(self, metrics: dict[str, float], folder: Path) -> None:
        """Report; the checkpoint is copied to storage while training goes on."""
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def turn(self) -> AbstractContextManager[None]:
        """Nothing is waited for."""
        return nullcontext()


def learn(job: TrainJob, link: Link) -> None:
    """Train, from the last checkpoint on if there is one; every epoch ends in a checkpoint with its metrics."""
    rank, workers = link.rank, link.workers
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.train.seed)
    torch.set_flush_denormal(True)  # Adam's moments of rare tokens fade to denormals, with which CPUs are slow
    with link.turn():
        encoder = load_cross_encoder(job.initial, "initial model", job.max_length)
        if job.device == "cpu":  # where the fused attention's backward pass takes a third of a step of short texts
            encoder.model.set_attn_implementation("eager")
        if job.train.recompute:
            encoder.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        for module in encoder.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = job.train.dropout
        lists, valid = (read_lists(Path(path), encoder) for path in (job.train_lists, job.valid_lists))
        plan = plan_epoch(lists, job.train, epoch=0, workers=workers)
        steps = min(len(plan) * job.train.epochs, job.train.max_steps or 1 << 60)
        matcher = _make_matcher(encoder, job)
        engine = make_engine(encoder, job.train, job.device, len(plan[0]) // workers, steps)
        learner = Learner(engine, encoder, lists, job, steps, matcher)
        course = _restore(engine, link, Path(job.initial).parent)
    remaining = steps - len(plan) * course.epoch - course.step
    if rank == 0 and job.mailbox is not None:
        job.mailbox.put.remote(ProgressEvent(job.task, 0, remaining, "step", {}, anew=True))
    while len(plan) * course.epoch < steps and course.stale < job.train.patience:
        epoch = plan_epoch(lists, job.train, course.epoch, workers)[: steps - len(plan) * course.epoch]
        engine.train()
        pairs, start, losses = 0, time.monotonic(), []
        for place in range(course.step, len(epoch)):
            with link.turn():
                losses.append(learner.step(epoch[place][rank::workers], rank))
            pairs += sum(map(len, epoch[place]))
            if rank == 0 and job.mailbox is not None:
                event = ProgressEvent(job.task, 1, remaining, "step", {"loss": round(losses[-1], 4)})
                job.mailbox.put.remote(event)
            due = job.train.checkpoint_steps and (place + 1) % job.train.checkpoint_steps == 0
            if due and place + 1 < len(epoch):
                course.step, course.loss = place + 1, course.loss + _mean_over_ranks(sum(losses), engine.device)
                losses = []
                _report(engine, encoder, course, link, job, {METRIC: NOT_MEASURED, "epoch": course.epoch})
        rate = pairs / (time.monotonic() - start)
        loss = (course.loss + _mean_over_ranks(sum(losses), engine.device)) / len(epoch)
        with link.turn():
            metric = evaluate(engine, encoder, valid, rank, workers)
        metrics = {"epoch": course.epoch + 1, "steps": len(epoch), "loss": loss, METRIC: metric}
        stale = 0 if metric > course.best else course.stale + 1
        history = [*course.history, {**metrics, "pairs_per_second": rate}]
        course = Course(course.epoch + 1, max(metric, course.best), stale, history)
        _report(engine, encoder, course, link, job, metrics)


def _make_matcher(encoder: CrossEncoder, job: TrainJob) -> FeatureMatcher | None:
    """The teacher beside the student, where the objective needs it."""
    if not job.teacher:
        return None
    teacher = load_cross_encoder(job.teacher, "teacher", job.max_length)
    model: Any = teacher.model  # `to` is wrapped in a way that hides its signature
    model.to(torch.device(job.device))
    return FeatureMatcher(encoder, teacher, job.objective.distill.features)


class Learner:
    """Takes optimizer steps on candidate lists."""

    def __init__(
        self,
        engine: Any,
        encoder: CrossEncoder,
        lists: TokenisedLists,
        job: TrainJob,
        steps: int,
        matcher: FeatureMatcher | None = None,
    ) -> None:
        self._engine, self._encoder, self._lists, self._job, self._steps = engine, encoder, lists, job, steps
        self._matcher = matcher
        one_pass = matcher is not None or job.device != "cpu" or job.train.zero_stage == 3
        self._group = 1 << 30 if one_pass else _pairs_of_a_pass(encoder)
        self._teacher_tokens = None
        if matcher is not None and not matcher.same_tokens:
            self._teacher_tokens = read_lists(Path(job.train_lists), matcher.teacher).tokens

    def step(self, share: list[np.ndarray], rank: int) -> float:
        """One optimizer step over this worker's share of the lists; returns the share's mean loss.

        What is random in it depends on seed, step and rank alone, so that a run which continues repeats itself.

        Raises:
            RunError: the loss is not finite.
        """
        train = self._job.train
        torch.manual_seed(
            int(np.random.SeedSequence([train.seed, self._engine.global_steps, rank]).generate_state(1)[0])
        )
        micro = len(share) // train.accumulate
        total = 0.0
        for start in range(0, len(share), micro):
            loss = self._loss(share[start : start + micro])
            self._engine.backward(loss)
            self._engine.step()
            total += loss.item() / train.accumulate
        if not np.isfinite(total):
            raise RunError(f"the training loss became {total}; lower train.learning_rate={train.learning_rate:g}")
        return total

    def _loss(self, parts: list[np.ndarray]) -> torch.Tensor:
        batch = collate_lists(self._lists, parts, self._group)
        options = self._matcher.options if self._matcher else {}
        passes, seen = [], ()
        with one_precision(self._engine):
            for places in batch.groups:
                inputs = collate(self._lists.tokens, batch.rows_P[places].tolist(), self._encoder.pad_id)
                passes.append(self._engine(**model_inputs(self._engine.module, inputs), **options))
            if self._matcher:  # which has everything in one pass
                tokens = self._teacher_tokens or self._lists.tokens
                rows = batch.rows_P[batch.groups[0]].tolist()
                seen = self._matcher.look(collate(tokens, rows, self._matcher.teacher.pad_id))
        logits_QNC = batch.arrange([outputs.logits.float() for outputs in passes])
        labels_QN, teacher_QN, mask_QN, grades_QNC, clicks_QN = (
            frame.to(logits_QNC.device)
            for frame in (batch.labels_QN, batch.teacher_QN, batch.mask_QN, batch.grades_QNC, batch.clicks_QN)
        )
        objective, progress = self._job.objective, self._engine.global_steps / self._steps
        loss_Q = objective(logits_QNC[..., 0], labels_QN, teacher_QN, mask_QN, progress)
        loss_Q = loss_Q + objective.clicking(logits_QNC[..., 0], clicks_QN, mask_QN)
        if self._encoder.grades:
            loss_Q = loss_Q + objective.grading(logits_QNC[..., 1:], labels_QN, grades_QNC, mask_QN, progress)
        loss = loss_Q.mean()
        if self._matcher:
            loss = loss + self._matcher.loss(passes[0], *seen)
        return loss


def _pairs_of_a_pass(encoder: CrossEncoder) -> int:
    layers = encoder.model.num_parameters(exclude_embeddings=True)
    embeddings = encoder.model.num_parameters() - layers
    return CPU_GROUP_OF_EMBEDDINGS if embeddings > 2 * layers else CPU_GROUP


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


def _report(
    engine: Any, encoder: CrossEncoder, course: Course, link: Link, job: TrainJob, metrics: dict[str, float]
) -> None:
    """Report with a checkpoint: every rank's engine shard, and from rank 0 the model and the course."""
    folder = Path(tempfile.mkdtemp(dir=Path(job.initial).parent))
    with link.turn():
        engine.save_checkpoint(str(folder / "engine"))
        weights = whole_weights(engine)
        if link.rank == 0:
            encoder.tokenizer.save_pretrained(folder / "model")
            own = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{PROJECTIONS}.")}
            encoder.model.save_pretrained(folder / "model", state_dict=own)
            (folder / COURSE).write_text(json.dumps(vars(course)))
        write_sizes(folder, folder / f"{SIZES}{link.rank}.json")
    link.report(metrics, folder)


def check_checkpoint(folder: Path, run: Path) -> None:
    """Make sure that a checkpoint of the training in the folder `run` is whole. Raises DamagedError."""
    for sizes in folder.glob(f"{SIZES}*.json"):
        check_sizes(folder, sizes, remove=run)


def _restore(engine: Any, link: Link, run: Path) -> Course:
    """Continue at the last checkpoint of this run, if there is one."""
    with link.last() as folder:
        if folder is None:
            return Course()
        check_checkpoint(folder, run)
        engine.checkpoint_engine.load = load_tensors
        engine.load_checkpoint(str(folder / "engine"))
        return Course(**json.loads((folder / COURSE).read_text()))


def _mean_over_ranks(value: float, device: torch.device) -> float:
    tensor = torch.tensor(value, device=device)
    if dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return float(tensor)
