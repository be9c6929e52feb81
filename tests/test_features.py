import copy
from typing import Any

import pytest
import torch
from builders import made_up_pairs, tiny_cross_encoder

from rankstill.cross_encoder import CrossEncoder, collate, model_inputs
from rankstill.encoders import random_tokenizer
from rankstill.errors import ConfigError
from rankstill.features import PROJECTIONS, FeatureMatcher
from rankstill.model_config import Features
from rankstill.students.cross import from_layers

EACH = ("hidden", "attention", "relation", "distance", "angle")


def matched(student: CrossEncoder, teacher: CrossEncoder, **features: Any) -> tuple[FeatureMatcher, torch.Tensor]:
    """A matcher, and its loss on some pairs."""
    matcher = FeatureMatcher(student, teacher, Features(relation_heads=2, **features))
    queries, texts = made_up_pairs(5)
    inputs = [collate(e.tokenise(queries, texts), range(5), e.pad_id) for e in (student, teacher)]
    outputs = student.model(**model_inputs(student.model, inputs[0]), **matcher.options)
    return matcher, matcher.loss(outputs, *matcher.look(inputs[1]))


def identity(encoder: CrossEncoder) -> None:
    for projection in getattr(encoder.model, PROJECTIONS):
        torch.nn.init.eye_(projection.weight)
        torch.nn.init.zeros_(projection.bias)


@pytest.mark.parametrize("term", EACH)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(term):
    student = tiny_cross_encoder()
    matcher = FeatureMatcher(student, copy.deepcopy(student), Features(relation_heads=2, **{term: 1.0}))
    if term == "hidden":
        identity(student)
    queries, texts = made_up_pairs(5)
    inputs = collate(student.tokenise(queries, texts), range(5), student.pad_id)
    outputs = student.model(**model_inputs(student.model, inputs), **matcher.options)
    assert matcher.loss(outputs, *matcher.look(inputs)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("term", EACH)
def test_each_term_counts_by_its_weight_and_teaches_the_student_alone(term):
    teacher = tiny_cross_encoder(layers=4)
    losses = []
    for weight in (1.0, 3.0):
        student = from_layers(teacher, 2, 32)
        torch.manual_seed(0)
        _, loss = matched(student, copy.deepcopy(teacher), **{term: weight})
        losses.append(loss.item())
        loss.backward()
        learning = [p for n, p in student.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert len(learning) > 10
    assert losses[0] > 1e-4
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-4)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_students_of_another_width_learn_by_token_too():
    teacher = tiny_cross_encoder(layers=4, width=48)
    student = tiny_cross_encoder(layers=2, width=32, seed=1)
    matcher, loss = matched(student, teacher, hidden=1.0, attention=1.0, relation=1.0, distance=1.0, angle=1.0)
    assert matcher.layers == [(1, 2), (2, 4)]
    assert [projection.weight.shape for projection in getattr(student.model, PROJECTIONS)] == [(48, 32)] * 2
    loss.backward()
    assert loss.isfinite()


def test_other_tokens_leave_relations_between_pairs():
    teacher, student = tiny_cross_encoder(), tiny_cross_encoder(seed=1)
    tokenizer = random_tokenizer(["an altogether different vocabulary"], 250, 32)
    student = CrossEncoder(student.model, tokenizer, 32)
    with pytest.raises(ConfigError, match="another tokenizer than the teacher; use distance and angle"):
        FeatureMatcher(student, teacher, Features(hidden=1.0))
    matcher, loss = matched(student, teacher, distance=1.0, angle=1.0)
    assert not matcher.same_tokens
    assert loss > 1e-4


def test_heads_that_divide_no_width_are_refused():
    with pytest.raises(ConfigError, match=r"relation_heads is 5, which doesn't divide the widths 32 and 32"):
        FeatureMatcher(tiny_cross_encoder(), tiny_cross_encoder(), Features(relation=1.0, relation_heads=5))
