"""Tokenised candidate lists, and the order in which training sees them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankstill.cross_encoder import CrossEncoder, TokenisedPairs
from rankstill.errors import ConfigError
from rankstill.model_config import Train
from rankstill.token_files import kept_tokens

WINDOW_STEPS = 32
"""Lists of this many steps are sorted by length together, which keeps padding low and the order random enough."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TokenisedLists:
    """All pairs of a table of lists, one after the other. Unjudged labels, absent scores and clicks are NaN."""

    tokens: TokenisedPairs
    rows: list[Rows]
    """Row numbers of each list."""
    pairs: pl.DataFrame
    """query_id, item_id, label and score of each row."""
    labels_P: NDArray[np.float32]
    scores_P: NDArray[np.float32]
    logits_PC: NDArray[np.float32]
    """The teacher's logits of grades; C is 0 where it gives none."""
    clicks_P: NDArray[np.float32]
    """Shares of a list's clicks."""


@dataclass(frozen=True)
class ListBatch:
    """Lists side by side: P pairs, and their places in [Q, N]."""

    rows_P: Rows
    """Row numbers of the pairs."""
    groups: list[NDArray[np.int64]]
    """Places in `rows_P` that one forward pass takes, pairs of about the same length together."""
    mask_QN: Tensor
    labels_QN: Tensor
    teacher_QN: Tensor
    grades_QNC: Tensor
    """The teacher's logits of grades."""
    clicks_QN: Tensor

    def arrange(self, logits: Sequence[Tensor]) -> Tensor:
        """The logits of each group, [P', C], in the pairs' places, [Q, N, C], zero where padded."""
        joined_PC = torch.cat(list(logits))
        order_P = torch.from_numpy(np.argsort(np.concatenate(self.groups))).to(joined_PC.device)
        mask_QN = self.mask_QN.to(joined_PC.device)
        empty_QNC = joined_PC.new_zeros(*mask_QN.shape, joined_PC.shape[1])
        return empty_QNC.index_put((mask_QN,), joined_PC[order_P])


def read_lists(path: Path, encoder: CrossEncoder) -> TokenisedLists:
    """Read a Parquet table of lists (schema LISTS); its pairs are tokenised unless somebody did that before."""

    def tokenise(queries: list[str], texts: list[str]) -> TokenisedPairs:
        return kept_tokens(path, encoder, lambda: encoder.tokenise(queries, texts))

    return tokenise_lists(pl.read_parquet(path), tokenise)


def tokenise_lists(table: pl.DataFrame, tokenise: Callable[[list[str], list[str]], TokenisedPairs]) -> TokenisedLists:
    """Lists (schema LISTS), whose pairs `tokenise` makes token ids of."""
    pairs = table.explode("items").unnest("items")
    given = pairs["logits"].drop_nulls()
    grades = len(given[0]) if len(given) else 0
    if "clicks" not in pairs.columns:  # of lists that were made before there were any
        pairs = pairs.with_columns(clicks=None)
    logits_PC = np.full((pairs.height, grades), np.nan, dtype=np.float32)
    logits_PC[pairs["logits"].is_not_null().to_numpy()] = given.to_list() or 0.0
    counts = pairs.group_by("query_id", maintain_order=True).len()["len"].to_numpy().astype(np.int64)
    ends = np.cumsum(counts)
    return TokenisedLists(
        tokens=tokenise(pairs["query"].to_list(), pairs["text"].to_list()),
        rows=[np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)],
        pairs=pairs.select("query_id", "item_id", "label", "score"),
        labels_P=pairs["label"].cast(pl.Float32).fill_null(np.nan).to_numpy(),
        scores_P=pairs["score"].cast(pl.Float32).fill_null(np.nan).to_numpy(),
        logits_PC=logits_PC,
        clicks_P=pairs["clicks"].cast(pl.Float32).fill_null(np.nan).to_numpy(),
    )


def plan_epoch(lists: TokenisedLists, train: Train, epoch: int, workers: int) -> list[list[Rows]]:
    """The steps of one epoch, each a list of candidate lists (row numbers); the same seed gives the same plan.

    Long lists are cut into parts of `list_size` at most. Every step has the same number of lists, a multiple of
    workers x accumulate, so that each micro-batch weighs the same, and every epoch has as many steps: a pass over the
    lists is one epoch, or several of `epoch_steps`. What is left over waits for the next pass.

    Raises:
        ConfigError: fewer lists than one step needs.
    """
    count = sum(-(-len(rows) // train.list_size) for rows in lists.rows)
    share = workers * train.accumulate
    size = min(train.lists, count) // share * share
    if size == 0:
        raise ConfigError(
            f"train.lists is {train.lists}, with {count} candidate lists for {workers} workers x accumulate"
            f" {train.accumulate}; give at least {share} lists a step, and as many queries"
        )
    length = min(train.epoch_steps or count, count // size)
    pass_number, part = divmod(epoch, count // size // length)
    generator = np.random.default_rng([train.seed, pass_number])
    parts: list[Rows] = []
    for rows in lists.rows:
        shuffled = generator.permutation(rows)
        parts += np.array_split(shuffled, -(-len(shuffled) // train.list_size))
    lengths = lists.tokens.lengths_B
    longest = np.array([lengths[rows].max() for rows in parts])
    order = generator.permutation(len(parts))[: len(parts) // size * size]
    steps = []
    for start in range(0, len(order), size * WINDOW_STEPS):
        window = order[start : start + size * WINDOW_STEPS]
        window = window[np.argsort(longest[window], kind="stable")]
        steps += [window[place : place + size] for place in range(0, len(window), size)]
    chosen = generator.permutation(len(steps))[part * length : (part + 1) * length]
    return [[parts[number] for number in steps[place]] for place in chosen]


def collate_lists(lists: TokenisedLists, parts: Sequence[Rows], group: int) -> ListBatch:
    """Candidate lists as one batch of pairs, in groups of about `group` pairs, and its [Q, N] frames."""
    longest = max(map(len, parts))
    mask_QN = np.zeros((len(parts), longest), dtype=np.bool_)
    labels_QN = np.full((len(parts), longest), np.nan, dtype=np.float32)
    teacher_QN = np.full((len(parts), longest), np.nan, dtype=np.float32)
    clicks_QN = np.full((len(parts), longest), np.nan, dtype=np.float32)
    grades_QNC = np.full((len(parts), longest, lists.logits_PC.shape[1]), np.nan, dtype=np.float32)
    for place, rows in enumerate(parts):
        mask_QN[place, : len(rows)] = True
        labels_QN[place, : len(rows)] = lists.labels_P[rows]
        teacher_QN[place, : len(rows)] = lists.scores_P[rows]
        grades_QNC[place, : len(rows)] = lists.logits_PC[rows]
        clicks_QN[place, : len(rows)] = lists.clicks_P[rows]
    rows_P = np.concatenate(list(parts))
    by_length = np.argsort(lists.tokens.lengths_B[rows_P], kind="stable")
    groups = np.array_split(by_length, max(1, round(len(rows_P) / group)))
    frames = (torch.from_numpy(frame) for frame in (mask_QN, labels_QN, teacher_QN, grades_QNC, clicks_QN))
    return ListBatch(rows_P, groups, *frames)
