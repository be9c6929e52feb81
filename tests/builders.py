"""Small things that several test files are made of."""

import gzip
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from rankstill.config import Data, Source
from rankstill.cross_encoder import CrossEncoder, TokenisedPairs
from rankstill.encoders import random_model, random_tokenizer
from rankstill.model_config import RandomModel

TEXTS = (
    "cordless drill 18v brushless",
    "red oak chair with a soft seat",
    "steel table lamp, small",
    "blue ceramic mug 350 ml dishwasher safe",
    "hammer with a wooden handle | Torkem",
)


def tiny_cross_encoder(seed: int = 0, layers: int = 2, width: int = 32, max_length: int = 32) -> CrossEncoder:
    """An untrained BERT whose scores differ clearly from pair to pair."""
    torch.manual_seed(seed)
    tokenizer = random_tokenizer(TEXTS, 300, max_length)
    model = random_model(RandomModel(layers=layers, width=width, heads=2), len(tokenizer), max_length).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)  # BERT's own start is so small that all scores are alike
    return CrossEncoder(model, tokenizer, max_length)


def made_up_pairs(count: int) -> tuple[list[str], list[str]]:
    """Queries and texts of all lengths, drawn from the words of TEXTS."""
    words = " ".join(TEXTS).split()
    draw = np.random.default_rng(count)
    queries = [" ".join(draw.choice(words, draw.integers(1, 5))) for _ in range(count)]
    texts = [" ".join(draw.choice(words, draw.integers(1, 40))) for _ in range(count)]
    return queries, texts


def tokens_of_lengths(lengths: list[int]) -> TokenisedPairs:
    """Pairs of the given numbers of tokens; each token of pair i has the id i."""
    ids = [np.full(length, number, dtype=np.int32) for number, length in enumerate(lengths)]
    return TokenisedPairs(ids, [np.zeros_like(row) for row in ids], np.zeros(len(lengths), dtype=np.bool_))


def judgement(query: str, item: str | int, label: Any, **others: Any) -> dict[str, Any]:
    """One row of a file of judgements."""
    return {"query": query, "item_id": f"i{item}", "title": f"thing {item}", "label": label, **others}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines, compressed where the name ends in .gz."""
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def data_config(*paths: Path | str, **others: Any) -> Data:
    """Settings that read the given files."""
    return Data(sources=tuple(Source(path=str(path)) for path in paths), **others)


CHROMIUM = shutil.which("chromium")
"""The browser, where one is installed."""


def browse(address: str, folder: Path, width: int, wait_ms: int = 0) -> tuple[str, str]:
    """The document at an address after its scripts ran, and what the browser said; its profile goes to `folder`."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    waits = [f"--virtual-time-budget={wait_ms}"] if wait_ms else []
    done = subprocess.run(
        [*command, *waits, f"--window-size={width},1000", f"--user-data-dir={folder / 'profile'}", address],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr
