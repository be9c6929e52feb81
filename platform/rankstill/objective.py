"""Weighs the loss terms as the config says."""

from dataclasses import dataclass

from torch import Tensor

from rankstill.config import Distill
from rankstill.losses import listwise_softmax, pointwise_bce, soft_kl


@dataclass(frozen=True)
class Objective:
    """loss = alpha * T^2 * KL(teacher || student) + (1 - alpha) * listwise + pointwise * BCE, per list.

    BCE's target is sigmoid(teacher score) where there is one, and label / label_max elsewhere; `label_max` is the label
    that counts as fully relevant.
    """

    alpha: float
    temperature: float
    pointwise: float
    label_max: float

    @classmethod
    def distilling(cls, distill: Distill, label_max: float) -> "Objective":
        """The student's objective."""
        return cls(distill.alpha, distill.temperature, distill.pointwise, label_max)

    @classmethod
    def judgements_only(cls, label_max: float) -> "Objective":
        """The teacher's objective: hard labels alone."""
        return cls(alpha=0.0, temperature=1.0, pointwise=1.0, label_max=label_max)

    def __call__(self, scores_QN: Tensor, labels_QN: Tensor, teacher_QN: Tensor, mask_QN: Tensor) -> Tensor:
        """Loss of each list, [Q]. Unjudged labels and absent teacher scores are NaN."""
        judged_QN = mask_QN & ~labels_QN.isnan()
        labels_QN = labels_QN.nan_to_num(0.0)
        labelled_QN = mask_QN & ~teacher_QN.isnan()
        teacher_QN = teacher_QN.nan_to_num(0.0)
        loss_Q = (1.0 - self.alpha) * listwise_softmax(scores_QN, labels_QN, judged_QN)
        if self.pointwise:
            graded_QN = (labels_QN / self.label_max).clamp(0.0, 1.0)
            targets_QN = teacher_QN.sigmoid().where(labelled_QN, graded_QN)
            loss_Q = loss_Q + self.pointwise * pointwise_bce(scores_QN, targets_QN, judged_QN | labelled_QN)
        if self.alpha:
            soft_Q = soft_kl(scores_QN, teacher_QN, labelled_QN, self.temperature)
            loss_Q = loss_Q + self.alpha * self.temperature**2 * soft_Q
        return loss_Q
