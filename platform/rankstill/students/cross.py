"""Small cross-encoders: from teacher layers, from a pretrained folder, or at random."""

import copy
import re

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from rankstill.cross_encoder import SCORE, CrossEncoder, layer_stack, load_cross_encoder
from rankstill.encoders import random_model
from rankstill.errors import ConfigError, ModelError
from rankstill.model_config import Student
from rankstill.pruned import PrunedBertConfig


def make_cross(config: Student, teacher: CrossEncoder | None) -> CrossEncoder:
    """A small cross-encoder; its tokenizer is the teacher's unless it comes from a folder of its own."""
    if config.init not in ("teacher", "random"):
        student = load_cross_encoder(config.init, "student.init", config.max_length, fresh_head=True)
        if student.family != "cross":
            raise ConfigError(
                f"student.init {config.init!r} is of family {student.family}; set student.family={student.family}, or"
                " name a cross-encoder or encoder"
            )
        if config.layers < student.model.config.num_hidden_layers:
            return from_layers(student, config.layers, config.max_length)
        return student
    assert teacher is not None
    if config.init == "teacher":
        return from_layers(teacher, config.layers, config.max_length)
    model = random_model(config.random, len(teacher.tokenizer), config.max_length)
    return CrossEncoder(model, teacher.tokenizer, config.max_length)


def from_layers(teacher: CrossEncoder, layers: int, max_length: int) -> CrossEncoder:
    """A copy of the teacher with `layers` of its layers, evenly spaced, the first and the last among them.

    Raises:
        ConfigError: more layers than the teacher has.
        ModelError: a teacher whose layers can't be told apart.
    """
    return CrossEncoder(take_layers(teacher.model, layers), teacher.tokenizer, min(max_length, teacher.max_length))


def take_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A copy of a model with `layers` of its layers and, where it scores, one logit.

    Raises:
        ConfigError: more layers than the model has.
        ModelError: a model whose layers can't be told apart.
    """
    stack, _ = layer_stack(model)
    taken = pick_layers(model.config.num_hidden_layers, layers)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    config.num_labels = 1
    if isinstance(config, PrunedBertConfig):
        config.kept_heads, config.kept_units = (
            [(kept or [])[place] for place in taken] for kept in (config.kept_heads, config.kept_units)
        )
    student = type(model)(config)
    position = {old: new for new, old in enumerate(taken)}
    pattern = re.compile(rf"^{re.escape(stack)}\.(\d+)\.")
    weights = {}
    for key, tensor in model.state_dict().items():
        match = pattern.match(key)
        if match is None:
            weights[key] = tensor
        elif (old := int(match[1])) in position:
            weights[f"{stack}.{position[old]}.{key[match.end() :]}"] = tensor
    fresh = student.state_dict()  # for a head, where the teacher's scores grades
    weights |= {key: tensor for key, tensor in fresh.items() if tensor.shape != weights[key].shape}
    student.load_state_dict(weights)
    return student


def add_grades(model: PreTrainedModel, grades: int) -> None:
    """Give a model of one logit a second head, beside the first in the same layer: one more logit for each grade.

    Raises:
        ModelError: a model whose head can't be told.
    """
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1
    ]
    if len(heads) != 1:
        raise ModelError(f"student.grades: the head of a {type(model).__name__} can't be told; set it to 0")
    name, head = heads[0]
    wider = nn.Linear(head.in_features, 1 + grades, bias=head.bias is not None)
    with torch.no_grad():
        wider.weight[:1] = head.weight
        if head.bias is not None:
            wider.bias[:1] = head.bias
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, wider)
    names = [SCORE, *(f"grade {grade}" for grade in range(grades))]
    model.config.num_labels = len(names)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {label: place for place, label in enumerate(names)}


def pick_layers(depth: int, count: int) -> list[int]:
    """`count` of `depth` layer numbers, evenly spaced from the first to the last; one layer is the first.

    Raises:
        ConfigError: more layers than the teacher has.
    """
    if count > depth:
        raise ConfigError(f"student.layers is {count} but the teacher has {depth}; give {depth} or fewer")
    return [int(place) for place in np.floor(np.linspace(0, depth - 1, count) + 0.5)]
