"""A BERT whose layers have fewer attention heads and feed-forward units than its config's widths say."""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification


@strict
class PrunedBertConfig(BertConfig):
    """BERT's config, and what each layer has kept."""

    model_type = "rankstill-pruned-bert"

    kept_heads: list[int] | None = None
    """Attention heads of each layer."""
    kept_units: list[int] | None = None
    """Feed-forward units of each layer."""


class PrunedBert(BertForSequenceClassification):
    """Runs as BERT does: its attention takes the number of heads from the width of the projections."""

    config_class = PrunedBertConfig
    config: PrunedBertConfig

    def __init__(self, config: PrunedBertConfig) -> None:
        super().__init__(config)
        for place, layer in enumerate(bert_layers(self)):
            size = layer.attention.self.attention_head_size
            heads = (config.kept_heads or [])[place : place + 1] or [config.num_attention_heads]
            units = (config.kept_units or [])[place : place + 1] or [config.intermediate_size]
            keep(layer, torch.arange(heads[0] * size), torch.arange(units[0]))


def bert_layers(model: BertForSequenceClassification) -> list[Any]:
    """Its layers; the types of what torch keeps in a module list are lost."""
    return list(model.bert.encoder.layer)


def keep(layer: nn.Module, columns: Tensor, units: Tensor) -> None:
    """Leave a BERT layer those columns of its attention's projections, whole heads, and those feed-forward units."""
    attention: nn.Module = layer.get_submodule("attention.self")
    for name in ("query", "key", "value"):
        setattr(attention, name, _part(attention.get_submodule(name), columns, rows=True))
    output = layer.get_submodule("attention.output")
    output.dense = _part(output.get_submodule("dense"), columns, rows=False)
    inner, outer = layer.get_submodule("intermediate"), layer.get_submodule("output")
    inner.dense = _part(inner.get_submodule("dense"), units, rows=True)
    outer.dense = _part(outer.get_submodule("dense"), units, rows=False)


def _part(linear: nn.Module, kept: Tensor, rows: bool) -> nn.Linear:
    """A linear layer with some of its outputs (rows of its weight), or of its inputs."""
    assert isinstance(linear, nn.Linear)
    weight = linear.weight[kept] if rows else linear.weight[:, kept]
    smaller = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        smaller.weight.copy_(weight)
        smaller.bias.copy_(linear.bias[kept] if rows else linear.bias)
    return smaller


AutoConfig.register(PrunedBertConfig.model_type, PrunedBertConfig)
AutoModelForSequenceClassification.register(PrunedBertConfig, PrunedBert)
