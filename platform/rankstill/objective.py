"""Weighs the loss terms as the config says."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankstill.losses import (
    agreement,
    lambda_loss,
    listwise_softmax,
    margin_mse,
    pointwise_bce,
    pointwise_mse,
    ranknet,
    soft_kl,
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
    """loss = alpha * T^2 * KL + (1 - alpha) * hard + pointwise * BCE + margin * MarginMSE, per list.

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

    def _hard(self, scores_QN: Tensor, labels_QN: Tensor, graded_QN: Tensor, judged_QN: Tensor) -> Tensor:
        if self.distill.hard == "bce":
            return pointwise_bce(scores_QN, graded_QN, judged_QN)
        if self.distill.hard == "mse":
            return pointwise_mse(scores_QN, labels_QN, judged_QN)
        return RANKING[self.distill.hard](scores_QN, labels_QN, judged_QN)
