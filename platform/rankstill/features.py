"""What a student learns from the inside of its teacher: hidden states, attention, relations."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankstill.cross_encoder import CrossEncoder, layer_stack, model_inputs
from rankstill.errors import ConfigError, ModelError
from rankstill.feature_losses import attention_kl, hidden_cosine, hidden_mse, relation_kl, rkd_angle, rkd_distance
from rankstill.model_config import Features

PROJECTIONS = "matching"
"""Submodule of the student that is trained with it and is no part of it."""
NAMES = {
    "query": ("query", "q_proj", "q_lin", "q"),
    "key": ("key", "k_proj", "k_lin", "k"),
    "value": ("value", "v_proj", "v_lin", "v"),
}
"""What model families call the projections of attention."""


class FeatureMatcher:
    """Runs the teacher beside the student and compares what they hold inside."""

    def __init__(self, student: CrossEncoder, teacher: CrossEncoder, features: Features) -> None:
        """Adds to the student's model the projections that hidden states need.

        Raises:
            ConfigError: terms by token with different tokenizers, or widths that relation heads don't divide.
        """
        self.features = features
        self.teacher = teacher
        self._student = student
        self.same_tokens = student.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()
        if features.by_token and not self.same_tokens:
            raise ConfigError(
                "distill.features compares hidden states, attention or relations token by token, but the student has"
                " another tokenizer than the teacher; use distance and angle instead"
            )
        widths = [encoder.model.config.hidden_size for encoder in (student, teacher)]
        if features.relation and any(width % features.relation_heads for width in widths):
            raise ConfigError(
                f"distill.features.relation_heads is {features.relation_heads}, which doesn't divide the widths"
                f" {widths[0]} and {widths[1]}; give a common divisor"
            )
        depths = [encoder.model.config.num_hidden_layers for encoder in (student, teacher)]
        self.layers = [(own, round(own * depths[1] / depths[0])) for own in range(1, depths[0] + 1)]
        if features.hidden:
            setattr(student.model, PROJECTIONS, nn.ModuleList(nn.Linear(*widths) for _ in self.layers))
        teacher.model.requires_grad_(False).eval()
        if features.attention:
            for encoder in (student, teacher):
                encoder.model.set_attn_implementation("eager")  # the only one that returns its maps
        self._seen = [watch_projections(encoder.model) for encoder in (student, teacher)] if features.relation else []

    @property
    def options(self) -> dict[str, bool]:
        """What the student's forward pass must return beside logits."""
        return {"output_hidden_states": True, "output_attentions": bool(self.features.attention)}

    def look(self, inputs: dict[str, NDArray[np.int64]]) -> tuple[Any, Tensor]:
        """The teacher's forward pass with `options` over its inputs, and the mask of these, [P, L]."""
        tensors = model_inputs(self.teacher.model, inputs)
        with torch.no_grad():
            return self.teacher.model(**tensors, **self.options), tensors["attention_mask"]

    def loss(self, student: Any, teacher: Any, mask_PL: Tensor) -> Tensor:
        """Weighted sum of the configured terms, scalar, of what the forward passes of both returned."""
        wanted = self.features
        total = torch.zeros((), device=mask_PL.device)
        if wanted.hidden:
            compare = hidden_mse if wanted.hidden_kind == "mse" else hidden_cosine
            projections = getattr(self._student.model, PROJECTIONS)
            for projection, (own, other) in zip(projections, self.layers, strict=True):
                projected = projection(student.hidden_states[own].float())
                loss_P = compare(projected, teacher.hidden_states[other].float(), mask_PL)
                total = total + wanted.hidden / len(self.layers) * loss_P.mean()
        if wanted.attention:
            for own, other in self.layers:
                maps_PLL = student.attentions[own - 1].float().mean(1)
                loss_P = attention_kl(maps_PLL, teacher.attentions[other - 1].float().mean(1), mask_PL)
                total = total + wanted.attention / len(self.layers) * loss_P.mean()
        if wanted.relation:
            own, other = self._seen
            for name in NAMES:
                loss_P = relation_kl(own[name].float(), other[name].float(), mask_PL, wanted.relation_heads)
                total = total + wanted.relation / len(NAMES) * loss_P.mean()
        vectors = student.hidden_states[-1][:, 0].float(), teacher.hidden_states[-1][:, 0].float()
        if wanted.distance:
            total = total + wanted.distance * rkd_distance(*vectors)
        if wanted.angle:
            total = total + wanted.angle * rkd_angle(*vectors)
        return total


def watch_projections(model: PreTrainedModel) -> dict[str, Tensor]:
    """What the query, key and value projections of the last layer gave in the latest forward pass, kept up to date.

    Raises:
        ModelError: a family whose projections have other names, or are one.
    """
    seen: dict[str, Tensor] = {}
    last = layer_stack(model)[1][-1]
    for name, written in NAMES.items():
        found = [module for path, module in last.named_modules() if path.rpartition(".")[2] in written]
        if not found:
            raise ModelError(
                f"distill.features.relation: a {type(model).__name__} has no {name} projection of its own; set it to 0"
            )
        found[0].register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    return seen
