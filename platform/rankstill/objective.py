"""Weighs the loss terms as the config says."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankstill.errors import ConfigError
from rankstill.losses import (
    agreement,
    class_cross_entropy,
    lambda_loss,
    listwise_softmax,
    margin_mse,
    masked_mean,
    pointwise_bce,
    pointwise_mse,
    ranknet,
    soft_kl,
    softmax_cross_entropy,
)
from rankstill.model_config import Distill, Schedule

RANKING: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "listwise": listwise_softmax,
    "ranknet": ranknet,
    "lambda": lambda_loss,
}
"""Hard losses that take labels as they are."""


@dataclass(frozen=True)
class Objective:
    """loss = alpha * T^2 * KL + (1 - alpha) * hard + pointwise * BCE + margin * MarginMSE, per list; `clicking` and
    `grading` are further terms.

    The target of `pointwise` is sigmoid(teacher score) where there is one, and label / label_max elsewhere. Pointwise
    hard losses compare with the judgements alone: "bce" with label / label_max, "mse" with the label. `label_max` is
    the label that counts as fully relevant.
    """

    distill: Distill
    label_max: float

    @classmethod
    def judgements_only(cls, label_max: float) -> "Objective":
        """The teacher's objective: hard labels alone."""
        return cls(Distill(alpha=Schedule(start=0.0, end=0.0), pointwise=1.0), label_max)

    def __call__(
        self, scores_QN: Tensor, labels_QN: Tensor, teacher_QN: Tensor, mask_QN: Tensor, progress: float = 0.0
    ) -> Tensor:
        """Loss of each list, [Q]. Unjudged labels and absent teacher scores are NaN.

        `progress`, in [0, 1], is the share of the training that is done.
        """
        judged_QN = mask_QN & ~labels_QN.isnan()
        labels_QN = labels_QN.nan_to_num(0.0)
        labelled_QN = mask_QN & ~teacher_QN.isnan()
        teacher_QN = teacher_QN.nan_to_num(0.0)
        graded_QN = (labels_QN / self.label_max).clamp(0.0, 1.0)
        wanted = self.distill
        alpha, temperature = wanted.alpha.at(progress), wanted.temperature.at(progress)
        alpha_Q = torch.full_like(scores_QN[:, 0], alpha)
        if wanted.adaptive:
            alpha_Q = alpha_Q * agreement(teacher_QN, labels_QN, judged_QN & labelled_QN)
        loss_Q = torch.zeros_like(alpha_Q)
        if alpha < 1.0 or wanted.adaptive:
            loss_Q = loss_Q + (1.0 - alpha_Q) * self._hard(scores_QN, labels_QN, graded_QN, judged_QN)
        if alpha:
            soft_Q = soft_kl(scores_QN, teacher_QN, labelled_QN, temperature, wanted.kl)
            loss_Q = loss_Q + alpha_Q * temperature**2 * soft_Q
        if wanted.pointwise:
            targets_QN = teacher_QN.sigmoid().where(labelled_QN, graded_QN)
            loss_Q = loss_Q + wanted.pointwise * pointwise_bce(scores_QN, targets_QN, judged_QN | labelled_QN)
        if wanted.margin:
            loss_Q = loss_Q + wanted.margin * margin_mse(scores_QN, teacher_QN, labelled_QN)
        return loss_Q

    def clicking(self, scores_QN: Tensor, clicks_QN: Tensor, mask_QN: Tensor) -> Tensor:
        """Loss of each list against shares of its clicks (`click_targets`), [Q]; NaN where an item wasn't shown."""
        return self.distill.clicks * softmax_cross_entropy(scores_QN, clicks_QN.nan_to_num(0.0), mask_QN)

    def grading(
        self, logits_QNC: Tensor, labels_QN: Tensor, teacher_QNC: Tensor, mask_QN: Tensor, progress: float = 0.0
    ) -> Tensor:
        """Loss of the second head, which tells C grades apart, for each list, [Q].

        weight * (alpha * T^2 * KL over grades + (1 - alpha) * cross-entropy), means over the candidates that have
        logits of the teacher, or a judgement. A judgement's grade is label / label_max * (C - 1), rounded.

        Raises:
            ConfigError: the teacher tells another number of grades apart.
        """
        wanted, grades = self.distill.grades, logits_QNC.shape[-1]
        alpha, temperature = wanted.alpha.at(progress), wanted.temperature.at(progress)
        loss_Q = torch.zeros_like(logits_QNC[:, 0, 0])
        if alpha < 1.0:
            judged_QN = mask_QN & ~labels_QN.isnan()
            classes_QN = (labels_QN.nan_to_num(0.0) / self.label_max * (grades - 1)).round().clamp(0, grades - 1)
            loss_Q = loss_Q + (1.0 - alpha) * class_cross_entropy(logits_QNC, classes_QN, judged_QN)
        if alpha:
            if teacher_QNC.shape[-1] != grades:
                raise ConfigError(
                    f"student.grades is {grades}, but the teacher's labels have logits of {teacher_QNC.shape[-1]}"
                    " grades; give that number, or set distill.grades.alpha to 0"
                )
            graded_QN = mask_QN & ~teacher_QNC.isnan().any(dim=-1)
            every = torch.ones_like(logits_QNC, dtype=torch.bool).flatten(0, 1)
            pairs = logits_QNC.flatten(0, 1), teacher_QNC.nan_to_num(0.0).flatten(0, 1)
            terms_QN = soft_kl(*pairs, every, temperature, self.distill.kl).view(mask_QN.shape)
            loss_Q = loss_Q + alpha * temperature**2 * masked_mean(terms_QN, graded_QN)
        return wanted.weight * loss_Q

    def _hard(self, scores_QN: Tensor, labels_QN: Tensor, graded_QN: Tensor, judged_QN: Tensor) -> Tensor:
        if self.distill.hard == "bce":
            return pointwise_bce(scores_QN, graded_QN, judged_QN)
        if self.distill.hard == "mse":
            return pointwise_mse(scores_QN, labels_QN, judged_QN)
        return RANKING[self.distill.hard](scores_QN, labels_QN, judged_QN)
