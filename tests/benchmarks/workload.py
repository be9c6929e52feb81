"""What the benchmarks score: generated pairs, and a model of a real one's shape with random weights."""

from pathlib import Path

import polars as pl
import torch

from rankstill.catalogue import ShopSize, generate_shop
from rankstill.config import Data, Shop
from rankstill.cross_encoder import CrossEncoder
from rankstill.data import assemble_pairs
from rankstill.encoders import random_model, random_tokenizer
from rankstill.model_config import RandomModel

CANDIDATES = 20


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
