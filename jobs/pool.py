"""Ray Data actor pools that turn folders of Parquet files into others."""

import logging
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import ray
import ray.data

ACTOR_SHARE = 0.5
"""CPUs that Ray counts for a labelling actor per thread of it. Were it 1, actors would hold every CPU of a small
cluster, and no task could read what they wait for."""
IO_CPUS = 0.1
"""CPUs that Ray counts for a read or write task."""


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


def write_blocks(pairs: pl.DataFrame, folder: Path, rows: int) -> None:
    """Write pairs as Parquet files of `rows` rows each: one file is one unit of work."""
    folder.mkdir(parents=True)
    for place, block in enumerate(pairs.iter_slices(rows)):
        block.write_parquet(folder / f"{place:06d}.parquet")


def map_folder(actor: Any, job: PoolJob, pending: Path, done: Path, actors: int, block: int) -> None:
    """Let a pool of actors, made of `job`, turn the Parquet files of `pending` into Parquet files in `done`."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # which would make one block of many small files
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    files = sorted(pending.glob("*.parquet"))
    on_gpu = job.device == "cuda"
    pool = ray.data.ActorPoolStrategy(size=min(actors, len(files)))
    ray.data.read_parquet([str(file) for file in files], override_num_blocks=len(files), num_cpus=IO_CPUS).map_batches(
        actor,
        fn_constructor_args=(job,),
        batch_format="pyarrow",
        batch_size=block,
        compute=pool,
        num_gpus=1 if on_gpu else 0,
        num_cpus=ACTOR_SHARE * (1 if on_gpu else job.threads),
    ).write_parquet(str(done), ray_remote_args={"num_cpus": IO_CPUS})
