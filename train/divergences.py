"""How far the student is from the teacher, in buckets: the regularizers and retain terms.

Each takes log-probabilities of teacher and student in the same buckets [M, C] (kept, answer, tail; `rows.py`,
`student.py`) and gives one value an answer token. Gradients flow through the student only. Columns that the teacher
leaves empty are not compared: a kept answer's second copy, a tail that holds no token, or no teacher's mass at all.
"""

# M answer tokens, K kept, C buckets

import math

import torch
from torch import Tensor


def forward_kl(teacher_MC: Tensor, student_MC: Tensor) -> Tensor:
    """Return KL(R || q) in nats, [M] (ViKeR, arXiv 2601.22020, the regularizer of L_ViKeR)."""
    teacher_MC = teacher_MC.detach()
    filled_MC = teacher_MC != -math.inf
    gap_MC = torch.where(filled_MC, teacher_MC, 0.0) - torch.where(filled_MC, student_MC, 0.0)
    return (teacher_MC.exp() * gap_MC).sum(1)


def jensen_shannon(teacher_MC: Tensor, student_MC: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence in nats, [M], at most log 2 (arXiv 2601.22020, par. 6).

    In buckets it is a lower bound of the one over the vocabulary, as every divergence of merged outcomes is.
    """
    teacher_MC = teacher_MC.detach()
    filled_MC = teacher_MC != -math.inf
    teacher_MC, student_MC = torch.where(filled_MC, teacher_MC, 0.0), torch.where(filled_MC, student_MC, 0.0)
    mixture_MC = torch.logaddexp(teacher_MC, student_MC) - math.log(2)
    both_MC = teacher_MC.exp() * (teacher_MC - mixture_MC) + student_MC.exp() * (student_MC - mixture_MC)
    # What the student says where the teacher says nothing is alone in its mixture; empty columns also hold copies, so
    # it is what the filled ones leave.
    alone_M = 1 - torch.where(filled_MC, student_MC.exp(), 0.0).sum(1)
    return (torch.where(filled_MC, both_MC, 0.0).sum(1) + math.log(2) * alone_M) / 2


def kept_cosine_distance(teacher_MC: Tensor, student_MC: Tensor) -> Tensor:
    """Return 1 - cosine of the two probability vectors over the kept tokens (at least one), [M].

    A regularizer of arXiv 2601.22020, par. 6. Over the kept tokens only, since a tail has no direction; `cosine_bound`
    says how far that may be from the cosine over the vocabulary.
    """
    teacher_MK, student_MK = (_scaled(part_MC[:, :-2]) for part_MC in (teacher_MC.detach(), student_MC))
    return 1 - torch.nn.functional.cosine_similarity(teacher_MK, student_MK, dim=1)


def _scaled(logprobs_MK: Tensor) -> Tensor:
    """Return probabilities up to a factor, the largest 1: a cosine has no scale, and small squares would vanish."""
    return (logprobs_MK - logprobs_MK.detach().amax(1, keepdim=True)).exp()


def cosine_bound(teacher_MC: Tensor, student_MC: Tensor, sum_squares_M: Tensor) -> Tensor:
    """Return how far the cosine over kept tokens may be from the one over the vocabulary, [M].

    With |R_kept| = |R| cos a and |q_kept| = |q| cos b, the cosine over all is cos a cos b times the one over kept, plus
    at most sin a sin b: both changes are within 1 - cos a cos b. The cache knows |R|^2 (`sum_squares`); what the
    student says outside of kept is longest as one token.
    """
    teacher_MK, student_MK = teacher_MC[:, :-2].exp(), student_MC[:, :-2].exp()
    kept_teacher_M, kept_student_M = teacher_MK.square().sum(1), student_MK.square().sum(1)
    outside_M = (1 - student_MK.sum(1)).clamp_min(0)
    cos_a_M = (kept_teacher_M / sum_squares_M).clamp(0, 1).sqrt()
    cos_b_M = (kept_student_M / (kept_student_M + outside_M.square())).clamp(0, 1).sqrt()
    return 1 - cos_a_M * cos_b_M
