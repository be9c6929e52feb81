"""Encode items ahead of time with a two-tower student, on a Ray Data actor pool."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from rankstill import item_index
from rankstill.artifacts import Artifact, load_artifact
from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.config import Config, Data, Source
from rankstill.configfile import load_config
from rankstill.data import read_items
from rankstill.errors import ModelError
from rankstill.item_index import MANIFEST, ItemIndex, ItemVectors
from rankstill.progress import Reporter
from rankstill.registry import find_version
from rankstill.schema import ProgressEvent
from rankstill.steps.pool import BlockActor, map_blocks
from rankstill.steps.run import Run
from rankstill.storage import work_folder

DESCRIPTION = """Encode items ahead of time with a two-tower student (student.family bi or late).

What the index already has with the same text is not encoded again; with --prune, items that the file doesn't have are
taken out. An index belongs to one version of a student."""


DIGEST_COLUMNS = ("item_id", "digest")


@dataclass(frozen=True)
class IndexJob:
    """What an encoding actor needs to know."""

    folder: str
    """Artifact of the student."""
    device: str
    threads: int
    token_budget: int
    gpus: float = 0.0


class EncodeActor(BlockActor):
    """Holds a student and encodes blocks of items."""

    def __init__(self, job: IndexJob) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        self._turn = threading.Lock()
        self._encoder = item_index.ItemEncoder.fast(load_artifact(Path(job.folder)).encoder(), job.threads)

    def work(self, block: str) -> dict[str, Any]:
        """Encode a block of items: item_id and digest with the bytes of vectors and scales; tells how many."""
        items = pl.read_parquet(block)
        with self._turn:
            found = self._encoder.encode(items["text"].to_list(), self._job.token_budget)
        vectors = pl.Series("vectors", [one.tobytes() for one in found.bytes_BMW], pl.Binary)
        scales = pl.Series("scales", [one.tobytes() for one in found.scales_BM], pl.Binary)
        items.select(*DIGEST_COLUMNS, vectors, scales).write_parquet(encoded(block))
        return {"items": items.height}


def encoded(block: str) -> Path:
    """What becomes of a block."""
    return Path(block).with_suffix(".encoded")


def main() -> None:
    """`python -m jobs.index`."""
    parser = make_parser("jobs.index", DESCRIPTION)
    parser.add_argument("--model", required=True, metavar="MODEL", help="registry name or artifact folder of a student")
    parser.add_argument("--items", required=True, metavar="FILE", help="file, folder or URL of items")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the index, new or to be updated")
    parser.add_argument("--prune", action="store_true", help="take out items that the file doesn't have")
    add_config_arguments(parser, required=False)
    arguments = parser.parse_intermixed_args()
    tree = arguments.config or {"data": {"sources": [{"path": arguments.items}]}}
    config = load_config(tree, arguments.overrides)
    start = time.monotonic()
    done = index_items(config, arguments.model, arguments.items, Path(arguments.out).absolute(), arguments.prune)
    rows = [["items", "encoded", "removed", "MB", "where"]]
    rows.append(
        [*(f"{done[name]:,}" for name in ("items", "encoded", "removed")), f"{done['bytes'] / 1e6:.1f}", arguments.out]
    )
    print(format_table(rows))
    print(f"in {time.monotonic() - start:.0f} s")


def index_items(config: Config, model: str, path: str, out: Path, prune: bool) -> dict[str, int]:
    """Bring an index up to date with a file of items; returns counts.

    Raises:
        ModelError: the student has no item vectors, or the index is another student's.
    """
    version = find_version(model, config.storage.folder, "--model")
    artifact = load_artifact(version.folder if version else Path(model), "--model")
    if artifact.precision == "int8":
        raise ModelError(f"--model {model!r} is int8, which encodes no items; give the float32 artifact")
    tower = item_index.tower_of(artifact.encoder(), f"--model {model!r}")
    items = read_items(Source(path=path, columns=_columns(config, path)), _own_fields(config, artifact))
    student = artifact.manifest["files"]["model.safetensors"]["sha256"]
    if (out / MANIFEST).exists():
        index = item_index.open_index(out, "--out", student)
    else:
        index = item_index.create_index(out, "--out", student, tower, artifact.fields)
    missing = item_index.missing_items(index, items)
    gone = index.items.join(items, on="item_id", how="anti")["item_id"].to_list() if prune else []
    if missing.height:
        with Reporter() as reporter:
            index = _encode(Run(config, reporter), artifact, index, missing)
    if gone:
        index = item_index.remove_items(index, gone)
    size = sum(file.stat().st_size for file in out.iterdir())
    return {"items": index.items.height, "encoded": missing.height, "removed": len(gone), "bytes": size}


def _encode(run: Run, artifact: Artifact, index: ItemIndex, missing: pl.DataFrame) -> ItemIndex:
    share, labels = run.share, run.config.labels
    with work_folder(run.root, "index") as aside:
        blocks = []
        for place, part in enumerate(missing.iter_slices(labels.part("cpu", share.actors[1]))):
            blocks.append(str(aside / f"{place:06d}.parquet"))
            part.write_parquet(blocks[-1])
        job = IndexJob(str(artifact.folder), "cpu", share.actor_cpus, labels.budget("cpu"))
        for row in map_blocks(EncodeActor, job, blocks, share.actors):
            run.reporter.advance(ProgressEvent("index", row["items"], missing.height, "item", {}))
        files = [encoded(block) for block in blocks]
        order = pl.concat([pl.read_parquet(file, columns=list(DIGEST_COLUMNS)) for file in files])
        return item_index.append_items(index, order, _blocks(files, index))


def _blocks(files: list[Path], index: ItemIndex) -> Iterator[ItemVectors]:
    """What the actors wrote, file by file."""
    count, width = index.manifest["vectors"], index.manifest["width"]
    for file in files:
        frame = pl.read_parquet(file, columns=["vectors", "scales"])
        vectors = np.frombuffer(b"".join(frame["vectors"]), dtype=np.int8).reshape(-1, count, width)
        yield ItemVectors(vectors, np.frombuffer(b"".join(frame["scales"]), dtype=np.float32).reshape(-1, count))


def _columns(config: Config, path: str) -> dict[str, str]:
    """Column names of the items' file, as the config has them for it or for the first source."""
    sources = [*config.data.items, *config.data.sources]
    known = [source.columns for source in sources if source.path == path] or [source.columns for source in sources]
    return known[0] if known else {}


def _own_fields(config: Config, artifact: Artifact) -> Data:
    """The data settings, with the item fields that the student was trained on."""
    return config.data.model_copy(update={"fields": tuple(artifact.fields)})


if __name__ == "__main__":
    run_command(main)
