"""A pretrained sentence encoder as a ranker: cosine of pooled query and item vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from rankstill.encoders import LOCAL, WEIGHTS, find_encoder, loading
from rankstill.errors import ModelError
from rankstill.runtimes import PROBES, Engine, openvino_engine
from rankstill.scoring import Work, is_bfloat16, plan_batches
from rankstill.towers import is_tower
from rankstill.vector_cache import VectorCache

TOKEN_BUDGET = 2048
"""Padded tokens of a forward pass where the caller doesn't say."""


@dataclass(frozen=True)
class BiEncoder:
    """An encoder and how it pools tokens: "mean" or "cls"."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    pooling: str
    max_length: int
    work: Work = field(default_factory=Work)
    engine: Engine | None = None
    """What gives hidden states [B, L, D] in torch's place."""
    queries: VectorCache | None = None
    """Vectors of earlier calls' queries, where these come again and again."""

    def encode(self, texts: Sequence[str], token_budget: int = TOKEN_BUDGET) -> NDArray[np.float32]:
        """Unit vectors of texts, [B, D]."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, verbose=False)["input_ids"]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        vectors = np.empty((len(ids), self.model.config.hidden_size), dtype=np.float32)
        batches = plan_batches(lengths, token_budget)
        self.work.add(lengths, batches)
        for rows in batches:
            padded = dict(self.tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt"))
            hidden_BLD = self.hidden(padded)
            pooled_BD = self._pool(hidden_BLD, padded["attention_mask"].to(hidden_BLD.device))
            vectors[rows] = functional.normalize(pooled_BD, dim=-1).cpu().numpy()
        return vectors

    def hidden(self, padded: dict[str, Tensor]) -> Tensor:
        """Hidden states [B, L, D] of token ids and attention mask, both [B, L]."""
        if self.engine:
            return torch.from_numpy(self.engine({name: value.numpy() for name, value in padded.items()}))
        with torch.inference_mode():
            inputs = {name: value.to(self.model.device) for name, value in padded.items()}
            return self.model(**inputs).last_hidden_state.float()

    def in_openvino(self, threads: int, precision: str) -> "BiEncoder":
        """The same in OpenVINO, on CPU; for `precision` see `scoring.is_bfloat16`.

        Raises:
            ModelError: OpenVINO can't run it.
        """

        def inputs(texts: Sequence[str]) -> dict[str, Tensor]:
            ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, verbose=False)["input_ids"]
            padded = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            return {name: padded[name] for name in ("input_ids", "attention_mask")}

        example, probe = (inputs(texts) for _, texts in PROBES)
        chosen = "bfloat16" if is_bfloat16(precision, "cpu") else "float32"
        engine = openvino_engine(
            self.model, lambda batch: self.model(**batch).last_hidden_state, example, probe, threads, chosen
        )
        return replace(self, engine=engine)

    def score(
        self, queries: Sequence[str], texts: Sequence[str], token_budget: int = TOKEN_BUDGET
    ) -> NDArray[np.float64]:
        """Cosine of each pair, [B]; a text that occurs again is encoded once."""
        asked, query_of_B = _distinct(queries)
        items, item_of_B = _distinct(texts)
        left = self._encode_queries(asked, token_budget)[query_of_B]
        right = self.encode(items, token_budget)[item_of_B]
        return np.einsum("bd,bd->b", left, right).astype(np.float64)

    def _encode_queries(self, queries: list[str], token_budget: int) -> NDArray[np.float32]:
        if self.queries is None:
            return self.encode(queries, token_budget)
        kept = zip(queries, self.queries.get(queries), strict=True)
        known = {query: vector for query, vector in kept if vector is not None}
        if new := [query for query in queries if query not in known]:
            vectors = self.encode(new, token_budget)
            self.queries.put(new, vectors)
            known.update(zip(new, vectors, strict=True))
        return np.stack([known[query] for query in queries])

    def _pool(self, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        if self.pooling == "cls":
            return hidden_BLD[:, 0]
        weights_BL1 = mask_BL.unsqueeze(-1).to(hidden_BLD.dtype)
        return (hidden_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)


def load_bi_encoder(
    name: str, field: str, device: str = "cpu", precision: str = "float32", max_length: int | None = None
) -> BiEncoder:
    """Load a sentence encoder in sentence-transformers' folder form (or a bare encoder, mean pooled).

    `max_length` of None takes the tokenizer's own; for `precision` see `scoring.is_bfloat16`.

    Raises:
        ModelError: not a usable model, or a pooling other than mean and cls.
    """
    folder = find_encoder(name, field)
    if is_tower(folder):
        raise ModelError(f"{field}: {name!r} is a two-tower student, no sentence encoder; name one")
    with loading(name, field):
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
        model = AutoModel.from_pretrained(folder, **WEIGHTS)
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1 << 30))
    dtype = torch.bfloat16 if is_bfloat16(precision, device) else torch.float32
    model = model.to(device=torch.device(device), dtype=dtype).eval()
    return BiEncoder(model, tokenizer, _pooling(folder, field), min(max_length or longest, longest))


def _distinct(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The texts, each once, and the place of each given one among them, [B]."""
    distinct, places = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
    return distinct.tolist(), places


def _pooling(folder: Path, field: str) -> str:
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    settings = orjson.loads(path.read_bytes())
    modes = [key for key, value in settings.items() if key.startswith("pooling_mode") and value is True]
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) == 1 and modes[0] in names:
        return names[modes[0]]
    if settings.get("pooling_mode") in ("mean", "cls"):
        return settings["pooling_mode"]
    raise ModelError(f"{field}: {str(folder)!r} pools by {', '.join(modes)}; only mean and cls are known")
