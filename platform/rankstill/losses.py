"""Distillation and ranking losses: pure functions over candidate lists, one value a list.

Axes: Q queries (lists), N candidates (padded). `mask_QN` is true where a candidate is real. Each function returns
one loss per list, [Q]; a list on which a loss is undefined contributes zero, and padding has no gradient.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Direction = Literal["forward", "reverse", "symmetric"]
FAR_BELOW = -1e9
"""Stands for minus infinity in padded places, where 0 * infinity would be NaN."""


def soft_kl(
    student_QN: Tensor, teacher_QN: Tensor, mask_QN: Tensor, temperature: float, direction: Direction = "forward"
) -> Tensor:
    """KL( p || q ) over the candidates of each list, in nats, with p = softmax(t/T) and q = softmax(s/T).

    "forward" is teacher-first, Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network";
    "reverse" is KL( q || p ), which lets the student leave out what it can't fit, Gu et al. 2024, "MiniLLM";
    "symmetric" is the mean of both, half of Jeffreys' divergence. The factor T^2 that keeps gradients comparable across
    temperatures is the caller's. With pairs in place of lists and classes in place of candidates, [P, C] and an
    all-true mask, it is the divergence over classes.
    """
    student_logs = _masked_log_softmax(student_QN / temperature, mask_QN)
    teacher_logs = _masked_log_softmax(teacher_QN / temperature, mask_QN)
    difference = teacher_logs - student_logs
    terms = {
        "forward": lambda: teacher_logs.exp() * difference,
        "reverse": lambda: -student_logs.exp() * difference,
        "symmetric": lambda: 0.5 * (teacher_logs.exp() - student_logs.exp()) * difference,
    }[direction]()
    return _masked_sum(terms, mask_QN)


def listwise_softmax(scores_QN: Tensor, labels_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Cross-entropy between gains and softmax scores: -sum_i p_i log softmax(s)_i with p_i = g_i / sum_j g_j.

    The gain is g = 2^label - 1, as in nDCG. ListNet's top-one form, Cao et al. 2007, "Learning to Rank: From
    Pairwise Approach to Listwise Approach". A list without gain is undefined.
    """
    gains = _gains(labels_QN, mask_QN)
    targets = gains / gains.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return softmax_cross_entropy(scores_QN, targets, mask_QN)


def softmax_cross_entropy(scores_QN: Tensor, targets_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """-sum_i p_i log softmax(s)_i for targets p.

    Where p are clicks weighted by 1 / propensity, it is the unbiased softmax loss of Ai, Bi, Luo, Guo and Croft,
    "Unbiased Learning to Rank with Unbiased Propensity Estimation", 2018.
    """
    return -_masked_sum(targets_QN * _masked_log_softmax(scores_QN, mask_QN), mask_QN)


def pointwise_bce(scores_QN: Tensor, targets_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Mean binary cross-entropy of sigmoid(score) against a target in [0, 1], over each list's real candidates."""
    terms = functional.binary_cross_entropy_with_logits(scores_QN, targets_QN, reduction="none")
    return masked_mean(terms, mask_QN)


def pointwise_mse(scores_QN: Tensor, targets_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Mean of (score - target)^2 over each list's real candidates."""
    return masked_mean((scores_QN - targets_QN).square(), mask_QN)


def class_cross_entropy(logits_QNC: Tensor, classes_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Mean of -log softmax(logits)_class over each list's real candidates.

    Labels are graded classes, whole numbers in [0, C), as in Li, Burges and Wu 2007, "McRank".
    """
    logs_QNC = functional.log_softmax(logits_QNC, dim=-1)
    chosen = classes_QN.long().masked_fill(~mask_QN, 0).unsqueeze(-1)
    return masked_mean(-logs_QNC.gather(-1, chosen).squeeze(-1), mask_QN)


def ranknet(scores_QN: Tensor, labels_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Mean of log(1 + exp(s_j - s_i)) over the pairs of candidates with label_i > label_j.

    Burges et al. 2005, "Learning to Rank using Gradient Descent". A list whose labels are all equal is undefined.
    """
    better_QNN = _better(labels_QN, mask_QN)
    terms_QNN = functional.softplus(-_differences(scores_QN, mask_QN))
    return masked_mean(terms_QNN.flatten(1), better_QNN.flatten(1))


def lambda_loss(scores_QN: Tensor, labels_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Sum over label_i > label_j of |change of nDCG if i and j swapped ranks| * log(1 + exp(s_j - s_i)).

    Ranks are those by score, and weights have no gradient. LambdaRank (Burges 2010, "From RankNet to LambdaRank to
    LambdaMART") as a loss, Wang et al. 2018, "The LambdaLoss Framework for Ranking Metric Optimization". A list whose
    labels are all equal is undefined.
    """
    scores = scores_QN.detach().masked_fill(~mask_QN, FAR_BELOW)
    ranks_QN = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + 1
    gains_QN = _gains(labels_QN, mask_QN)
    places_N = torch.arange(1, gains_QN.shape[-1] + 1, device=gains_QN.device)
    ideal_Q = (gains_QN.sort(dim=-1, descending=True).values / torch.log2(places_N + 1.0)).sum(dim=-1)
    discounts_QN = 1.0 / torch.log2(ranks_QN + 1.0)
    swaps_QNN = _all_differences(gains_QN).abs() * _all_differences(discounts_QN).abs()
    terms_QNN = swaps_QNN * functional.softplus(-_differences(scores_QN, mask_QN))
    total_Q = _masked_sum(terms_QNN.flatten(1), _better(labels_QN, mask_QN).flatten(1))
    return total_Q / ideal_Q.clamp_min(1e-12)


def margin_mse(student_QN: Tensor, teacher_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Mean of ((s_i - s_j) - (t_i - t_j))^2 over all pairs i != j of real candidates.

    Hofstaetter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation",
    over all pairs of a list. Computed as twice the sample variance of s - t, which it equals. A list of one is
    undefined.
    """
    counts_Q = mask_QN.sum(dim=-1)
    gaps_QN = (student_QN - teacher_QN).masked_fill(~mask_QN, 0.0)
    means_Q1 = (gaps_QN.sum(dim=-1) / counts_Q.clamp_min(1)).unsqueeze(-1)
    return 2.0 * _masked_sum((gaps_QN - means_Q1).square(), mask_QN) / (counts_Q - 1).clamp_min(1)


def agreement(scores_QN: Tensor, labels_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Share of the pairs with different labels that the scores order rightly, ties counted half; 1 without pairs.

    Not a loss: how far a teacher can be trusted on each list, [Q] in [0, 1].
    """
    better_QNN = _better(labels_QN, mask_QN)
    right_QNN = 0.5 + 0.5 * _all_differences(scores_QN.masked_fill(~mask_QN, 0.0)).sign()
    share_Q = masked_mean(right_QNN.flatten(1), better_QNN.flatten(1))
    return share_Q.where(better_QNN.flatten(1).any(dim=-1), torch.ones_like(share_Q))


def expected_gain_logit(logits_PC: Tensor) -> Tensor:
    """One score a pair, [P], from logits of C graded classes, worst first: log(e / (1 - e)) of the expected gain e.

    e = sum_c softmax(logits)_c * (2^c - 1) / (2^(C-1) - 1), in (0, 1). Ranks as McRank's expected relevance (Li, Burges
    and Wu 2007) with nDCG's gains; for two classes it is the difference of their logits.
    """
    gains_C = torch.exp2(torch.arange(logits_PC.shape[-1], device=logits_PC.device, dtype=logits_PC.dtype)) - 1.0
    shares_C = gains_C / gains_C[-1]
    logs_PC = functional.log_softmax(logits_PC, dim=-1)
    gained = torch.logsumexp(logs_PC[:, 1:] + shares_C[1:].log(), dim=-1)
    missed = torch.logsumexp(logs_PC[:, :-1] + torch.log1p(-shares_C[:-1]), dim=-1)
    return gained - missed


def _gains(labels_QN: Tensor, mask_QN: Tensor) -> Tensor:
    return (torch.exp2(labels_QN) - 1.0).masked_fill(~mask_QN, 0.0)


def _better(labels_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Where candidate i, real, has a larger label than candidate j, real, [Q, N, N]."""
    return (labels_QN.unsqueeze(-1) > labels_QN.unsqueeze(-2)) & mask_QN.unsqueeze(-1) & mask_QN.unsqueeze(-2)


def _differences(scores_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Differences s_i - s_j of real candidates, [Q, N, N]."""
    return _all_differences(scores_QN.masked_fill(~mask_QN, 0.0))


def _all_differences(values_QN: Tensor) -> Tensor:
    return values_QN.unsqueeze(-1) - values_QN.unsqueeze(-2)


def _masked_log_softmax(scores_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Log-softmax over real candidates; padded places hold a large negative number, so that 0 * it is 0."""
    return functional.log_softmax(scores_QN.masked_fill(~mask_QN, FAR_BELOW), dim=-1)


def _masked_sum(terms_QN: Tensor, mask_QN: Tensor) -> Tensor:
    return terms_QN.masked_fill(~mask_QN, 0.0).sum(dim=-1)


def masked_mean(terms_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Mean over each list's candidates in `mask_QN`, [Q]; zero where there are none."""
    return _masked_sum(terms_QN, mask_QN) / mask_QN.sum(dim=-1).clamp_min(1)
