"""Ray Data actor pools that work through blocks: files of rows, each turned into files of results."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import ray
import ray.data

from rankstill import errors
from rankstill.errors import RankstillError

CALLS_PER_ACTOR = 2
"""Blocks that an actor is at work on: one is read and tokenised while another is computed."""


class PoolJob(Protocol):
    """What a pool needs to know of its actors' job."""

    @property
    def device(self) -> str:
        """Cpu or cuda."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads of one actor."""
        ...

    @property
    def gpus(self) -> float:
        """GPUs of one actor, where the device is cuda."""
        ...


class BlockActor(ABC):
    """Works through blocks, several calls at a time. What it writes for a block replaces what is there."""

    @abstractmethod
    def work(self, block: str) -> dict[str, Any]:
        """Work through one block; returns what the driver is told, as JSON has it."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """`work` for Ray Data. Errors of ours are told like results, since Ray keeps no more of them than text."""
        (block,) = map(str, batch["block"])
        try:
            return {"error": [""], "told": [json.dumps(self.work(block))]}
        except RankstillError as error:
            return {"error": [type(error).__name__], "told": [str(error)]}


def map_blocks(
    actor: type[BlockActor], job: PoolJob, blocks: Sequence[str], actors: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Let a pool of actors, made of `job`, work through blocks; what they tell comes as they tell it.

    A block whose actor dies is worked through again by another. `actors` are the fewest and the most.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    on_gpu = job.device == "cuda"
    fewest, most = (min(count, len(blocks)) for count in actors)
    pool = ray.data.ActorPoolStrategy(
        min_size=fewest,
        max_size=most,
        max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
        enable_true_multi_threading=True,
    )
    named = [{"block": block} for block in blocks]
    rows = (
        ray.data.from_items(named, override_num_blocks=len(named))
        .map_batches(
            actor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=pool,
            num_gpus=job.gpus if on_gpu else 0,
            num_cpus=1 if on_gpu else job.threads,
        )
        .iter_rows()
    )
    for row in rows:
        if row["error"]:
            raise getattr(errors, row["error"])(row["told"])
        yield json.loads(row["told"])
