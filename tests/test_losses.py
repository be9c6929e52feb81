import math
from math import exp, log
from typing import Any

import pytest
import torch
from sentence_transformers.cross_encoder import losses as st_losses
from torch.nn import functional

from rankstill.losses import (
    agreement,
    class_cross_entropy,
    expected_gain_logit,
    lambda_loss,
    listwise_softmax,
    margin_mse,
    pointwise_bce,
    pointwise_mse,
    ranknet,
    soft_kl,
)


def near(*values: float):
    return pytest.approx(list(values), rel=1e-5, abs=1e-6)


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def all_real(scores_QN: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(scores_QN, dtype=torch.bool)


def random_lists(seed: int, lists: int = 5, size: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, other scores and a mask with at least two real candidates a list."""
    generator = torch.Generator().manual_seed(seed)
    mask_QN = torch.rand(lists, size, generator=generator) < 0.6
    mask_QN[:, :2] = True
    draw = torch.randn(2, lists, size, generator=generator) * 3
    return draw[0], draw[1], mask_QN


def test_soft_kl_of_two_candidates_by_hand():
    # teacher logits 0 and log 3 are the probabilities 1/4 and 3/4; the student holds both alike
    found = soft_kl(tensor([1.0, 1.0]), tensor([0.0, log(3)]), all_real(tensor([0, 0])), temperature=1.0)
    assert found.tolist() == near(0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5))


def test_soft_kl_divides_both_sides_by_the_temperature():
    # at T = 2, logits 0 and 2 log 3 are 1/4 and 3/4 again, and 0 and 2 log 4 are 1/5 and 4/5
    found = soft_kl(tensor([0.0, 2 * log(4)]), tensor([0.0, 2 * log(3)]), all_real(tensor([0, 0])), temperature=2.0)
    assert found.tolist() == near(0.25 * log(0.25 / 0.2) + 0.75 * log(0.75 / 0.8))


def test_soft_kl_is_teacher_first():
    # teacher 0.9 and 0.1 against student 0.5 and 0.5; the other direction is 0.51 instead of 0.37
    found = soft_kl(tensor([0.0, 0.0]), tensor([log(9), 0.0]), all_real(tensor([0, 0])), temperature=1.0)
    assert found.tolist() == near(0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5))


def test_soft_kl_is_zero_where_both_agree_up_to_a_constant():
    scores_QN, _, mask_QN = random_lists(0)
    found = soft_kl(scores_QN + 5.0, scores_QN, mask_QN, temperature=0.7)
    assert found.tolist() == near(*[0.0] * 5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_kl_is_torchs_kl_of_the_real_candidates(temperature):
    student_QN, teacher_QN, mask_QN = random_lists(1)
    expected = [
        functional.kl_div(
            functional.log_softmax(student_N[mask_N] / temperature, dim=0),
            functional.softmax(teacher_N[mask_N] / temperature, dim=0),
            reduction="sum",
        ).item()
        for student_N, teacher_N, mask_N in zip(student_QN, teacher_QN, mask_QN, strict=True)
    ]
    assert soft_kl(student_QN, teacher_QN, mask_QN, temperature).tolist() == near(*expected)


def test_listwise_softmax_by_hand():
    # labels 2, 1, 0 have gains 3, 1, 0: targets 3/4, 1/4, 0; scores 0, log 2, log 5 are 1/8, 2/8, 5/8
    found = listwise_softmax(tensor([0.0, log(2), log(5)]), tensor([2.0, 1.0, 0.0]), all_real(tensor([0, 0, 0])))
    assert found.tolist() == near(-(0.75 * log(1 / 8) + 0.25 * log(2 / 8)))


def test_listwise_softmax_takes_graded_labels_as_gains():
    # a label of 0.5 has the gain 2^0.5 - 1
    gain = math.sqrt(2) - 1
    share = gain / (gain + 7)
    found = listwise_softmax(tensor([0.0, log(3)]), tensor([0.5, 3.0]), all_real(tensor([0, 0])))
    assert found.tolist() == near(-(share * log(1 / 4) + (1 - share) * log(3 / 4)))


def test_pointwise_bce_by_hand():
    # sigmoid(0) is 1/2, sigmoid(log 3) is 3/4
    found = pointwise_bce(
        tensor([0.0, log(3)], [log(3), 0.0]), tensor([1.0, 0.25], [0.0, 0.5]), all_real(torch.ones(2, 2))
    )
    first = (-log(0.5) - (0.25 * log(0.75) + 0.75 * log(0.25))) / 2
    second = (-log(1 - 0.75) - log(0.5)) / 2
    assert found.tolist() == near(first, second)


def test_pointwise_bce_counts_real_candidates_only():
    mask_QN = torch.tensor([[True, False, False]])
    found = pointwise_bce(tensor([2.0, 50.0, -50.0]), tensor([1.0, 0.0, 1.0]), mask_QN)
    assert found.tolist() == near(log(1 + exp(-2.0)))


def test_reverse_kl_is_student_first_and_symmetric_kl_the_mean():
    # teacher 0.9 and 0.1 against student 0.5 and 0.5
    scores, teacher = tensor([0.0, 0.0]), tensor([log(9), 0.0])
    forward = 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5)
    reverse = 0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1)
    assert soft_kl(scores, teacher, all_real(scores), 1.0, "reverse").tolist() == near(reverse)
    assert soft_kl(scores, teacher, all_real(scores), 1.0, "symmetric").tolist() == near((forward + reverse) / 2)


def test_soft_kl_over_classes_takes_pairs_for_lists():
    logits, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    expected = functional.kl_div(
        functional.log_softmax(logits / 3, dim=-1), functional.softmax(teacher / 3, dim=-1), reduction="none"
    ).sum(dim=-1)
    assert soft_kl(logits, teacher, all_real(logits), 3.0).tolist() == near(*expected.tolist())


def test_pointwise_mse_by_hand():
    mask_QN = torch.tensor([[True, True, False]])
    assert pointwise_mse(tensor([1.0, 3.0, 9.0]), tensor([0.0, 1.0, 0.0]), mask_QN).tolist() == near((1 + 4) / 2)


def test_class_cross_entropy_is_the_mean_over_real_candidates():
    logits_QNC = torch.tensor([[[0.0, log(3)], [log(4), 0.0], [50.0, -50.0]]])
    mask_QN = torch.tensor([[True, True, False]])
    found = class_cross_entropy(logits_QNC, tensor([1.0, 1.0, -7.0]), mask_QN)
    assert found.tolist() == near((-log(3 / 4) - log(1 / 5)) / 2)


def test_ranknet_by_hand():
    # two ordered pairs: score differences log 3 the right way, log 2 the wrong way; the equal labels count for nothing
    found = ranknet(tensor([log(3), 0.0, log(6)]), tensor([2.0, 1.0, 2.0]), all_real(tensor([0, 0, 0])))
    assert found.tolist() == near((log(1 + 1 / 3) + log(1 + 1 / 6)) / 2)


def test_lambda_loss_by_hand():
    # the better item (gain 3) ranks second behind one of gain 1; ideal 3 + 1/log2(3)
    found = lambda_loss(tensor([0.0, log(2)]), tensor([2.0, 1.0]), all_real(tensor([0, 0])))
    swap = (3 - 1) * (1 - 1 / math.log2(3)) / (3 + 1 / math.log2(3))
    assert found.tolist() == near(swap * log(1 + 2))


def test_margin_mse_is_the_mean_over_all_ordered_pairs():
    student_QN, teacher_QN, mask_QN = random_lists(6)
    expected = []
    for student_N, teacher_N, mask_N in zip(student_QN, teacher_QN, mask_QN, strict=True):
        s, t = student_N[mask_N].tolist(), teacher_N[mask_N].tolist()
        pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if i != j]
        expected.append(sum((s[i] - s[j] - t[i] + t[j]) ** 2 for i, j in pairs) / len(pairs))
    assert margin_mse(student_QN, teacher_QN, mask_QN).tolist() == near(*expected)


def test_margin_mse_of_a_list_of_one_is_zero():
    assert margin_mse(tensor([3.0, 1.0]), tensor([1.0, 9.0]), torch.tensor([[True, False]])).tolist() == [0.0]


def test_agreement_counts_ties_half_and_trusts_lists_without_judgements():
    mask_QN = torch.tensor([[True, True, True], [True, True, True], [True, False, False]])
    labels_QN = tensor([2.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0])
    # of the pairs (0,1), (0,2), (1,2): right, tied, wrong
    scores_QN = tensor([1.0, 0.0, 1.0], [3.0, 2.0, 1.0], [0.0, 1.0, 2.0])
    assert agreement(scores_QN, labels_QN, mask_QN).tolist() == near(0.5, 1.0, 1.0)


def test_the_logit_of_two_classes_is_the_difference_of_their_logits():
    assert expected_gain_logit(tensor([1.0, 3.0], [90.0, -90.0])).tolist() == near(2.0, -180.0)


def test_the_logit_of_grades_is_that_of_their_expected_gain():
    # probabilities 1/6, 2/6, 3/6 of the gains 0, 1, 3, of at most 3
    share = (2 / 6 * 1 + 3 / 6 * 3) / 3
    assert expected_gain_logit(tensor([0.0, log(2), log(3)])).tolist() == near(log(share / (1 - share)))


class Fixed(torch.nn.Module):
    """Stands where sentence-transformers expects its cross-encoder, and gives known scores."""

    num_labels, device = 1, torch.device("cpu")

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def preprocess(self, pairs, **_):
        return {}

    def forward(self, _features):
        return {"scores": self.scores.unsqueeze(-1)}


@pytest.mark.parametrize("seed", range(4))
def test_losses_over_pairs_are_those_of_sentence_transformers(seed):
    scores_QN, labels_QN, mask_QN = random_lists(seed)
    for scores_N, labels_N, mask_N in zip(scores_QN, labels_QN, mask_QN, strict=True):
        scores, labels = scores_N[mask_N], labels_N[mask_N].abs().floor()
        ordered = int((labels[:, None] > labels[None]).sum())
        inputs = ["query"], [["item"] * len(scores)]
        model: Any = Fixed(scores)
        lists = scores[None], labels[None], torch.ones(1, len(scores), dtype=torch.bool)
        peer = st_losses.LambdaLoss(
            model, st_losses.LambdaRankScheme(), k=None, reduction_log="natural", mini_batch_size=-1
        )
        expected = peer(list(inputs), [labels]).item() * ordered  # it takes the mean over pairs, we the sum
        assert lambda_loss(*lists).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        if ordered:
            peer = st_losses.RankNetLoss(model, k=None, reduction_log="natural", mini_batch_size=-1)
            expected = peer(list(inputs), [labels]).item()
            assert ranknet(*lists).item() == pytest.approx(expected, rel=1e-4)


LOSSES = {
    "soft_kl": lambda scores, other, mask: soft_kl(scores, other, mask, 2.0),
    "reverse_kl": lambda scores, other, mask: soft_kl(scores, other, mask, 2.0, "reverse"),
    "symmetric_kl": lambda scores, other, mask: soft_kl(scores, other, mask, 2.0, "symmetric"),
    "pointwise_mse": pointwise_mse,
    "class_cross_entropy": lambda scores, other, mask: class_cross_entropy(
        torch.stack([scores, scores**2, -scores], dim=-1), other.abs().floor().clamp(max=2), mask
    ),
    "ranknet": ranknet,
    "lambda_loss": lambda scores, other, mask: lambda_loss(scores, other.abs(), mask),
    "margin_mse": margin_mse,
    "listwise_softmax": lambda scores, other, mask: listwise_softmax(scores, other.abs(), mask),
    "pointwise_bce": lambda scores, other, mask: pointwise_bce(scores, other.sigmoid(), mask),
}


@pytest.mark.parametrize("name", LOSSES)
def test_padded_candidates_change_nothing(name):
    scores_QN, other_QN, mask_QN = random_lists(2)
    expected = LOSSES[name](scores_QN, other_QN, mask_QN)
    for filler in (0.0, 30.0, -30.0):
        found = LOSSES[name](scores_QN.where(mask_QN, filler), other_QN.where(mask_QN, filler), mask_QN)
        assert found.tolist() == near(*expected.tolist())
    padded = [functional.pad(tensor_QN, (2, 3), value=8.0) for tensor_QN in (scores_QN, other_QN)]
    found = LOSSES[name](*padded, functional.pad(mask_QN, (2, 3), value=False))
    assert found.tolist() == near(*expected.tolist())


@pytest.mark.parametrize("name", LOSSES)
def test_each_list_counts_for_itself(name):
    scores_QN, other_QN, mask_QN = random_lists(3)
    together = LOSSES[name](scores_QN, other_QN, mask_QN).tolist()
    alone = [LOSSES[name](scores_QN[[q]], other_QN[[q]], mask_QN[[q]]).item() for q in range(len(scores_QN))]
    assert together == near(*alone)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_right_and_zero_where_padded(name):
    scores_QN, other_QN, mask_QN = random_lists(4)
    scores_QN = scores_QN.double().requires_grad_()
    LOSSES[name](scores_QN, other_QN.double(), mask_QN).sum().backward()
    assert scores_QN.grad[~mask_QN].abs().max() == 0
    assert scores_QN.grad[mask_QN].abs().min() > 0
    torch.autograd.gradcheck(lambda s: LOSSES[name](s, other_QN.double(), mask_QN), scores_QN)


@pytest.mark.parametrize("name", LOSSES)
def test_a_list_without_candidates_is_zero_and_has_no_gradient(name):
    scores_QN = tensor([3.0, -2.0], [1.0, 2.0]).requires_grad_()
    mask_QN = torch.tensor([[False, False], [True, True]])
    found = LOSSES[name](scores_QN, tensor([1.0, 2.0], [1.0, 0.2]), mask_QN)
    assert found[0] == 0
    found.sum().backward()
    assert scores_QN.grad[0].tolist() == [0.0, 0.0]
    assert scores_QN.grad.isfinite().all()


def test_a_list_without_gain_is_zero_and_has_no_gradient():
    scores_QN = tensor([3.0, -2.0]).requires_grad_()
    found = listwise_softmax(scores_QN, tensor([0.0, 0.0]), all_real(scores_QN))
    found.sum().backward()
    assert found.tolist() == [0.0]
    assert scores_QN.grad.tolist() == [[0.0, 0.0]]


def test_large_scores_stay_finite():
    scores_QN, labels_QN = tensor([2e4, -2e4, 0.0]), tensor([0.0, 3.0, 1.0])
    mask_QN = all_real(scores_QN)
    assert soft_kl(scores_QN, -scores_QN, mask_QN, 1.0).isfinite().all()
    assert listwise_softmax(scores_QN, labels_QN, mask_QN).isfinite().all()
    assert pointwise_bce(scores_QN, labels_QN / 3, mask_QN).isfinite().all()
