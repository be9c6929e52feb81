"""The pair model that teachers and students of every family share: query and item in, one logit out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from rankstill import pruned as _pruned  # noqa: F401 - importing it registers its model
from rankstill.encoders import LOCAL, WEIGHTS, find_encoder, loading
from rankstill.errors import ModelError
from rankstill.towers import TowerModel

Ids = NDArray[np.int32]
SCORE = "score"
"""What the config of a model with two heads calls its first logit; grades, worst first, are the others."""
LONGEST_TOKEN = 32
"""Characters that one token stands for, at most; longer ones are left out of account."""
TOKENISER_PAIRS = 8192
"""Pairs of one call to the tokenizer, which keeps kilobytes a pair until the call's result is dropped."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class TokenisedPairs:
    """Token ids of B pairs, unpadded, with the segment (0 query, 1 item) of each token."""

    input_ids: list[Ids]
    segment_ids: list[Ids]
    truncated: NDArray[np.bool_]

    @cached_property
    def lengths_B(self) -> NDArray[np.int64]:
        """Tokens of each pair."""
        return np.fromiter(map(len, self.input_ids), dtype=np.int64, count=len(self.input_ids))


@dataclass(frozen=True)
class CrossEncoder:
    """A sequence classifier and its tokenizer.

    It has one logit, or one for each grade, worst first; or, with two heads, a score before those of grades.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    max_length: int

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        return pad_id(self.tokenizer)

    def tokenise(self, queries: Sequence[str], texts: Sequence[str]) -> TokenisedPairs:
        """Token ids of pairs, truncated to `max_length` from the longer side."""
        return tokenise_pairs(self.tokenizer, queries, texts, self.max_length)

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), config and tokenizer; the tokenizer remembers `max_length`."""
        self.tokenizer.model_max_length = self.max_length
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def family(self) -> str:
        """cross, bi or late."""
        return self.model.config.family if isinstance(self.model, TowerModel) else "cross"

    @property
    def backbone(self) -> PreTrainedModel:
        """The model of the transformers library inside."""
        return self.model.encoder if isinstance(self.model, TowerModel) else self.model

    @property
    def grades(self) -> int:
        """Grades that it tells apart; 0 where it only scores."""
        return len(self._labels) - self.scores

    @property
    def scores(self) -> bool:
        """Whether its first logit is a score."""
        return len(self._labels) == 1 or self._labels[0] == SCORE

    @property
    def _labels(self) -> dict[int, str]:
        """Names of the logits."""
        labels: Any = self.model.config.id2label  # declared with keys of another type
        return labels

    @property
    def layers(self) -> int:
        """Transformer layers."""
        return self.model.config.num_hidden_layers


def load_cross_encoder(
    name: str | Path, field: str, max_length: int | None = None, fresh_head: bool = False
) -> CrossEncoder:
    """Load a folder or Hugging Face name. Weights come from safetensors only, and no remote code is run.

    `max_length` of None takes the tokenizer's own. A `fresh_head` may be missing in the weights, or have more than one
    logit there, as in a model that is about to be fine-tuned; it is drawn from torch's generator.

    Raises:
        ModelError: not a usable model, or no trained head where `fresh_head` is false.
    """
    folder = find_encoder(str(name), field)
    tokenizer = load_tokenizer(folder, field)
    options = {"num_labels": 1, "ignore_mismatched_sizes": True} if fresh_head else {}
    with loading(name, field):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True, **WEIGHTS, **options
        )
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if missing and not (fresh_head and all(_is_head(key) for key in missing)):
        raise ModelError(
            f"{field}: {str(name)!r} lacks the weights {', '.join(missing[:3])}; it is no trained cross-encoder,"
            " use it as an encoder to fine-tune (teacher.base)"
        )
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1 << 30))
    return CrossEncoder(model.eval(), tokenizer, min(max_length or longest, longest))


def load_tokenizer(folder: Path, field: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder; no remote code is run.

    Raises:
        ModelError: none there, or none that pads.
    """
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(
            f"{field}: {str(folder)!r} has no tokenizer (such as tokenizer.json); save it beside the model"
        )
    with loading(folder, field):
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{field}: the tokenizer of {str(folder)!r} has no padding token; add one to it")
    return tokenizer


def tokenise_pairs(
    tokenizer: PreTrainedTokenizerFast, queries: Sequence[str], texts: Sequence[str], max_length: int
) -> TokenisedPairs:
    """Token ids of pairs, in batched calls of a size that bounds what the tokenizer holds beside the ids.

    What lies further behind than any token reaches is cut before, so that an endless text costs no endless time.
    """
    starts = range(0, len(queries), TOKENISER_PAIRS)
    chunks = [slice(start, start + TOKENISER_PAIRS) for start in starts]
    return join_pairs([_tokenise_chunk(tokenizer, queries[chunk], texts[chunk], max_length) for chunk in chunks])


def _tokenise_chunk(
    tokenizer: PreTrainedTokenizerFast, queries: Sequence[str], texts: Sequence[str], max_length: int
) -> TokenisedPairs:
    reach = max_length * LONGEST_TOKEN
    encoded = tokenizer(
        [query[:reach] for query in queries],
        [text[:reach] for text in texts],
        truncation="longest_first",
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
        verbose=False,
    )
    truncated = [bool(encoding.overflowing) for encoding in encoded.encodings or []]
    return TokenisedPairs(
        [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]],
        [np.array(ids, dtype=np.int32) for ids in encoded["token_type_ids"]],
        np.array(truncated, dtype=np.bool_),
    )


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Token id of padding."""
    found = tokenizer.pad_token_id
    assert isinstance(found, int)  # checked when the model was loaded
    return found


def join_pairs(parts: Sequence[TokenisedPairs]) -> TokenisedPairs:
    """The pairs of all parts, one after the other."""
    return TokenisedPairs(
        [ids for part in parts for ids in part.input_ids],
        [ids for part in parts for ids in part.segment_ids],
        np.concatenate([part.truncated for part in parts]),
    )


def take_pairs(pairs: TokenisedPairs, rows: Iterable[int]) -> TokenisedPairs:
    """Some of the pairs."""
    chosen = list(rows)
    return TokenisedPairs(
        [pairs.input_ids[row] for row in chosen],
        [pairs.segment_ids[row] for row in chosen],
        pairs.truncated[chosen],
    )


def collate(pairs: TokenisedPairs, rows: Sequence[int], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """Rows of `pairs` padded to the longest of them: input_ids, token_type_ids, attention_mask, each [B, L]."""
    length = max(len(pairs.input_ids[row]) for row in rows)
    ids_BL = np.full((len(rows), length), pad_id, dtype=np.int64)
    segments_BL = np.zeros((len(rows), length), dtype=np.int64)
    mask_BL = np.zeros((len(rows), length), dtype=np.int64)
    for place, row in enumerate(rows):
        used = len(pairs.input_ids[row])
        ids_BL[place, :used] = pairs.input_ids[row]
        segments_BL[place, :used] = pairs.segment_ids[row]
        mask_BL[place, :used] = 1
    return {"input_ids": ids_BL, "token_type_ids": segments_BL, "attention_mask": mask_BL}


def model_inputs(model: PreTrainedModel, batch: dict[str, NDArray[np.int64]]) -> dict[str, torch.Tensor]:
    """A collated batch as tensors on the model's device, without segments where the model has none."""
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    return {
        name: torch.from_numpy(array).to(model.device, non_blocking=True)
        for name, array in batch.items()
        if segments or name != "token_type_ids"
    }


def layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list that holds the transformer layers, with its dotted name.

    Raises:
        ModelError: a model whose layers can't be told apart.
    """
    depth = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and depth > 0:
            return name, module
    raise ModelError(
        f"layers of a {type(model).__name__} can't be told apart; give student.init a folder, and no distill.features"
    )


def _is_head(key: str) -> bool:
    return key.startswith(("classifier", "score", "pre_classifier", "head")) or ".pooler." in key
