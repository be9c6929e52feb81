"""Fast scoring of pairs with one model: length-sorted, token-budget batches.

Tokenising is one batched call; batches hold pairs of similar length and are padded to their own longest, so that
little of the work is padding.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rankstill.cross_encoder import (
    CrossEncoder,
    TokenisedPairs,
    collate,
    layer_stack,
    model_inputs,
    pad_id,
    tokenise_pairs,
)
from rankstill.errors import RunError
from rankstill.losses import expected_gain_logit
from rankstill.runtimes import PROBES, Batch, Engine, Floats, onnx_engine, openvino_engine

PADDING = 64
"""Tokens of padding that cost about as much as one more batch on a CPU. Batches for GPUs are larger, and so is that."""


@dataclass
class Work:
    """What a scorer has done, in all."""

    tokens: int = 0
    """Without padding."""
    padded: int = 0
    """With padding."""
    squares: int = 0
    """Sum of the squared lengths in tokens, which attention grows with."""

    def add(self, lengths_B: NDArray[np.int64], batches: Sequence[NDArray[np.int64]]) -> None:
        """Count sequences of these lengths, computed in these batches."""
        self.tokens += int(lengths_B.sum())
        self.padded += sum(int(lengths_B[rows].max()) * rows.size for rows in batches)
        self.squares += int((lengths_B**2).sum())

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.tokens - other.tokens, self.padded - other.padded, self.squares - other.squares)

    def flops(self, model: PreTrainedModel) -> float:
        """Floating-point operations of a forward pass of the layers of `model` over the tokens, without padding.

        Two for each weight of a linear layer and token, and four for each unit of width and pair of tokens.

        Raises:
            ModelError: the layers can't be told apart.
        """
        layers = layer_stack(model)[1]
        weights = sum(part.weight.numel() for part in layers.modules() if isinstance(part, torch.nn.Linear))
        return 2.0 * weights * self.tokens + 4.0 * model.config.hidden_size * len(layers) * self.squares


class PairScorer:
    """Scores pairs with one model in one runtime: an engine that gives scores [B], or logits [B, C] of grades.

    Calls from several threads take turns, so that one tokenises while another's forward pass runs.
    """

    def __init__(
        self, forward: Engine, tokenizer: PreTrainedTokenizerFast, max_length: int, token_budget: int = 2048
    ) -> None:
        self._forward = forward
        self._tokenizer = tokenizer
        self._pad_id = pad_id(tokenizer)
        self.max_length = max_length
        self._token_budget = token_budget
        self._tokenising, self._computing = threading.Lock(), threading.Lock()
        self.work = Work()

    def tokenise(self, queries: Sequence[str], texts: Sequence[str], max_length: int | None = None) -> TokenisedPairs:
        """Token ids of pairs, truncated to the model's length or a shorter one."""
        length = min(max_length or self.max_length, self.max_length)
        with self._tokenising:
            return tokenise_pairs(self._tokenizer, queries, texts, length)

    def overhead(self, query: str) -> int:
        """Tokens of a pair that aren't the item's: the query's and the special ones."""
        return len(self.tokenise([query], [""]).input_ids[0])

    def score_tokens(self, pairs: TokenisedPairs) -> Floats:
        """What the runtime gives for tokenised pairs, [B] or [B, C], in their order.

        Raises:
            RunError: a number that is not finite.
        """
        lengths_B = pairs.lengths_B
        batches = plan_batches(lengths_B, self._token_budget)
        with self._computing:
            found = np.concatenate([self._forward(collate(pairs, rows.tolist(), self._pad_id)) for rows in batches])
            self.work.add(lengths_B, batches)
        scores = found[np.argsort(np.concatenate(batches))]
        if not np.isfinite(scores).all():
            place = int(np.argwhere(~np.isfinite(scores))[0, 0])
            text = self._tokenizer.decode(pairs.input_ids[place])[:120]
            raise RunError(f"score {scores[place]} of the pair {text!r} is not finite; use precision float32")
        return scores

    def score(self, queries: Sequence[str], texts: Sequence[str]) -> Floats:
        """Scores of pairs, [B], in their order."""
        if not len(queries):
            return np.empty(0, dtype=np.float32)
        return self.score_tokens(self.tokenise(queries, texts))


def plan_batches(lengths_B: NDArray[np.int64], token_budget: int) -> list[NDArray[np.int64]]:
    """Cut pairs, longest first, into batches of at most `token_budget` padded tokens (at least one pair each).

    A batch ends, too, where its padding would cost more than another batch does.
    """
    order = np.argsort(-lengths_B, kind="stable")
    batches, start = [], 0
    while start < order.size:
        size = max(1, token_budget // max(1, int(lengths_B[order[start]])))
        lengths = lengths_B[order[start : start + size]]
        padding = np.cumsum(lengths[0] - lengths)
        size = int(np.searchsorted(padding, max(PADDING, token_budget // 32), side="right"))
        batches.append(order[start : start + size])
        start += size
    return batches


def torch_forward(
    encoder: CrossEncoder, device: str = "cpu", dtype: torch.dtype = torch.float32, grades: bool = False
) -> Engine:
    """Run a model in torch; scores, or the logits of its grades, come back as float32."""
    model: Any = encoder.model  # `to` is wrapped in a way that hides its signature
    model = model.to(device=torch.device(device), dtype=dtype).eval()

    def forward(batch: Batch) -> Floats:
        with torch.inference_mode():
            return _outputs(encoder, model(**model_inputs(model, batch)).logits.float(), grades).cpu().numpy()

    return forward


def openvino_forward(encoder: CrossEncoder, threads: int, precision: str, grades: bool = False) -> Engine:
    """Run a model in OpenVINO, on CPU, in float32 or bfloat16.

    Raises:
        ModelError: OpenVINO can't run it, or gives other numbers.
    """
    model = encoder.model.eval()

    def inputs(queries: Sequence[str], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        pairs = encoder.tokenise(queries, texts)
        return model_inputs(model, collate(pairs, range(len(texts)), encoder.pad_id))

    example, probe = (inputs(*batch) for batch in PROBES)
    engine = openvino_engine(model, lambda batch: model(**batch).logits, example, probe, threads, precision)
    return lambda batch: _outputs(encoder, torch.from_numpy(engine(batch)), grades).numpy()


def _outputs(encoder: CrossEncoder, logits_BC: torch.Tensor, grades: bool) -> torch.Tensor:
    """Logits of the grades [B, C] if they are wanted, else scores [B]."""
    if grades:
        return logits_BC[:, -encoder.grades :]
    return logits_BC[:, 0] if encoder.scores else expected_gain_logit(logits_BC)


def onnx_forward(path: Path, threads: int = 0) -> Engine:
    """Run an exported model, whose first logit is a score, in ONNX Runtime on CPU."""
    engine = onnx_engine(path, threads)
    return lambda batch: engine(batch)[:, 0]


def is_bfloat16(precision: str, device: str) -> bool:
    """Whether "auto", "float32" or "bfloat16" means bfloat16 here: auto does where the device computes it itself."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def torch_scorer(
    encoder: CrossEncoder, device: str, precision: str, token_budget: int, grades: bool = False
) -> PairScorer:
    """A scorer in torch, of logits [B, C] where `grades` are wanted; for `precision` see `is_bfloat16`."""
    dtype = torch.bfloat16 if is_bfloat16(precision, device) else torch.float32
    forward = torch_forward(encoder, device, dtype, grades)
    return PairScorer(forward, encoder.tokenizer, encoder.max_length, token_budget)


def openvino_scorer(
    encoder: CrossEncoder, threads: int, precision: str, token_budget: int, grades: bool = False
) -> PairScorer:
    """A scorer in OpenVINO, on CPU, otherwise like `torch_scorer`.

    Raises:
        ModelError: OpenVINO can't run it.
    """
    chosen = "bfloat16" if is_bfloat16(precision, "cpu") else "float32"
    forward = openvino_forward(encoder, threads, chosen, grades)
    return PairScorer(forward, encoder.tokenizer, encoder.max_length, token_budget)
