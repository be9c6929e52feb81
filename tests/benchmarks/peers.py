"""sentence-transformers' own recipes for cross-encoders, run by its own trainer."""

import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder import losses
from transformers import TrainerCallback

from rankstill.model_config import Train
from rankstill.scoring import is_bfloat16


class Clock(TrainerCallback):
    """Seconds from the first optimizer step on, and the steps in them."""

    def __init__(self) -> None:
        self.start, self.seconds, self.steps = 0.0, 0.0, 0

    def on_step_end(self, args, state, control, **_):
        """The first step, which warms up, isn't counted."""
        now = time.perf_counter()
        if self.start:
            self.seconds, self.steps = now - self.start, self.steps + 1
        else:
            self.start = now


def train_peer(
    recipe: str, student: Path, lists: pl.DataFrame, train: Train, pairs_a_step: int, max_length: int, out: Path
) -> float:
    """Train `student` on pairs (query_id, query, text, score) with "mse" or "margin_mse"; returns pairs a second.

    The optimizer's settings are ours, and so are dropout and the number format.
    """
    disable_progress_bars()
    model = CrossEncoder(str(student), num_labels=1, max_length=max_length, device="cpu", local_files_only=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = train.dropout
    if recipe == "mse":
        rows = lists.select(query="query", text="text", label=pl.col("score").cast(pl.Float32))
        loss, batch = losses.MSELoss(model), pairs_a_step
    else:
        rows = triplets(lists, train.seed)
        loss, batch = losses.MarginMSELoss(model), pairs_a_step // 2
    wanted = rows.sample(
        train.max_steps * batch, with_replacement=rows.height < train.max_steps * batch, seed=train.seed
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder,
            max_steps=train.max_steps,
            per_device_train_batch_size=batch,
            learning_rate=train.learning_rate,
            warmup_ratio=train.warmup,
            weight_decay=train.weight_decay,
            max_grad_norm=train.clip,
            bf16=is_bfloat16(train.precision, "cpu"),
            use_cpu=True,
            seed=train.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        data = Dataset.from_dict(wanted.to_dict(as_series=False))
        CrossEncoderTrainer(model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[clock]).train()
    model.save_pretrained(str(out))
    return clock.steps * pairs_a_step / clock.seconds


def triplets(lists: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Query, better item, worse item and the teacher's margin: each item with another of its list, at random."""
    draw = np.random.default_rng(seed)
    shuffled = lists.with_columns(turn=pl.Series(draw.random(lists.height))).sort("query_id", "turn")
    other = shuffled.with_columns(pl.col("text", "score").shift(-1).over("query_id").name.suffix("_other"))
    pairs = other.drop_nulls("score_other")
    better = pl.col("score") >= pl.col("score_other")
    return pairs.select(
        "query",
        positive=pl.when(better).then("text").otherwise("text_other"),
        negative=pl.when(better).then("text_other").otherwise("text"),
        label=(pl.col("score") - pl.col("score_other")).abs(),
    )
