"""Tokenised candidate lists, and the order in which training sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankstill.cross_encoder import CrossEncoder, TokenisedPairs, collate
from rankstill.errors import ConfigError
from rankstill.model_config import Train

WINDOW_STEPS = 32
"""Lists of this many steps are sorted by length together, which keeps padding low and the order random enough."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TokenisedLists:
    """All pairs of a table of lists, one after the other. Unjudged labels and absent scores are NaN."""

    tokens: TokenisedPairs
    rows: list[Rows]
    """Row numbers of each list."""
    pairs: pl.DataFrame
    """query_id, item_id, label and score of each row."""
    labels_P: NDArray[np.float32]
    scores_P: NDArray[np.float32]


@dataclass(frozen=True)
class ListBatch:
    """Lists side by side: inputs of P pairs, and their places in [Q, N]."""

    inputs: dict[str, NDArray[np.int64]]
    mask_QN: Tensor
    labels_QN: Tensor
    teacher_QN: Tensor

    def arrange(self, logits_P: Tensor) -> Tensor:
        """Scores of the pairs in their places, [Q, N], zero where padded."""
        mask_QN = self.mask_QN.to(logits_P.device)
        return torch.zeros(mask_QN.shape, dtype=logits_P.dtype, device=logits_P.device).masked_scatter(
            mask_QN, logits_P
        )


def read_lists(path: Path, encoder: CrossEncoder) -> TokenisedLists:
    """Read a Parquet table of lists (schema LISTS) and tokenise its pairs."""
    pairs = pl.read_parquet(path).explode("items").unnest("items")
    counts = pairs.group_by("query_id", maintain_order=True).len()["len"].to_numpy().astype(np.int64)
    ends = np.cumsum(counts)
    return TokenisedLists(
        tokens=encoder.tokenise(pairs["query"].to_list(), pairs["text"].to_list()),
        rows=[np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)],
        pairs=pairs.select("query_id", "item_id", "label", "score"),
        labels_P=pairs["label"].cast(pl.Float32).fill_null(np.nan).to_numpy(),
        scores_P=pairs["score"].cast(pl.Float32).fill_null(np.nan).to_numpy(),
    )


def plan_epoch(lists: TokenisedLists, train: Train, epoch: int, workers: int) -> list[list[Rows]]:
    """The steps of one epoch, each a list of candidate lists (row numbers); the same seed gives the same plan.

    Long lists are cut into parts of `list_size` at most. Every step has the same number of lists, a multiple of
    workers x accumulate, so that each micro-batch weighs the same; what is left over waits for the next epoch.

    Raises:
        ConfigError: fewer lists than one step needs.
    """
    generator = np.random.default_rng([train.seed, epoch])
    parts: list[Rows] = []
    for rows in lists.rows:
        shuffled = generator.permutation(rows)
        parts += np.array_split(shuffled, -(-len(shuffled) // train.list_size))
    share = workers * train.accumulate
    size = min(train.lists, len(parts)) // share * share
    if size == 0:
        raise ConfigError(
            f"train.lists is {train.lists}, with {len(parts)} candidate lists for {workers} workers x accumulate"
            f" {train.accumulate}; give at least {share} lists a step, and as many queries"
        )
    lengths = lists.tokens.lengths_B
    longest = np.array([lengths[rows].max() for rows in parts])
    order = generator.permutation(len(parts))[: len(parts) // size * size]
    steps = []
    for start in range(0, len(order), size * WINDOW_STEPS):
        window = order[start : start + size * WINDOW_STEPS]
        window = window[np.argsort(longest[window], kind="stable")]
        steps += [window[place : place + size] for place in range(0, len(window), size)]
    return [[parts[number] for number in steps[place]] for place in generator.permutation(len(steps))]


def collate_lists(lists: TokenisedLists, parts: Sequence[Rows], pad_id: int) -> ListBatch:
    """Candidate lists as one batch of pairs and its [Q, N] frames."""
    longest = max(map(len, parts))
    mask_QN = np.zeros((len(parts), longest), dtype=np.bool_)
    labels_QN = np.full((len(parts), longest), np.nan, dtype=np.float32)
    teacher_QN = np.full((len(parts), longest), np.nan, dtype=np.float32)
    for place, rows in enumerate(parts):
        mask_QN[place, : len(rows)] = True
        labels_QN[place, : len(rows)] = lists.labels_P[rows]
        teacher_QN[place, : len(rows)] = lists.scores_P[rows]
    inputs = collate(lists.tokens, np.concatenate(list(parts)).tolist(), pad_id)
    return ListBatch(inputs, torch.from_numpy(mask_QN), torch.from_numpy(labels_QN), torch.from_numpy(teacher_QN))
