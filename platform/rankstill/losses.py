"""Distillation and ranking losses: pure functions over candidate lists, one value a list.

Axes: Q queries (lists), N candidates (padded). `mask_QN` is true where a candidate is real. Each function returns
one loss per list, [Q]; a list on which a loss is undefined contributes zero.
"""

import torch
from torch import Tensor
from torch.nn import functional


def soft_kl(student_QN: Tensor, teacher_QN: Tensor, mask_QN: Tensor, temperature: float) -> Tensor:
    """KL( softmax(t/T) || softmax(s/T) ) over the candidates of each list, in nats.

    Forward (teacher-first) KL of softened outputs, Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a
    Neural Network". The factor T^2 that keeps gradients comparable across temperatures is the caller's.
    """
    student_logs = _masked_log_softmax(student_QN / temperature, mask_QN)
    teacher_logs = _masked_log_softmax(teacher_QN / temperature, mask_QN)
    terms = teacher_logs.exp() * (teacher_logs - student_logs)
    return terms.masked_fill(~mask_QN, 0.0).sum(dim=-1)


def listwise_softmax(scores_QN: Tensor, labels_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Cross-entropy between gains and softmax scores: -sum_i p_i log softmax(s)_i with p_i = g_i / sum_j g_j.

    The gain is g = 2^label - 1, as in nDCG. ListNet's top-one form, Cao et al. 2007, "Learning to Rank: From
    Pairwise Approach to Listwise Approach". A list without gain is undefined.
    """
    gains = (torch.exp2(labels_QN) - 1.0).masked_fill(~mask_QN, 0.0)
    targets = gains / gains.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    logs = _masked_log_softmax(scores_QN, mask_QN)
    return -(targets * logs.masked_fill(~mask_QN, 0.0)).sum(dim=-1)


def pointwise_bce(scores_QN: Tensor, targets_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Mean binary cross-entropy of sigmoid(score) against a target in [0, 1], over each list's real candidates."""
    terms = functional.binary_cross_entropy_with_logits(scores_QN, targets_QN, reduction="none")
    counts = mask_QN.sum(dim=-1).clamp_min(1)
    return terms.masked_fill(~mask_QN, 0.0).sum(dim=-1) / counts


def _masked_log_softmax(scores_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Log-softmax over real candidates; padded places hold a large negative number, so that 0 * it is 0."""
    return functional.log_softmax(scores_QN.masked_fill(~mask_QN, -1e9), dim=-1)
