"""Unlearning objectives on cached rows: pure functions from logits to one value an answer token.

A row knows K kept tokens and the mass of all others, so distributions are compared in buckets: each kept id, the answer
token itself where it is not kept, and one tail. The student's tail is a masked log-sum-exp, never log(1 - sum), which
loses the tail's gradient once it is small. Sums over tokens and divisions by examples are the loop's job.
Shapes: M answer tokens, V vocabulary, K kept, C = K + 2 buckets (kept, answer, tail).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TeacherRows:
    """Cached rows of M answer tokens. Floats are float32; `kept_ids_MK` and `answer_ids_M` are int64."""

    kept_ids_MK: Tensor
    kept_logprobs_MK: Tensor
    tail_logprob_M: Tensor
    answer_ids_M: Tensor
    answer_logprob_M: Tensor
    entropy_M: Tensor

    def to(self, device: torch.device) -> "TeacherRows":
        """Return the rows on a device."""
        return TeacherRows(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Buckets:
    """Log-probabilities of teacher and student in the same buckets, [M, C] each; -inf where a bucket is empty."""

    teacher_MC: Tensor
    student_MC: Tensor


def _widen(logits_MV: Tensor) -> Tensor:
    """Return logits in float32, or wider where they are (tests compare in float64)."""
    return logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))


def answer_logprobs(student_logits_MV: Tensor, answer_ids_M: Tensor) -> Tensor:
    """Return log q(y), float32 or wider, [M]."""
    logits_MV = _widen(student_logits_MV)
    return logits_MV.gather(1, answer_ids_M[:, None])[:, 0] - torch.logsumexp(logits_MV, dim=1)


def bucket(student_logits_MV: Tensor, rows: TeacherRows) -> Buckets:
    """Sort both distributions into buckets; the teacher's are normalized to one against rounding in storage."""
    logits_MV = _widen(student_logits_MV)
    whole_M1 = torch.logsumexp(logits_MV, dim=1, keepdim=True)
    answer_M1 = rows.answer_ids_M[:, None]
    is_kept_M = (rows.kept_ids_MK == answer_M1).any(1)
    outside_MV = torch.ones_like(logits_MV, dtype=torch.bool).scatter_(1, rows.kept_ids_MK, False)
    outside_MV = outside_MV.scatter(1, answer_M1, False)
    has_tail_M1 = outside_MV.any(1, keepdim=True)
    tail_logits_MV = logits_MV.masked_fill(~(outside_MV | ~has_tail_M1), -math.inf)
    student_tail_M1 = torch.logsumexp(tail_logits_MV, dim=1, keepdim=True)
    student_MC = torch.cat(
        [logits_MV.gather(1, rows.kept_ids_MK), logits_MV.gather(1, answer_M1), student_tail_M1], dim=1
    ) - whole_M1  # fmt: skip
    teacher_MC = _teacher_buckets(rows, is_kept_M, has_tail_M1[:, 0])
    return Buckets(teacher_MC, student_MC)


def _teacher_buckets(rows: TeacherRows, is_kept_M: Tensor, has_tail_M: Tensor) -> Tensor:
    answer_M = rows.answer_logprob_M.masked_fill(is_kept_M, -math.inf)
    outside_M = (rows.tail_logprob_M.exp() - answer_M.exp()).clamp_min(0)
    tail_M = torch.where(has_tail_M, outside_M, torch.zeros_like(outside_M)).log()
    teacher_MC = torch.cat([rows.kept_logprobs_MK, answer_M[:, None], tail_M[:, None]], dim=1)
    return teacher_MC - torch.logsumexp(teacher_MC, dim=1, keepdim=True)


def forward_kl(buckets: Buckets) -> Tensor:
    """Return KL(R || q) in nats, [M]; the gradient flows through q only (ViKeR, arXiv 2601.22020, eq. of L_ViKeR).

    An empty bucket of the teacher adds nothing, whatever the student puts there.
    """
    teacher_MC = buckets.teacher_MC.detach()
    filled_MC = torch.isfinite(teacher_MC)
    gap_MC = torch.where(filled_MC, teacher_MC, 0.0) - torch.where(filled_MC, buckets.student_MC, 0.0)
    return (teacher_MC.exp() * gap_MC).sum(1)


def ascent(student_logits_MV: Tensor, answer_ids_M: Tensor) -> Tensor:
    """Return the uniform ascent term, log q(y), [M]: minimizing it lowers the answer's probability (GA)."""
    return answer_logprobs(student_logits_MV, answer_ids_M)


def adaptive_ascent(student_logits_MV: Tensor, rows: TeacherRows) -> Tensor:
    """Return log q(y) weighted by 1 - R(y), [M]: tokens the teacher says anyway feel no ascent (ours)."""
    weight_M = 1 - rows.answer_logprob_M.exp()
    return weight_M * answer_logprobs(student_logits_MV, rows.answer_ids_M)


def gradient_weights(
    student_probs_MV: Tensor, teacher_probs_MV: Tensor, answer_ids_M: Tensor, lambda_: float
) -> Tensor:
    """Return ViKeR's reweighting factors w, [M, V], with d loss / d logit_v = w_v (1[v = y] - q_v).

    w_y = 1 + lambda (q_y - R_y) / (1 - q_y) and w_v = 1 - lambda + lambda R_v / q_v elsewhere (derived from the loss;
    with R one-hot at y every factor is 1 - lambda, the paper's Proposition 2).
    """
    weights_MV = 1 - lambda_ + lambda_ * teacher_probs_MV / student_probs_MV
    answer_M1 = answer_ids_M[:, None]
    student_M1, teacher_M1 = student_probs_MV.gather(1, answer_M1), teacher_probs_MV.gather(1, answer_M1)
    return weights_MV.scatter(1, answer_M1, 1 + lambda_ * (student_M1 - teacher_M1) / (1 - student_M1))
