from math import log, sqrt

import pytest
import torch
from torch.nn import functional

from rankstill.feature_losses import attention_kl, hidden_cosine, hidden_mse, relation_kl, rkd_angle, rkd_distance

GENERATOR = torch.Generator().manual_seed(0)


def near(*values: float):
    return pytest.approx(list(values), rel=1e-5, abs=1e-6)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def mask_of(*lengths: int) -> torch.Tensor:
    """Masks as tokenizers give them: whole numbers."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def test_hidden_mse_by_hand():
    student = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]]])
    assert hidden_mse(student, teacher, mask_of(2, 3)[:1]).tolist() == near(((1 + 4) / 2 + 4 / 2) / 2)


def test_hidden_cosine_by_hand():
    student = torch.tensor([[[3.0, 0.0], [1.0, 1.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 2.0], [5.0, 0.0], [0.0, 1.0]]])
    assert hidden_cosine(student, teacher, mask_of(2, 3)[:1]).tolist() == near((1 + 1 - 1 / sqrt(2)) / 2)


def test_attention_kl_by_hand():
    student = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    teacher = torch.tensor([[[0.25, 0.75], [0.3, 0.7]]])
    expected = 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5)
    assert attention_kl(student, teacher, torch.tensor([[1, 0]])).tolist() == near(expected)


def test_relation_kl_is_torchs_kl_of_each_head_and_token():
    student_PLD, teacher_PLE, mask_PL = draw(2, 4, 6), draw(2, 4, 12), mask_of(4, 3)
    expected = []
    for pair, length in enumerate((4, 3)):
        terms = []
        for head in range(3):
            student = student_PLD[pair, :length, 2 * head : 2 * head + 2]
            teacher = teacher_PLE[pair, :length, 4 * head : 4 * head + 4]
            student_logs = functional.log_softmax(student @ student.T / sqrt(2), dim=-1)
            teacher_odds = functional.softmax(teacher @ teacher.T / sqrt(4), dim=-1)
            terms.append(functional.kl_div(student_logs, teacher_odds, reduction="none").sum(dim=-1).mean())
        expected.append(float(sum(terms)) / 3)
    assert relation_kl(student_PLD, teacher_PLE, mask_PL, heads=3).tolist() == near(*expected)


def test_rkd_distance_by_hand():
    student = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])  # distances 5, 0, 5: 1.5, 0, 1.5 of their mean
    teacher = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 3, 2: 0.5, 1.5, 1 of their mean
    expected = ((1 - 0.5) + (1.5 - 0.5) + 0.5 * 0.5**2) / 3
    assert rkd_distance(student, teacher).item() == pytest.approx(expected)


def test_rkd_angle_by_hand():
    student = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])  # angles 45, 90, 45 degrees
    teacher = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])  # 0, 180, 0 degrees
    outer, corner = 0.5 * (1 / sqrt(2) - 1) ** 2, 0.5 * (0 + 1) ** 2
    assert rkd_angle(student, teacher).item() == pytest.approx((2 * outer + corner) / 3, abs=1e-6)


def test_relations_ignore_scale_place_or_width():
    vectors = draw(5, 4)
    moved = torch.cat([7 * vectors + 3, torch.zeros(5, 2)], dim=-1)
    assert rkd_distance(moved, vectors).item() == pytest.approx(0, abs=1e-9)
    assert rkd_angle(moved, vectors).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_too_few_pairs_have_no_relations(loss):
    student = draw(1, 3).requires_grad_()
    found = loss(student, draw(1, 3))
    found.backward()
    assert found.item() == 0


BY_TOKEN = {
    "hidden_mse": (hidden_mse, (2, 5, 4)),
    "hidden_cosine": (hidden_cosine, (2, 5, 4)),
    "attention_kl": (lambda s, t, mask: attention_kl(s.softmax(-1), t.softmax(-1), mask), (2, 5, 5)),
    "relation_kl": (lambda s, t, mask: relation_kl(s, t, mask, heads=2), (2, 5, 4)),
}


@pytest.mark.parametrize("name", BY_TOKEN)
def test_same_states_cost_nothing_and_others_something(name):
    loss, shape = BY_TOKEN[name]
    states, mask = draw(*shape), mask_of(5, 3)
    assert loss(states, states, mask).tolist() == near(0, 0)
    assert loss(draw(*shape), states, mask).min() > 1e-3


@pytest.mark.parametrize("name", BY_TOKEN)
def test_padded_tokens_and_the_teacher_get_no_gradient(name):
    loss, shape = BY_TOKEN[name]
    student, teacher = draw(*shape).requires_grad_(), draw(*shape).requires_grad_()
    loss(student, teacher, mask_of(5, 3)).sum().backward()
    assert teacher.grad is None
    assert student.grad[1, 3:].abs().max() == 0
    assert student.grad[1, :3].abs().max() > 0
