"""A model with two towers: queries and items are encoded apart, so that items can be encoded ahead of time.

`bi` compares one vector a side; `late` compares each token of the query with several vectors of the item. Both take
tokenised pairs as cross-encoders do, and cut them in two themselves: they train, export and serve alike.

Axes: P pairs, L tokens, S query tokens, M vectors of an item, W their width, D width of the encoder.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

START_SCALE = 8.0
"""What cosines are multiplied by before training: their spread is some tenths, that of logits some units."""
HEAD_WIDTH = 8


class TowerConfig(PretrainedConfig):
    """The shape of a two-tower student."""

    model_type = "rankstill-towers"

    def __init__(
        self,
        family: str = "bi",
        encoder: dict[str, Any] | None = None,
        vectors: int = 1,
        width: int = 0,
        cls_id: int = 0,
        **others: Any,
    ) -> None:
        self.family = family
        self.encoder = encoder or {}
        self.vectors = vectors
        self.width = width
        self.cls_id = cls_id
        super().__init__(**others)
        self.num_labels = 1

    @property
    def encoder_config(self) -> PretrainedConfig:
        """Config of the encoder that both towers share."""
        settings = dict(self.encoder)
        return CONFIG_MAPPING[settings.pop("model_type", "bert")](**settings)

    @property
    def num_hidden_layers(self) -> int:
        """Transformer layers."""
        return self.encoder.get("num_hidden_layers", 1)

    @property
    def max_position_embeddings(self) -> int:
        """Longest text."""
        return self.encoder.get("max_position_embeddings", 512)

    @property
    def type_vocab_size(self) -> int:
        """Segments are needed to cut a pair in two, whatever the encoder itself takes."""
        return 2


class TowerModel(PreTrainedModel):
    """One encoder for both towers, and the comparison of what they give."""

    config_class = TowerConfig
    config: TowerConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder_config)
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # unused, and weights without a gradient
        width = self.encoder.config.hidden_size
        self.late = config.family == "late"
        self.project: nn.Module = nn.Identity()
        if config.width:
            self.project = nn.Linear(width, config.width, bias=False)
            nn.init.orthogonal_(self.project.weight)  # the encoder's cosines are kept best
        self.scale = nn.Parameter(torch.tensor([START_SCALE]))
        self.offset = nn.Parameter(torch.zeros(1))
        if self.late:
            slots = torch.randn(config.vectors, width)
            slots[0] = 0.0  # the first is the mean of the tokens
            self.slots = nn.Parameter(slots)
            self.importance = nn.Linear(width, 1)
            nn.init.zeros_(self.importance.weight)  # all query tokens count alike
            best = nn.Linear(HEAD_WIDTH, 1)
            nn.init.zeros_(best.weight)  # nothing but the best match counts
            nn.init.zeros_(best.bias)
            self.head = nn.Sequential(nn.Linear(2, HEAD_WIDTH), nn.GELU(), best)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: weights start in the constructor."""

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits [P, 1] of pairs as a cross-encoder's tokenizer gives them: [CLS] query [SEP] item [SEP]."""
        real_PL = attention_mask.bool()
        query_PL = real_PL & (token_type_ids == 0)
        lengths_P = query_PL.sum(dim=-1)
        longest = input_ids.shape[1] if torch.compiler.is_exporting() else int(lengths_P.max())
        queries, weights = self.encode_queries(input_ids[:, :longest], query_PL[:, :longest])
        # The item's tokens move to the front, behind a [CLS] of their own.
        item_lengths_P = real_PL.sum(dim=-1) - lengths_P
        longest = input_ids.shape[1] if torch.compiler.is_exporting() else int(item_lengths_P.max())
        places_L = torch.arange(longest, device=input_ids.device)
        source_PL = (lengths_P.unsqueeze(1) + places_L).clamp(max=input_ids.shape[1] - 1)
        item_ids_PL = functional.pad(input_ids.gather(1, source_PL), (1, 0), value=self.config.cls_id)
        item_PL = functional.pad(places_L < item_lengths_P.unsqueeze(1), (1, 0), value=True)
        items_PMW = self.encode_items(item_ids_PL, item_PL)
        return SequenceClassifierOutput(logits=self.compare(queries, weights, items_PMW).unsqueeze(-1))  # type: ignore[arg-type]

    def encode_queries(self, ids_PS: Tensor, mask_PS: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of queries and the weights with which these count: [P, S, W] and [P, S], S of 1 for `bi`."""
        return self.pool_queries(self._states(ids_PS, mask_PS), mask_PS)

    def pool_queries(self, states_PSD: Tensor, mask_PS: Tensor) -> tuple[Tensor, Tensor]:
        """The same of what the encoder gives."""
        if not self.late:
            pooled = functional.normalize(self.project(_mean(states_PSD, mask_PS)).float(), dim=-1).unsqueeze(1)
            return pooled, torch.ones_like(pooled[..., 0])
        weights_PS = self.importance(states_PSD).squeeze(-1).float().masked_fill(~mask_PS, -1e9).softmax(dim=-1)
        return functional.normalize(self.project(states_PSD).float(), dim=-1), weights_PS

    def encode_items(self, ids_PL: Tensor, mask_PL: Tensor) -> Tensor:
        """Unit vectors of items, [P, M, W], M of 1 for `bi`."""
        return self.pool_items(self._states(ids_PL, mask_PL), mask_PL)

    def pool_items(self, states_PLD: Tensor, mask_PL: Tensor) -> Tensor:
        """The same of what the encoder gives."""
        if not self.late:
            return functional.normalize(self.project(_mean(states_PLD, mask_PL)).float(), dim=-1).unsqueeze(1)
        scores_PML = torch.einsum("md,pld->pml", self.slots.to(states_PLD.dtype), states_PLD).float()
        scores_PML = scores_PML / states_PLD.shape[-1] ** 0.5
        shares_PML = scores_PML.masked_fill(~mask_PL.unsqueeze(1), -1e9).softmax(dim=-1)
        pooled_PMD = shares_PML.to(states_PLD.dtype) @ states_PLD
        return functional.normalize(self.project(pooled_PMD).float(), dim=-1)

    def compare(self, queries_PSW: Tensor, weights_PS: Tensor, items_PMW: Tensor) -> Tensor:
        """Logits, [P]. MaxSim as in Khattab and Zaharia 2020, "ColBERT", and a learned head over best and mean."""
        matches_PSM = queries_PSW @ items_PMW.transpose(-1, -2)
        best_PS = matches_PSM.max(dim=-1).values
        if self.late:
            features_PS2 = torch.stack([best_PS, matches_PSM.mean(dim=-1)], dim=-1)
            best_PS = best_PS + self.head(features_PS2).squeeze(-1).float()
        return self.scale * (weights_PS * best_PS).sum(dim=-1) + self.offset

    def _states(self, ids_PL: Tensor, mask_PL: Tensor) -> Tensor:
        return self.encoder(input_ids=ids_PL, attention_mask=mask_PL.long()).last_hidden_state


def is_tower(folder: Path) -> bool:
    """Whether a model folder holds a two-tower student."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == TowerConfig.model_type


def _mean(states_PLD: Tensor, mask_PL: Tensor) -> Tensor:
    weights_PL1 = mask_PL.unsqueeze(-1).to(states_PLD.dtype)
    return (states_PLD * weights_PL1).sum(1) / weights_PL1.sum(1).clamp_min(1)


AutoConfig.register(TowerConfig.model_type, TowerConfig)
AutoModelForSequenceClassification.register(TowerConfig, TowerModel)
