from math import log, log2
from typing import Any

import pytest
import torch

from rankstill.errors import ConfigError
from rankstill.model_config import Distill
from rankstill.objective import Objective

NAN = float("nan")
SCORES = torch.tensor([[0.0, log(3)]])
LABELS = torch.tensor([[3.0, 0.0]])
TEACHER = torch.tensor([[0.0, 0.0]])
NO_TEACHER = torch.tensor([[NAN, NAN]])
REAL = torch.tensor([[True, True]])
# By hand, for SCORES (probabilities 1/4 and 3/4; sigmoids 1/2 and 3/4) at temperature 1:
LISTWISE = -log(1 / 4)
BCE = (-log(1 / 2) - log(1 / 4)) / 2
SOFT_BCE = (-log(1 / 2) - (log(3 / 4) + log(1 / 4)) / 2) / 2
KL = 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75)


def distill(**settings: Any) -> Distill:
    return Distill.model_validate(settings)


def near(value: float):
    return pytest.approx(value, rel=1e-5)


def test_the_teachers_objective_is_listwise_plus_bce():
    objective = Objective.judgements_only(label_max=3.0)
    assert objective(SCORES, LABELS, NO_TEACHER, REAL).tolist() == [near(LISTWISE + BCE)]


@pytest.mark.parametrize(("alpha", "pointwise"), [(0.0, 0.0), (1.0, 0.0), (0.7, 0.0), (0.7, 0.5), (0.2, 2.0)])
def test_terms_are_weighed_as_configured(alpha, pointwise):
    objective = Objective(distill(alpha=alpha, pointwise=pointwise, temperature=1.0), label_max=3.0)
    expected = alpha * KL + (1 - alpha) * LISTWISE + pointwise * SOFT_BCE
    assert objective(SCORES, LABELS, TEACHER, REAL).tolist() == [near(expected)]


def test_the_soft_term_is_multiplied_by_the_square_of_the_temperature():
    # at T = 2 the same probabilities need doubled scores
    objective = Objective(distill(alpha=0.6, pointwise=0.0, temperature=2.0), label_max=3.0)
    hard = -log(1 / 10)  # of scores 0 and 2 log 3, at no temperature: 1/10 and 9/10
    assert objective(2 * SCORES, LABELS, TEACHER, REAL).tolist() == [near(0.6 * 4 * KL + 0.4 * hard)]


def test_the_target_of_bce_is_the_teachers_probability():
    objective = Objective(distill(alpha=0.0, temperature=1.0, pointwise=1.0), label_max=4.0)
    score, teacher, one = torch.tensor([[log(3)]]), torch.tensor([[-log(4)]]), torch.tensor([[True]])
    expected = near(-(0.2 * log(3 / 4) + 0.8 * log(1 / 4)))
    assert objective(score, torch.tensor([[NAN]]), teacher, one).tolist() == [expected]


def test_without_a_teacher_the_target_of_bce_is_the_share_of_the_largest_label():
    objective = Objective(distill(alpha=1.0, temperature=1.0, pointwise=1.0), label_max=4.0)
    loss = objective(torch.tensor([[log(3)]]), torch.tensor([[1.0]]), torch.tensor([[NAN]]), torch.tensor([[True]]))
    assert loss.tolist() == [near(-(0.25 * log(3 / 4) + 0.75 * log(1 / 4)))]
    beyond = objective(torch.tensor([[log(3)]]), torch.tensor([[9.0]]), torch.tensor([[NAN]]), torch.tensor([[True]]))
    assert beyond.tolist() == [near(-log(3 / 4))], "a label over the largest counts as the largest"


def test_unjudged_candidates_count_for_the_soft_part_alone():
    scores = torch.tensor([[0.0, log(3), log(4)]])
    mask = torch.tensor([[True, True, True]])
    labels = torch.tensor([[3.0, 0.0, NAN]])
    hard_only = Objective(distill(alpha=0.0, temperature=1.0, pointwise=1.0), label_max=3.0)
    assert hard_only(scores, labels, torch.full((1, 3), NAN), mask).tolist() == [near(LISTWISE + BCE)]
    soft_only = Objective(distill(alpha=1.0, temperature=1.0, pointwise=0.0), label_max=3.0)
    teacher = torch.tensor([[0.0, 0.0, log(2)]])  # 1/4, 1/4, 2/4 against 1/8, 3/8, 4/8
    expected = 0.25 * log(2) + 0.25 * log(2 / 3) + 0.5 * log(1)
    assert soft_only(scores, labels, teacher, mask).tolist() == [near(expected)]


def test_candidates_without_a_teacher_score_count_for_the_hard_part_alone():
    scores = torch.tensor([[0.0, log(3), 7.0]])
    teacher = torch.tensor([[0.0, 0.0, NAN]])
    soft_only = Objective(distill(alpha=1.0, temperature=1.0, pointwise=0.0), label_max=3.0)
    loss = soft_only(scores, torch.tensor([[3.0, 0.0, 1.0]]), teacher, torch.tensor([[True, True, True]]))
    assert loss.tolist() == [near(KL)]


def test_a_list_without_judgements_or_teacher_scores_costs_nothing():
    objective = Objective(distill(alpha=0.5, temperature=1.0, pointwise=1.0), label_max=3.0)
    scores = SCORES.clone().requires_grad_()
    loss = objective(scores, torch.full((1, 2), NAN), torch.full((1, 2), NAN), REAL)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert scores.grad.tolist() == [[0.0, 0.0]]


def test_padding_changes_nothing_and_gets_no_gradient():
    objective = Objective(distill(alpha=0.5, temperature=2.0, pointwise=1.0), label_max=3.0)
    expected = objective(SCORES, LABELS, TEACHER, REAL)
    scores = torch.tensor([[0.0, 9.0, log(3)]]).requires_grad_()
    loss = objective(
        scores, torch.tensor([[3.0, NAN, 0.0]]), torch.tensor([[0.0, NAN, 0.0]]), torch.tensor([[True, False, True]])
    )
    assert loss.tolist() == [near(expected.item())]
    loss.sum().backward()
    assert scores.grad[0, 1] == 0
    assert scores.grad.isfinite().all()


def test_gradients_keep_their_size_across_temperatures():
    # The gradient of T^2 KL tends to that of a squared difference as T grows, instead of vanishing as 1/T^2.
    sizes = []
    for temperature in (10.0, 100.0):
        scores = SCORES.double().clone().requires_grad_()
        Objective(distill(temperature=temperature, pointwise=0.0), 3.0)(
            scores, LABELS, TEACHER.double(), REAL
        ).sum().backward()
        sizes.append(scores.grad.abs().max().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    assert sizes[1] == pytest.approx(log(3) / 4, rel=0.01)


@pytest.mark.parametrize(
    ("hard", "expected"),
    [
        ("listwise", LISTWISE),
        ("bce", BCE),
        ("mse", (9 + log(3) ** 2) / 2),
        ("ranknet", log(1 + 3)),
        ("lambda", (1 - 1 / log2(3)) * log(1 + 3)),
    ],
)
def test_the_hard_loss_is_the_configured_one(hard, expected):
    objective = Objective(distill(alpha=0.0, pointwise=0.0, hard=hard), label_max=3.0)
    assert objective(SCORES, LABELS, TEACHER, REAL).tolist() == [near(expected)]


def test_the_direction_of_the_divergence_is_the_configured_one():
    reverse = 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5)
    objective = Objective(distill(pointwise=0.0, kl="reverse"), label_max=3.0)
    assert objective(SCORES, LABELS, TEACHER, REAL).tolist() == [near(reverse)]


def test_margins_are_the_teachers_where_it_scored():
    objective = Objective(distill(alpha=0.0, pointwise=0.0, margin=2.0), label_max=3.0)
    scores, mask = torch.tensor([[0.0, log(3), 50.0]]), torch.tensor([[True, True, True]])
    teacher = torch.tensor([[1.0, 0.0, NAN]])
    loss = objective(scores, torch.full((1, 3), NAN), teacher, mask)
    assert loss.tolist() == [near(2 * (log(3) + 1) ** 2)]


def test_alpha_and_temperature_follow_their_schedules():
    settings = {"alpha": {"start": 1.0, "end": 0.0}, "temperature": {"start": 1.0, "end": 3.0, "shape": "cosine"}}
    scheduled = Objective(distill(**settings, pointwise=0.0), label_max=3.0)
    for progress, alpha, temperature in ((0.0, 1.0, 1.0), (0.5, 0.5, 2.0), (1 / 3, 2 / 3, 1.5), (1.0, 0.0, 3.0)):
        fixed = Objective(distill(alpha=alpha, temperature=temperature, pointwise=0.0), label_max=3.0)
        expected = fixed(SCORES, LABELS, TEACHER, REAL)
        assert scheduled(SCORES, LABELS, TEACHER, REAL, progress).tolist() == [near(expected.item())]


def test_a_list_on_which_the_teacher_is_wrong_leans_on_the_judgements():
    objective = Objective(distill(alpha=0.8, adaptive=True, pointwise=0.0), label_max=3.0)
    scores, labels = SCORES.repeat(3, 1), torch.tensor([[3.0, 0.0], [3.0, 0.0], [NAN, NAN]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    right, wrong, unjudged = objective(scores, labels, teacher, REAL.repeat(3, 1)).tolist()
    soft = Objective(distill(pointwise=0.0), label_max=3.0)(scores, labels, teacher, REAL.repeat(3, 1)).tolist()
    assert right == near(0.8 * soft[0] + 0.2 * LISTWISE)
    assert wrong == near(LISTWISE)
    assert unjudged == near(0.8 * soft[2])


LOGITS = torch.tensor([[[0.0, log(3), 0.0], [0.0, 0.0, log(2)]]])  # 1/5 3/5 1/5 and 1/4 1/4 1/2
GRADES_OF_TEACHER = torch.zeros(1, 2, 3)


def test_the_second_head_learns_judged_grades_and_the_teachers():
    labels = torch.tensor([[1.5, NAN]])  # the middle one of three grades up to 3
    hard = -log(3 / 5)
    first, second = (sum(-log(3 * share) / 3 for share in shares) for shares in ((0.2, 0.6, 0.2), (0.25, 0.25, 0.5)))

    def loss(teacher: torch.Tensor, **settings: Any) -> list[float]:
        return Objective(distill(grades=settings), 3.0).grading(LOGITS, labels, teacher, REAL).tolist()

    assert loss(GRADES_OF_TEACHER, weight=2.0) == [near(2 * hard)]
    assert loss(GRADES_OF_TEACHER, weight=1.0, alpha=1.0) == [near((first + second) / 2)]
    assert loss(GRADES_OF_TEACHER, weight=0.5, alpha=0.25) == [near(0.5 * (0.25 * (first + second) / 2 + 0.75 * hard))]
    absent = GRADES_OF_TEACHER.clone()
    absent[0, 1] = NAN
    assert loss(absent, weight=1.0, alpha=1.0) == [near(first)]


def test_the_second_head_has_a_temperature_of_its_own():
    settings = {"temperature": 5.0, "grades": {"weight": 1.0, "alpha": 1.0, "temperature": 2.0}}
    wide = Objective(distill(**settings), 3.0).grading(2 * LOGITS, LABELS, GRADES_OF_TEACHER, REAL)
    settings["grades"]["temperature"] = 1.0
    narrow = Objective(distill(**settings), 3.0).grading(LOGITS, LABELS, GRADES_OF_TEACHER, REAL)
    assert wide.tolist() == pytest.approx((4 * narrow).tolist())


def test_a_teacher_of_other_grades_is_named():
    objective = Objective(distill(grades={"alpha": 0.5}), 3.0)
    with pytest.raises(ConfigError, match=r"student\.grades is 3, .* logits of 2 grades; give that number"):
        objective.grading(LOGITS, LABELS, torch.zeros(1, 2, 2), REAL)


def test_clicks_pull_scores_where_there_are_any():
    objective = Objective(distill(clicks=2.0), label_max=3.0)
    clicks = torch.tensor([[0.5, NAN]])
    assert objective.clicking(SCORES, clicks, REAL).tolist() == [near(2.0 * 0.5 * LISTWISE)]
    assert objective.clicking(SCORES, torch.tensor([[NAN, NAN]]), REAL).tolist() == [0.0]
    masked = objective.clicking(SCORES, torch.tensor([[0.5, 0.5]]), torch.tensor([[True, False]]))
    assert masked.tolist() == [0.0], "of one candidate there is nothing to choose"
