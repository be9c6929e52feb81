"""What the benchmarks score: generated pairs, a model of a real one's shape with random weights, and a label run."""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rankstill.catalogue import ShopSize, generate_shop
from rankstill.config import Data, Shop
from rankstill.configfile import load_config
from rankstill.cross_encoder import CrossEncoder
from rankstill.data import assemble_pairs
from rankstill.encoders import random_model, random_tokenizer
from rankstill.labels import open_store
from rankstill.model_config import RandomModel
from rankstill.progress import Reporter
from rankstill.steps.labelling import LabelActor, Labeller, label_missing
from rankstill.steps.run import Run
from rankstill.teachers.kinds import TeacherModel
from rankstill.text import digest, pair_id

CANDIDATES = 20
CHUNK = 50_000


def generated_pairs(count: int) -> pl.DataFrame:
    """At least `count` judged pairs of a generated shop, cut to `count`; texts are titles and brands."""
    queries = count // CANDIDATES * 5 // 4 + 10
    shop = generate_shop(ShopSize(items=count // 4, queries=queries, candidates=CANDIDATES))
    frame = shop.judgements.with_columns(split=pl.lit(None, dtype=pl.String), source=pl.lit("shop"))
    pairs = assemble_pairs(frame, Data(shop=Shop(), fields=("title", "brand")))[0]
    assert pairs.height >= count
    return pairs.sample(count, shuffle=True, seed=0)


def random_cross_encoder(pairs: pl.DataFrame, layers: int, width: int, folder: Path) -> CrossEncoder:
    """A cross-encoder with random weights, saved to `folder` too: as fast as a trained one of its shape."""
    torch.manual_seed(0)
    texts = pairs["text"].head(5000).to_list() + pairs["query"].head(5000).to_list()
    tokenizer = random_tokenizer(texts, 8000, 128)
    shape = RandomModel(layers=layers, width=width, heads=width // 32)
    encoder = CrossEncoder(random_model(shape, len(tokenizer), 128).eval(), tokenizer, 128)
    encoder.save(folder)
    return encoder


def write_hashed(folder: Path, count: int) -> None:
    """Write pairs.parquet, of `count` pairs to label with few words each, and a folder notes into a folder."""
    (folder / "notes").mkdir(parents=True)
    schema = pa.schema([(name, pa.string()) for name in ("pair_id", "query", "item_id", "text")])
    with pq.ParquetWriter(folder / "pairs.parquet", schema) as writer:
        for start in range(0, count, CHUNK):
            rows = []
            for number in range(start, min(start + CHUNK, count)):
                query, text = f"query {number // CANDIDATES}", f"item {digest(str(number))[:8]} of a generated shop"
                rows.append({"pair_id": pair_id(query, text), "query": query, "item_id": str(number), "text": text})
            writer.write_table(pa.Table.from_pylist(rows, schema))


def label_hashed(folder: Path, actor: type[LabelActor], *overrides: str) -> dict[str, Any]:
    """Label the pairs of `write_hashed` into the store <folder>/labels/f00; returns what the commit tells."""
    tree = {"data": {"sources": [{"path": "unused.jsonl"}]}, "storage": {"root": str(folder / "root")}}
    store = open_store(str(folder / "labels"), "f00", {"teacher": "hashes"})
    labeller = Labeller(TeacherModel("cross", str(folder), 64), "float32", store)
    with Reporter() as reporter:
        run = Run(load_config(tree, ["resources.device=cpu", *overrides]), reporter)
        return label_missing(run, labeller, pl.scan_parquet(folder / "pairs.parquet"), "generated", actor)
