"""Losses on what models hold inside: hidden states, attention maps, and relations within a batch.

Axes: P pairs, L tokens (padded), D width of the student, E width of the teacher. `mask_PL` is true where a token is
real. The first three return one loss a pair, [P]; relations between pairs (`rkd_*`) return a scalar. The teacher's side
has no gradient.
"""

import torch
from torch import Tensor
from torch.nn import functional


def hidden_mse(student_PLE: Tensor, teacher_PLE: Tensor, mask_PL: Tensor) -> Tensor:
    """Mean squared difference of hidden states, over real tokens and dimensions, [P].

    The student's were projected to the teacher's width, as in Jiao et al. 2020, "TinyBERT".
    """
    return _token_mean((student_PLE - teacher_PLE.detach()).square().mean(dim=-1), mask_PL)


def hidden_cosine(student_PLE: Tensor, teacher_PLE: Tensor, mask_PL: Tensor) -> Tensor:
    """Mean of 1 - cosine of hidden states over real tokens, [P]; Sanh et al. 2019, "DistilBERT"."""
    return _token_mean(1.0 - functional.cosine_similarity(student_PLE, teacher_PLE.detach(), dim=-1), mask_PL)


def attention_kl(student_PLL: Tensor, teacher_PLL: Tensor, mask_PL: Tensor) -> Tensor:
    """Mean over real tokens of KL( teacher's attention || student's ), [P].

    Maps are probabilities, averaged over heads, so that the numbers of heads may differ. Attention transfer as in Wang
    et al. 2020, "MiniLM".
    """
    teacher_PLL = teacher_PLL.detach()
    terms_PLL = teacher_PLL * (teacher_PLL.clamp_min(1e-9).log() - student_PLL.clamp_min(1e-9).log())
    return _token_mean(terms_PLL.sum(dim=-1), mask_PL)


def relation_kl(student_PLD: Tensor, teacher_PLE: Tensor, mask_PL: Tensor, heads: int) -> Tensor:
    """Mean over heads and real tokens of KL between relations softmax( x x^T / sqrt(width of a head) ), [P].

    `x` are queries, keys or values of one layer, cut anew into as many relation heads on both sides, so that widths may
    differ; Wang et al. 2021, "MiniLMv2". Both widths must be multiples of `heads`.
    """
    student_logs = _relations(student_PLD, mask_PL, heads)
    teacher_logs = _relations(teacher_PLE.detach(), mask_PL, heads)
    terms_PHLL = teacher_logs.exp() * (teacher_logs - student_logs)
    return _token_mean(terms_PHLL.sum(dim=-1).mean(dim=1), mask_PL)


def rkd_distance(student_PD: Tensor, teacher_PE: Tensor) -> Tensor:
    """Huber loss between the distances of all pairs of vectors, each side's in units of its mean, scalar.

    Park et al. 2019, "Relational Knowledge Distillation". Fewer than two vectors have no distances: zero.
    """
    if len(student_PD) < 2:
        return student_PD.sum() * 0.0
    return functional.smooth_l1_loss(_distances(student_PD), _distances(teacher_PE.detach()))


def rkd_angle(student_PD: Tensor, teacher_PE: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles at each vector between any two others, scalar.

    Park et al. 2019, as above. Fewer than three vectors have no angles: zero.
    """
    count = len(student_PD)
    if count < 3:
        return student_PD.sum() * 0.0
    one, corner, other = torch.meshgrid(*[torch.arange(count, device=student_PD.device)] * 3, indexing="ij")
    distinct = (one != corner) & (corner != other) & (one != other)
    return functional.smooth_l1_loss(_angles(student_PD)[distinct], _angles(teacher_PE.detach())[distinct])


def _token_mean(terms_PL: Tensor, mask_PL: Tensor) -> Tensor:
    mask_PL = mask_PL.bool()
    return terms_PL.masked_fill(~mask_PL, 0.0).sum(dim=-1) / mask_PL.sum(dim=-1).clamp_min(1)


def _relations(vectors_PLD: Tensor, mask_PL: Tensor, heads: int) -> Tensor:
    """Log-probabilities with which each token relates to the real tokens, [P, H, L, L]."""
    pairs, length, width = vectors_PLD.shape
    heads_PHLd = vectors_PLD.view(pairs, length, heads, width // heads).transpose(1, 2)
    scores_PHLL = heads_PHLd @ heads_PHLd.transpose(-1, -2) / (width // heads) ** 0.5
    return functional.log_softmax(scores_PHLL.masked_fill(~mask_PL.bool()[:, None, None], -1e9), dim=-1)


def _distances(vectors_PD: Tensor) -> Tensor:
    """Distances of all pairs of vectors, in units of their mean."""
    found = functional.pdist(vectors_PD.float())
    return found / found.mean().clamp_min(1e-12)


def _angles(vectors_PD: Tensor) -> Tensor:
    """Cosine of the angle at vector j between vectors i and k, [P, P, P] as [i, j, k]."""
    edges_PPD = functional.normalize(vectors_PD.float().unsqueeze(1) - vectors_PD.float().unsqueeze(0), dim=-1)
    return torch.einsum("ijd,kjd->ijk", edges_PPD, edges_PPD)
